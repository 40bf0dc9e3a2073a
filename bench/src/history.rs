//! The operations `history/`: one step of the dashboard's hour, sampled from the metrics of 1,000 revisions.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sluice_gateway::observe::{
    History, MAX_SERIES, Metrics, Milestones, Phases, PresentRequests, RequestProtocol, RequestRecord,
    RevisionMetrics, STEPS,
};
use sluice_model::{Generation, RevisionId, ServiceId};

use super::{Operation, Run, Weight, operation};

pub(crate) fn operations() -> Vec<Operation> {
    vec![
        operation("history/idle/1000", Weight::Heavy, || step(false)),
        operation("history/busy/1000", Weight::Heavy, || step(true)),
    ]
}

/// The metrics of as many revisions as have series, and their history.
pub(crate) struct Sampled {
    metrics: Metrics,
    revisions: Vec<Arc<RevisionMetrics>>,
    pub(crate) history: History,
    step: u64,
}

impl Sampled {
    /// Metrics that requests have moved: their histograms take the memory that they take in a gateway.
    pub(crate) fn new() -> Self {
        let metrics = Metrics::new();
        let revisions = (0..MAX_SERIES).map(|n| {
            let service = ServiceId::parse("bench", &format!("service-{n}")).expect("a name");
            let revision = RevisionId::parse("bench", &format!("service-{n}-00001")).expect("a name");
            metrics.revision(&service, &revision)
        });
        let revisions: Vec<_> = revisions.collect();
        let mut sampled = Self {
            metrics,
            revisions,
            history: History::default(),
            step: 0,
        };
        sampled.requests();
        sampled
    }

    /// Ten requests of each revision between 0.1 ms and 5 s, one of them cold.
    pub(crate) fn requests(&mut self) {
        let arrived = Instant::now();
        let cold = Phases::of(&Milestones {
            arrived,
            start: Some(Default::default()),
            admitted: Some(arrived + Duration::from_millis(300)),
            first_byte: arrived + Duration::from_millis(301),
        });
        for revision in &self.revisions {
            for nth in 0..10u32 {
                let duration = Duration::from_micros(100 * 3u64.pow(nth));
                revision.finish(&record(duration, (nth == 9).then_some(&cold)));
            }
        }
    }

    /// One step, as the gateway takes it every 10 s.
    pub(crate) fn sample(&mut self) -> Duration {
        self.step += 1;
        let start = Instant::now();
        let present = |revisions: &[RevisionId]| vec![PresentRequests::default(); revisions.len()];
        self.metrics.record(&mut self.history, self.step, present);
        start.elapsed()
    }
}

fn record(duration: Duration, phases: Option<&Phases>) -> RequestRecord<'_> {
    RequestRecord {
        time: SystemTime::UNIX_EPOCH,
        request_id: b"",
        client: None,
        method: b"GET",
        host: b"",
        path: b"/",
        protocol: RequestProtocol::Http11,
        status: Some(200),
        final_status: None,
        reason: None,
        timer: None,
        detail: None,
        generation: Generation(1),
        service: None,
        revision: None,
        endpoint: None,
        bytes_in: 0,
        bytes_out: 0,
        duration,
        first_byte: None,
        queue: None,
        phases,
        upstream: None,
        attempts: 1,
        user_agent: None,
    }
}

/// Steps with ten requests of each revision before each, or with none. Requests are not measured.
fn step(busy: bool) -> Run {
    let mut sampled = Sampled::new();
    // All series are there, and full.
    for _ in 0..STEPS {
        sampled.sample();
    }
    Box::new(move |times| {
        let mut all = Duration::ZERO;
        for _ in 0..times {
            if busy {
                sampled.requests();
            }
            all += sampled.sample();
        }
        all
    })
}
