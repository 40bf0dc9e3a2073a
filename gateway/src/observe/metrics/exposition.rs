//! Prometheus's text exposition format, version 0.0.4: the one writer of `/metrics`.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::reason::Reason;
use super::families::{
    ACTIVATION_DURATION, ACTIVATIONS, COLD_START_PHASE, Family, IN_FLIGHT, QUEUE_DEPTH, QUEUE_WAIT,
    REJECTIONS, REPLICAS, REQUEST_DURATION, REQUESTS, TABLES,
};
use super::latency::{BOUNDS, Buckets};
use super::revision::{ActivationResult, RevisionMetrics, ServiceMetrics};
use super::{LiveGauges, RevisionLoad};

/// The text so far. Each family is written in one piece, as the format demands, and left out while it has
/// no series.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family. No family may be begun twice.
    pub(super) fn family(&mut self, family: &'static Family) -> Samples<'_> {
        Samples {
            out: &mut self.0,
            family,
            headed: false,
        }
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// Writes the samples of one family, with HELP and TYPE before the first.
pub(super) struct Samples<'o> {
    out: &'o mut String,
    family: &'static Family,
    headed: bool,
}

impl Samples<'_> {
    /// One sample. `labels` in text form, without the braces; empty for a series without labels.
    pub(super) fn sample(&mut self, labels: fmt::Arguments<'_>, value: impl fmt::Display) {
        self.suffixed("", labels, value);
    }

    fn suffixed(&mut self, suffix: &str, labels: fmt::Arguments<'_>, value: impl fmt::Display) {
        let Family { name, kind, help } = self.family;
        if !self.headed {
            self.headed = true;
            push(self.out, format_args!("# HELP {name} {help}\n"));
            push(self.out, format_args!("# TYPE {name} {}\n", kind.as_str()));
        }
        push(self.out, format_args!("{name}{suffix}"));
        let open = self.out.len();
        push(self.out, format_args!("{{{labels}"));
        // Only the brace: no labels.
        match self.out.len() == open + 1 {
            true => self.out.truncate(open),
            false => self.out.push('}'),
        }
        push(self.out, format_args!(" {value}\n"));
    }

    /// A counter by service or revision; 0 is not exposed, since most of these counters never move.
    fn counter(&mut self, labels: fmt::Arguments<'_>, counter: &AtomicU64) {
        match counter.load(Ordering::Relaxed) {
            0 => {}
            count => self.sample(labels, count),
        }
    }

    /// A histogram; not exposed before the first duration.
    fn histogram(&mut self, labels: &str, buckets: Option<Buckets>) {
        let Some(buckets) = buckets else {
            return;
        };
        for ((_, le), count) in BOUNDS.iter().zip(buckets.cumulative) {
            self.suffixed("_bucket", format_args!("{labels},le=\"{le}\""), count);
        }
        self.suffixed("_bucket", format_args!("{labels},le=\"+Inf\""), buckets.count);
        self.suffixed("_sum", format_args!("{labels}"), buckets.sum.as_secs_f64());
        self.suffixed("_count", format_args!("{labels}"), buckets.count);
    }
}

/// Writes the counters and histograms of requests, by service and revision.
pub(super) fn counted<'s>(
    out: &mut Exposition,
    services: impl Iterator<Item = &'s ServiceMetrics> + Clone,
    revisions: &[Arc<RevisionMetrics>],
) {
    let mut requests = out.family(&REQUESTS);
    for service in services.clone() {
        service.codes.for_each(|code, count| {
            let labels = &service.labels;
            requests.sample(format_args!("{labels},revision=\"\",code=\"{code:03}\""), count);
        });
    }
    for revision in revisions {
        revision.finished.for_each_code(|code, count| {
            requests.sample(format_args!("{},code=\"{code:03}\"", revision.labels), count);
        });
    }

    let mut rejections = out.family(&REJECTIONS);
    for service in services {
        for (reason, count) in Reason::ALL.iter().zip(&service.rejections) {
            rejections.counter(format_args!("{},reason=\"{reason}\"", service.labels), count);
        }
    }

    histograms(out, &REQUEST_DURATION, revisions, |r| r.finished.durations());
    histograms(out, &QUEUE_WAIT, revisions, |r| r.queue_wait.buckets());

    let mut activations = out.family(&ACTIVATIONS);
    for revision in revisions {
        for (result, count) in ActivationResult::ALL.iter().zip(&revision.activations) {
            let labels = &revision.labels;
            activations.counter(format_args!("{labels},result=\"{}\"", result.as_str()), count);
        }
    }
    histograms(out, &ACTIVATION_DURATION, revisions, |r| r.activation.buckets());

    let mut phases = out.family(&COLD_START_PHASE);
    for revision in revisions {
        for (phase, latency) in revision.cold_start() {
            let labels = format!("{},phase=\"{phase}\"", revision.labels);
            phases.histogram(&labels, latency.buckets());
        }
    }
}

fn histograms(
    out: &mut Exposition,
    family: &'static Family,
    revisions: &[Arc<RevisionMetrics>],
    buckets: fn(&RevisionMetrics) -> Option<Buckets>,
) {
    let mut samples = out.family(family);
    for revision in revisions {
        samples.histogram(&revision.labels, buckets(revision));
    }
}

/// Writes the gauges of live state, except those of certificates and of scale decisions.
pub(super) fn gauges(out: &mut Exposition, gauges: &LiveGauges) {
    let LiveGauges {
        loads,
        desired,
        tables,
        certificates: _,
        stats: _,
        scaling: _,
        rollouts: _,
        replicas: _,
    } = gauges;
    let mut in_flight = out.family(&IN_FLIGHT);
    for load in loads {
        in_flight.sample(format_args!("{load}"), load.in_flight);
    }
    let mut queued = out.family(&QUEUE_DEPTH);
    for load in loads {
        queued.sample(format_args!("{load}"), load.queued);
    }
    let mut replicas = out.family(&REPLICAS);
    for load in loads {
        if let Some(desired) = desired.get(&load.revision) {
            replicas.sample(format_args!("{load},state=\"desired\""), desired);
        }
        replicas.sample(format_args!("{load},state=\"ready\""), load.ready);
    }
    out.family(&TABLES).sample(format_args!(""), tables);
}

/// The revision's labels, in text form.
impl fmt::Display for RevisionLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "namespace=\"{}\",service=\"{}\",revision=\"{}\"",
            self.service.namespace(),
            self.service.name(),
            self.revision.name()
        )
    }
}

fn push(out: &mut String, text: fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = out.write_fmt(text);
}
