//! The shell's part of an upgrade: see `throttle/remote.rs`.

use super::*;
use crate::throttle::remote::{EndpointId, EndpointInUse, News, Wanted};

impl RevisionThrottler {
    /// Leaves all slots to a newer gateway, which learns everything else through `news`, under the
    /// number `desk`. Returns the endpoints with what is in flight on them now: every later change
    /// comes as news.
    pub fn flip(
        self: &Arc<Self>,
        desk: u32,
        news: mpsc::UnboundedSender<(u32, News)>,
        now: Instant,
    ) -> Vec<EndpointInUse> {
        self.shared.lock().news = Some((desk, news));
        self.apply(|core| core.flip(now))
    }

    /// The newer gateway came to nothing before it granted anything.
    pub fn flip_back(self: &Arc<Self>, now: Instant) {
        self.shared.lock().news = None;
        self.apply(|core| core.flip_back(now));
    }

    /// The newer gateway is gone: waiters and arrivals are told that this one is draining.
    pub fn abandon(self: &Arc<Self>, now: Instant) {
        self.shared.lock().news = None;
        self.apply(|core| core.abandon(now));
    }

    /// The newer gateway grants what was wanted.
    pub fn granted(self: &Arc<Self>, want: u64, endpoint: &EndpointId, now: Instant) {
        self.apply(|core| core.granted(want, endpoint, now));
    }

    /// The newer gateway refuses what was wanted.
    pub fn refused(self: &Arc<Self>, want: u64, rejection: Rejection, now: Instant) {
        self.apply(|core| core.refused(want, rejection, now));
    }

    /// Whether a newer gateway gives the slots out, and finds out what is ready.
    pub fn is_flipped(&self) -> bool {
        self.shared.lock().core.remote.is_some()
    }

    /// Takes over endpoints from an older gateway, with a Permit for each request it has in flight
    /// on them. Addresses that are not known are used only with `may_add`.
    pub fn adopt(self: &Arc<Self>, endpoints: &[EndpointInUse], may_add: bool, now: Instant) -> Vec<Permit> {
        let grants = self.apply(|core| core.adopt(endpoints, may_add, now));
        let permits = grants.into_iter();
        permits
            .map(|grant| Permit::new(Arc::clone(self), grant))
            .collect()
    }

    /// As [`admit`](Self::admit), for a request that an older gateway has.
    pub fn admit_from(self: &Arc<Self>, wanted: Wanted, now: Instant) -> Admission {
        self.decide(now, |core, waiter| core.arrive_from(wanted, now, waiter))
    }
}
