//! Waiting for something to become true, always with a deadline.

use std::time::Duration;

use tokio::time::Instant;

/// What a test grants anything that should happen "soon". Generous, because the machine may be
/// busy; a test about speed states its own limit.
pub const SOON: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Calls `probe` until it yields something, and panics with `what` when `limit` is over.
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

/// [`wait_for`] a plain condition.
pub async fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || std::future::ready(condition().then_some(()))).await;
}

/// Awaits `future`, and panics with `what` when it takes longer than `limit`.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Lets time pass in which nothing must happen. Not for waiting until something has.
pub async fn quiet(duration: Duration) {
    tokio::time::sleep(duration).await;
}
