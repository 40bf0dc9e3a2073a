//! Expiry of certificates, and TLS session resumption.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::HandshakeKind;
use rustls_pki_types::ServerName;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::tls::Ca;
use sluice_tests::wait::{SOON, wait_for};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn config(backend: &HttpBackend, tls: &str, names: &[&str]) -> String {
    let pairs: Vec<_> = names
        .iter()
        .map(|name| format!("{{certFile: {name}.crt, keyFile: {name}.key}}"))
        .collect();
    let addr = backend.addr();
    format!(
        r#"listeners:
  - address: "127.0.0.1:0"
    tls: {{certificates: [{}]{tls}}}
services:
  - {{name: web, hosts: [a.test], endpoints: ["{addr}"]}}
"#,
        pairs.join(", ")
    )
}

/// The metric of one certificate file.
async fn not_after(gateway: &Gateway, file: &Path) -> f64 {
    let listener = gateway.addr().to_string();
    let labels = [
        ("listener", &*listener),
        ("certificate", file.to_str().expect("a path in UTF-8")),
    ];
    gateway
        .metric("sluice_certificate_not_after_seconds", &labels)
        .await
}

#[tokio::test]
async fn the_end_of_a_certificate_is_in_metrics_and_told_once() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&config(&backend, "", &["a", "soon", "over"]));
    let now = SystemTime::now();
    ca.issue_until(&["a.test"], now + 90 * DAY)
        .write(builder.dir(), "a");
    ca.issue_until(&["soon.test"], now + 5 * DAY)
        .write(builder.dir(), "soon");
    ca.issue_until(&["over.test"], now - DAY)
        .write(builder.dir(), "over");
    let gateway = builder.start().await;
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_secs() as f64;
    for (name, end) in [
        ("a", now + 90 * DAY),
        ("soon", now + 5 * DAY),
        ("over", now - DAY),
    ] {
        let shown = not_after(&gateway, &gateway.dir().join(format!("{name}.crt"))).await;
        assert!((shown - seconds(end)).abs() < 2.0, "{name}: {shown}");
    }
    assert_eq!(gateway.metric("sluice_certificates", &[]).await, 3.0);
    gateway.wait_said("a certificate ends soon").await;
    gateway.wait_said("a certificate is no longer valid").await;

    // A renewal shows in the metric; a warning that was logged is not logged again.
    let renewed = now + 60 * DAY;
    ca.issue_until(&["over.test"], renewed)
        .write(gateway.dir(), "over");
    let (file, wanted) = (gateway.dir().join("over.crt"), seconds(renewed));
    let labels = [("certificate", file.to_str().unwrap())];
    gateway
        .wait_metric("sluice_certificate_not_after_seconds", &labels, SOON, |n| {
            (n - wanted).abs() < 2.0
        })
        .await;
    let said = gateway.stderr();
    let told: Vec<_> = said
        .iter()
        .filter(|line| line.contains("WARN") && line.contains("certificate"))
        .collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(!told.iter().any(|line| line.contains("a.crt")), "{told:#?}");
}

/// One request over TLS; returns the kind of its handshake.
async fn visit(gateway: &Gateway, client: &TlsConnector) -> std::io::Result<HandshakeKind> {
    let name = ServerName::try_from("a.test").expect("a name");
    let io = client
        .connect(name, TcpStream::connect(gateway.addr()).await?)
        .await?;
    let mut conn = H1::over(io);
    let response = conn.exchange(&h1::get("a.test", "/")).await?;
    assert_eq!(response.status, 200);
    let (io, _) = conn.into_parts();
    Ok(io.get_ref().1.handshake_kind().expect("it is over"))
}

#[tokio::test]
async fn clients_resume_across_reloads_and_the_policy_follows_one() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&config(&backend, "", &["a"]));
    ca.issue(&["a.test"]).write(builder.dir(), "a");
    ca.issue(&["b.test"]).write(builder.dir(), "b");
    let gateway = builder.start().await;
    let clients: Vec<_> = (0..20).map(|_| ca.client(&["http/1.1"])).collect();
    for client in &clients {
        assert_eq!(visit(&gateway, client).await.unwrap(), HandshakeKind::Full);
    }
    let more = config(&backend, "", &["a", "b"]);
    gateway.reload(&more).await;
    for client in &clients {
        assert_eq!(visit(&gateway, client).await.unwrap(), HandshakeKind::Resumed);
    }
    let old = ca.client_of(&[&rustls::version::TLS12], &["http/1.1"]);
    visit(&gateway, &old).await.expect("1.2 by default");
    let strict = config(&backend, ", minVersion: \"1.3\"", &["a", "b"]);
    gateway.reload(&strict).await;
    // Listeners are updated a moment after the generation.
    wait_for("1.2 is no longer spoken", SOON, async || {
        visit(&gateway, &old).await.err()
    })
    .await;
    assert_eq!(
        visit(&gateway, &clients[0]).await.unwrap(),
        HandshakeKind::Resumed
    );
}
