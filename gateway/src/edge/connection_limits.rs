//! Connection limiter: counts all open connections, and those of each client, against limits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A counter of open connections. Its limits are passed in at each connection, so that a reload changes them
/// at any time.
///
/// **Invariant:** the map holds exactly the clients with at least one [`ClientConnectionGuard`], so it is never larger
/// than the number of open connections.
#[derive(Debug, Default)]
pub(super) struct ConnectionLimiter {
    open: AtomicUsize,
    /// Whether the last connection was refused for want of file descriptors.
    descriptors_short: AtomicBool,
    all_closed: Notify,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

impl ConnectionLimiter {
    /// Counts one more connection; `None` when `limit` connections are open already.
    pub(super) fn acquire(self: &Arc<Self>, limit: Option<usize>) -> Option<ConnectionGuard> {
        let limit = limit.unwrap_or(usize::MAX);
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < limit).then(|| open + 1)
            })
            .ok()
            .map(|_| ConnectionGuard(Arc::clone(self)))
    }

    /// Notes whether file descriptors are short, and returns whether that changed: connections that come and
    /// go at the limit must not be logged each time. Descriptors count as sufficient again once a quarter of
    /// the `share` is free.
    pub(super) fn note_descriptors_short(&self, short: bool, share: usize) -> bool {
        if !short && self.open() > share - share / 4 {
            return false;
        }
        // A plain load before the swap: the flag rarely changes, and every accept reads it.
        self.descriptors_short.load(Ordering::Relaxed) != short
            && self.descriptors_short.swap(short, Ordering::Relaxed) != short
    }

    /// Counts one more connection of a client; `None` when that client has `limit` connections already.
    ///
    /// Connections are counted without a limit too: a limit that a reload brings has to know what is open.
    pub(super) fn acquire_client(
        self: &Arc<Self>,
        client: IpAddr,
        limit: Option<usize>,
    ) -> Option<ClientConnectionGuard> {
        let client = network(client);
        let mut clients = self.clients.lock();
        let open = clients.get(&client).copied().unwrap_or(0);
        if limit.is_some_and(|limit| open >= limit) {
            return None;
        }
        clients.insert(client, open + 1);
        Some(ClientConnectionGuard {
            limiter: Arc::clone(self),
            client,
        })
    }

    /// The number of open connections.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Resolves when no connection is open. Cancel-safe.
    pub(super) async fn drained(&self) {
        loop {
            let notified = self.all_closed.notified();
            tokio::pin!(notified);
            // The waiter registers before the count is read, so that the last connection's end is not missed.
            notified.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }

    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.clients.lock().len()
    }
}

/// The key of a client: an IPv4 address, or the /64 of an IPv6 address, which is what one site or machine
/// gets (RFC 6177, RFC 7934) and within which a client has any number of addresses.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        },
    }
}

/// Guard of one open connection; dropping the guard counts the connection as closed.
#[derive(Debug)]
pub(super) struct ConnectionGuard(Arc<ConnectionLimiter>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.all_closed.notify_waiters();
        }
    }
}

/// Guard of one open connection of a client; dropping the guard counts the connection as closed.
#[derive(Debug)]
pub(super) struct ClientConnectionGuard {
    limiter: Arc<ConnectionLimiter>,
    client: IpAddr,
}

impl Drop for ClientConnectionGuard {
    fn drop(&mut self) {
        let mut clients = self.limiter.clients.lock();
        if let Entry::Occupied(mut entry) = clients.entry(self.client) {
            match entry.get() {
                0 | 1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);

    #[test]
    fn limits_follow_what_is_asked_now_and_places_come_back() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let first = limiter.acquire(Some(1));
        assert!(first.is_some() && limiter.acquire(Some(1)).is_none());
        let second = limiter.acquire(Some(2));
        assert!(second.is_some() && limiter.acquire(Some(1)).is_none());
        drop(first);
        assert_eq!(limiter.open(), 1);
        assert!(limiter.acquire(None).is_some());
        drop(second);
        assert_eq!(limiter.open(), 0);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let acquire = |client: &str| limiter.acquire_client(client.parse().expect("an address"), Some(1));
        let first = acquire("2001:db8:1:2::1").expect("the first");
        assert!(acquire("2001:db8:1:2:ffff::9").is_none());
        let other = acquire("2001:db8:1:3::1").expect("another network");
        let mapped = acquire("::ffff:192.0.2.1").expect("the first of its kind");
        assert!(
            acquire("192.0.2.1").is_none(),
            "the same address, written otherwise"
        );
        drop((first, other, mapped));
        assert_eq!(limiter.clients(), 0);
    }

    #[test]
    fn clients_are_counted_apart_and_forgotten_at_zero() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let a = limiter.acquire_client(A, None);
        assert!(
            limiter.acquire_client(A, Some(1)).is_none(),
            "those before the limit count"
        );
        let b = limiter.acquire_client(B, Some(1));
        let again = limiter.acquire_client(A, Some(2));
        assert!(a.is_some() && b.is_some() && again.is_some());
        drop(a);
        assert_eq!(limiter.clients(), 2);
        drop(again);
        drop(b);
        assert_eq!(limiter.clients(), 0);
    }

    #[test]
    fn coming_and_going_at_the_limit_is_told_once() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let mut guards: Vec<_> = (0..8).map(|_| limiter.acquire(None)).collect();
        assert!(limiter.note_descriptors_short(true, 8) && !limiter.note_descriptors_short(true, 8));
        guards.pop();
        assert!(!limiter.note_descriptors_short(false, 8) && !limiter.note_descriptors_short(true, 8));
        guards.pop();
        assert!(limiter.note_descriptors_short(false, 8) && !limiter.note_descriptors_short(false, 8));
    }

    #[tokio::test]
    async fn empty_resolves_with_the_last_one() {
        let limiter = Arc::new(ConnectionLimiter::default());
        limiter.drained().await;
        let (first, second) = (limiter.acquire(None), limiter.acquire(None));
        let drained = limiter.drained();
        tokio::pin!(drained);
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        drop(first);
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        drop(second);
        assert!(futures_util::poll!(drained).is_ready());
    }
}
