//! Which statistics are sent. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use prost::Message;
use sluice_model::{Load, RevisionId};

/// The period of reports: that of the autoscaler's buckets.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// Revisions in use, as the autoscaler has heard of them.
#[derive(Debug, Default)]
pub(super) struct Reports {
    entries: HashMap<RevisionId, Entry>,
    /// The time of the sample before.
    sampled: Option<Instant>,
}

#[derive(Debug, Default)]
struct Entry {
    /// The first request was reported at once, and is not to be reported again.
    first: f64,
    /// Requests before the time that the next load is of.
    earlier: u64,
}

/// What is reported of a revision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stat {
    pub(super) concurrency: f64,
    pub(super) requests: f64,
}

impl Reports {
    /// Whether the autoscaler knows that a revision is in use.
    pub(super) fn knows(&self, revision: &RevisionId) -> bool {
        self.entries.contains_key(revision)
    }

    /// The report of the first waiter of a revision that the autoscaler does not know to be in use. `load` is a sample of this
    /// moment: the next one is of the time since the first waiter, as an activator's is. Of a whole period it would be thinned
    /// by the time in which nobody waited, and too few Pods were started for a burst.
    pub(super) fn activate(&mut self, revision: &RevisionId, load: &Load) -> Stat {
        let entry = Entry {
            first: 1.0,
            earlier: load.requests,
        };
        self.entries.insert(revision.clone(), entry);
        Stat {
            concurrency: 1.0,
            requests: 1.0,
        }
    }

    /// Whether any revision is in use, as far as the autoscaler was told.
    pub(super) fn is_in_use(&self) -> bool {
        !self.entries.is_empty()
    }

    /// The reports of the time since the last ones, as of one period. A revision that was not used in all of it is reported once
    /// more, as idle, and forgotten.
    ///
    /// Requests are normalised to a period: the first sample after an outage of the connection is of all that time, whose requests
    /// queue-proxies have counted, and as those of one second they would look like a burst.
    pub(super) fn tick(&mut self, loads: Vec<(RevisionId, Load)>, now: Instant) -> Vec<(RevisionId, Stat)> {
        let since = self.sampled.replace(now);
        let periods = since.map_or(PERIOD, |since| now.saturating_duration_since(since));
        let periods = periods.as_secs_f64().max(PERIOD.as_secs_f64()) / PERIOD.as_secs_f64();
        let mut reports = Vec::new();
        for (revision, load) in loads {
            let is_used =
                load.average_concurrency > 0.0 || load.requests > 0 || load.in_flight + load.queued > 0;
            let known = self.entries.remove(&revision);
            if !is_used && known.is_none() {
                continue;
            }
            let Entry { first, earlier } = known.unwrap_or_default();
            let stat = Stat {
                concurrency: (load.average_concurrency - first).max(0.0),
                requests: (to_f64(load.requests + earlier) - first).max(0.0) / periods,
            };
            if is_used {
                self.entries.insert(revision.clone(), Entry::default());
            }
            reports.push((revision, stat));
        }
        reports
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a second are far below 2^52")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

/// The message of some reports: Protocol Buffers, as `pkg/autoscaler/metrics/stat.proto` of knative.dev/serving has them.
pub(super) fn encode(pod_name: &str, reports: &[(RevisionId, Stat)]) -> Vec<u8> {
    let messages = reports.iter().map(|(revision, stat)| WireStatMessage {
        namespace: revision.namespace().to_owned(),
        // A revision that two Ingresses name has the Ingress in its name as well.
        name: revision.name().split('~').next().unwrap_or_default().to_owned(),
        stat: Some(WireStat {
            pod_name: pod_name.to_owned(),
            average_concurrent_requests: stat.concurrency,
            request_count: stat.requests,
        }),
    });
    WireStatMessages {
        messages: messages.collect(),
    }
    .encode_to_vec()
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WireStatMessages {
    #[prost(message, repeated, tag = "1")]
    pub(super) messages: Vec<WireStatMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WireStatMessage {
    #[prost(string, tag = "1")]
    pub(super) namespace: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(message, optional, tag = "3")]
    pub(super) stat: Option<WireStat>,
}

/// Without the fields that an activator leaves at zero.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WireStat {
    #[prost(string, tag = "1")]
    pub(super) pod_name: String,
    #[prost(double, tag = "2")]
    pub(super) average_concurrent_requests: f64,
    #[prost(double, tag = "4")]
    pub(super) request_count: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RevisionId {
        RevisionId::parse("d", "hello-00001").expect("a name")
    }

    fn load(average: f64, requests: u64, in_flight: u32) -> Vec<(RevisionId, Load)> {
        let load = Load {
            average_concurrency: average,
            requests,
            in_flight,
            ..Load::default()
        };
        vec![(id(), load)]
    }

    /// A second after the one before.
    fn tick(reports: &mut Reports, loads: Vec<(RevisionId, Load)>) -> Option<(f64, f64)> {
        let now = reports
            .sampled
            .map_or_else(Instant::now, |before| before + PERIOD);
        let sent = reports.tick(loads, now);
        let (_, stat) = sent.first()?;
        Some((stat.concurrency, stat.requests))
    }

    /// The vectors of Knative's `concurrency_reporter_test.go`.
    #[test]
    fn reports_are_those_of_knative() {
        let one = Stat {
            concurrency: 1.0,
            requests: 1.0,
        };
        // Two requests start and stay.
        let mut reports = Reports::default();
        assert_eq!(reports.activate(&id(), &Load::default()), one);
        assert!(reports.knows(&id()));
        assert_eq!(tick(&mut reports, load(2.0, 2, 2)), Some((1.0, 1.0)));
        assert_eq!(tick(&mut reports, load(2.0, 0, 2)), Some((2.0, 0.0)));
        // One request of a second; then two periods without any; then one again.
        let mut reports = Reports::default();
        assert_eq!(reports.activate(&id(), &Load::default()), one);
        assert_eq!(tick(&mut reports, load(1.0, 1, 0)), Some((0.0, 0.0)));
        assert_eq!(tick(&mut reports, load(0.0, 0, 0)), Some((0.0, 0.0)));
        assert_eq!(tick(&mut reports, load(0.0, 0, 0)), None);
        assert_eq!(reports.activate(&id(), &Load::default()), one);
        // Three at once, of which two came before the first one was reported.
        let mut reports = Reports::default();
        let (_, before) = load(0.0, 2, 2).remove(0);
        reports.activate(&id(), &before);
        assert_eq!(tick(&mut reports, load(3.0, 1, 3)), Some((2.0, 2.0)));
        assert_eq!(tick(&mut reports, load(3.0, 0, 3)), Some((3.0, 0.0)));
    }

    #[test]
    fn a_revision_in_use_that_nobody_waited_for_is_reported_as_it_is() {
        let mut reports = Reports::default();
        assert_eq!(tick(&mut reports, load(0.0, 0, 0)), None);
        assert_eq!(tick(&mut reports, load(0.5, 1, 0)), Some((0.5, 1.0)));
        // It is known now: its next request is not reported at once.
        assert!(reports.knows(&id()));
    }

    #[test]
    fn an_outage_is_reported_as_its_average_and_not_as_one_second() {
        let mut reports = Reports::default();
        assert_eq!(tick(&mut reports, load(1.0, 40, 1)), Some((1.0, 40.0)));
        let later = reports.sampled.expect("sampled") + 10 * PERIOD;
        let (_, stat) = reports.tick(load(1.0, 400, 1), later)[0];
        assert_eq!((stat.concurrency, stat.requests), (1.0, 40.0));
        // Sooner than after a period, as a new connection is: nothing is extrapolated.
        let (_, stat) = reports.tick(load(1.0, 4, 1), later + PERIOD / 10)[0];
        assert_eq!(stat.requests, 4.0);
    }

    #[test]
    fn the_message_is_that_of_the_proto_file() {
        let stat = Stat {
            concurrency: 1.0,
            requests: 2.0,
        };
        let sent = encode("p", &[(id(), stat)]);
        let mut want = vec![0x0a, 39, 0x0a, 1, b'd', 0x12, 11];
        want.extend(b"hello-00001");
        want.extend([0x1a, 21, 0x0a, 1, b'p', 0x11]);
        want.extend(1.0f64.to_le_bytes());
        want.push(0x21);
        want.extend(2.0f64.to_le_bytes());
        assert_eq!(sent, want);
    }
}
