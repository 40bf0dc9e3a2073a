use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::super::testing::{Authority, https};
use super::*;

fn none() -> Result<Arc<RootCertStore>, BackendTlsError> {
    Err(BackendTlsError::NoSystemRoots("there are none".to_owned()))
}

fn trusting(dir: &TempDir, authority: &Authority) -> BackendTls {
    BackendTls {
        ca_file: Some(authority.write(dir.path())),
        ..BackendTls::default()
    }
}

async fn config(slot: &RevisionTls) -> Arc<UpstreamTls> {
    slot.get().await.expect("usable").expect("https")
}

#[tokio::test]
async fn only_https_urls_have_tls() {
    let spec = crate::registry::test_kit::spec("r", Backend::Managed);
    let slot = RevisionTls::new(&spec, &Handle::current());
    assert!(slot.get().await.expect("nothing to make").is_none());
}

#[tokio::test]
async fn one_config_serves_until_files_hold_something_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Authority::new();
    let spec = https("b.test", Protocol::Http1, trusting(&dir, &first));
    let slot = RevisionTls::new(&spec, &Handle::current());
    let made = config(&slot).await;
    assert!(Arc::ptr_eq(&made, &config(&slot).await));
    // Written again with the same content: sessions stay good.
    first.write(dir.path());
    slot.refresh().await;
    assert!(Arc::ptr_eq(&made, &config(&slot).await));
    Authority::new().write(dir.path());
    slot.refresh().await;
    let changed = config(&slot).await;
    assert!(!Arc::ptr_eq(&made, &changed));
    // What cannot be used leaves what was there.
    std::fs::write(dir.path().join("ca.crt"), "no PEM").expect("written");
    slot.refresh().await;
    assert!(Arc::ptr_eq(&changed, &config(&slot).await));
}

#[tokio::test]
async fn a_client_certificate_that_changes_is_taken_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let tls = BackendTls {
        certificate: Some(authority.write_pair(dir.path(), "me", &["gateway.test"])),
        ..trusting(&dir, &authority)
    };
    let slot = RevisionTls::new(&https("b.test", Protocol::Http1, tls), &Handle::current());
    let made = config(&slot).await;
    authority.write_pair(dir.path(), "me", &["gateway.test"]);
    slot.refresh().await;
    assert!(!Arc::ptr_eq(&made, &config(&slot).await));
}

#[tokio::test(start_paused = true)]
async fn missing_system_roots_are_told_and_looked_for_again() {
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    fn later() -> Result<Arc<RootCertStore>, BackendTlsError> {
        match TRIES.fetch_add(1, Ordering::SeqCst) {
            0 => none(),
            _ => Ok(Arc::new(RootCertStore::empty())),
        }
    }
    let spec = https("b.test", Protocol::Http1, BackendTls::default());
    let slot = RevisionTls::with_roots(&spec, 0, &Handle::current(), later);
    let told = slot.get().await.expect_err("none yet").to_string();
    assert_eq!(
        told,
        "the system's certificates cannot be read: there are none; install them, or name a caFile"
    );
    slot.get().await.expect_err("not asked again so soon");
    assert_eq!(TRIES.load(Ordering::SeqCst), 1);
    tokio::time::sleep(TRIED_AGAIN_AFTER).await;
    config(&slot).await;
    assert_eq!(TRIES.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_own_authority_and_no_verification_need_no_system_roots() {
    let dir = tempfile::tempdir().expect("a directory");
    let unverified = BackendTls {
        insecure_skip_verify: true,
        ..BackendTls::default()
    };
    for tls in [trusting(&dir, &Authority::new()), unverified] {
        let spec = https("b.test", Protocol::Http1, tls);
        config(&RevisionTls::with_roots(&spec, 0, &Handle::current(), none)).await;
    }
}

#[test]
fn what_cannot_be_used_is_told_with_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let file = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).expect("written");
        file
    };
    let told = |tls: BackendTls| {
        let error = check_tls(&https("b.test", Protocol::Http1, tls)).expect_err("unusable");
        assert!(error.file().is_some_and(|f| f.starts_with(dir.path())));
        error.to_string()
    };
    let with_ca = |file| BackendTls {
        ca_file: Some(file),
        ..BackendTls::default()
    };
    assert!(told(with_ca(dir.path().join("none.crt"))).contains("No such file"));
    assert!(told(with_ca(file("empty.crt", ""))).ends_with("no certificate in it"));
    assert!(told(with_ca(dir.path().to_owned())).ends_with("not a regular file"));
    assert!(told(with_ca(file("large.crt", &"x".repeat(2 << 20)))).contains("larger than"));
    let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(told(with_ca(file("hollow.crt", hollow))).contains("not a valid certificate"));
    let mut pair = authority.write_pair(dir.path(), "a", &["a.test"]);
    pair.key_file = authority.write_pair(dir.path(), "b", &["b.test"]).key_file;
    let mismatch = BackendTls {
        certificate: Some(pair),
        ..BackendTls::default()
    };
    assert!(told(mismatch).contains("does not match"));
}
