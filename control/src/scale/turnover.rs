//! The controller at an upgrade: it goes on from what another one left, or leaves it to the next.

use super::*;
use crate::scale::webhook::Answer;

impl<I: Scaler<Order = InstanceOrder>, R: Scaler<Order = Ask>> Worker<I, R> {
    /// Takes over what an older gateway left. Nothing is decided on it before the first plan.
    pub(super) fn adopt(&mut self, legacy: Legacy) {
        if legacy.revisions.is_empty() {
            return;
        }
        let now = now();
        for left in legacy.revisions {
            let restored = left.what.restore(self.drain, now);
            let (Some(revision), Some((kind, state))) = (left.id(), restored) else {
                continue;
            };
            if state.awaits_answer() {
                self.owed.insert(revision.clone());
            }
            self.revisions.insert((revision, kind), state);
        }
        self.held = Some(legacy.gone);
    }

    pub(super) fn turn(&mut self, turn: Turn, mailbox: &Mailbox) {
        match turn {
            Turn::Freeze(reply) => self.freeze(reply),
            Turn::Thaw => self.thaw(mailbox),
            Turn::Release(relay) => self.release(relay),
            Turn::Relayed(answer) => self.relayed(answer),
        }
    }

    fn freeze(&mut self, reply: oneshot::Sender<Result<HandedOver, HandoverError>>) {
        let ours = matches!(self.standing, Standing::Ours) && self.closing.is_none();
        if !ours || self.held.is_some() {
            // Nobody who asked does not want to know.
            let _ = reply.send(Err(HandoverError::NotOurs));
            return;
        }
        let now = now();
        let known = self.revisions.iter();
        let known = known.filter_map(|((id, _), state)| Some(Left::of(id, state.save(now)?)));
        let state = ScaleState::new(self.fresh.next_instance(), known.collect());
        self.standing = Standing::Frozen;
        self.held = Some(Vec::new());
        self.scalers.processes.hand_over(Handing { state, reply });
    }

    fn thaw(&mut self, mailbox: &Mailbox) {
        if !matches!(self.standing, Standing::Frozen) {
            return;
        }
        self.standing = Standing::Ours;
        self.scalers.processes.take_back();
        self.replay();
        // What was due meanwhile is due now, and what was said is read.
        self.tick();
        mailbox.stir();
    }

    fn release(&mut self, relay: mpsc::UnboundedSender<PlatformAnswer>) {
        if !matches!(self.standing, Standing::Frozen) {
            return;
        }
        self.standing = Standing::Theirs(relay);
        self.due.clear();
        for event in self.held.take().unwrap_or_default() {
            self.hear(event);
        }
    }

    /// The gateway ends while the instances are not its own.
    pub(super) fn end(&mut self, mailbox: &Mailbox) {
        if matches!(self.standing, Standing::Frozen) {
            // The next one is not there yet: they are still this one's to end.
            self.thaw(mailbox);
        } else {
            self.closing = Some(now() + SHUTDOWN_MARGIN);
        }
    }

    /// Acts on what was heard before it could be acted on.
    pub(super) fn replay(&mut self) {
        for event in self.held.take().unwrap_or_default() {
            self.hear(event);
        }
    }

    fn relayed(&mut self, answer: Option<PlatformAnswer>) {
        match answer.map(PlatformAnswer::into_parts) {
            Some(Some((revision, answer))) => {
                if self.owed.remove(&revision) {
                    self.hear(ScalerEvent::Answered { revision, answer });
                }
            }
            // A name that this gateway does not take for one: none of its revisions has it.
            Some(None) => {}
            None => {
                for revision in std::mem::take(&mut self.owed) {
                    let answer = Answer::Retry {
                        detail: "the gateway that asked is gone".to_owned(),
                        after: None,
                    };
                    self.hear(ScalerEvent::Answered { revision, answer });
                }
            }
        }
    }
}
