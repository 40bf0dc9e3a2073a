//! Hours as seasons: what is learned, how it is judged, and what is restored.

use std::sync::Arc;

use super::*;
use crate::autoscale::tracker::tests::plan;
use crate::plan::ForesightPolicy;
use crate::schedule::tests::schedule;

const HOUR: u64 = 3_600;
/// A whole hour.
const ORIGIN: u64 = 490_000 * HOUR;

fn foreseeing(forecast: Option<ScalingMode>, schedules: Vec<crate::schedule::Schedule>) -> RevisionPlan {
    let mut plan = plan(60);
    plan.policy.total_value = 10.0;
    plan.policy.target_value = 7.0;
    plan.policy.foresight = Some(Arc::new(ForesightPolicy {
        schedules,
        forecast: forecast.map(|mode| ForecastPolicy {
            season: Duration::from_secs(HOUR),
            mode,
        }),
    }));
    plan
}

struct World {
    plan: RevisionPlan,
    foresight: Foresight,
    seconds: u64,
    judged: Vec<Judgement>,
}

impl World {
    fn new(plan: RevisionPlan) -> Self {
        Self {
            foresight: Foresight::new(&plan, Duration::ZERO).expect("foresight"),
            plan,
            seconds: 0,
            judged: Vec::new(),
        }
    }

    /// Lets seconds pass until this one of the origin's hour, and returns the bounds then.
    fn until(&mut self, second: u64, load: impl Fn(u64) -> u32) -> Bounds {
        let mut bounds = Bounds::default();
        while self.seconds < second {
            self.seconds += 1;
            let concurrency = load(self.seconds);
            let second = Second {
                now: Duration::from_secs(self.seconds),
                wall: ORIGIN + self.seconds,
                load: Load {
                    average_concurrency: f64::from(concurrency),
                    requests: u64::from(concurrency),
                    in_flight: concurrency,
                    ..Load::default()
                },
                value: f64::from(concurrency),
                start: Some(Duration::from_secs(5)),
            };
            let (now, judged) = self.foresight.second(&self.plan, &second);
            bounds = now;
            self.judged.extend(judged);
        }
        bounds
    }
}

/// At half past each hour fifty requests for five minutes.
fn half_past(second: u64) -> u32 {
    if (1_800..2_100).contains(&(second % HOUR)) {
        50
    } else {
        0
    }
}

#[test]
fn a_forecast_learns_is_judged_and_then_raises_the_floor() {
    let mut world = World::new(foreseeing(Some(ScalingMode::Active), Vec::new()));
    // The first hour is learned.
    assert_eq!(world.until(HOUR, half_past).forecast, None);
    assert!(!world.foresight.status().unwrap().trusted);
    // The second one is judged: nothing is applied yet, and the floor is shown.
    assert_eq!(world.until(HOUR + 1_795, half_past).forecast, None);
    let status = world.foresight.status().unwrap();
    assert_eq!(
        (status.seasons, status.floor, status.trusted),
        (1, Some(5), false)
    );
    world.until(2 * HOUR, half_past);
    assert_eq!(world.judged.len(), 1);
    let judged = world.judged[0];
    assert!(
        judged.cold_starts >= 5 && judged.cold_starts_with_forecast == 0,
        "{judged:?}"
    );
    assert!(
        judged
            .to_string()
            .starts_with(&format!("it would have saved {0} of {0}", judged.cold_starts))
    );
    // From then on it is trusted: five instances are wanted a little before they are needed, and none at other times.
    assert_eq!(world.until(2 * HOUR + 1_700, half_past).forecast, Some(0));
    assert_eq!(world.until(2 * HOUR + 1_795, half_past).forecast, Some(5));
    assert_eq!(world.until(2 * HOUR + 2_500, half_past).forecast, Some(0));
}

#[test]
fn a_forecast_that_saves_nothing_is_not_trusted() {
    let mut world = World::new(foreseeing(Some(ScalingMode::Active), Vec::new()));
    // Requests all the time: nothing ever starts cold after the first.
    let bounds = world.until(4 * HOUR, |_| 5);
    assert_eq!(bounds.forecast, None);
    assert_eq!(world.judged.len(), 3);
    assert!(!world.foresight.is_trusted());
}

#[test]
fn in_observe_mode_its_floor_is_shown_and_not_applied() {
    let mut world = World::new(foreseeing(Some(ScalingMode::Observe), Vec::new()));
    let bounds = world.until(2 * HOUR + 1_795, half_past);
    assert_eq!(bounds.forecast, None);
    let status = world.foresight.status().unwrap();
    assert_eq!((status.trusted, status.floor), (true, Some(5)));
    assert!(status.cold_starts.unwrap() >= 5 && status.extra_instance_seconds.is_some());
}

#[test]
fn a_season_with_a_gap_is_not_judged() {
    let mut world = World::new(foreseeing(Some(ScalingMode::Active), Vec::new()));
    world.until(HOUR + 900, half_past);
    // Ten minutes of which nothing was seen.
    world.seconds += 600;
    world.until(2 * HOUR + 1, half_past);
    assert_eq!(world.judged, []);
    assert_eq!(world.foresight.status().unwrap().seasons, 1);
}

#[test]
fn what_was_learned_outlives_the_process() {
    let plan = foreseeing(Some(ScalingMode::Active), Vec::new());
    let mut world = World::new(plan.clone());
    // In the middle of the second hour.
    world.until(HOUR + 2_400, half_past);
    let document = world.foresight.document().expect("a document");
    let mut after = World::new(plan);
    after.seconds = world.seconds + 5;
    after.foresight.restore(&document).unwrap();
    after.until(2 * HOUR, half_past);
    assert_eq!(
        after.judged.len(),
        1,
        "the season was seen by two processes, and whole"
    );
    assert!(after.judged[0].cold_starts >= 5, "those before the restart count");
    assert_eq!(after.until(2 * HOUR + 1_795, half_past).forecast, Some(5));
}

#[test]
fn a_document_of_another_season_is_left_alone_and_a_damaged_one_is_told() {
    let mut world = World::new(foreseeing(Some(ScalingMode::Active), Vec::new()));
    world.until(HOUR + 1, half_past);
    let document = world.foresight.document().expect("a document");
    let mut rps = foreseeing(Some(ScalingMode::Active), Vec::new());
    rps.policy.metric = crate::plan::Metric::Rps;
    let mut other = World::new(rps);
    other.foresight.restore(&document).unwrap_err();
    assert_eq!(other.foresight.status().unwrap().seasons, 0);
    for damaged in [&b"{}"[..], b"", &document[..document.len() - 10]] {
        assert!(world.foresight.restore(damaged).is_err());
    }
    let text = String::from_utf8(document).unwrap();
    let absurd = text.replace("\"instanceSeconds\":", "\"instanceSeconds\":-1e9,\"x\":");
    assert!(world.foresight.restore(absurd.as_bytes()).is_err() || !text.contains("instanceSeconds\":0"));
    assert_eq!(world.foresight.status().unwrap().seasons, 1, "nothing changed");
}

#[test]
fn a_reload_keeps_what_was_learned() {
    let mut world = World::new(foreseeing(Some(ScalingMode::Active), Vec::new()));
    world.until(HOUR + 1, half_past);
    let office = schedule("0 8 * * *", "UTC", 1.0, Some(3), None);
    let with_schedule = foreseeing(Some(ScalingMode::Observe), vec![office]);
    let is_new = world.foresight.replan(&with_schedule, Duration::from_secs(HOUR));
    assert!(!is_new, "what it learned goes on");
    assert_eq!(world.foresight.status().unwrap().seasons, 1);
    world
        .foresight
        .replan(&foreseeing(None, Vec::new()), Duration::from_secs(HOUR));
    assert_eq!(world.foresight.status(), None);
}

#[test]
fn a_schedule_is_active_from_the_first_look_on() {
    // 02:00 to 03:00, and the origin is a whole hour: 490,000 hours after 1970 it is 16:00.
    let office = schedule("30 15 * * *", "UTC", 1.0, Some(3), Some(8));
    let plan = foreseeing(None, vec![office]);
    let mut foresight = Foresight::new(&plan, Duration::ZERO).unwrap();
    let bounds = foresight.look(&plan.policy, ORIGIN, None);
    assert_eq!(bounds.schedule.floor, Some(3), "it opened before the start");
    let bounds = foresight.look(&plan.policy, ORIGIN + 1_800, None);
    assert_eq!(bounds.schedule.floor, None);
    // The next day, ahead by what a start takes.
    let begin = ORIGIN + 84_600;
    assert_eq!(
        foresight.look(&plan.policy, begin - 10, None).schedule.floor,
        None
    );
    let ahead = foresight.look(&plan.policy, begin - 10, Some(Duration::from_secs(12)));
    assert_eq!((ahead.schedule.floor, ahead.schedule.ceiling), (Some(3), Some(8)));
}
