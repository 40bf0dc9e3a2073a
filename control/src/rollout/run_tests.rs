//! The task on paused time, with a reconciler and a data plane made of numbers.

use sluice_model::{RevisionStatus, ScaleWants, ScalingStatus};

use super::super::policy::{RolloutPolicy, Steps};
use super::super::{WHOLE, command};
use super::*;
use crate::index::ReleaseChange;
use crate::release::{Edit, Override, Recorder, Request};

fn outcomes(requests: u64, failures: u64, latency: &[(u16, u64)]) -> Outcomes {
    Outcomes {
        requests,
        failures,
        latency: latency.to_vec(),
        ready: 3,
        endpoints: 4,
        ..Outcomes::default()
    }
}

#[test]
fn what_was_counted_since_the_last_look() {
    let before = outcomes(10, 1, &[(2, 5), (7, 5)]);
    let now = outcomes(30, 3, &[(2, 5), (4, 12), (7, 13)]);
    let side = Side::since(&now, &before);
    assert_eq!((side.requests, side.failures, side.ready), (20, 2, 3));
    assert_eq!(side.latency, [(4, 12), (7, 8)]);
    assert_eq!(Side::since(&now, &now).latency, []);
    // The revision was removed and came back.
    let anew = outcomes(4, 1, &[(5, 4)]);
    let side = Side::since(&anew, &now);
    assert_eq!((side.requests, side.failures, side.latency), (0, 0, Vec::new()));
}

/// Both planes: instances are there as soon as a floor wants them.
#[derive(Default)]
struct Planes {
    release: Mutex<Option<Release>>,
    counts: Mutex<BTreeMap<RevisionId, Outcomes>>,
    floors: Mutex<BTreeMap<RevisionId, Option<u32>>>,
}

impl OutcomeSource for Planes {
    fn outcomes(&self, _: &ServiceId, revision: &RevisionId) -> Option<Outcomes> {
        let mut outcomes = self.counts.lock().get(revision).cloned().unwrap_or_default();
        outcomes.ready = match revision.name() {
            "v1" => 4,
            _ => self
                .floors
                .lock()
                .get(revision)
                .copied()
                .flatten()
                .unwrap_or_default(),
        };
        Some(outcomes)
    }
}

impl ScalingSource for Planes {
    fn scaling_status(&self, _: &RevisionId) -> Option<ScalingStatus> {
        let wants = ScaleWants {
            max_scale: Some(9),
            ..ScaleWants::default()
        };
        Some(ScalingStatus {
            wants,
            ..ScalingStatus::default()
        })
    }
}

impl FloorSink for Planes {
    fn set_rollout_floor(&self, revision: &RevisionId, floor: Option<u32>) {
        self.floors.lock().insert(revision.clone(), floor);
    }
}

impl StatusSource for Planes {
    fn revision_status(&self, _: &RevisionId) -> Option<RevisionStatus> {
        None
    }
}

struct World {
    planes: Arc<Planes>,
    histories: HistoryHandle,
    statuses: RolloutStatuses,
    /// Releases that files changed.
    files: tokio::sync::mpsc::UnboundedSender<Release>,
}

fn service() -> ServiceId {
    ServiceId::parse("default", "web").unwrap()
}

fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).unwrap()
}

fn release(revisions: &[&str], settled: &str) -> Release {
    Release {
        history: Arc::new(ServiceHistory {
            settled: Some(settled.to_owned()),
            ..ServiceHistory::default()
        }),
        digest: 1,
        revisions: revisions.iter().map(|name| id(name)).collect(),
        policy: Some(Arc::new(RolloutPolicy {
            steps: Steps::Listed {
                shares: vec![2_000, 5_000],
                every: Duration::from_secs(10),
            },
            ..RolloutPolicy::default()
        })),
        is_manifest: false,
        follows_latest: WHOLE,
        reached: Arc::default(),
        scaled: Arc::default(),
    }
}

impl World {
    fn new(first: Release) -> Self {
        let planes = Arc::new(Planes::default());
        let (histories, edits) = HistoryHandle::new();
        let origin = Instant::now();
        let wall = move || 1_000 + origin.elapsed().as_secs();
        let mut recorder = Recorder::new(edits, None, wall);
        let (task, statuses) = RolloutTask::new(Surroundings {
            histories: histories.clone(),
            outcomes: Arc::clone(&planes) as _,
            autoscale: Arc::clone(&planes) as _,
            status: Arc::clone(&planes) as _,
            wall: Box::new(wall),
        });
        let (files, mut changes) = tokio::sync::mpsc::unbounded_channel();
        let world = Self {
            planes: Arc::clone(&planes),
            histories,
            statuses,
            files,
        };
        *world.planes.release.lock() = Some(first.clone());
        world.files.send(first).unwrap();
        tokio::spawn(task.run());
        tokio::spawn(async move {
            loop {
                let (next, edit) = tokio::select! {
                    Some(release) = changes.recv() => (release, None),
                    Request::Edit(edit) = recorder.request() => {
                        let present = planes.release.lock().clone().expect("a release");
                        let Edit { change, done, .. } = edit;
                        match change(&present) {
                            Ok(history) => (Release { history: Arc::new(history), ..present }, Some(done)),
                            Err(error) => {
                                _ = done.send(Err(error));
                                continue;
                            }
                        }
                    }
                    else => return,
                };
                *planes.release.lock() = Some(next.clone());
                recorder.record(vec![ReleaseChange {
                    service: service(),
                    release: Some(next),
                    is_other_history: true,
                }]);
                if let Some(done) = edit {
                    _ = done.send(Ok(()));
                }
            }
        });
        world
    }

    fn release(&self) -> Release {
        self.planes.release.lock().clone().expect("a release")
    }

    fn rollout(&self) -> Option<Rollout> {
        self.release().history.rollout.clone()
    }

    fn floor(&self, name: &str) -> Option<u32> {
        self.planes.floors.lock().get(&id(name)).copied().flatten()
    }

    /// Seconds of 100 requests each, of which the latest revision fails this many in a hundred of its own.
    async fn seconds(&self, count: u32, failing: u64) {
        for _ in 0..count {
            let release = self.release();
            let latest = release.revisions.last().cloned().unwrap();
            let part = release
                .history
                .rollout
                .as_ref()
                .map_or(0, |rollout| u64::from(rollout.share) / 100);
            let settled = release.history.settled.clone().unwrap_or_default();
            {
                let mut counts = self.planes.counts.lock();
                let of_latest = counts.entry(latest).or_default();
                of_latest.requests += part;
                of_latest.failures += part * failing / 100;
                counts.entry(id(&settled)).or_default().requests += 100 - part;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn command(
        &self,
        command: fn(&Release, u64) -> Result<ServiceHistory, EditError>,
    ) -> Result<(), EditError> {
        self.histories
            .edit(&service(), move |release| command(release, 5_000))
            .await
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_begins_and_ends_by_itself() {
    let world = World::new(release(&["v1", "v2"], "v1"));
    world.seconds(2, 0).await;
    let rollout = world.rollout().expect("it began");
    assert_eq!((rollout.candidate.as_str(), rollout.started), ("v2", 1_000));
    world.seconds(3, 0).await;
    assert_eq!(
        (world.rollout().unwrap().share, world.floor("v2")),
        (2_000, Some(1))
    );
    assert_eq!(world.statuses.steps(), [(service(), 20.0)]);
    world.seconds(6, 0).await;
    assert_eq!(world.floor("v2"), Some(2), "ahead of the next step");
    let kept = world.rollout().unwrap();
    assert!(
        kept.spent >= 5_000 && kept.evidence.candidate.requests > 50,
        "{kept:?}"
    );
    world.seconds(20, 0).await;
    assert_eq!(world.release().history.settled.as_deref(), Some("v2"));
    assert_eq!(world.statuses.ended()[0], ("completed", 1));
    assert_eq!(world.floor("v2"), Some(4), "until the autoscaler knows the load");
    world.seconds(61, 0).await;
    assert_eq!(world.floor("v2"), None);
}

#[tokio::test(start_paused = true)]
async fn a_worse_revision_is_rolled_back_and_retried_by_command() {
    let world = World::new(release(&["v1", "v2"], "v1"));
    world.seconds(10, 20).await;
    let rollout = world.rollout().unwrap();
    assert_eq!(
        (rollout.state, rollout.share),
        (RolloutState::Failed, 0),
        "{rollout:?}"
    );
    assert_eq!(world.release().history.settled.as_deref(), Some("v1"));
    assert_eq!(
        (world.floor("v1"), world.floor("v2")),
        (Some(4), None),
        "the old one gets all of the load at once"
    );
    world.seconds(300, 0).await;
    assert_eq!(
        world.rollout().unwrap().state,
        RolloutState::Failed,
        "it stays so"
    );
    assert!(world.command(command::resume).await.is_err());
    assert!(world.command(command::abort).await.is_err());
    world.command(command::retry).await.unwrap();
    world.seconds(3, 0).await;
    let rollout = world.rollout().unwrap();
    assert_eq!(
        (rollout.share, rollout.evidence.candidate.hits),
        (2_000, 0),
        "without the old evidence"
    );
    world.seconds(30, 0).await;
    assert_eq!(world.rollout().unwrap().state, RolloutState::Completed);
    assert_eq!(
        world.statuses.ended(),
        [("completed", 1), ("failed", 1), ("aborted", 0), ("superseded", 0)]
    );
}

#[tokio::test(start_paused = true)]
async fn commands_pause_promote_and_abort() {
    let world = World::new(release(&["v1", "v2"], "v1"));
    world.seconds(4, 0).await;
    world.command(command::pause).await.unwrap();
    world.seconds(100, 0).await;
    let paused = world.rollout().unwrap();
    assert_eq!(
        (paused.state, paused.share, paused.since),
        (RolloutState::Paused, 2_000, 5_000)
    );
    assert!(world.command(command::pause).await.is_err());
    world.command(command::resume).await.unwrap();
    world.seconds(12, 0).await;
    assert_eq!(world.rollout().unwrap().share, 5_000);
    world.command(command::abort).await.unwrap();
    world.seconds(2, 0).await;
    assert_eq!(
        (world.rollout().unwrap().state, world.floor("v2")),
        (RolloutState::Aborted, None)
    );
    assert_eq!(
        world.rollout().unwrap().reason.as_deref(),
        Some("aborted by command")
    );
    world.command(command::promote).await.unwrap();
    world.seconds(2, 0).await;
    assert_eq!(world.release().history.settled.as_deref(), Some("v2"));
    let error = world.command(command::promote).await.unwrap_err();
    assert_eq!(error.to_string(), "the rollout of v2 is completed");
}

#[tokio::test(start_paused = true)]
async fn files_supersede_end_and_complete_a_rollout() {
    let world = World::new(release(&["v1", "v2"], "v1"));
    world.seconds(4, 0).await;
    let with = |revisions: &[&str], history: Arc<ServiceHistory>, settled: Option<&str>| {
        let mut next = release(revisions, settled.unwrap_or("v1"));
        next.history = Arc::new(ServiceHistory {
            settled: Some(settled.unwrap_or("v1").to_owned()),
            ..(*history).clone()
        });
        next
    };
    // A newer one takes the place, the base stays.
    world
        .files
        .send(with(&["v1", "v2", "v3"], world.release().history, None))
        .unwrap();
    world.seconds(1, 0).await;
    assert_eq!(world.rollout().unwrap().candidate, "v3");
    assert_eq!(world.statuses.ended()[3], ("superseded", 1));
    assert_eq!(world.floor("v2"), None);
    // The settled one is listed last again.
    world
        .files
        .send(with(&["v2", "v3", "v1"], world.release().history, None))
        .unwrap();
    world.seconds(2, 0).await;
    assert_eq!(world.rollout(), None);
    assert_eq!(world.statuses.ended()[3], ("superseded", 2));
    // The one that had the rest is listed no more.
    world
        .files
        .send(with(&["v1", "v4"], world.release().history, None))
        .unwrap();
    world.seconds(4, 0).await;
    assert_eq!(world.rollout().unwrap().share, 2_000);
    world
        .files
        .send(with(&["v4"], world.release().history, Some("v4")))
        .unwrap();
    world.seconds(2, 0).await;
    assert_eq!(world.rollout().unwrap().state, RolloutState::Completed);
}

#[tokio::test(start_paused = true)]
async fn neither_time_nor_requests_count_while_an_operator_holds_the_service() {
    let world = World::new(release(&["v1", "v2"], "v1"));
    world.seconds(4, 0).await;
    let over = |over: Option<Override>| {
        let mut next = world.release();
        next.history = Arc::new(ServiceHistory {
            over,
            ..(*next.history).clone()
        });
        world.files.send(next).unwrap();
    };
    over(Some(Override {
        declared: 1,
        since: 0,
        pinned: None,
        paused: true,
    }));
    // It holds from the next look on.
    world.seconds(1, 0).await;
    world.seconds(200, 90).await;
    let rollout = world.rollout().unwrap();
    assert_eq!((rollout.state, rollout.share), (RolloutState::Running, 2_000));
    over(None);
    world.seconds(12, 0).await;
    assert_eq!(world.rollout().unwrap().share, 5_000);
}

/// Tiers are scaled under ids of their own: without a floor of the one that serves, nothing would start a candidate.
#[tokio::test(start_paused = true)]
async fn a_candidate_with_tiers_has_its_floor_at_the_last_one() {
    let tier = |name: &str, tier: &str| id(name).of_tier(&sluice_model::Tag::parse(tier).unwrap());
    let mut first = release(&["v1", "v2"], "v1");
    first.scaled = [
        tier("v1", "standard"),
        tier("v2", "reserve"),
        tier("v2", "standard"),
    ]
    .into();
    let world = World::new(first);
    world.seconds(5, 0).await;
    let floors = world.planes.floors.lock().clone();
    assert_eq!(floors.get(&tier("v2", "standard")), Some(&Some(1)), "{floors:?}");
    assert!(!floors.contains_key(&id("v2")) && !floors.contains_key(&tier("v2", "reserve")));
}
