//! Background upkeep of live revisions: readiness probes and name lookups.
//!
//! Every task belongs to one live revision, holds only a weak reference to it and ends with it.

pub(crate) mod names;
pub(crate) mod pacer;
pub(crate) mod probe;
mod probe_http;
pub(crate) mod resolve;

use std::sync::Arc;

use arc_swap::ArcSwap;
use sluice_model::Settings;
use tokio::sync::Semaphore;

pub(crate) use names::Names;
use pacer::Pacer;

/// Lookups at once, all revisions together: each holds a thread of the blocking pool.
const LOOKUPS: usize = 32;

/// What upkeep of all revisions shares.
#[derive(Debug, Clone)]
pub(crate) struct UpkeepEnv {
    pub(crate) settings: Arc<ArcSwap<Settings>>,
    pub(crate) pacer: Arc<Pacer>,
    pub(crate) lookups: Arc<Semaphore>,
}

impl UpkeepEnv {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings: Arc::new(ArcSwap::new(settings)),
            pacer: Arc::new(Pacer::default()),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }
}
