//! Traffic splitting: shares of revisions, tags and sticky sessions.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::wait::{SOON, wait_for};
use tokio::net::TcpStream;

use crate::{WEB, web_split};

struct Pair {
    a: HttpBackend,
    b: HttpBackend,
    gateway: Gateway,
}

impl Pair {
    async fn start(share_a: &str, share_b: &str, service: &str) -> Self {
        let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
        let config = web_split(a.addr(), share_a, b.addr(), share_b, service);
        let gateway = Gateway::start(&config).await;
        Self { a, b, gateway }
    }

    fn config(&self, share_a: &str, share_b: &str, service: &str) -> String {
        web_split(self.a.addr(), share_a, self.b.addr(), share_b, service)
    }
}

fn assert_windows(bodies: &[String]) {
    for window in bodies.windows(20) {
        let a = window.iter().filter(|body| *body == "a").count();
        assert!((8..=12).contains(&a), "{a} of 20 consecutive: {window:?}");
    }
}

#[tokio::test]
async fn any_twenty_consecutive_requests_of_a_connection_are_shared_evenly() {
    let pair = Pair::start("50", "50", "").await;
    let mut conn = H1::connect(pair.gateway.addr()).await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..200 {
        bodies.push(conn.exchange(&h1::get(WEB, "/")).await.unwrap().text());
    }
    assert_windows(&bodies);
}

#[tokio::test]
async fn the_share_is_per_stream_on_h2() {
    let pair = Pair::start("50", "50", "").await;
    let h2 = H2::connect(pair.gateway.addr()).await;
    let mut bodies = Vec::new();
    for _ in 0..200 {
        let get = h2_client::get("http", WEB, "/");
        bodies.push(h2.exchange(get, Bytes::new()).await.unwrap().text());
    }
    assert_windows(&bodies);
}

#[tokio::test]
async fn two_clients_in_lockstep_both_see_both_sides() {
    let pair = Pair::start("50", "50", "").await;
    let mut clients = [
        H1::connect(pair.gateway.addr()).await.unwrap(),
        H1::connect(pair.gateway.addr()).await.unwrap(),
    ];
    let mut seen_a = [0, 0];
    for _ in 0..64 {
        for (client, seen_a) in clients.iter_mut().zip(&mut seen_a) {
            let body = client.exchange(&h1::get(WEB, "/")).await.unwrap().text();
            *seen_a += usize::from(body == "a");
        }
    }
    for count in seen_a {
        assert!((10..=54).contains(&count), "{seen_a:?} of 64 each");
    }
}

#[tokio::test]
async fn a_share_of_zero_gets_nothing_but_its_tag() {
    let pair = Pair::start("100", "0", "").await;
    let mut conn = H1::connect(pair.gateway.addr()).await.unwrap();
    for _ in 0..300 {
        let response = conn.exchange(&h1::get(WEB, "/")).await.unwrap();
        assert_eq!(response.text(), "a");
    }
    assert_eq!(pair.gateway.get("b-web.default.localhost", "/").await.text(), "b");
    assert_eq!(pair.b.count(), 1);
}

#[tokio::test]
async fn hundredths_of_a_percent_are_shares() {
    let pair = Pair::start("99.5", "0.5", "").await;
    let mut conn = H1::connect(pair.gateway.addr()).await.unwrap();
    for _ in 0..2_000 {
        conn.exchange(&h1::get(WEB, "/")).await.unwrap();
    }
    let b = pair.b.count();
    assert!((1..=30).contains(&b), "{b} of 2000, 10 expected");
}

#[tokio::test]
async fn an_edit_of_the_percents_is_followed() {
    let pair = Pair::start("100", "0", "").await;
    assert_eq!(pair.gateway.get(WEB, "/").await.text(), "a");
    let mut conn = H1::connect(pair.gateway.addr()).await.unwrap();
    assert_eq!(conn.exchange(&h1::get(WEB, "/")).await.unwrap().text(), "a");
    pair.gateway.reload(&pair.config("0", "100", "")).await;
    for _ in 0..20 {
        assert_eq!(conn.exchange(&h1::get(WEB, "/")).await.unwrap().text(), "b");
    }
    pair.gateway.reload(&pair.config("50", "50", "")).await;
    wait_for("both sides are seen", SOON, async || {
        let both = [
            pair.gateway.get(WEB, "/").await.text(),
            pair.gateway.get(WEB, "/").await.text(),
        ];
        (both[0] != both[1]).then_some(())
    })
    .await;
}

/// The side of each key; asserts that three requests with one key go to the same side.
async fn sides(gateway: &Gateway, keys: usize, header: impl Fn(usize) -> (String, String)) -> Vec<String> {
    let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
    let mut sides = Vec::new();
    for key in 0..keys {
        let (name, value) = header(key);
        let request = h1::request("GET", WEB, "/", &[(name.as_str(), value.as_str())], b"");
        let first = conn.exchange(&request).await.expect("the gateway answers").text();
        for _ in 0..2 {
            let again = conn.exchange(&request).await.expect("the gateway answers").text();
            assert_eq!(again, first, "key {key} wavers");
        }
        sides.push(first);
    }
    sides
}

fn share_of_a(sides: &[String]) -> usize {
    sides.iter().filter(|side| *side == "a").count()
}

#[tokio::test]
async fn sticky_by_cookie_or_header_survives_a_restart() {
    type Header = fn(usize) -> (String, String);
    let cookie: Header = |key| ("Cookie".into(), format!("x=1; user=u{key}; y=2"));
    let header: Header = |key| ("X-User".into(), format!("u{key}"));
    for (sticky, key) in [
        ("sticky: {cookie: user}", cookie),
        ("sticky: {header: X-User}", header),
    ] {
        let pair = Pair::start("50", "50", sticky).await;
        let before = sides(&pair.gateway, 100, key).await;
        let a = share_of_a(&before);
        assert!((25..=75).contains(&a), "{sticky}: {a} of 100 keys");
        let again = Gateway::start(&pair.config("50", "50", sticky)).await;
        assert_eq!(sides(&again, 100, key).await, before, "{sticky}");
    }
}

#[tokio::test]
async fn a_request_without_the_key_is_not_sticky() {
    let pair = Pair::start("50", "50", "sticky: {cookie: user}").await;
    let mut conn = H1::connect(pair.gateway.addr()).await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..60 {
        let request = h1::request("GET", WEB, "/", &[("Cookie", "other=1")], b"");
        bodies.push(conn.exchange(&request).await.unwrap().text());
    }
    assert_windows(&bodies);
}

#[tokio::test]
async fn raising_a_share_moves_only_that_share_and_only_into_it() {
    let sticky = "sticky: {header: X-User}";
    let key = |key: usize| ("X-User".to_owned(), format!("user-{key}"));
    let pair = Pair::start("20", "80", sticky).await;
    let before = sides(&pair.gateway, 400, key).await;
    pair.gateway.reload(&pair.config("50", "50", sticky)).await;
    let after = sides(&pair.gateway, 400, key).await;
    let mut moved = 0;
    for (before, after) in before.iter().zip(&after) {
        assert!(!(before == "a" && after == "b"), "a key left the share that grew");
        moved += usize::from(before != after);
    }
    assert!((80..=160).contains(&moved), "{moved} of 400 moved, 120 expected");
}

#[tokio::test]
async fn sticky_by_client_address() {
    let pair = Pair::start("50", "50", "sticky: {clientIp: true}").await;
    let mut sides = BTreeMap::new();
    for last in 1..=40u8 {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        for _ in 0..2 {
            let mut conn = H1::connect_from(source, pair.gateway.addr()).await.unwrap();
            let body = conn.exchange(&h1::get(WEB, "/")).await.unwrap().text();
            let side = sides.entry(last).or_insert_with(|| body.clone());
            assert_eq!(*side, body, "127.0.0.{last} wavers");
        }
    }
    let a = sides.values().filter(|side| *side == "a").count();
    assert!((5..=35).contains(&a), "{a} of 40 addresses");
}

#[tokio::test]
async fn sticky_reaches_on_to_an_endpoint_where_asked() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&format!(
        "services:\n  - name: web\n    sticky: {{header: X-User, scope: endpoint}}\n    endpoints: [\"{}\", \"{}\"]\n",
        a.addr(),
        b.addr()
    ))
    .await;
    let seen = sides(&gateway, 100, |key| ("X-User".into(), format!("u{key}"))).await;
    let a = share_of_a(&seen);
    assert!((25..=75).contains(&a), "{a} of 100 keys");
}

#[tokio::test]
async fn sticky_by_client_address_ignores_what_a_proxy_says_of_it() {
    for trusted in ["[]", "[127.0.0.0/8]"] {
        let backends = [HttpBackend::start("a").await, HttpBackend::start("b").await];
        let [a, b] = &backends;
        let sticky = "sticky: {clientIp: true, scope: endpoint}";
        let gateway = Gateway::start(&format!(
            "trustedProxies: {trusted}\nservices:\n  - name: web\n    {sticky}\n    endpoints: [\"{}\", \"{}\"]\n",
            a.addr(),
            b.addr()
        ))
        .await;
        let mut sides = BTreeMap::new();
        for last in 1..=40u8 {
            let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
            for forwarded in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
                let mut conn = H1::connect_from(source, gateway.addr()).await.unwrap();
                let headers = [("X-Forwarded-For", forwarded)];
                let request = h1::request("GET", WEB, "/", &headers, b"");
                let body = conn.exchange(&request).await.unwrap().text();
                let side = sides.entry(last).or_insert_with(|| body.clone());
                assert_eq!(*side, body, "127.0.0.{last} wavers, trusted {trusted}");
            }
        }
        let a = sides.values().filter(|side| *side == "a").count();
        assert!((5..=35).contains(&a), "{a} of 40 addresses");
    }
}

#[tokio::test]
async fn sticky_to_an_endpoint_moves_on_only_while_its_endpoint_is_gone() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&format!(
        "services:\n  - name: web\n    sticky: {{header: X-User, scope: endpoint}}\n    endpoints: [\"{}\", \"{}\"]\n",
        a.addr(),
        b.addr()
    ))
    .await;
    let key = |key: usize| ("X-User".to_owned(), format!("u{key}"));
    let before = sides(&gateway, 60, key).await;
    let addr = a.addr();
    drop(a);
    wait_for("its port refuses", SOON, async || {
        TcpStream::connect(addr).await.err()
    })
    .await;
    let without = sides(&gateway, 60, key).await;
    assert!(without.iter().all(|side| side == "b"), "{without:?}");
    let _back = HttpBackend::builder("a").at(addr).start().await;
    let (name, of_a) = key(before.iter().position(|side| side == "a").expect("one on a"));
    let request = h1::request("GET", WEB, "/", &[(&name, &of_a)], b"");
    wait_for(
        "the endpoint is used again",
        Duration::from_secs(60),
        async || (gateway.send(&request).await.text() == "a").then_some(()),
    )
    .await;
    assert_eq!(sides(&gateway, 60, key).await, before);
}
