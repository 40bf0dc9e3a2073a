//! Idle connections of one endpoint, last in first out, sharded by data thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::io::Io;

/// Idle connections of one shard. Above it they are closed: a burst's connections are not worth
/// keeping, and descriptors are for requests.
const MAX_PER_SHARD: usize = 1024;

/// Shards at most: a thread that finds its own empty looks into all of them.
const MAX_SHARDS: usize = 16;

/// Between two looks at what idles, whatever the idle time: what the backend closed is closed on our
/// side, too.
const SWEEP: Duration = Duration::from_secs(5);

/// A bound on the idle time that any clock can add.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Connections that are closed right where a list is cleared; more are closed elsewhere.
const CLOSED_IN_PLACE: usize = 16;

/// The idle connections of one endpoint.
///
/// Each thread puts into a shard of its own and takes from there first, so that the warm path meets
/// no other thread; a thread whose shard is empty takes from the others before a new connection is
/// made. The youngest goes first: the others get old, and a smaller number does the same work.
/// While something idles one task looks after it; nothing is allocated before the first connection.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections {
    shards: OnceLock<Arc<Shards>>,
}

#[derive(Debug)]
struct Shards {
    lists: Box<[Shard]>,
    /// Whether the sweeping task runs.
    swept: AtomicBool,
    /// For good. Looked at under the lock of a shard.
    closed: AtomicBool,
}

/// In a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<VecDeque<Idle>>);

#[derive(Debug)]
struct Idle {
    io: Io,
    since: Instant,
    /// When it is closed if nobody took it.
    until: Instant,
}

impl IdleConnections {
    /// The youngest connection that may be used again: it idled for `max_idle` at most, and the kernel says that
    /// it is open and silent. Closes those it finds stale.
    pub(crate) fn take(&self, now: Instant, max_idle: Duration) -> Option<Io> {
        let lists = &self.shards.get()?.lists;
        let own = own_shard(lists.len());
        (0..lists.len()).find_map(|n| lists[(own + n) % lists.len()].take(now, max_idle))
    }

    /// Keeps a connection for `max_idle`. It must be between two exchanges. Closes it instead when
    /// enough are kept already or the endpoint takes no more requests.
    pub(crate) fn put(&self, io: Io, now: Instant, max_idle: Duration) {
        if max_idle.is_zero() {
            return;
        }
        let shards = self.shards.get_or_init(Shards::new);
        let kept = shards.lists[own_shard(shards.lists.len())].put(&shards.closed, io, now, max_idle);
        if kept && !shards.swept.load(Ordering::SeqCst) {
            shards.start_sweeping();
        }
    }

    /// Closes all connections and every one that is put from now on.
    pub(crate) fn close(&self) {
        // Even if there are none yet: the mark is in there.
        self.shards.get_or_init(Shards::new).close();
    }

    /// Connections that idle now.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let lists = self.shards.get().into_iter().flat_map(|s| &s.lists);
        lists.map(|list| list.0.lock().len()).sum()
    }
}

impl Shard {
    fn take(&self, now: Instant, max_idle: Duration) -> Option<Io> {
        loop {
            // The look is taken without the lock: it is a system call.
            let mut idle = self.0.lock().pop_back()?;
            let is_over =
                |idle: &Idle| idle.until <= now || now.saturating_duration_since(idle.since) >= max_idle;
            if is_over(&idle) {
                // The older ones are over, too.
                let mut list = self.0.lock();
                let fresh = list.iter().position(|idle| !is_over(idle)).unwrap_or(list.len());
                let over = list.drain(..fresh).collect();
                drop(list);
                close_all(over);
            } else if idle.io.is_idle_clean(true) {
                // Response queue poisoning: what a backend sends unasked would be taken for the answer to the next
                // request, which is another client's. The driver may learn of it only after the request was sent.
                return Some(idle.io);
            }
        }
    }

    fn put(&self, closed: &AtomicBool, io: Io, now: Instant, max_idle: Duration) -> bool {
        let mut list = self.0.lock();
        if closed.load(Ordering::SeqCst) || list.len() >= MAX_PER_SHARD {
            return false;
        }
        list.push_back(Idle {
            io,
            since: now,
            until: now + max_idle.min(LONGEST),
        });
        true
    }

    /// Takes out what is over or was closed by the backend. Returns when the next one is over.
    fn sweep(&self, now: Instant, over: &mut VecDeque<Idle>) -> Option<Instant> {
        let mut list = self.0.lock();
        for _ in 0..list.len() {
            let Some(mut idle) = list.pop_front() else { break };
            if idle.until > now && idle.io.is_idle_clean(false) {
                list.push_back(idle);
            } else {
                over.push_back(idle);
            }
        }
        if list.is_empty() {
            // What a burst left behind.
            list.shrink_to_fit();
        }
        list.iter().map(|idle| idle.until).min()
    }
}

impl Shards {
    fn new() -> Arc<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            lists: (0..threads.min(MAX_SHARDS)).map(|_| Shard::default()).collect(),
            swept: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let mut all = VecDeque::new();
        for shard in &self.lists {
            // Whoever puts looks at the mark under this lock: it put before this, or not at all.
            all.append(&mut shard.0.lock());
        }
        close_all(all);
    }

    fn is_empty(&self) -> bool {
        self.lists.iter().all(|shard| shard.0.lock().is_empty())
    }

    /// Starts the sweeping task unless it runs. Without a runtime nothing is swept.
    fn start_sweeping(self: &Arc<Self>) {
        if let Ok(runtime) = Handle::try_current()
            && !self.swept.swap(true, Ordering::SeqCst)
        {
            runtime.spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// Closes what idled for too long, until nothing idles or the endpoint is gone.
async fn sweep(shards: Weak<Shards>) {
    let clock = || tokio::time::Instant::now().into_std();
    let mut pause = SWEEP;
    let first = shards.upgrade().and_then(|s| s.next_end());
    if let Some(first) = first {
        pause = first.saturating_duration_since(clock()).min(SWEEP);
    }
    loop {
        tokio::time::sleep(pause).await;
        let Some(shards) = shards.upgrade() else { return };
        let now = clock();
        let mut over = VecDeque::new();
        let next = shards.lists.iter().filter_map(|s| s.sweep(now, &mut over)).min();
        close_all(over);
        match next {
            // Not a timer for each connection: a little later does as well.
            Some(next) => {
                pause = next
                    .saturating_duration_since(now)
                    .clamp(Duration::from_millis(100), SWEEP);
            }
            None => {
                shards.swept.store(false, Ordering::SeqCst);
                // What was put before the mark was gone started no task of its own.
                if shards.is_empty() || shards.swept.swap(true, Ordering::SeqCst) {
                    return;
                }
                pause = Duration::from_millis(100);
            }
        }
    }
}

impl Shards {
    fn next_end(&self) -> Option<Instant> {
        let oldest = |shard: &Shard| shard.0.lock().front().map(|idle| idle.until);
        self.lists.iter().filter_map(oldest).min()
    }
}

/// Closes connections; many of them not here, where a lock may be held.
fn close_all(all: VecDeque<Idle>) {
    match Handle::try_current() {
        Ok(runtime) if all.len() > CLOSED_IN_PLACE => drop(runtime.spawn_blocking(move || drop(all))),
        _ => drop(all),
    }
}

/// This thread's shard of so many.
fn own_shard(shards: usize) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    INDEX.with(|index| index % shards)
}

#[cfg(test)]
#[path = "idle_tests.rs"]
mod tests;
