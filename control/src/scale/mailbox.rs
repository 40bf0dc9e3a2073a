//! The controller's mailbox: a coalescing queue. Senders never wait; messages not yet read are merged, so the mailbox holds
//! at most one of a sort for each revision and instance.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use sluice_model::{Demand, InstanceId, RevisionId};
use tokio::sync::Notify;

use crate::plan::PlanDelta;

/// The messages since the last read; to be applied in the order of the fields.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) ready: BTreeSet<(RevisionId, InstanceId)>,
    pub(crate) drained: BTreeSet<(RevisionId, InstanceId)>,
    /// All changes of the plan, merged.
    pub(crate) plan: Option<PlanDelta>,
    /// Applied before `activate`: a decision for zero that is older than a waiter must not undo the waiter's activation.
    pub(crate) desired: BTreeMap<RevisionId, (u32, String)>,
    /// Activations that completed before the pending `activate` requests.
    pub(crate) activated: BTreeSet<RevisionId>,
    pub(crate) activate: BTreeSet<RevisionId>,
    /// Activations that completed after the pending `activate` requests.
    pub(crate) activated_since: BTreeSet<RevisionId>,
    pub(crate) shutdown: bool,
}

/// The mailbox: many senders, one reader.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

impl Mailbox {
    /// Writes messages under the lock and wakes the reader.
    pub(crate) fn put(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock());
        self.arrived.notify_one();
    }

    /// Writes a demand of the data plane.
    pub(crate) fn demand(&self, demand: Demand) {
        self.put(|mail| match demand {
            Demand::Activate(revision) => {
                if mail.activated_since.remove(&revision) {
                    mail.activated.insert(revision.clone());
                }
                mail.activate.insert(revision);
            }
            Demand::Activated(revision) => {
                mail.activated_since.insert(revision);
            }
            Demand::Ready { revision, instance } => {
                mail.ready.insert((revision, instance));
            }
            Demand::Drained { revision, instance } => {
                mail.drained.insert((revision, instance));
            }
        });
    }

    /// Waits for the shutdown without reading mail. To be followed by [`wake`](Self::wake) before the next
    /// [`take`](Self::take).
    pub(crate) async fn closing(&self) {
        while !self.mail.lock().shutdown {
            self.arrived.notified().await;
        }
    }

    /// Wakes the reader, with or without new mail.
    pub(crate) fn wake(&self) {
        self.arrived.notify_one();
    }

    /// Takes all mail; waits until there is some. For one reader. Cancel safe: a dropped future loses nothing.
    pub(crate) async fn take(&self) -> Mail {
        self.arrived.notified().await;
        std::mem::take(&mut *self.mail.lock())
    }
}

#[cfg(test)]
impl Mailbox {
    pub(crate) fn is_empty(&self) -> bool {
        let mail = self.mail.lock();
        mail.plan.is_none()
            && mail.ready.is_empty()
            && mail.drained.is_empty()
            && mail.desired.is_empty()
            && mail.activate.is_empty()
            && mail.activated.is_empty()
            && mail.activated_since.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_twice_arrives_once_and_nothing_is_lost() {
        let mailbox = Mailbox::default();
        let revision = RevisionId::parse("default", "a").unwrap();
        for desired in 0..100 {
            mailbox.demand(Demand::Activate(revision.clone()));
            mailbox.put(|mail| {
                mail.desired.insert(revision.clone(), (desired, String::new()));
            });
        }
        let mail = mailbox.take().await;
        assert_eq!(mail.activate.len(), 1);
        assert_eq!(mail.desired[&revision].0, 99);
        assert!(mail.plan.is_none() && !mail.shutdown);
    }

    #[tokio::test]
    async fn whether_it_came_before_or_after_somebody_asked_is_kept() {
        let mailbox = Mailbox::default();
        let revision = RevisionId::parse("default", "a").unwrap();
        mailbox.demand(Demand::Activated(revision.clone()));
        mailbox.demand(Demand::Activate(revision.clone()));
        let mail = mailbox.take().await;
        assert!(mail.activated.contains(&revision) && mail.activated_since.is_empty());
        mailbox.demand(Demand::Activate(revision.clone()));
        mailbox.demand(Demand::Activated(revision.clone()));
        let mail = mailbox.take().await;
        assert!(mail.activated_since.contains(&revision) && mail.activated.is_empty());
    }
}
