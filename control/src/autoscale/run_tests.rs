//! The loop on paused time, over a data plane made of numbers.

use std::collections::BTreeMap;

use sluice_model::{ActivationFailure, Expectation, InstanceId, LaunchStep, Load, ManagedEndpoint};

use super::*;
use crate::autoscale::tracker::tests::plan;
use crate::plan::ProcessLimits;

#[derive(Default)]
struct Fake {
    loads: Mutex<BTreeMap<RevisionId, Load>>,
    samples: Mutex<u64>,
    decisions: Mutex<Vec<(Instant, RevisionId, u32, String)>>,
}

impl EndpointSink for Fake {
    fn launch(&self, _: &RevisionId, _: LaunchStep) {}
    fn add(&self, _: &RevisionId, _: ManagedEndpoint) {}
    fn remove(&self, _: &RevisionId, _: InstanceId) {}
    fn retire(&self, _: &RevisionId, _: u32, _: bool) -> Vec<InstanceId> {
        Vec::new()
    }
    fn to_zero(&self, _: &RevisionId) -> Option<Vec<InstanceId>> {
        None
    }
    fn retire_these(&self, _: &RevisionId, _: &[InstanceId]) {}
    fn end(&self, _: &RevisionId, _: &[InstanceId]) {}
    fn fail(&self, _: &RevisionId, _: Arc<ActivationFailure>) {}
    fn forgive(&self, _: &RevisionId) {}
    fn expect(&self, _: &RevisionId) -> Expectation {
        Expectation::Ready
    }
    fn hold(&self, _: &RevisionId, _: bool) {}
    fn sample(&self, revision: &RevisionId) -> Option<Load> {
        *self.samples.lock() += 1;
        self.loads.lock().get(revision).copied()
    }
}

impl DesiredSink for Fake {
    fn set_desired(&self, revision: &RevisionId, desired: u32, reason: String) {
        // Instances are there at once.
        if let Some(load) = self.loads.lock().get_mut(revision) {
            load.ready = desired;
        }
        let now = Instant::now();
        self.decisions
            .lock()
            .push((now, revision.clone(), desired, reason));
    }
}

impl Fake {
    fn carry(&self, revision: &RevisionId, concurrency: u32) {
        let mut loads = self.loads.lock();
        let load = loads.entry(revision.clone()).or_default();
        load.average_concurrency = f64::from(concurrency);
        load.in_flight = concurrency;
    }

    fn desired(&self, revision: &RevisionId) -> Option<u32> {
        let decisions = self.decisions.lock();
        decisions.iter().rev().find(|t| t.1 == *revision).map(|t| t.2)
    }
}

fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).expect("a name")
}

fn plans(revisions: impl IntoIterator<Item = (RevisionId, RevisionPlan)>) -> PlanDelta {
    let revisions = revisions.into_iter();
    PlanDelta {
        revisions: revisions.map(|(id, plan)| (id, Some(Arc::new(plan)))).collect(),
        processes: ProcessLimits {
            max: 64,
            ports: 20_000..=29_999,
        },
        drain: Duration::from_secs(300),
    }
}

/// The wall clock of paused time: a Monday at 07:59:00 UTC at first.
pub(super) fn outside() -> Outside {
    let origin = Instant::now();
    Outside {
        wall: Box::new(move || 1_767_599_940 + origin.elapsed().as_secs()),
        state: None,
    }
}

fn start() -> (Arc<Fake>, AutoscaleHandle) {
    let fake = Arc::new(Fake::default());
    let (handle, autoscale) = autoscaler(fake.clone(), fake.clone(), Inherited::new(), outside());
    tokio::spawn(autoscale.run());
    (fake, handle)
}

async fn pass(time: Duration) {
    // Paused time: returns as soon as everything due until then has run.
    tokio::time::sleep(time).await;
}

/// The README's demo: window 20 s, gone about 25 s after the last request.
#[tokio::test(start_paused = true)]
async fn the_demo_goes_to_zero() {
    let (fake, handle) = start();
    let greeter = id("greeter-v1");
    fake.carry(&greeter, 0);
    handle.apply(&plans([(greeter.clone(), plan(20))]));
    pass(Duration::from_millis(50)).await;
    assert_eq!(fake.desired(&greeter), None);

    fake.carry(&greeter, 1);
    handle.activate(&greeter);
    pass(Duration::from_millis(1)).await;
    assert_eq!(fake.desired(&greeter), Some(1));

    pass(Duration::from_millis(7_333)).await;
    fake.carry(&greeter, 0);
    let last_request = Instant::now();
    pass(Duration::from_secs(19)).await;
    assert_eq!(fake.desired(&greeter), Some(1));
    pass(Duration::from_secs(6)).await;
    let decisions = fake.decisions.lock();
    let (at, _, desired, reason) = decisions.last().expect("a decision");
    assert_eq!(*desired, 0);
    let after = *at - last_request;
    assert!(after < Duration::from_millis(21_200), "{after:?}: {reason}");
    assert!(reason.starts_with("1 → 0: idle for 2"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_seen_without_being_told() {
    let (fake, handle) = start();
    let greeter = id("greeter-v1");
    fake.carry(&greeter, 0);
    handle.apply(&plans([(greeter.clone(), plan(20))]));
    pass(Duration::from_millis(120)).await;
    fake.loads.lock().entry(greeter.clone()).or_default().queued = 1;
    pass(Duration::from_millis(100)).await;
    assert_eq!(fake.desired(&greeter), Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_overload_is_met_within_two_looks() {
    let (fake, handle) = start();
    let greeter = id("greeter-v1");
    fake.carry(&greeter, 1);
    handle.apply(&plans([(greeter.clone(), plan(60))]));
    pass(Duration::from_millis(3_250)).await;
    assert_eq!(fake.desired(&greeter), Some(1));
    fake.carry(&greeter, 412);
    pass(Duration::from_millis(200)).await;
    assert_eq!(fake.desired(&greeter), Some(6));
    let decisions = fake.decisions.lock();
    assert_eq!(decisions[1].3, "1 → 6: panic, 412 in flight / target 70");
}

/// Contract 4.6, S7: without metrics there is no decision, however long.
#[tokio::test(start_paused = true)]
async fn who_is_not_heard_of_is_left_as_it_is() {
    let (fake, handle) = start();
    let greeter = id("greeter-v1");
    fake.carry(&greeter, 300);
    handle.apply(&plans([(greeter.clone(), plan(20))]));
    pass(Duration::from_secs(5)).await;
    assert_eq!(fake.desired(&greeter), Some(5));

    fake.loads.lock().remove(&greeter);
    fake.decisions.lock().clear();
    pass(Duration::from_secs(300)).await;
    assert!(fake.decisions.lock().is_empty(), "neither down nor to zero");

    fake.carry(&greeter, 0);
    pass(Duration::from_secs(60)).await;
    assert_eq!(fake.desired(&greeter), Some(0), "known again, and idle");
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_counters_of_what_stays() {
    let (fake, handle) = start();
    let (stays, goes) = (id("stays"), id("goes"));
    for revision in [&stays, &goes] {
        fake.carry(revision, 50);
    }
    handle.apply(&plans([(stays.clone(), plan(60)), (goes.clone(), plan(60))]));
    pass(Duration::from_millis(10_050)).await;
    fake.decisions.lock().clear();

    let comes = id("comes");
    fake.carry(&comes, 0);
    let mut tighter = plan(60);
    tighter.policy.target_value = 10.0;
    let mut least = plan(60);
    least.policy.min_scale = 1;
    let mut next = plans([(stays.clone(), tighter), (comes.clone(), least)]);
    next.revisions.insert(goes.clone(), None);
    handle.apply(&next);
    pass(Duration::from_millis(10)).await;
    // Ten seconds of 50 in flight, not a fresh start.
    assert_eq!(fake.desired(&stays), Some(5));
    assert_eq!(fake.desired(&comes), Some(1));
    fake.carry(&goes, 5_000);
    pass(Duration::from_secs(3)).await;
    assert_eq!(fake.desired(&goes), None);
}

/// Idle revisions cost at most a fixed number of looks a round, and still all get theirs.
#[tokio::test(start_paused = true)]
async fn thousands_of_idle_revisions_are_cheap() {
    let (fake, handle) = start();
    let all: Vec<_> = (0..5_000).map(|n| id(&format!("idle-{n}"))).collect();
    for revision in &all {
        fake.carry(revision, 0);
    }
    handle.apply(&plans(all.iter().map(|r| (r.clone(), plan(60)))));
    pass(Duration::from_millis(1_050)).await;
    *fake.samples.lock() = 0;
    pass(Duration::from_secs(1)).await;
    let samples = *fake.samples.lock();
    assert!(samples <= 5_000 + 9 * 1_000, "{samples} looks in a second");

    fake.carry(&all[4_321], 1);
    pass(Duration::from_millis(1_000)).await;
    assert_eq!(fake.desired(&all[4_321]), Some(1));
}

#[tokio::test(start_paused = true)]
async fn the_loop_ends_with_its_handles() {
    let fake = Arc::new(Fake::default());
    let (handle, autoscale) = autoscaler(fake.clone(), fake, Inherited::new(), outside());
    let running = tokio::spawn(autoscale.run());
    drop(handle);
    running.await.expect("it ends");
}

fn with_foresight(mut plan: RevisionPlan, schedules: Vec<crate::schedule::Schedule>) -> RevisionPlan {
    plan.policy.foresight = Some(Arc::new(crate::plan::ForesightPolicy {
        schedules,
        forecast: Some(crate::plan::ForecastPolicy {
            season: Duration::from_secs(24 * 3600),
            mode: crate::plan::ScalingMode::Active,
        }),
    }));
    plan
}

/// The clock of these tests is at 07:59:00 when they begin.
#[tokio::test(start_paused = true)]
async fn a_schedule_starts_ahead_by_what_starts_take_and_ends_with_its_window() {
    let (fake, handle) = start();
    let greeter = id("greeter-v1");
    fake.carry(&greeter, 0);
    fake.loads.lock().get_mut(&greeter).unwrap().typical_start = Some(Duration::from_secs(20));
    let morning = crate::schedule::tests::schedule("0 8 * * *", "UTC", 0.5, Some(3), None);
    handle.apply(&plans([(
        greeter.clone(),
        with_foresight(plan(20), vec![morning]),
    )]));
    pass(Duration::from_millis(38_500)).await;
    assert_eq!(fake.desired(&greeter), None, "07:59:38");
    pass(Duration::from_secs(3)).await;
    assert_eq!(fake.desired(&greeter), Some(3), "07:59:41");
    let status = handle.scaling_status(&greeter).expect("it is scaled");
    assert_eq!(status.source, sluice_model::ScaleSource::Schedule);
    assert_eq!((status.wants.schedule, status.wants.reactive), (Some(3), 0));
    pass(Duration::from_secs(1_800)).await;
    assert_eq!(fake.desired(&greeter), Some(3), "08:29:41");
    pass(Duration::from_secs(50)).await;
    assert_eq!(fake.desired(&greeter), Some(0), "08:30:31");
    let decisions = fake.decisions.lock();
    let (.., reason) = decisions.iter().find(|d| d.2 == 3).expect("it was raised");
    assert!(
        reason.contains("raised by a schedule; wanted: reactive 0, schedule 3"),
        "{reason}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rollout_has_its_instances_without_a_request_and_without_delay() {
    let (fake, handle) = start();
    let greeter = id("greeter-v2");
    // Before the plan there is nothing to raise: who needs the floor repeats it.
    handle.set_rollout_floor(&greeter, Some(3));
    pass(Duration::from_millis(1)).await;
    fake.carry(&greeter, 0);
    handle.apply(&plans([(greeter.clone(), plan(20))]));
    pass(Duration::from_millis(1_500)).await;
    assert_eq!(fake.desired(&greeter), None);
    handle.set_rollout_floor(&greeter, Some(3));
    pass(Duration::from_millis(1)).await;
    assert_eq!(fake.desired(&greeter), Some(3));
    let status = handle.scaling_status(&greeter).expect("it is scaled");
    assert_eq!(status.source, sluice_model::ScaleSource::Rollout);
    assert_eq!((status.wants.rollout, status.wants.reactive), (Some(3), 0));
    pass(Duration::from_secs(300)).await;
    assert_eq!(fake.desired(&greeter), Some(3));
    handle.set_rollout_floor(&greeter, None);
    pass(Duration::from_secs(60)).await;
    assert_eq!(fake.desired(&greeter), Some(0));
    let decisions = fake.decisions.lock();
    let (.., reason) = decisions.first().expect("it was raised");
    assert!(
        reason.contains("raised for a rollout; wanted: reactive 0, rollout 3"),
        "{reason}"
    );
}

#[tokio::test(start_paused = true)]
async fn observe_decides_and_counts_and_carries_nothing_out() {
    let (fake, handle) = start();
    let greeter = id("greeter-v1");
    fake.carry(&greeter, 0);
    let mut observed = plan(20);
    observed.policy.mode = crate::plan::ScalingMode::Observe;
    handle.apply(&plans([(greeter.clone(), observed)]));
    pass(Duration::from_millis(1)).await;
    fake.loads.lock().get_mut(&greeter).unwrap().ready = 1;
    pass(Duration::from_secs(30)).await;
    // Two requests: a cold start, an instance for them, and zero again.
    fake.carry(&greeter, 2);
    pass(Duration::from_secs(10)).await;
    let status = handle.scaling_status(&greeter).expect("it is scaled");
    let observed = status.observed.expect("it observes");
    assert_eq!((observed.desired, observed.cold_starts), (1, 1));
    assert!(observed.last_decision.unwrap().starts_with("0 → 1"));
    assert!(
        (39.0..41.0).contains(&status.instance_seconds),
        "{}",
        status.instance_seconds
    );
    fake.carry(&greeter, 0);
    pass(Duration::from_secs(60)).await;
    let observed = handle.scaling_status(&greeter).unwrap().observed.unwrap();
    assert_eq!((observed.desired, observed.cold_starts), (0, 1));
    assert!((25.0..35.0).contains(&observed.instance_seconds), "{observed:?}");
    assert!(fake.decisions.lock().is_empty(), "nothing was carried out");
    // Back to active: what the load calls for is carried out again.
    handle.apply(&plans([(greeter.clone(), plan(20))]));
    fake.carry(&greeter, 2);
    pass(Duration::from_secs(30)).await;
    assert_eq!(handle.scaling_status(&greeter).unwrap().observed, None);
    fake.carry(&greeter, 150);
    pass(Duration::from_secs(3)).await;
    assert!(fake.desired(&greeter).unwrap() >= 2);
}

#[tokio::test(start_paused = true)]
async fn what_forecasts_learn_is_kept_and_restored() {
    let home = tempfile::tempdir().unwrap();
    let greeter = id("greeter-v1");
    let name = document_name(&greeter);
    let learned = |handle: &StateHandle| {
        let document = handle.read(&name)?;
        let value: serde_json::Value = serde_json::from_slice(&document).unwrap();
        Some(
            value["current"]["seen"]
                .as_array()?
                .iter()
                .filter_map(serde_json::Value::as_u64)
                .sum::<u64>(),
        )
    };
    for want in [30, 60] {
        let fake = Arc::new(Fake::default());
        fake.carry(&greeter, 1);
        let (state, writer) = StateHandle::new(crate::state::Store::open(home.path()).unwrap());
        tokio::spawn(writer.run());
        // Whichever process it is, the clock goes on.
        let before = learned(&state).unwrap_or(0);
        let origin = Instant::now();
        let outside = Outside {
            wall: Box::new(move || 1_767_600_000 + before + origin.elapsed().as_secs()),
            state: Some(state.clone()),
        };
        let (handle, autoscale) = autoscaler(fake.clone(), fake.clone(), Inherited::new(), outside);
        tokio::spawn(autoscale.run());
        handle.apply(&plans([(greeter.clone(), with_foresight(plan(20), Vec::new()))]));
        pass(Duration::from_millis(30_500)).await;
        handle.save().await;
        state.close().await;
        let store = crate::state::Store::open(home.path()).unwrap();
        let (state, _) = StateHandle::new(store);
        let seen = learned(&state).expect("a document");
        assert!((want - 2..=want + 1).contains(&seen), "{seen} of {want}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_removed_revision_learned_is_removed_with_it() {
    let home = tempfile::tempdir().unwrap();
    let (greeter, other) = (id("greeter-v1"), id("greeter-v2"));
    let fake = Arc::new(Fake::default());
    let (state, writer) = StateHandle::new(crate::state::Store::open(home.path()).unwrap());
    let writer = tokio::spawn(writer.run());
    let outside = Outside {
        wall: Box::new(|| 1_767_600_000),
        state: Some(state.clone()),
    };
    let (handle, autoscale) = autoscaler(fake.clone(), fake, Inherited::new(), outside);
    tokio::spawn(autoscale.run());
    let both = [greeter.clone(), other.clone()].map(|id| (id, with_foresight(plan(20), Vec::new())));
    handle.apply(&plans(both));
    pass(Duration::from_secs(2)).await;
    handle.save().await;
    let mut removal = plans([]);
    removal.revisions.insert(greeter.clone(), None);
    handle.apply(&removal);
    pass(Duration::from_secs(2)).await;
    state.close().await;
    writer.await.unwrap();
    let documents = crate::state::Documents::of(home.path());
    assert_eq!(documents.names().unwrap(), [document_name(&other)]);
}
