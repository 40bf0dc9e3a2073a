//! Local responses: fields that all responses of the gateway itself have, and which request targets are refused.

use std::time::Duration;

use bytes::Bytes;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1, H1Response};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::h2_frames::{self, Frames, Outcome};
use sluice_tests::raw_backend::Refused;
use sluice_tests::wait::{SOON, within};
use sluice_tests::wire::{Protocol, WireBackend};

use crate::{WEB, web, web_with};

const UPGRADE: &str = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

const SHOP: &str = "shop.example.com";

/// A request as text; `\n` stands for CRLF, `{H}` for a good Host line, `{U}` for the fields of an upgrade.
fn raw(text: &str) -> Vec<u8> {
    text.replace("{U}", UPGRADE)
        .replace('\n', "\r\n")
        .replace("{H}", &format!("Host: {WEB}"))
        .into_bytes()
}

async fn answer(gateway: &Gateway, what: &str, raw: &[u8]) -> H1Response {
    let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
    // The gateway may answer before it read everything.
    let _ = conn.send(raw).await;
    let response = within(what, SOON, conn.response_to(raw)).await;
    response.unwrap_or_else(|e| panic!("{what}: {e}"))
}

fn assert_dated(what: &str, dates: &[&str]) {
    let [date] = dates else {
        panic!("{what}: not one Date: {dates:?}");
    };
    let words: Vec<_> = date.split(' ').collect();
    let [day, number, month, year, time, "GMT"] = words[..] else {
        panic!("{what}: no IMF-fixdate: {date}");
    };
    let fine = day.len() == 4 && number.len() == 2 && month.len() == 3 && year.len() == 4 && time.len() == 8;
    assert!(fine, "{what}: no IMF-fixdate: {date}");
}

fn redirected(backend: &WireBackend) -> String {
    let addr = backend.addr();
    format!(
        "services:\n  - {{name: web, hosts: [{SHOP}], httpOption: redirected, endpoints: [\"{addr}\"]}}\n"
    )
}

/// RFC 9110 6.6.1.
#[tokio::test]
async fn every_answer_of_ours_has_a_date_over_http1() {
    let gone = Refused::new();
    let limits = "limits: {headerTimeout: 1s, maxHeaderBytes: 8KiB, maxUriBytes: 1KiB, maxBodyBytes: 1000}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(gone.addr()))).await;
    let long = "x".repeat(10_000);
    let short = &long[..2_000];
    for (what, text, status) in [
        ("malformed", "GET / HTTP/1.1\n{H}\nX A: 1\n\n".to_owned(), 400),
        ("CONNECT", format!("CONNECT {WEB}:80 HTTP/1.1\n{{H}}\n\n"), 405),
        ("a long target", format!("GET /{short} HTTP/1.1\n{{H}}\n\n"), 414),
        (
            "a large head",
            format!("GET / HTTP/1.1\n{{H}}\nX-A: {long}\n\n"),
            431,
        ),
        (
            "no route",
            "GET / HTTP/1.1\nHost: nobody.example.com\n\n".to_owned(),
            404,
        ),
        (
            "a large body",
            "POST / HTTP/1.1\n{H}\nContent-Length: 1001\n\n".to_owned(),
            413,
        ),
        ("a slow head", "GET / HTTP/1.1\n{H}\nX-A".to_owned(), 408),
        ("no backend", "GET / HTTP/1.1\n{H}\n\n".to_owned(), 502),
        ("HTTP/1.0", "GET / HTTP/1.0\n{H}\n\n".to_owned(), 502),
        ("HEAD", "HEAD / HTTP/1.1\n{H}\n\n".to_owned(), 502),
        (
            "JSON",
            "GET / HTTP/1.1\n{H}\nAccept: application/json\n\n".to_owned(),
            502,
        ),
        (
            "gRPC",
            "POST / HTTP/1.1\n{H}\nContent-Type: application/grpc\nContent-Length: 0\n\n".to_owned(),
            200,
        ),
        (
            "upgrade, no route",
            "GET / HTTP/1.1\nHost: nobody.example.com\n{U}\n\n".to_owned(),
            404,
        ),
        (
            "upgrade, no backend",
            "GET / HTTP/1.1\n{H}\n{U}\n\n".to_owned(),
            502,
        ),
    ] {
        let response = answer(&gateway, what, &raw(&text)).await;
        assert_eq!(response.status, status, "{what}: {}", response.text());
        let dates = response
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case("date"));
        let dates: Vec<_> = dates.map(|(_, v)| v.as_str()).collect();
        assert_dated(what, &dates);
    }
}

/// RFC 9110 6.6.1.
#[tokio::test]
async fn redirects_have_a_date() {
    let backend = WireBackend::start(Protocol::Http1).await;
    let gateway = Gateway::start(&redirected(&backend)).await;
    for (what, text) in [
        ("plain", format!("GET / HTTP/1.1\nHost: {SHOP}\n\n")),
        ("upgrade", format!("GET / HTTP/1.1\nHost: {SHOP}\n{{U}}\n\n")),
    ] {
        let response = answer(&gateway, what, &raw(&text)).await;
        assert_eq!(response.status, 301, "{what}");
        assert_dated(what, &response.header("date").into_iter().collect::<Vec<_>>());
    }
}

/// RFC 9110 6.6.1.
#[tokio::test]
async fn every_answer_of_ours_has_a_date_over_http2() {
    let gone = Refused::new();
    let limits = "limits: {maxHeaderBytes: 8KiB, maxUriBytes: 1KiB, maxBodyBytes: 1000}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(gone.addr()))).await;
    let client = H2::connect(gateway.addr()).await;
    let long = "x".repeat(10_000);
    let path = |path: &str| h2_client::get("http", WEB, path);
    let with = |name: &'static str, value: &str| {
        let mut request = h2_client::with_method("POST", "http", WEB, "/");
        request
            .headers_mut()
            .insert(name, value.parse().expect("a value"));
        request
    };
    for (what, request, body, status) in [
        (
            "no route",
            h2_client::get("http", "nobody.example.com", "/"),
            "",
            404,
        ),
        ("no backend", path("/"), "", 502),
        ("a long target", path(&format!("/{}", &long[..2_000])), "", 414),
        ("a large head", with("x-a", &long), "", 431),
        (
            "a large body",
            with("content-length", "1001"),
            &long[..1_001],
            413,
        ),
        ("gRPC", with("content-type", "application/grpc"), "", 200),
    ] {
        let answered = within(what, SOON, client.exchange(request, Bytes::from(body.to_owned()))).await;
        let response = answered.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(response.status, status, "{what}: {}", response.text());
        let dates = response.headers.get_all("date").iter();
        let dates: Vec<_> = dates.map(|v| v.to_str().expect("text")).collect();
        assert_dated(what, &dates);
    }
}

/// RFC 9110 15.4.2 and 15.4.9: after a 301 clients repeat a POST as a GET.
#[tokio::test]
async fn a_redirect_keeps_the_method() {
    let backend = WireBackend::start(Protocol::Http1).await;
    let gateway = Gateway::start(&redirected(&backend)).await;
    let client = H2::connect(gateway.addr()).await;
    for (method, status) in [
        ("GET", 301),
        ("HEAD", 301),
        ("POST", 308),
        ("PUT", 308),
        ("PATCH", 308),
        ("DELETE", 308),
        ("OPTIONS", 308),
        ("PROPFIND", 308),
    ] {
        let response = gateway.send(&h1::request(method, SHOP, "/x?y=z", &[], b"")).await;
        assert_eq!(response.status, status, "{method}");
        assert_eq!(
            response.header("location"),
            Some("https://shop.example.com/x?y=z")
        );
        let request = h2_client::with_method(method, "http", SHOP, "/x?y=z");
        let response = client.exchange(request, Bytes::new()).await.expect("an answer");
        assert_eq!(response.status, status, "{method} over HTTP/2");
        assert_eq!(
            response.header("location"),
            Some("https://shop.example.com/x?y=z")
        );
    }
    assert!(backend.connections().iter().all(|c| c.requests.is_empty()));
}

/// RFC 9110 10.2.2: Location is a URI reference, whatever the target's form (RFC 9112 3.2).
#[tokio::test]
async fn a_redirect_leads_to_a_url() {
    let backend = WireBackend::start(Protocol::Http1).await;
    let gateway = Gateway::start(&redirected(&backend)).await;
    for (target, path) in [
        ("/", "/"),
        ("/x?y=z", "/x?y=z"),
        ("/?", "/?"),
        ("//evil.example.com/x", "//evil.example.com/x"),
        ("http://shop.example.com", "/"),
        ("http://shop.example.com/x?y", "/x?y"),
        ("HTTP://shop.example.com?y", "/?y"),
        ("/a|b\\c?d=[e]{f}^", "/a%7Cb%5Cc?d=%5Be%5D%7Bf%7D%5E"),
        ("/%41%zz", "/%41%25zz"),
    ] {
        for upgrade in ["", "{U}\n"] {
            let request = raw(&format!("GET {target} HTTP/1.1\nHost: {SHOP}\n{upgrade}\n"));
            let response = answer(&gateway, target, &request).await;
            let location = format!("https://{SHOP}{path}");
            assert_eq!(
                (response.status, response.header("location")),
                (301, Some(location.as_str())),
                "{target} {upgrade}"
            );
        }
    }
    for upgrade in ["", "{U}\n"] {
        let request = raw(&format!("OPTIONS * HTTP/1.1\nHost: {SHOP}\n{upgrade}\n"));
        let response = answer(&gateway, "*", &request).await;
        assert_eq!(
            (response.status, response.header("location")),
            (400, None),
            "{upgrade}"
        );
    }
    let mut frames = Frames::connect(gateway.addr()).await.expect("HTTP/2 is spoken");
    let fields = fields("OPTIONS", SHOP, b"*");
    frames
        .send(&h2_frames::headers(1, &fields, true))
        .await
        .expect("it reads");
    let outcome = within("an outcome", SOON, frames.outcome(1)).await;
    assert_eq!(outcome, Outcome::Status(400), "* over HTTP/2");
}

fn fields(method: &str, host: &str, path: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    [
        (&b":method"[..], method.as_bytes()),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", host.as_bytes()),
    ]
    .map(|(n, v)| (n.to_vec(), v.to_vec()))
    .to_vec()
}

/// Bytes that are refused in a request target: the rule of docs/protocols.md.
const REFUSED: &[u8] = b"\"<>`#";

/// Targets with this byte in path and query.
fn targets(byte: u8) -> [Vec<u8>; 3] {
    [&b"/early/a"[..], b"/early/?a", b"/early/a?b=c/d?"].map(|before| [before, &[byte], b"z"].concat())
}

async fn start_with(up: Protocol) -> (WireBackend, Gateway) {
    let backend = WireBackend::start(up).await;
    let gateway = Gateway::start(&web_with(backend.addr(), &format!("protocol: {}", up.key()))).await;
    (backend, gateway)
}

/// Every byte of a target is either passed on unchanged or refused, independent of protocol and position.
async fn targets_over_http1(up: Protocol) {
    let (backend, gateway) = start_with(up).await;
    let mut faults = Vec::new();
    for byte in 0x21..=0x7e_u8 {
        let expected = if REFUSED.contains(&byte) { 400 } else { 200 };
        for target in targets(byte) {
            let text = String::from_utf8_lossy(&target).into_owned();
            let response = answer(&gateway, &text, &h1::get(WEB, &text)).await;
            let came = backend.requests(&text).len();
            if response.status != expected || came != usize::from(expected == 200) {
                faults.push(format!("{text}: {} and came {came} times", response.status));
            }
        }
    }
    assert!(faults.is_empty(), "\n  {}", faults.join("\n  "));
}

async fn targets_over_http2(up: Protocol) {
    let (backend, gateway) = start_with(up).await;
    let mut faults = Vec::new();
    for byte in 0x21..=0x7e_u8 {
        for target in targets(byte) {
            let text = String::from_utf8_lossy(&target).into_owned();
            let mut frames = Frames::connect(gateway.addr()).await.expect("HTTP/2 is spoken");
            let fields = fields("GET", WEB, &target);
            frames
                .send(&h2_frames::headers(1, &fields, true))
                .await
                .expect("it reads");
            let outcome = within(&text, SOON, frames.outcome(1)).await;
            let came = backend.requests(&text).len();
            let fine = if REFUSED.contains(&byte) {
                // RFC 9113 8.1.1: a malformed request is a stream error, before which it may be answered.
                came == 0 && matches!(outcome, Outcome::Status(400) | Outcome::Reset(1))
            } else {
                came == 1 && outcome == Outcome::Status(200)
            };
            // A fragment is cut off where the field is decoded, before the gateway sees it.
            if !fine && byte != b'#' {
                faults.push(format!("{text}: {outcome} and came {came} times"));
            }
        }
    }
    assert!(faults.is_empty(), "\n  {}", faults.join("\n  "));
}

#[tokio::test]
async fn one_rule_for_targets_h1_to_h1() {
    targets_over_http1(Protocol::Http1).await;
}
#[tokio::test]
async fn one_rule_for_targets_h1_to_h2() {
    targets_over_http1(Protocol::Http2).await;
}
#[tokio::test]
async fn one_rule_for_targets_h2_to_h1() {
    targets_over_http2(Protocol::Http1).await;
}
#[tokio::test]
async fn one_rule_for_targets_h2_to_h2() {
    targets_over_http2(Protocol::Http2).await;
}

/// Percent-encoding is passed on unchanged, valid or not.
#[tokio::test]
async fn percent_signs_pass_as_sent() {
    for up in Protocol::ALL {
        let (backend, gateway) = start_with(up).await;
        let client = H2::connect(gateway.addr()).await;
        for (nth, escape) in ["%41", "%2f", "%2F", "%zz", "%", "%4", "%00", "%22"]
            .iter()
            .enumerate()
        {
            let target = format!("/early/a{escape}?b={escape}&{nth}");
            assert_eq!(gateway.get(WEB, &target).await.status, 200, "{target}");
            let answered = client.exchange(h2_client::get("http", WEB, &target), Bytes::new());
            let answered = within(&target, Duration::from_secs(5), answered)
                .await
                .expect("an answer");
            assert_eq!(
                (answered.status, backend.requests(&target).len()),
                (200, 2),
                "{target}"
            );
        }
    }
}
