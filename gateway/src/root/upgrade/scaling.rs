//! The hand-over of scaling in an upgrade, for both processes. `old` and `new` call the functions here and know
//! nothing else of scaling.
//!
//! ```text
//! O                                           N
//! ◀─────────────────── Prepared ───────────── built and bound, scales nothing yet
//! HandoffSender::hand_over ── Scaling* ─────▶ HandoffReceiver::receive, once for each
//! ──────────────────────── Take ────────────▶ HandoffReceiver::take_over, before anything is started
//! ◀─────────────────── Serving ────────────── from here on only N scales
//! HandoffSender::follow ◀──── Scaling* ─────▶ HandoffReceiver::follow, until O is gone
//! ```
//!
//! From `hand_over` on, new requests in O wait: no slot is given out until N does, or until O
//! does again. Any error before `Serving` leads to `HandoffSender::take_back`, and N is ended.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sluice_control::autoscale::Inherited;
use sluice_control::release::{Histories, HistoryHandle, ServiceHistory};
use sluice_control::scale::{HandedOver, PlatformAnswer, ScaleHandle, ScaleState};
use sluice_gateway::handover::{Desk, DeskMessage, Guest, Host};
use sluice_gateway::registry::Registry;
use sluice_model::{Delta, Generation, ServiceId, SnapshotError};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::AbortHandle;

use super::wire::{Channel, Frame, Receiver, Sender, WireError};

/// A message between both processes about scaling.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ScalingMessage {
    /// O: histories of services.
    Histories(Vec<(String, ServiceHistory)>),
    /// O: its instances; with the socket to their supervisor as the descriptor, if there is one.
    Scale(Box<ScaleState>),
    /// O: its requests in flight, by revision.
    Desks(Vec<Desk>),
    /// O: messages of the Guest.
    ToHost(Vec<DeskMessage>),
    /// N: messages of the Host.
    ToGuest(Vec<DeskMessage>),
    /// O: a platform's response to a call of O's.
    Answer(PlatformAnswer),
}

impl ScalingMessage {
    fn frame(&self) -> Result<Frame, WireError> {
        let body = serde_json::to_vec(self).map_err(|e| WireError::Malformed {
            frame: "Scaling",
            why: e.to_string(),
        })?;
        Ok(Frame::Scaling(Bytes::from(body)))
    }

    fn read(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|e| format!("what it says of scaling: {e}"))
    }
}

/// The routing table. Changes wait while another process gives out this process's slots.
#[derive(Debug)]
pub(crate) struct Table {
    registry: Arc<Registry>,
    /// Changes that wait, in order; `None` while changes are applied at once.
    held: Mutex<Option<Vec<Delta>>>,
}

impl Table {
    pub(crate) fn new(registry: Arc<Registry>) -> Arc<Self> {
        let held = Mutex::new(None);
        Arc::new(Self { registry, held })
    }

    /// Applies a change, at once or when the slots are this process's again.
    pub(crate) fn apply(&self, delta: &Delta) -> Result<Generation, SnapshotError> {
        let mut held = self.held.lock();
        if let Some(held) = &mut *held {
            tracing::info!("a reload waits: another process has taken over, or is about to");
            held.push(delta.clone());
            return Ok(self.registry.reader().peek().generation);
        }
        drop(held);
        Ok(self.registry.apply(delta)?.generation)
    }

    /// As [`Registry::reread_pages`].
    pub(crate) fn reread_pages(&self) -> Vec<String> {
        self.registry.reread_pages()
    }

    fn flip(&self) -> (Guest, Vec<Desk>) {
        let mut held = self.held.lock();
        held.get_or_insert_default();
        Guest::flip(&self.registry)
    }

    fn take_back(&self, guest: Guest) {
        let mut held = self.held.lock();
        guest.take_back();
        for delta in held.take().into_iter().flatten() {
            if let Err(error) = self.registry.apply(&delta) {
                tracing::error!("internal error: a reload that waited is not applied: {error}");
            }
        }
    }
}

/// Time for a reload that is under way.
const RELOAD: Duration = Duration::from_secs(2);

/// Histories in messages that fit into frames: each has fewer bytes than a document may have.
fn history_messages(histories: Histories) -> Vec<ScalingMessage> {
    let (mut messages, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (id, history) in histories {
        // A history that cannot be written is in no document either.
        bytes += serde_json::to_vec(&*history).map_or(0, |document| document.len());
        part.push((id.to_string(), Arc::unwrap_or_clone(history)));
        if bytes >= PART {
            messages.push(ScalingMessage::Histories(std::mem::take(&mut part)));
            bytes = 0;
        }
    }
    if !part.is_empty() {
        messages.push(ScalingMessage::Histories(part));
    }
    messages
}

/// Bytes of histories after which another message begins.
const PART: usize = 1 << 20;

/// The old process's side.
#[derive(Debug)]
pub(crate) struct HandoffSender {
    scale: ScaleHandle,
    table: Arc<Table>,
    /// The autoscaler's task, aborted once another process scales.
    decisions: AbortHandle,
    histories: HistoryHandle,
    guest: Option<Guest>,
}

impl HandoffSender {
    pub(crate) fn new(
        scale: ScaleHandle,
        table: Arc<Table>,
        decisions: AbortHandle,
        histories: HistoryHandle,
    ) -> Self {
        Self {
            scale,
            table,
            decisions,
            histories,
            guest: None,
        }
    }

    /// Freezes scaling and sends its state, as any number of [`Frame::Scaling`] with their descriptors. May be
    /// dropped half way; [`Self::take_back`] follows then.
    pub(crate) async fn hand_over(&mut self, channel: &mut Channel) -> Result<(), HandoffError> {
        // Before anything is held up: a reload that is under way is waited for. From here on no rollout moves and no command is
        // carried out, so that none is lost.
        for message in history_messages(self.histories.freeze(RELOAD).await) {
            channel.send(&message.frame()?, Vec::new()).await?;
        }
        // Instances first: the state of the data plane includes all changes of endpoints up to the flip, and
        // its demands up to then are kept.
        let HandedOver { state, supervisor } = self.scale.freeze().await?;
        let (guest, desks) = self.table.flip();
        self.guest = Some(guest);
        let scale = ScalingMessage::Scale(Box::new(state)).frame()?;
        channel.send(&scale, supervisor.into_iter().collect()).await?;
        channel
            .send(&ScalingMessage::Desks(desks).frame()?, Vec::new())
            .await?;
        Ok(())
    }

    /// Undoes [`Self::hand_over`]: the new process did not acknowledge, and is gone.
    pub(crate) async fn take_back(&mut self) {
        self.histories.thaw();
        self.scale.thaw();
        if let Some(guest) = self.guest.take() {
            self.table.take_back(guest);
        }
    }

    /// Exchanges messages with the new process, which scales. Runs beside the drain; ends when the new process
    /// does, or when the scaler was shut down and its last message is sent.
    pub(crate) fn follow(
        &mut self,
        sender: Sender,
        receiver: Receiver,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.decisions.abort();
        let answers = self.scale.release();
        let guest = self.guest.take();
        async move {
            if let Some(guest) = guest {
                follow(guest, answers, sender, receiver).await;
            }
        }
    }
}

async fn follow(
    mut guest: Guest,
    mut answers: UnboundedReceiver<PlatformAnswer>,
    sender: Sender,
    mut receiver: Receiver,
) {
    let mut next: Option<Frame> = None;
    let gone: WireError = loop {
        // Sending always goes on together with receiving: two processes that only send would deadlock.
        let said = tokio::select! {
            heard = receiver.recv() => {
                match heard {
                    Ok(message) => deliver(&guest, &message.frame),
                    Err(error) => break error,
                }
                continue;
            }
            sent = send_next(&sender, &next), if next.is_some() => {
                next = None;
                match sent {
                    Ok(()) => continue,
                    Err(error) => break error,
                }
            }
            news = guest.next(), if next.is_none() => ScalingMessage::ToHost(news),
            answer = answers.recv(), if next.is_none() => match answer {
                Some(answer) => ScalingMessage::Answer(answer),
                None => return sender.flush().await,
            },
        };
        match said.frame() {
            Ok(frame) => next = Some(frame),
            Err(error) => break error,
        }
    };
    tracing::warn!(error = %gone, "upgrade: the new process is gone: what is in flight here ends, nothing else is served");
    guest.abandon();
}

/// Errors of handing over scaling.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoffError {
    #[error(transparent)]
    Scale(#[from] sluice_control::scale::HandoverError),
    #[error(transparent)]
    Wire(#[from] WireError),
}

fn deliver(guest: &Guest, frame: &Frame) {
    let Frame::Scaling(body) = frame else { return };
    match ScalingMessage::read(body) {
        Ok(ScalingMessage::ToGuest(messages)) => messages.into_iter().for_each(|message| guest.hear(message)),
        Ok(_) => {}
        Err(error) => tracing::warn!("upgrade: the new process is not understood: {error}"),
    }
}

async fn send_next(sender: &Sender, frame: &Option<Frame>) -> Result<(), WireError> {
    match frame {
        Some(frame) => sender.send(frame, Vec::new()).await,
        None => Ok(()),
    }
}

/// The new process's side.
#[derive(Debug, Default)]
pub(crate) struct HandoffReceiver {
    /// `None`: the old process has none.
    histories: Option<Histories>,
    state: Option<ScaleState>,
    supervisor: Option<OwnedFd>,
    desks: Vec<Desk>,
    host: Option<(Host, ScaleHandle)>,
}

impl HandoffReceiver {
    /// Takes one part of the old process's state.
    ///
    /// # Errors
    /// When the part is malformed or out of turn.
    pub(crate) fn receive(&mut self, body: &Bytes, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        match ScalingMessage::read(body)? {
            ScalingMessage::Scale(state) => {
                state.check().map_err(|e| e.to_string())?;
                self.state = Some(*state);
                self.supervisor = descriptors.into_iter().next();
                Ok(())
            }
            ScalingMessage::Histories(histories) => {
                let own = self.histories.get_or_insert_default();
                for (id, history) in histories {
                    let (namespace, name) = id.split_once('/').unwrap_or_default();
                    let id = ServiceId::parse(namespace, name).map_err(|e| format!("a service {id}: {e}"))?;
                    own.insert(id, Arc::new(history));
                }
                Ok(())
            }
            ScalingMessage::Desks(desks) => {
                self.desks.extend(desks);
                Ok(())
            }
            ScalingMessage::ToHost(_) | ScalingMessage::ToGuest(_) | ScalingMessage::Answer(_) => {
                Err("what it says of scaling is out of turn".to_owned())
            }
        }
    }

    /// Counts the old process's requests in flight, before this process admits any. Returns the state of the old
    /// process's controller, the desired replicas of each revision, and the histories of services.
    pub(crate) fn take_over(
        &mut self,
        registry: &Registry,
        scale: &ScaleHandle,
    ) -> (Option<HandedOver>, Inherited, Option<Histories>) {
        let host = Host::inherit(registry, &std::mem::take(&mut self.desks));
        tracing::info!(
            in_flight = host.held(),
            "upgrade: counting what the old process has in flight"
        );
        self.host = Some((host, scale.clone()));
        let supervisor = self.supervisor.take();
        let left = self.state.take().map(|state| HandedOver { state, supervisor });
        let wanted = left.as_ref().map(|left| left.state.desired()).unwrap_or_default();
        (left, wanted, self.histories.take())
    }

    /// Exchanges messages with the old process. Returns when the old process is gone.
    pub(crate) async fn follow(self, sender: Sender, mut receiver: Receiver) {
        let Some((mut host, scale)) = self.host else {
            return;
        };
        let mut next: Option<Frame> = None;
        loop {
            tokio::select! {
                heard = receiver.recv() => match heard.map(|message| message.frame) {
                    Ok(Frame::Scaling(body)) => match ScalingMessage::read(&body) {
                        Ok(ScalingMessage::ToHost(said)) => {
                            said.into_iter().for_each(|message| host.hear(message));
                        }
                        Ok(ScalingMessage::Answer(answer)) => scale.platform_answered(Some(answer)),
                        Ok(_) => {}
                        Err(error) => tracing::warn!("upgrade: the old process is not understood: {error}"),
                    },
                    Ok(_) => {}
                    Err(_) => break,
                },
                sent = send_next(&sender, &next), if next.is_some() => {
                    next = None;
                    if sent.is_err() {
                        break;
                    }
                }
                said = host.next(), if next.is_none() => match ScalingMessage::ToGuest(said).frame() {
                    Ok(frame) => next = Some(frame),
                    Err(error) => tracing::warn!(%error, "upgrade: an answer cannot be said"),
                },
            }
        }
        // The old process is gone, and its requests in flight with it.
        tracing::info!(
            in_flight = host.held(),
            "upgrade: the old process holds nothing any more"
        );
        drop(host);
        scale.platform_answered(None);
    }
}
