//! Answers over HTTP/2 that have no content, and backends that send some all the same (RFC 9110 6.4.1): the head
//! counts, and no byte of what follows reaches anybody. The HTTP/1 counterparts are in `tests/corpus/responses.txt`.

use std::io;

use bytes::Bytes;
use http::{Method, Response};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::wait::{SOON, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{WEB, web_with};

/// Answers `/STATUS` by that status and a body, `/STATUS/LENGTH` with a Content-Length besides, and `/` with `good`.
async fn backend() -> RawBackend {
    RawBackend::start(async |_, io: TcpStream| {
        let mut connection = h2::server::handshake(io).await.map_err(io::Error::other)?;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut words = request.uri().path().split('/').skip(1);
            let status = words.next().and_then(|word| word.parse::<u16>().ok());
            let mut head = Response::builder().status(status.unwrap_or(200));
            if let Some(length) = words.next() {
                head = head.header("content-length", length);
            }
            let body = Bytes::from_static(if status.is_some() { b"smuggled" } else { b"good" });
            let mut stream = respond
                .send_response(head.body(()).expect("a head"), false)
                .map_err(io::Error::other)?;
            stream.send_data(body, true).map_err(io::Error::other)?;
        }
        Ok(())
    })
    .await
}

/// Method, target, and the Content-Length that the client is told.
const CASES: [(Method, &str, Option<&str>); 7] = [
    (Method::HEAD, "/200", None),
    (Method::HEAD, "/200/8", Some("8")),
    (Method::HEAD, "/200/5", Some("5")),
    (Method::GET, "/204", None),
    (Method::POST, "/204/8", None),
    (Method::GET, "/304", None),
    (Method::GET, "/304/8", Some("8")),
];

fn status(target: &str) -> u16 {
    target[1..4].parse().expect("a status")
}

#[tokio::test]
async fn nothing_follows_a_head_without_content_to_http1() {
    let backend = backend().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    for (method, target, told) in CASES {
        let what = format!("{method} {target}");
        let mut io = TcpStream::connect(gateway.addr())
            .await
            .expect("the gateway accepts");
        // What came too much would be before the answer to the second request.
        let mut requests = h1::request(method.as_str(), WEB, target, &[], b"");
        requests.extend(h1::request("GET", WEB, "/", &[("Connection", "close")], b""));
        io.write_all(&requests).await.expect("sent");
        let mut raw = String::new();
        within(&what, SOON, io.read_to_string(&mut raw))
            .await
            .expect("text");
        let (head, rest) = raw.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.starts_with(&format!("HTTP/1.1 {} ", status(target))),
            "{what}: {raw}"
        );
        let lengths = head
            .lines()
            .filter_map(|line| line.strip_prefix("content-length: "));
        assert_eq!(lengths.collect::<Vec<_>>(), Vec::from_iter(told), "{what}: {raw}");
        assert!(!head.contains("chunked"), "{what}: {raw}");
        assert!(rest.starts_with("HTTP/1.1 200 "), "{what}: {raw}");
        assert!(
            rest.ends_with("\r\n\r\n4\r\ngood\r\n0\r\n\r\n") && !raw.contains("smuggled"),
            "{what}: {raw}"
        );
    }
}

#[tokio::test]
async fn nothing_follows_a_head_without_content_to_http2() {
    let backend = backend().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    let client = H2::connect(gateway.addr()).await;
    for (method, target, told) in CASES {
        let what = format!("{method} {target}");
        let request = h2_client::with_method(method.as_str(), "http", WEB, target);
        let answer = within(&what, SOON, client.exchange(request, Bytes::new())).await;
        let answer = answer.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(
            (answer.status, &answer.body[..]),
            (status(target), &b""[..]),
            "{what}"
        );
        assert_eq!(answer.header("content-length"), told, "{what}");
        let next = h2_client::get("http", WEB, "/");
        let next = within(&what, SOON, client.exchange(next, Bytes::new())).await;
        assert_eq!(next.expect("a whole answer").text(), "good", "{what}");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_off_costs_the_others_nothing() {
    let backend = backend().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    for target in ["/204", "/", "/304/8", "/"] {
        let mut client = H1::connect(gateway.addr()).await.expect("the gateway accepts");
        let answer = client.exchange(&h1::get(WEB, target)).await.expect("an answer");
        assert_eq!(answer.text(), if target == "/" { "good" } else { "" });
    }
    assert_eq!(backend.connections(), 1);
}
