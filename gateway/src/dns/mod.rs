//! DNS resolver: looks the names of a revision up periodically, on the blocking pool.
//!
//! Every task belongs to one live revision, holds only a weak reference to it and ends with it.

mod cache;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use sluice_model::Settings;
use tokio::sync::{Notify, Semaphore};
use tracing::{info, warn};

pub(crate) use cache::NameCache;
use cache::{LookupChange, Name};

use crate::registry::LiveRevision;
use crate::throttle::clock;

/// Initial back-off after a lookup that left a name without any address; doubles up to the refresh interval.
/// Also the shortest interval between lookups.
const RETRY: Duration = Duration::from_secs(1);

/// Lookups at once, all revisions together: each holds a thread of the blocking pool.
const LOOKUPS: usize = 32;

/// State that lookups of all revisions share.
#[derive(Debug, Clone)]
pub(crate) struct DnsEnv {
    pub(crate) settings: Arc<ArcSwap<Settings>>,
    lookups: Arc<Semaphore>,
}

impl DnsEnv {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings: Arc::new(ArcSwap::new(settings)),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }
}

/// Keeps the addresses of one revision's names fresh until the revision is gone. Sleeps without a timer while
/// it has none.
pub(crate) async fn run(live: Weak<LiveRevision>, changed: Arc<Notify>, env: DnsEnv) {
    let mut retry = RETRY;
    loop {
        let Some(wanted) = live.upgrade().map(|live| live.names_wanted()) else {
            return;
        };
        let refresh = env.settings.load_full().dns_refresh.max(RETRY);
        let found = join_all(wanted.iter().map(|name| look_up(name, &env))).await;
        let Some(strong) = live.upgrade() else {
            return;
        };
        let mut news = Vec::new();
        let unresolved = strong.with_names(clock(), |names| {
            for (name, found) in wanted.iter().zip(found) {
                let (found, error) = match found {
                    Ok(found) => (Some(found), None),
                    Err(error) => (None, Some(error)),
                };
                news.push((names.record(name.clone(), found), name, error));
            }
            names.retain(&wanted);
            names.any_unresolved()
        });
        let revision = strong.id().clone();
        drop(strong);
        for (change, (host, port), error) in news {
            let error = error.unwrap_or_else(|| "no address".to_owned());
            match change {
                LookupChange::None => {}
                LookupChange::Failing => warn!(%revision, "cannot resolve {host}:{port}: {error}"),
                LookupChange::Recovered => info!(%revision, "{host}:{port} resolves again"),
            }
        }
        let pause = if unresolved { retry.min(refresh) } else { refresh };
        retry = if unresolved {
            (retry * 2).min(refresh)
        } else {
            RETRY
        };
        let pause = async {
            if wanted.is_empty() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(pause).await;
        };
        tokio::select! {
            () = pause => {}
            () = changed.notified() => retry = RETRY,
        }
    }
}

/// getaddrinfo on the blocking pool, with the connect timeout, because requests may wait for the result; a
/// semaphore bounds concurrent lookups.
///
/// # Errors
/// A text for the log.
async fn look_up((host, port): &Name, env: &DnsEnv) -> Result<Vec<SocketAddr>, String> {
    // The semaphore is never closed.
    let _turn = env.lookups.acquire().await;
    let limit = env.settings.load_full().limits.connect_timeout;
    // An IPv6 literal in a URL has brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::time::timeout(limit, tokio::net::lookup_host((host, *port))).await {
        Ok(Ok(found)) => {
            let mut found: Vec<SocketAddr> = found.collect();
            found.sort_unstable();
            found.dedup();
            Ok(found)
        }
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}
