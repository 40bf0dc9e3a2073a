//! The judgement of a candidate: worse, not worse, or not clear yet.

use super::evidence::{Evidence, Pair, QUANTILES};
use super::policy::JudgePolicy;

/// What the evidence says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// The candidate looks no worse.
    Fine,
    /// The candidate looks worse, which may be chance.
    Unclear,
    /// The candidate is worse, with the reason in one line. It is said of one that is not worse with a probability of at most
    /// `falseAlarm`, over the whole rollout.
    Worse(String),
}

/// Judges the candidate against the settled revision `base`.
pub(super) fn judge(evidence: &Evidence, policy: &JudgePolicy, base: &str) -> Verdict {
    // Half of the false alarms for either test. Ville's inequality: an e-process reaches 1/α with a probability of α at most.
    let certain = (2.0 / policy.false_alarm).ln();
    let since = evidence.since_fault();
    let looks_bad = looks_bad(since, policy);
    if looks_bad && evidence.of_errors() >= certain {
        return Verdict::Worse(of_errors(evidence, since, base));
    }
    // The first requests of a new instance are slow: caches and connections are cold.
    let is_slow = evidence.ended() >= policy.min_requests;
    if is_slow && evidence.of_latency() >= certain {
        return Verdict::Worse(of_latency(evidence, policy, base));
    }
    if looks_bad || is_slow && evidence.of_latency() > 0.0 {
        return Verdict::Unclear;
    }
    Verdict::Fine
}

/// Whether the candidate's failure rate is above both limits, with half a failure more of the base. `since` the fault began, if there
/// is one: the good answers of an hour are no excuse.
fn looks_bad(since: Pair, policy: &JudgePolicy) -> bool {
    let rate = since.candidate.rate();
    rate > policy.max_error_rate && rate > policy.max_error_ratio * since.base.rate_with_half()
}

/// How far the evidence is on the way to "worse": 0 is none, 1 is certain.
pub(super) fn progress(evidence: &Evidence, policy: &JudgePolicy) -> f64 {
    let certain = (2.0 / policy.false_alarm).ln();
    (evidence.of_errors().max(evidence.of_latency()) / certain).clamp(0.0, 1.0)
}

fn of_errors(evidence: &Evidence, since: Pair, base: &str) -> String {
    let (candidate, settled) = (since.candidate, since.base);
    let last = match candidate.requests < evidence.candidate.requests {
        true => "the last ",
        false => "",
    };
    format!(
        "{} of {last}{} requests failed ({:.1} %), against {} of {} ({:.1} %) of {base} over the same time",
        candidate.hits,
        candidate.requests,
        candidate.rate() * 100.0,
        settled.hits,
        settled.requests,
        settled.rate() * 100.0,
    )
}

fn of_latency(evidence: &Evidence, policy: &JudgePolicy, base: &str) -> String {
    let all = evidence.exceedances().iter().zip(QUANTILES);
    let Some((slow, quantile)) = all.max_by(|a, b| a.0.evidence().total_cmp(&b.0.evidence())) else {
        return String::new();
    };
    let since = slow.since_fault();
    let bound = slow.bound as f64 / 1_000.0;
    format!(
        "{:.1} % of {} requests took longer than {} ms, {} times the {:.0}th percentile of {base}, against {:.1} % of its own above \
         that percentile over the same time",
        since.candidate.rate() * 100.0,
        since.candidate.requests,
        if bound < 10.0 {
            format!("{bound:.1}")
        } else {
            format!("{bound:.0}")
        },
        policy.max_latency_ratio,
        quantile * 100.0,
        since.base.rate() * 100.0,
    )
}
