//! Finished requests of a revision, by whether it has to answer for them.
//!
//! Counters only grow, and every request is in exactly one of them: what a reader adds up never falls, however many requests finish
//! meanwhile. (A difference of counters, all but the excused ones, would fall for a moment whenever a request is in one and not yet
//! in the other.)

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_model::Outcomes;

use super::super::reason::Reason;
use super::super::record::RequestRecord;
use super::latency::{self, Buckets, Latency};
use super::status_codes::StatusCodes;

/// All finished requests. Those that the revision simply answered cost what two striped counters cost; the others share memory
/// that is taken with the first of them.
#[derive(Debug, Default)]
pub(super) struct Finished {
    answered: Answered,
    apart: OnceLock<Box<Apart>>,
}

/// Requests that the revision answered, with whatever status.
#[derive(Debug, Default)]
struct Answered {
    codes: StatusCodes,
    durations: Latency,
}

/// Requests that ended otherwise.
#[derive(Debug, Default)]
struct Apart {
    codes: StatusCodes,
    /// Durations that say nothing of the revision.
    durations: Latency,
    /// Durations of requests that ended before the answer: it would have taken longer.
    censored: Latency,
    outcomes: [AtomicU64; 5],
}

/// What a request that was not simply answered says of the revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing.
    Excused,
    /// It failed by the revision.
    Failed,
    /// The revision answered it well, after a stream that began before there was an instance.
    AnsweredLate,
    /// The client left before there was an answer.
    Unanswered,
    /// The client left within a good answer.
    Interrupted,
}

impl Finished {
    pub(super) fn add(&self, record: &RequestRecord<'_>) {
        let is_answered = record.reason.is_none() && record.status.is_some() && record.final_status.is_none();
        if is_answered {
            self.answered.codes.add(record.code());
            self.answered.durations.record(record.duration);
            return;
        }
        let apart = self.apart.get_or_init(Box::default);
        let outcome = outcome(record);
        apart.codes.add(record.code());
        let durations = match (outcome, record.reason) {
            (Outcome::Unanswered, _) | (_, Some(Reason::Timeout)) => &apart.censored,
            _ => &apart.durations,
        };
        durations.record(record.duration);
        apart.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Calls `each` with every code that occurred and its count.
    pub(super) fn for_each_code(&self, mut each: impl FnMut(u16, u64)) {
        let Some(apart) = self.apart.get() else {
            return self.answered.codes.for_each(each);
        };
        let mut sums = BTreeMap::<u16, u64>::new();
        for codes in [&self.answered.codes, &apart.codes] {
            codes.for_each(|code, count| *sums.entry(code).or_default() += count);
        }
        for (code, count) in sums {
            each(code, count);
        }
    }

    /// All durations so far; `None` before the first.
    pub(super) fn durations(&self) -> Option<Buckets> {
        let apart = self.apart.get().into_iter();
        let apart = apart.flat_map(|apart| [&apart.durations, &apart.censored]);
        latency::buckets(std::iter::once(&self.answered.durations).chain(apart))
    }

    /// What requests came to so far, for the judgement of rollouts; without endpoints and requests in flight.
    pub(super) fn outcomes(&self) -> Outcomes {
        let apart = self.apart.get();
        let count = |outcome: Outcome| {
            apart.map_or(0, |apart| {
                apart.outcomes[outcome as usize].load(Ordering::Relaxed)
            })
        };
        let mut good = count(Outcome::AnsweredLate);
        let mut failures = count(Outcome::Failed);
        self.answered.codes.for_each(|code, count| match code {
            500.. => failures += count,
            _ => good += count,
        });
        let censored = apart.into_iter().map(|apart| &apart.censored);
        Outcomes {
            requests: good + failures,
            failures,
            unanswered: count(Outcome::Unanswered),
            interrupted: count(Outcome::Interrupted),
            latency: latency::fine(std::iter::once(&self.answered.durations).chain(censored)),
            ..Outcomes::default()
        }
    }
}

fn outcome(record: &RequestRecord<'_>) -> Outcome {
    match (record.reason, record.final_status.or(record.status)) {
        (None, Some(..500)) => Outcome::AnsweredLate,
        (None, Some(_)) => Outcome::Failed,
        (Some(Reason::ClientGone), None) => Outcome::Unanswered,
        (Some(Reason::ClientGone), Some(..500)) => Outcome::Interrupted,
        (Some(reason), _) if is_of_revision(reason) => Outcome::Failed,
        _ => Outcome::Excused,
    }
}

/// Whether it is the revision that a request failed by: not the client, and not the gateway's own bounds.
fn is_of_revision(reason: Reason) -> bool {
    match reason {
        Reason::ConnectFailed
        | Reason::UpstreamError
        | Reason::UpstreamReset
        | Reason::ActivationFailed
        | Reason::ActivationTimeout
        | Reason::NoEndpoints
        | Reason::Timeout => true,
        Reason::BadRequest
        | Reason::NoRoute
        | Reason::RequestTimeout
        | Reason::Misdirected
        | Reason::HeadersTooLarge
        | Reason::UriTooLong
        | Reason::BodyTooLarge
        | Reason::QueueFull
        | Reason::QueueTimeout
        | Reason::Starting
        | Reason::Dormant
        | Reason::Overloaded
        | Reason::Draining
        | Reason::Loop
        | Reason::ClientGone => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sluice_model::latency_bucket;

    use super::super::super::record::tests::plain;
    use super::*;

    fn ended(status: Option<u16>, reason: Option<Reason>, millis: u64) -> RequestRecord<'static> {
        RequestRecord {
            status,
            reason,
            duration: Duration::from_millis(millis),
            ..plain()
        }
    }

    #[test]
    fn a_revision_answers_for_what_it_did_and_for_nothing_else() {
        let finished = Finished::default();
        for status in [200, 302, 404, 499, 500] {
            finished.add(&ended(Some(status), None, 1));
        }
        finished.add(&ended(Some(502), Some(Reason::ConnectFailed), 1));
        finished.add(&ended(Some(200), Some(Reason::UpstreamReset), 1));
        finished.add(&ended(Some(503), Some(Reason::ActivationFailed), 1));
        finished.add(&ended(Some(503), Some(Reason::QueueFull), 1));
        finished.add(&ended(Some(200), Some(Reason::ClientGone), 1));
        finished.add(&ended(None, Some(Reason::ClientGone), 1));
        finished.add(&ended(None, None, 1));
        for last in [200, 500] {
            finished.add(&RequestRecord {
                final_status: Some(last),
                ..plain()
            });
        }
        let outcomes = finished.outcomes();
        assert_eq!((outcomes.requests, outcomes.failures), (10, 5));
        assert_eq!((outcomes.unanswered, outcomes.interrupted), (1, 1));
        let mut all = 0;
        finished.for_each_code(|_, count| all += count);
        assert_eq!((all, finished.durations().unwrap().count), (14, 14));
    }

    #[test]
    fn latency_is_that_of_answers_and_of_requests_that_waited_in_vain() {
        let finished = Finished::default();
        for (status, reason, millis) in [
            (Some(200), None, 10),
            (Some(500), None, 20),
            (None, Some(Reason::ClientGone), 3_000),
            (Some(504), Some(Reason::Timeout), 60_000),
            // Quick, and no answers of the revision: an overloaded one would look fast.
            (Some(503), Some(Reason::QueueFull), 1),
            (Some(503), Some(Reason::Dormant), 2),
            (Some(503), Some(Reason::Starting), 3),
            (Some(502), Some(Reason::ConnectFailed), 4),
            (Some(200), Some(Reason::ClientGone), 100_000),
        ] {
            finished.add(&ended(status, reason, millis));
        }
        let known: Vec<u64> = [10, 20, 3_000, 60_000].map(|millis| millis * 1_000).to_vec();
        let latency = finished.outcomes().latency;
        let expected: Vec<(u16, u64)> = known.iter().map(|micros| (latency_bucket(*micros), 1)).collect();
        assert_eq!(latency, expected);
    }

    #[test]
    fn what_a_reader_sees_never_falls() {
        let finished = Finished::default();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let finished = &finished;
                scope.spawn(move || {
                    for n in 0..30_000_u16 {
                        let (status, reason) = match (n + thread) % 3 {
                            0 => (Some(200), None),
                            1 => (Some(503), Some(Reason::QueueFull)),
                            _ => (Some(502), Some(Reason::ConnectFailed)),
                        };
                        finished.add(&ended(status, reason, 1));
                    }
                });
            }
            let mut before = Outcomes::default();
            while before.requests < 40_000 {
                let now = finished.outcomes();
                let grown = now.requests.checked_sub(before.requests).expect("it never falls");
                let failed = now.failures.checked_sub(before.failures).expect("it never falls");
                assert!(failed <= grown, "each failure is a request at once");
                before = now;
            }
        });
        let last = finished.outcomes();
        assert_eq!((last.requests, last.failures), (40_000, 20_000));
    }

    #[test]
    fn every_reason_has_its_side() {
        let of_revision: Vec<&str> = Reason::ALL
            .into_iter()
            .filter(|reason| is_of_revision(*reason))
            .map(Reason::as_str)
            .collect();
        let handbook = include_str!("../../../../docs/rollouts.md");
        for reason in &of_revision {
            assert!(handbook.contains(&format!("`{reason}`")), "{reason}");
        }
        assert_eq!(of_revision.len(), 7);
    }
}
