//! Routing: which request reaches which service, and the response to a request without a route.

use bytes::Bytes;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::h2_client::{self, H2};
use sluice_tests::tls::Ca;

use crate::{WEB, web, web_split};

#[tokio::test]
async fn derived_tag_and_custom_hosts_however_spelled() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let config = web_split(a.addr(), "100", b.addr(), "0", "hosts: [shop.example.com]");
    let gateway = Gateway::start(&config).await;
    let h2 = H2::connect(gateway.addr()).await;
    for (host, want) in [
        ("web.default.localhost", "a"),
        ("WEB.Default.LOCALHOST", "a"),
        ("web.default.localhost:8080", "a"),
        ("web.default.localhost.", "a"),
        ("web.default.localhost.:80", "a"),
        ("a-web.default.localhost", "a"),
        ("b-web.default.localhost", "b"),
        ("B-Web.default.localhost:1", "b"),
        ("shop.example.com", "a"),
        ("b-shop.example.com", "b"),
    ] {
        let response = gateway.get(host, "/").await;
        assert_eq!((response.status, response.text().as_str()), (200, want), "{host}");
        let response = h2
            .exchange(h2_client::get("http", host, "/"), Bytes::new())
            .await
            .unwrap();
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, want),
            "h2 {host}"
        );
    }
    for host in [
        "nope-web.default.localhost",
        "web.other.localhost",
        "web.default.localhost.evil",
        "shop.example.com.evil",
        "x.shop.example.com",
        "example.com",
        "127.0.0.1",
        "[::1]:80",
    ] {
        let response = gateway.get(host, "/").await;
        assert_eq!(
            (response.status, response.reason()),
            (404, Some("no_route")),
            "{host}"
        );
    }
    assert_eq!(a.count() + b.count(), 20);
}

#[tokio::test]
async fn exact_beats_wildcard_and_the_longer_wildcard_the_shorter() {
    let (a, b, c) = (
        HttpBackend::start("short").await,
        HttpBackend::start("long").await,
        HttpBackend::start("exact").await,
    );
    let gateway = Gateway::start(&format!(
        r#"services:
  - {{name: short, hosts: ["*.example.com"], endpoints: ["{}"]}}
  - {{name: long, hosts: ["*.a.example.com"], endpoints: ["{}"]}}
  - {{name: exact, hosts: [x.a.example.com], endpoints: ["{}"]}}
"#,
        a.addr(),
        b.addr(),
        c.addr()
    ))
    .await;
    for (host, want) in [
        ("b.example.com", "short"),
        ("c.b.example.com", "short"),
        ("a.example.com", "short"),
        ("y.a.example.com", "long"),
        ("z.y.a.example.com", "long"),
        ("X.A.example.com", "exact"),
        ("y.x.a.example.com", "long"),
    ] {
        assert_eq!(gateway.get(host, "/").await.text(), want, "{host}");
    }
    assert_eq!(gateway.get("example.com", "/").await.status, 404);
}

#[tokio::test]
async fn routes_match_path_header_and_method_and_rewrite() {
    let (own, other) = (HttpBackend::start("own").await, HttpBackend::start("other").await);
    let gateway = Gateway::start(&format!(
        r#"services:
  - name: web
    traffic: [{{revisionName: web-own, percent: 100}}]
    routes:
      - match: {{path: {{prefix: /v2}}, headers: {{X-Beta: {{exact: "1"}}}}, methods: [GET]}}
        rewriteHost: inner.example.com
        rewritePath: {{prefix: /}}
        appendHeaders: {{X-From: v2}}
        traffic: [{{revisionName: web-other, percent: 100}}]
      - match: {{path: {{exact: /exact}}}}
        traffic: [{{revisionName: web-other, percent: 100}}]
      - match: {{path: {{rawPrefix: /raw}}}}
        traffic: [{{revisionName: web-other, percent: 100}}]
    revisions:
      - {{name: web-own, endpoints: ["{}"]}}
      - {{name: web-other, endpoints: ["{}"]}}
"#,
        own.addr(),
        other.addr()
    ))
    .await;
    let beta = [("X-Beta", "1")];
    for (method, target, headers, want) in [
        ("GET", "/v2", &beta[..], "other"),
        ("GET", "/v2/", &beta[..], "other"),
        ("GET", "/v2/x?y=z", &beta[..], "other"),
        ("GET", "/v2x", &beta[..], "own"),
        ("GET", "/v2", &[], "own"),
        ("GET", "/v2", &[("X-Beta", "2")], "own"),
        ("POST", "/v2", &beta[..], "own"),
        ("GET", "/exact", &[], "other"),
        ("GET", "/exact?q", &[], "other"),
        ("GET", "/exact/x", &[], "own"),
        ("GET", "/rawest", &[], "other"),
        ("GET", "/", &[], "own"),
    ] {
        let response = gateway
            .send(&h1::request(method, WEB, target, headers, b""))
            .await;
        assert_eq!(response.text(), want, "{method} {target} {headers:?}");
    }
    let spoof = [("X-Beta", "1"), ("X-From", "client")];
    gateway
        .send(&h1::request("GET", WEB, "/v2/x?y=z", &spoof, b""))
        .await;
    let seen = other.last();
    assert_eq!(seen.host, "inner.example.com");
    assert_eq!(seen.target, "/x?y=z");
    let from: Vec<_> = seen.headers.get_all("x-from").iter().collect();
    assert_eq!(from, ["v2"], "what the client sent is overwritten");
    gateway.get(WEB, "/plain?a=b&c").await;
    let seen = own.last();
    assert_eq!((seen.host.as_str(), seen.target.as_str()), (WEB, "/plain?a=b&c"));
}

#[tokio::test]
async fn plain_http_is_redirected_where_asked() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&format!(
        r#"listeners:
  - address: 127.0.0.1:0
  - {{address: "127.0.0.1:0", tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}}}
services:
  - {{name: web, hosts: [shop.example.com], httpOption: redirected, endpoints: ["{}"]}}
"#,
        backend.addr()
    ));
    ca.issue(&["shop.example.com"]).write(builder.dir(), "a");
    let gateway = builder.start().await;
    let response = gateway.get("shop.example.com", "/x?y=z").await;
    assert_eq!(response.status, 301);
    let location = response.header("location").unwrap();
    assert!(
        location.starts_with("https://shop.example.com") && location.ends_with("/x?y=z"),
        "{location}"
    );
    assert_eq!(backend.count(), 0);
    let io = ca
        .connect(gateway.listener(1), "shop.example.com", &["http/1.1"])
        .await
        .unwrap();
    let response = h1::H1::over(io)
        .exchange(&h1::get("shop.example.com", "/"))
        .await
        .unwrap();
    assert_eq!(response.text(), "a");
}

#[tokio::test]
async fn the_tag_header_counts_only_where_it_is_enabled() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let config = web_split(a.addr(), "100", b.addr(), "0", "");
    let gateway = Gateway::start(&config).await;
    let tagged = |tag| h1::request("GET", WEB, "/", &[("Knative-Serving-Tag", tag)], b"");
    assert_eq!(gateway.send(&tagged("b")).await.text(), "a");
    gateway.reload(&format!("tagHeader: true\n{config}")).await;
    assert_eq!(gateway.send(&tagged("b")).await.text(), "b");
    assert_eq!(gateway.send(&tagged("a")).await.text(), "a");
    assert_eq!(gateway.send(&tagged("unknown")).await.text(), "a");
}

#[tokio::test]
async fn an_external_listener_never_serves_an_internal_service() {
    let (inside, outside) = (HttpBackend::start("in").await, HttpBackend::start("out").await);
    let gateway = Gateway::start(&format!(
        r#"listeners:
  - {{address: "127.0.0.1:0"}}
  - {{address: "127.0.0.1:0", visibility: internal}}
services:
  - {{name: inside, visibility: internal, hosts: [in.example.com], endpoints: ["{}"]}}
  - {{name: outside, hosts: [out.example.com], endpoints: ["{}"]}}
"#,
        inside.addr(),
        outside.addr()
    ))
    .await;
    for host in ["in.example.com", "inside.default.localhost"] {
        let hidden = gateway.get(host, "/").await;
        assert_eq!(
            (hidden.status, hidden.reason()),
            (404, Some("no_route")),
            "{host}"
        );
        let shown = h1::fetch(gateway.listener(1), &h1::get(host, "/")).await.unwrap();
        assert_eq!(shown.text(), "in");
    }
    assert_eq!(gateway.get("out.example.com", "/").await.text(), "out");
    let both = h1::fetch(gateway.listener(1), &h1::get("out.example.com", "/"))
        .await
        .unwrap();
    assert_eq!(both.text(), "out");
}

#[tokio::test]
async fn a_refusal_is_one_line_of_text_or_json_when_asked() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let text = gateway.get("unknown.example.com", "/").await;
    assert_eq!(text.text().trim_end().lines().count(), 1, "{}", text.text());
    assert!(text.header("content-type").unwrap().starts_with("text/plain"));
    let accept = [("Accept", "application/json")];
    let json = gateway
        .send(&h1::request("GET", "unknown.example.com", "/", &accept, b""))
        .await;
    assert_eq!((json.status, json.reason()), (404, Some("no_route")));
    assert!(
        json.header("content-type")
            .unwrap()
            .starts_with("application/json")
    );
    assert!(json.json().is_object());
}
