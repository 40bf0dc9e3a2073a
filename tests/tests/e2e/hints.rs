//! Hints of diagnostics: following a hint makes the config valid.

use crate::check::check;

const WEB: &str = "services:\n  - name: web\n    ";
const ENDPOINT: &str = "\n    endpoints: [\"127.0.0.1:9\"]\n";

/// A config with a hole, what is wrong in it, what the hint says, and what that makes of the hole.
#[tokio::test]
async fn what_a_hint_says_is_accepted() {
    let with = |key: &str| format!("{WEB}{key}: {{}}{ENDPOINT}");
    let process = format!("{WEB}process: {{command: {{}}}}\n");
    let own = |key: &str| format!("{WEB}{key}: {{}}\n");
    let revision = |keys: &str| {
        format!("{WEB}revisions:\n      - name: a\n        endpoints: [\"127.0.0.1:9\"]\n        {keys}\n")
    };
    let route = "services:\n  - name: web\n    endpoints: [\"127.0.0.1:9\"]\n    routes:\n      - match: {path: {prefix: {}}}\n        traffic: [{latestRevision: true, percent: 100}]\n";
    let cases: Vec<(String, &str, &str, &str)> = vec![
        (process.clone(), "npm start", "write [npm, start]", "[npm, start]"),
        (
            process.clone(),
            "npm start",
            "or [sh, -c, 'npm start'] for a shell",
            "[sh, -c, 'npm start']",
        ),
        (process.clone(), "./run", "write [./run]", "[./run]"),
        (
            process.clone(),
            "\"cd app && PORT=$PORT ./run 'it'\"",
            "no shell reads it: write [sh, -c, 'cd app && PORT=$PORT ./run ''it''']",
            "[sh, -c, 'cd app && PORT=$PORT ./run ''it''']",
        ),
        (
            with("hosts"),
            "\"*.example.com\"",
            "['*.example.com']",
            "['*.example.com']",
        ),
        (
            with("hosts"),
            "a.example, b.example",
            "[a.example, b.example]",
            "[a.example, b.example]",
        ),
        (
            with("hosts"),
            "a.example",
            "a list of one is written [a.example]",
            "[a.example]",
        ),
        (own("endpoints"), "\"[::1]:9\"", "['[::1]:9']", "['[::1]:9']"),
        (own("endpoints"), "127.0.0.1:9", "[127.0.0.1:9]", "[127.0.0.1:9]"),
        (
            own("endpoints"),
            "\"unix:/run/my app.sock\"",
            "['unix:/run/my app.sock']",
            "['unix:/run/my app.sock']",
        ),
        (
            with("hosts"),
            "[müller.example]",
            "its ASCII form is xn--mller-kva.example",
            "[xn--mller-kva.example]",
        ),
        (
            with("hosts"),
            "[\"*.BÜCHER.example\"]",
            "xn--bcher-kva.example",
            "[\"*.xn--bcher-kva.example\"]",
        ),
        (
            own("endpoints"),
            "[\"müller.example:80\"]",
            "xn--mller-kva.example",
            "[\"xn--mller-kva.example:80\"]",
        ),
        (
            own("url"),
            "https://müller.example/",
            "xn--mller-kva.example",
            "https://xn--mller-kva.example/",
        ),
        (route.to_owned(), "/ü", "write /%C3%BC", "/%C3%BC"),
        (route.to_owned(), "/a b", "write /a%20b", "/a%20b"),
        (route.to_owned(), "a b", "write /a%20b", "/a%20b"),
        (revision("startTimeout: {}"), "5", "give it a unit: 5s", "5s"),
        (
            format!("listeners: {{}}\n{WEB}{}", ENDPOINT.trim_start()),
            "127.0.0.1:0",
            "write [{address: 127.0.0.1:0}]",
            "[{address: 127.0.0.1:0}]",
        ),
        (
            format!("listeners: [{{address: {{}}}}]\n{WEB}{}", ENDPOINT.trim_start()),
            "\"::1\"",
            "write [::1]:8080",
            "\"[::1]:8080\"",
        ),
    ];
    for (config, wrong, hint, right) in cases {
        let config = |value: &str| config.replacen("{}", value, 1);
        let refused = check(&config(wrong)).await;
        assert_eq!(refused.code, Some(1), "{wrong}: {}", refused.all());
        assert!(
            refused.all().contains(hint),
            "{wrong}: no {hint:?} in {}",
            refused.all()
        );
        let accepted = check(&config(right)).await;
        assert_eq!(accepted.code, Some(0), "{right}: {}", accepted.all());
    }
}

/// There is no hint where following it would lead to another error.
#[tokio::test]
async fn nothing_is_suggested_that_is_refused() {
    let config = |value: &str| {
        format!(
            "{WEB}revisions:\n      - name: a\n        endpoints: [\"127.0.0.1:9\"]\n        startTimeout: {value}\n"
        )
    };
    let done = check(&config("-5")).await;
    assert!(
        done.code == Some(1) && !done.all().contains("-5s"),
        "{}",
        done.all()
    );
    let listener = format!(
        "listeners: [{{address: \"localhost:http\"}}]\n{WEB}{}",
        ENDPOINT.trim_start()
    );
    let done = check(&listener).await;
    assert!(
        done.code == Some(1) && !done.all().contains("127.0.0.1:http"),
        "{}",
        done.all()
    );
    let host = check(&format!("{WEB}hosts: [\"mu\u{308}ller.example\"]{ENDPOINT}")).await;
    assert!(
        host.code == Some(1) && !host.all().contains("xn--"),
        "{}",
        host.all()
    );
}

/// A refused character is shown as it was written.
#[tokio::test]
async fn no_byte_is_shown_as_a_character() {
    for config in [
        format!("{WEB}hosts: [müller.example]{ENDPOINT}"),
        format!("services:\n  - name: wüb{ENDPOINT}"),
        format!("domain: müller\n{WEB}{}", ENDPOINT.trim_start()),
        format!("{WEB}endpoints: [\"müller:80\"]\n"),
        format!("{WEB}url: \"http://müller/\"\n"),
        format!("{WEB}traffic: [{{latestRevision: true, percent: 100, tag: grün}}]{ENDPOINT}"),
    ] {
        let done = check(&config).await;
        assert_eq!(done.code, Some(1), "{config}");
        let said = done.all();
        assert!(said.contains("the character 'ü' is not allowed"), "{said}");
        assert!(!said.contains('Ã'), "{said}");
    }
}
