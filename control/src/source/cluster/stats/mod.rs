//! Statistics for Knative's autoscaler: this gateway's part as an activator, over one WebSocket.
//!
//! Source: `pkg/activator/handler/concurrency_reporter.go` and `pkg/activator/stat_reporter.go` of knative.dev/serving. The
//! first waiter of a revision at zero is reported at once, then each revision in use once a second. While the
//! statistics are delivered, requests to Pods carry `K-Proxy-Request: activator`, so that queue-proxy counts them as
//! proxied and the autoscaler counts them once; while they are not, queue-proxy counts them, and nothing that is busy
//! looks idle.

mod link;
mod reports;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_model::{Load, RevisionId};
use tokio::sync::Notify;

/// The loads of revisions that the cluster's autoscaler scales; implemented by the composition root.
pub trait PodLoads: Send + Sync + 'static {
    /// The load of each such revision that is in use, since the previous sample of it.
    fn sample(&self) -> Vec<(RevisionId, Load)>;

    /// The load of one revision since the previous sample of it; `None` if it is not the cluster's autoscaler that scales it.
    fn sample_one(&self, revision: &RevisionId) -> Option<Load>;
}

/// The autoscaler, and this gateway as it knows it.
#[derive(Debug, Clone)]
pub struct StatsOptions {
    /// Host and port of the autoscaler's Service.
    pub autoscaler: (String, u16),
    /// The name of this replica.
    pub pod_name: String,
}

/// A handle of the reporter.
#[derive(Debug, Clone, Default)]
pub struct StatsHandle {
    waiting: Arc<Mutex<BTreeSet<RevisionId>>>,
    changed: Arc<Notify>,
    delivered: Arc<AtomicBool>,
    connection: Arc<Connection>,
}

/// The state of the connection, for metrics.
#[derive(Debug, Default)]
struct Connection {
    was_tried: AtomicBool,
    is_open: AtomicBool,
    errors: AtomicU64,
}

impl StatsHandle {
    /// A handle of a reporter that does not run yet. `delivered` is true while the autoscaler gets the statistics.
    pub fn new(delivered: Arc<AtomicBool>) -> Self {
        Self {
            delivered,
            ..Self::default()
        }
    }

    /// Reports the first waiter of a revision at zero. Never blocks.
    pub fn activate(&self, revision: &RevisionId) {
        self.waiting.lock().insert(revision.clone());
        self.changed.notify_one();
    }

    /// Whether the connection is open, or ended without an error, and the number of errors so far; `None` before the first
    /// attempt.
    pub fn connection(&self) -> Option<(bool, u64)> {
        let Connection {
            was_tried,
            is_open,
            errors,
        } = &*self.connection;
        let known = (is_open.load(Ordering::Relaxed), errors.load(Ordering::Relaxed));
        was_tried.load(Ordering::Relaxed).then_some(known)
    }

    fn connected(&self) {
        self.connection.is_open.store(true, Ordering::Relaxed);
        self.connection.was_tried.store(true, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.connection.is_open.store(false, Ordering::Relaxed);
        self.connection.errors.fetch_add(1, Ordering::Relaxed);
        self.connection.was_tried.store(true, Ordering::Relaxed);
    }

    /// Reports until the future is dropped.
    pub async fn run(self, options: StatsOptions, loads: Arc<dyn PodLoads>) {
        link::run(self, options, loads).await;
    }

    fn take_waiting(&self) -> BTreeSet<RevisionId> {
        std::mem::take(&mut *self.waiting.lock())
    }

    fn set_delivered(&self, delivered: bool) {
        self.delivered.store(delivered, Ordering::Relaxed);
    }
}
