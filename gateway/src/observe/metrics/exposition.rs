//! Prometheus's text format for what lives by service and revision.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::reason::Reason;
use super::RevisionLoad;
use super::latency::{BOUNDS, Latency};
use super::revision::{ActivationResult, RevisionMetrics, ServiceMetrics};

/// A revision's gauges at the moment of a scrape.
pub(super) struct Gauges {
    pub(super) load: RevisionLoad,
    /// `None` for a revision that nothing scales.
    pub(super) desired: Option<u32>,
}

/// Appends all families. Each is written in one piece, as the format demands, and left out while
/// it has no series.
pub(super) fn render<'s>(
    out: &mut String,
    services: impl Iterator<Item = &'s ServiceMetrics> + Clone,
    revisions: &[Arc<RevisionMetrics>],
    gauges: &[Gauges],
) {
    let mut requests = Family::new(out, "sluice_requests_total", "counter", "Finished requests.");
    for service in services.clone() {
        service.codes.for_each(|code, count| {
            requests.line(
                "",
                format_args!("{},revision=\"\",code=\"{code:03}\"", service.labels),
                count,
            );
        });
    }
    for revision in revisions {
        revision.codes.for_each(|code, count| {
            requests.line("", format_args!("{},code=\"{code:03}\"", revision.labels), count);
        });
    }

    let name = "sluice_rejections_total";
    let help = "Requests that did not simply get their backend's answer, by why.";
    let mut rejections = Family::new(out, name, "counter", help);
    for service in services {
        for (reason, count) in Reason::ALL.iter().zip(&service.rejections) {
            rejections.counter(format_args!("{},reason=\"{reason}\"", service.labels), count);
        }
    }

    let name = "sluice_request_duration_seconds";
    let help = "From the complete request head to the last byte of the answer.";
    histograms(out, name, help, revisions, |r| &r.duration);
    let name = "sluice_queue_wait_seconds";
    let help = "How long requests waited that did not get a Permit at once.";
    histograms(out, name, help, revisions, |r| &r.queue_wait);

    let name = "sluice_activations_total";
    let mut activations = Family::new(out, name, "counter", "Activations by how they ended.");
    for revision in revisions {
        for (result, count) in ActivationResult::ALL.iter().zip(&revision.activations) {
            activations.counter(
                format_args!("{},result=\"{}\"", revision.labels, result.as_str()),
                count,
            );
        }
    }
    let name = "sluice_activation_duration_seconds";
    let help = "From the first waiter at zero to a ready endpoint or the failure.";
    histograms(out, name, help, revisions, |r| &r.activation);

    let name = "sluice_cold_start_phase_seconds";
    let help = "Where the time until the first byte went, for requests that waited for a start.";
    let mut phases = Family::new(out, name, "histogram", help);
    for revision in revisions {
        for (phase, latency) in revision.cold_start() {
            let labels = format!("{},phase=\"{phase}\"", revision.labels);
            phases.histogram(&labels, latency);
        }
    }

    let name = "sluice_requests_in_flight";
    let mut in_flight = Family::new(out, name, "gauge", "Requests and streams that hold a Permit.");
    for gauge in gauges {
        in_flight.line("", format_args!("{}", gauge.load), gauge.load.in_flight);
    }
    let mut queued = Family::new(out, "sluice_queue_depth", "gauge", "Requests that wait.");
    for gauge in gauges {
        queued.line("", format_args!("{}", gauge.load), gauge.load.queued);
    }
    let name = "sluice_revision_replicas";
    let mut replicas = Family::new(out, name, "gauge", "Endpoints wanted and endpoints ready.");
    for gauge in gauges {
        if let Some(desired) = gauge.desired {
            replicas.line("", format_args!("{},state=\"desired\"", gauge.load), desired);
        }
        replicas.line(
            "",
            format_args!("{},state=\"ready\"", gauge.load),
            gauge.load.ready,
        );
    }
}

/// Appends how many tables are alive.
pub(super) fn tables(out: &mut String, alive: usize) {
    let name = "sluice_tables_alive";
    push(
        out,
        format_args!(
            "# HELP {name} Tables not yet dropped: the one served, and those that requests still hold.\n"
        ),
    );
    push(out, format_args!("# TYPE {name} gauge\n{name} {alive}\n"));
}

/// As labels.
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

/// Writes HELP and TYPE before its first line.
pub(super) struct Family<'o> {
    out: &'o mut String,
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    started: bool,
}

impl<'o> Family<'o> {
    pub(super) fn new(
        out: &'o mut String,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            out,
            name,
            kind,
            help,
            started: false,
        }
    }

    pub(super) fn line(&mut self, suffix: &str, labels: fmt::Arguments<'_>, value: impl fmt::Display) {
        let name = self.name;
        if !self.started {
            self.started = true;
            push(self.out, format_args!("# HELP {name} {}\n", self.help));
            push(self.out, format_args!("# TYPE {name} {}\n", self.kind));
        }
        push(self.out, format_args!("{name}{suffix}{{{labels}}} {value}\n"));
    }

    /// A series that never moved is not shown.
    fn counter(&mut self, labels: fmt::Arguments<'_>, counter: &AtomicU64) {
        match counter.load(Ordering::Relaxed) {
            0 => {}
            count => self.line("", labels, count),
        }
    }

    /// As a counter: not shown before the first duration.
    fn histogram(&mut self, labels: &str, latency: &Latency) {
        let Some(buckets) = latency.buckets() else {
            return;
        };
        for ((_, le), count) in BOUNDS.iter().zip(buckets.cumulative) {
            self.line("_bucket", format_args!("{labels},le=\"{le}\""), count);
        }
        self.line("_bucket", format_args!("{labels},le=\"+Inf\""), buckets.count);
        self.line("_sum", format_args!("{labels}"), buckets.sum.as_secs_f64());
        self.line("_count", format_args!("{labels}"), buckets.count);
    }
}

fn histograms(
    out: &mut String,
    name: &'static str,
    help: &'static str,
    revisions: &[Arc<RevisionMetrics>],
    latency: fn(&RevisionMetrics) -> &Latency,
) {
    let mut family = Family::new(out, name, "histogram", help);
    for revision in revisions {
        family.histogram(&revision.labels, latency(revision));
    }
}

fn push(out: &mut String, text: fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = out.write_fmt(text);
}
