//! Property tests: an edited table equals a table that was built from nothing.

use proptest::prelude::*;

use super::*;
use crate::name::Tag;
use crate::revision::Backend;
use crate::route::{HostClaim, HttpOption, RequestView, Rule, Visibility};
use crate::split::{Percent, TrafficSplit, TrafficTarget};
use crate::table::HostPattern;
use crate::test_util;

struct Get;

impl RequestView for Get {
    fn method(&self) -> &str {
        "GET"
    }
    fn path(&self) -> &str {
        "/"
    }
    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
}

fn settings() -> Arc<Settings> {
    Arc::new(test_util::settings())
}

/// From this number on services list [`shared`] besides their own revision.
const SHARES: usize = 8;

/// A revision that several services list, alike.
fn shared() -> Arc<RevisionSpec> {
    Arc::new(RevisionSpec {
        id: RevisionId::parse("default", "shared").expect("a name"),
        service: ServiceId::parse("default", "s8").expect("a name"),
        backend: Backend::Managed,
        settings: Arc::new(test_util::revision_settings()),
    })
}

/// Service `n` with a revision of its own, at these hosts.
fn service(n: usize, hosts: &[String]) -> Arc<Service> {
    let id = ServiceId::parse("default", &format!("s{n}")).expect("a name");
    let revision = RevisionId::parse("default", &format!("s{n}-r")).expect("a name");
    let tag = Tag::parse("t").expect("a tag");
    let spec = RevisionSpec {
        id: revision.clone(),
        service: id.clone(),
        backend: Backend::Managed,
        settings: Arc::new(test_util::revision_settings()),
    };
    let split = TrafficSplit::new(vec![TrafficTarget {
        revision,
        slot: 0,
        percent: Percent::from_hundredths(Percent::WHOLE).expect("a share"),
        tag: Some(tag.clone()),
        append_headers: Arc::default(),
    }]);
    let hosts = hosts.iter().enumerate().map(|(nth, host)| {
        let pattern = HostPattern::parse(host).expect("a host");
        let tag = (nth % 2 == 1).then(|| tag.clone());
        HostClaim {
            pattern,
            rule: 0,
            tag,
        }
    });
    Arc::new(Service {
        id,
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts: hosts.collect(),
        revisions: std::iter::once(Arc::new(spec))
            .chain((n >= SHARES).then(shared))
            .collect(),
        main: Rule {
            visibility: Visibility::External,
            http_option: HttpOption::Enabled,
            routes: vec![],
            split: split.expect("a split"),
        },
        further: Box::default(),
        ingress: None,
    })
}

/// Hosts of lengths around the inline size of a slot; only a few, so that hosts are claimed and released.
fn host(n: u8) -> String {
    let label = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopq";
    let name = format!("{}{}.example", n % 7, &label[..usize::from(n) % 43]);
    if n.is_multiple_of(11) {
        format!("*.{name}")
    } else {
        name
    }
}

/// One change: services with the hosts they claim; a service without hosts is removed.
type Edit = Vec<(usize, Vec<u8>)>;

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let service = (0..12usize, prop::collection::vec(any::<u8>(), 0..5));
    prop::collection::vec(prop::collection::vec(service, 1..5), 1..20)
}

proptest! {
    /// Services claim, move and release hosts; after each change the edited table finds what a table finds that was
    /// built from nothing, and services that the change does not name keep their `Arc`.
    #[test]
    fn edits_give_the_table_that_is_built_from_nothing(edits in edits()) {
        let mut wanted: std::collections::BTreeMap<usize, Arc<Service>> = std::collections::BTreeMap::new();
        let mut table: Snapshot<usize> = Snapshot::empty(settings());
        for (turn, edit) in edits.into_iter().enumerate() {
            let named: std::collections::BTreeMap<usize, Vec<u8>> = edit.into_iter().collect();
            let before = wanted.clone();
            for n in named.keys() {
                wanted.remove(n);
            }
            let mut change = Delta { settings: settings(), services: vec![], removed: vec![] };
            for (n, hosts) in &named {
                let taken = |host: &String| {
                    wanted.values().any(|s| s.hosts.iter().any(|c| c.pattern.to_string() == *host))
                };
                let mut hosts: Vec<String> = hosts.iter().map(|n| host(*n)).collect();
                hosts.sort();
                hosts.dedup();
                hosts.retain(|host| !taken(host));
                if hosts.is_empty() {
                    change.removed.push(ServiceId::parse("default", &format!("s{n}")).expect("a name"));
                } else {
                    let service = service(*n, &hosts);
                    change.services.push(Arc::clone(&service));
                    wanted.insert(*n, service);
                }
            }
            table = table.edit(&change, |_| turn).expect("fits");
            let mut fresh: Snapshot<usize> = Snapshot::empty(settings());
            let all = Delta { settings: settings(), services: wanted.values().cloned().collect(), removed: vec![] };
            fresh = fresh.edit(&all, |_| 0).expect("fits");
            prop_assert!(table.same_content(&fresh));
            prop_assert_eq!(table.table().len(), fresh.table().len());
            prop_assert_eq!(table.table().len(), table.table().hosts().count());
            for n in 0..=255u8 {
                let host = host(n);
                let host = host.strip_prefix("*.").map_or_else(|| host.clone(), |rest| format!("x.{rest}"));
                let find = |table: &Snapshot<usize>| {
                    let found = table.table().find(Visibility::External, &host, &Get, None).ok()?;
                    Some((found.service.id.clone(), found.tagged.is_some()))
                };
                prop_assert_eq!(find(&table), find(&fresh), "{}", host);
            }
            let mut sharing = wanted.range(SHARES..).map(|(_, service)| service);
            match table.revision(&shared().id) {
                Some((entry, slot)) => {
                    prop_assert!(slot == 1 && sharing.any(|service| Arc::ptr_eq(service, &entry.service)));
                    let current = table.service(&entry.service.id).expect("is in it");
                    prop_assert_eq!(entry.live, current.live);
                }
                None => prop_assert!(sharing.next().is_none()),
            }
            let ids: std::collections::BTreeSet<_> = table.revisions().iter().map(|spec| spec.id.clone()).collect();
            prop_assert_eq!((ids.len(), table.slots().count()), (table.revision_count(), table.revision_count()));
            for (n, service) in &wanted {
                let entry = table.service(&service.id).expect("is in it");
                let (by_revision, slot) = table.revision(&service.revisions[0].id).expect("is in it");
                prop_assert!(Arc::ptr_eq(&by_revision.service, &entry.service) && slot == 0);
                if !named.contains_key(n) {
                    prop_assert!(before.get(n).is_some_and(|was| Arc::ptr_eq(was, &entry.service)));
                }
                prop_assert!(named.contains_key(n) == (entry.live == turn));
            }
        }
    }
}

#[test]
fn what_two_services_claim_is_refused() {
    let table: Snapshot = Snapshot::empty(settings());
    let one = service(1, &["a.example".to_owned()]);
    let two = service(2, &["a.example".to_owned()]);
    let change = |services| Delta {
        settings: settings(),
        services,
        removed: vec![],
    };
    let refused = table.edit(&change(vec![Arc::clone(&one), two]), |_| ());
    assert!(matches!(
        refused,
        Err(SnapshotError::Table(TableError::Claimed(..)))
    ));
    let table = table.edit(&change(vec![Arc::clone(&one)]), |_| ()).expect("fits");
    let twice = table.edit(&change(vec![Arc::clone(&one), one]), |_| ());
    assert!(twice.is_err());
}

#[test]
fn two_services_list_one_revision_alike_or_not_at_all() {
    let change = |services| Delta {
        settings: settings(),
        services,
        removed: vec![],
    };
    let host = |name: &str| vec![name.to_owned()];
    let one = service(SHARES, &host("a"));
    let mut other = Service::clone(&service(SHARES + 1, &host("b")));
    let table: Snapshot = Snapshot::empty(settings());
    let both = change(vec![Arc::clone(&one), Arc::new(other.clone())]);
    assert_eq!(table.edit(&both, |_| ()).expect("fits").revision_count(), 3);
    Arc::make_mut(&mut other.revisions[1]).container_concurrency = Some(1);
    let refused = table.edit(&change(vec![one, Arc::new(other)]), |_| ());
    assert!(matches!(refused, Err(SnapshotError::RepeatedRevision(_))));
}

#[test]
fn changes_are_found_by_comparing() {
    let with = |services| {
        let change = Delta {
            settings: settings(),
            services,
            removed: vec![],
        };
        let empty: Snapshot = Snapshot::empty(settings());
        empty.edit(&change, |_| ()).expect("fits")
    };
    let host = |name: &str| vec![name.to_owned()];
    let now = with(vec![service(1, &host("a")), service(2, &host("b"))]);
    let next = with(vec![service(2, &host("b")), service(3, &host("a"))]);
    let change = Delta::between(&now, &next);
    assert_eq!(change.services.len(), 1);
    assert_eq!(change.removed.len(), 1);
    assert!(!change.is_empty(&now) && Delta::between(&now, &now).is_empty(&now));
    assert!(now.edit(&change, |_| ()).expect("fits").same_content(&next));
}
