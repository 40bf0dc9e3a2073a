//! The exporter: the one task that posts batches of spans.
//!
//! A batch is tried again with exponential back-off where the collector says so or cannot be reached, until `OTEL_BSP_EXPORT_TIMEOUT`
//! is over; then it is dropped and counted. Meanwhile requests fill the queue, and what does not fit is dropped and counted there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::collector::{Collector, Failure};
use super::otlp::{Envelope, PartialSuccess};
use super::queue::{Batch, SpanQueue};
use super::settings::TraceSettings;

/// The first delay before a batch is tried again. The delay doubles each time.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(8);

/// What takes batches.
pub(super) trait Post: Send + 'static {
    /// The body of a POST as it is sent.
    fn encoded(&self, body: Vec<u8>) -> Bytes;

    /// Posts one body. A dropped future gives the POST up.
    fn post(&mut self, body: Bytes) -> impl Future<Output = Result<PartialSuccess, Failure>> + Send;
}

/// The exporter before its start.
#[derive(Debug)]
pub struct Exporter(Delivery<Collector>);

impl Exporter {
    pub(super) fn new(settings: &TraceSettings, queue: Arc<SpanQueue>) -> Self {
        Self(Delivery::new(
            Collector::new(settings),
            settings,
            queue,
            fastrand::f64,
        ))
    }

    /// Starts the task.
    pub fn spawn(self, runtime: &Handle) -> ExporterHandle {
        self.0.spawn(runtime)
    }
}

/// Posts what the queue has.
#[derive(Debug)]
struct Delivery<C> {
    queue: Arc<SpanQueue>,
    collector: C,
    envelope: Envelope,
    /// Host and port of the collector, for the log.
    address: String,
    timeout: Duration,
    schedule_delay: Duration,
    export_timeout: Duration,
    /// A random number from 0 to 1.
    chance: fn() -> f64,
    /// Whether the last batch failed: the log tells changes only.
    failing: bool,
    /// Whether a refusal of single spans was told.
    refusal_told: bool,
}

impl<C: Post> Delivery<C> {
    fn new(collector: C, settings: &TraceSettings, queue: Arc<SpanQueue>, chance: fn() -> f64) -> Self {
        Self {
            queue,
            collector,
            envelope: Envelope::new(&settings.resource),
            address: settings
                .endpoint
                .authority()
                .map_or_else(String::new, ToString::to_string),
            timeout: settings.timeout,
            schedule_delay: settings.schedule_delay,
            export_timeout: settings.export_timeout,
            chance,
            failing: false,
            refusal_told: false,
        }
    }

    fn spawn(self, runtime: &Handle) -> ExporterHandle {
        ExporterHandle {
            queue: Arc::clone(&self.queue),
            task: runtime.spawn(self.run()),
        }
    }

    /// Posts batches until the queue is closed, and then what is left.
    async fn run(mut self) {
        loop {
            let queue = Arc::clone(&self.queue);
            let partial = tokio::select! {
                () = queue.closed() => true,
                () = queue.filled() => false,
                () = sleep(self.schedule_delay) => true,
            };
            let closed = queue.is_closed();
            while let Some(mut batch) = queue.take(partial || queue.is_closed()) {
                let lost = self.deliver(&mut batch).await;
                queue.settled(&batch, lost);
            }
            if closed {
                return;
            }
        }
    }

    /// Posts a batch; returns how many of its traces were lost.
    async fn deliver(&mut self, batch: &mut Batch) -> u64 {
        let spans = std::mem::take(&mut batch.bytes);
        let body = self.collector.encoded(self.envelope.request(&spans));
        drop(spans);
        let deadline = Instant::now() + self.export_timeout;
        let mut delay = FIRST_DELAY;
        loop {
            let failure = match self.post(body.clone(), deadline).await {
                Ok(partial) => {
                    self.delivered();
                    return self.rejected(&partial).min(batch.traces);
                }
                Err(failure) => failure,
            };
            self.failed(&failure);
            let wait = failure.after.unwrap_or_else(|| self.jittered(delay));
            let left = deadline.saturating_duration_since(Instant::now());
            // At the end there is one try for each batch: nobody waits for a collector that is gone.
            let again = failure.retry && wait < left && !self.queue.is_closed();
            if !again {
                return batch.traces;
            }
            delay = (delay * 2).min(MAX_DELAY);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.queue.closed() => {}
            }
        }
    }

    /// From half of a delay to all of it, by chance: gateways that lost the same collector do not come back all at once.
    fn jittered(&self, delay: Duration) -> Duration {
        delay.mul_f64(0.5 + (self.chance)() / 2.0)
    }

    async fn post(&mut self, body: Bytes, deadline: Instant) -> Result<PartialSuccess, Failure> {
        let limit = self
            .timeout
            .min(deadline.saturating_duration_since(Instant::now()));
        match timeout(limit, self.collector.post(body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::broken(format!(
                "no answer within {} ms",
                limit.as_millis()
            ))),
        }
    }

    fn delivered(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!("traces: the collector at {} takes them again", self.address);
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                "traces: the collector at {} does not take them; what it does not take in time is lost and counted: {}",
                self.address,
                failure.why
            );
        }
    }

    /// How many spans a collector refused for good, told once.
    fn rejected(&mut self, partial: &PartialSuccess) -> u64 {
        if partial.rejected > 0 && !std::mem::replace(&mut self.refusal_told, true) {
            tracing::warn!(
                "traces: the collector at {} refuses {} spans of a batch: {}",
                self.address,
                partial.rejected,
                partial.why
            );
        }
        partial.rejected
    }
}

/// A running exporter.
#[derive(Debug)]
pub struct ExporterHandle {
    queue: Arc<SpanQueue>,
    task: JoinHandle<()>,
}

impl ExporterHandle {
    /// Posts what is left, within this time; the rest is dropped and counted. Spans of later requests are dropped and counted. A
    /// dropped future leaves the exporter at it.
    pub async fn shutdown(mut self, within: Duration) {
        self.queue.close();
        if timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            let _ = self.task.await;
        }
        let lost = self.queue.abandon();
        if lost > 0 {
            tracing::warn!("traces: {lost} were not delivered in time, and are lost");
        }
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
