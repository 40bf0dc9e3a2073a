//! A sequential test by betting: e-processes of two Bernoulli rates.
//!
//! An **e-process** is the fortune of a gambler who bets against a hypothesis: it begins at 1, and where the hypothesis is true its
//! expectation never grows. By Ville's inequality it then reaches `1 / α` at any time, however often somebody looks, with a
//! probability of at most `α`. So the test rejects at `1 / α`, at once, and `α` bounds the false alarms of the whole rollout.
//!
//! The bets are likelihood ratios of an alternative to the point of the hypothesis that is closest to it. The alternative may be any
//! function of what was seen *before*; several alternatives are mixed by averaging the fortunes.
//!
//! **Late onsets.** A gambler who staked everything at the beginning has nothing left when a revision that was good for an hour goes
//! bad. So only half of the money is staked at first, and from the rest `1 / (t·(t + 1))` of the whole before block `t`, which sums to
//! 1: a mixture over the block in which the fault begins. It is an e-process as each of its parts is one, and the threshold stays.
//! A fault that begins with block `t` costs `2·ln t` more evidence than one that was always there.

use serde::{Deserialize, Serialize};

/// The money of a gambler who bets on several alternatives, and on a fault that begins with any block.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Fortune {
    /// Blocks so far.
    blocks: u64,
    /// By alternative, the logarithm of what is staked on the next block, as a part of the alternative's money at first.
    stakes: Vec<f64>,
}

impl Fortune {
    /// The money at first: 1.
    pub(super) fn new(alternatives: usize) -> Self {
        Self {
            blocks: 0,
            stakes: vec![weight(1).ln(); alternatives],
        }
    }

    /// Whether there is nothing to bet on yet.
    pub(super) fn is_empty(&self) -> bool {
        self.stakes.is_empty()
    }

    /// Bets on a block: by alternative, the logarithm of what a stake becomes. An alternative that is missing does not bet.
    pub(super) fn bet(&mut self, logs: impl IntoIterator<Item = f64>) {
        self.blocks += 1;
        let mut logs = logs.into_iter();
        let fresh = self.fresh();
        for stake in &mut self.stakes {
            *stake = added(*stake + logs.next().unwrap_or(0.0), fresh);
        }
    }

    /// The logarithm of all of the money: the stakes, and what is kept for later blocks.
    pub(super) fn total(&self) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let kept = -(self.blocks as f64 + 2.0).ln();
        added(mixed(&self.stakes), kept)
    }

    /// The logarithm of the money that is staked anew on the next block.
    fn fresh(&self) -> f64 {
        weight(self.blocks + 1).ln()
    }
}

/// The part of the money that is staked on a fault that begins with this block, from 1.
fn weight(block: u64) -> f64 {
    1.0 / (block as f64 * (block as f64 + 1.0))
}

/// The logarithm of a sum, of logarithms.
fn added(a: f64, b: f64) -> f64 {
    let (greater, lesser) = if a > b { (a, b) } else { (b, a) };
    greater + (lesser - greater).exp().ln_1p()
}

/// The logarithm of the likelihood ratio of `hits` in `n` requests: a rate of `alternative` against one of at most `limit`.
///
/// For a rate of at most `limit` and an `alternative` above it the expectation of the ratio is at most 1.
pub(super) fn against_limit(hits: u64, n: u64, alternative: f64, limit: f64) -> f64 {
    ratio(hits, n, alternative, limit)
}

/// What one block of requests says of two rates.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counts {
    /// Requests of the candidate.
    pub(super) requests: u64,
    /// Those that count against it.
    pub(super) hits: u64,
    /// Requests of the base.
    pub(super) base_requests: u64,
    /// Those that count against the base.
    pub(super) base_hits: u64,
}

/// The logarithm of the likelihood ratio of a block: the rates `alternative` and `base`, against a candidate's rate of at most
/// `factor` times the base's, whatever this is.
///
/// The base's rate is a nuisance: the ratio is taken to the point of the hypothesis with the least Kullback-Leibler divergence from
/// the alternative, weighted by the numbers of requests. With that point the expectation is at most 1 for *every* pair of rates in
/// the hypothesis (Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for optional
/// stopping"): `n·ln f + m·ln g ≤ n·(f − 1) + m·(g − 1)`, with `f` and `g` the expectations for one request of each side. The right
/// side is linear in both rates, 0 on the whole boundary by the choice of the point, and below 0 inside. So the rates may even
/// change from block to block.
pub(super) fn against_base(counts: Counts, alternative: f64, base: f64, factor: f64) -> f64 {
    if alternative <= factor * base {
        return 0.0;
    }
    let nearest = nearest(counts, alternative, base, factor);
    ratio(counts.hits, counts.requests, alternative, factor * nearest)
        + ratio(counts.base_hits, counts.base_requests, base, nearest)
}

/// The base's rate at the point of the boundary that is nearest to the alternative: the lesser root of a parabola, which lies
/// between `base` and `alternative / factor`.
fn nearest(counts: Counts, alternative: f64, base: f64, factor: f64) -> f64 {
    let (n, m) = (counts.requests as f64, counts.base_requests as f64);
    let a = factor * (n + m);
    let b = n * (alternative + factor) + m * (1.0 + factor * base);
    let c = n * alternative + m * base;
    let root = (b * b - 4.0 * a * c).max(0.0).sqrt();
    (2.0 * c / (b + root)).clamp(base, alternative / factor)
}

/// `ln(p/q)` for each hit and `ln((1-p)/(1-q))` for each other request.
fn ratio(hits: u64, n: u64, p: f64, q: f64) -> f64 {
    let (hits, others) = (hits as f64, n.saturating_sub(hits) as f64);
    let mut sum = 0.0;
    if hits > 0.0 {
        sum += hits * (p / q).ln();
    }
    if others > 0.0 {
        sum += others * ((1.0 - p) / (1.0 - q)).ln();
    }
    sum
}

/// The logarithm of the mean of fortunes that are given as logarithms: the fortune of who spread the stake evenly.
pub(super) fn mixed(logs: &[f64]) -> f64 {
    let Some(greatest) = logs.iter().copied().reduce(f64::max) else {
        return 0.0;
    };
    let sum: f64 = logs.iter().map(|log| (log - greatest).exp()).sum();
    let count = logs.len() as f64;
    greatest + (sum / count).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expectation of a block's ratio, over all outcomes.
    fn expectation(n: u64, m: u64, p: f64, q: f64, alternative: f64, base: f64, factor: f64) -> f64 {
        let mut sum = 0.0;
        for hits in 0..=n {
            for base_hits in 0..=m {
                let counts = Counts {
                    requests: n,
                    hits,
                    base_requests: m,
                    base_hits,
                };
                let ratio = against_base(counts, alternative, base, factor).exp();
                sum += binomial(n, hits, p) * binomial(m, base_hits, q) * ratio;
            }
        }
        sum
    }

    fn binomial(n: u64, k: u64, p: f64) -> f64 {
        let choose = (0..k).fold(1.0, |c, i| c * (n - i) as f64 / (i + 1) as f64);
        choose * p.powi(i32::try_from(k).unwrap()) * (1.0 - p).powi(i32::try_from(n - k).unwrap())
    }

    #[test]
    fn no_pair_of_rates_in_the_hypothesis_makes_the_bet_worth_more_than_its_stake() {
        for factor in [1.0, 1.5, 2.0, 5.0] {
            for (n, m) in [(1, 1), (1, 7), (6, 2), (5, 5), (0, 4), (4, 0)] {
                for (alternative, base) in [(0.02, 0.001), (0.1, 0.005), (0.6, 0.05), (0.95, 0.1)] {
                    for q in [0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0] {
                        for part in [0.0, 0.5, 0.9, 1.0] {
                            let p = f64::min(factor * q * part, 1.0);
                            let e = expectation(n, m, p, q, alternative, base, factor);
                            assert!(
                                e <= 1.0 + 1e-9,
                                "{e}: {n} {m} {p} {q} {alternative} {base} {factor}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_bet_on_the_truth_grows() {
        let (p, q) = (0.1, 0.001);
        let e = expectation(8, 32, p, q, p, q, 2.0);
        assert!(e > 2.0, "{e}");
    }

    #[test]
    fn what_one_side_did_alone_says_nothing_of_the_ratio() {
        let alone = Counts {
            requests: 50,
            hits: 50,
            ..Counts::default()
        };
        assert!(against_base(alone, 0.5, 0.01, 2.0).abs() < 1e-9);
        let base = Counts {
            base_requests: 50,
            base_hits: 3,
            ..Counts::default()
        };
        assert!(against_base(base, 0.5, 0.01, 2.0).abs() < 1e-9);
    }

    #[test]
    fn money_is_neither_made_nor_lost_by_fair_bets() {
        let mut fortune = Fortune::new(2);
        assert!(fortune.total().abs() < 1e-12);
        for _ in 0..1_000 {
            fortune.bet([0.0, 0.0]);
            assert!(fortune.total().abs() < 1e-9, "{}", fortune.total());
        }
        // All outcomes of ten fair tosses, the stake tripled or halved.
        let mut mean = 0.0;
        for tosses in 0..1_u32 << 10 {
            let mut fortune = Fortune::new(2);
            let mut probability = 1.0;
            for n in 0..10 {
                let (part, log) = match tosses >> n & 1 {
                    1 => (0.2, 3.0_f64.ln()),
                    _ => (0.8, 0.5_f64.ln()),
                };
                probability *= part;
                fortune.bet([log, 0.0]);
            }
            mean += probability * fortune.total().exp();
        }
        assert!((mean - 1.0).abs() < 1e-9, "{mean}");
    }

    #[test]
    fn a_fault_that_begins_late_is_seen_and_costs_little_more() {
        let blocks_until_certain = |good: u64| {
            let mut fortune = Fortune::new(1);
            for _ in 0..good {
                fortune.bet([-0.5]);
            }
            let mut blocks = 0;
            while fortune.total() < 200.0_f64.ln() {
                fortune.bet([1.0]);
                blocks += 1;
            }
            blocks
        };
        assert_eq!(blocks_until_certain(0), 6);
        assert_eq!(blocks_until_certain(600), 17);
        assert_eq!(blocks_until_certain(1_000_000), 32);
    }

    #[test]
    fn a_mixture_is_the_mean() {
        let mean: f64 = f64::midpoint(3.0_f64, 5.0_f64).ln();
        assert!((mixed(&[3.0_f64.ln(), 5.0_f64.ln()]) - mean).abs() < 1e-12);
        assert!((mixed(&[0.0, -10_000.0]) - 0.5_f64.ln()).abs() < 1e-12);
        assert_eq!(mixed(&[]), 0.0);
    }
}
