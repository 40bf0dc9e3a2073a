//! Rollouts in virtual time: the engine with requests drawn from known rates, for tests, and for the table and the plot of the docs.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use sluice_model::latency_bucket;

use super::engine::Rules;
use super::policy::{RolloutPolicy, Steps};
use super::seen::{Seen, Side};
use super::{Rollout, RolloutState, WHOLE};

/// What both revisions do, and how they are compared.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The rules.
    pub policy: RolloutPolicy,
    /// Requests a second, of both together; their number in a second has a Poisson distribution.
    pub rate: f64,
    /// The probability that a request of the settled revision fails.
    pub base_errors: f64,
    /// The same of the candidate.
    pub candidate_errors: f64,
    /// The candidate is as good as the settled revision for so many seconds of its share.
    pub good_for: u64,
    /// The candidate never answers, and its clients leave after this time.
    pub hangs: Option<Duration>,
    /// The median duration of the settled revision; `None`: durations are not drawn.
    pub base_latency: Option<Duration>,
    /// How many times longer the candidate takes.
    pub slowdown: f64,
    /// The standard deviation of the logarithm of durations.
    pub spread: f64,
    /// Ready instances of the settled revision.
    pub instances: u32,
    /// What a start of an instance takes.
    pub start: Duration,
}

impl Default for Scenario {
    /// The issue's: steps of 20 and 50 %, every 10 s, at 50 requests/s.
    fn default() -> Self {
        Self {
            policy: RolloutPolicy {
                steps: Steps::Listed {
                    shares: vec![2_000, 5_000],
                    every: Duration::from_secs(10),
                },
                ..RolloutPolicy::default()
            },
            rate: 50.0,
            base_errors: 0.0,
            candidate_errors: 0.0,
            good_for: 0,
            hangs: None,
            base_latency: None,
            slowdown: 1.0,
            spread: 0.7,
            instances: 4,
            start: Duration::from_secs(2),
        }
    }
}

/// How a rollout went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// It was rolled back.
    pub failed: bool,
    /// Seconds from the candidate's first share to the end.
    pub seconds: u64,
    /// Requests of the candidate until then.
    pub requests: u64,
    /// Those of them that failed.
    pub hurt: u64,
    /// Whether a step began without ready instances for its share.
    pub cold: bool,
    /// The most instances of both revisions, as a multiple of what the settled one had.
    pub peak: f64,
    /// Steps without a clear judgement.
    pub unjudged: u32,
    /// The share in hundredths of a percent by second since the first share.
    pub shares: Vec<u32>,
}

/// The longest rollout, in seconds.
const LONGEST: u64 = 24 * 3600;

/// How long the first step of a rollout with a late fault is, in seconds.
const LATE: u64 = 12 * 3600;

impl Scenario {
    /// A candidate that is good for so many seconds, at 20 % of the traffic, and fails from then on.
    pub fn late(good_for: u64, candidate_errors: f64) -> Self {
        let mut late = Self {
            good_for,
            candidate_errors,
            ..Self::default()
        };
        if let Steps::Listed { every, .. } = &mut late.policy.steps {
            *every = Duration::from_secs(LATE);
        }
        late
    }

    /// Plays one rollout to its end, or through a day.
    pub fn play(&self, seed: u64) -> Course {
        let mut rng = Rng::with_seed(seed);
        let mut rollout = Rollout::new("candidate", 0);
        let rules = Rules {
            policy: Some(&self.policy),
            base: "base",
            of: WHOLE,
        };
        let mut course = Course::default();
        let mut fleet = Fleet::default();
        for now in 0..LONGEST {
            let is_good = course.seconds < self.good_for;
            let mut seen = match self.base_latency {
                Some(median) => self.second_with_durations(&mut rng, rollout.share, is_good, median),
                None => self.second(&mut rng, rollout.share, is_good),
            };
            seen.base.ready = self.instances;
            seen.base.wanted = Some(self.instances);
            seen.candidate.ready = fleet.ready(now);
            let before = rollout.share;
            if rollout.share > 0 {
                course.seconds += 1;
                course.shares.push(rollout.share);
            }
            course.requests += seen.candidate.requests;
            course.hurt += seen.candidate.failures;
            rollout.tick(rules, &seen, Duration::from_secs(1), now);
            fleet.want(rollout.floor(rules, &seen), now + self.start.as_secs());
            let have = f64::from(seen.candidate.ready);
            let base = f64::from(self.instances);
            course.cold |=
                rollout.share > before && have + 1e-6 < base * f64::from(rollout.share) / f64::from(WHOLE);
            course.peak = course.peak.max(1.0 + have / base);
            if !rollout.state.is_open() {
                break;
            }
        }
        course.failed = rollout.state == RolloutState::Failed;
        course.unjudged = rollout.unjudged;
        course
    }

    /// The requests of one second, without durations: those of each revision that fail, and those that do not, have Poisson
    /// distributions of their own.
    fn second(&self, rng: &mut Rng, share: u32, is_good: bool) -> Seen {
        let part = f64::from(share) / f64::from(WHOLE);
        let mut side = |rate: f64, errors: f64| {
            let failures = poisson(rng, rate * errors);
            Side {
                requests: failures + poisson(rng, rate * (1.0 - errors)),
                failures,
                ..Side::default()
            }
        };
        let base = side(self.rate * (1.0 - part), self.base_errors);
        let candidate = side(self.rate * part, self.errors(is_good));
        let candidate = match self.hangs.filter(|_| !is_good) {
            Some(_) => Side {
                unanswered: candidate.requests,
                ..Side::default()
            },
            None => candidate,
        };
        Seen {
            candidate,
            base,
            start_failure: None,
        }
    }

    fn errors(&self, is_good: bool) -> f64 {
        if is_good {
            self.base_errors
        } else {
            self.candidate_errors
        }
    }

    fn second_with_durations(&self, rng: &mut Rng, share: u32, is_good: bool, median: Duration) -> Seen {
        let mut seen = Seen::default();
        let mut durations = [BTreeMap::new(), BTreeMap::new()];
        let hangs = self.hangs.filter(|_| !is_good);
        for _ in 0..poisson(rng, self.rate) {
            let is_candidate = rng.u32(0..WHOLE) < share;
            let (side, errors, slowdown) = match is_candidate {
                true if is_good => (&mut seen.candidate, self.base_errors, 1.0),
                true => (&mut seen.candidate, self.candidate_errors, self.slowdown),
                false => (&mut seen.base, self.base_errors, 1.0),
            };
            let took = if let (true, Some(patience)) = (is_candidate, hangs) {
                side.unanswered += 1;
                patience
            } else {
                side.requests += 1;
                side.failures += u64::from(rng.f64() < errors);
                Duration::from_secs_f64(median.as_secs_f64() * slowdown * (self.spread * normal(rng)).exp())
            };
            let bucket = latency_bucket(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            *durations[usize::from(is_candidate)].entry(bucket).or_default() += 1;
        }
        let [base, candidate] = durations;
        seen.base.latency = base.into_iter().collect();
        seen.candidate.latency = candidate.into_iter().collect();
        seen
    }
}

/// The candidate's instances, by when they are ready.
#[derive(Debug, Default)]
struct Fleet(Vec<u64>);

impl Fleet {
    fn ready(&self, now: u64) -> u32 {
        let ready = self.0.iter().filter(|at| **at <= now).count();
        u32::try_from(ready).unwrap_or(u32::MAX)
    }

    fn want(&mut self, floor: u32, at: u64) {
        let floor = usize::try_from(floor).unwrap_or(usize::MAX);
        if self.0.len() < floor {
            self.0.resize(floor, at);
        }
    }
}

/// Knuth's algorithm.
fn poisson(rng: &mut Rng, mean: f64) -> u64 {
    let end = (-mean).exp();
    let mut product = rng.f64();
    let mut count = 0;
    while product > end {
        product *= rng.f64();
        count += 1;
    }
    count
}

/// One number of Box and Muller's pair.
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * rng.f64()).cos()
}

/// The courses of `runs` seeds, from 0, on all cores.
pub fn play_all(scenario: &Scenario, runs: u64) -> Vec<Course> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let parts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|nth| {
                scope.spawn(move || -> Vec<Course> {
                    (nth..runs)
                        .step_by(threads as usize)
                        .map(|seed| scenario.play(seed))
                        .collect()
                })
            })
            .collect();
        let parts: Vec<Vec<Course>> = workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect();
        parts
    });
    parts.into_iter().flatten().collect()
}

#[cfg(test)]
#[path = "sim_tests.rs"]
mod tests;
