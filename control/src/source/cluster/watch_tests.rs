//! Watches that break, are refused and go on.

use super::*;
use futures_util::stream;

use crate::source::cluster::objects::Revision;

type Item = Result<Event<Secret>, watcher::Error>;

/// How long the whole stream takes.
async fn drained(events: Vec<Item>) -> Duration {
    let began = Instant::now();
    let mut events = Paced::new(stream::iter(events));
    while events.next().await.is_some() {}
    began.elapsed()
}

fn failed_list() -> [Item; 2] {
    [Ok(Event::Init), Err(watcher::Error::NoResourceVersion)]
}

#[test]
fn what_the_api_server_refuses_is_told_apart_from_one_that_is_away() {
    let failed = |code| {
        let status = kube::core::Status::failure("", "").with_code(code);
        is_refusal(&watcher::Error::InitialListFailed(kube::Error::Api(Box::new(
            status,
        ))))
    };
    assert!([400, 403, 404].into_iter().all(failed));
    assert!(![408, 410, 429, 500, 503].into_iter().any(failed));
    assert!(!is_refusal(&watcher::Error::NoResourceVersion));
}

#[test]
fn each_break_of_a_watch_is_told_once_though_nothing_changes_in_between() {
    let (mut broken, start) = (Break::default(), Instant::now());
    let mut failed = |after| broken.failed(start + Duration::from_secs(after));
    assert_eq!(
        [0, 1, 3, 5, 25, 54, 84, 85].map(&mut failed),
        [true, false, false, false, false, false, true, false]
    );
    assert!(broken.succeeded() && !broken.succeeded());
    assert!(broken.failed(start));
}

#[tokio::test(start_paused = true)]
async fn lists_that_fail_again_and_again_are_asked_for_every_two_seconds_at_last() {
    let failing = || (0..40).flat_map(|_| failed_list());
    // Pauses of 0.1, 0.2, 0.4, 0.8 and 1.6 s, then of 2 s each; of any, up to half is left out by chance.
    let took = drained(failing().collect()).await;
    let most = Duration::from_millis(3_100) + MAX_PAUSE * 35;
    assert!((most / 2..=most).contains(&took), "{took:?}");

    let succeeding = (0..40).flat_map(|_| failed_list().into_iter().chain([Ok(Event::InitDone)]));
    let took = drained(succeeding.collect()).await;
    assert!(took <= MIN_PAUSE * 41, "{took:?}");
}

fn refused(code: u16) -> watcher::Error {
    let status = kube::core::Status::failure("", "").with_code(code);
    watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
}

/// The names in each update; `-` before one that is gone.
async fn told(events: Vec<Result<Event<Revision>, watcher::Error>>) -> Vec<Vec<String>> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
    forward(Paced::new(stream::iter(events)), sender, |update| update, None).await;
    let name = |revision: &Revision| revision.metadata.name.clone().unwrap_or_default();
    let mut told = Vec::new();
    while let Some(update) = receiver.recv().await {
        told.push(match update {
            Update::Apply(revision) => vec![name(&revision)],
            Update::Delete(revision) => vec![format!("-{}", name(&revision))],
            Update::List(all) => all.iter().map(name).collect(),
        });
    }
    told
}

#[tokio::test(start_paused = true)]
async fn a_refused_list_is_an_empty_one_only_until_there_was_another() {
    let revision: Revision =
        serde_json::from_value(serde_json::json!({"metadata": {"namespace": "d", "name": "r"}}))
            .expect("a Revision");
    let list = || {
        [
            Ok(Event::Init),
            Ok(Event::InitApply(revision.clone())),
            Ok(Event::InitDone),
        ]
    };
    let refusal = || [Ok(Event::Init), Err(refused(404))];
    // Before Serving is installed; said once.
    let events = refusal().into_iter().chain(refusal()).chain(list());
    assert_eq!(told(events.collect()).await, [vec![], vec!["r".to_owned()]]);
    // An expired watch, and an API server that does not know the kind at the moment.
    let events = list().into_iter().chain(refusal()).chain(list());
    assert_eq!(told(events.collect()).await, [["r"], ["r"]]);
}

#[test]
fn pauses_grow_to_two_seconds() {
    let mut pauses = Pauses::default();
    let all: Vec<Duration> = (0..50).map(|_| pauses.after()).collect();
    assert!(all[0] <= MIN_PAUSE && all[0] >= MIN_PAUSE / 2);
    assert!(all.iter().all(|pause| *pause <= MAX_PAUSE));
    assert!(all[49] >= MAX_PAUSE / 2);
}
