//! Upgrade offers: which ones a backend sees, the connection after a refused one, and header rules for both sides'
//! heads (RFC 9110 7.8).

use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1, H1Response};
use sluice_tests::raw_backend::{RawBackend, read_head};
use sluice_tests::wait::{SOON, within};
use sluice_tests::wire::{Framing, Protocol, WireBackend};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::{WEB, web, web_with};

/// The bodies that come with an offer.
const BODIES: [(&str, &str, &str); 4] = [
    ("GET", "", ""),
    ("POST", "Content-Length: 0\r\n", ""),
    ("POST", "Content-Length: 5\r\n", "hello"),
    (
        "POST",
        "Transfer-Encoding: chunked\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
    ),
];

async fn started(up: Protocol, revision: &str) -> (WireBackend, Gateway) {
    let backend = WireBackend::start(up).await;
    let revision = format!("protocol: {}\n{revision}", up.key());
    let gateway = Gateway::start(&web_with(backend.addr(), &revision)).await;
    (backend, gateway)
}

/// Sends one offer with every body, all on one connection, to a backend that accepts none; returns the values of Upgrade
/// that the backend got.
async fn offered(up: Protocol, revision: &str, offer: &str) -> Vec<Option<String>> {
    let (backend, gateway) = started(up, revision).await;
    let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
    let mut seen = Vec::new();
    for (nth, (method, framing, body)) in BODIES.iter().enumerate() {
        let target = format!("/after?case={nth}");
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {WEB}\r\nConnection: Upgrade\r\nUpgrade: {offer}\r\n{framing}\r\n{body}"
        );
        let what = format!("{offer} to {up:?} with {method} {framing}");
        let response = within(&what, SOON, conn.exchange(request.as_bytes())).await;
        let response = response.unwrap_or_else(|e| panic!("{what}: {e}"));
        let came = if body.is_empty() { 0 } else { 5 };
        let expected = (200, format!("got {came}"));
        assert_eq!((response.status, response.text()), expected, "{what}");
        assert!(!response.closes(), "{what}: a refused offer ends no connection");
        let requests = backend.requests(&target);
        let [request] = &requests[..] else {
            panic!("{what}: came as {requests:?}");
        };
        let announced = matches!(request.framing, Framing::None | Framing::Length(0));
        assert_eq!(announced, body.is_empty(), "{what}");
        seen.push(request.field("upgrade").map(str::to_owned));
    }
    assert_eq!(backend.stray(), Vec::<String>::new());
    seen
}

/// RFC 9110 7.8, RFC 2817, RFC 9113 3.1: HttpClient 5.4 offers TLS/1.2 with every request, others h2c.
#[tokio::test]
async fn an_offer_that_nobody_takes_is_ignored_h1() {
    for offer in ["TLS/1.2", "tls/1.0", "h2c", "h2", "TLS/1.2, h2c"] {
        assert_eq!(
            offered(Protocol::Http1, "", offer).await,
            [None, None, None, None],
            "{offer}"
        );
    }
}

/// As above; and over HTTP/2 there is no upgrade at all (RFC 9113 8.6).
#[tokio::test]
async fn an_offer_that_nobody_takes_is_ignored_h2() {
    for offer in ["TLS/1.2", "h2c", "tcp/1", "websocket", "TLS/1.2, websocket"] {
        assert_eq!(
            offered(Protocol::Http2, "", offer).await,
            [None, None, None, None],
            "{offer}"
        );
    }
}

/// RFC 9110 7.8: an offer is forwarded; a response without a 101 is an ordinary response.
#[tokio::test]
async fn a_refused_upgrade_keeps_the_connection() {
    for offer in ["tcp/1", "websocket"] {
        let seen = offered(Protocol::Http1, "", offer).await;
        assert_eq!(seen[0].as_deref(), Some(offer));
    }
}

/// `upgrades` of a revision: other protocols are not forwarded; WebSocket always is.
#[tokio::test]
async fn only_what_the_revision_names_is_forwarded() {
    for (revision, offer, forwarded) in [
        ("", "TLS/1.2, websocket", Some("websocket")),
        ("upgrades: [websocket]", "tcp/1", None),
        ("upgrades: [websocket]", "tcp/1, websocket", Some("websocket")),
        ("upgrades: [tcp]", "tcp/1, spdy", Some("tcp/1")),
        ("upgrades: []", "websocket", Some("websocket")),
    ] {
        let (backend, gateway) = started(Protocol::Http1, revision).await;
        let fields = [("Connection", "Upgrade"), ("Upgrade", offer)];
        let response = gateway
            .send(&h1::request("GET", WEB, "/after", &fields, b""))
            .await;
        assert_eq!(response.status, 200, "{revision}: {offer}");
        let seen = backend.requests("/after").remove(0);
        assert_eq!(seen.field("upgrade"), forwarded, "{revision}: {offer}");
    }
}

/// A backend that answers with these bytes; the channel has each head.
async fn telling(answer: Vec<u8>) -> (RawBackend, mpsc::UnboundedReceiver<String>) {
    let (tell, heads) = mpsc::unbounded_channel();
    let backend = RawBackend::start(move |_, mut io: TcpStream| {
        let (tell, answer) = (tell.clone(), answer.clone());
        async move {
            loop {
                let (head, _) = read_head(&mut io).await?;
                let _ = tell.send(head);
                io.write_all(&answer).await?;
            }
        }
    })
    .await;
    (backend, heads)
}

const FIELDS: [(&str, &str); 5] = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("X-MiXeD", "1"),
];

/// RFC 9110 5.1: names are case-insensitive, but some programs compare them with case.
#[tokio::test]
async fn names_stay_as_they_were_sent() {
    for status in ["101 Switching Protocols", "400 Bad Request"] {
        let body = if status.starts_with("101") {
            ""
        } else {
            "Content-Length: 0\r\n"
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \
             s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-BaCK: 2\r\n{body}\r\n"
        );
        let (backend, mut heads) = telling(answer.into_bytes()).await;
        let gateway = Gateway::start(&web(backend.addr())).await;
        let response = gateway.send(&h1::request("GET", WEB, "/", &FIELDS, b"")).await;
        let head = within("a head", SOON, heads.recv()).await.expect("a head");
        for line in [
            "X-MiXeD: 1",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ] {
            assert!(
                head.contains(&format!("\r\n{line}\r\n")),
                "{status}: {line} in {head}"
            );
        }
        for name in ["Sec-WebSocket-Accept", "X-BaCK"] {
            assert!(
                response.headers.iter().any(|(n, _)| n == name),
                "{name} in {response:?}"
            );
        }
    }
}

/// An answer of this many fields of this many bytes each.
fn big(status: &str, count: usize, bytes: usize) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 {status}\r\n");
    match status.starts_with("101") {
        true => answer.push_str("Upgrade: websocket\r\nConnection: Upgrade\r\n"),
        false => answer.push_str("Content-Length: 0\r\n"),
    }
    let value = "x".repeat(bytes);
    for nth in 0..count {
        answer.push_str(&format!("X-{nth}: {value}\r\n"));
    }
    format!("{answer}\r\n").into_bytes()
}

async fn got(status: &str, fields: &[(&str, &str)], count: usize, bytes: usize) -> H1Response {
    let (backend, _heads) = telling(big(status, count, bytes)).await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    gateway.send(&h1::request("GET", WEB, "/", fields, b"")).await
}

/// Limits on response heads are the same with an upgrade, accepted or refused, as without.
#[tokio::test]
async fn answers_have_the_same_limits_with_an_upgrade_and_without() {
    for (count, bytes) in [
        (100, 10),
        (200, 10),
        (240, 10),
        (300, 10),
        (10, 6_000),
        (100, 900),
        (100, 12_000),
    ] {
        let passed = |response: &H1Response| {
            let ours = response
                .headers
                .iter()
                .filter(|(n, _)| n.to_ascii_lowercase().starts_with("x-"));
            response.reason().is_none() && ours.count() >= count
        };
        let plain = passed(&got("200 OK", &[], count, bytes).await);
        let refused = passed(&got("200 OK", &FIELDS, count, bytes).await);
        let taken = passed(&got("101 Switching Protocols", &FIELDS, count, bytes).await);
        assert_eq!(
            (refused, taken),
            (plain, plain),
            "{count} fields of {bytes} bytes"
        );
        if count <= 240 && count * bytes < 60_000 {
            assert!(plain, "{count} fields of {bytes} bytes");
        }
    }
}

/// Limits on request heads are the same with an upgrade as without.
#[tokio::test]
async fn requests_have_the_same_limits_with_an_upgrade_and_without() {
    let (backend, _heads) = telling(big("200 OK", 0, 0)).await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for (count, bytes) in [(100, 10), (120, 10), (200, 10), (10, 6_000), (10, 7_000)] {
        let value = "x".repeat(bytes);
        let names: Vec<_> = (0..count).map(|nth| format!("X-{nth}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
        let plain = gateway
            .send(&h1::request("GET", WEB, "/", &many, b""))
            .await
            .status;
        let upgrade: Vec<_> = FIELDS.iter().chain(&many).copied().collect();
        let upgrade = gateway
            .send(&h1::request("GET", WEB, "/", &upgrade, b""))
            .await
            .status;
        assert_eq!(plain, upgrade, "{count} fields of {bytes} bytes");
    }
}
