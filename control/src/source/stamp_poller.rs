//! Polls the stamps (inode, size, times) of a few paths, as a safety net below inotify.
//!
//! A mount over a path, a change by another machine, or a change after the kernel dropped a watch raises no event. So
//! the roots are polled every two seconds; the files in root directories are not, as there may be ten thousand.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::fileset::Stamp;

/// The default interval between two polls.
pub(super) const POLL: Duration = Duration::from_secs(2);

/// The longest interval between two polls.
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// Limits the cost of polls that find nothing: to one part in so many of a processor's time.
const COST_DIVISOR: u32 = 1_000;

/// A poller of path stamps, which finds changes that raise no inotify event.
#[derive(Debug)]
pub(super) struct StampPoller {
    /// Each path with its stamp at the last poll; `None`: the path did not exist.
    stamps: HashMap<PathBuf, (StampKind, Option<Stamp>)>,
    interval: Duration,
}

/// Which metadata of a path its stamp covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StampKind {
    /// Inode, size and times.
    Full,
    /// The inode only: for directories of a resolved path, in which unrelated entries change too.
    Inode,
}

impl Default for StampPoller {
    fn default() -> Self {
        Self {
            stamps: HashMap::new(),
            interval: POLL,
        }
    }
}

impl StampPoller {
    /// Sets the paths to poll. A new path starts with its present stamp, so the caller must read the files behind a new
    /// path after this call. A path that was polled before keeps its stamp. Blocks on I/O.
    pub(super) fn set_paths(&mut self, paths: impl Iterator<Item = (PathBuf, StampKind)>) {
        let mut old = std::mem::take(&mut self.stamps);
        for (path, kind) in paths {
            // A full stamp covers the inode too.
            if kind == StampKind::Inode && self.stamps.contains_key(&path) {
                continue;
            }
            let known = old.remove(&path).filter(|(old_kind, _)| *old_kind == kind);
            let seen = known.unwrap_or_else(|| (kind, stamp(&path, kind)));
            self.stamps.insert(path, seen);
        }
    }

    /// Polls once; returns the paths whose stamps differ from those of the last poll. Blocks on I/O.
    pub(super) fn poll(&mut self) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        for (path, (kind, seen)) in &mut self.stamps {
            let current = stamp(path, *kind);
            if current != *seen {
                *seen = current;
                changed.push(path.clone());
            }
        }
        changed
    }

    /// How long to wait before the next poll.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Sets the next interval from the processor time that the last poll cost. After a poll that found nothing
    /// (`idle`) the interval is a thousand times the cost, and at least [`POLL`]: polls of less than 2 ms keep the
    /// default.
    pub(super) fn record_cost(&mut self, cost: Duration, idle: bool) {
        self.interval = match idle {
            true => cost.saturating_mul(COST_DIVISOR).clamp(POLL, MAX_INTERVAL),
            false => POLL,
        };
    }
}

fn stamp(path: &Path, kind: StampKind) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(match kind {
        StampKind::Full => Stamp::of(&meta),
        StampKind::Inode => Stamp::inode(&meta),
    })
}

/// Processor time of this thread. Not wall time: on a busy machine a poll takes longer than it costs.
pub(super) fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_path_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "one").unwrap();
        let mut poller = StampPoller::default();
        let paths = || {
            [
                (file.clone(), StampKind::Full),
                (dir.path().to_owned(), StampKind::Inode),
                (dir.path().join("none"), StampKind::Full),
            ]
        };
        poller.set_paths(paths().into_iter());
        assert!(poller.poll().is_empty());
        fs::write(&file, "longer").unwrap();
        assert_eq!(poller.poll(), std::slice::from_ref(&file));
        assert!(poller.poll().is_empty());
        // A known path keeps its stamp when the paths are set again.
        fs::remove_file(&file).unwrap();
        poller.set_paths(paths().into_iter());
        assert_eq!(poller.poll(), std::slice::from_ref(&file));
    }

    #[test]
    fn idle_polls_cost_a_thousandth_of_a_processor() {
        let mut poller = StampPoller::default();
        let mut interval = |millis, idle| {
            poller.record_cost(Duration::from_millis(millis), idle);
            poller.interval()
        };
        assert_eq!(interval(0, true), POLL);
        assert_eq!(interval(20, true), Duration::from_secs(20));
        assert_eq!(interval(20, false), POLL);
        assert_eq!(interval(1_000, true), MAX_INTERVAL);
    }
}
