//! Property tests: incremental compilation equals compilation from nothing; policies; the cost of a change.

use std::path::Path;

use proptest::prelude::*;
use sluice_model::{RevisionId, Snapshot};

use super::*;
use crate::compile::load;
use crate::plan::Plan;

pub(super) fn key(n: usize) -> ObjectKey {
    ObjectKey::new(0, Path::new(&format!("f{n}.yaml")))
}

pub(super) fn no_env(_: &str) -> Option<String> {
    None
}

/// An index with the Snapshot and the plan that its steps lead to.
pub(super) struct Served {
    pub(super) index: Index,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) plan: Option<Plan>,
}

impl Served {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            index: Index::new(policy),
            snapshot: None,
            plan: None,
        }
    }

    pub(super) fn apply(&mut self, n: usize, content: Option<&str>) {
        let event = match content {
            Some(content) => Event::Apply(key(n), content.into()),
            None => Event::Delete(key(n)),
        };
        self.index.apply([event], &no_env);
        self.publish();
    }

    pub(super) fn publish(&mut self) {
        let Some(step) = self.index.propose() else { return };
        let snapshot = self.snapshot.take();
        let snapshot = snapshot.unwrap_or_else(|| Snapshot::empty(Arc::clone(&step.delta.settings)));
        self.snapshot = Some(snapshot.edit(&step.delta, |_| ()).expect("fits"));
        let plan = self.plan.get_or_insert_with(|| Plan {
            revisions: BTreeMap::new(),
            processes: step.plan.processes.clone(),
            drain: step.plan.drain,
        });
        plan.edit(&step.plan);
        self.index.commit(step, 0);
    }

    fn hosts(&self) -> Vec<String> {
        let hosts = self.snapshot.iter().flat_map(|s| s.table().hosts());
        let mut hosts: Vec<String> = hosts
            .map(|(host, s, _)| format!("{host} -> {}", s.id.name()))
            .collect();
        hosts.sort();
        hosts
    }
}

pub(super) fn service() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c", "dup", "Bad_Name"]);
    let namespace = prop::sample::select(vec!["", "namespace: n2, "]);
    let visibility = prop::sample::select(vec!["", "", "visibility: internal, "]);
    let hosts = prop::collection::vec(
        prop::sample::select(vec![
            "x.example",
            "y.example",
            "t-x.example",
            "'*.example'",
            "a.default.localhost",
            "a.default.other",
        ]),
        0..3,
    );
    let body = prop::sample::select(vec![
        "endpoints: ['127.0.0.1:1']",
        "endpoints: ['127.0.0.1:2']",
        "process: {command: [x]}",
        "process: {command: [x]}, autoscaling: {minScale: 3}",
        "revisions: [{name: r1, endpoints: ['127.0.0.1:1']}, {name: r2, process: {command: [y]}}]",
        "revisions: [{name: r1, endpoints: ['127.0.0.1:1']}], traffic: [{revisionName: r1, percent: 100, tag: t}]",
        "revisions: [{name: r3, process: {command: [y]}}], traffic: [{revisionName: r1, percent: 100}]",
        "revisions: [{name: r4, endpoints: ['127.0.0.1:1']}], traffic: [{latestRevision: true, percent: 50}]",
        "endpoint: ['127.0.0.1:1']",
    ]);
    (name, namespace, visibility, hosts, body).prop_map(|(name, namespace, visibility, mut hosts, body)| {
        hosts.dedup();
        format!(
            "  - {{name: {name}, {namespace}{visibility}hosts: [{}], {body}}}\n",
            hosts.join(", ")
        )
    })
}

/// One file: some services, sometimes with top-level keys, sometimes unreadable.
pub(super) fn content() -> impl Strategy<Value = String> {
    let top = prop::sample::select(vec![
        "",
        "",
        "",
        "",
        "domain: other\n",
        "domain: localhost\n",
        "listeners: [{address: '127.0.0.1:0', visibility: internal}]\n",
        "autoscaling: {maxScaleLimit: 2}\n",
        "autoscaling: {containerConcurrencyTargetDefault: 7}\n",
        "processes: {max: 3}\n",
        "servces: []\n",
        "domian: x\n",
        "domain: [\n",
        "- list\n",
    ]);
    (top, prop::collection::vec(service(), 0..3)).prop_map(|(top, services)| {
        let list = if services.is_empty() {
            String::new()
        } else {
            format!("services:\n{}", services.concat())
        };
        format!("{top}{list}")
    })
}

proptest! {
    // A hundred objects in each case.
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// The first load on several threads, which compile objects that turn out to clash, and by settings that turn out
    /// to change.
    #[test]
    fn many_at_once_are_the_same_as_one_by_one(
        contents in prop::collection::vec((content(), prop::bool::weighted(0.9)), 70..140),
    ) {
        let mut at_once = Index::new(Policy::AllOrNothing);
        let mut one_by_one = Served::new(Policy::AllOrNothing);
        let mut events = vec![Event::Init];
        for (n, (content, is_unique)) in contents.into_iter().enumerate() {
            let content = match is_unique {
                // Indented, so that the heuristic misses the top-level keys.
                true => format!(" services: [{{name: s-{n}, endpoints: ['127.0.0.1:1']}}]\n{}", match n % 50 {
                    7 => format!(" domain: d-{n}\n"),
                    _ => String::new(),
                }),
                false => content,
            };
            events.push(Event::Apply(key(n), content.as_str().into()));
            one_by_one.index.apply([Event::Apply(key(n), content.as_str().into())], &no_env);
        }
        events.push(Event::InitDone);
        at_once.apply_on(3, events, &no_env, &mut |_, _| {});
        let one_by_one = &mut one_by_one.index;
        prop_assert_eq!(at_once.diagnostics().to_string(), one_by_one.diagnostics().to_string());
        prop_assert_eq!(at_once.errors(), one_by_one.errors());
        for index in [&mut at_once, &mut *one_by_one] {
            // Publishes all that can be published, with or without errors.
            index.policy = Policy::PerObject;
        }
        let served = [&at_once, &*one_by_one].map(|index| {
            let step = index.propose().expect("object by object");
            let empty = Snapshot::empty(Arc::clone(&step.delta.settings));
            (empty.edit(&step.delta, |_| ()).expect("fits"), step.plan)
        });
        prop_assert!(served[0].0.same_content(&served[1].0));
        prop_assert_eq!(&served[0].1, &served[1].1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Edits, deletions and reverts, one by one or several at once: after each step the diagnostics are those of
    /// compiling everything from nothing, in the same order, and where there are no errors the table and the plan are
    /// equal too.
    #[test]
    fn any_sequence_of_edits_is_compiling_from_nothing(
        edits in prop::collection::vec((0..5usize, prop::option::weighted(0.8, content()), any::<bool>()), 1..14),
        reverts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut steps: Vec<(usize, Option<String>, bool)> = edits;
        for revert in reverts {
            let again = steps[revert.index(steps.len())].clone();
            steps.push(again);
        }
        let mut served = Served::new(Policy::AllOrNothing);
        let mut files: BTreeMap<usize, String> = BTreeMap::new();
        let mut batch = Vec::new();
        for (n, content, more) in steps {
            batch.push(match &content {
                Some(content) => Event::Apply(key(n), content.as_str().into()),
                None => Event::Delete(key(n)),
            });
            match content {
                Some(content) => _ = files.insert(n, content),
                None => _ = files.remove(&n),
            }
            if more {
                continue;
            }
            served.index.apply(std::mem::take(&mut batch), &no_env);
            let all: Vec<SourceFile> = files
                .iter()
                .map(|(n, text)| SourceFile { path: key(*n).path().to_owned(), text: text.clone() })
                .collect();
            match load(&all, &no_env) {
                Err(told) => {
                    prop_assert_eq!(served.index.diagnostics().to_string(), told.to_string());
                    prop_assert_eq!(served.index.errors() > 0, true);
                    prop_assert!(served.index.propose().is_none());
                }
                Ok(fresh) => {
                    prop_assert_eq!(served.index.diagnostics().to_string(), fresh.warnings.to_string());
                    served.publish();
                    let snapshot = served.snapshot.as_ref().expect("published");
                    prop_assert!(snapshot.same_content(&fresh.snapshot));
                    prop_assert_eq!(served.plan.as_ref(), Some(&fresh.plan));
                    prop_assert_eq!(served.index.services(), fresh.snapshot.service_count());
                    prop_assert_eq!(served.index.revisions(), fresh.snapshot.revision_count());
                }
            }
        }
    }

    /// Object by object: whatever errors some objects have, all others are served as they are, and the table never
    /// has two owners of one host.
    #[test]
    fn what_is_right_is_served_whatever_is_wrong(
        edits in prop::collection::vec((0..5usize, prop::option::weighted(0.8, content())), 1..14),
    ) {
        let mut served = Served::new(Policy::PerObject);
        let mut files: BTreeMap<usize, String> = BTreeMap::new();
        for (n, content) in edits {
            served.apply(n, content.as_deref());
            match content {
                Some(content) => _ = files.insert(n, content),
                None => _ = files.remove(&n),
            }
        }
        // After the last error is corrected, no trace of earlier errors is left.
        for n in files.keys().copied().collect::<Vec<_>>() {
            if served.index.diagnostics_of(&key(n)).errors() > 0 || files[&n].starts_with(['d', '-', 's']) {
                served.apply(n, None);
                files.remove(&n);
            }
        }
        let all: Vec<SourceFile> = files
            .iter()
            .map(|(n, text)| SourceFile { path: key(*n).path().to_owned(), text: text.clone() })
            .collect();
        if let Ok(fresh) = load(&all, &no_env) {
            let snapshot = served.snapshot.as_ref().expect("published");
            prop_assert!(snapshot.same_content(&fresh.snapshot));
        }
    }
}

#[test]
fn services_that_did_not_change_are_the_same_ones() {
    let mut served = Served::new(Policy::AllOrNothing);
    let one =
        |name: &str, port: u16| format!("services: [{{name: {name}, endpoints: ['127.0.0.1:{port}']}}]");
    served.apply(0, Some(&one("a", 1)));
    served.apply(1, Some(&one("b", 1)));
    let service = |served: &Served, name: &str| {
        let id = RevisionId::parse("default", &format!("{name}-00001")).expect("a name");
        let snapshot = served.snapshot.as_ref().expect("published");
        Arc::clone(&snapshot.revision(&id).expect("a revision").0.service)
    };
    let (a, b) = (service(&served, "a"), service(&served, "b"));
    served.apply(1, Some(&one("b", 2)));
    assert!(Arc::ptr_eq(&a, &service(&served, "a")));
    assert!(!Arc::ptr_eq(&b, &service(&served, "b")));
    // White space changes the text and not the service.
    served.apply(0, Some(&format!("{}\n", one("a", 1))));
    assert!(Arc::ptr_eq(&a, &service(&served, "a")));
    // A new name that sorts before all others renumbers no service.
    served.apply(2, Some(&one("0", 1)));
    assert!(Arc::ptr_eq(&a, &service(&served, "a")));
}

#[test]
fn a_service_that_moves_between_files_is_one_change_of_nothing() {
    let mut served = Served::new(Policy::AllOrNothing);
    let text = "services: [{name: a, endpoints: ['127.0.0.1:1']}]";
    served.apply(0, Some(text));
    served.apply(1, Some("services: []"));
    let events = [
        Event::Apply(key(0), "services: []".into()),
        Event::Apply(key(1), text.into()),
    ];
    served.index.apply(events, &no_env);
    let step = served.index.propose().expect("nothing is wrong");
    assert!(step.is_empty && !step.takes_away);
    served.index.commit(step, 0);
    served.index.apply([Event::Delete(key(1))], &no_env);
    let step = served.index.propose().expect("nothing is wrong");
    assert!(step.takes_away);
}

#[test]
fn a_list_that_is_read_again_deletes_what_it_has_no_more() {
    let mut served = Served::new(Policy::AllOrNothing);
    served.apply(0, Some("services: [{name: a, endpoints: ['127.0.0.1:1']}]"));
    served.apply(1, Some("services: [{name: b, endpoints: ['127.0.0.1:1']}]"));
    let events = [
        Event::Init,
        Event::Apply(key(1), "services: [{name: b, endpoints: ['127.0.0.1:1']}]".into()),
        Event::InitDone,
    ];
    served.index.apply(events, &no_env);
    served.publish();
    assert_eq!(served.hosts(), ["b.default.localhost -> b"]);
}

#[test]
fn a_broken_object_keeps_its_last_version_and_says_why() {
    let mut served = Served::new(Policy::PerObject);
    let at = |name: &str, host: &str| {
        format!("services: [{{name: {name}, hosts: [{host}], endpoints: ['127.0.0.1:1']}}]")
    };
    served.apply(1, Some(&at("b", "x.example")));
    served.apply(2, Some(&at("c", "z.example")));
    served.apply(1, Some("services: [{name: b, hosts: 7}]"));
    served.apply(2, Some(&at("c", "y.example")));
    assert_eq!(
        served.hosts(),
        [
            "b.default.localhost -> b",
            "c.default.localhost -> c",
            "x.example -> b",
            "y.example -> c"
        ]
    );
    assert!(served.index.diagnostics_of(&key(1)).errors() > 0);
    assert!(served.index.diagnostics_of(&key(2)).is_empty());
    // A host that a broken object still serves is not taken from the broken object.
    served.apply(0, Some(&at("a", "x.example")));
    assert!(served.hosts().contains(&"x.example -> b".to_owned()));
    served.apply(1, Some(&at("b", "w.example")));
    assert!(served.hosts().contains(&"x.example -> a".to_owned()));
    assert!(served.hosts().contains(&"w.example -> b".to_owned()));
}
