//! Seven simulated days: forecast and schedules next to the load alone, on the same load, in virtual time.
//!
//! The first three days are for learning; the last four are counted.

mod plot;
mod week;

use std::fmt::Write;
use std::time::Duration;

use sluice_control::autoscale::replay::{Outcome, Replay};
use sluice_control::compile::load;
use sluice_control::plan::RevisionPlan;
use sluice_control::source::SourceFile;
use sluice_model::ScaleSource;

pub use plot::plot;
pub use week::{DAY, ORIGIN, SEED, week};

/// Days that are not counted.
pub const LEARNING: usize = 3;

/// What a start takes.
pub const START: Duration = Duration::from_secs(8);

/// A policy's run over the week.
#[derive(Debug, Clone)]
pub struct Run {
    /// The policy, for the table.
    pub name: String,
    /// Of the days that are counted.
    pub counted: Outcome,
    /// Of each day.
    pub days: Vec<Outcome>,
    /// Instances wanted, every [`Run::STEP`] seconds.
    pub wanted: Vec<u32>,
    /// Seconds for which each signal had set the number.
    pub won: Vec<(ScaleSource, u64)>,
}

impl Run {
    /// The step of `wanted`, in seconds.
    pub const STEP: usize = 60;
}

/// The revision of all runs: ten requests an instance, Knative's defaults for the rest.
const REVISION: &str = "
state: {directory: /nowhere}
services:
  - name: shop
    revisions:
      - name: shop-v1
        process: {command: [sluice, echo]}
        containerConcurrency: 10
        autoscaling: ";

/// The plan of the revision with these keys of `autoscaling`, in flow style.
///
/// # Panics
/// For keys that a config file could not have.
pub fn plan(autoscaling: &str) -> RevisionPlan {
    let file = SourceFile {
        path: "week.yaml".into(),
        text: format!("{REVISION}{autoscaling}"),
    };
    let compiled = load(&[file], &|_| None).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let plan = compiled.plan.revisions.into_values().next();
    RevisionPlan::clone(&plan.expect("one revision"))
}

/// Plays a week's load, a number for each second, by a plan.
pub fn run(name: &str, plan: RevisionPlan, load: &[u32]) -> Run {
    let mut replay = Replay::new(plan, ORIGIN, START);
    let mut days = Vec::new();
    let mut wanted = Vec::new();
    let mut won: Vec<(ScaleSource, u64)> = Vec::new();
    let mut before = Outcome::default();
    for (second, &concurrency) in load.iter().enumerate() {
        let (desired, source) = replay.second(concurrency);
        if second % Run::STEP == 0 {
            wanted.push(desired);
        }
        match won.iter_mut().find(|(known, _)| *known == source) {
            Some((_, seconds)) => *seconds += 1,
            None => won.push((source, 1)),
        }
        if (second + 1) % DAY == 0 {
            let outcome = replay.outcome();
            days.push(outcome.since(&before));
            before = outcome;
        }
    }
    let counted = days
        .iter()
        .skip(LEARNING)
        .fold(Outcome::default(), |sum, day| Outcome {
            cold_starts: sum.cold_starts + day.cold_starts,
            instance_seconds: sum.instance_seconds + day.instance_seconds,
        });
    Run {
        name: name.to_owned(),
        counted,
        days,
        wanted,
        won,
    }
}

/// All runs of the comparison.
#[derive(Debug)]
pub struct Comparison {
    /// The load alone.
    pub reactive: Run,
    /// With a forecast.
    pub forecast: Run,
    /// The smallest constant minimum with no more cold starts than the forecast.
    pub constant: Run,
    /// With office hours, which know the peaks.
    pub schedules: Run,
}

/// Plays the week by each policy.
pub fn compare(load: &[u32]) -> Comparison {
    let reactive = run("load alone (KPA)", plan("{}"), load);
    let forecast = run("forecast", plan("{forecast: {season: 24h}}"), load);
    let enough = |run: &Run| run.counted.cold_starts <= forecast.counted.cold_starts;
    let constant = (1..)
        .map(|min| {
            run(
                &format!("minScale: {min}"),
                plan(&format!("{{minScale: {min}}}")),
                load,
            )
        })
        .find(enough)
        .expect("with enough instances nothing waits");
    let schedules = run("schedules", plan(SCHEDULES), load);
    Comparison {
        reactive,
        forecast,
        constant,
        schedules,
    }
}

/// What somebody writes who knows the day: a floor by day, more over the two peaks.
const SCHEDULES: &str = "{schedules: [
    {cron: '30 6 * * *', duration: 16h, minScale: 2},
    {cron: '50 8 * * *', duration: 3h, minScale: 11},
    {cron: '50 18 * * *', duration: 3h, minScale: 14}]}";

impl Comparison {
    /// The runs, in the order of the table.
    pub fn runs(&self) -> [&Run; 4] {
        [&self.reactive, &self.forecast, &self.constant, &self.schedules]
    }

    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let base = self.reactive.counted;
        let mut out = String::from(
            "| policy | cold starts | × load alone | instance-hours | × load alone | cold starts by day |\n|---|---|---|---|---|---|\n",
        );
        for run in self.runs() {
            let Outcome {
                cold_starts,
                instance_seconds,
            } = run.counted;
            #[allow(clippy::cast_precision_loss)]
            let cold_ratio = cold_starts as f64 / base.cold_starts.max(1) as f64;
            let days: Vec<String> = run.days.iter().map(|day| day.cold_starts.to_string()).collect();
            // A String takes everything.
            let _ = writeln!(
                out,
                "| {} | {cold_starts} | {cold_ratio:.2} | {:.1} | {:.2} | {} |",
                run.name,
                instance_seconds / 3600.0,
                instance_seconds / base.instance_seconds,
                days.join(", ")
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bounds that the forecast is held to.
    #[test]
    fn a_forecast_halves_cold_starts_for_little_more() {
        let comparison = compare(&week(SEED));
        println!("{}", comparison.table());
        let Comparison {
            reactive,
            forecast,
            constant,
            schedules,
        } = &comparison;
        assert!(reactive.counted.cold_starts >= 100, "there is something to save");
        assert!(
            forecast.counted.cold_starts * 2 <= reactive.counted.cold_starts,
            "at most half of the cold starts"
        );
        let ratio = forecast.counted.instance_seconds / reactive.counted.instance_seconds;
        assert!(ratio <= 1.15, "{ratio} of the instance-hours");
        assert!(
            forecast.counted.instance_seconds < constant.counted.instance_seconds,
            "cheaper than a constant minimum that is as good"
        );
        let same = |day: usize| (forecast.days[day], reactive.days[day]);
        // Nothing is raised before a whole day was learned and a whole day judged.
        for day in 0..2 {
            let (with, without) = same(day);
            assert_eq!(with, without, "day {day}");
        }
        assert!(
            schedules
                .won
                .iter()
                .any(|(source, _)| *source == ScaleSource::Schedule)
        );
        assert!(
            forecast
                .won
                .iter()
                .any(|(source, _)| *source == ScaleSource::Forecast)
        );
        assert!(
            reactive
                .won
                .iter()
                .all(|(source, _)| *source != ScaleSource::Forecast)
        );
    }

    /// Not only on one week's noise.
    #[test]
    fn the_bounds_hold_for_other_noise() {
        for seed in [1, 2, 3] {
            let load = week(seed);
            let reactive = run("", plan("{}"), &load).counted;
            let forecast = run("", plan("{forecast: {season: 24h}}"), &load).counted;
            assert!(
                forecast.cold_starts * 2 <= reactive.cold_starts,
                "{seed}: {forecast:?} {reactive:?}"
            );
            let ratio = forecast.instance_seconds / reactive.instance_seconds;
            assert!(ratio <= 1.15, "{seed}: {ratio}");
        }
    }
}
