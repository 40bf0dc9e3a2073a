//! Listeners and their certificates, while the gateway runs.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use bytes::Bytes;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::tls::{self, Ca, Pair};
use sluice_tests::wait::{SOON, wait_for, wait_until};
use tokio::net::TcpStream;

use crate::{WEB, web};

/// The addresses of listeners in the admin API.
async fn bound(gateway: &Gateway) -> Vec<SocketAddr> {
    let config = gateway.admin_json("/api/config").await;
    let listeners = config["bound"]["listeners"].as_array().expect("a list");
    let parsed = listeners.iter().map(|l| l.as_str().expect("text").parse());
    parsed.collect::<Result<_, _>>().expect("addresses")
}

async fn wait_bound(
    gateway: &Gateway,
    what: &str,
    wanted: impl Fn(&[SocketAddr]) -> bool,
) -> Vec<SocketAddr> {
    wait_for(what, SOON, async || {
        let bound = bound(gateway).await;
        wanted(&bound).then_some(bound)
    })
    .await
}

async fn served(addr: SocketAddr) -> u16 {
    h1::fetch(addr, &h1::get(WEB, "/"))
        .await
        .expect("an answer")
        .status
}

#[tokio::test]
async fn listeners_come_go_and_move_with_a_reload() {
    let backend = HttpBackend::start("a").await;
    let config = |listeners: &str| format!("listeners: [{listeners}]\n{}", web(backend.addr()));
    let one = "{address: \"127.0.0.1:0\"}";
    let gateway = Gateway::start(&config(one)).await;
    let first = gateway.addr();

    let two = format!("{one}, {{address: \"127.0.0.1:0\"}}");
    gateway.reload(&config(&two)).await;
    let both = wait_bound(&gateway, "a second listener", |b| b.len() == 2).await;
    assert_eq!(both[0], first, "the first one stays where it was");
    assert_eq!((served(both[0]).await, served(both[1]).await), (200, 200));

    // A request in flight on a removed listener is answered.
    backend.hold();
    let held = tokio::spawn(served(both[1]));
    wait_until("it is in flight", SOON, || backend.in_flight() == 1).await;
    gateway.reload(&config(one)).await;
    wait_bound(&gateway, "one listener", |b| b == [first]).await;
    wait_for("the second one refuses", SOON, async || {
        TcpStream::connect(both[1]).await.err()
    })
    .await;
    backend.release();
    assert_eq!(held.await.unwrap(), 200);

    let moved = "{address: \"127.0.0.2:0\"}";
    let before = H1::connect(first).await.unwrap();
    gateway.reload(&config(moved)).await;
    let now = wait_bound(&gateway, "another address", |b| b.len() == 1 && b[0] != first).await;
    assert_eq!(now[0].ip().to_string(), "127.0.0.2");
    assert_eq!(served(now[0]).await, 200);
    let mut before = before;
    let response = before.exchange(&h1::get(WEB, "/")).await.unwrap();
    assert_eq!(response.status, 200, "a connection outlives its listener");
}

#[tokio::test]
async fn a_listener_changes_its_visibility_in_place() {
    let backend = HttpBackend::start("a").await;
    let config = |visibility: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\", visibility: {visibility}}}]\nservices:\n  - {{name: web, visibility: internal, endpoints: [\"{}\"]}}\n",
            backend.addr()
        )
    };
    let gateway = Gateway::start(&config("external")).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 404);
    gateway.reload(&config("internal")).await;
    wait_for("internal services are served", SOON, async || {
        (gateway.get(WEB, "/").await.status == 200).then_some(())
    })
    .await;
}

fn secure(backend: SocketAddr) -> String {
    format!(
        r#"listeners:
  - address: 127.0.0.1:0
    tls:
      certificates:
        - {{certFile: a.crt, keyFile: a.key}}
        - {{certFile: b.crt, keyFile: b.key}}
services:
  - {{name: web, hosts: [a.test, also-a.test, b.test], endpoints: ["{backend}"]}}
"#
    )
}

#[tokio::test]
async fn a_host_that_the_certificate_is_not_for_is_misdirected() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&secure(backend.addr()));
    ca.issue(&["a.test", "also-a.test"]).write(builder.dir(), "a");
    ca.issue(&["b.test"]).write(builder.dir(), "b");
    let gateway = builder.start().await;
    let h2 = H2::over(ca.connect(gateway.addr(), "a.test", &["h2"]).await.unwrap()).await;
    let mut h1 = H1::over(ca.connect(gateway.addr(), "a.test", &["http/1.1"]).await.unwrap());
    for (host, status) in [("a.test", 200), ("b.test", 421), ("also-a.test", 200)] {
        let response = h2
            .exchange(h2_client::get("https", host, "/"), Bytes::new())
            .await
            .unwrap();
        assert_eq!(response.status, status, "h2 {host}");
        let reason = (status == 421).then_some("misdirected");
        assert_eq!(response.header("x-sluice-reason"), reason);
        let response = h1.exchange(&h1::get(host, "/")).await.unwrap();
        assert_eq!(
            (response.status, response.reason()),
            (status, reason),
            "h1 {host}"
        );
    }
    assert_eq!(backend.count(), 4);
    gateway
        .wait_access_log("the misdirected", |e| e["reason"] == "misdirected")
        .await;
}

/// Replaces a file by rename, as an editor or a certificate tool does.
fn replace(pair: &Pair, dir: &Path, name: &str) {
    let aside = dir.join("aside");
    std::fs::create_dir_all(&aside).expect("the directory is writable");
    let (cert, key) = pair.write(&aside, name);
    std::fs::rename(key, dir.join(format!("{name}.key"))).expect("the directory is writable");
    std::fs::rename(cert, dir.join(format!("{name}.crt"))).expect("the directory is writable");
}

async fn shown(ca: &Ca, gateway: &Gateway, name: &str) -> Vec<u8> {
    let io = ca.connect(gateway.addr(), name, &["http/1.1"]).await.expect(name);
    tls::peer_certificate(&io).to_vec()
}

#[tokio::test]
async fn certificate_files_are_replaced_live_and_a_bad_one_keeps_the_old() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&secure(backend.addr()));
    ca.issue(&["a.test"]).write(builder.dir(), "a");
    ca.issue(&["b.test"]).write(builder.dir(), "b");
    let gateway = builder.start().await;
    let old = shown(&ca, &gateway, "b.test").await;
    let other = shown(&ca, &gateway, "a.test").await;
    let mut open = H1::over(ca.connect(gateway.addr(), "b.test", &["http/1.1"]).await.unwrap());
    assert_eq!(open.exchange(&h1::get("b.test", "/")).await.unwrap().status, 200);

    replace(&ca.issue(&["b.test"]), gateway.dir(), "b");
    let new = wait_for("the new certificate", SOON, async || {
        let now = shown(&ca, &gateway, "b.test").await;
        (now != old).then_some(now)
    })
    .await;
    assert_eq!(shown(&ca, &gateway, "a.test").await, other, "the other one stays");
    let response = open.exchange(&h1::get("b.test", "/")).await.unwrap();
    assert_eq!(response.status, 200, "a connection outlives its certificate");

    std::fs::write(gateway.dir().join("b.crt"), "no certificate").unwrap();
    gateway.wait_said("the certificate from before stays").await;
    assert_eq!(shown(&ca, &gateway, "b.test").await, new);
    // The key of another certificate is refused, too.
    let (pair, stranger) = (ca.issue(&["b.test"]), ca.issue(&["b.test"]));
    let mixed = Pair {
        cert: pair.cert.clone(),
        key: stranger.key,
    };
    replace(&mixed, gateway.dir(), "b");
    gateway.wait_said("does not match").await;
    assert_eq!(shown(&ca, &gateway, "b.test").await, new);

    replace(&pair, gateway.dir(), "b");
    wait_for("the repaired certificate", SOON, async || {
        (shown(&ca, &gateway, "b.test").await != new).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reload_that_names_an_unreadable_certificate_keeps_what_is_served() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&secure(backend.addr()));
    ca.issue(&["a.test"]).write(builder.dir(), "a");
    ca.issue(&["b.test"]).write(builder.dir(), "b");
    let gateway = builder.start().await;
    let old = shown(&ca, &gateway, "a.test").await;
    gateway.write_config(&secure(backend.addr()).replace("b.crt", "missing.crt"));
    gateway.wait_said("missing.crt").await;
    assert_eq!(shown(&ca, &gateway, "a.test").await, old);
    assert!(!shown(&ca, &gateway, "b.test").await.is_empty());
}

#[tokio::test]
async fn a_reload_whose_listener_cannot_be_had_changes_nothing() {
    let backend = HttpBackend::start("a").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap();
    let service = web(backend.addr());
    let gateway = Gateway::start(&service).await;
    let moved = format!(
        "listeners:\n  - address: 127.0.0.1:0\n  - address: {busy}\n{service}  - {{name: more, endpoints: [\"{}\"]}}\n",
        backend.addr()
    );
    gateway.write_config(&moved);
    gateway
        .wait_metric(
            "sluice_config_reloads_total",
            &[("result", "rejected")],
            SOON,
            |n| n == 1.0,
        )
        .await;
    gateway
        .wait_said(&format!(":14: error: cannot listen on {busy}: the port is taken"))
        .await;
    assert_eq!(gateway.generation().await, 1);
    assert_eq!(gateway.get("more.default.localhost", "/").await.status, 404);
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    drop(taken);
    gateway.sighup();
    gateway.wait_generation(2).await;
    assert_eq!(gateway.get("more.default.localhost", "/").await.status, 200);
    let there = h1::fetch(busy, &h1::get(WEB, "/")).await.unwrap();
    assert_eq!(there.status, 200);
}
