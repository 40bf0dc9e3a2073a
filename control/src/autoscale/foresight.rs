//! Foresight: the floors and ceilings that schedules and the forecast set before the load does.
//!
//! A forecast is judged before it is trusted. Beside the real revision two virtual ones carry the same load, one by the load
//! alone and one with the forecast's floor; at the end of each season that was seen whole their cold starts and
//! instance-seconds are compared. The floor is applied once the forecast would have saved cold starts in the last seasons.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_model::{ForecastStatus, Load};

use super::bounds::Bounds;
use super::forecast::{Forecast, Saved};
use super::tracker::Tracker;
use super::virtual_fleet::{Tally, VirtualFleet};
use crate::plan::{AutoscalePolicy, ForecastPolicy, RevisionPlan, ScalingMode};
use crate::schedule::ScheduleClock;

/// Judgements that are kept: as many as seasons.
const JUDGED: usize = 3;

/// What a start takes until one was measured.
const UNKNOWN_START: Duration = Duration::from_secs(2);

/// One second of a revision, which ends at `now`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Second {
    /// Since the loop's origin.
    pub(crate) now: Duration,
    /// Seconds since 1970.
    pub(crate) wall: u64,
    /// The load over the second.
    pub(crate) load: Load,
    /// The metric's average over the second.
    pub(crate) value: f64,
    /// What starts took lately; `None` before the first one.
    pub(crate) start: Option<Duration>,
}

/// Schedules and forecast of one revision.
#[derive(Debug, Default)]
pub(crate) struct Foresight {
    clock: ScheduleClock,
    forecaster: Option<Box<Forecaster>>,
    bounds: Bounds,
}

/// The forecast of one revision, with its judgement.
#[derive(Debug)]
struct Forecaster {
    forecast: Forecast,
    reactive: Shadow,
    raised: Shadow,
    judged: VecDeque<Judgement>,
    /// Of the present season; `None` where it began without a forecast.
    judging: Option<Judging>,
    /// The floor that the forecast would have now.
    floor: Option<u32>,
}

/// What a season was without the forecast's floor and with it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Judgement {
    cold_starts: u64,
    cold_starts_with_forecast: u64,
    instance_seconds: f64,
    instance_seconds_with_forecast: f64,
}

/// A judgement under way.
#[derive(Debug, Clone, Copy, Default)]
struct Judging {
    /// Of the season before this process.
    carried: Judgement,
    reactive: Tally,
    raised: Tally,
}

/// A virtual revision that carries the load of the real one.
#[derive(Debug)]
struct Shadow {
    tracker: Tracker,
    fleet: VirtualFleet,
}

impl Foresight {
    /// The state of a revision's foresight; `None` where the policy has none.
    pub(crate) fn new(plan: &RevisionPlan, now: Duration) -> Option<Self> {
        let policy = plan.policy.foresight.as_ref()?;
        Some(Self {
            forecaster: policy
                .forecast
                .map(|forecast| Box::new(Forecaster::new(plan, forecast, now))),
            ..Self::default()
        })
    }

    /// Applies a changed plan: what was learned is kept, unless season or metric changed.
    /// Follows a changed plan. Returns whether the forecast, if there is one, is new and knows nothing.
    pub(crate) fn replan(&mut self, plan: &RevisionPlan, now: Duration) -> bool {
        self.clock.forget();
        let forecast = plan.policy.foresight.as_ref().and_then(|policy| policy.forecast);
        let keeps = |known: &Forecaster, forecast: ForecastPolicy| {
            known
                .forecast
                .is_for(forecast.season.as_secs(), plan.policy.metric)
        };
        let (forecaster, is_new) = match (self.forecaster.take(), forecast) {
            (_, None) => (None, true),
            (Some(known), Some(forecast)) if keeps(&known, forecast) => (Some(known), false),
            (_, Some(forecast)) => (Some(Box::new(Forecaster::new(plan, forecast, now))), true),
        };
        self.forecaster = forecaster;
        is_new
    }

    /// The bounds at a moment, without a new second of load: for decisions before the first one.
    pub(crate) fn look(&mut self, policy: &AutoscalePolicy, wall: u64, start: Option<Duration>) -> Bounds {
        let Some(ahead) = &policy.foresight else {
            return Bounds::default();
        };
        let at = i64::try_from(wall).unwrap_or(i64::MAX);
        self.bounds.schedule = self.clock.bounds(&ahead.schedules, at, start.unwrap_or_default());
        self.bounds.forecast = self.forecaster.as_mut().and_then(|forecaster| {
            forecaster.look(policy, wall, start);
            forecaster.applied(ahead.forecast)
        });
        self.bounds
    }

    /// Takes a second of load, and returns the bounds from now on, and the judgement of a season that just ended.
    pub(crate) fn second(&mut self, plan: &RevisionPlan, second: &Second) -> (Bounds, Option<Judgement>) {
        // The bounds of the second that passed are those that the virtual revisions had.
        let schedule = self.bounds.schedule;
        let judged = self.forecaster.as_mut().and_then(|forecaster| {
            forecaster.second(
                plan,
                second,
                Bounds {
                    schedule,
                    ..Bounds::default()
                },
            )
        });
        (self.look(&plan.policy, second.wall, second.start), judged)
    }

    /// The state of the forecast, for status.
    pub(crate) fn status(&self) -> Option<ForecastStatus> {
        let forecaster = self.forecaster.as_ref()?;
        let last = forecaster.judged.back();
        Some(ForecastStatus {
            seasons: u32::try_from(forecaster.forecast.seasons()).unwrap_or(u32::MAX),
            trusted: forecaster.is_trusted(),
            floor: forecaster.floor,
            cold_starts: last.map(|last| last.cold_starts),
            cold_starts_with_forecast: last.map(|last| last.cold_starts_with_forecast),
            extra_instance_seconds: last.map(Judgement::extra),
        })
    }

    /// Whether the forecast is trusted.
    pub(crate) fn is_trusted(&self) -> bool {
        self.forecaster
            .as_ref()
            .is_some_and(|forecaster| forecaster.is_trusted())
    }

    /// What was learned, as a document; `None` without a forecast.
    pub(crate) fn document(&self) -> Option<Vec<u8>> {
        let forecaster = self.forecaster.as_ref()?;
        let document = Document {
            forecast: Saved::from(&forecaster.forecast),
            judged: forecaster.judged.iter().copied().collect(),
            judging: forecaster.judging.map(|judging| forecaster.so_far(&judging)),
        };
        // Numbers and lists: there is nothing that cannot be written.
        serde_json::to_vec(&document).ok()
    }

    /// Restores what an earlier process learned.
    ///
    /// # Errors
    /// What is wrong with the document, which may be of another season or metric; nothing changed then.
    pub(crate) fn restore(&mut self, document: &[u8]) -> Result<(), String> {
        let Some(forecaster) = &mut self.forecaster else {
            return Ok(());
        };
        let document: Document = serde_json::from_slice(document).map_err(|error| error.to_string())?;
        let known = Forecast::try_from(document.forecast)?;
        let sound = document
            .judged
            .iter()
            .chain(&document.judging)
            .all(Judgement::is_sound);
        if !sound || document.judged.len() > JUDGED {
            return Err("its judgements are damaged".to_owned());
        }
        if !known.is_like(&forecaster.forecast) {
            return Err("it is of another season or metric".to_owned());
        }
        forecaster.forecast = known;
        forecaster.judged = document.judged.into();
        forecaster.judging = document.judging.map(|carried| Judging {
            carried,
            reactive: forecaster.reactive.fleet.tally(),
            raised: forecaster.raised.fleet.tally(),
        });
        Ok(())
    }
}

impl Forecaster {
    fn new(plan: &RevisionPlan, policy: ForecastPolicy, now: Duration) -> Self {
        Self {
            forecast: Forecast::new(policy.season.as_secs(), plan.policy.metric),
            reactive: Shadow::new(plan, now),
            raised: Shadow::new(plan, now),
            judged: VecDeque::new(),
            judging: None,
            floor: None,
        }
    }

    fn second(&mut self, plan: &RevisionPlan, second: &Second, bounds: Bounds) -> Option<Judgement> {
        self.reactive.second(plan, second, bounds);
        let raised = Bounds {
            forecast: self.floor,
            ..bounds
        };
        self.raised.second(plan, second, raised);
        let end = self.forecast.observe(second.wall, second.value)?;
        let judged = self.judging.take().map(|judging| self.so_far(&judging));
        // From the begin of the season on there has to be a forecast.
        self.judging = (self.forecast.seasons() > 0).then(|| Judging {
            carried: Judgement::default(),
            reactive: self.reactive.fleet.tally(),
            raised: self.raised.fleet.tally(),
        });
        let judgement = judged.filter(|_| end.whole)?;
        if self.judged.len() == JUDGED {
            self.judged.pop_front();
        }
        self.judged.push_back(judgement);
        Some(judgement)
    }

    /// Computes the floor: so many instances that what is expected until a start from now would be over needs no more.
    fn look(&mut self, policy: &AutoscalePolicy, wall: u64, start: Option<Duration>) {
        let ahead = start.unwrap_or(UNKNOWN_START).as_secs() + 1;
        let expected = self.forecast.expected(wall, wall.saturating_add(ahead));
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates"
        )]
        let floor = expected.map(|load| (load / policy.total_value - LEAST).ceil().max(0.0) as u32);
        self.floor = floor;
    }

    fn applied(&self, policy: Option<ForecastPolicy>) -> Option<u32> {
        let active = policy.is_some_and(|policy| policy.mode == ScalingMode::Active);
        self.floor.filter(|_| active && self.is_trusted())
    }

    fn is_trusted(&self) -> bool {
        let sum = |of: fn(&Judgement) -> u64| self.judged.iter().map(of).sum::<u64>();
        sum(|judged| judged.cold_starts) > sum(|judged| judged.cold_starts_with_forecast)
    }

    fn so_far(&self, judging: &Judging) -> Judgement {
        let reactive = self.reactive.fleet.tally().since(&judging.reactive);
        let raised = self.raised.fleet.tally().since(&judging.raised);
        let Judgement {
            cold_starts,
            cold_starts_with_forecast,
            instance_seconds,
            instance_seconds_with_forecast,
        } = judging.carried;
        Judgement {
            cold_starts: cold_starts.saturating_add(reactive.cold_starts),
            cold_starts_with_forecast: cold_starts_with_forecast.saturating_add(raised.cold_starts),
            instance_seconds: instance_seconds + reactive.instance_seconds,
            instance_seconds_with_forecast: instance_seconds_with_forecast + raised.instance_seconds,
        }
    }
}

/// Loads of an instance that need none of its own: what is left of a load long gone.
const LEAST: f64 = 0.001;

impl Judgement {
    fn extra(&self) -> f64 {
        self.instance_seconds_with_forecast - self.instance_seconds
    }

    fn is_sound(&self) -> bool {
        let seconds = [self.instance_seconds, self.instance_seconds_with_forecast];
        seconds
            .iter()
            .all(|seconds| seconds.is_finite() && *seconds >= 0.0)
    }
}

/// `it would have saved 12 of 20 cold starts, for 1.4 more instance-hours`
impl std::fmt::Display for Judgement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.cold_starts;
        let hours = self.extra() / 3600.0;
        let (hours, which) = (hours.abs(), if hours < 0.0 { "fewer" } else { "more" });
        match all.checked_sub(self.cold_starts_with_forecast) {
            Some(saved) => write!(f, "it would have saved {saved} of {all} cold starts")?,
            None => write!(
                f,
                "it would have made {} cold starts of {all}",
                self.cold_starts_with_forecast
            )?,
        }
        write!(f, ", for {hours:.1} {which} instance-hours")
    }
}

impl Shadow {
    fn new(plan: &RevisionPlan, now: Duration) -> Self {
        Self {
            tracker: Tracker::new(plan, &Load::default(), now),
            fleet: VirtualFleet::new(0, now),
        }
    }

    fn second(&mut self, plan: &RevisionPlan, second: &Second, bounds: Bounds) {
        let &Second {
            now,
            load,
            value,
            start,
            ..
        } = second;
        let capacity = plan.policy.total_value;
        let start = start.unwrap_or(UNKNOWN_START);
        self.fleet.pass(now, value, capacity);
        self.tracker.sample(self.fleet.carry(load), now);
        self.tracker.set_bounds(bounds);
        if let Some(decision) = self.tracker.tick(plan, now) {
            self.fleet.set(decision.desired, start, value, capacity);
        }
        if let Some(decision) = self.tracker.scale_up_now(plan, now) {
            self.fleet.set(decision.desired, start, value, capacity);
        }
    }
}

/// What is kept of a forecast.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(flatten)]
    forecast: Saved,
    judged: Vec<Judgement>,
    judging: Option<Judgement>,
}

#[cfg(test)]
#[path = "foresight_tests.rs"]
mod tests;
