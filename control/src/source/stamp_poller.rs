//! A poll of a few paths, as a safety net below file notification.
//!
//! What is mounted over a path, done by another machine, or lost with a watch that the kernel dropped, is no event.
//! So the roots are looked at every two seconds: not the files in them, which may be ten thousand.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::fileset::Stamp;

/// Between two looks.
pub(super) const POLL: Duration = Duration::from_secs(2);

/// The longest pause there is.
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// What looks in vain may cost: one part of a processor in so many.
const COST_DIVISOR: u32 = 1_000;

/// Paths by which a change is found that nobody tells of.
#[derive(Debug)]
pub(super) struct StampPoller {
    /// With the stamp as it was; `None`: nothing was there.
    stamps: HashMap<PathBuf, (StampKind, Option<Stamp>)>,
    interval: Duration,
}

/// What of a path matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StampKind {
    /// All that a stamp tells.
    Full,
    /// Which inode it is: a directory on the way, where others keep things too.
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
    /// Looks at exactly these from now on. Those that are new are taken as they are: whoever adds some reads what
    /// they lead to afterwards.
    pub(super) fn set_paths(&mut self, paths: impl Iterator<Item = (PathBuf, StampKind)>) {
        let mut old = std::mem::take(&mut self.stamps);
        for (path, kind) in paths {
            // The whole is more than its place.
            if kind == StampKind::Inode && self.stamps.contains_key(&path) {
                continue;
            }
            let known = old.remove(&path).filter(|(old_kind, _)| *old_kind == kind);
            let seen = known.unwrap_or_else(|| (kind, stamp(&path, kind)));
            self.stamps.insert(path, seen);
        }
    }

    /// Looks: the paths that are not as they were at the last look. Blocks on I/O.
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

    /// How long to wait before the next look.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// A look has cost so much processor time. The one that found nothing new is followed by a pause a thousand
    /// times as long: two seconds as long as it costs less than two milliseconds.
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

/// Processor time of this thread: on a busy machine a look takes longer than it costs.
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
        // What was seen before stays as it was seen.
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
