//! The newer process: it gives slots to both.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::wire::{Answer, Asked, Desk, Id, Item, ToGuest, ToHost};
use crate::registry::{LiveRevision, Registry};
use crate::throttle::{Admission, EndpointId, Permit, Rejection, Waiter, clock};

/// What the older process holds of this one's endpoints, and what its requests wait for. Dropping
/// it gives everything back: the older process is gone then, and whatever it had in flight with it.
#[derive(Debug)]
pub struct Host {
    desks: Vec<Option<Arc<LiveRevision>>>,
    held: HashMap<(u32, EndpointId), Vec<Permit>>,
    waiting: FuturesUnordered<Abortable<Want>>,
    withdraw: HashMap<(u32, u64), AbortHandle>,
}

impl Host {
    /// Counts what the older process has in flight. Before this process admits anything.
    pub fn inherit(registry: &Registry, desks: &[Desk]) -> Self {
        let mut host = Self {
            desks: Vec::new(),
            held: HashMap::new(),
            waiting: FuturesUnordered::new(),
            withdraw: HashMap::new(),
        };
        for (number, desk) in (0..).zip(desks) {
            let inherited = desk.inherited().map(|left| registry.inherit(&left));
            let (live, permits) = inherited.unwrap_or_default();
            host.desks.push(live);
            for permit in permits {
                host.hold(number, permit);
            }
        }
        host
    }

    /// The older process says something. Returns the answer if there is one at once.
    pub fn hear(&mut self, message: ToHost) -> Option<ToGuest> {
        let desk = message.desk;
        match message.news {
            Item::Want(want, asked) => return self.want(desk, want, &asked),
            Item::Withdraw(want) => {
                if let Some(waiting) = self.withdraw.remove(&(desk, want)) {
                    waiting.abort();
                }
            }
            // Of an address that is not this process's any more nothing is held.
            Item::Done(id) => drop(self.give_back(desk, &id)),
            Item::Report(id, told) => {
                let held = self.held.get(&(desk, (&id).into())).and_then(|held| held.last());
                if let Some(permit) = held {
                    permit.report(told.into(), clock());
                }
            }
        }
        None
    }

    /// The next answer to somebody who had to wait; pending while nobody waits. Dropping the future
    /// loses nothing.
    pub async fn next(&mut self) -> ToGuest {
        loop {
            match self.waiting.next().await {
                Some(Ok((desk, want, outcome))) => {
                    self.withdraw.remove(&(desk, want));
                    return self.answer(desk, want, outcome);
                }
                // Withdrawn.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Slots that the older process has.
    pub fn held(&self) -> usize {
        self.held.values().map(Vec::len).sum()
    }

    fn want(&mut self, desk: u32, want: u64, asked: &Asked) -> Option<ToGuest> {
        let now = clock();
        let live = self.desks.get(desk as usize).and_then(Option::as_ref);
        let admission = match live {
            Some(live) => live.throttler().admit_from(asked.wanted(now), now),
            None => Admission::Rejected(Rejection::Removed),
        };
        match admission {
            Admission::Admitted(permit) => Some(self.answer(desk, want, Ok(permit))),
            Admission::Rejected(rejection) => Some(self.answer(desk, want, Err(rejection))),
            Admission::Waiting(waiter) => {
                let (abort, registration) = AbortHandle::new_pair();
                let waiting = Want { desk, want, waiter };
                self.waiting.push(Abortable::new(waiting, registration));
                self.withdraw.insert((desk, want), abort);
                None
            }
        }
    }

    fn answer(&mut self, desk: u32, want: u64, outcome: Result<Permit, Rejection>) -> ToGuest {
        let answer = match outcome {
            Ok(permit) => {
                let id = permit.endpoint().id();
                self.hold(desk, permit);
                Answer::Grant((&id).into())
            }
            Err(rejection) => Answer::Reject((&rejection).into()),
        };
        ToGuest { desk, want, answer }
    }

    fn hold(&mut self, desk: u32, permit: Permit) {
        let id = permit.endpoint().id();
        self.held.entry((desk, id)).or_default().push(permit);
    }

    fn give_back(&mut self, desk: u32, id: &Id) -> Option<Permit> {
        let key = (desk, EndpointId::from(id));
        let held = self.held.get_mut(&key)?;
        let permit = held.pop();
        if held.is_empty() {
            self.held.remove(&key);
        }
        permit
    }
}

/// Somebody in the older process waits.
#[derive(Debug)]
struct Want {
    desk: u32,
    want: u64,
    waiter: Waiter,
}

impl Future for Want {
    type Output = (u32, u64, Result<Permit, Rejection>);

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let (desk, want) = (self.desk, self.want);
        std::pin::Pin::new(&mut self.waiter)
            .poll(cx)
            .map(|outcome| (desk, want, outcome))
    }
}
