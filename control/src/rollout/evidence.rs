//! What both revisions of a rollout did over the same time, and the bets against "the candidate is not worse".

use serde::{Deserialize, Serialize};
use sluice_model::{latency_bound, latency_bucket};

use super::engine::Side;
use super::policy::JudgePolicy;
use super::sequential::{Counts, against_base, against_limit, mixed};

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
    /// Requests of the candidate in the present step.
    pub in_step: u64,
    /// Requests that are not yet in a bet.
    block: Block,
    /// The logarithms of the bets against a failure rate of at most `maxErrorRate`, by alternative.
    limit: Vec<f64>,
    /// Those against at most `maxErrorRatio` times the base's failure rate.
    ratio: Vec<f64>,
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
    /// By quantile; empty until the base's latency is known.
    slow: Vec<Slow>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Pair {
    candidate: Tally,
    base: Tally,
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

    fn is_whole(self) -> bool {
        self.candidate.requests >= BLOCK && self.base.requests >= BLOCK
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

/// How many requests are slower than a quantile of the base.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Exceedance {
    /// Of the candidate, above the base's quantile times `maxLatencyRatio`.
    pub(super) candidate: Tally,
    /// Of the base, above its quantile.
    pub(super) base: Tally,
    /// The latency that the candidate was held against last, in microseconds.
    pub(super) bound: u64,
    /// The logarithms of the bets, by alternative.
    bets: Vec<f64>,
}

impl Exceedance {
    /// The logarithm of the evidence that the candidate is slower.
    pub(super) fn evidence(&self) -> f64 {
        mixed(&self.bets)
    }
}

impl Evidence {
    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what was seen since the last call. `candidate` is `None` while it has no share: the base makes itself known.
    pub(super) fn add(&mut self, candidate: Option<&Side>, base: &Side, policy: &JudgePolicy) {
        if self.limit.is_empty() {
            self.limit = vec![0.0; ERROR_FACTORS.len()];
            self.ratio = vec![0.0; ERROR_FACTORS.len()];
            self.latency = vec![
                Exceedance {
                    bets: vec![0.0; LATENCY_FACTORS.len()],
                    ..Exceedance::default()
                };
                QUANTILES.len()
            ];
        }
        if self.block.slow.is_empty() {
            self.choose_latencies(policy);
        }
        self.base.add(base.requests, base.failures);
        self.block.errors.base.add(base.requests, base.failures);
        for slow in &mut self.block.slow {
            let (all, above) = above(&base.latency, slow.base);
            slow.pair.base.add(all, above);
        }
        if let Some(candidate) = candidate {
            self.in_step = self.in_step.saturating_add(candidate.requests);
            self.candidate.add(candidate.requests, candidate.failures);
            self.block
                .errors
                .candidate
                .add(candidate.requests, candidate.failures);
            for slow in &mut self.block.slow {
                let (all, above) = above(&candidate.latency, slow.candidate);
                slow.pair.candidate.add(all, above);
            }
        }
        // Blocks end by the number of requests, never by what they came to: that would be a choice by the outcome.
        let is_over = match candidate {
            Some(_) => self.block.errors.is_whole(),
            None => self.block.errors.base.requests >= BLOCK,
        };
        for &(bucket, count) in &base.latency {
            match self.base_durations.binary_search_by_key(&bucket, |known| known.0) {
                Ok(at) => self.base_durations[at].1 += count,
                Err(at) => self.base_durations.insert(at, (bucket, count)),
            }
        }
        if is_over {
            let block = std::mem::take(&mut self.block);
            self.bet(&block, policy);
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
        let mut known = self.base;
        known.requests -= block.errors.base.requests;
        known.hits -= block.errors.base.hits;
        let limit = policy.max_error_rate;
        let prior = 0.5 * policy.max_error_ratio / limit;
        let base = rate_with(known, 0.5, prior);
        let counts = block.errors.counts();
        let worst = limit.max(policy.max_error_ratio * base);
        let bets = self.limit.iter_mut().zip(&mut self.ratio);
        for (factor, (of_limit, of_ratio)) in ERROR_FACTORS.iter().zip(bets) {
            let alternative = (worst * factor).min(GREATEST_RATE);
            if alternative > worst {
                *of_limit += against_limit(counts.hits, counts.requests, alternative, limit);
                *of_ratio += against_base(counts, alternative, base, policy.max_error_ratio);
            }
        }
        for (exceedance, slow) in self.latency.iter_mut().zip(&block.slow) {
            let base = rate_with(exceedance.base, 0.5, 1.0).min(GREATEST_RATE);
            let counts = slow.pair.counts();
            for (factor, bet) in LATENCY_FACTORS.iter().zip(&mut exceedance.bets) {
                let odds = base / (1.0 - base) * factor;
                *bet += against_base(counts, odds / (1.0 + odds), base, 1.0);
            }
            exceedance.candidate.add(counts.requests, counts.hits);
            exceedance.base.add(counts.base_requests, counts.base_hits);
        }
    }

    /// The logarithm of the evidence that the candidate fails too often: that of the weaker of both tests, as both have to hold.
    pub(super) fn of_errors(&self) -> f64 {
        mixed(&self.limit).min(mixed(&self.ratio))
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
            evidence.add(Some(&side(1, 0, 1_000)), &side(0, 0, 0), &policy);
        }
        assert_eq!(evidence.of_errors(), 0.0, "the base had no request");
        assert_eq!(evidence.block.errors.candidate.requests, 10);
        evidence.add(Some(&side(0, 0, 0)), &side(30, 0, 1_000), &policy);
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
            evidence.add(Some(&candidate), &base, &policy);
            restarted.add(Some(&candidate), &base, &policy);
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
    fn the_size_of_a_document_is_bounded() {
        let policy = JudgePolicy::default();
        let mut evidence = Evidence::default();
        for n in 0..1_000_u64 {
            evidence.add(
                Some(&side(5, 1, 1 << (n % 40))),
                &side(5, 0, n * n * 1_000),
                &policy,
            );
        }
        let document = serde_json::to_vec(&evidence).unwrap();
        assert!(document.len() < 8_000, "{}", document.len());
    }
}
