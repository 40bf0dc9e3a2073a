//! Instances that are only counted: what a revision's decisions would have started and stopped. Observe mode, the judgement of
//! a forecast and simulations decide on them.

use std::collections::VecDeque;
use std::time::Duration;

use sluice_model::Load;

/// Groups of instances that are starting: one for each decision of the time that a start takes, the oldest merged above that.
const GROUPS: usize = 1_024;

/// A fleet of virtual instances.
#[derive(Debug, Clone)]
pub(crate) struct VirtualFleet {
    ready: u32,
    /// The oldest first.
    starting: VecDeque<Start>,
    tally: Tally,
    /// Until when the tally is.
    at: Duration,
}

/// What a fleet did so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Tally {
    /// Starts that requests waited for: the load was above what was ready.
    pub(crate) cold_starts: u64,
    /// Instances × seconds, from the start to the stop.
    pub(crate) instance_seconds: f64,
    /// Requests × seconds above what was ready.
    pub(crate) waited: f64,
}

impl Tally {
    /// What was added since an earlier tally.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cold_starts: self.cold_starts - before.cold_starts,
            instance_seconds: self.instance_seconds - before.instance_seconds,
            waited: self.waited - before.waited,
        }
    }
}

/// Instances that one decision started.
#[derive(Debug, Clone)]
struct Start {
    ready_at: Duration,
    count: u32,
    /// Those of them that requests wait for.
    awaited: u32,
}

impl VirtualFleet {
    /// A fleet with `ready` instances.
    pub(crate) fn new(ready: u32, now: Duration) -> Self {
        Self {
            ready,
            starting: VecDeque::new(),
            tally: Tally::default(),
            at: now,
        }
    }

    /// What the fleet did so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Lets the time until `now` pass, with a load of which one instance takes `capacity`. Instances whose start is over are
    /// ready from then on.
    pub(crate) fn pass(&mut self, now: Duration, load: f64, capacity: f64) {
        let seconds = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tally.instance_seconds += f64::from(self.count()) * seconds;
        self.tally.waited += (load - f64::from(self.ready) * capacity).max(0.0) * seconds;
        // Before those that just finished are ready: the load was there while they started.
        self.wait(load, capacity);
        while let Some(start) = self.starting.front().filter(|start| start.ready_at <= now) {
            self.ready += start.count;
            self.starting.pop_front();
        }
    }

    /// Carries out a decision: `desired` instances, of which new ones need `start` to be ready.
    pub(crate) fn set(&mut self, desired: u32, start: Duration, load: f64, capacity: f64) {
        let count = self.count();
        if desired > count {
            if self.starting.len() == GROUPS
                && let Some(oldest) = self.starting.pop_front()
            {
                self.ready += oldest.count;
            }
            self.starting.push_back(Start {
                ready_at: self.at + start,
                count: desired - count,
                awaited: 0,
            });
            self.wait(load, capacity);
            return;
        }
        let mut surplus = count - desired;
        while surplus > 0
            && let Some(start) = self.starting.back_mut()
        {
            let ended = surplus.min(start.count);
            start.count -= ended;
            start.awaited = start.awaited.min(start.count);
            surplus -= ended;
            if start.count == 0 {
                self.starting.pop_back();
            }
        }
        self.ready -= surplus;
    }

    /// The load as this fleet would have it.
    pub(crate) fn carry(&self, load: Load) -> Load {
        Load {
            ready: self.ready,
            starting: self.count() - self.ready,
            draining: 0,
            ..load
        }
    }

    fn count(&self) -> u32 {
        self.ready + self.starting.iter().map(|start| start.count).sum::<u32>()
    }

    /// Marks those of the starting instances that the load waits for, and counts them once.
    fn wait(&mut self, load: f64, capacity: f64) {
        if self.starting.is_empty() {
            return;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates"
        )]
        let needed = (load / capacity.max(1e-9) - 1e-9).ceil().max(0.0) as u32;
        let mut missing = needed.saturating_sub(self.ready);
        for start in &mut self.starting {
            let awaited = missing.min(start.count);
            missing -= awaited;
            if awaited > start.awaited {
                self.tally.cold_starts += u64::from(awaited - start.awaited);
                start.awaited = awaited;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_start_is_cold_when_the_load_waits_for_it() {
        let mut fleet = VirtualFleet::new(0, at(0));
        fleet.pass(at(10), 3.0, 10.0);
        fleet.set(1, START, 3.0, 10.0);
        assert_eq!(fleet.tally().cold_starts, 1);
        fleet.pass(at(14), 3.0, 10.0);
        assert_eq!(
            (
                fleet.carry(Load::default()).ready,
                fleet.carry(Load::default()).starting
            ),
            (0, 1)
        );
        fleet.pass(at(15), 3.0, 10.0);
        assert_eq!(fleet.carry(Load::default()).ready, 1);
        let tally = fleet.tally();
        assert_eq!(
            (tally.cold_starts, tally.instance_seconds),
            (1, 5.0),
            "counted once"
        );
        assert_eq!(
            tally.waited, 45.0,
            "ten seconds before the decision, and five after"
        );
        // Ahead of the load: not cold.
        fleet.set(3, START, 10.0, 10.0);
        fleet.pass(at(20), 10.0, 10.0);
        fleet.pass(at(21), 30.0, 10.0);
        assert_eq!(fleet.tally().cold_starts, 1);
        assert_eq!(fleet.tally().instance_seconds, 5.0 + 15.0 + 3.0);
    }

    #[test]
    fn a_start_ahead_becomes_cold_when_the_load_is_faster() {
        let mut fleet = VirtualFleet::new(1, at(0));
        fleet.set(4, START, 5.0, 10.0);
        fleet.pass(at(2), 5.0, 10.0);
        assert_eq!(fleet.tally().cold_starts, 0);
        fleet.pass(at(3), 25.0, 10.0);
        assert_eq!(fleet.tally().cold_starts, 2, "two of the three are waited for");
        fleet.pass(at(4), 25.0, 10.0);
        assert_eq!(fleet.tally().cold_starts, 2);
    }

    #[test]
    fn the_youngest_stop_first() {
        let mut fleet = VirtualFleet::new(2, at(0));
        fleet.set(5, START, 0.0, 10.0);
        fleet.set(3, START, 0.0, 10.0);
        let load = fleet.carry(Load::default());
        assert_eq!((load.ready, load.starting), (2, 1));
        fleet.set(1, START, 0.0, 10.0);
        let load = fleet.carry(Load::default());
        assert_eq!((load.ready, load.starting), (1, 0));
        fleet.set(0, START, 0.0, 10.0);
        fleet.pass(at(100), 0.0, 10.0);
        assert_eq!(fleet.tally().instance_seconds, 0.0);
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut fleet = VirtualFleet::new(0, at(0));
        for n in 1..5_000 {
            fleet.set(n, Duration::from_secs(3_600), 0.0, 1.0);
        }
        assert!(fleet.starting.len() <= GROUPS);
        assert_eq!(fleet.count(), 4_999);
    }
}
