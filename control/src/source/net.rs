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
const MOST: Duration = Duration::from_secs(60);

/// What looks in vain may cost: one part of a processor in so many.
const SHARE: u32 = 1_000;

/// Paths by which a change is found that nobody tells of.
#[derive(Debug)]
pub(super) struct Net {
    /// With the stamp as it was; `None`: nothing was there.
    seen: HashMap<PathBuf, (Part, Option<Stamp>)>,
    pause: Duration,
}

/// What of a path matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All that a stamp tells.
    Whole,
    /// Which inode it is: a directory on the way, where others keep things too.
    Place,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            seen: HashMap::new(),
            pause: POLL,
        }
    }
}

impl Net {
    /// Looks at exactly these from now on. Those that are new are taken as they are: whoever adds some reads what
    /// they lead to afterwards.
    pub(super) fn cast(&mut self, paths: impl Iterator<Item = (PathBuf, Part)>) {
        let mut old = std::mem::take(&mut self.seen);
        for (path, part) in paths {
            // The whole is more than its place.
            if part == Part::Place && self.seen.contains_key(&path) {
                continue;
            }
            let known = old.remove(&path).filter(|(as_before, _)| *as_before == part);
            let seen = known.unwrap_or_else(|| (part, stamp(&path, part)));
            self.seen.insert(path, seen);
        }
    }

    /// Looks: the paths that are not as they were at the last look. Blocks on I/O.
    pub(super) fn look(&mut self) -> Vec<PathBuf> {
        let mut moved = Vec::new();
        for (path, (part, seen)) in &mut self.seen {
            let now = stamp(path, *part);
            if now != *seen {
                *seen = now;
                moved.push(path.clone());
            }
        }
        moved
    }

    /// How long to wait before the next look.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// A look has cost so much processor time. The one that found nothing new is followed by a pause a thousand
    /// times as long: two seconds as long as it costs less than two milliseconds.
    pub(super) fn spent(&mut self, cost: Duration, in_vain: bool) {
        self.pause = match in_vain {
            true => cost.saturating_mul(SHARE).clamp(POLL, MOST),
            false => POLL,
        };
    }
}

fn stamp(path: &Path, part: Part) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(match part {
        Part::Whole => Stamp::of(&meta),
        Part::Place => Stamp::place(&meta),
    })
}

/// Processor time of this thread: on a busy machine a look takes longer than it costs.
pub(super) fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_is_found_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "one").unwrap();
        let mut net = Net::default();
        let paths = || {
            [
                (file.clone(), Part::Whole),
                (dir.path().to_owned(), Part::Place),
                (dir.path().join("none"), Part::Whole),
            ]
        };
        net.cast(paths().into_iter());
        assert!(net.look().is_empty());
        fs::write(&file, "longer").unwrap();
        assert_eq!(net.look(), std::slice::from_ref(&file));
        assert!(net.look().is_empty());
        // What was seen before stays as it was seen.
        fs::remove_file(&file).unwrap();
        net.cast(paths().into_iter());
        assert_eq!(net.look(), std::slice::from_ref(&file));
    }

    #[test]
    fn looks_in_vain_cost_a_thousandth_of_a_processor() {
        let mut net = Net::default();
        let mut pause = |millis, in_vain| {
            net.spent(Duration::from_millis(millis), in_vain);
            net.pause()
        };
        assert_eq!(pause(0, true), POLL);
        assert_eq!(pause(20, true), Duration::from_secs(20));
        assert_eq!(pause(20, false), POLL);
        assert_eq!(pause(1_000, true), MOST);
    }
}
