//! What requests of a revision came to, for the judgement of rollouts.

use crate::name::{RevisionId, ServiceId};

/// What a revision's requests came to so far, and its endpoints now. Counters only grow, and a failure is a request at once; after the revision was removed and came
/// back they may begin anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Requests that ended by what the revision did: answered, failed, timed out. Rejections of the gateway and clients that
    /// left are not among them.
    pub requests: u64,
    /// Those of them that failed: a 5xx of the backend, a failed connect, a broken connection, a timeout, a failed activation.
    pub failures: u64,
    /// Requests whose clients left before there was an answer.
    pub unanswered: u64,
    /// Requests whose clients left within a good answer.
    pub interrupted: u64,
    /// Answers by duration, and what ended without one after this duration (`unanswered`, timeouts): pairs of a bucket
    /// ([`latency_bucket`]) and a count, the lowest bucket first. Buckets without a request are left out.
    pub latency: Vec<(u16, u64)>,
    /// Requests that the revision has now, and those that wait for it.
    pub in_flight: u32,
    /// Endpoints that are usable now.
    pub ready: u32,
    /// Endpoints that are known now, those that are starting included and draining ones not.
    pub endpoints: u32,
}

/// The source of [`Outcomes`]; implemented by the data plane.
pub trait OutcomeSource: Send + Sync {
    /// The outcomes of a revision; `None` for one that the data plane does not know. Takes some ten microseconds: for open
    /// rollouts only.
    fn outcomes(&self, service: &ServiceId, revision: &RevisionId) -> Option<Outcomes>;
}

/// Sub-buckets of a factor of two: a bucket is at most an eighth wider than its lower end.
const PER_OCTAVE: u32 = 8;
const SHIFT: u32 = PER_OCTAVE.ilog2();

/// The bucket of a duration in microseconds; greater durations have greater buckets.
pub fn latency_bucket(micros: u64) -> u16 {
    let micros = micros.max(u64::from(PER_OCTAVE));
    let octave = micros.ilog2() - SHIFT;
    // From PER_OCTAVE to 2 * PER_OCTAVE - 1.
    let leading = u32::try_from(micros >> octave).unwrap_or(PER_OCTAVE);
    u16::try_from(octave * PER_OCTAVE + leading - PER_OCTAVE).unwrap_or(u16::MAX)
}

/// The longest duration in a bucket, in microseconds.
pub fn latency_bound(bucket: u16) -> u64 {
    let octave = u32::from(bucket) / PER_OCTAVE;
    let leading = u64::from(PER_OCTAVE + u32::from(bucket) % PER_OCTAVE);
    let next = u128::from(leading + 1) << octave.min(64);
    u64::try_from(next - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lies_within_an_eighth_of_its_buckets_bound() {
        let mut last = 0;
        for micros in (0..20_000).chain([1 << 30, (1 << 40) - 1, 1 << 40, u64::MAX]) {
            let bucket = latency_bucket(micros);
            assert!(bucket >= last, "{micros}");
            last = bucket;
            let bound = latency_bound(bucket);
            assert!(bound >= micros, "{micros} {bound}");
            assert!(bound - micros <= bound / 8 || micros < 9, "{micros} {bound}");
            assert_eq!(latency_bucket(bound), bucket, "{micros}");
            assert!(latency_bucket(bound.saturating_add(1)) > bucket || bound == u64::MAX);
        }
    }
}
