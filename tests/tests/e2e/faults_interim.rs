//! Interim responses (1xx) pass between every pair of protocols, at once (RFC 9110 15.2, 10.1.1; RFC 8297).

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::wait::within;
use sluice_tests::wire::{End, Protocol, WireBackend};

use crate::{WEB, web_with};

/// "At once" on a busy machine; curl waits for one second before it sends a body that it announced.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Interim answers of one request that are passed on at most (docs/protocols.md).
const MOST: usize = 16;

/// What a client got: each interim answer's status and Link, and the final answer's status and body.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    interim: Vec<(u16, String)>,
    status: u16,
    body: String,
}

impl Got {
    fn statuses(&self) -> Vec<u16> {
        self.interim.iter().map(|(status, _)| *status).collect()
    }
}

async fn started(up: Protocol) -> (WireBackend, Gateway) {
    let backend = WireBackend::start(up).await;
    let gateway = Gateway::start(&web_with(backend.addr(), &format!("protocol: {}", up.key()))).await;
    (backend, gateway)
}

async fn get(gateway: &Gateway, down: Protocol, target: &str) -> Got {
    let got = within("an answer", Duration::from_secs(5), async {
        match down {
            Protocol::Http1 => {
                let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
                conn.send(&h1::get(WEB, target)).await.expect("it reads");
                http1_answer(&mut conn, Got::default()).await
            }
            Protocol::Http2 => {
                let client = H2::connect(gateway.addr()).await;
                let mut send = client.send.clone().ready().await.expect("a connection");
                let request = h2_client::get("http", WEB, target);
                let (response, _) = send.send_request(request, true).expect("a stream");
                http2_answer(response, Got::default()).await
            }
        }
    });
    got.await
}

async fn http1_answer(conn: &mut H1, mut got: Got) -> Got {
    loop {
        let mut head = conn.head(false).await.expect("a head");
        let link = head.header("link").unwrap_or_default().to_owned();
        if head.status >= 200 {
            conn.finish(&mut head).await.expect("a body");
            (got.status, got.body) = (head.status, head.text());
            return got;
        }
        got.interim.push((head.status, link));
    }
}

async fn http2_interim(response: &mut h2::client::ResponseFuture) -> Option<(u16, String)> {
    let interim = poll_fn(|cx| response.poll_informational(cx)).await?;
    let interim = interim.expect("a stream");
    let link = interim.headers().get("link").and_then(|v| v.to_str().ok());
    Some((interim.status().as_u16(), link.unwrap_or_default().to_owned()))
}

async fn http2_answer(mut response: h2::client::ResponseFuture, mut got: Got) -> Got {
    while let Some(interim) = http2_interim(&mut response).await {
        got.interim.push(interim);
    }
    let answer = h2_client::collect(response.await.expect("an answer"))
        .await
        .expect("a body");
    (got.status, got.body) = (answer.status, answer.text());
    got
}

/// RFC 9110 15.2: a proxy forwards 1xx answers.
async fn hints(down: Protocol, up: Protocol) {
    let (_backend, gateway) = started(up).await;
    let got = get(&gateway, down, "/interim/102,103,103").await;
    let expected = [102, 103, 103].map(|code| (code, format!("</{code}>")));
    assert_eq!((&got.interim[..], got.status), (&expected[..], 200));
}

/// Asserts the bound on interim responses: [`MOST`] are passed on, one more gets a 502.
async fn bounded(down: Protocol, up: Protocol) {
    let (_backend, gateway) = started(up).await;
    let target = |count: usize| format!("/interim/{}", vec!["103"; count].join(","));
    let got = get(&gateway, down, &target(MOST)).await;
    assert_eq!((got.interim.len(), got.status), (MOST, 200));
    let got = get(&gateway, down, &target(MOST + 1)).await;
    assert!(got.interim.len() <= MOST && got.status == 502, "{got:?}");
}

/// A POST with `Expect: 100-continue`; `continues`: a 100 is expected before the body is sent.
async fn expecting(down: Protocol, gateway: &Gateway, target: &str, continues: bool) -> Got {
    let fields = [("expect", "100-continue"), ("content-length", "5")];
    match down {
        Protocol::Http1 => {
            let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
            let mut head = format!("POST {target} HTTP/1.1\r\nHost: {WEB}\r\n");
            for (name, value) in fields {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            conn.send(format!("{head}\r\n").as_bytes())
                .await
                .expect("it reads");
            let mut got = Got::default();
            if continues {
                let interim = within("a 100", AT_ONCE, conn.head(false)).await.expect("a head");
                got.interim.push((interim.status, String::new()));
                conn.send(b"hello").await.expect("it reads");
            }
            within("an answer", AT_ONCE, http1_answer(&mut conn, got)).await
        }
        Protocol::Http2 => {
            let client = H2::connect(gateway.addr()).await;
            let mut request = h2_client::with_method("POST", "http", WEB, target);
            for (name, value) in fields {
                request
                    .headers_mut()
                    .insert(name, value.parse().expect("a value"));
            }
            let mut send = client.send.clone().ready().await.expect("a connection");
            let (mut response, mut stream) = send.send_request(request, false).expect("a stream");
            let mut got = Got::default();
            if continues {
                let interim = within("a 100", AT_ONCE, http2_interim(&mut response)).await;
                got.interim.extend(interim);
                stream
                    .send_data(Bytes::from_static(b"hello"), true)
                    .expect("a stream");
            }
            within("an answer", AT_ONCE, http2_answer(response, got)).await
        }
    }
}

/// RFC 9110 10.1.1: a client that waits for a 100 gets it before it sends a byte.
async fn continued(down: Protocol, up: Protocol) {
    let (backend, gateway) = started(up).await;
    let got = expecting(down, &gateway, "/interim/100", true).await;
    assert_eq!((got.statuses().first(), got.status), (Some(&100), 200), "{got:?}");
    assert_eq!(got.body, "got 5");
    let came = backend.requests("/interim/100").remove(0);
    assert_eq!((came.end, &came.body[..]), (End::Whole, &b"hello"[..]));
}

/// RFC 9110 10.1.1: a final answer instead of a 100 arrives although no byte of the body was sent.
async fn refused(down: Protocol, up: Protocol) {
    let (_backend, gateway) = started(up).await;
    let got = expecting(down, &gateway, "/interim-refuse", false).await;
    assert_eq!((got.status, got.body.as_str()), (417, "no"), "{got:?}");
}

#[tokio::test]
async fn hints_pass_h1_to_h1() {
    hints(Protocol::Http1, Protocol::Http1).await;
}
#[tokio::test]
async fn hints_pass_h1_to_h2() {
    hints(Protocol::Http1, Protocol::Http2).await;
}
#[tokio::test]
async fn hints_pass_h2_to_h1() {
    hints(Protocol::Http2, Protocol::Http1).await;
}
#[tokio::test]
async fn hints_pass_h2_to_h2() {
    hints(Protocol::Http2, Protocol::Http2).await;
}
#[tokio::test]
async fn hints_are_bounded_h1_to_h1() {
    bounded(Protocol::Http1, Protocol::Http1).await;
}
#[tokio::test]
async fn hints_are_bounded_h1_to_h2() {
    bounded(Protocol::Http1, Protocol::Http2).await;
}
#[tokio::test]
async fn hints_are_bounded_h2_to_h1() {
    bounded(Protocol::Http2, Protocol::Http1).await;
}
#[tokio::test]
async fn hints_are_bounded_h2_to_h2() {
    bounded(Protocol::Http2, Protocol::Http2).await;
}
#[tokio::test]
async fn a_100_arrives_at_once_h1_to_h1() {
    continued(Protocol::Http1, Protocol::Http1).await;
}
#[tokio::test]
async fn a_100_arrives_at_once_h1_to_h2() {
    continued(Protocol::Http1, Protocol::Http2).await;
}
#[tokio::test]
async fn a_100_arrives_at_once_h2_to_h1() {
    continued(Protocol::Http2, Protocol::Http1).await;
}
#[tokio::test]
async fn a_100_arrives_at_once_h2_to_h2() {
    continued(Protocol::Http2, Protocol::Http2).await;
}
#[tokio::test]
async fn a_refused_expectation_is_answered_h1_to_h1() {
    refused(Protocol::Http1, Protocol::Http1).await;
}
#[tokio::test]
async fn a_refused_expectation_is_answered_h1_to_h2() {
    refused(Protocol::Http1, Protocol::Http2).await;
}
#[tokio::test]
async fn a_refused_expectation_is_answered_h2_to_h1() {
    refused(Protocol::Http2, Protocol::Http1).await;
}
#[tokio::test]
async fn a_refused_expectation_is_answered_h2_to_h2() {
    refused(Protocol::Http2, Protocol::Http2).await;
}

/// RFC 9110 15.2: HTTP/1.0 knows no interim answers.
#[tokio::test]
async fn a_client_of_http_1_0_gets_no_interim_answer() {
    for up in Protocol::ALL {
        let (_backend, gateway) = started(up).await;
        let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
        let request = format!("GET /interim/103 HTTP/1.0\r\nHost: {WEB}\r\n\r\n");
        conn.send(request.as_bytes()).await.expect("it reads");
        let got = http1_answer(&mut conn, Got::default()).await;
        assert_eq!((got.statuses(), got.status), (vec![], 200), "{up:?}");
    }
}
