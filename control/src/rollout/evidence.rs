//! What both revisions of a rollout did over the same time, and the bets against "the candidate is not worse".

use serde::{Deserialize, Serialize};
use sluice_model::{latency_bound, latency_bucket};

use super::policy::JudgePolicy;
use super::seen::Side;
use super::sequential::{Counts, Fortune, against_base, against_limit, mixed};

/// Alternatives for the candidate's failure rate, as multiples of the greatest rate that is not worse.
const ERROR_FACTORS: [f64; 9] = [1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0];

/// No alternative is a certainty: one good answer would end every bet on it.
const GREATEST_RATE: f64 = 0.95;

/// Alternatives for the part of the candidate's requests that is slower than a quantile of the base, as factors of its odds.
const LATENCY_FACTORS: [f64; 5] = [2.0, 4.0, 8.0, 16.0, 64.0];

/// The quantiles of the base's latency that the candidate is held against.
pub(super) const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// Requests of each side that make a block. A block with few requests of one side says little of their ratio.
const BLOCK: u64 = 4;

/// Requests of the base that its quantiles are told from at first.
const KNOWN: u64 = 20;

/// Requests, and those of them that count against a revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Requests.
    pub requests: u64,
    /// Those that failed, or were slow.
    pub hits: u64,
}

impl Tally {
    fn add(&mut self, requests: u64, hits: u64) {
        self.requests = self.requests.saturating_add(requests);
        self.hits = self.hits.saturating_add(hits);
    }

    /// The part of the hits; 0 without a request.
    pub fn rate(self) -> f64 {
        if self.requests == 0 {
            return 0.0;
        }
        self.hits as f64 / self.requests as f64
    }

    /// The rate, with half of one more hit: a guess that is never 0.
    pub(super) fn rate_with_half(self) -> f64 {
        if self.requests == 0 {
            return 1.0;
        }
        (self.hits as f64 + 0.5) / self.requests as f64
    }
}

/// What is known of both revisions since the rollout began. A document keeps it, so that a restart goes on with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Evidence {
    /// Failures of the candidate.
    pub candidate: Tally,
    /// Failures of the settled revision over the same time.
    pub base: Tally,
    /// Requests of the candidate that clients gave up before there was an answer.
    pub unanswered: u64,
    /// Requests of the candidate in the present step, those given up included.
    pub in_step: u64,
    /// Good answers of the candidate in the present step.
    pub answers_in_step: u64,
    /// Failures of the settled revision before the candidate had a share: a guess of its rate, compared with nothing.
    before: Tally,
    /// Requests that are not yet in a bet.
    block: Block,
    /// The bets against a failure rate of at most `maxErrorRate`, by alternative.
    limit: Fortune,
    /// Those against at most `maxErrorRatio` times the base's failure rate.
    ratio: Fortune,
    /// By alternative, when the candidate began to fail.
    onsets: Vec<Onset>,
    /// By quantile.
    latency: Vec<Exceedance>,
    /// Durations of the base: pairs of a bucket and a count.
    base_durations: Vec<(u16, u64)>,
}

/// Requests that are not yet in a bet. The latencies that they are held against were chosen before they came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Block {
    errors: Pair,
    /// Requests that clients gave up before there was an answer: of the candidate, and of the base.
    unanswered: (u64, u64),
    /// By quantile; empty until the base's latency is known.
    slow: Vec<Slow>,
}

impl Block {
    fn is_whole(&self) -> bool {
        self.errors.candidate.requests.saturating_add(self.unanswered.0) >= BLOCK
            && self.errors.base.requests.saturating_add(self.unanswered.1) >= BLOCK
    }
}

/// What both did over the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Pair {
    pub(super) candidate: Tally,
    pub(super) base: Tally,
}

impl Pair {
    fn counts(self) -> Counts {
        Counts {
            requests: self.candidate.requests,
            hits: self.candidate.hits,
            base_requests: self.base.requests,
            base_hits: self.base.hits,
        }
    }

    fn add(&mut self, more: Self) {
        self.candidate.add(more.candidate.requests, more.candidate.hits);
        self.base.add(more.base.requests, more.base.hits);
    }
}

/// The requests of a block that are slower than a quantile of the base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Slow {
    /// The bucket of the base's quantile: requests of the base above it are hits.
    base: u16,
    /// The first bucket whose bound is `maxLatencyRatio` times as great: requests of the candidate above it are hits.
    candidate: u16,
    pair: Pair,
}

/// When a fault began, if there is one, by Page's cumulative sum (CUSUM): where the evidence for it was least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Onset {
    /// The logarithm of the bets since then; above 0, or nothing speaks for a fault.
    rise: f64,
    /// What both did since then.
    since: Pair,
}

impl Onset {
    fn add(&mut self, log: f64, block: Pair) {
        self.rise += log;
        self.since.add(block);
        if self.rise <= 0.0 {
            *self = Self::default();
        }
    }
}

/// What both did since the onset for which there is most evidence.
fn latest(onsets: &[Onset]) -> Pair {
    let worst = onsets.iter().max_by(|a, b| a.rise.total_cmp(&b.rise));
    worst.map_or_else(Pair::default, |worst| worst.since)
}

/// How many requests are slower than a quantile of the base.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Exceedance {
    /// By alternative, when the candidate became slow. Hits are requests of the candidate above the base's quantile times
    /// `maxLatencyRatio`, and of the base above its quantile.
    onsets: Vec<Onset>,
    /// Of the base, above its quantile, over the whole rollout.
    base: Tally,
    /// The latency that the candidate was held against last, in microseconds.
    pub(super) bound: u64,
    /// The bets, by alternative.
    bets: Fortune,
}

impl Exceedance {
    /// The logarithm of the evidence that the candidate is slower.
    pub(super) fn evidence(&self) -> f64 {
        self.bets.total()
    }

    /// What both did since the candidate became slow, if it did.
    pub(super) fn since_fault(&self) -> Pair {
        latest(&self.onsets)
    }
}

impl Evidence {
    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Makes the base known by what it did while the candidate had no share. Nothing of it is compared: it was another time.
    pub(super) fn add_base(&mut self, base: &Side) {
        self.before.add(base.requests, base.failures);
        self.add_durations(base);
    }

    /// Adds what was seen since the last call, while both had a share.
    pub(super) fn add(&mut self, candidate: &Side, base: &Side, policy: &JudgePolicy) {
        if self.limit.is_empty() {
            self.limit = Fortune::new(ERROR_FACTORS.len());
            self.ratio = self.limit.clone();
            self.onsets = vec![Onset::default(); ERROR_FACTORS.len()];
            let exceedance = Exceedance {
                bets: Fortune::new(LATENCY_FACTORS.len()),
                onsets: vec![Onset::default(); LATENCY_FACTORS.len()],
                ..Exceedance::default()
            };
            self.latency = vec![exceedance; QUANTILES.len()];
        }
        if self.block.slow.is_empty() {
            self.choose_latencies(policy);
        }
        let ended = candidate.requests.saturating_add(candidate.unanswered);
        self.in_step = self.in_step.saturating_add(ended);
        self.answers_in_step = self.answers_in_step.saturating_add(candidate.answers());
        self.unanswered = self.unanswered.saturating_add(candidate.unanswered);
        self.candidate.add(candidate.requests, candidate.failures);
        self.base.add(base.requests, base.failures);
        let block = &mut self.block;
        block.errors.candidate.add(candidate.requests, candidate.failures);
        block.errors.base.add(base.requests, base.failures);
        block.unanswered.0 = block.unanswered.0.saturating_add(candidate.unanswered);
        block.unanswered.1 = block.unanswered.1.saturating_add(base.unanswered);
        for slow in &mut block.slow {
            let (all, hits) = above(&candidate.latency, slow.candidate);
            slow.pair.candidate.add(all, hits);
            let (all, hits) = above(&base.latency, slow.base);
            slow.pair.base.add(all, hits);
        }
        self.add_durations(base);
        // Blocks end by the number of requests, never by what they came to: that would be a choice by the outcome.
        if self.block.is_whole() {
            let block = std::mem::take(&mut self.block);
            self.bet(&block, policy);
        }
    }

    /// Begins a step.
    pub(super) fn begin_step(&mut self) {
        self.in_step = 0;
        self.answers_in_step = 0;
    }

    /// All requests of the candidate that ended, those given up included.
    pub(super) fn ended(&self) -> u64 {
        self.candidate.requests.saturating_add(self.unanswered)
    }

    fn add_durations(&mut self, base: &Side) {
        for &(bucket, count) in &base.latency {
            match self.base_durations.binary_search_by_key(&bucket, |known| known.0) {
                Ok(at) => self.base_durations[at].1 = self.base_durations[at].1.saturating_add(count),
                Err(at) => self.base_durations.insert(at, (bucket, count)),
            }
        }
    }

    /// Chooses the latencies of the block that begins, from what the base did before.
    fn choose_latencies(&mut self, policy: &JudgePolicy) {
        let all: u64 = self.base_durations.iter().map(|known| known.1).sum();
        if all < KNOWN {
            return;
        }
        for (quantile, exceedance) in QUANTILES.iter().zip(&mut self.latency) {
            let base = self::quantile(&self.base_durations, all, *quantile);
            let candidate = scaled(base, policy.max_latency_ratio);
            exceedance.bound = latency_bound(candidate);
            self.block.slow.push(Slow {
                base,
                candidate,
                pair: Pair::default(),
            });
        }
    }

    fn bet(&mut self, block: &Block, policy: &JudgePolicy) {
        // As of before this block. The prior is half a failure, at the rate at which both limits are the same.
        let mut known = self.before;
        known.add(
            self.base.requests - block.errors.base.requests,
            self.base.hits - block.errors.base.hits,
        );
        let limit = policy.max_error_rate;
        let prior = 0.5 * policy.max_error_ratio / limit;
        let base = rate_with(known, 0.5, prior);
        let counts = block.errors.counts();
        let worst = limit.max(policy.max_error_ratio * base);
        let bets: Vec<(f64, f64)> = ERROR_FACTORS
            .iter()
            .map(|factor| (worst * factor).min(GREATEST_RATE))
            .map(|rate| match rate > worst {
                true => (
                    against_limit(counts.hits, counts.requests, rate, limit),
                    against_base(counts, rate, base, policy.max_error_ratio),
                ),
                false => (0.0, 0.0),
            })
            .collect();
        self.limit.bet(bets.iter().map(|bet| bet.0));
        self.ratio.bet(bets.iter().map(|bet| bet.1));
        for (onset, bet) in self.onsets.iter_mut().zip(bets) {
            onset.add(bet.0.min(bet.1), block.errors);
        }
        for (exceedance, slow) in self.latency.iter_mut().zip(&block.slow) {
            let base = rate_with(exceedance.base, 0.5, 1.0).min(GREATEST_RATE);
            let counts = slow.pair.counts();
            let bets = LATENCY_FACTORS.map(|factor| {
                let odds = base / (1.0 - base) * factor;
                against_base(counts, odds / (1.0 + odds), base, 1.0)
            });
            exceedance.bets.bet(bets);
            for (onset, bet) in exceedance.onsets.iter_mut().zip(bets) {
                onset.add(bet, slow.pair);
            }
            exceedance.base.add(counts.base_requests, counts.base_hits);
        }
    }

    /// The logarithm of the evidence that the candidate fails too often: that of the weaker of both tests, as both have to hold.
    pub(super) fn of_errors(&self) -> f64 {
        self.limit.total().min(self.ratio.total())
    }

    /// What both did since the candidate began to fail, if it does.
    pub(super) fn since_fault(&self) -> Pair {
        let mut since = latest(&self.onsets);
        since.add(self.block.errors);
        since
    }

    /// By quantile, how slow the candidate is; empty at first.
    pub(super) fn exceedances(&self) -> &[Exceedance] {
        &self.latency
    }

    /// The logarithm of the evidence that the candidate is too slow.
    pub(super) fn of_latency(&self) -> f64 {
        let all: Vec<f64> = self.latency.iter().map(Exceedance::evidence).collect();
        mixed(&all)
    }
}

fn rate_with(tally: Tally, hits: f64, requests: f64) -> f64 {
    (tally.hits as f64 + hits) / (tally.requests as f64 + requests)
}

/// All requests, and those in buckets above this one.
fn above(durations: &[(u16, u64)], bucket: u16) -> (u64, u64) {
    let mut sums = (0, 0);
    for &(of, count) in durations {
        sums.0 += count;
        if of > bucket {
            sums.1 += count;
        }
    }
    sums
}

/// The bucket of a quantile.
fn quantile(durations: &[(u16, u64)], all: u64, quantile: f64) -> u16 {
    let rank = (all as f64 * quantile).ceil() as u64;
    let mut below = 0;
    for &(bucket, count) in durations {
        below += count;
        if below >= rank {
            return bucket;
        }
    }
    durations.last().map_or(0, |last| last.0)
}

/// The first bucket with a bound of at least `factor` times this one's.
fn scaled(bucket: u16, factor: f64) -> u16 {
    let wanted = (latency_bound(bucket) as f64 * factor).ceil() as u64;
    latency_bucket(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(requests: u64, failures: u64, micros: u64) -> Side {
        Side {
            requests,
            failures,
            latency: vec![(latency_bucket(micros), requests)],
            ..Side::default()
        }
    }

    #[test]
    fn blocks_wait_for_both_sides_and_nothing_is_lost() {
        let policy = JudgePolicy::default();
        let mut evidence = Evidence::default();
        for _ in 0..10 {
            evidence.add(&side(1, 0, 1_000), &side(0, 0, 0), &policy);
        }
        assert_eq!(evidence.of_errors(), 0.0, "the base had no request");
        assert_eq!(evidence.block.errors.candidate.requests, 10);
        evidence.add(&side(0, 0, 0), &side(30, 0, 1_000), &policy);
        assert_eq!(evidence.block, Block::default());
        assert!(evidence.of_errors() < 0.0, "good answers speak for the candidate");
        assert_eq!((evidence.candidate.requests, evidence.base.requests), (10, 30));
    }

    #[test]
    fn evidence_goes_on_after_a_restart() {
        let policy = JudgePolicy::default();
        let (mut evidence, mut restarted) = (Evidence::default(), Evidence::default());
        for n in 0..40 {
            let (candidate, base) = (side(3, n % 2, 4_000 + n * 100), side(9, 0, 1_000));
            evidence.add(&candidate, &base, &policy);
            restarted.add(&candidate, &base, &policy);
            let document = serde_json::to_vec(&restarted).unwrap();
            restarted = serde_json::from_slice(&document).unwrap();
        }
        assert_eq!(evidence.candidate, restarted.candidate);
        assert!((evidence.of_errors() - restarted.of_errors()).abs() < 1e-9);
        assert!((evidence.of_latency() - restarted.of_latency()).abs() < 1e-9);
        assert!(evidence.of_errors() > 10.0, "{}", evidence.of_errors());
        assert!(evidence.of_latency() > 10.0, "{}", evidence.of_latency());
    }

    #[test]
    fn a_candidate_is_held_against_a_bound_that_is_never_below_the_ratio() {
        for micros in [9, 700, 1_000, 12_345, 3_000_000] {
            for ratio in [1.0, 1.5, 2.0, 10.0] {
                let base = latency_bucket(micros);
                let bound = latency_bound(scaled(base, ratio)) as f64;
                let least = latency_bound(base) as f64 * ratio;
                assert!(
                    bound >= least && bound <= least * 1.15,
                    "{micros} × {ratio}: {bound}"
                );
            }
        }
    }

    #[test]
    fn what_the_base_did_before_is_compared_with_nothing() {
        let policy = JudgePolicy::default();
        let mut evidence = Evidence::default();
        // A quiet night without a failure, and then a database that is away for both.
        evidence.add_base(&side(100_000, 0, 1_000));
        assert_eq!((evidence.base, evidence.of_errors()), (Tally::default(), 0.0));
        for _ in 0..60 {
            evidence.add(&side(10, 4, 9_000), &side(40, 16, 9_000), &policy);
        }
        assert_eq!((evidence.base.requests, evidence.base.hits), (2_400, 960));
        assert!(evidence.of_errors() < 2.0, "{}", evidence.of_errors());
        assert!(evidence.of_latency() < 2.0, "{}", evidence.of_latency());
    }

    #[test]
    fn requests_given_up_are_slow_and_neither_good_nor_failed() {
        let policy = JudgePolicy::default();
        let mut evidence = Evidence::default();
        evidence.add_base(&side(100, 0, 20_000));
        let hangs = Side {
            unanswered: 10,
            latency: vec![(latency_bucket(3_000_000), 10)],
            ..Side::default()
        };
        for _ in 0..8 {
            evidence.add(&hangs, &side(40, 0, 20_000), &policy);
        }
        assert_eq!((evidence.in_step, evidence.answers_in_step), (80, 0));
        assert_eq!(evidence.candidate, Tally::default());
        assert!(evidence.of_errors() <= 0.0, "{}", evidence.of_errors());
        assert!(evidence.of_latency() > 10.0, "{}", evidence.of_latency());
    }

    #[test]
    fn the_fault_is_told_from_the_good_time_before_it() {
        let policy = JudgePolicy::default();
        let mut evidence = Evidence::default();
        for _ in 0..600 {
            evidence.add(&side(10, 0, 1_000), &side(40, 0, 1_000), &policy);
        }
        assert!(evidence.of_errors() < 0.0);
        for _ in 0..30 {
            evidence.add(&side(10, 1, 1_000), &side(40, 0, 1_000), &policy);
        }
        assert!(evidence.of_errors() > 5.3, "{}", evidence.of_errors());
        let since = evidence.since_fault();
        assert!(since.candidate.rate() > 0.08, "{since:?}");
        assert_eq!(evidence.candidate.requests, 6_300, "the whole is kept, too");
    }

    #[test]
    fn the_size_of_a_document_is_bounded() {
        let policy = JudgePolicy::default();
        let mut evidence = Evidence::default();
        for n in 0..1_000_u64 {
            evidence.add(&side(5, 1, 1 << (n % 40)), &side(5, 0, n * n * 1_000), &policy);
        }
        let document = serde_json::to_vec(&evidence).unwrap();
        assert!(document.len() < 8_000, "{}", document.len());
    }
}
