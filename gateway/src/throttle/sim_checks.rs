//! What has to hold after every step of the storm.

use super::*;

impl World {
    pub(super) fn apply(&mut self, fx: Effects<u64>) {
        for resolved in fx.resolved {
            let found = self.waiting.iter().find(|(_, w)| w.id == resolved.waiter);
            let seq = *found.expect("resolved, but does not wait").0;
            let waiting = self.waiting.remove(&seq).expect("just found");
            match resolved.verdict {
                Ok(grant) => {
                    assert_eq!(grant.place.seq, seq);
                    let older = self.waiting.first_key_value().filter(|(s, _)| **s < seq);
                    assert!(older.is_none(), "a waiter was overtaken");
                    assert!(waiting.deadline.is_none_or(|d| d > self.now), "sent on too late");
                    self.seen.insert("admitted");
                    self.granted(waiting.id, grant);
                }
                Err(rejection) => self.rejected(waiting.id, &rejection),
            }
        }
        for signal in fx.signals {
            match signal {
                Signal::Activate => {
                    assert_eq!(self.limits.supply, Supply::Activated);
                    self.asked = true;
                }
                Signal::Ready(i) => assert!(self.told_ready.insert(i), "ready for the first time twice"),
                Signal::Drained(i) => {
                    assert!(self.told_drained.insert(i), "drained twice");
                    let slot = self.core.known().find(|s| s.state.instance == Some(i));
                    assert!(slot.is_some_and(|s| s.in_flight == 0 && s.phase == EndpointPhase::Draining));
                }
                Signal::Activated { .. } => _ = self.seen.insert("activated"),
                Signal::ActivationFailed { .. } | Signal::Ejected { .. } | Signal::Reinstated { .. } => {}
            }
        }
    }

    pub(super) fn granted(&mut self, id: u64, grant: Grant) {
        assert!(self.unresolved.remove(&id), "resolved twice");
        let in_flight = self.in_flight.entry(grant.endpoint.key).or_default();
        *in_flight += 1;
        assert!(
            self.allowed.is_none_or(|limit| *in_flight <= limit),
            "above the limit"
        );
        assert_ne!(self.closed, Some(Closing::Draining));
        let drained = grant
            .endpoint
            .instance
            .is_some_and(|i| self.told_drained.contains(&i));
        assert!(!drained, "given to a retired instance");
        self.grants.push(grant);
    }

    pub(super) fn rejected(&mut self, id: u64, rejection: &Rejection) {
        assert!(self.unresolved.remove(&id), "resolved twice");
        assert!(
            rejection
                .retry_after()
                .is_none_or(|r| r >= Duration::from_secs(1))
        );
        self.seen.insert(match rejection {
            Rejection::QueueFull { .. } => "queue_full",
            Rejection::QueueTimeout { .. } => "queue_timeout",
            Rejection::ActivationFailed { .. } => "activation_failed",
            Rejection::NoEndpoints => "no_endpoints",
            Rejection::Overloaded { .. } => "overloaded",
            Rejection::Draining => "draining",
            Rejection::Removed => "removed",
            Rejection::DeadlineExceeded => "deadline",
        });
    }

    pub(super) fn check_ages(&self) {
        for waiting in self.waiting.values() {
            assert!(
                waiting.deadline.is_none_or(|d| d > self.now),
                "waits past its deadline"
            );
        }
    }

    pub(super) fn check(&mut self) {
        for slot in self.core.known() {
            let counted = self.in_flight.get(&slot.state.key).copied().unwrap_or(0);
            assert_eq!(slot.in_flight, counted);
            let free = slot.phase == EndpointPhase::Ready
                && self.limits.concurrency.is_none_or(|limit| slot.in_flight < limit);
            assert!(!free || self.waiting.is_empty(), "waits beside a free slot");
        }
        assert_eq!(self.core.endpoints.in_flight() as usize, self.grants.len());
        let queued: BTreeSet<u64> = self.waiting.values().map(|w| w.id).collect();
        assert_eq!(queued, self.unresolved, "a waiter was forgotten");
        assert_eq!(self.core.queue.len(), self.waiting.len());
        let used = self.budget.used();
        assert_eq!(used.depth, self.waiting.len());
        assert_eq!(used.bytes, self.waiting.values().map(|w| w.bytes).sum::<u64>());
        assert!(
            used.depth <= 25 && used.bytes <= 3_000,
            "over the gateway's bound"
        );
        let counts = self.core.endpoints.counts();
        let starting = |s: &Slot| s.phase == EndpointPhase::Starting && s.state.instance.is_some();
        let coming = self.core.known().any(starting);
        if counts.ready > 0 || coming {
            self.asked = false;
        }
        if counts.ejected > 0 {
            self.seen.insert("ejected");
        }
        if !self.waiting.is_empty() {
            assert!(self.core.next_timer().is_some(), "nobody would wake it");
            let served = counts.ready > 0 || coming || self.asked;
            let activated = self.limits.supply == Supply::Activated;
            assert!(served || !activated, "waits for something nobody asked for");
            assert!(
                counts.live() > 0 || self.limits.supply != Supply::Fixed,
                "waits for nothing"
            );
        }
    }
}
