//! Retry policy: whether a request without a response may be sent again, and when.

use std::time::Duration;

use sluice_model::Backend;

use super::sides::BackendFault;
use crate::request::{NextAttempt, RequestCtx};
use crate::throttle::clock;

/// Most attempts: enough to get past every stale pooled connection and a few dead endpoints. Retries after a
/// 429 are not counted; the queue's timeout bounds those.
const MAX_ATTEMPTS: u32 = 8;

/// Most retries of an idempotent request after fresh connections failed.
pub(super) const MAX_BROKEN_CONNECTIONS: u32 = 2;

/// Retry delay after a 429 without `Retry-After`.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Least retry delay after a 429, whatever `Retry-After` says.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Whether another attempt may follow a failed one.
pub(super) fn may_try_again(request: &RequestCtx) -> bool {
    request.attempts - request.put_off < MAX_ATTEMPTS
}

/// Back-pressure: holds a request that a URL backend's platform answered with 429, if the queue's timeout
/// allows: the next attempt comes after the delay that the platform asked for.
pub(super) fn put_off(request: &mut RequestCtx, retry_after: Option<&[u8]>) -> bool {
    let Some(routed) = &request.routed else {
        return false;
    };
    if !matches!(routed.backend(), Backend::Url(_)) {
        return false;
    }
    let wait = retry_delay(retry_after);
    if request.queued.saturating_add(wait) > routed.spec.queue.timeout {
        return false;
    }
    let Some(held) = routed.live.put_off() else {
        return false;
    };
    request.held = Some(held);
    request.next = NextAttempt::After(wait);
    request.put_off += 1;
    true
}

/// Sends a request that a tier answered with 429 to another tier of the revision, if one may serve it. A 429 says that
/// the request was not processed.
pub(super) fn spill(request: &mut RequestCtx) -> bool {
    let Some(permit) = &request.permit else {
        return false;
    };
    if !permit.may_spill(clock()) {
        return false;
    }
    request.next = NextAttempt::OtherTier;
    request.put_off += 1;
    true
}

/// The delay of `Retry-After`. A date is ignored: clocks differ, and platforms send seconds.
fn retry_delay(retry_after: Option<&[u8]>) -> Duration {
    let seconds = retry_after.and_then(|v| std::str::from_utf8(v).ok()?.trim().parse().ok());
    seconds
        .map_or(DEFAULT_RETRY_DELAY, Duration::from_secs)
        .max(MIN_RETRY_DELAY)
}

/// Whether a method is idempotent (RFC 9110 9.2.2).
pub(super) fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Whether the connection left by a probe may carry the request: only a request that may be sent again, since
/// a close by the backend is detected too late.
pub(super) fn may_use_probes(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS")
}

/// Whether the backend processed the request, although its response cannot be forwarded.
pub(super) fn was_processed(fault: &BackendFault) -> bool {
    matches!(fault, BackendFault::Malformed(_) | BackendFault::Reset(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_counts_in_seconds_and_never_makes_a_busy_loop() {
        assert_eq!(retry_delay(Some(b" 7 ")), Duration::from_secs(7));
        assert_eq!(retry_delay(Some(b"0")), MIN_RETRY_DELAY);
        let huge = u64::MAX.to_string();
        assert_eq!(retry_delay(Some(huge.as_bytes())), Duration::from_secs(u64::MAX));
        for nothing in [
            None,
            Some(&b"Fri, 31 Dec 1999 23:59:59 GMT"[..]),
            Some(b"-1"),
            Some(b"\xff"),
        ] {
            assert_eq!(retry_delay(nothing), DEFAULT_RETRY_DELAY, "{nothing:?}");
        }
    }
}
