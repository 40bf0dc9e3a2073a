//! Request smuggling: ambiguous framing is refused.

use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1, H1Response};
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::wait::{SOON, within};

use crate::{WEB, web};

/// Sends bytes, expects one answer and the connection's end after it.
async fn answer_and_close(gateway: &Gateway, what: &str, raw: &[u8]) -> H1Response {
    let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
    // The gateway may have closed before it read everything: the answer counts.
    let _ = conn.send(raw).await;
    let response = within(what, SOON, conn.response_to(b"POST "))
        .await
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    within(what, SOON, conn.closed())
        .await
        .unwrap_or_else(|e| panic!("{what} is not the connection's end: {e}"));
    response
}

/// A request as text; `\n` stands for CRLF, and `{H}` for a good Host line.
fn raw(text: &str) -> Vec<u8> {
    text.replace('\n', "\r\n")
        .replace("{H}", &format!("Host: {WEB}"))
        .into_bytes()
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\n{H}\n\n";

#[tokio::test]
async fn requests_that_could_be_smuggled_are_refused() {
    let (backend, record) = RawBackend::recording().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let cases = [
        (
            "repeated length",
            "POST / HTTP/1.1\n{H}\nContent-Length: 3\nContent-Length: 4\n\nabc",
        ),
        (
            "repeated equal length",
            "POST / HTTP/1.1\n{H}\nContent-Length: 3\nContent-Length: 3\n\nabc",
        ),
        (
            "list of lengths",
            "POST / HTTP/1.1\n{H}\nContent-Length: 3, 3\n\nabc",
        ),
        ("signed length", "POST / HTTP/1.1\n{H}\nContent-Length: +3\n\nabc"),
        (
            "negative length",
            "POST / HTTP/1.1\n{H}\nContent-Length: -3\n\nabc",
        ),
        ("hex length", "POST / HTTP/1.1\n{H}\nContent-Length: 0x3\n\nabc"),
        ("empty length", "POST / HTTP/1.1\n{H}\nContent-Length:\n\nabc"),
        (
            "length with a blank",
            "POST / HTTP/1.1\n{H}\nContent-Length: 1 2\n\nabc",
        ),
        (
            "length beyond 64 bits",
            "POST / HTTP/1.1\n{H}\nContent-Length: 18446744073709551617\n\na",
        ),
        (
            "length with encoding",
            "POST / HTTP/1.1\n{H}\nContent-Length: 3\nTransfer-Encoding: chunked\n\n0\n\n",
        ),
        (
            "encoding with length",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: chunked\nContent-Length: 3\n\n0\n\n",
        ),
        (
            "encoding not chunked",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: gzip\n\nabc",
        ),
        (
            "chunked not last",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: chunked, gzip\n\n0\n\n",
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: chunked, chunked\n\n0\n\n",
        ),
        (
            "encoding twice",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n",
        ),
        (
            "encoding misspelled",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: xchunked\n\n0\n\n",
        ),
        (
            "encoding with a tab before the name",
            "POST / HTTP/1.1\n{H}\n\tTransfer-Encoding: chunked\n\n0\n\n",
        ),
        (
            "encoding with vertical tab",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: \u{b}chunked\n\n0\n\n",
        ),
        (
            "encoding in HTTP/1.0",
            "POST / HTTP/1.0\n{H}\nTransfer-Encoding: chunked\n\n0\n\n",
        ),
        (
            "blank before the colon",
            "POST / HTTP/1.1\n{H}\nContent-Length : 3\n\nabc",
        ),
        (
            "blank before the colon of the encoding",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding : chunked\n\n0\n\n",
        ),
        ("folded line", "GET / HTTP/1.1\n{H}\nX-A: 1\n two\n\n"),
        ("folded first line", "GET / HTTP/1.1\n X-A: 1\n{H}\n\n"),
        ("two hosts", "GET / HTTP/1.1\n{H}\n{H}\n\n"),
        ("two different hosts", "GET / HTTP/1.1\n{H}\nHost: other\n\n"),
        ("no host", "GET / HTTP/1.1\nX-A: 1\n\n"),
        ("empty host", "GET / HTTP/1.1\nHost:\n\n"),
        (
            "host with a path",
            "GET / HTTP/1.1\nHost: web.default.localhost/x\n\n",
        ),
        (
            "host with a user",
            "GET / HTTP/1.1\nHost: a@web.default.localhost\n\n",
        ),
        (
            "host with a blank",
            "GET / HTTP/1.1\nHost: web.default.localhost x\n\n",
        ),
        (
            "host with a bad port",
            "GET / HTTP/1.1\nHost: web.default.localhost:99999\n\n",
        ),
        (
            "absolute form of another host",
            "GET http://other.example.com/ HTTP/1.1\n{H}\n\n",
        ),
        ("name without a colon", "GET / HTTP/1.1\n{H}\nX-A\n\n"),
        ("empty name", "GET / HTTP/1.1\n{H}\n: 1\n\n"),
        ("name with a blank", "GET / HTTP/1.1\n{H}\nX A: 1\n\n"),
        ("name with a bracket", "GET / HTTP/1.1\n{H}\nX[A: 1\n\n"),
        ("NUL in a value", "GET / HTTP/1.1\n{H}\nX-A: 1\u{0}2\n\n"),
        ("NUL in the target", "GET /\u{0} HTTP/1.1\n{H}\n\n"),
        ("bare CR in a value", "GET / HTTP/1.1\n{H}\nX-A: 1\r2\n\n"),
        ("bare CR in the request line", "GET /\rx HTTP/1.1\n{H}\n\n"),
        ("no version", "GET /\n{H}\n\n"),
        ("version 3", "GET / HTTP/3.0\n{H}\n\n"),
        ("lower-case version", "GET / http/1.1\n{H}\n\n"),
        ("two blanks", "GET  / HTTP/1.1\n{H}\n\n"),
        ("bad method", "G@T / HTTP/1.1\n{H}\n\n"),
        ("relative target", "GET x HTTP/1.1\n{H}\n\n"),
    ];
    for (what, text) in cases {
        let response = answer_and_close(&gateway, what, &raw(&format!("{text}{SMUGGLED}"))).await;
        assert_eq!(
            (response.status, response.reason()),
            (400, Some("bad_request")),
            "{what}"
        );
    }
    let bare_lf = format!("GET / HTTP/1.1\nHost: {WEB}\n\n");
    let mixed = format!("GET / HTTP/1.1\r\nHost: {WEB}\nX-A: 1\r\n\r\n");
    for (what, bytes) in [("bare LF", bare_lf), ("one bare LF", mixed)] {
        let response = answer_and_close(&gateway, what, bytes.as_bytes()).await;
        assert_eq!(response.status, 400, "{what}");
    }
    let seen = record.lock().unwrap();
    assert!(
        seen.is_empty(),
        "the backend saw {:?}",
        String::from_utf8_lossy(&seen)
    );
}

#[tokio::test]
async fn chunks_that_could_be_read_differently_never_end_well() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for (what, body) in [
        ("no size", "\nabc\n0\n\n"),
        ("signed size", "+3\nabc\n0\n\n"),
        ("0x size", "0x3\nabc\n0\n\n"),
        ("size beyond 64 bits", "10000000000000003\nabc\n0\n\n"),
        ("data longer than its size", "2\nabc\n0\n\n"),
        ("data without its end", "3\nabcGET /smuggled HTTP/1.1\n0\n\n"),
    ] {
        let head = "POST / HTTP/1.1\n{H}\nTransfer-Encoding: chunked\n\n";
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        let _ = conn.send(&raw(&format!("{head}{body}{SMUGGLED}"))).await;
        if let Ok(response) = within(what, SOON, conn.response_to(b"POST ")).await {
            assert!(response.status >= 400, "{what}: {response:?}");
        }
        // A reset is as good an end as a close; another answer would not be.
        let end = within(what, SOON, conn.head(false)).await;
        assert!(end.is_err(), "{what}: answered again {end:?}");
    }
    assert_eq!(
        backend.count(),
        0,
        "no such request is complete: {:?}",
        backend.seen()
    );
}

#[tokio::test]
async fn what_only_looks_odd_is_served() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for (what, text) in [
        ("a leading empty line", "\nGET / HTTP/1.1\n{H}\n\n"),
        (
            "absolute form",
            "GET http://web.default.localhost/ HTTP/1.1\n{H}\n\n",
        ),
        ("blanks around a value", "GET / HTTP/1.1\n{H}\nX-A: \t 1 \t\n\n"),
        ("an empty value", "GET / HTTP/1.1\n{H}\nX-A:\n\n"),
        ("an unusual method", "PROPFIND / HTTP/1.1\n{H}\n\n"),
        ("OPTIONS of everything", "OPTIONS * HTTP/1.1\n{H}\n\n"),
        ("bytes above ASCII", "GET / HTTP/1.1\n{H}\nX-A: \u{e9}\n\n"),
        (
            "upper-case chunked",
            "POST / HTTP/1.1\n{H}\nTransfer-Encoding: Chunked\n\n3\nabc\n0\n\n",
        ),
    ] {
        let response = gateway.send(&raw(text)).await;
        assert_eq!(response.status, 200, "{what}: {:?}", response.reason());
    }
}

#[tokio::test]
async fn limits_on_a_request_have_answers_of_their_own() {
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {headerTimeout: 1s, maxHeaderBytes: 8KiB, maxHeaders: 20, maxUriBytes: 1KiB, maxBodyBytes: 1000}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let long = "x".repeat(10_000);
    let many: String = (0..30).map(|n| format!("X-{n}: 1\n")).collect();
    for (what, text, status, reason) in [
        (
            "a large field",
            format!("GET / HTTP/1.1\n{{H}}\nX-A: {long}\n\n"),
            431,
            "headers_too_large",
        ),
        (
            "many fields",
            format!("GET / HTTP/1.1\n{{H}}\n{many}\n"),
            431,
            "headers_too_large",
        ),
        (
            "a long target",
            format!("GET /{} HTTP/1.1\n{{H}}\n\n", &long[..2_000]),
            414,
            "uri_too_long",
        ),
        (
            "a large body",
            "POST / HTTP/1.1\n{H}\nContent-Length: 1001\n\n".to_owned(),
            413,
            "body_too_large",
        ),
        (
            "a slow head",
            "GET / HTTP/1.1\n{H}\nX-A".to_owned(),
            408,
            "request_timeout",
        ),
    ] {
        let response = answer_and_close(&gateway, what, &raw(&text)).await;
        assert_eq!(
            (response.status, response.reason()),
            (status, Some(reason)),
            "{what}"
        );
    }
    assert_eq!(backend.count(), 0);
    let chunked = format!(
        "POST / HTTP/1.1\n{{H}}\nTransfer-Encoding: chunked\n\n7d0\n{}\n0\n\n",
        &long[..2_000]
    );
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let _ = conn.send(&raw(&chunked)).await;
    if let Ok(response) = conn.response_to(b"POST ").await {
        assert_eq!(
            (response.status, response.reason()),
            (413, Some("body_too_large"))
        );
    }
    assert_eq!(
        backend.count(),
        0,
        "a chunked body over the limit is never complete"
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time_from_the_second_request_on_too() {
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {idleTimeout: 1s, headerTimeout: 1s}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let mut fresh = H1::connect(gateway.addr()).await.unwrap();
    let mut used = H1::connect(gateway.addr()).await.unwrap();
    used.exchange(&h1::get(WEB, "/")).await.unwrap();
    within(
        "a used connection is closed",
        Duration::from_secs(5),
        used.closed(),
    )
    .await
    .unwrap();
    within(
        "a fresh connection is closed",
        Duration::from_secs(5),
        fresh.closed(),
    )
    .await
    .unwrap();
}
