//! The waiting page: pure, from a template and the state of a start to a response.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use sluice_model::WaitingPage;

use super::admit::failure_reason;
use crate::local_response::RenderedResponse;
use crate::observe::Reason;
use crate::throttle::{ColdPhase, ColdState};

/// The page where the configuration names no file.
const BUILT_IN: &str = include_str!("waiting_page.html");

/// No scripts, and nothing from another host or from the service itself: a picture would be one more held request.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; \
                                       base-uri 'none'; form-action 'none'";

/// The longest cause of a failure that is shown, in characters.
const MAX_CAUSE: usize = 256;

/// Renders the waiting page; returns the reason with it. `template` is the content of the configured file. The cause of a
/// failed start is shown only with `error_detail`.
pub fn waiting_page(
    page: &WaitingPage,
    template: Option<&str>,
    state: &ColdState,
    error_detail: bool,
) -> (Reason, RenderedResponse) {
    let (reason, retry_after) = match &state.phase {
        ColdPhase::Failed { failure, retry_after } => (failure_reason(failure.failure), *retry_after),
        _ => (Reason::Starting, page.refresh),
    };
    let refresh = page.refresh.as_secs().max(1);
    let again = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    let values = [
        ("{title}", page.title.clone()),
        ("{phase}", phase(&state.phase, error_detail)),
        ("{elapsed}", seconds(state.elapsed)),
        (
            "{expected}",
            state.expected.map_or_else(|| "unknown".to_owned(), seconds),
        ),
    ];
    let values = values.map(|(name, text)| (name, escape(&text).into_owned()));
    let response = RenderedResponse {
        status: page.status,
        headers: vec![
            ("content-type", "text/html; charset=utf-8".to_owned()),
            ("cache-control", "no-store".to_owned()),
            // Without an address the browser asks for the same URL again, query and fragment included.
            ("refresh", refresh.to_string()),
            ("retry-after", again.max(refresh).to_string()),
            ("content-security-policy", CONTENT_SECURITY_POLICY.to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
        ],
        body: Bytes::from(fill(template.unwrap_or(BUILT_IN), &values)),
    };
    (reason, response)
}

/// The name of a phase, as in logs and metrics.
pub fn phase_name(phase: &ColdPhase) -> &'static str {
    match phase {
        ColdPhase::Queued => "queued",
        ColdPhase::Starting => "starting",
        ColdPhase::Booting => "booting",
        ColdPhase::Failed { .. } => "failed",
    }
}

fn phase(phase: &ColdPhase, error_detail: bool) -> String {
    match phase {
        ColdPhase::Failed { failure, .. } if error_detail && !failure.detail.is_empty() => {
            let cause: String = failure.detail.chars().take(MAX_CAUSE).collect();
            format!("failed: {cause}")
        }
        other => phase_name(other).to_owned(),
    }
}

/// A duration for people, in whole seconds: `34 s`, `2 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds < 60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// Replaces placeholders in one pass: a value is never searched for placeholders. Other braces stay, as styles have
/// them.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut out = String::with_capacity(template.len() + 256);
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        match values.iter().find(|(name, _)| after.starts_with(name)) {
            Some((name, value)) => {
                out.push_str(value);
                rest = &after[name.len()..];
            }
            None => {
                out.push('{');
                rest = &after[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Escapes a text for HTML: for content, and for quoted attributes. Control characters, which HTML does not allow even
/// escaped, become blanks.
fn escape(text: &str) -> Cow<'_, str> {
    let is_special = |c: char| c.is_control() || matches!(c, '&' | '<' | '>' | '"' | '\'');
    if !text.contains(is_special) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 32);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use sluice_model::{ActivationFailure, Failure};

    use super::*;

    fn page(title: &str) -> WaitingPage {
        WaitingPage {
            title: title.to_owned(),
            status: 503,
            refresh: Duration::from_secs(2),
            file: None,
        }
    }

    fn booting() -> ColdState {
        ColdState {
            phase: ColdPhase::Booting,
            elapsed: Duration::from_millis(3_900),
            expected: Some(Duration::from_secs(125)),
        }
    }

    fn failed(detail: &str) -> ColdState {
        let failure = Arc::new(ActivationFailure {
            failure: Failure::Failed,
            detail: detail.to_owned(),
            retry_after: Duration::from_secs(10),
        });
        ColdState {
            phase: ColdPhase::Failed {
                failure,
                retry_after: Duration::from_millis(7_100),
            },
            elapsed: Duration::ZERO,
            expected: None,
        }
    }

    fn text(response: &RenderedResponse) -> &str {
        std::str::from_utf8(&response.body).expect("text")
    }

    fn field<'r>(response: &'r RenderedResponse, name: &str) -> &'r str {
        let found = response.headers.iter().find(|(known, _)| *known == name);
        &found.expect("is there").1
    }

    #[test]
    fn a_template_gets_its_values_and_keeps_other_braces() {
        let template = "p{x} {title}|{phase}|{elapsed}|{expected} {{title}} {titel} {";
        let (reason, response) = waiting_page(&page("<b>&{phase}"), Some(template), &booting(), false);
        assert_eq!(reason, Reason::Starting);
        assert_eq!(
            text(&response),
            "p{x} &lt;b&gt;&amp;{phase}|booting|3 s|2 min 5 s {&lt;b&gt;&amp;{phase}} {titel} {"
        );
        assert_eq!(field(&response, "refresh"), "2");
        assert_eq!(field(&response, "retry-after"), "2");
        assert_eq!(field(&response, "cache-control"), "no-store");
    }

    #[test]
    fn the_cause_is_told_only_where_errors_are_detailed() {
        let state = failed("<script>exit status 1</script>");
        let (reason, response) = waiting_page(&page("t"), Some("{phase} {expected}"), &state, false);
        assert_eq!(
            (reason, text(&response)),
            (Reason::ActivationFailed, "failed unknown")
        );
        assert_eq!(field(&response, "retry-after"), "8", "the rest of the back-off");
        let (_, response) = waiting_page(&page("t"), Some("{phase}"), &state, true);
        assert_eq!(
            text(&response),
            "failed: &lt;script&gt;exit status 1&lt;/script&gt;"
        );
    }

    #[test]
    fn the_built_in_page_needs_nothing_else() {
        let (_, response) = waiting_page(&page("greeter is starting"), None, &booting(), false);
        let html = text(&response);
        for part in [
            "<title>greeter is starting</title>",
            "name=\"viewport\"",
            "prefers-color-scheme: dark",
            "booting",
            "3 s",
            "2 min 5 s",
        ] {
            assert!(html.contains(part), "no {part}");
        }
        for part in [
            "<script",
            "http:",
            "https:",
            "{title}",
            "{phase}",
            "{elapsed}",
            "{expected}",
            "src=",
        ] {
            assert!(!html.contains(part), "{part}");
        }
        assert!(field(&response, "content-security-policy").starts_with("default-src 'none';"));
    }

    proptest! {
        /// Whatever a title or a cause holds, the page's own markup is all there is.
        #[test]
        fn values_never_become_markup(title in ".{0,40}", detail in ".{0,40}") {
            let template = "<p title=\"{title}\">{phase}</p>";
            let (_, response) = waiting_page(&page(&title), Some(template), &failed(&detail), true);
            let html = text(&response);
            prop_assert_eq!(html.matches('<').count(), 2);
            prop_assert_eq!(html.matches('>').count(), 2);
            prop_assert_eq!(html.matches('"').count(), 2);
            prop_assert!(!html.contains('\''));
        }

        #[test]
        fn escaped_text_reads_as_before(text in "[a-z&<>\"' {}é]{0,40}") {
            let back = escape(&text)
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&");
            prop_assert_eq!(back, text);
        }
    }
}
