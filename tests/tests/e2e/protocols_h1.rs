//! HTTP/1.0 and 1.1 as clients speak them.

use bytes::Bytes;
use http::Response;
use sluice_tests::backend::{HttpBackend, full, ok, streamed};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, Framing, H1};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web};

/// Answers with the request's target, chunked where that is `/chunked`.
async fn targets() -> (HttpBackend, Gateway) {
    let backend = HttpBackend::builder("")
        .answer(|seen| {
            if seen.target != "/chunked" {
                return ok(full(seen.target));
            }
            let (send, receive) = tokio::sync::mpsc::channel(3);
            for chunk in ["one ", "two ", "three"] {
                send.try_send(Bytes::from_static(chunk.as_bytes()))
                    .expect("there is room");
            }
            ok(streamed(receive))
        })
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    (backend, gateway)
}

#[tokio::test]
async fn http_1_0_closes_unless_asked_and_is_never_chunked() {
    let (_backend, gateway) = targets().await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let request = format!("GET /x HTTP/1.0\r\nHost: {WEB}\r\n\r\n");
    let response = conn.exchange(request.as_bytes()).await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "/x"));
    conn.closed().await.unwrap();

    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let request = format!("GET /chunked HTTP/1.0\r\nHost: {WEB}\r\n\r\n");
    let response = conn.exchange(request.as_bytes()).await.unwrap();
    assert_ne!(response.framing, Framing::Chunked);
    assert_eq!(response.text(), "one two three");

    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let request = format!("GET /x HTTP/1.0\r\nHost: {WEB}\r\nConnection: keep-alive\r\n\r\n");
    let first = conn.exchange(request.as_bytes()).await.unwrap();
    assert_eq!(first.text(), "/x");
    if !first.closes() {
        assert_eq!(conn.exchange(request.as_bytes()).await.unwrap().text(), "/x");
    }
}

#[tokio::test]
async fn a_connection_is_kept_until_the_client_says_close() {
    let (backend, gateway) = targets().await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    for n in 0..50 {
        let target = format!("/{n}");
        assert_eq!(
            conn.exchange(&h1::get(WEB, &target)).await.unwrap().text(),
            target
        );
    }
    assert_eq!(backend.connections(), 1, "upstream connections are reused");
    let last = h1::request("GET", WEB, "/last", &[("Connection", "close")], b"");
    assert_eq!(conn.exchange(&last).await.unwrap().text(), "/last");
    conn.closed().await.unwrap();
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_backend, gateway) = targets().await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let mut all = Vec::new();
    for n in 0..5 {
        all.extend(h1::get(WEB, &format!("/get-{n}")));
        all.extend(h1::request(
            "POST",
            WEB,
            &format!("/post-{n}"),
            &[],
            b"0123456789",
        ));
    }
    conn.send(&all).await.unwrap();
    for n in 0..5 {
        for kind in ["get", "post"] {
            let response = conn.response_to(b"GET ").await.unwrap();
            assert_eq!(response.text(), format!("/{kind}-{n}"));
        }
    }
}

#[tokio::test]
async fn chunked_both_ways() {
    let (backend, gateway) = targets().await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    for _ in 0..2 {
        let head = format!("POST /chunked HTTP/1.1\r\nHost: {WEB}\r\nTransfer-Encoding: chunked\r\n\r\n");
        conn.send(head.as_bytes()).await.unwrap();
        for part in [
            &b"3\r\nabc\r\n"[..],
            b"A;ext=1\r\n0123456789\r\n",
            b"0\r\n",
            b"\r\n",
        ] {
            conn.send(part).await.unwrap();
        }
        let response = conn.response_to(b"POST ").await.unwrap();
        assert_eq!(response.framing, Framing::Chunked);
        assert_eq!(response.text(), "one two three");
        assert_eq!(backend.last().body.as_ref(), b"abc0123456789");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_before_it_sends_its_body() {
    let backend = HttpBackend::builder("")
        .answer(|seen| ok(full(seen.body)))
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for _ in 0..2 {
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        let head =
            format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        conn.send(head.as_bytes()).await.unwrap();
        assert_eq!(conn.head(false).await.unwrap().status, 100);
        conn.send(b"body").await.unwrap();
        let response = conn.response_to(b"POST ").await.unwrap();
        assert_eq!(response.text(), "body");
        if !response.closes() {
            let next = conn.exchange(&h1::get(WEB, "/")).await;
            assert_eq!(next.expect("an end that was not announced").status, 200);
        }
    }
}

#[tokio::test]
async fn a_backend_may_refuse_before_the_body_is_sent() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 100000000\r\n\r\n");
    conn.send(head.as_bytes()).await.unwrap();
    conn.send(&[b'x'; 64 * 1024]).await.unwrap();
    // The rest of the upload is still unread.
    let response = conn.response_to(b"POST ").await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
}

#[tokio::test]
async fn head_204_and_304_have_no_body_and_keep_the_connection() {
    let backend = HttpBackend::builder("")
        .answer(|seen| {
            let status = match seen.target.as_str() {
                "/204" => 204,
                "/304" => 304,
                _ => return ok(full("four")),
            };
            let response = Response::builder().status(status).header("ETag", "\"x\"");
            response.body(full("")).unwrap()
        })
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = conn
        .exchange(&h1::request("HEAD", WEB, "/", &[], b""))
        .await
        .unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("4")));
    for (target, status) in [("/204", 204), ("/304", 304)] {
        let response = conn.exchange(&h1::get(WEB, target)).await.unwrap();
        assert_eq!(response.status, status);
        assert_eq!(response.header("etag"), Some("\"x\""));
        assert_eq!(response.header("transfer-encoding"), None);
    }
    assert_eq!(conn.exchange(&h1::get(WEB, "/")).await.unwrap().text(), "four");
}

#[tokio::test]
async fn a_head_of_a_missing_host_has_no_body_either() {
    let (_backend, gateway) = targets().await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = conn
        .exchange(&h1::request("HEAD", "nowhere.example.com", "/", &[], b""))
        .await
        .unwrap();
    assert_eq!((head.status, head.reason()), (404, Some("no_route")));
    if !head.closes() {
        assert_eq!(conn.exchange(&h1::get(WEB, "/x")).await.unwrap().text(), "/x");
    }
}

#[tokio::test]
async fn interim_responses_do_not_end_the_request() {
    let backend = RawBackend::answers(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    for _ in 0..3 {
        let response = conn.exchange(&h1::get(WEB, "/")).await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    }
}

#[tokio::test]
async fn a_response_that_ends_with_its_connection_is_whole() {
    let backend = RawBackend::answers_once(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for _ in 0..3 {
        assert_eq!(gateway.get(WEB, "/").await.text(), "until the end");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_upstream() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    backend.hold();
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/")).await.unwrap();
    wait_until("it is in flight", SOON, || backend.in_flight() == 1).await;
    drop(conn);
    wait_until("the backend is told", SOON, || backend.abandoned() == 1).await;
    let entry = gateway.wait_access_log("499", |e| e["status"] == 499).await;
    assert_eq!(entry["reason"], "client_gone");
}
