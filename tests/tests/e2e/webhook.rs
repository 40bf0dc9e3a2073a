//! Webhook scaling: the gateway asks a platform over HTTP to start instances.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use sluice_tests::backend::{Body, HttpBackend, full};
use sluice_tests::gateway::Gateway;
use sluice_tests::wait::{SOON, quiet, wait_for, wait_until};
use tokio::net::TcpSocket;
use tokio::time::Instant;

use crate::WEB;

const TOKEN: &str = "t0p-s3cret";

/// A platform's reaction to a call: gets the number of the call from 0, and the replicas asked for.
type Act = dyn Fn(usize, u64) -> Response<Body> + Send + Sync;

/// A platform; every call to it is recorded.
pub(crate) async fn platform(
    act: impl Fn(usize, u64) -> Response<Body> + Send + Sync + 'static,
) -> HttpBackend {
    let act: Arc<Act> = Arc::new(act);
    let calls = Mutex::new(0);
    let backend = HttpBackend::builder("platform").answer(move |seen| {
        let body: Value = serde_json::from_slice(&seen.body).expect("JSON");
        let mut calls = calls.lock().expect("no panic under it");
        let nth = *calls;
        *calls += 1;
        act(nth, body["replicas"].as_u64().expect("a number"))
    });
    backend.start().await
}

fn bodies(platform: &HttpBackend) -> Vec<Value> {
    let seen = platform.seen().into_iter();
    seen.map(|s| serde_json::from_slice(&s.body).expect("JSON"))
        .collect()
}

fn asked(platform: &HttpBackend) -> Vec<u64> {
    let bodies = bodies(platform).into_iter();
    bodies
        .map(|body| body["replicas"].as_u64().expect("a number"))
        .collect()
}

pub(crate) fn status(status: u16) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

fn endpoints(list: &[SocketAddr]) -> Response<Body> {
    let list: Vec<_> = list.iter().map(ToString::to_string).collect();
    Response::new(full(json!({"endpoints": list}).to_string()))
}

/// An address where nothing listens until a backend is started there. The socket keeps it for this
/// test, and lets a listener share it.
pub(crate) fn reserve() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// The service `web`, started by a platform; `configured` is where it will listen, if that is known.
pub(crate) fn service(platform: &HttpBackend, configured: Option<SocketAddr>, more: &str) -> String {
    let url = format!("http://{}/scale?key={TOKEN}", platform.addr());
    let configured = configured.map_or_else(String::new, |a| format!("        endpoints: [\"{a}\"]\n"));
    let more: String = more
        .lines()
        .map(|line| format!("        {}\n", line.trim()))
        .collect();
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n{configured}        activation: {{webhook: {{url: \"{url}\", headers: {{Authorization: \"Bearer {TOKEN}\"}}}}}}\n{more}"
    )
}

async fn revision(gateway: &Gateway) -> Value {
    let all = gateway.admin_json("/api/revisions").await;
    let all = all
        .as_array()
        .or_else(|| all["revisions"].as_array())
        .expect("a list");
    all.iter()
        .find(|r| r.to_string().contains("web-a"))
        .expect("web-a is in it")
        .clone()
}

fn tells_no_secret(gateway: &Gateway) {
    let told = gateway.stderr().into_iter().chain(gateway.stdout());
    let told: Vec<_> = told.filter(|line| line.contains(TOKEN)).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn a_configured_address_is_waited_for() {
    let platform = platform(|_, _| status(202)).await;
    let (_reserved, address) = reserve();
    let gateway = Gateway::start(&service(&platform, Some(address), "")).await;
    let addr = gateway.addr();
    let waiting =
        tokio::spawn(async move { sluice_tests::h1::fetch(addr, &sluice_tests::h1::get(WEB, "/")).await });
    wait_until("the platform is asked", SOON, || platform.count() == 1).await;
    // The instance starts late.
    quiet(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    let backend = HttpBackend::builder("elsewhere").at(address).start().await;
    let response = waiting.await.unwrap().unwrap();
    assert_eq!((response.status, response.text().as_ref()), (200, "elsewhere"));
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(backend.count(), 2);

    let call = platform.last();
    assert_eq!(
        (call.method.as_str(), call.target.as_str()),
        ("POST", "/scale?key=t0p-s3cret")
    );
    assert_eq!(call.header("authorization"), Some("Bearer t0p-s3cret"));
    assert!(call.header("idempotency-key").is_some());
    let body = &bodies(&platform)[0];
    for (key, value) in [
        ("apiVersion", "sluice.dev/v1"),
        ("namespace", "default"),
        ("service", "web"),
        ("revision", "web-a"),
    ] {
        assert_eq!(body[key], value, "{body}");
    }
    assert_eq!(asked(&platform), [1], "asked once, whoever else came");
    assert!(!body["reason"].as_str().unwrap().is_empty());
    tells_no_secret(&gateway);
}

#[tokio::test]
async fn endpoints_of_the_reply_are_used() {
    let (_reserved, address) = reserve();
    let platform = platform(move |_, _| endpoints(&[address])).await;
    let gateway = Gateway::start(&service(&platform, None, "")).await;
    let addr = gateway.addr();
    let waiting =
        tokio::spawn(async move { sluice_tests::h1::fetch(addr, &sluice_tests::h1::get(WEB, "/")).await });
    wait_until("the platform is asked", SOON, || platform.count() == 1).await;
    let _backend = HttpBackend::builder("named").at(address).start().await;
    let response = waiting.await.unwrap().unwrap();
    assert_eq!((response.status, response.text().as_ref()), (200, "named"));
    let shown = revision(&gateway).await.to_string();
    assert!(shown.contains(&address.to_string()), "{shown}");
}

#[tokio::test]
async fn what_the_platform_refuses_is_answered_with_its_cause_shown() {
    let platform = platform(|_, _| status(404)).await;
    let (_reserved, address) = reserve();
    let gateway = Gateway::start(&service(&platform, Some(address), "")).await;
    let start = Instant::now();
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.reason()),
        (503, Some("activation_failed")),
        "{}",
        response.text()
    );
    assert!(response.header("retry-after").is_some());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let cause = "the platform answered 404 Not Found";
    let shown = revision(&gateway).await.to_string();
    assert!(shown.contains(cause), "{shown}");
    gateway.wait_said(cause).await;
    // During the back-off the platform is not called.
    assert_eq!(gateway.get(WEB, "/").await.reason(), Some("activation_failed"));
    assert_eq!(asked(&platform), [1]);
    tells_no_secret(&gateway);
}

#[tokio::test]
async fn a_platform_in_trouble_is_asked_again() {
    let backend = HttpBackend::start("at last").await;
    let platform = platform(|nth, _| status([500, 429, 503, 200][nth.min(3)])).await;
    let config = service(
        &platform,
        Some(backend.addr()),
        "readinessProbe: {httpGet: {path: /ready}}",
    );
    let gateway = Gateway::start(&config).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    wait_until("it agreed", SOON, || platform.count() == 4).await;
    let keys: Vec<_> = platform
        .seen()
        .iter()
        .map(|call| call.header("idempotency-key").unwrap().to_owned())
        .collect();
    assert!(keys.iter().all(|key| *key == keys[0]), "one decision: {keys:?}");
    wait_for("nothing is wrong", SOON, async || {
        let shown = revision(&gateway).await.to_string();
        (!shown.contains("503")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_platform_that_hangs_is_a_timeout() {
    let platform = platform(|_, _| status(200)).await;
    platform.hold();
    let (_reserved, address) = reserve();
    let gateway = Gateway::start(&service(&platform, Some(address), "startTimeout: 2s")).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.reason()),
        (503, Some("activation_timeout")),
        "{}",
        response.text()
    );
    assert!(platform.count() >= 1);
    gateway.wait_said("not started within 2s").await;
}

#[tokio::test]
async fn a_platform_that_lies_is_a_timeout() {
    let (_reserved, nobody_there) = reserve();
    let platform = platform(move |_, _| endpoints(&[nobody_there])).await;
    let gateway = Gateway::start(&service(&platform, None, "startTimeout: 1s")).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.reason()),
        (503, Some("activation_timeout")),
        "{}",
        response.text()
    );
    let shown = revision(&gateway).await.to_string();
    assert!(shown.contains("not ready within 1s"), "{shown}");
    wait_until("what it may have started is ended", SOON, || {
        asked(&platform) == [1, 0]
    })
    .await;
}

#[tokio::test]
async fn an_idle_revision_is_scaled_to_zero_and_comes_back() {
    let backend = HttpBackend::start("elsewhere").await;
    for configured in [true, false] {
        let named = backend.addr();
        let platform = platform(move |_, _| match configured {
            true => status(200),
            false => endpoints(&[named]),
        })
        .await;
        let config = service(
            &platform,
            configured.then_some(named),
            "autoscaling: {window: 6s, activationScale: 2}",
        );
        let gateway = Gateway::start(&config).await;
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
        // An instance that already runs may answer before the platform does.
        wait_until("it is asked", SOON, || asked(&platform).first() == Some(&2)).await;
        wait_until("zero is asked for", SOON * 2, || {
            asked(&platform).last() == Some(&0)
        })
        .await;
        gateway.wait_ready_instances("web-a", 0.0, SOON).await;
        let shown = revision(&gateway).await;
        assert!(shown.to_string().contains("→ 0"), "{shown}");
        let before = asked(&platform).len();
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
        wait_until("it is asked again", SOON, || {
            asked(&platform)[before..].contains(&2)
        })
        .await;
    }
}

#[tokio::test]
async fn a_removed_revision_is_ended_on_the_platform() {
    let backend = HttpBackend::start("elsewhere").await;
    let platform = platform(|_, _| status(200)).await;
    let gateway = Gateway::start(&service(&platform, Some(backend.addr()), "")).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    wait_until("it is asked", SOON, || asked(&platform) == [1]).await;
    gateway
        .reload("services:\n  - {name: other, endpoints: [\"127.0.0.1:9\"]}\n")
        .await;
    wait_until("zero is asked for", SOON, || asked(&platform) == [1, 0]).await;
}
