//! The controller at an upgrade: it goes on from what another one left, or leaves it to the next.

use super::*;
use crate::scale::webhook::Answer;

impl ScaleHandle {
    /// Stops deciding and ordering, and says everything there is to know: for the next gateway of
    /// an upgrade. What is said meanwhile is kept. Followed by [`thaw`](Self::thaw) or
    /// [`release`](Self::release); dropping the future calls for a thaw, too.
    ///
    /// # Errors
    /// When nothing can be handed over; then it goes on as before.
    pub async fn freeze(&self) -> Result<HandedOver, HandoverError> {
        let (reply, answer) = oneshot::channel();
        // Its task ends only with the gateway.
        let _ = self.turns.send(Turn::Freeze(reply));
        let handed = answer.await.unwrap_or(Err(HandoverError::NotOurs));
        if !matches!(handed, Ok(_) | Err(HandoverError::NotOurs)) {
            self.thaw();
        }
        handed
    }

    /// The next gateway came to nothing: this one goes on, having heard of what ended meanwhile.
    pub fn thaw(&self) {
        let _ = self.turns.send(Turn::Thaw);
    }

    /// The next gateway has everything: from now on this one only passes on what platforms answer
    /// to calls it made before. A [`shutdown`](Self::shutdown) stops no instance any more.
    pub fn release(&self) -> mpsc::UnboundedReceiver<PlatformAnswer> {
        let (relay, answers) = mpsc::unbounded_channel();
        let _ = self.turns.send(Turn::Release(relay));
        answers
    }

    /// A platform answered to the older gateway; `None`: the older one is gone, and what was not
    /// answered yet never will be.
    pub fn platform_answered(&self, answer: Option<PlatformAnswer>) {
        let _ = self.turns.send(Turn::Relayed(answer));
    }
}

/// What is not said every day, in order.
#[derive(Debug)]
pub(super) enum Turn {
    Freeze(oneshot::Sender<Result<HandedOver, HandoverError>>),
    Thaw,
    Release(mpsc::UnboundedSender<PlatformAnswer>),
    Relayed(Option<PlatformAnswer>),
}

/// Whose instances these are.
#[derive(Debug)]
pub(super) enum Standing {
    Ours,
    /// Nobody's for a moment: the next gateway has been told of them and has not taken over yet.
    Frozen,
    /// The next gateway's. It is told what platforms answer.
    Theirs(mpsc::UnboundedSender<PlatformAnswer>),
}

/// What an older gateway left, for each of those who go on from it.
pub(super) fn take_over(seed: u64, left: Option<HandedOver>) -> (Fresh, Legacy, Option<Adopted>) {
    let Some(HandedOver { state, supervisor }) = left else {
        return (Fresh::new(seed), Legacy::default(), None);
    };
    let fresh = Fresh::after(seed, state.next_instance);
    let gone = state.gone();
    let revisions = state.revisions;
    let known = state.processes.into_iter();
    let processes = known.filter_map(|left| Some((left.id()?, left.what))).collect();
    let adopted = supervisor.map(|supervisor| Adopted {
        supervisor,
        processes,
    });
    (fresh, Legacy { revisions, gone }, adopted)
}

/// What an older gateway left to the controller.
#[derive(Debug, Default)]
pub(in crate::scale) struct Legacy {
    revisions: Vec<Left<ScaledLeft>>,
    /// What it had not heard of yet.
    gone: Vec<ScalerEvent>,
}

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
