//! What the engine gets: what both revisions of a rollout did since the last look, and what they have now.

use sluice_model::Outcomes;

/// What one revision did since the last tick, and what it has now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Side {
    /// Requests that ended by what the revision did.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// Requests whose clients left before there was an answer.
    pub unanswered: u64,
    /// Requests whose clients left within a good answer.
    pub interrupted: u64,
    /// Durations, of requests that ended without an answer too: pairs of a [`latency_bucket`](sluice_model::latency_bucket) and a count.
    pub latency: Vec<(u16, u64)>,
    /// Requests that it has now, and those that wait for it.
    pub in_flight: u32,
    /// Ready endpoints.
    pub ready: u32,
    /// The endpoints that it should have: those that scaling wants, or the listed ones. `None`: nobody knows, as its starts fail.
    pub wanted: Option<u32>,
    /// The most ready endpoints that it can have; `None` is no limit.
    pub most: Option<u32>,
}

/// What was seen since the last tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// The newer revision.
    pub candidate: Side,
    /// The settled revision.
    pub base: Side,
    /// Why the last start of the candidate failed, for as long as that lasts.
    pub start_failure: Option<String>,
}

impl Side {
    /// What was counted since the last look. A counter that shrank began anew, as its revision was removed and came back: what it
    /// counted is of an unknown time, and left out.
    pub fn since(now: &Outcomes, before: &Outcomes) -> Self {
        let mut known = before.latency.iter().peekable();
        let mut latency = Vec::new();
        for &(bucket, count) in &now.latency {
            while known.next_if(|(of, _)| *of < bucket).is_some() {}
            let before = known
                .next_if(|(of, _)| *of == bucket)
                .map_or(0, |(_, count)| *count);
            let grown = count.saturating_sub(before);
            if grown > 0 {
                latency.push((bucket, grown));
            }
        }
        if now.requests < before.requests || now.unanswered < before.unanswered {
            latency.clear();
        }
        let requests = now.requests.saturating_sub(before.requests);
        Self {
            requests,
            failures: now.failures.saturating_sub(before.failures).min(requests),
            unanswered: now.unanswered.saturating_sub(before.unanswered),
            interrupted: now.interrupted.saturating_sub(before.interrupted),
            latency,
            in_flight: now.in_flight,
            ready: now.ready,
            wanted: Some(now.endpoints),
            most: None,
        }
    }

    /// Good answers.
    pub fn answers(&self) -> u64 {
        let good = self.requests.saturating_sub(self.failures);
        good.saturating_add(self.interrupted)
    }
}
