//! Header fields: which are passed on, dropped and set.

use bytes::Bytes;
use sluice_tests::backend::{HttpBackend, Seen};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::RawBackend;

use crate::{WEB, web};

fn all(seen: &Seen, name: &str) -> Vec<String> {
    let values = seen.headers.get_all(name).iter();
    values
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        .collect()
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_end_at_the_gateway() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let headers = [
        ("Connection", "keep-alive, X-Private"),
        ("X-Private", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "gzip"),
        ("X-End-To-End", "2"),
    ];
    gateway.send(&h1::request("GET", WEB, "/", &headers, b"")).await;
    let seen = backend.last();
    for name in ["x-private", "keep-alive", "proxy-connection", "te"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert_eq!(seen.header("x-end-to-end"), Some("2"));
    assert!(
        !seen
            .header("connection")
            .unwrap_or_default()
            .contains("X-Private")
    );
}

#[tokio::test]
async fn what_makes_the_request_is_not_taken_away_by_connection() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let headers = [(
        "Connection",
        "close, Host, X-Forwarded-For, Knative-Serving-Revision, Content-Length",
    )];
    let response = gateway
        .send(&h1::request("POST", WEB, "/", &headers, b"body"))
        .await;
    if response.status == 400 {
        return;
    }
    let seen = backend.last();
    assert_eq!((seen.host.as_str(), seen.body.as_ref()), (WEB, &b"body"[..]));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("knative-serving-revision"), Some("web-a"));
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_response_end_at_the_gateway() {
    let backend = RawBackend::answers(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
          Proxy-Connection: keep-alive\r\nX-End-To-End: 2\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let response = gateway.get(WEB, "/").await;
    for name in ["x-private", "keep-alive", "proxy-connection"] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert_eq!(response.header("x-end-to-end"), Some("2"));
    let h2 = H2::connect(gateway.addr()).await;
    let response = h2
        .exchange(h2_client::get("http", WEB, "/"), Bytes::new())
        .await
        .unwrap();
    for name in [
        "connection",
        "x-private",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
    ] {
        assert_eq!(response.header(name), None, "{name} over h2");
    }
}

#[tokio::test]
async fn forwarding_headers_of_a_stranger_are_dropped() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let spoof = [
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-For", "7.7.7.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example.com"),
    ];
    gateway
        .send(&h1::request("GET", &format!("{WEB}:80"), "/", &spoof, b""))
        .await;
    let seen = backend.last();
    assert_eq!(all(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(all(&seen, "x-forwarded-proto"), ["http"]);
    let host = all(&seen, "x-forwarded-host");
    assert!(host.len() == 1 && host[0].starts_with(WEB), "{host:?}");
}

#[tokio::test]
async fn forwarding_headers_of_a_trusted_proxy_are_appended_to() {
    let backend = HttpBackend::start("a").await;
    let config = format!("trustedProxies: [127.0.0.0/8]\n{}", web(backend.addr()));
    let gateway = Gateway::start(&config).await;
    let told = [
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-For", "7.7.7.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "public.example.com"),
    ];
    gateway.send(&h1::request("GET", WEB, "/", &told, b"")).await;
    let seen = backend.last();
    let chain = all(&seen, "x-forwarded-for").join(", ");
    assert_eq!(chain.replace(' ', ""), "6.6.6.6,7.7.7.7,127.0.0.1");
    assert_eq!(all(&seen, "x-forwarded-proto"), ["https"]);
    assert_eq!(all(&seen, "x-forwarded-host"), ["public.example.com"]);
}

#[tokio::test]
async fn nobody_outside_sets_the_headers_that_carry_decisions() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let spoof = [
        ("Knative-Serving-Revision", "evil"),
        ("knative-serving-revision", "evil"),
        ("Knative-Serving-Namespace", "evil"),
    ];
    gateway.send(&h1::request("GET", WEB, "/", &spoof, b"")).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut request = h2_client::get("http", WEB, "/");
    for (name, value) in spoof {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    h2.exchange(request, Bytes::new()).await.unwrap();
    let requests = backend.seen();
    assert_eq!(requests.len(), 2);
    for seen in requests {
        assert_eq!(all(&seen, "knative-serving-revision"), ["web-a"]);
        assert_eq!(all(&seen, "knative-serving-namespace"), ["default"]);
    }
}

#[tokio::test]
async fn every_request_has_an_id_that_is_in_the_log_too() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    gateway.get(WEB, "/one").await;
    gateway.get(WEB, "/two").await;
    let ids: Vec<_> = backend
        .seen()
        .iter()
        .map(|seen| seen.header("x-request-id").unwrap().to_owned())
        .collect();
    assert!(!ids[0].is_empty() && ids[0] != ids[1], "{ids:?}");
    for (id, path) in ids.iter().zip(["/one", "/two"]) {
        let entry = gateway.wait_access_log(path, |e| e["path"] == path).await;
        assert_eq!(entry["request_id"], id.as_str());
    }
}

#[tokio::test]
async fn tracing_and_application_headers_pass_untouched() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let headers = [
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("tracestate", "a=1,b=2"),
        ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
        ("sw8", "1-abc"),
        ("Authorization", "Bearer x"),
        ("Cookie", "a=1; b=2"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
    ];
    gateway.send(&h1::request("GET", WEB, "/", &headers, b"")).await;
    let seen = backend.last();
    for (name, value) in &headers[..6] {
        assert_eq!(all(&seen, name), [*value], "{name}");
    }
    assert_eq!(all(&seen, "x-twice"), ["1", "2"]);
    let h2 = H2::connect(gateway.addr()).await;
    let mut request = h2_client::get("http", WEB, "/");
    for crumb in ["a=1", "b=2"] {
        request.headers_mut().append("cookie", crumb.parse().unwrap());
    }
    h2.exchange(request, Bytes::new()).await.unwrap();
    assert_eq!(
        all(&backend.last(), "cookie"),
        ["a=1; b=2"],
        "crumbs are joined for HTTP/1"
    );
}

#[tokio::test]
async fn the_answer_of_the_backend_is_not_dressed_up() {
    let backend = RawBackend::answers(
        b"HTTP/1.1 418 Short And Stout\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: mine\r\nContent-Length: 3\r\n\r\ntea",
    )
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!((response.status, response.text().as_str()), (418, "tea"));
    let cookies = response
        .headers
        .iter()
        .filter(|(n, _)| n.eq_ignore_ascii_case("set-cookie"));
    assert_eq!(cookies.count(), 2);
    assert_eq!(response.header("server"), Some("mine"));
    assert_eq!(response.reason(), None);
}
