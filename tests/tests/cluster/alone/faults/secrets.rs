//! The certificate of a host changes ten times a second.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use sluice_tests::cluster::inside;
use sluice_tests::dial::Dial;
use sluice_tests::load::Load;
use sluice_tests::tls::{Ca, Pair, peer_certificate};
use sluice_tests::wait::{SOON, wait_for};

use super::scene::{Scene, ingress};

const HOST: &str = "tls.example.com";

const ROTATIONS: usize = 100;

const EVERY: Duration = Duration::from_millis(100);

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn a_secret_that_rotates_every_100_ms_breaks_no_handshake() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster, 2).await;
    let ca = Ca::new();
    let secrets = format!("/api/v1/namespaces/{}/secrets", scene.namespace);
    let mut secret = with(&ca.issue(&[HOST]));
    secret["metadata"] = json!({
        "name": "tls", "labels": {"networking.internal.knative.dev/certificate-uid": "1"},
    });
    secret["type"] = "kubernetes.io/tls".into();
    scene.must("POST", &secrets, secret).await;
    let mut object = ingress(&scene.namespace, "tls", HOST);
    object["spec"]["tls"] =
        json!([{"hosts": [HOST], "secretName": "tls", "secretNamespace": scene.namespace}]);
    scene.must("POST", &scene.ingresses(), object).await;
    scene.until_ready("tls").await;

    let replicas = scene.replicas().await;
    let mut traffic = scene.traffic(&replicas).await;
    let service = scene.cluster.service("sluice-system", "sluice", 443).await;
    let dial = |alpn: &str| Dial::tls(service, HOST, ca.client(&[alpn]));
    traffic.add("new TLS connections", Load::get_anew(dial("http/1.1"), 4, HOST));
    traffic.add("kept TLS connections", Load::get(dial("http/1.1"), 2, HOST));
    traffic.add("HTTP/2 over TLS", Load::get_h2(dial("h2"), 2, HOST));
    traffic.advance().await;

    let path = format!("{secrets}/tls");
    let shown = async |address: SocketAddr| {
        let stream = ca.connect(address, HOST, &["http/1.1"]).await;
        let stream = stream.unwrap_or_else(|e| panic!("a handshake with a new client: {e}"));
        peer_certificate(&stream).to_vec()
    };
    let mut seen = BTreeSet::new();
    let mut clock = tokio::time::interval(EVERY);
    for _ in 0..ROTATIONS {
        clock.tick().await;
        scene.must("PATCH", &path, with(&ca.issue(&[HOST]))).await;
        seen.insert(shown(service).await);
    }
    let last = ca.issue(&[HOST]);
    scene.must("PATCH", &path, with(&last)).await;
    let last = CertificateDer::from_pem_slice(last.cert.as_bytes()).expect("PEM");
    for replica in &replicas {
        wait_for("the last certificate is served", SOON, || async {
            let shown = shown(SocketAddr::new(replica.ip, 8443)).await;
            (shown == last.as_ref()).then_some(())
        })
        .await;
    }
    assert!(
        seen.len() > ROTATIONS / 4,
        "only {} different certificates were served",
        seen.len()
    );
    traffic.advance().await;
    traffic.stop().await;
}

/// The part of a Secret that a rotation changes.
fn with(pair: &Pair) -> Value {
    json!({"stringData": {"tls.crt": pair.cert, "tls.key": pair.key}})
}
