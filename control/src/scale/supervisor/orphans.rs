//! Kills orphans: processes that left their instance's group (`setsid`, daemons that fork twice).
//!
//! The supervisor is a subreaper, so such a process becomes its child when its parent ends, and is found under `/proc`.
//! Where `/proc` cannot be read no orphan is found; process groups are ended all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::launch::marker;

/// The bound of rounds: a process may fork between the listing and the kill.
const ROUNDS: usize = 8;

/// Kills the orphans of an instance that is gone.
pub(crate) fn end_of(instance: u64) {
    let marker = marker(instance);
    sweep(|pid| has_marker(pid, marker.as_bytes()));
}

/// Kills every descendant.
pub(crate) fn end_all() {
    sweep(|_| true);
}

fn sweep(belongs: impl Fn(i32) -> bool) {
    for _ in 0..ROUNDS {
        let found: Vec<i32> = descendants(getpid().as_raw(), &parents())
            .into_iter()
            .filter(|&pid| belongs(pid))
            .collect();
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn has_marker(pid: i32, marker: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|&b| b == 0).any(|entry| entry == marker))
}

/// The parent of every living process; zombies are left out.
fn parents() -> BTreeMap<i32, i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, living_parent(&stat)?))
        })
        .collect()
}

/// From `pid (comm) state ppid …`, where comm may hold anything, parentheses included.
fn living_parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.next()?.parse().ok(),
    }
}

fn descendants(root: i32, parents: &BTreeMap<i32, i32>) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut frontier = vec![root];
    while let Some(parent) = frontier.pop() {
        for (&pid, _) in parents.iter().filter(|&(_, &p)| p == parent) {
            if found.insert(pid) {
                frontier.push(pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name_of_the_program() {
        assert_eq!(living_parent("12 (a) S) R 7 12 12 0"), Some(7));
        assert_eq!(living_parent("12 (sleep) Z 7 12 12 0"), None);
        assert_eq!(living_parent("12 (sleep"), None);
    }

    #[test]
    fn descendants_are_found_to_any_depth() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 9), (6, 1)]);
        assert_eq!(descendants(1, &parents), BTreeSet::from([2, 3, 4, 6]));
        assert_eq!(descendants(4, &parents), BTreeSet::new());
    }

    #[test]
    fn this_process_is_found_under_its_parent() {
        let me = getpid().as_raw();
        assert_eq!(parents().get(&me), Some(&nix::unistd::getppid().as_raw()));
    }
}
