//! TLS towards https backends: trusted authorities, client certificates, ALPN and session resumption.

use std::io;
use std::sync::{Arc, Mutex};

use http::Version;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::tls::{self, Ca, Pair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::WEB;

/// The service `web` at this https authority, with these keys of its revision.
fn https(authority: &str, more: &str) -> String {
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-url\n        url: \"https://{authority}\"\n        {more}\n"
    )
}

/// A backend named `secure` that shows this certificate.
async fn secure(pair: &Pair) -> HttpBackend {
    let acceptor = tls::acceptor(pair, &["http/1.1"]);
    HttpBackend::builder("secure").tls(acceptor).start().await
}

async fn assert_refused(gateway: &Gateway) {
    let refused = gateway.get(WEB, "/").await;
    assert_eq!((refused.status, refused.reason()), (502, Some("connect_failed")));
}

#[tokio::test]
async fn only_the_revisions_own_authorities_are_trusted() {
    let ca = Ca::new();
    let backend = secure(&ca.issue(&["localhost"])).await;
    let config = https(
        &format!("localhost:{}", backend.addr().port()),
        "tls: {caFile: ca.pem}",
    );
    let right = Gateway::builder(&config).file("ca.pem", ca.pem()).start().await;
    assert_eq!(right.get(WEB, "/").await.text(), "secure");
    let wrong = Gateway::builder(&config).file("ca.pem", Ca::new().pem());
    // An authority of the system's store does not count where the revision has its own.
    let wrong = wrong.file("system.pem", ca.pem());
    let system = wrong.dir().join("system.pem");
    let wrong = wrong.env("SSL_CERT_FILE", system.to_str().unwrap()).start().await;
    assert_refused(&wrong).await;
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn the_configured_server_name_is_verified_in_place_of_the_urls() {
    let ca = Ca::new();
    let backend = secure(&ca.issue(&["inner.test"])).await;
    let authority = format!("localhost:{}", backend.addr().port());
    for (key, served) in [("", false), (", serverName: inner.test", true)] {
        let config = https(&authority, &format!("tls: {{caFile: ca.pem{key}}}"));
        let gateway = Gateway::builder(&config).file("ca.pem", ca.pem()).start().await;
        if served {
            assert_eq!(gateway.get(WEB, "/").await.text(), "secure");
            assert_eq!(backend.last().host, authority);
        } else {
            assert_refused(&gateway).await;
        }
    }
}

/// RFC 9110 4.3.5: an address is verified by the addresses that the certificate names.
#[tokio::test]
async fn an_https_address_is_verified() {
    let ca = Ca::new();
    for (name, served) in [("127.0.0.1", true), ("localhost", false)] {
        let backend = secure(&ca.issue(&[name])).await;
        let config = https(
            &format!("127.0.0.1:{}", backend.addr().port()),
            "tls: {caFile: ca.pem}",
        );
        let gateway = Gateway::builder(&config).file("ca.pem", ca.pem()).start().await;
        if served {
            assert_eq!(gateway.get(WEB, "/").await.text(), "secure");
        } else {
            assert_refused(&gateway).await;
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_verified_is_warned_of() {
    let backend = secure(&Ca::new().issue(&["other.test"])).await;
    let config = https(
        &format!("localhost:{}", backend.addr().port()),
        "tls: {insecureSkipVerify: true}",
    );
    let gateway = Gateway::start(&config).await;
    assert_eq!(gateway.get(WEB, "/").await.text(), "secure");
    gateway
        .wait_said("the backend's certificate is not verified")
        .await;
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let pair = ca.issue(&["localhost"]);
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(clients.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
        );
    let acceptor = TlsAcceptor::from(Arc::new(server.unwrap()));
    let backend = HttpBackend::builder("mutual").tls(acceptor).start().await;
    let authority = format!("localhost:{}", backend.addr().port());
    for (issuer, status) in [(Some(&clients), 200), (Some(&ca), 502), (None, 502)] {
        let key = issuer.map_or("", |_| ", certFile: own.crt, keyFile: own.key");
        let config = https(&authority, &format!("tls: {{caFile: ca.pem{key}}}"));
        let builder = Gateway::builder(&config).file("ca.pem", ca.pem());
        if let Some(issuer) = issuer {
            issuer.issue(&["gateway.test"]).write(builder.dir(), "own");
        }
        let gateway = builder.start().await;
        assert_eq!(gateway.get(WEB, "/").await.status, status);
    }
    assert_eq!(backend.count(), 1);
}

/// RFC 8446 2.2: a connection after the first is made with a ticket of the one before.
#[tokio::test]
async fn later_connections_resume_the_session() {
    let ca = Ca::new();
    let acceptor = tls::acceptor(&ca.issue(&["localhost"]), &["http/1.1"]);
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&kinds);
    let backend = RawBackend::start(move |_, io: TcpStream| {
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        async move {
            let mut io = acceptor.accept(io).await?;
            seen.lock().unwrap().push(io.get_ref().1.handshake_kind());
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if io.read_buf(&mut head).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await?;
            io.shutdown().await
        }
    })
    .await;
    let config = https(
        &format!("localhost:{}", backend.addr().port()),
        "tls: {caFile: ca.pem}",
    );
    let gateway = Gateway::builder(&config).file("ca.pem", ca.pem()).start().await;
    for _ in 0..3 {
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
    }
    let resumed = Some(HandshakeKind::Resumed);
    assert_eq!(
        *kinds.lock().unwrap(),
        [Some(HandshakeKind::Full), resumed, resumed]
    );
}

/// RFC 9113 3.2: over TLS, HTTP/2 is negotiated by ALPN.
#[tokio::test]
async fn h2_is_spoken_over_tls_where_the_backend_agrees() {
    let ca = Ca::new();
    let pair = ca.issue(&["localhost"]);
    let acceptor = tls::acceptor(&pair, &["h2"]);
    let backend = HttpBackend::builder("h2").tls(acceptor).h2c().start().await;
    let key = "tls: {caFile: ca.pem}\n        protocol: h2";
    let config = https(&format!("localhost:{}", backend.addr().port()), key);
    let gateway = Gateway::builder(&config).file("ca.pem", ca.pem()).start().await;
    for _ in 0..3 {
        let request = h1::request("POST", WEB, "/", &[], b"a body");
        assert_eq!(gateway.send(&request).await.text(), "h2");
    }
    let seen = backend.last();
    assert_eq!(
        (seen.version, seen.body.as_ref()),
        (Version::HTTP_2, &b"a body"[..])
    );
    assert_eq!(backend.connections(), 1);

    for alpn in [&["http/1.1"][..], &[]] {
        let acceptor = tls::acceptor(&pair, alpn);
        let old = HttpBackend::builder("old").tls(acceptor).start().await;
        let config = https(&format!("localhost:{}", old.addr().port()), key);
        let gateway = Gateway::builder(&config).file("ca.pem", ca.pem()).start().await;
        assert_refused(&gateway).await;
        let entry = gateway
            .wait_access_log("the refusal", |e| e["status"] == 502)
            .await;
        let detail = entry["detail"].as_str().unwrap_or_default().to_lowercase();
        assert!(
            detail.contains("alpn") || detail.contains("noapplicationprotocol"),
            "{entry}"
        );
        assert_eq!(old.count(), 0);
    }
}
