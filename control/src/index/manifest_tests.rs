//! Histories of manifests: whatever happens to files and processes, there is one history.

use std::collections::BTreeMap as Map;

use proptest::prelude::*;

use super::tests::{key, no_env};
use super::*;
use crate::release::ServiceHistory;

const STATE: &str = "state: {directory: /nowhere}\nimages: [{match: 'app/*', command: [app]}]\n";

/// One process, with what the state directory has after it.
struct Gateway {
    index: Index,
    disk: Histories,
}

impl Gateway {
    fn start(disk: &Histories, manifest: &str) -> Self {
        let mut index = Index::new(Policy::AllOrNothing);
        let apply = |n, text: &str| Event::Apply(key(n), text.into());
        index.apply([apply(0, STATE), apply(1, manifest)], &no_env);
        index.set_histories(disk.clone(), &no_env);
        let mut gateway = Self {
            index,
            disk: disk.clone(),
        };
        gateway.publish(1);
        gateway
    }

    fn edit(&mut self, manifest: &str, now: u64) {
        self.index.apply([Event::Apply(key(1), manifest.into())], &no_env);
        self.publish(now);
    }

    /// Publishes, and writes as the reconciler does: through JSON.
    fn publish(&mut self, now: u64) {
        let Some(step) = self.index.propose() else { return };
        for change in self.index.commit(step, now) {
            let history = change.release.map(|release| (*release.history).clone());
            match history.filter(|history| !history.is_trivial()) {
                Some(history) => {
                    let json = serde_json::to_vec(&history).expect("JSON");
                    let read: ServiceHistory = serde_json::from_slice(&json).expect("JSON");
                    self.disk.insert(change.service, Arc::new(read));
                }
                None => _ = self.disk.remove(&change.service),
            }
        }
    }

    fn history(&self) -> ServiceHistory {
        let release = self.index.release(&id());
        release
            .map(|release| (*release.history).clone())
            .unwrap_or_default()
    }

    /// The names of the revisions that are served, the latest one last.
    fn names(&self) -> Vec<String> {
        let release = self.index.release(&id()).expect("a release");
        release.revisions.iter().map(|id| id.name().to_owned()).collect()
    }
}

fn id() -> ServiceId {
    ServiceId::parse("default", "greeter").expect("a name")
}

/// A manifest of a template with this content, and a name or none.
fn manifest(name: Option<&str>, content: u32, traffic: &str) -> String {
    let name = name
        .map(|name| format!("metadata: {{name: {name}}}, "))
        .unwrap_or_default();
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: greeter}}\nspec:\n  template: {{{name}spec: {{containers: [{{image: 'app/a', env: [{{name: V, value: '{content}'}}]}}]}}}}\n  traffic: [{traffic}]\n"
    )
}

#[test]
fn a_changed_template_makes_the_next_revision_and_the_old_one_stays() {
    let mut gateway = Gateway::start(&Histories::new(), &manifest(None, 1, ""));
    assert_eq!(gateway.names(), ["greeter-00001"]);
    gateway.edit(&manifest(None, 2, ""), 2);
    assert_eq!(gateway.names(), ["greeter-00001", "greeter-00002"]);
    let history = gateway.history();
    assert_eq!(
        history.settled.as_deref(),
        Some("greeter-00001"),
        "until the new one was ready"
    );
    let created = history
        .revisions
        .iter()
        .map(|kept| (kept.generation, kept.created));
    assert_eq!(created.collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    // By name and tag; and back to a template that was there makes another revision, as in Knative.
    let pinned = "{revisionName: greeter-00001, percent: 100}, {latestRevision: true, percent: 0, tag: next}";
    gateway.edit(&manifest(None, 1, pinned), 3);
    assert_eq!(
        gateway.names(),
        ["greeter-00001", "greeter-00002", "greeter-00003"]
    );
    assert_eq!(gateway.index.diagnostics().errors(), 0);
    // A name that was never there is a mistake, and what was published stays.
    gateway.edit(
        &manifest(None, 1, "{revisionName: greeter-00009, percent: 100}"),
        4,
    );
    let told = gateway.index.diagnostics().to_string();
    assert!(
        told.contains("no revision of this service is named 'greeter-00009'"),
        "{told}"
    );
    assert_eq!(gateway.names().len(), 3);
}

#[test]
fn a_named_template_keeps_its_name_for_what_it_is() {
    let mut gateway = Gateway::start(&Histories::new(), &manifest(Some("greeter-v1"), 1, ""));
    gateway.edit(&manifest(Some("greeter-v2"), 2, ""), 2);
    gateway.edit(&manifest(Some("greeter-v1"), 2, ""), 3);
    let told = gateway.index.diagnostics().to_string();
    assert!(
        told.contains("the template of revision 'greeter-v1' has changed, and its name has not"),
        "{told}"
    );
    // Back to a revision as it was: it is the latest again.
    gateway.edit(&manifest(Some("greeter-v1"), 1, ""), 4);
    assert_eq!(gateway.names(), ["greeter-v2", "greeter-v1"]);
    assert_eq!(gateway.index.diagnostics().errors(), 0);
    gateway.edit(&manifest(None, 1, ""), 5);
    assert_eq!(gateway.names(), ["greeter-v1", "greeter-v2", "greeter-00003"]);
}

#[test]
fn without_a_state_directory_there_is_what_files_list() {
    let mut gateway = Gateway::start(&Histories::new(), &manifest(None, 1, ""));
    gateway.edit(&manifest(None, 2, ""), 2);
    let without = STATE.replace("state: {directory: /nowhere}\n", "");
    gateway
        .index
        .apply([Event::Apply(key(0), without.as_str().into())], &no_env);
    gateway.publish(3);
    assert_eq!(gateway.history(), ServiceHistory::default());
    gateway.edit(&manifest(None, 3, ""), 4);
    assert_eq!(gateway.names(), ["greeter-00001"]);
    gateway.edit(
        &manifest(None, 3, "{revisionName: greeter-00000, percent: 100}"),
        5,
    );
    let told = gateway.index.diagnostics().to_string();
    assert!(
        told.contains("earlier revisions are kept where state.directory is set"),
        "{told}"
    );
}

#[test]
fn an_earlier_revision_that_cannot_run_any_more_is_told_and_left_out() {
    let mut gateway = Gateway::start(&Histories::new(), &manifest(None, 1, ""));
    gateway.edit(&manifest(None, 2, "").replace("app/a", "app/b"), 2);
    let narrow = STATE.replace("app/*", "app/b");
    gateway
        .index
        .apply([Event::Apply(key(0), narrow.as_str().into())], &no_env);
    gateway.publish(3);
    assert_eq!(gateway.names(), ["greeter-00002"]);
    let told = gateway.index.diagnostics();
    assert_eq!((told.errors(), told.warnings()), (0, 1), "{told}");
    assert!(
        told.to_string()
            .contains("the earlier revision 'greeter-00001' is left out"),
        "{told}"
    );
    assert_eq!(gateway.history().settled.as_deref(), Some("greeter-00002"));
    // It is there again with its image.
    gateway.index.apply([Event::Apply(key(0), STATE.into())], &no_env);
    gateway.publish(4);
    assert_eq!(gateway.names(), ["greeter-00001", "greeter-00002"]);
}

#[derive(Debug, Clone)]
enum Act {
    /// A template with a content, and the number of a name or none.
    Edit(Option<u8>, u32),
    /// The same files once more.
    Touch,
    /// A process ends, and another one starts.
    Restart,
    /// The same, and the last write had not reached the disk.
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (prop::option::of(0_u8..3), 0_u32..3).prop_map(|(name, content)| Act::Edit(name, content)),
        1 => Just(Act::Touch),
        1 => Just(Act::Restart),
        1 => Just(Act::Crash),
    ];
    prop::collection::vec(act, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any sequence of template edits, restarts and crashes gives one history: a name stands for one template for ever,
    /// no number is given twice, nothing is lost but what a crash had not written, and the same files change nothing.
    #[test]
    fn there_is_one_history(acts in acts()) {
        let mut text = manifest(None, 0, "");
        let mut gateway = Gateway::start(&Histories::new(), &text);
        let mut before = gateway.disk.clone();
        let mut templates: Map<String, serde_json::Value> = Map::new();
        for (now, act) in (2..).zip(acts) {
            match act {
                Act::Edit(name, content) => {
                    // A named template has its content for ever; another one is refused, which has a test of its own.
                    let name = name.map(|nth| format!("greeter-v{nth}"));
                    let content = if name.is_some() { 7 } else { content };
                    before = gateway.disk.clone();
                    text = manifest(name.as_deref(), content, "");
                    gateway.edit(&text, now);
                }
                Act::Touch => gateway.edit(&text, now),
                Act::Restart => gateway = Gateway::start(&gateway.disk.clone(), &text),
                Act::Crash => {
                    let kept: Vec<String> = names(&before);
                    templates.retain(|name, _| kept.contains(name));
                    gateway = Gateway::start(&before, &text);
                    before = gateway.disk.clone();
                }
            }
            prop_assert_eq!(gateway.index.diagnostics().errors(), 0, "{}", gateway.index.diagnostics());
            let history = gateway.history();
            prop_assert_eq!(names(&gateway.disk), history.revisions.iter().map(|kept| kept.name.clone()).collect::<Vec<_>>());
            for kept in &history.revisions {
                let first = templates.entry(kept.name.clone()).or_insert_with(|| kept.template.clone());
                prop_assert_eq!(&*first, &kept.template, "{}", &kept.name);
                prop_assert!(kept.created > 0);
            }
            for name in templates.keys() {
                prop_assert!(history.revisions.iter().any(|kept| kept.name == *name), "{} is lost", name);
            }
            let mut numbers: Vec<u32> = history.revisions.iter().map(|kept| kept.generation).collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            prop_assert_eq!(numbers.len(), count, "a number is given twice");
            let mut served = gateway.names();
            served.sort();
            let mut all = names(&gateway.disk);
            all.sort();
            prop_assert_eq!(served, all, "every kept revision is served");
            // The same files and the same history change nothing.
            gateway.edit(&text, now);
            prop_assert_eq!(gateway.history(), history);
        }
    }
}

fn names(disk: &Histories) -> Vec<String> {
    let history = disk.get(&id());
    let revisions = history.iter().flat_map(|history| &history.revisions);
    revisions.map(|kept| kept.name.clone()).collect()
}
