//! Deterministic simulation: a seeded storm of events over a world whose invariants are checked after every step.
//!
//! One harness for all simulations of this crate. A seed decides every event and the clock stands still unless the world
//! moves it, so that a seed replays: a failing one is printed, and `SLUICE_SIM_SEED=n` runs it alone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use crate::throttle::clock;

/// Coverage of a simulation: the names of situations that occurred.
pub(crate) type Seen = BTreeSet<&'static str>;

/// A simulated world: the system under test, and a model to check it against.
pub(crate) trait World: Sized {
    /// Seeds of a run.
    const SEEDS: u64;
    /// Events for each seed.
    const STEPS: usize;
    /// Coverage that all seeds together have to reach, separated by spaces: a storm that never gets anywhere
    /// proves nothing.
    const REACHES: &'static str;

    fn new(sim: Sim) -> Self;
    fn sim(&mut self) -> &mut Sim;
    /// One event, drawn from [`Sim::rng`].
    fn step(&mut self);
    /// Asserts the invariants; called after every step.
    fn check(&mut self);
    /// Ends every request and asserts that nothing is left of them.
    fn end(&mut self);
}

/// Randomness, clock and coverage of one seed.
pub(crate) struct Sim {
    pub(crate) rng: fastrand::Rng,
    /// The time now; tokio's paused clock shows the same.
    pub(crate) now: Instant,
    seen: Seen,
}

impl Sim {
    /// Moves the clock.
    pub(crate) fn pass(&mut self, time: Duration) {
        // Within a runtime that nothing drives this is done at the first poll.
        let _ = tokio::time::advance(time).now_or_never();
        self.now += time;
        assert_eq!(self.now, clock(), "one clock");
    }

    pub(crate) fn saw(&mut self, what: &'static str) {
        self.seen.insert(what);
    }
}

/// Runs all seeds, or the one of `SLUICE_SIM_SEED`.
pub(crate) fn storm<W: World>() {
    if let Ok(seed) = std::env::var("SLUICE_SIM_SEED") {
        run::<W>(seed.parse().expect("SLUICE_SIM_SEED is a number"));
        return;
    }
    let seen: Seen = (0..W::SEEDS).flat_map(run::<W>).collect();
    let all: Seen = W::REACHES.split_whitespace().collect();
    assert_eq!(seen, all);
}

fn run<W: World>(seed: u64) -> Seen {
    /// Prints the seed of a panic.
    struct Replay(u64);
    impl Drop for Replay {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("replay with SLUICE_SIM_SEED={}", self.0);
            }
        }
    }
    let _replay = Replay(seed);
    // Its clock alone is used: it is never driven, so that no task runs and no timer fires.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let _entered = runtime.enter();
    let mut world = W::new(Sim {
        rng: fastrand::Rng::with_seed(seed),
        now: clock(),
        seen: Seen::new(),
    });
    for _ in 0..W::STEPS {
        world.step();
        world.check();
    }
    world.end();
    std::mem::take(&mut world.sim().seen)
}
