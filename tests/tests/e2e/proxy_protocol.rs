//! The PROXY protocol: the client's address behind a load balancer.

use std::net::SocketAddr;

use bytes::Bytes;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::tls::Ca;
use sluice_tests::wait::{SOON, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web, web_split};

const V1: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n";
const V1_V6: &[u8] = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n";
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A version 2 header of this command for 203.0.113.7:4711.
fn v2(command: u8) -> Vec<u8> {
    let mut header = V2_SIGNATURE.to_vec();
    header.extend([0x20 | command, 0x11, 0, 12]);
    header.extend([203, 0, 113, 7, 198, 51, 100, 1]);
    header.extend(4711u16.to_be_bytes());
    header.extend(443u16.to_be_bytes());
    header
}

fn config(mode: &str, from: &str, tls: &str, rest: &str) -> String {
    format!(
        "listeners:\n  - address: 127.0.0.1:0\n    proxyProtocol: {{mode: {mode}, from: [{from}]}}\n    {tls}\n{rest}"
    )
}

async fn announce(addr: SocketAddr, header: &[u8]) -> TcpStream {
    let mut io = TcpStream::connect(addr).await.expect("the gateway accepts");
    io.write_all(header).await.expect("a live socket");
    io
}

/// Asserts that a connection with this beginning is closed without a response, and counted.
async fn assert_closed(gateway: &Gateway, header: &[u8], reason: &str) {
    let closed = ("reason", reason);
    let before = gateway.metric("sluice_connections_closed_total", &[closed]).await;
    let mut io = announce(gateway.addr(), header).await;
    // The connection may be closed before all is sent.
    let _ = io.write_all(&h1::get(WEB, "/")).await;
    let mut conn = H1::over(io);
    if let Ok(response) = conn.head(false).await {
        panic!("{reason}: answered {response:?}");
    }
    gateway
        .wait_metric("sluice_connections_closed_total", &[closed], SOON, |n| n > before)
        .await;
}

#[tokio::test]
async fn the_announced_address_is_the_client_in_every_version_and_protocol() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    for (mode, secure) in [("optional", false), ("required", false), ("required", true)] {
        let tls = "tls: {certificates: [{certFile: a.crt, keyFile: a.key}]}";
        let tls = if secure { tls } else { "" };
        let builder = Gateway::builder(&config(mode, "127.0.0.0/8", tls, &web(backend.addr())));
        ca.issue(&[WEB]).write(builder.dir(), "a");
        let gateway = builder.start().await;
        for (header, client) in [
            (V1, "203.0.113.7"),
            (V1_V6, "2001:db8::7"),
            (&v2(1), "203.0.113.7"),
            (V1_UNKNOWN, "127.0.0.1"),
            (&v2(0), "127.0.0.1"),
        ] {
            for h2 in [false, true] {
                let what = format!("{mode}, tls {secure}, h2 {h2}, {client}");
                let path = format!("/{}", backend.count());
                let io = announce(gateway.addr(), header).await;
                let get = h2_client::get(if secure { "https" } else { "http" }, WEB, &path);
                let status = match (secure, h2) {
                    (false, false) => H1::over(io).exchange(&h1::get(WEB, &path)).await.unwrap().status,
                    (false, true) => {
                        H2::over(io)
                            .await
                            .exchange(get, Bytes::new())
                            .await
                            .unwrap()
                            .status
                    }
                    (true, _) => {
                        let name = WEB.try_into().unwrap();
                        let alpn: &[&str] = if h2 { &["h2"] } else { &["http/1.1"] };
                        let io = ca.client(alpn).connect(name, io).await.expect(&what);
                        if h2 {
                            H2::over(io)
                                .await
                                .exchange(get, Bytes::new())
                                .await
                                .unwrap()
                                .status
                        } else {
                            H1::over(io).exchange(&h1::get(WEB, &path)).await.unwrap().status
                        }
                    }
                };
                assert_eq!(status, 200, "{what}");
                assert_eq!(backend.last().header("x-forwarded-for"), Some(client), "{what}");
                let entry = gateway.wait_access_log(&what, |e| e["path"] == path).await;
                assert_eq!(entry["client"], client, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_header_is_optional_required_or_forbidden() {
    let backend = HttpBackend::start("a").await;
    let optional = Gateway::start(&config("optional", "127.0.0.0/8", "", &web(backend.addr()))).await;
    assert_eq!(optional.get(WEB, "/").await.status, 200);
    assert_eq!(backend.last().header("x-forwarded-for"), Some("127.0.0.1"));
    assert_closed(&optional, b"PROXY TCP4 203.0.113.7\r\n", "proxy_malformed").await;

    let required = Gateway::start(&config("required", "127.0.0.0/8", "", &web(backend.addr()))).await;
    let served = backend.count();
    assert_closed(&required, b"", "proxy_missing").await;

    for mode in ["optional", "required"] {
        let gateway = Gateway::start(&config(mode, "10.0.0.0/8", "", &web(backend.addr()))).await;
        assert_closed(&gateway, V1, "proxy_forbidden").await;
        assert_closed(&gateway, &v2(1), "proxy_forbidden").await;
    }
    assert_eq!(backend.count(), served, "nothing of that reached the backend");
    let outside = Gateway::start(&config("optional", "10.0.0.0/8", "", &web(backend.addr()))).await;
    assert_eq!(
        outside.get(WEB, "/").await.status,
        200,
        "who announces nothing is served"
    );

    // On a listener without PROXY the header is a malformed request.
    let none = Gateway::start(&web(backend.addr())).await;
    let mut request = V1.to_vec();
    request.extend(h1::get(WEB, "/"));
    let response = none.send(&request).await;
    assert_eq!((response.status, response.reason()), (400, Some("bad_request")));
}

#[tokio::test]
async fn trust_is_judged_on_the_announced_address() {
    let backend = HttpBackend::start("a").await;
    for (trusted, forwarded) in [
        ("203.0.113.0/24", "192.0.2.9, 203.0.113.7"),
        ("127.0.0.0/8", "203.0.113.7"),
    ] {
        let rest = format!("trustedProxies: [{trusted}]\n{}", web(backend.addr()));
        let gateway = Gateway::start(&config("required", "127.0.0.0/8", "", &rest)).await;
        let io = announce(gateway.addr(), V1).await;
        let request = h1::request("GET", WEB, "/", &[("X-Forwarded-For", "192.0.2.9")], b"");
        assert_eq!(H1::over(io).exchange(&request).await.unwrap().status, 200);
        assert_eq!(
            backend.last().header("x-forwarded-for"),
            Some(forwarded),
            "{trusted}"
        );
    }
}

#[tokio::test]
async fn sticky_by_client_address_is_by_the_announced_one() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let split = web_split(a.addr(), "50", b.addr(), "50", "sticky: {clientIp: true}");
    let rest = format!("trustedProxies: [127.0.0.0/8, 203.0.113.0/24]\n{split}");
    let gateway = Gateway::start(&config("required", "127.0.0.0/8", "", &rest)).await;
    let mut on_a = 0;
    for last in 1..=40 {
        let header = format!("PROXY TCP4 203.0.113.{last} 198.51.100.1 4711 443\r\n");
        let mut sides = Vec::new();
        for forwarded in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            let io = announce(gateway.addr(), header.as_bytes()).await;
            let request = h1::request("GET", WEB, "/", &[("X-Forwarded-For", forwarded)], b"");
            let response = within("an answer", SOON, H1::over(io).exchange(&request)).await;
            sides.push(response.unwrap().text());
        }
        assert!(
            sides.iter().all(|side| *side == sides[0]),
            "203.0.113.{last} wavers with a header: {sides:?}"
        );
        on_a += usize::from(sides[0] == "a");
    }
    assert!((5..=35).contains(&on_a), "{on_a} of 40 addresses");
}
