//! What has to hold after every step of the storm.

use super::*;

impl World {
    pub(super) fn look(&mut self) {
        Self::look_at(&mut self.old);
        if let Some(new) = &mut self.new {
            Self::look_at(new);
        }
    }

    /// Whoever waited and does not any more: admitted ones in order of arrival.
    pub(super) fn look_at(process: &mut Process) {
        let mut done = Vec::new();
        let mut left_behind = None;
        for (&number, (particular, waiter)) in &mut process.waiting {
            match waiter.now_or_never() {
                None if !*particular => left_behind = left_behind.or(Some(number)),
                None => {}
                Some(Ok(permit)) => {
                    assert!(
                        *particular || left_behind.is_none(),
                        "{number} overtook {left_behind:?}"
                    );
                    process.running.push(permit);
                    done.push(number);
                }
                Some(Err(_)) => done.push(number),
            }
        }
        for number in done {
            process.waiting.remove(&number);
        }
        process.demands.take();
    }

    pub(super) fn check(&self) {
        let mut in_flight = BTreeMap::new();
        self.old.in_flight(&mut in_flight);
        if let Some(new) = &self.new {
            new.in_flight(&mut in_flight);
        }
        for (id, count) in in_flight {
            assert!(self.limit.is_none_or(|limit| count <= limit), "{count} on {id:?}");
        }
        if let (Phase::Both(_, host, ..), Some(new)) = (&self.phase, &self.new) {
            let counted = host.held() + new.running.len();
            let live = new.registry.live(&id("r")).expect("is served");
            let load = live.throttler().peek(clock());
            // A grant that nobody has looked at yet is in flight, too.
            assert!(load.in_flight as usize >= counted, "{load:?}, {counted} known");
            assert!(
                host.held() >= self.old.running.len(),
                "the older one has what nobody counts"
            );
        }
    }

    /// Everybody leaves: nothing is left of anybody.
    pub(super) fn end(mut self) -> BTreeSet<&'static str> {
        if let Phase::Flipped(guest, _) = std::mem::replace(&mut self.phase, Phase::Widowed) {
            guest.take_back();
            self.phase = Phase::Alone;
            self.look();
        }
        for process in [Some(&mut self.old), self.new.as_mut()].into_iter().flatten() {
            process.waiting.clear();
            process.running.clear();
        }
        for _ in 0..3 {
            self.carry_some(usize::MAX, usize::MAX);
        }
        if let Phase::Both(_, host, ..) = &self.phase {
            assert_eq!(host.held(), 0, "slots leaked");
            self.seen.insert("over");
        }
        for process in [Some(&self.old), self.new.as_ref()].into_iter().flatten() {
            let load = process
                .registry
                .live(&id("r"))
                .expect("is served")
                .throttler()
                .peek(clock());
            assert_eq!((load.in_flight, load.queued), (0, 0));
            let used = process.registry.budget().used();
            assert_eq!((used.depth, used.bytes), (0, 0));
        }
        self.seen
    }
}
