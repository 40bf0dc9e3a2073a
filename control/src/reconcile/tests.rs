//! Over a source in memory. The text of a file is the domain; "bad …" is a mistake.

use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{Snapshot, SnapshotPublisher, SnapshotReader, test_util};
use tokio::sync::mpsc;

use super::*;
use crate::release::{HistoryHandle, Override};
use crate::source::ObjectKey;

pub(super) fn settings(domain: &str) -> Settings {
    Settings {
        domain: domain.to_owned(),
        ..test_util::settings()
    }
}

/// What the text of a test means.
fn yaml(text: &str) -> String {
    if text.contains("services:") {
        return text.to_owned();
    }
    if let Some(mistakes) = text.trim().strip_prefix("bad ") {
        return mistakes.split(' ').map(|key| format!("{key}: 1\n")).collect();
    }
    if text.trim() == "panic" {
        return "services: [{name: $PANIC}]".replace("$PANIC", "\"${PANIC}\"");
    }
    let (domain, max) = text.trim().split_once(' ').unwrap_or_else(|| (text.trim(), "64"));
    // White space around is another text with the same meaning.
    format!("domain: {domain}\nprocesses: {{max: {max}}}\n# {text:?}\n")
}

fn environment() -> Environment {
    Box::new(|name| match name {
        "PANIC" => panic!("as asked"),
        _ => None,
    })
}

/// What is on "disk", and what was last read of it.
struct Memory {
    disk: Arc<Mutex<Result<String, SourceError>>>,
    read: Option<String>,
    changes: mpsc::UnboundedReceiver<Change>,
}

impl Source for Memory {
    async fn changed(&mut self) -> Change {
        match self.changes.recv().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }

    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>> {
        let text = self.disk.lock().clone().map_err(|error| vec![error])?;
        if self.read.as_ref() == Some(&text) {
            return Ok(vec![]);
        }
        let key = ObjectKey::new(0, Path::new("sluice.yaml"));
        let events = vec![Event::Apply(key, yaml(&text).into())];
        self.read = Some(text);
        Ok(events)
    }
}

/// What happened, in order.
#[derive(Clone)]
struct Seen {
    publisher: Arc<Mutex<SnapshotPublisher>>,
    reader: SnapshotReader,
    log: Arc<Mutex<Vec<String>>>,
    refuse: Arc<Mutex<Option<String>>>,
    /// What was wrong with the last one.
    found: Arc<Mutex<Vec<String>>>,
}

impl ChangeSink for Seen {
    fn prepare(&mut self, next: &Settings, _: &[ListenerReference]) -> Result<(), Vec<String>> {
        if let Some(refusal) = self.refuse.lock().clone() {
            return Err(vec![refusal]);
        }
        self.say(format!("prepare {}", next.domain));
        Ok(())
    }

    fn publish(&mut self, delta: &Delta) -> Result<Generation, String> {
        let mut publisher = self.publisher.lock();
        let edited = self.reader.load().edit(delta, |_| ());
        let (published, _) = publisher.publish(edited.map_err(|e| e.to_string())?);
        self.say(format!("published {}", published.generation));
        Ok(published.generation)
    }

    fn scale(&mut self, plan: &PlanDelta) {
        self.say(format!("scale {}", plan.processes.max));
    }

    fn reread(&mut self) {
        self.say("reread".to_owned());
    }

    fn outcome(&mut self, outcome: ReloadOutcome, found: &[Diagnostic]) {
        *self.found.lock() = found.iter().map(|one| one.message.clone()).collect();
        self.say(format!("{outcome:?}"));
    }
}

impl Seen {
    fn new(first: &Settings) -> Self {
        let (publisher, reader) = SnapshotPublisher::new(Snapshot::empty(Arc::new(first.clone())));
        Self {
            publisher: Arc::new(Mutex::new(publisher)),
            reader,
            log: Arc::default(),
            refuse: Arc::default(),
            found: Arc::default(),
        }
    }

    fn say(&self, what: String) {
        self.log.lock().push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }
}

/// Nobody edits, and nothing is kept.
fn recorder() -> Recorder {
    let (_, edits) = HistoryHandle::new();
    Recorder::new(edits, None, || 0)
}

struct Fixture {
    reconciler: Reconciler<Memory, Seen>,
    disk: Arc<Mutex<Result<String, SourceError>>>,
    changes: mpsc::UnboundedSender<Change>,
    reader: SnapshotReader,
    seen: Seen,
}

fn memory(text: &str) -> (Memory, mpsc::UnboundedSender<Change>) {
    let (sender, changes) = mpsc::unbounded_channel();
    let disk = Arc::new(Mutex::new(Ok(text.to_owned())));
    let read = None;
    (Memory { disk, read, changes }, sender)
}

fn first(source: Memory) -> Result<Loaded<Memory>, LoadError> {
    Loaded::first(
        source,
        environment(),
        Defaults::default(),
        |_, _| {},
        |_| Ok(Histories::default()),
    )
}

fn start(text: &str) -> Fixture {
    let (source, changes) = memory(text);
    let disk = Arc::clone(&source.disk);
    let loaded = first(source).unwrap();
    let mut seen = Seen::new(&loaded.delta().settings);
    let generation = seen.publish(loaded.delta()).unwrap();
    let reader = seen.reader.clone();
    let reconciler = loaded.attach(seen.clone(), generation, recorder());
    Fixture {
        reconciler,
        disk,
        changes,
        reader,
        seen,
    }
}

impl Fixture {
    fn write(&mut self, text: &str) -> Option<ReloadOutcome> {
        *self.disk.lock() = Ok(text.to_owned());
        self.step(Change::Event)
    }

    fn step(&mut self, change: Change) -> Option<ReloadOutcome> {
        match self.reconciler.step(change) {
            LookOutcome::Done(outcome) => Some(outcome),
            LookOutcome::Nothing => None,
            LookOutcome::Half => panic!("waits for more"),
        }
    }

    fn domain(&self) -> String {
        self.reader.load().settings().domain.clone()
    }
}

#[test]
fn first_comes_first() {
    let fixture = start("one");
    assert_eq!(
        fixture.seen.take(),
        ["published 1", "scale 64", "Applied(Generation(1))"]
    );
    assert_eq!(fixture.domain(), "one");
}

#[test]
fn what_is_wrong_is_told_until_it_is_right() {
    let mut fixture = start("one");
    let seen = fixture.seen.clone();
    let found = || seen.found.lock().clone();
    assert_eq!(found(), [""; 0]);
    fixture.write("bad apple pear");
    assert_eq!(found(), ["unknown key 'apple'", "unknown key 'pear'"]);
    // An event without news.
    fixture.step(Change::Complete);
    assert_eq!(found().len(), 2);
    let unreadable = SourceError::NotAFile("sluice.yaml".into());
    *fixture.disk.lock() = Err(unreadable.clone());
    fixture.step(Change::Event);
    assert_eq!(found(), [unreadable.to_string()]);
    fixture.write("bad apple pear");
    assert_eq!(found().len(), 2, "as before it could not be read");
    *seen.refuse.lock() = Some("taken".to_owned());
    fixture.write("two");
    assert_eq!(found(), ["taken"]);
    *seen.refuse.lock() = None;
    fixture.write("three");
    assert_eq!(found(), [""; 0]);
}

#[test]
fn without_a_first_there_is_no_start() {
    let (source, _changes) = memory("bad apple pear");
    match first(source) {
        Err(LoadError::Mistakes(mistakes)) => assert_eq!(mistakes.errors(), 2),
        other => panic!("{other:?}"),
    }
    let (source, _changes) = memory("");
    let missing = SourceError::Missing("sluice.yaml".into());
    *source.disk.lock() = Err(missing.clone());
    match first(source) {
        Err(LoadError::Source(errors)) => assert_eq!(errors, [missing]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_is_prepared_published_applied() {
    let mut fixture = start("one");
    fixture.seen.take();
    assert_eq!(fixture.write("two"), Some(ReloadOutcome::Applied(Generation(2))));
    assert_eq!(
        fixture.seen.take(),
        ["prepare two", "published 2", "scale 64", "Applied(Generation(2))"]
    );
    // Only the plan differs: a change all the same.
    assert_eq!(
        fixture.write("two 7"),
        Some(ReloadOutcome::Applied(Generation(3)))
    );
    assert_eq!(
        fixture.seen.take(),
        ["published 3", "scale 7", "Applied(Generation(3))"]
    );
}

#[test]
fn equal_content_publishes_nothing() {
    let mut fixture = start("one");
    let first = fixture.reader.load();
    fixture.seen.take();
    // Equal text; equal once compiled; a look without cause.
    assert_eq!(fixture.write("one"), Some(ReloadOutcome::Unchanged));
    assert_eq!(fixture.write("  one\n"), Some(ReloadOutcome::Unchanged));
    assert_eq!(fixture.step(Change::Poll), None);
    assert_eq!(fixture.seen.take(), ["Unchanged", "Unchanged"]);
    assert_eq!(fixture.step(Change::Reload), Some(ReloadOutcome::Unchanged));
    assert_eq!(fixture.seen.take(), ["reread", "Unchanged"]);
    assert!(Arc::ptr_eq(&first, &fixture.reader.load()));
}

#[test]
fn bad_input_keeps_the_last_good() {
    let mut fixture = start("one");
    let first = fixture.reader.load();
    fixture.seen.take();
    assert_eq!(fixture.write("bad apple pear"), Some(ReloadOutcome::Rejected(2)));
    // The same again is no news; asked for, it is looked into again.
    assert_eq!(fixture.step(Change::Event), Some(ReloadOutcome::Unchanged));
    assert_eq!(fixture.step(Change::Reload), Some(ReloadOutcome::Rejected(2)));
    assert_eq!(fixture.write("panic"), Some(ReloadOutcome::Rejected(1)));
    assert!(Arc::ptr_eq(&first, &fixture.reader.load()));
    assert!(fixture.seen.take().iter().all(|s| !s.starts_with("prepare")));

    assert_eq!(fixture.write("one"), Some(ReloadOutcome::Unchanged));
    assert_eq!(fixture.write("two"), Some(ReloadOutcome::Applied(Generation(2))));
}

#[test]
fn what_cannot_be_prepared_is_not_published() {
    let mut fixture = start("one");
    *fixture.seen.refuse.lock() = Some("a.crt: no such file".to_owned());
    assert_eq!(fixture.write("two"), Some(ReloadOutcome::Rejected(1)));
    assert_eq!(fixture.domain(), "one");
    *fixture.seen.refuse.lock() = None;
    assert_eq!(
        fixture.step(Change::Reload),
        Some(ReloadOutcome::Applied(Generation(2)))
    );
}

#[test]
fn a_file_that_is_gone_keeps_the_last_good() {
    let mut fixture = start("one");
    *fixture.disk.lock() = Err(SourceError::Missing("sluice.yaml".into()));
    let rejected = Some(ReloadOutcome::Rejected(1));
    assert_eq!(fixture.step(Change::Poll), rejected);
    assert_eq!(fixture.step(Change::Poll), None);
    assert_eq!(fixture.step(Change::Event), rejected);
    assert_eq!(fixture.domain(), "one");
    assert_eq!(fixture.write("one"), Some(ReloadOutcome::Unchanged));
}

#[test]
fn at_most_two_snapshots_live() {
    let mut fixture = start("domain-0");
    let mut published: Vec<Weak<Snapshot>> = vec![Arc::downgrade(&fixture.reader.load())];
    for n in 1..50 {
        // A request under way keeps the one it read.
        let held = fixture.reader.load();
        fixture.write(&format!("domain-{n}")).unwrap();
        published.push(Arc::downgrade(&fixture.reader.load()));
        let alive = published.iter().filter(|s| s.strong_count() > 0).count();
        assert_eq!(alive, 2);
        drop(held);
        let alive = published.iter().filter(|s| s.strong_count() > 0).count();
        assert_eq!(alive, 1);
    }
}

#[tokio::test]
async fn it_follows_its_source() {
    let Fixture {
        reconciler,
        disk,
        changes,
        reader,
        seen: _seen,
    } = start("one");
    let running = tokio::spawn(reconciler.run());
    for text in ["two", "bad apple", "three"] {
        *disk.lock() = Ok(text.to_owned());
        changes.send(Change::Event).unwrap();
        if text.starts_with("bad") {
            continue;
        }
        let seen = async {
            while reader.load().settings().domain != text {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen)
            .await
            .expect("it is served");
    }
    running.abort();
}

#[test]
fn what_may_be_half_of_a_change_waits_for_the_other_half() {
    let mut fixture = start("one");
    let write = |fixture: &Fixture, text: &str| *fixture.disk.lock() = Ok(text.to_owned());
    // Nothing is taken away: it counts as soon as the file is complete.
    write(&fixture, "two");
    let applied = LookOutcome::Done(ReloadOutcome::Applied(Generation(2)));
    assert_eq!(fixture.reconciler.step(Change::Complete), applied);
    // A mistake may be one only until the rest of the change is there.
    fixture.seen.take();
    write(&fixture, "bad apple");
    assert_eq!(fixture.reconciler.step(Change::Complete), LookOutcome::Half);
    assert_eq!(fixture.seen.take(), [""; 0]);
    assert_eq!(fixture.step(Change::Event), Some(ReloadOutcome::Rejected(1)));
}

const TWO: &str = "services:
  - name: greeter
    revisions:
      - {name: greeter-v1, endpoints: [127.0.0.1:9001]}
      - {name: greeter-v2, endpoints: [127.0.0.1:9002]}
";

fn shares(fixture: &Fixture) -> Vec<(String, u32)> {
    let table = fixture.reader.load();
    let service = Arc::clone(table.services()[0]);
    let targets = service.main.split.targets().iter();
    let targets = targets.map(|target| (target.revision.name().to_owned(), target.percent.hundredths()));
    targets.filter(|(_, percent)| *percent > 0).collect()
}

/// `rollback` to this revision.
fn pin(revision: &str) -> HistoryEdit {
    let pinned = Some(revision.to_owned());
    Box::new(move |release| {
        let mut history = (*release.history).clone();
        history.over = Some(Override {
            declared: release.digest,
            since: 7,
            pinned,
            paused: false,
        });
        Ok(history)
    })
}

/// An edit of a history needs no sound files: who rolls back has other worries.
#[test]
fn a_history_is_published_while_files_have_a_mistake() {
    let mut fixture = start(TWO);
    let greeter = ServiceId::parse("default", "greeter").unwrap();
    assert_eq!(shares(&fixture), [("greeter-v2".to_owned(), 10_000)]);
    let broken = TWO.replace("greeter-v2,", "greeter-v2, prot: x,");
    assert_eq!(fixture.write(&broken), Some(ReloadOutcome::Rejected(1)));
    fixture.reconciler.edit(&greeter, pin("greeter-v1")).unwrap();
    assert_eq!(shares(&fixture), [("greeter-v1".to_owned(), 10_000)]);
    // The same again is nothing new.
    fixture.seen.take();
    fixture.reconciler.edit(&greeter, pin("greeter-v1")).unwrap();
    assert!(fixture.seen.take().is_empty());
    // Files that say the same leave the override, and others end it.
    assert_eq!(
        fixture.write(&format!("{TWO}# again\n")),
        Some(ReloadOutcome::Unchanged)
    );
    assert_eq!(shares(&fixture), [("greeter-v1".to_owned(), 10_000)]);
    let other = TWO.replace("9002", "9003");
    assert!(matches!(fixture.write(&other), Some(ReloadOutcome::Applied(_))));
    assert_eq!(shares(&fixture), [("greeter-v2".to_owned(), 10_000)]);
    assert!(
        fixture
            .reconciler
            .sets
            .release(&greeter)
            .unwrap()
            .history
            .is_trivial()
    );
}

#[test]
fn an_edit_that_cannot_be_says_why() {
    let mut fixture = start(TWO);
    let other = ServiceId::parse("default", "other").unwrap();
    let error = fixture.reconciler.edit(&other, pin("x")).unwrap_err().to_string();
    assert_eq!(error, "no service 'default/other' is served from files");
    let greeter = ServiceId::parse("default", "greeter").unwrap();
    let refuse: HistoryEdit = Box::new(|_| Err(EditError("no".to_owned())));
    assert_eq!(
        fixture.reconciler.edit(&greeter, refuse),
        Err(EditError("no".to_owned()))
    );
}
