//! Versions, suites, resumption and many certificates.

use std::fs;
use std::time::Instant;

use rcgen::{CertificateParams, KeyPair};
use rustls::{CipherSuite as Known, ClientConfig, HandshakeKind, ProtocolVersion};
use rustls_pki_types::ServerName;
use sluice_model::CertificateFiles;
use tokio_rustls::TlsConnector;

use super::super::testing::*;
use super::*;

async fn tries(
    fixture: &EdgeFixture,
    versions: &[&'static SupportedProtocolVersion],
) -> Option<(ProtocolVersion, Known)> {
    let connector = TlsConnector::from(Arc::new(client_config_of(versions)));
    let name = ServerName::try_from("a.test").unwrap();
    let client = connector.connect(name, fixture.connect().await).await.ok()?;
    let session = client.get_ref().1;
    Some((
        session.protocol_version().unwrap(),
        session.negotiated_cipher_suite().unwrap().suite(),
    ))
}

#[tokio::test]
async fn versions_and_suites_are_those_of_the_settings_and_follow_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let (a, _) = certificate(dir.path(), "a", &["a.test"]);
    let mut fixture = EdgeFixture::start(settings(vec![tls_listener(vec![a.clone()])])).await;
    assert!(tries(&fixture, &[&TLS12]).await.is_some(), "1.2 by default");
    let (version, _) = tries(&fixture, &[&TLS12, &TLS13]).await.unwrap();
    assert_eq!(version, ProtocolVersion::TLSv1_3);

    let policy = |min_version, cipher_suites| {
        let mut listener = tls_listener(vec![a.clone()]);
        listener.tls = Some(TlsSettings {
            min_version,
            cipher_suites,
            ..listener.tls.take().unwrap()
        });
        vec![listener]
    };
    fixture.settings.listeners = policy(TlsVersion::Tls13, None);
    assert!(fixture.reload().await.is_empty());
    assert_eq!(tries(&fixture, &[&TLS12]).await, None);
    assert!(tries(&fixture, &[&TLS13]).await.is_some());

    let suites = vec![
        CipherSuite::Tls13Chacha20Poly1305Sha256,
        CipherSuite::EcdheEcdsaAes128GcmSha256,
    ];
    fixture.settings.listeners = policy(TlsVersion::Tls12, Some(suites));
    assert!(fixture.reload().await.is_empty());
    let agreed = [
        (&TLS13, Known::TLS13_CHACHA20_POLY1305_SHA256),
        (&TLS12, Known::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ];
    for (version, suite) in agreed {
        let (_, got) = tries(&fixture, &[version]).await.unwrap();
        assert_eq!(got, suite);
    }
    // Without a suite of 1.3 there is no 1.3, whatever the client prefers.
    fixture.settings.listeners = policy(
        TlsVersion::Tls12,
        Some(vec![CipherSuite::EcdheEcdsaAes256GcmSha384]),
    );
    assert!(fixture.reload().await.is_empty());
    let (version, _) = tries(&fixture, &[&TLS12, &TLS13]).await.unwrap();
    assert_eq!(version, ProtocolVersion::TLSv1_2);
}

#[test]
fn every_suite_of_the_settings_exists() {
    for suite in CipherSuite::ALL {
        let provider = provider(Some(&[suite]));
        assert_eq!(provider.cipher_suites.len(), 1, "{suite:?}");
        let tls13 = provider.cipher_suites[0].version() == &TLS13;
        assert_eq!(tls13, suite.is_tls13(), "{suite:?}");
        let name = suite
            .as_str()
            .replacen("TLS_", if tls13 { "TLS13_" } else { "TLS_" }, 1);
        assert_eq!(format!("{:?}", provider.cipher_suites[0].suite()), name);
    }
    let all = provider(Some(&CipherSuite::ALL)).cipher_suites.len();
    assert_eq!(all, ring::default_provider().cipher_suites.len());
}

/// More clients than a default session cache holds: only stateless tickets let all of them resume.
#[tokio::test]
async fn many_clients_resume_and_under_any_certificate_of_the_listener() {
    const CLIENTS: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let (a, _) = certificate(dir.path(), "a", &["a.test"]);
    let (b, _) = certificate(dir.path(), "b", &["b.test"]);
    let fixture = EdgeFixture::start(settings(vec![tls_listener(vec![a, b])])).await;
    for version in [&TLS12, &TLS13] {
        let clients: Vec<Arc<ClientConfig>> = (0..CLIENTS)
            .map(|_| Arc::new(client_config_of(&[version])))
            .collect();
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            for (n, config) in clients.iter().enumerate() {
                let name = ["a.test", "b.test"][n % 2];
                let mut client = handshake(config, fixture.connect().await, name).await;
                // A ticket of TLS 1.3 comes after the handshake.
                echo(&mut client, b"GET").await;
                let kind = client.get_ref().1.handshake_kind();
                assert_eq!(kind, Some(expected), "{version:?}, client {n}");
            }
        }
    }
}

#[tokio::test]
async fn a_thousand_certificates_and_each_is_served_for_its_name() {
    const MANY: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let key_file = dir.path().join("shared.key");
    fs::write(&key_file, key.serialize_pem()).unwrap();
    let mut shown_for = Vec::with_capacity(MANY);
    let certificates = (0..MANY).map(|n| {
        let cert_file = dir.path().join(format!("{n}.crt"));
        let names = vec![format!("n{n}.test"), format!("*.n{n}.test")];
        let made = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        fs::write(&cert_file, made.pem()).unwrap();
        shown_for.push(made.der().to_vec());
        CertificateFiles {
            cert_file,
            key_file: key_file.clone(),
        }
    });
    let listener = tls_listener(certificates.collect());
    let begun = Instant::now();
    let fixture = EdgeFixture::start(settings(vec![listener])).await;
    eprintln!("{MANY} certificates in {:?}", begun.elapsed());
    let config = client_config(&["http/1.1"]);
    for (n, expected) in shown_for.iter().enumerate() {
        let name = match n % 2 {
            0 => format!("n{n}.test"),
            _ => format!("any.n{n}.test"),
        };
        let client = handshake(&config, fixture.connect().await, &name).await;
        assert!(shown(&client) == *expected, "{name}");
    }
    let client = handshake(&config, fixture.connect().await, "unknown.test").await;
    assert!(shown(&client) == shown_for[0], "the first is the default");
}
