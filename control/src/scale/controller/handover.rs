//! The controller's part in an upgrade: freeze and hand over, thaw or release; and restore on the other side.

use tokio::sync::{mpsc, oneshot};

use super::{SHUTDOWN_MARGIN, ScaleHandle, Worker, now};
use crate::scale::events::IdSource;
use crate::scale::handover::{
    HandedOver, HandoverError, PendingHandover, PlatformAnswer, Saved, SavedRevision, ScaleState,
};
use crate::scale::mailbox::Mailbox;
use crate::scale::process::{InheritedProcesses, ProcessState};
use crate::scale::webhook::{Answer, WebhookState};
use crate::scale::{Ask, InstanceOrder, Scaler, ScalerEvent};

impl ScaleHandle {
    /// Freezes the controller and returns its state, for the next gateway of an upgrade. Mail is kept meanwhile. To be
    /// followed by [`thaw`](Self::thaw) or [`release`](Self::release), also when the future is dropped.
    ///
    /// # Errors
    /// Nothing can be handed over; the controller continues as before.
    pub async fn freeze(&self) -> Result<HandedOver, HandoverError> {
        let (reply, answer) = oneshot::channel();
        // The task ends only with the gateway.
        let _ = self.commands.send(HandoverCommand::Freeze(reply));
        let handed = answer.await.unwrap_or(Err(HandoverError::NotOurs));
        if !matches!(handed, Ok(_) | Err(HandoverError::NotOurs)) {
            self.thaw();
        }
        handed
    }

    /// Continues after a failed upgrade; exits that happened meanwhile are learned from the supervisor.
    pub fn thaw(&self) {
        let _ = self.commands.send(HandoverCommand::Thaw);
    }

    /// Gives up ownership: the next gateway has taken over. Returns the answers that platforms give to earlier calls, to be
    /// passed on. A [`shutdown`](Self::shutdown) stops no instance any more.
    pub fn release(&self) -> mpsc::UnboundedReceiver<PlatformAnswer> {
        let (relay, answers) = mpsc::unbounded_channel();
        let _ = self.commands.send(HandoverCommand::Release(relay));
        answers
    }

    /// Takes a platform's answer that the older gateway passed on. `None`: the older gateway is gone, and so are the answers
    /// still outstanding.
    pub fn platform_answered(&self, answer: Option<PlatformAnswer>) {
        let _ = self.commands.send(HandoverCommand::Relayed(answer));
    }
}

/// The commands of an upgrade, in their order.
#[derive(Debug)]
pub(super) enum HandoverCommand {
    Freeze(oneshot::Sender<Result<HandedOver, HandoverError>>),
    Thaw,
    Release(mpsc::UnboundedSender<PlatformAnswer>),
    Relayed(Option<PlatformAnswer>),
}

/// The gateway that owns the instances.
#[derive(Debug)]
pub(super) enum Ownership {
    Ours,
    /// Nobody: the state is handed over, and the next gateway has not taken over yet.
    Frozen,
    /// The next gateway, to which answers of platforms are passed on.
    Theirs(mpsc::UnboundedSender<PlatformAnswer>),
}

/// Splits the state of an older gateway into the parts of those who continue from it.
pub(super) fn split(
    seed: u64,
    handed_over: Option<HandedOver>,
) -> (IdSource, InheritedRevisions, Option<InheritedProcesses>) {
    let Some(HandedOver { state, supervisor }) = handed_over else {
        return (IdSource::new(seed), InheritedRevisions::default(), None);
    };
    let ids = IdSource::after(seed, state.next_instance);
    let exits = state.pending_exits();
    let revisions = state.revisions;
    let known = state.processes.into_iter();
    let processes = known
        .filter_map(|saved| Some((saved.id()?, saved.what)))
        .collect();
    let inherited = supervisor.map(|supervisor| InheritedProcesses {
        supervisor,
        processes,
    });
    (ids, InheritedRevisions { revisions, exits }, inherited)
}

/// The controller's part of an older gateway's state.
#[derive(Debug, Default)]
pub(in crate::scale) struct InheritedRevisions {
    revisions: Vec<Saved<SavedRevision>>,
    /// Exits that the older controller had not processed.
    exits: Vec<ScalerEvent>,
}

impl<P: Scaler<Order = InstanceOrder>, W: Scaler<Order = Ask>> Worker<P, W> {
    /// Restores the state of an older gateway. Nothing is decided on it before the first plan.
    pub(super) fn inherit(&mut self, inherited: InheritedRevisions) {
        if inherited.revisions.is_empty() {
            return;
        }
        let now = now();
        for saved in inherited.revisions {
            let Some(revision) = saved.id() else { continue };
            match saved.what {
                SavedRevision::Instances(saved) => {
                    if let Some(state) = ProcessState::restore(&saved, self.drain, now) {
                        self.processes.insert(revision, state);
                    }
                }
                SavedRevision::Replicas(saved) => {
                    let state = WebhookState::restore(&saved, self.drain, now);
                    if state.awaits_answer() {
                        self.owed.insert(revision.clone());
                    }
                    self.webhooks.insert(revision, state);
                }
            }
        }
        self.held = Some(inherited.exits);
    }

    /// The state of all revisions that have any.
    fn save(&self) -> Vec<Saved<SavedRevision>> {
        let now = now();
        let processes = self.processes.iter().filter_map(|(revision, state)| {
            let saved = SavedRevision::Instances(Box::new(state.save(now)?));
            Some(Saved::of(revision, saved))
        });
        let webhooks = self.webhooks.iter().filter_map(|(revision, state)| {
            let saved = SavedRevision::Replicas(Box::new(state.save(now)?));
            Some(Saved::of(revision, saved))
        });
        processes.chain(webhooks).collect()
    }

    pub(super) fn command(&mut self, command: HandoverCommand, mailbox: &Mailbox) {
        match command {
            HandoverCommand::Freeze(reply) => self.freeze(reply),
            HandoverCommand::Thaw => self.thaw(mailbox),
            HandoverCommand::Release(relay) => self.release(relay),
            HandoverCommand::Relayed(answer) => self.relayed(answer),
        }
    }

    fn freeze(&mut self, reply: oneshot::Sender<Result<HandedOver, HandoverError>>) {
        let ours = matches!(self.ownership, Ownership::Ours) && self.closing.is_none();
        if !ours || self.held.is_some() {
            // A caller that is gone needs no error.
            let _ = reply.send(Err(HandoverError::NotOurs));
            return;
        }
        let state = ScaleState::new(self.ids.next_instance(), self.save());
        self.ownership = Ownership::Frozen;
        self.held = Some(Vec::new());
        self.scalers.processes.hand_over(PendingHandover { state, reply });
    }

    fn thaw(&mut self, mailbox: &Mailbox) {
        if !matches!(self.ownership, Ownership::Frozen) {
            return;
        }
        self.ownership = Ownership::Ours;
        self.scalers.processes.take_back();
        self.replay();
        // Deadlines that passed meanwhile are due now, and kept mail is read.
        self.tick();
        mailbox.wake();
    }

    fn release(&mut self, relay: mpsc::UnboundedSender<PlatformAnswer>) {
        if !matches!(self.ownership, Ownership::Frozen) {
            return;
        }
        self.ownership = Ownership::Theirs(relay);
        self.processes.forget_deadlines();
        self.webhooks.forget_deadlines();
        for event in self.held.take().unwrap_or_default() {
            self.hear(event);
        }
    }

    /// The gateway shuts down while the instances are not its own.
    pub(super) fn end(&mut self, mailbox: &Mailbox) {
        if matches!(self.ownership, Ownership::Frozen) {
            // The next gateway has not taken over: this one still has to stop them.
            self.thaw(mailbox);
        } else {
            self.closing = Some(now() + SHUTDOWN_MARGIN);
        }
    }

    /// Applies the events that were held back.
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
            // An invalid name by the rules of this gateway: none of its revisions has it.
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
