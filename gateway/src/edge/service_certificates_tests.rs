use std::collections::BTreeSet;

use proptest::prelude::*;
use rustls::AlertDescription;
use rustls::version::{TLS12, TLS13};
use sluice_model::{IngressExtras, ListenerSettings, TlsSettings, test_util};
use tokio::net::TcpStream;

use super::super::testing::*;
use super::super::{CloseReason, Edge};
use super::*;
use crate::registry::test_kit::{fixed, snapshot, spec};

fn id(name: &str) -> ServiceId {
    ServiceId::parse("default", name).unwrap()
}

/// A service with these hosts and certificates.
fn service(name: &str, hosts: &[&str], certificates: Vec<ServiceCertificate>) -> Service {
    let mut revision = spec(name, fixed(&[1]));
    revision.service = id(name);
    let snapshot = snapshot(vec![revision]);
    let hosts = hosts.iter().map(|host| HostClaim {
        pattern: HostPattern::parse(host).unwrap(),
        rule: 0,
        tag: None,
    });
    Service {
        hosts: hosts.collect(),
        ingress: Some(Box::new(IngressExtras {
            network_hash: String::new(),
            certificates,
        })),
        ..Service::clone(snapshot.services()[0])
    }
}

fn secret(visibility: Visibility, name: &str, pem: &CertificatePem) -> ServiceCertificate {
    ServiceCertificate {
        visibility,
        name: format!("default/{name}"),
        pem: pem.clone(),
    }
}

fn public(name: &str, pem: &CertificatePem) -> ServiceCertificate {
    secret(Visibility::External, name, pem)
}

fn bad() -> CertificatePem {
    CertificatePem {
        chain: b"hello".as_slice().into(),
        key: b"hello".as_slice().into(),
    }
}

fn change(services: Vec<Service>, removed: &[&str]) -> Delta {
    Delta {
        settings: Arc::new(test_util::settings()),
        services: services.into_iter().map(Arc::new).collect(),
        removed: removed.iter().map(|name| id(name)).collect(),
    }
}

/// A store under test. Changes complete at once.
#[derive(Default)]
struct Store(Arc<ServiceCertificates>);

impl Store {
    /// Returns what an operator is told.
    fn change(&self, services: Vec<Service>, removed: &[&str]) -> Vec<String> {
        let (change, complaints) = self.0.prepare(&change(services, removed));
        change.complete();
        complaints.iter().map(ToString::to_string).collect()
    }

    /// The Secret that is served to clients of this name on public listeners.
    fn serves(&self, name: &str) -> Option<String> {
        self.serves_on(Visibility::External, name)
    }

    fn serves_on(&self, visibility: Visibility, name: &str) -> Option<String> {
        let map = self.0.served(visibility);
        let found = map.exact(name).or_else(|| map.wildcard(name));
        found.map(|certificate| certificate.name.clone())
    }

    fn names(&self, name: &str) -> Vec<String> {
        let map = self.0.served(Visibility::External);
        let found = map.exact(name).or_else(|| map.wildcard(name));
        found
            .map(|certificate| certificate.names.to_vec())
            .unwrap_or_default()
    }
}

#[test]
fn a_certificate_is_offered_for_the_hosts_of_its_service_that_it_covers() {
    let (pem, _) = pem(&[
        "a.example.com",
        "bank.example.org",
        "*.apps.example.com",
        "deep.wild.example.net",
        "*.wild.example.net",
        "*.sub.wild.example.net",
    ]);
    let hosts = [
        "a.example.com",
        "b.example.com",
        "x.apps.example.com",
        "x.y.apps.example.com",
        "*.wild.example.net",
    ];
    let store = Store::default();
    assert!(
        store
            .change(vec![service("s", &hosts, vec![public("tls", &pem)])], &[])
            .is_empty()
    );
    let cases = [
        ("a.example.com", true),
        ("b.example.com", false),
        // A name of somebody else's in the certificate.
        ("bank.example.org", false),
        ("x.apps.example.com", true),
        // A wildcard covers one label; and only what the service has.
        ("x.y.apps.example.com", false),
        ("z.apps.example.com", false),
        ("deep.wild.example.net", true),
        ("other.wild.example.net", true),
        ("one.sub.wild.example.net", true),
        ("two.labels.wild.example.net", false),
        ("wild.example.net", false),
    ];
    for (name, offered) in cases {
        assert_eq!(store.serves(name).is_some(), offered, "{name}");
        assert_eq!(store.serves_on(Visibility::Internal, name), None, "{name}");
    }
}

#[test]
fn a_service_of_every_host_offers_all_names_until_another_service_has_the_host() {
    let (all, _) = pem(&["a.test", "*.b.test", "localhost"]);
    let mut any = service("any", &[], vec![public("all", &all)]);
    any.hosts = vec![HostClaim {
        pattern: HostPattern::Any,
        rule: 0,
        tag: None,
    }];
    let store = Store::default();
    assert!(store.change(vec![any], &[]).is_empty());
    for (name, offered) in [
        ("a.test", true),
        ("x.b.test", true),
        ("localhost", true),
        ("c.test", false),
    ] {
        assert_eq!(store.serves(name).is_some(), offered, "{name}");
    }
    let (one, _) = pem(&["a.test"]);
    store.change(vec![service("z", &["a.test"], vec![public("one", &one)])], &[]);
    assert_eq!(store.serves("a.test").as_deref(), Some("default/one"));
}

#[test]
fn exact_names_come_first_then_the_order_of_the_service_and_the_owner_of_the_host() {
    let (wild, _) = pem(&["*.example.com"]);
    let (exact, _) = pem(&["a.example.com"]);
    let hosts = ["a.example.com", "b.example.com"];
    let store = Store::default();
    let both = vec![
        public("wild", &wild),
        public("wild-too", &wild),
        public("exact", &exact),
    ];
    store.change(vec![service("s", &hosts, both)], &[]);
    assert_eq!(store.serves("a.example.com").as_deref(), Some("default/exact"));
    assert_eq!(store.serves("b.example.com").as_deref(), Some("default/wild"));

    // Requests for a host go to the service that names it, whatever wildcards others have.
    store.change(
        vec![service("a", &["*.example.com"], vec![public("of-a", &exact)])],
        &[],
    );
    assert_eq!(store.serves("a.example.com").as_deref(), Some("default/exact"));
    store.change(vec![], &["s"]);
    assert_eq!(store.serves("a.example.com").as_deref(), Some("default/of-a"));

    // Among equals, the smaller id: while a host moves from one service to another, both have it.
    for (first, second) in [("m", "n"), ("n", "m")] {
        let store = Store::default();
        for name in [first, second] {
            store.change(vec![service(name, &hosts, vec![public(name, &exact)])], &[]);
        }
        assert_eq!(store.serves("a.example.com").as_deref(), Some("default/m"));
    }
}

#[test]
fn visibilities_are_sets_of_their_own() {
    let (outside, _) = pem(&["a.example.com"]);
    let (inside, _) = pem(&["a.example.com", "a.default.svc.cluster.local"]);
    let hosts = ["a.example.com", "a.default.svc.cluster.local"];
    let certificates = vec![
        public("outside", &outside),
        secret(Visibility::Internal, "inside", &inside),
    ];
    let store = Store::default();
    store.change(vec![service("s", &hosts, certificates)], &[]);
    let internal = |name| store.serves_on(Visibility::Internal, name);
    assert_eq!(store.serves("a.example.com").as_deref(), Some("default/outside"));
    assert_eq!(store.serves("a.default.svc.cluster.local"), None);
    assert_eq!(internal("a.example.com").as_deref(), Some("default/inside"));
    assert_eq!(
        internal("a.default.svc.cluster.local").as_deref(),
        Some("default/inside")
    );
}

#[test]
fn a_bad_secret_keeps_the_last_good_one_and_is_told_once_with_its_name() {
    let hosts = ["a.example.com"];
    let (good, _) = pem(&["a.example.com"]);
    let (renewed, _) = pem(&["a.example.com", "renewed.example.com"]);
    let store = Store::default();
    let tls = |pem: &CertificatePem| vec![public("tls", pem)];
    store.change(vec![service("s", &hosts, tls(&good))], &[]);
    let told = store.change(vec![service("s", &hosts, tls(&bad()))], &[]);
    assert_eq!(told, ["default/tls: tls.crt: no certificate in it"]);
    assert_eq!(store.names("a.example.com"), ["a.example.com"]);
    // The same content again, with another host, and for another service.
    let more = service("s", &["a.example.com", "b.example.com"], tls(&bad()));
    let other = service("other", &["o.example.com"], tls(&bad()));
    assert!(store.change(vec![more, other], &[]).is_empty(), "told once");
    assert_eq!(store.names("a.example.com"), ["a.example.com"]);
    assert_eq!(
        store.serves("o.example.com"),
        None,
        "nothing good was there before"
    );
    store.change(vec![service("s", &hosts, tls(&renewed))], &[]);
    assert_eq!(
        store.names("a.example.com"),
        ["a.example.com", "renewed.example.com"]
    );

    // Another Secret in place of this one, with a key that is not the certificate's.
    let (stranger, _) = pem(&["a.example.com"]);
    let mixed = CertificatePem {
        chain: good.chain.clone(),
        key: stranger.key,
    };
    let told = store.change(vec![service("s", &hosts, vec![public("next", &mixed)])], &[]);
    let wrong = "default/next: tls.key: this key does not match the certificate in tls.crt";
    assert_eq!(told, [wrong]);
    assert_eq!(
        store.names("a.example.com"),
        ["a.example.com", "renewed.example.com"]
    );
    let (next, _) = pem(&["a.example.com", "next.example.com"]);
    store.change(vec![service("s", &hosts, vec![public("next", &next)])], &[]);
    assert_eq!(
        store.names("a.example.com"),
        ["a.example.com", "next.example.com"]
    );
    // Without certificates nothing is left.
    store.change(vec![service("s", &hosts, vec![])], &[]);
    assert_eq!(store.serves("a.example.com"), None);
}

#[test]
fn a_secret_that_covers_no_host_is_told_once() {
    let (pem, _) = pem(&["elsewhere.example.com"]);
    let store = Store::default();
    let told = |hosts: &[&str]| store.change(vec![service("s", hosts, vec![public("tls", &pem)])], &[]);
    assert_eq!(
        told(&["a.example.com"]),
        ["default/tls: covers no host of default/s"]
    );
    assert!(told(&["a.example.com", "b.example.com"]).is_empty());
    assert!(told(&["elsewhere.example.com"]).is_empty());
}

#[test]
fn a_secret_of_many_services_is_parsed_once_and_only_changed_services_are_touched() {
    let (pem, _) = pem(&["*.example.com"]);
    let named = |n: usize| {
        service(
            &format!("s{n}"),
            &[&format!("h{n}.example.com")],
            vec![public("tls", &pem)],
        )
    };
    let store = Store::default();
    store.change((0..500).map(named).collect(), &[]);
    let records = || store.0.state.lock().services.clone();
    let before = (store.0.served(Visibility::External), records());
    assert_eq!(before.0.certificates().len(), 1, "one certificate for all");

    store.change(
        vec![service("s7", &["other.example.com"], vec![public("tls", &pem)])],
        &[],
    );
    let after = (store.0.served(Visibility::External), records());
    let touched = before
        .1
        .iter()
        .filter(|(id, record)| !Arc::ptr_eq(record, &after.1[*id]));
    assert_eq!(touched.count(), 1);
    assert!(
        before.0.differing_leaves(&after.0) <= 2,
        "the names that came and went"
    );
    assert_eq!(after.0.certificates().len(), 1, "not parsed again");
    // What changes nothing for clients publishes nothing.
    store.change(vec![named(8)], &[]);
    store.change(vec![service("bare", &["bare.example.com"], vec![])], &["nobody"]);
    assert!(Arc::ptr_eq(&after.0, &store.0.served(Visibility::External)));
}

#[test]
fn certificates_that_nobody_uses_are_forgotten() {
    let (one, _) = pem(&["a.example.com"]);
    let store = Store::default();
    for n in 0..10 * SWEEP {
        let certificates = vec![public(&format!("tls-{n}"), &one)];
        store.change(vec![service("s", &["a.example.com"], certificates)], &[]);
    }
    assert!(store.0.state.lock().parsed.len() <= 2 * SWEEP);
    store.change(vec![], &["s"]);
    assert!(store.0.state.lock().services.is_empty());
    assert!(store.0.served(Visibility::External).certificates().is_empty());
}

#[test]
fn until_a_change_is_complete_both_sides_are_served_and_a_dropped_one_leaves_no_trace() {
    let (old, _) = pem(&["old.example.com"]);
    let (new, _) = pem(&["new.example.com"]);
    let store = Store::default();
    let before = service("s", &["old.example.com"], vec![public("old", &old)]);
    let gone = service(
        "gone",
        &["gone.example.com"],
        vec![public("gone", &pem(&["gone.example.com"]).0)],
    );
    store.change(vec![before, gone], &[]);
    let next = change(
        vec![service("s", &["new.example.com"], vec![public("new", &new)])],
        &["gone"],
    );
    let served = || {
        ["old.example.com", "new.example.com", "gone.example.com"].map(|name| store.serves(name).is_some())
    };
    let offered = store.0.offer(&next);
    assert_eq!(served(), [true, true, true]);
    drop(offered);
    assert_eq!(served(), [true, false, true], "taken back");
    let offered = store.0.offer(&next);
    assert_eq!(served(), [true, true, true]);
    offered.complete();
    assert_eq!(served(), [false, true, false]);
}

/// Hosts and certificate names of the property test.
const HOSTS: [&str; 7] = [
    "a.test",
    "b.test",
    "x.a.test",
    "y.x.a.test",
    "*.test",
    "*.a.test",
    "*.x.a.test",
];

/// What a service has: hosts and certificates, by index.
type Drawn = (Vec<usize>, Vec<usize>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any changes, the map is that of a scan over all services by the documented order.
    #[test]
    fn incremental_maps_equal_a_scan(
        steps in prop::collection::vec((0usize..4, prop::option::of((
            prop::collection::vec(0..HOSTS.len(), 0..4),
            prop::collection::vec(0usize..PEMS, 0..3),
        ))), 1..12),
    ) {
        let store = Store::default();
        let mut all: BTreeMap<usize, Drawn> = BTreeMap::new();
        for (which, drawn) in steps {
            let name = format!("s{which}");
            match &drawn {
                Some((hosts, certificates)) => {
                    let hosts: BTreeSet<_> = hosts.iter().map(|host| HOSTS[*host]).collect();
                    let hosts: Vec<_> = hosts.into_iter().collect();
                    let certificates = certificates.iter().map(|n| public(&format!("tls-{n}"), &made()[*n].1));
                    store.change(vec![service(&name, &hosts, certificates.collect())], &[]);
                }
                None => _ = store.change(vec![], &[&name]),
            }
            match drawn {
                Some(drawn) => _ = all.insert(which, drawn),
                None => _ = all.remove(&which),
            }
            for name in ["a.test", "b.test", "c.test", "x.a.test", "z.a.test", "y.x.a.test", "q.x.a.test", "test", "e.f.test"] {
                let wanted = scan(&all, name).map(|n| format!("default/tls-{n}"));
                prop_assert_eq!(store.serves(name), wanted, "{} of {:?}", name, all);
            }
        }
    }
}

const PEMS: usize = 5;

/// The names of each certificate of the property test, and its content.
fn made() -> &'static [(Vec<&'static str>, CertificatePem)] {
    static MADE: std::sync::OnceLock<Vec<(Vec<&'static str>, CertificatePem)>> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let names: [&[&'static str]; PEMS] = [
            &["a.test", "x.a.test"],
            &["*.test"],
            &["*.a.test", "b.test"],
            &["*.x.a.test", "a.test"],
            &["elsewhere.example"],
        ];
        names.map(|names| (names.to_vec(), pem(names).0)).into()
    })
}

/// The reference: names before wildcards; of the services the one with the most precise host, then the first one; of
/// its certificates those that name the server before those whose wildcard covers it, in the service's order.
fn scan(all: &BTreeMap<usize, Drawn>, name: &str) -> Option<usize> {
    let parent = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    let host_of = |hosts: &[usize]| {
        let matching = hosts
            .iter()
            .map(|host| HOSTS[*host])
            .filter(|host| match host.strip_prefix('*') {
                Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
                None => *host == name,
            });
        matching
            .map(|host| if host == name { usize::MAX } else { host.len() })
            .max()
    };
    // A wildcard of a certificate is a name of its own where a wildcard of the service contains all of it; the name
    // itself is offered where the service has the host, or the certificate names it.
    /// How well an offer fits, and its index.
    type Ranked = ((bool, std::cmp::Reverse<usize>, usize), usize);
    let mut best: Option<Ranked> = None;
    for (service, (hosts, certificates)) in all {
        let Some(precision) = host_of(hosts) else { continue };
        for names_it in [true, false] {
            let mut certificates = certificates.iter();
            let found = certificates.find(|n| {
                let names = &made()[**n].0;
                if names_it {
                    names.contains(&name)
                } else {
                    parent.as_deref().is_some_and(|p| names.contains(&p))
                }
            });
            if let Some(n) = found {
                let as_wildcard = !names_it && precision != usize::MAX;
                let rank = (as_wildcard, std::cmp::Reverse(precision), *service);
                if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                    best = Some((rank, *n));
                }
                break;
            }
        }
    }
    best.map(|(_, n)| n)
}

/// Listeners with TLS and no certificate of their own: a public and an internal one.
fn bare_listeners() -> Vec<ListenerSettings> {
    [Visibility::External, Visibility::Internal]
        .map(|visibility| ListenerSettings {
            visibility,
            tls: Some(TlsSettings::new(vec![])),
            ..plain()
        })
        .into()
}

fn offer(edge: &Edge, services: Vec<Service>, removed: &[&str]) {
    edge.offer_certificates(&change(services, removed)).complete();
}

/// The certificate that a client of this name gets from a listener, or the alert.
async fn asked(fixture: &EdgeFixture, listener: usize, name: &str) -> Result<Vec<u8>, AlertDescription> {
    let tcp = TcpStream::connect(fixture.address(listener)).await.unwrap();
    match try_handshake(&client_config(&["http/1.1"]), tcp, name).await {
        Ok(client) => Ok(shown(&client)),
        Err(error) => {
            let error = error.into_inner().unwrap().downcast::<rustls::Error>().unwrap();
            let rustls::Error::AlertReceived(alert) = *error else {
                panic!("{error}")
            };
            Err(alert)
        }
    }
}

#[tokio::test]
async fn listeners_offer_the_set_of_their_visibility_and_refuse_unknown_names() {
    let unknown = Err(AlertDescription::UnrecognisedName);
    let mut fixture = EdgeFixture::start(settings(bare_listeners())).await;
    assert_eq!(
        asked(&fixture, 0, "a.test").await,
        unknown,
        "no certificate at all"
    );
    let (outside, out) = pem(&["a.test"]);
    let (inside, within) = pem(&["a.test", "a.cluster.local"]);
    let certificates = vec![
        public("outside", &outside),
        secret(Visibility::Internal, "inside", &inside),
    ];
    offer(
        &fixture.edge,
        vec![service("s", &["a.test", "a.cluster.local"], certificates)],
        &[],
    );
    assert_eq!(asked(&fixture, 0, "a.test").await, Ok(out.clone()));
    assert_eq!(asked(&fixture, 1, "a.test").await, Ok(within.clone()));
    assert_eq!(asked(&fixture, 0, "a.cluster.local").await, unknown);
    assert_eq!(asked(&fixture, 1, "a.cluster.local").await, Ok(within.clone()));
    assert_eq!(asked(&fixture, 0, "other.test").await, unknown);
    // Nor is there one for a client that names nothing, whatever version it speaks.
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(client_config_of(&[version]));
        let failed = try_handshake(&config, fixture.connect().await, "127.0.0.1").await;
        let error = failed.unwrap_err().to_string();
        assert!(error.contains("UnrecognisedName"), "{error}");
    }
    fixture.closed(CloseReason::TlsFailed, 5).await;

    // A host is judged by the certificate that was served.
    let mut client = handshake(&client_config(&["h2"]), fixture.connect().await, "a.test").await;
    echo(&mut client, b"preface").await;
    let tls = loop {
        let (info, _) = fixture.served().await;
        if info.peer == client.get_ref().0.local_addr().unwrap() {
            break info.tls.clone().unwrap();
        }
    };
    assert!(tls.covers("a.test") && !tls.covers("a.cluster.local"));

    // A listener that changes its visibility changes its set.
    fixture.settings.listeners[0].visibility = Visibility::Internal;
    assert!(fixture.reload().await.is_empty());
    assert_eq!(asked(&fixture, 0, "a.test").await, Ok(within));
    offer(&fixture.edge, vec![], &["s"]);
    assert_eq!(asked(&fixture, 0, "a.test").await, unknown);
}

#[tokio::test]
async fn files_win_a_name_that_both_have_and_are_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let (files, of_file) = certificate(dir.path(), "a", &["a.test", "*.both.test"]);
    let fixture = EdgeFixture::start(settings(vec![tls_listener(vec![files])])).await;
    let (pem, of_service) = pem(&["a.test", "b.test", "x.both.test", "*.both.test"]);
    let hosts = ["a.test", "b.test", "x.both.test", "*.both.test"];
    offer(
        &fixture.edge,
        vec![service("s", &hosts, vec![public("tls", &pem)])],
        &[],
    );
    let cases = [
        ("a.test", &of_file),
        ("b.test", &of_service),
        ("x.both.test", &of_service),
        ("y.both.test", &of_file),
        ("unknown.test", &of_file),
        ("127.0.0.1", &of_file),
    ];
    for (name, expected) in cases {
        assert!(asked(&fixture, 0, name).await.unwrap() == *expected, "{name}");
    }
    let listed = fixture.edge.listeners()[0].tls.as_ref().unwrap().certificates();
    let listed: Vec<_> = listed.iter().map(|c| c.name.clone()).collect();
    assert_eq!(listed.len(), 2);
    assert!(
        listed[0].ends_with("a.crt") && listed[1] == "default/tls",
        "{listed:?}"
    );
    // Files that are read again leave the services' as they are.
    assert!(fixture.edge.apply(&fixture.settings).await.is_empty());
    assert!(asked(&fixture, 0, "b.test").await.unwrap() == of_service);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_secret_is_served_to_the_next_handshake_and_no_handshake_fails() {
    let fixture = Arc::new(EdgeFixture::start(settings(bare_listeners())).await);
    let (first, mut now) = pem(&["a.test"]);
    let with = |pem: &CertificatePem| vec![service("s", &["a.test"], vec![public("tls", pem)])];
    offer(&fixture.edge, with(&first), &[]);
    let mut before = handshake(&client_config(&["http/1.1"]), fixture.connect().await, "a.test").await;
    echo(&mut before, b"one").await;
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let background = {
        let (fixture, done) = (Arc::clone(&fixture), Arc::clone(&done));
        tokio::spawn(async move {
            let mut handshakes = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                asked(&fixture, 0, "a.test").await.expect("old or new");
                handshakes += 1;
            }
            handshakes
        })
    };
    for _ in 0..30 {
        let (pem, shown) = pem(&["a.test"]);
        assert_ne!(shown, now);
        offer(&fixture.edge, with(&pem), &[]);
        assert!(
            asked(&fixture, 0, "a.test").await.unwrap() == shown,
            "the next handshake"
        );
        now = shown;
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(background.await.unwrap() > 0);
    echo(&mut before, b"two").await;
}

#[tokio::test]
async fn clients_resume_across_a_swapped_secret() {
    let fixture = EdgeFixture::start(settings(bare_listeners())).await;
    let config = client_config(&["http/1.1"]);
    for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let (pem, _) = pem(&["a.test"]);
        offer(
            &fixture.edge,
            vec![service("s", &["a.test"], vec![public("tls", &pem)])],
            &[],
        );
        let mut client = handshake(&config, fixture.connect().await, "a.test").await;
        echo(&mut client, b"GET").await;
        assert_eq!(client.get_ref().1.handshake_kind(), Some(expected));
    }
}
