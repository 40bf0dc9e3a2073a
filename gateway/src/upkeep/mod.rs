//! Background upkeep of live revisions: readiness probes and name lookups.
//!
//! Every task belongs to one live revision, holds only a weak reference to it and ends with it.

pub(crate) mod names;
pub(crate) mod probe;
mod probe_http;
pub(crate) mod resolve;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sluice_model::Settings;
use tokio::sync::Semaphore;

pub(crate) use names::Names;

use crate::throttle::clock;
use crate::token_bucket::TokenBucket;

/// Lookups at once, all revisions together: each holds a thread of the blocking pool.
const LOOKUPS: usize = 32;

/// 8,000 probes a second: four starting instances each get their probe every 2 ms with half of it
/// to spare, and a thousand are still probed eight times a second each.
const PROBE_INTERVAL: Duration = Duration::from_micros(125);

/// What upkeep of all revisions shares.
#[derive(Debug, Clone)]
pub(crate) struct UpkeepEnv {
    pub(crate) settings: Arc<ArcSwap<Settings>>,
    /// Limits the rate of all probes together: their starts are at least [`PROBE_INTERVAL`] apart, first come first
    /// served. Not a limit of how many run at once: probes that hang until their timeout must not slow down the others.
    pub(crate) probe_starts: Arc<Mutex<TokenBucket>>,
    pub(crate) lookups: Arc<Semaphore>,
}

impl UpkeepEnv {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings: Arc::new(ArcSwap::new(settings)),
            probe_starts: Arc::new(Mutex::new(TokenBucket::new(1, PROBE_INTERVAL, clock()))),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }
}
