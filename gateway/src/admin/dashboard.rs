//! The dashboard: one page, with its script and its style in it, served under a Content-Security-Policy that allows
//! these two by their hashes and nothing else. The page gets its data from `/api/events` and writes it as text alone;
//! Trusted Types make a browser refuse what would write HTML.

use std::sync::LazyLock;

use bytes::Bytes;
use data_encoding::BASE64;
use http::header::{CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_FRAME_OPTIONS};
use http::{Response, StatusCode};
use ring::digest::{SHA256, digest};

use super::answers::{AdminBody, typed};

/// The path of the page.
pub(super) const PATH: &str = "/dashboard";

const PAGE: &str = include_str!("dashboard/page.html");
const STYLE: &str = include_str!("dashboard/style.css");
/// One script in several files: the order matters.
const SCRIPT: [&str; 5] = [
    include_str!("dashboard/dom.js"),
    include_str!("dashboard/charts.js"),
    include_str!("dashboard/releases.js"),
    include_str!("dashboard/services.js"),
    include_str!("dashboard/main.js"),
];

/// The page and its policy.
static DASHBOARD: LazyLock<(Bytes, HeaderValue)> = LazyLock::new(|| {
    let script = format!("\"use strict\";\n(() => {{\n{}\n}})();\n", SCRIPT.join("\n"));
    let hash = |text: &str| BASE64.encode(digest(&SHA256, text.as_bytes()).as_ref());
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(&script),
        hash(STYLE),
    );
    let page = PAGE
        .replacen("{style}", STYLE, 1)
        .replacen("{script}", &script, 1);
    let policy = HeaderValue::from_str(&policy).expect("hashes are ASCII");
    (page.into(), policy)
});

/// The page.
pub(super) fn page() -> Response<AdminBody> {
    let (page, policy) = &*DASHBOARD;
    let mut answer = typed(StatusCode::OK, "text/html; charset=utf-8", page.clone());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, policy.clone());
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let opener = HeaderName::from_static("cross-origin-opener-policy");
    headers.insert(opener, HeaderValue::from_static("same-origin"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_its_parts_and_nothing_from_elsewhere() {
        let answer = page();
        let policy = answer.headers()[CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'sha256-"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        let page = std::str::from_utf8(&DASHBOARD.0).unwrap();
        for part in SCRIPT.into_iter().chain([STYLE]) {
            assert!(page.contains(part));
            // The end of either element would end it in the page, too.
            assert!(!part.contains("</"), "closing tags belong into the page");
        }
        assert_eq!(
            (page.matches("<script>").count(), page.matches("<style>").count()),
            (1, 1)
        );
        for elsewhere in [
            "http://", "https://", "//cdn", "@import", "url(", " src=", "<link",
        ] {
            let found = page.replace("http://www.w3.org/2000/svg", "").contains(elsewhere);
            assert!(!found, "{elsewhere}");
        }
    }

    /// What would write HTML, run text as a script, or keep the token.
    #[test]
    fn the_script_writes_no_html_and_keeps_nothing() {
        for part in SCRIPT {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "DOMParser",
                "eval",
                "new Function",
                "setHTML",
                "createContextualFragment",
                "srcdoc",
                "localStorage",
                "sessionStorage",
                "cookie",
                "indexedDB",
            ] {
                assert!(!part.contains(word), "{word}");
            }
        }
        for handler in [" onclick", " onload", " onerror", "javascript:", " style="] {
            assert!(!PAGE.contains(handler), "{handler}");
        }
    }
}
