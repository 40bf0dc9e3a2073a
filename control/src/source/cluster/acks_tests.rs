//! Unit tests of hashes and verdicts; the simulation is in `queue_tests.rs`.

use sluice_model::{
    CertificatePem, EndpointAddr, HttpOption, IngressExtras, RevisionId, Rule, ServiceCertificate, ServiceId,
    TrafficSplit, Visibility,
};

use super::*;
use crate::ingress::{IngressObject, IngressProblem, ProblemKind};
use crate::object_name::ObjectName;

fn outcome(service: Service, problem: Option<ProblemKind>) -> IngressOutcome {
    let problem = problem.map(|kind| IngressProblem::new(kind, "why"));
    IngressOutcome {
        object: Arc::new(IngressObject {
            name: ObjectName::new("d", "hello"),
            uid: "u".into(),
            generation: 3,
            service: Some(Arc::new(service)),
            problem: problem.clone(),
        }),
        problem,
    }
}

fn service(targets: Vec<EndpointTarget>, protocol: Protocol, key: &str, hash: &str) -> Service {
    let id = ServiceId::of_object("d", "hello").unwrap();
    let mut settings = sluice_model::test_util::revision_settings();
    settings.protocol = protocol;
    let revision = RevisionSpec {
        id: RevisionId::of_object("d", "hello-1").unwrap(),
        service: id.clone(),
        backend: Backend::Static {
            targets,
            activated: false,
        },
        settings: Arc::new(settings),
    };
    Service {
        id,
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts: Vec::new(),
        revisions: vec![Arc::new(revision)],
        main: Rule {
            visibility: Visibility::External,
            http_option: HttpOption::Enabled,
            routes: Vec::new(),
            split: TrafficSplit::none(),
        },
        further: Box::default(),
        ingress: Some(Box::new(IngressExtras {
            network_hash: hash.into(),
            certificates: vec![ServiceCertificate {
                visibility: Visibility::External,
                name: "d/tls".into(),
                pem: CertificatePem {
                    chain: b"chain".as_slice().into(),
                    key: key.as_bytes().into(),
                },
            }],
        })),
    }
}

fn address(text: &str) -> EndpointTarget {
    EndpointTarget::Address(EndpointAddr::Tcp(text.parse().unwrap()))
}

#[test]
fn a_hash_is_of_what_is_resolved_and_not_of_addresses() {
    let hash = |service: Service, problem| Served::of(&outcome(service, problem)).hash;
    let h1 = Protocol::Http1;
    let one = hash(service(vec![address("10.0.0.1:80")], h1, "key", "abc"), None);
    let two = || vec![address("10.0.0.2:80"), address("10.0.0.3:80")];
    assert_eq!(hash(service(two(), h1, "key", "abc"), None), one);
    let dns = vec![EndpointTarget::Dns {
        host: "a.example.com".into(),
        port: 80,
    }];
    let others = [
        hash(service(two(), h1, "key", "abc"), Some(ProblemKind::NotReady)),
        hash(service(two(), h1, "another key", "abc"), None),
        hash(service(two(), h1, "key", "abd"), None),
        hash(service(two(), Protocol::H2c, "key", "abc"), None),
        hash(service(dns, h1, "key", "abc"), None),
    ];
    assert!(!others.contains(&one), "{others:?}");
    // The same on every machine and in every version with this recipe.
    assert_eq!((RECIPE, format!("{one:016x}").as_str()), (1, "78f1c58d07d12977"));
}

fn name() -> ObjectName {
    ObjectName::new("d", "hello")
}

fn served(generation: i64, hash: u64) -> Served {
    Served {
        uid: "u".into(),
        generation,
        hash,
    }
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

/// A book of a leader with this replica, which is ready.
fn book(start: Instant) -> AckBook {
    let mut book = AckBook::default();
    book.serve(&name(), served(2, 20), start);
    book.ready(&names(&["b"]), start);
    book.begin(start);
    book
}

fn waiting(late: &[&str], until: Option<Instant>) -> Verdict {
    Verdict::Waiting {
        late: late.iter().map(|name| (*name).to_owned()).collect(),
        until,
    }
}

#[test]
fn a_ready_replica_is_waited_for_and_named_when_it_is_late() {
    let start = Instant::now();
    let mut book = book(start);
    assert_eq!(book.verdict(&name(), start), waiting(&[], Some(start + LATE)));
    assert_eq!(book.verdict(&name(), start + LATE), waiting(&["b"], None));
    // One that comes later has its own time.
    let later = start + LATE;
    book.ready(&names(&["b", "c"]), later);
    assert_eq!(book.verdict(&name(), later), waiting(&["b"], Some(later + LATE)));

    book.joined(1, "b", RECIPE);
    assert_eq!(book.acknowledged(1, "b", vec![served(2, 20)], &[]), [name()]);
    assert_eq!(book.verdict(&name(), later), waiting(&[], Some(later + LATE)));
    // What is not ready does not count.
    book.ready(&names(&["b"]), later);
    assert_eq!(book.verdict(&name(), later), Verdict::Served);
    book.end();
    assert_eq!(book.verdict(&name(), later), waiting(&[], None));
}

#[test]
fn only_the_same_uid_generation_and_hash_count() {
    let start = Instant::now();
    let mut book = book(start);
    book.joined(1, "b", RECIPE);
    let other_uid = Served {
        uid: "v".into(),
        ..served(2, 20)
    };
    for other in [served(1, 20), served(2, 21), other_uid] {
        book.acknowledged(1, "b", vec![other], &[]);
        assert_ne!(book.verdict(&name(), start), Verdict::Served);
    }
    book.acknowledged(1, "b", vec![served(2, 20)], &[]);
    assert_eq!(book.verdict(&name(), start), Verdict::Served);
    book.acknowledged(1, "b", vec![], &["u".to_owned()]);
    assert_ne!(book.verdict(&name(), start), Verdict::Served);
    // A replica that is ahead is not late: this one is.
    book.acknowledged(1, "b", vec![served(3, 30)], &[]);
    assert_eq!(book.verdict(&name(), start + LATE), waiting(&[], None));
}

#[test]
fn a_new_connection_begins_with_nothing_and_an_old_one_says_nothing_more() {
    let start = Instant::now();
    let mut book = book(start);
    book.joined(1, "b", RECIPE);
    book.acknowledged(1, "b", vec![served(2, 20)], &[]);
    book.joined(2, "b", RECIPE);
    assert_ne!(book.verdict(&name(), start), Verdict::Served);
    assert!(book.acknowledged(1, "b", vec![served(2, 20)], &[]).is_empty());
    assert_ne!(book.verdict(&name(), start), Verdict::Served);
    // The end of the old one comes late.
    book.acknowledged(2, "b", vec![served(2, 20)], &[]);
    book.left(1, "b");
    assert_eq!(book.verdict(&name(), start), Verdict::Served);
    book.left(2, "b");
    assert_ne!(book.verdict(&name(), start), Verdict::Served);
}

#[test]
fn hashes_of_another_recipe_are_not_compared() {
    let start = Instant::now();
    let mut book = book(start);
    book.joined(1, "b", RECIPE + 1);
    book.acknowledged(1, "b", vec![served(1, 20)], &[]);
    assert_ne!(book.verdict(&name(), start), Verdict::Served);
    book.acknowledged(1, "b", vec![served(2, 99)], &[]);
    assert_eq!(book.verdict(&name(), start), Verdict::Served);
}
