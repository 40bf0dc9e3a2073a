//! Waiting for conditions, always with a deadline.

use std::time::Duration;

use tokio::time::Instant;

/// The deadline of anything that should happen "soon". Generous, because the machine may be
/// busy; a test about speed has its own limit.
pub const SOON: Duration = Duration::from_secs(20);

/// The polling interval.
const POLL: Duration = Duration::from_millis(5);

/// Polls `probe` until it returns `Some`; panics with `what` after `limit`.
pub async fn wait_for<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// [`wait_for`] with a condition.
pub async fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || std::future::ready(condition().then_some(()))).await;
}

/// Awaits `future`; panics with `what` after `limit`.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Sleeps, for tests that nothing happens meanwhile. Never for waiting until something has happened.
pub async fn quiet(duration: Duration) {
    tokio::time::sleep(duration).await;
}
