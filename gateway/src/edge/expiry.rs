//! Warnings in the log about certificates that expire soon.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::certificates::Certificate;

/// Time before expiry at which the warning is logged: a renewal at a third of 90 days has failed by then.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// Log lines at once; further certificates are counted in one more line.
const LINES: usize = 10;

/// How near a certificate's expiry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ExpiryStage {
    Far,
    Soon,
    Over,
}

impl ExpiryStage {
    fn of(not_after: SystemTime, now: SystemTime) -> Self {
        match not_after.duration_since(now) {
            Ok(left) if left > SOON => Self::Far,
            Ok(_) => Self::Soon,
            Err(_) => Self::Over,
        }
    }
}

/// The last stage of a certificate's expiry that was logged, so that each stage is logged once, however often
/// it is checked.
#[derive(Debug, Default)]
pub(super) struct WarnedStage(AtomicU8);

impl WarnedStage {
    /// Whether this stage is to be logged now; then it counts as logged.
    fn advance(&self, to: ExpiryStage) -> bool {
        let to = to as u8;
        self.0.fetch_max(to, Ordering::Relaxed) < to
    }
}

/// Logs a listener's certificates that expired or expire soon, once each per stage.
pub(super) fn warn(listener: impl Display, certificates: &[Arc<Certificate>], now: SystemTime) {
    let mut news = certificates.iter().filter(|c| {
        let stage = ExpiryStage::of(c.not_after, now);
        c.warned.advance(stage)
    });
    for certificate in news.by_ref().take(LINES) {
        let name = &certificate.name;
        let end = humantime::format_rfc3339_seconds(certificate.not_after);
        if certificate.not_after < now {
            warn!(%listener, certificate = %name, %end, "a certificate is no longer valid; it is served on");
        } else {
            warn!(%listener, certificate = %name, %end, "a certificate ends soon");
        }
    }
    let more = news.count();
    if more > 0 {
        warn!(%listener, more, "further certificates ended or end soon");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_told_once_and_a_later_one_again() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let before = |left: Duration| ExpiryStage::of(end, end - left);
        assert_eq!(before(SOON + Duration::from_secs(1)), ExpiryStage::Far);
        assert_eq!(before(SOON), ExpiryStage::Soon);
        assert_eq!(before(Duration::ZERO), ExpiryStage::Soon);
        assert_eq!(
            ExpiryStage::of(end, end + Duration::from_secs(1)),
            ExpiryStage::Over
        );

        let told = WarnedStage::default();
        let heard = [
            ExpiryStage::Far,
            ExpiryStage::Soon,
            ExpiryStage::Soon,
            ExpiryStage::Over,
            ExpiryStage::Over,
        ]
        .map(|s| told.advance(s));
        assert_eq!(heard, [false, true, false, true, false]);
        assert!(
            WarnedStage::default().advance(ExpiryStage::Over),
            "ended when it was loaded"
        );
    }
}
