//! Property tests: the union has what each set alone would give, without the cluster's claims that files have.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice_model::{HostPattern, Service, Snapshot};

use super::super::tests::{Served, content, key, no_env, service};
use super::*;
use crate::plan::Plan;

/// Both sets with the Snapshot and the plan that their steps lead to.
struct Union {
    sets: Sets,
    snapshot: Snapshot,
    plan: Plan,
}

impl Union {
    fn new() -> Self {
        let mut sets = Sets::default();
        let step = sets.propose(SetId::Files).expect("nothing is wrong");
        let union = Self {
            snapshot: Snapshot::empty(Arc::clone(&step.delta.settings)),
            plan: Plan {
                revisions: BTreeMap::new(),
                processes: step.plan.processes.clone(),
                drain: step.plan.drain,
            },
            sets: Sets::default(),
        };
        sets.commit(SetId::Files, step, 0, &no_env);
        Self { sets, ..union }
    }

    fn apply(&mut self, set: SetId, n: usize, content: Option<&str>) {
        let event = match content {
            Some(content) => Event::Apply(key(n), content.into()),
            None => Event::Delete(key(n)),
        };
        self.sets.apply(set, [event], &no_env);
        for set in [SetId::Files, SetId::Cluster] {
            if let Some(step) = self.sets.propose(set) {
                self.snapshot = self.snapshot.edit(&step.delta, |_| ()).expect("fits");
                self.plan.edit(&step.plan);
                self.sets.commit(set, step, 0, &no_env);
            }
        }
    }

    fn hosts(&self) -> Vec<String> {
        hosts(&self.snapshot)
    }

    fn told(&self, n: usize) -> String {
        self.sets.diagnostics_of(SetId::Cluster, &key(n)).to_string()
    }
}

fn hosts(snapshot: &Snapshot) -> Vec<String> {
    let hosts = snapshot.table().hosts();
    let mut hosts: Vec<String> = hosts
        .map(|(host, service, _)| format!("{host} -> {}", service.id.name()))
        .collect();
    hosts.sort();
    hosts
}

fn at(name: &str, host: &str) -> String {
    format!("services: [{{name: {name}, hosts: [{host}], endpoints: ['127.0.0.1:1']}}]")
}

/// Objects of the cluster: services, sometimes unreadable text.
fn object() -> impl Strategy<Value = String> {
    let whole = prop::collection::vec(service(), 0..3).prop_map(|services| match services.is_empty() {
        true => "services: []\n".to_owned(),
        false => format!("services:\n{}", services.concat()),
    });
    prop_oneof![9 => whole, 1 => Just("- list\n".to_owned())]
}

fn edit() -> impl Strategy<Value = (SetId, usize, Option<String>)> {
    let objects = (0..4usize, prop::option::weighted(0.8, object()));
    let files = (0..3usize, prop::option::weighted(0.8, content()));
    prop_oneof![
        objects.prop_map(|(n, text)| (SetId::Cluster, n, text)),
        files.prop_map(|(n, text)| (SetId::Files, n, text)),
    ]
}

/// The cluster's services without the claims of files, found by a scan of all services.
fn left(cluster: &Snapshot, files: &Snapshot) -> BTreeMap<ServiceId, Service> {
    let taken: Vec<HostPattern> = files.table().hosts().map(|(host, _, _)| host).collect();
    let services = cluster.services().into_iter();
    let services = services.filter(|service| {
        let mut ids = service.revisions.iter().map(|spec| &spec.id);
        files.service(&service.id).is_none() && ids.all(|id| files.revision(id).is_none())
    });
    let services = services.map(|service| {
        let mut service = Service::clone(service);
        service.hosts.retain(|claim| !taken.contains(&claim.pattern));
        (service.id.clone(), service)
    });
    services.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// After any edits of both sets, the union has exactly what files alone give, and what the cluster alone gives
    /// without the claims of files: whatever errors either set has.
    #[test]
    fn neither_set_can_freeze_or_break_the_other(edits in prop::collection::vec(edit(), 1..20)) {
        let mut union = Union::new();
        let (mut files, mut cluster) = (Served::new(Policy::AllOrNothing), Served::new(Policy::PerObject));
        files.publish();
        cluster.publish();
        for (set, n, text) in edits {
            union.apply(set, n, text.as_deref());
            match set {
                SetId::Files => {
                    files.apply(n, text.as_deref());
                    if files.index.errors() == 0 {
                        cluster.index.follow(files.index.top_level.draft(), &no_env);
                        cluster.publish();
                    }
                }
                SetId::Cluster => cluster.apply(n, text.as_deref()),
            }
            let theirs = files.snapshot.as_ref().expect("published");
            let mut expected = left(cluster.snapshot.as_ref().expect("published"), theirs);
            let mut plans = cluster.plan.as_ref().expect("published").revisions.clone();
            plans.retain(|id, _| {
                let mut all = expected.values().flat_map(|service| &service.revisions);
                all.any(|spec| spec.id == *id)
            });
            plans.extend(files.plan.clone().expect("published").revisions);
            let own = theirs.services().into_iter();
            expected.extend(own.map(|service| (service.id.clone(), Service::clone(service))));
            let served = union.snapshot.services().into_iter();
            let served: BTreeMap<_, _> = served.map(|s| (s.id.clone(), Service::clone(s))).collect();
            prop_assert_eq!(served, expected);
            prop_assert_eq!(&union.plan.revisions, &plans);
            prop_assert_eq!(union.snapshot.settings(), theirs.settings());
            prop_assert_eq!(
                union.sets.diagnostics(SetId::Files).to_string(),
                files.index.diagnostics().to_string()
            );
            prop_assert_eq!(union.sets.errors(SetId::Cluster), cluster.index.errors());
        }
    }
}

#[test]
fn a_host_of_the_files_is_theirs_and_the_loser_is_told() {
    let mut union = Union::new();
    union.apply(SetId::Cluster, 0, Some(&at("guest", "x.example")));
    assert!(union.hosts().contains(&"x.example -> guest".to_owned()));
    assert_eq!(union.told(0), "");
    union.apply(SetId::Files, 0, Some(&at("own", "x.example")));
    assert_eq!(
        union.hosts(),
        [
            "guest.default.localhost -> guest",
            "own.default.localhost -> own",
            "x.example -> own"
        ]
    );
    assert_eq!(
        union.told(0),
        "f0.yaml: warning: the host 'x.example' is claimed by service default/own of the configuration files\n  \
         hint: what files claim is theirs: take it from one of them"
    );
    assert_eq!(union.sets.diagnostics(SetId::Cluster).to_string(), union.told(0));
    assert_eq!(union.sets.diagnostics(SetId::Files).to_string(), "");
    // A later claim of the cluster loses too, and a host that files release goes back to the cluster.
    union.apply(SetId::Cluster, 1, Some(&at("other", "y.example")));
    union.apply(SetId::Files, 0, Some(&at("own", "y.example")));
    assert!(union.hosts().contains(&"x.example -> guest".to_owned()));
    assert!(union.hosts().contains(&"y.example -> own".to_owned()));
    assert_eq!(union.told(0), "");
    assert!(union.told(1).contains("'y.example'"));
    union.apply(SetId::Files, 0, None);
    assert!(union.hosts().contains(&"y.example -> other".to_owned()));
}

#[test]
fn a_service_of_the_files_hides_its_namesake_whole() {
    let mut union = Union::new();
    union.apply(SetId::Cluster, 0, Some(&at("web", "x.example")));
    union.apply(SetId::Files, 0, Some(&at("web", "y.example")));
    assert_eq!(
        union.hosts(),
        ["web.default.localhost -> web", "y.example -> web"]
    );
    assert!(union.told(0).contains("the service name 'default/web'"));
    union.apply(SetId::Files, 0, None);
    assert_eq!(
        union.hosts(),
        ["web.default.localhost -> web", "x.example -> web"]
    );
}

#[test]
fn what_is_wrong_with_one_set_holds_up_none_of_the_other() {
    let mut union = Union::new();
    union.apply(SetId::Files, 0, Some(&at("own", "x.example")));
    union.apply(SetId::Cluster, 0, Some("services: [{name: guest, hosts: 7}]"));
    union.apply(SetId::Files, 0, Some(&at("own", "y.example")));
    assert!(union.hosts().contains(&"y.example -> own".to_owned()));
    union.apply(SetId::Files, 0, Some("services: ["));
    assert!(union.sets.errors(SetId::Files) > 0);
    union.apply(SetId::Cluster, 0, Some(&at("guest", "z.example")));
    assert!(union.hosts().contains(&"z.example -> guest".to_owned()));
    // Broken files claim nothing new: they stay at their last version.
    union.apply(
        SetId::Files,
        0,
        Some(&format!("domian: x\n{}", at("own", "z.example"))),
    );
    assert!(union.hosts().contains(&"z.example -> guest".to_owned()));
    assert!(union.hosts().contains(&"y.example -> own".to_owned()));
}

#[test]
fn the_cluster_follows_the_domain_that_files_published() {
    let mut union = Union::new();
    union.apply(SetId::Cluster, 0, Some(&at("guest", "x.example")));
    union.apply(SetId::Files, 0, Some("domain: apps.example\nservices: []\n"));
    assert_eq!(
        union.hosts(),
        ["guest.default.apps.example -> guest", "x.example -> guest"]
    );
    union.apply(SetId::Files, 0, Some("domain: other.example\nservces: []\n"));
    assert!(
        union
            .hosts()
            .contains(&"guest.default.apps.example -> guest".to_owned())
    );
}
