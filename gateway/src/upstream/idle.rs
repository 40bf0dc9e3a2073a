//! Keep-alive pool of one endpoint: idle connections, last in first out, sharded by data thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::io::BackendIo;

/// Most idle connections of one shard. Further ones are closed: the connections of a burst are not worth
/// their descriptors.
const MAX_PER_SHARD: usize = 1024;

/// Most shards: a thread whose own shard is empty searches all of them.
const MAX_SHARDS: usize = 16;

/// Longest interval of the sweep, whatever the idle time: connections closed by the backend have to be closed
/// here, too.
const SWEEP: Duration = Duration::from_secs(5);

/// Upper bound of the idle time, which can be added to any instant.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Most connections that are closed in place; more are closed on a blocking thread.
const CLOSED_IN_PLACE: usize = 16;

/// The keep-alive pool of one endpoint.
///
/// Each thread returns connections to a shard of its own and takes from there first, so that the warm path
/// shares no lock with another thread; a thread whose shard is empty takes from the others before a new
/// connection is made. The youngest connection goes first, so that the others age out and the pool shrinks to
/// what the load needs. One sweeping task runs while a connection is idle; nothing is allocated before the
/// first connection.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections {
    shards: OnceLock<Arc<Shards>>,
}

#[derive(Debug)]
struct Shards {
    lists: Box<[Shard]>,
    /// Whether the sweeping task is running.
    swept: AtomicBool,
    /// Closed for good. Read under the lock of a shard.
    closed: AtomicBool,
}

/// One shard, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<VecDeque<Idle>>);

#[derive(Debug)]
struct Idle {
    io: BackendIo,
    since: Instant,
    /// When the sweep closes the connection.
    until: Instant,
}

impl IdleConnections {
    /// Takes the youngest reusable connection: idle for `max_idle` at most, and open and silent by the kernel's
    /// account. Closes stale connections that it meets.
    pub(crate) fn take(&self, now: Instant, max_idle: Duration) -> Option<BackendIo> {
        let lists = &self.shards.get()?.lists;
        let own = own_shard(lists.len());
        (0..lists.len()).find_map(|n| lists[(own + n) % lists.len()].take(now, max_idle))
    }

    /// Returns a connection to the pool for `max_idle`. The connection must be between two exchanges. It is
    /// closed instead when the shard is full or the endpoint accepts no more requests.
    pub(crate) fn put(&self, io: BackendIo, now: Instant, max_idle: Duration) {
        if max_idle.is_zero() {
            return;
        }
        let shards = self.shards.get_or_init(Shards::new);
        let kept = shards.lists[own_shard(shards.lists.len())].put(&shards.closed, io, now, max_idle);
        if kept && !shards.swept.load(Ordering::SeqCst) {
            shards.start_sweeping();
        }
    }

    /// Closes all connections, and each one that is returned from now on.
    pub(crate) fn close(&self) {
        // Creates the shards if there are none, because they hold the closed mark.
        self.shards.get_or_init(Shards::new).close();
    }

    /// The number of idle connections.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let lists = self.shards.get().into_iter().flat_map(|s| &s.lists);
        lists.map(|list| list.0.lock().len()).sum()
    }
}

impl Shard {
    fn take(&self, now: Instant, max_idle: Duration) -> Option<BackendIo> {
        loop {
            // The lock is not held during the check, which is a system call.
            let mut idle = self.0.lock().pop_back()?;
            let is_over =
                |idle: &Idle| idle.until <= now || now.saturating_duration_since(idle.since) >= max_idle;
            if is_over(&idle) {
                // All older connections have expired, too.
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

    fn put(&self, closed: &AtomicBool, io: BackendIo, now: Instant, max_idle: Duration) -> bool {
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

    /// Takes out connections that expired or were closed by the backend. Returns when the next one expires.
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
            // Frees the capacity that a burst left behind.
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
            // A concurrent `put` reads the mark under this lock: it put before this, or not at all.
            all.append(&mut shard.0.lock());
        }
        close_all(all);
    }

    fn is_empty(&self) -> bool {
        self.lists.iter().all(|shard| shard.0.lock().is_empty())
    }

    /// Starts the sweeping task unless it is running. Without a runtime nothing is swept.
    fn start_sweeping(self: &Arc<Self>) {
        if let Ok(runtime) = Handle::try_current()
            && !self.swept.swap(true, Ordering::SeqCst)
        {
            runtime.spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// The sweeping task: closes expired connections, until none is idle or the endpoint is gone.
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
            // No timer per connection: closing a little late is as good.
            Some(next) => {
                pause = next
                    .saturating_duration_since(now)
                    .clamp(Duration::from_millis(100), SWEEP);
            }
            None => {
                shards.swept.store(false, Ordering::SeqCst);
                // A connection returned before the mark was cleared started no task.
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

/// Closes connections; many of them on a blocking thread, since a lock may be held here.
fn close_all(all: VecDeque<Idle>) {
    match Handle::try_current() {
        Ok(runtime) if all.len() > CLOSED_IN_PLACE => drop(runtime.spawn_blocking(move || drop(all))),
        _ => drop(all),
    }
}

/// The index of this thread's shard.
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
