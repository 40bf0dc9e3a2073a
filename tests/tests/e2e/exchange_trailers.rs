//! Trailers (RFC 9110 6.5), both ways and between the protocols.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use sluice_tests::gateway::Gateway;
use sluice_tests::h2_client::{self, H2, collect};
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::wait::{SOON, within};
use sluice_tests::wire::{End, Protocol, WireBackend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{WEB, web, web_with};

/// Trailers of which only `X-Sum` may be passed on: the others frame, route, authenticate, condition or describe the
/// content (RFC 9110 6.5.1), are cookies, or are the gateway's to set.
const TRAILERS: [&str; 14] = [
    "X-Sum",
    "Content-Length",
    "Content-Type",
    "Transfer-Encoding",
    "Host",
    "Authorization",
    "If-Match",
    "Cookie",
    "Set-Cookie",
    "Connection",
    "X-Forwarded-For",
    "X-Request-Id",
    "X-Sluice-Reason",
    "Knative-Serving-Revision",
];

async fn with_trailers() -> RawBackend {
    RawBackend::answers(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\n\
X-Sum: 1\r\nContent-Length: 1\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\nHost: a\r\nAuthorization: a\r\n\
If-Match: a\r\nCookie: a=b\r\nSet-Cookie: a=b\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\n\
X-Request-Id: a\r\nX-Sluice-Reason: timeout\r\nKnative-Serving-Revision: a\r\n\r\n",
    )
    .await
}

/// Sends exact bytes and reads to the end of the connection.
async fn said(gateway: &Gateway, request: &str) -> String {
    let mut io = TcpStream::connect(gateway.addr()).await.expect("the gateway");
    io.write_all(request.as_bytes()).await.expect("open");
    let mut all = Vec::new();
    within("the answer", SOON, io.read_to_end(&mut all))
        .await
        .expect("an answer");
    String::from_utf8(all).expect("text")
}

/// RFC 9110 6.5.1: only a client that says `TE: trailers` is known to keep them.
#[tokio::test]
async fn response_trailers_of_http1_reach_clients_that_take_them() {
    let backend = with_trailers().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for (te, trailers) in [
        ("TE: trailers\r\nConnection: TE, close\r\n", "x-sum: 1\r\n"),
        (
            "TE: gzip;q=0, trailers\r\nConnection: TE, close\r\n",
            "x-sum: 1\r\n",
        ),
        ("TE: deflate\r\nConnection: TE, close\r\n", ""),
        ("Connection: close\r\n", ""),
    ] {
        let answer = said(&gateway, &format!("GET / HTTP/1.1\r\nHost: {WEB}\r\n{te}\r\n")).await;
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        let end = format!("4\r\nbody\r\n0\r\n{trailers}\r\n");
        assert_eq!(body.to_lowercase(), end, "{te}");
    }
    let client = H2::connect(gateway.addr()).await;
    let mut request = h2_client::get("http", WEB, "/");
    let te = HeaderValue::from_static("trailers");
    request.headers_mut().insert("te", te);
    let response = client.exchange(request, Bytes::new()).await.unwrap();
    let trailers = response.trailers.expect("trailers");
    assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &"1".parse().unwrap()));
}

#[tokio::test]
async fn request_trailers_reach_h2c_backends_and_no_http1_ones() {
    for up in Protocol::ALL {
        let backend = WireBackend::start(up).await;
        let config = web_with(backend.addr(), &format!("protocol: {}", up.key()));
        let gateway = Gateway::start(&config).await;

        let client = H2::connect(gateway.addr()).await;
        let mut send = client.send.clone().ready().await.unwrap();
        let request = h2_client::with_method("POST", "http", WEB, "/after");
        let (response, mut stream) = send.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"body"), false).unwrap();
        let mut trailers = HeaderMap::new();
        // RFC 9113 8.2.2: fields of the connection cannot even be sent.
        for name in TRAILERS {
            if !matches!(name, "Connection" | "Transfer-Encoding") {
                let name: http::HeaderName = name.parse().unwrap();
                trailers.insert(name, HeaderValue::from_static("1"));
            }
        }
        stream.send_trailers(trailers).unwrap();
        let answered = within("an answer", SOON, response).await.unwrap();
        assert_eq!(collect(answered).await.unwrap().status, 200);
        let one = backend.wait("/after", "whole", |r| r.end == End::Whole).await;

        let fields: String = TRAILERS.iter().map(|name| format!("{name}: 1\r\n")).collect();
        let answer = said(
            &gateway,
            &format!(
                "POST /after?1 HTTP/1.1\r\nHost: {WEB}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
4\r\nbody\r\n0\r\n{fields}\r\n"
            ),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let other = backend.wait("/after?1", "whole", |r| r.end == End::Whole).await;

        let expected = match up {
            Protocol::Http1 => vec![],
            Protocol::Http2 => vec![("x-sum".to_owned(), "1".to_owned())],
        };
        for request in [one, other] {
            assert_eq!(
                (request.body.as_slice(), &request.trailers),
                (&b"body"[..], &expected)
            );
        }
    }
}
