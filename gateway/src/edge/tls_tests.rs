use std::fs;
use std::time::SystemTime;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustls::HandshakeKind;
use sluice_model::CertificateFiles;
use tokio::io::AsyncWriteExt;

use super::super::testing::*;
use super::super::{CloseReason, ConnectionProtocol};
use super::*;

fn tls(certificates: Vec<CertificateFiles>) -> TlsSettings {
    TlsSettings::new(certificates)
}

fn refused(settings: &TlsSettings) -> Vec<String> {
    let errors = TlsTerminator::new(settings).expect_err("refused");
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn every_bad_file_is_named_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (good, _) = certificate(dir.path(), "good", &["good.test"]);
    let (other, _) = certificate(dir.path(), "other", &["other.test"]);
    fs::write(path("text.pem"), "hello").unwrap();
    fs::write(path("cut.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(path("junk.pem"), junk).unwrap();
    fs::write(path("junk.key"), junk.replace("CERTIFICATE", "PRIVATE KEY")).unwrap();
    // Nobody writes to it: opened, it would never be read to its end.
    mkfifo(&path("pipe.crt"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::File::create(path("large.crt"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let pair = |cert: &str, key: &str| CertificateFiles {
        cert_file: path(cert),
        key_file: path(key),
    };
    let told = refused(&tls(vec![
        good.clone(),
        pair("gone.crt", "good.key"),
        pair("good.crt", "gone.key"),
        pair("text.pem", "good.key"),
        pair("good.crt", "good.crt"),
        pair("cut.pem", "good.key"),
        pair("junk.pem", "good.key"),
        pair("good.crt", "junk.key"),
        pair("pipe.crt", "good.key"),
        pair("large.crt", "good.key"),
        pair(".", "good.key"),
        CertificateFiles {
            cert_file: good.cert_file,
            key_file: other.key_file,
        },
    ]));
    let expected = [
        ("gone.crt", "No such file"),
        ("gone.key", "No such file"),
        ("text.pem", "no certificate in it"),
        ("good.crt", "no unencrypted private key in it"),
        ("cut.pem", "not PEM"),
        ("junk.pem", "not a valid certificate"),
        ("junk.key", "unusable private key"),
        ("pipe.crt", "not a regular file"),
        ("large.crt", "larger than 1048576 bytes"),
        (".", "not a regular file"),
        ("other.key", "does not match the certificate in"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, (file, why)) in told.iter().zip(expected) {
        assert!(
            told.contains(&format!("{file}: ")) && told.contains(why),
            "{told}"
        );
    }
}

#[test]
fn names_and_end_of_validity() {
    let dir = tempfile::tempdir().unwrap();
    let (files, _) = certificate(dir.path(), "a", &["A.test", "*.B.test", "127.0.0.1", "::1"]);
    let made = TlsTerminator::new(&tls(vec![files.clone()])).unwrap();
    let certificate = &made.certificates()[0];
    assert_eq!(*certificate.names, ["a.test", "*.b.test", "127.0.0.1", "[::1]"]);
    assert!(certificate.not_after > SystemTime::now());
    assert_eq!(made.files(), [files.cert_file, files.key_file]);
}

#[tokio::test]
async fn chosen_by_name_exact_then_wildcard_then_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (default, d) = certificate(dir.path(), "default", &["default.test"]);
    let (wild, w) = certificate(dir.path(), "wild", &["*.example.com"]);
    let (exact, e) = certificate(dir.path(), "exact", &["a.example.com", "default.test"]);
    let mut fixture = EdgeFixture::start(settings(vec![tls_listener(vec![default, wild, exact])])).await;
    let config = client_config(&["h2", "http/1.1"]);
    let cases = [
        ("a.example.com", &e, true),
        ("A.Example.COM", &e, true),
        ("b.example.com", &w, true),
        ("x.b.example.com", &d, false),
        ("example.com", &d, false),
        ("default.test", &d, true),
        ("127.0.0.1", &d, false),
    ];
    for (name, expected, covered) in cases {
        let mut client = handshake(&config, fixture.connect().await, name).await;
        assert!(shown(&client) == *expected, "{name}");
        echo(&mut client, b"preface").await;
        let (info, http_version) = fixture.served().await;
        assert_eq!(http_version, HttpVersion::Http2);
        let tls = info.tls.as_ref().unwrap();
        let name = name.to_ascii_lowercase();
        assert_eq!(tls.sni.as_deref(), (name != "127.0.0.1").then_some(name.as_str()));
        assert_eq!(tls.covers(&name), covered, "{name}");
    }
}

#[tokio::test]
async fn alpn_decides_and_without_it_is_http1() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = EdgeFixture::start(settings(vec![tls_listener(vec![
        certificate(dir.path(), "a", &["a.test"]).0,
    ])]))
    .await;
    for (alpn, expected) in [
        (vec!["h2", "http/1.1"], HttpVersion::Http2),
        (vec!["http/1.1"], HttpVersion::Http1),
        (vec![], HttpVersion::Http1),
    ] {
        let mut client = handshake(&client_config(&alpn), fixture.connect().await, "a.test").await;
        echo(&mut client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let (info, http_version) = fixture.served().await;
        assert_eq!(http_version, expected, "{alpn:?}");
        let gauge = if http_version == HttpVersion::Http2 {
            ConnectionProtocol::Http2
        } else {
            ConnectionProtocol::Http1
        };
        assert_eq!(fixture.counts.open(gauge), 1);
        // Over TLS, too, a FIN is seen while nobody reads.
        client.get_mut().0.shutdown().await.unwrap();
        info.close_watch.closed().await;
        drop(client);
        fixture.edge.drained().await;
    }
}

#[tokio::test]
async fn no_tls_is_a_failed_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = EdgeFixture::start(settings(vec![tls_listener(vec![
        certificate(dir.path(), "a", &["a.test"]).0,
    ])]))
    .await;
    let mut client = fixture.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    fixture.closed(CloseReason::TlsFailed, 1).await;
}

#[tokio::test]
async fn clients_resume_across_a_reload_in_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let (a, _) = certificate(dir.path(), "a", &["a.test"]);
    let (b, _) = certificate(dir.path(), "b", &["b.test"]);
    let mut fixture = EdgeFixture::start(settings(vec![tls_listener(vec![a.clone()])])).await;
    for version in [&TLS12, &TLS13] {
        let mut config = client_config_of(&[version]);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut client = handshake(&config, fixture.connect().await, "a.test").await;
            echo(&mut client, b"GET").await;
            assert_eq!(client.get_ref().1.handshake_kind(), Some(expected), "{version:?}");
            fixture.settings.listeners = vec![tls_listener(vec![a.clone(), b.clone()])];
            assert!(fixture.reload().await.is_empty());
        }
    }
}

#[tokio::test]
async fn a_bad_reload_keeps_what_is_served_and_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (a, old_a) = certificate(dir.path(), "a", &["a.test"]);
    let (b, old_b) = certificate(dir.path(), "b", &["b.test"]);
    let terminator = TlsTerminator::new(&tls(vec![a.clone(), b.clone()])).unwrap();
    let serves = |name: &str| {
        let current = terminator.current.load_full();
        current.resolver.find(Some(name)).unwrap().names.to_vec()
    };
    let same = terminator.refresh();
    assert!(!same.changed && same.errors.is_empty());

    // One gets bad, the other is renewed: the renewed one is served.
    fs::write(&a.key_file, "gibberish").unwrap();
    let (_, new_b) = certificate(dir.path(), "b", &["b.test", "more.test"]);
    assert_ne!(old_b, new_b);
    let partly = terminator.refresh();
    assert!(partly.changed);
    assert_eq!(partly.errors.len(), 1);
    assert!(partly.errors[0].to_string().contains("a.key"));
    assert_eq!(serves("a.test"), ["a.test"]);
    assert_eq!(serves("more.test"), ["b.test", "more.test"]);
    let again = terminator.refresh();
    assert!(!again.changed && again.errors.is_empty(), "told once");

    // A new pair that is bad changes nothing at all.
    let missing = CertificateFiles {
        cert_file: dir.path().join("missing.crt"),
        key_file: dir.path().join("missing.key"),
    };
    let bad = terminator.reload(&tls(vec![b.clone(), missing]), Visibility::External);
    assert!(!bad.changed && bad.errors.len() == 1);
    assert_eq!(serves("unknown.test"), ["a.test"], "the first is still the first");

    // Good again, and another order is another default.
    let (_, new_a) = certificate(dir.path(), "a", &["a.test"]);
    assert_ne!(old_a, new_a);
    let good = terminator.reload(&tls(vec![b, a]), Visibility::External);
    assert!(good.changed && good.errors.is_empty());
    assert_eq!(serves("unknown.test"), ["b.test", "more.test"]);
}

#[tokio::test]
async fn replaced_files_are_served_and_open_connections_live_on() {
    let dir = tempfile::tempdir().unwrap();
    let (a, old) = certificate(dir.path(), "a", &["a.test"]);
    let fixture = EdgeFixture::start(settings(vec![tls_listener(vec![a])])).await;
    let config = client_config(&["http/1.1"]);
    let mut before = handshake(&config, fixture.connect().await, "a.test").await;
    assert_eq!(shown(&before), old);
    echo(&mut before, b"one").await;
    let (_, new) = certificate(dir.path(), "a", &["a.test"]);
    let fresh = || client_config(&["http/1.1"]);
    let end = tokio::time::Instant::now() + PATIENCE;
    while shown(&handshake(&fresh(), fixture.connect().await, "a.test").await) != new {
        assert!(
            tokio::time::Instant::now() < end,
            "the new certificate is not served"
        );
        tokio::task::yield_now().await;
    }
    echo(&mut before, b"two").await;
}
