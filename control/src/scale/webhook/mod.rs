//! Platforms as a [`Scaler`]: they are told over HTTP how many instances a revision should have,
//! and see to it themselves.

mod client;
mod reply;
mod state;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::RevisionId;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use self::client::Client;
pub(crate) use self::state::{SavedWebhookState, WebhookAction, WebhookEvent, WebhookState};
use super::{Scaler, ScalerEvent};
use crate::plan::{PlanDelta, RevisionPlan, ScalerSpec};

/// Calls at once, all revisions together: each holds a connection.
const CALLS: usize = 128;

/// To a platform: this revision should have so many. Answered by [`ScalerEvent::Answered`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    /// Names the decision: the same in every call about it, in no other.
    pub(crate) key: String,
    /// How many.
    pub(crate) replicas: u32,
    /// Why, in one line.
    pub(crate) reason: String,
    /// Those of an earlier reply that stay in use.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// How long the call may take.
    pub(crate) limit: Duration,
    /// Where to call.
    pub(crate) plan: Arc<RevisionPlan>,
}

/// What a platform said. Details are for people: one line, no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It sees to it; this is where they will listen, if it says so.
    Agreed { endpoints: Vec<SocketAddr> },
    /// It will not, and would not if it was asked again.
    Refused(String),
    /// It could not, or nothing was heard of it; after this time, if it says so, it may.
    Retry { detail: String, after: Option<Duration> },
}

/// Calls platforms. Whoever orders sees to it that a revision has one call at a time. Dropping
/// this ends every call; whether they did anything is then unknown.
#[derive(Debug)]
pub(crate) struct WebhookScaler {
    orders: mpsc::UnboundedSender<(RevisionId, Ask)>,
    _task: AbortOnDrop,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl WebhookScaler {
    /// Starts its task on the current runtime.
    pub(crate) fn spawn(events: mpsc::Sender<ScalerEvent>) -> Self {
        Self::with_client(Client::new(), events)
    }

    fn with_client(client: Client, events: mpsc::Sender<ScalerEvent>) -> Self {
        // Unbounded, because the controller must not wait for a task that waits for it. It holds
        // at most one order for each revision.
        let (orders, inbox) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(Arc::new(client), inbox, events));
        Self {
            orders,
            _task: AbortOnDrop(task.abort_handle()),
        }
    }
}

impl Scaler for WebhookScaler {
    type Order = Ask;

    fn configure(&mut self, _: &PlanDelta) {}

    fn order(&mut self, revision: &RevisionId, ask: Ask) {
        // The task ends only after this end is dropped.
        let _ = self.orders.send((revision.clone(), ask));
    }
}

async fn run(
    client: Arc<Client>,
    mut inbox: mpsc::UnboundedReceiver<(RevisionId, Ask)>,
    events: mpsc::Sender<ScalerEvent>,
) {
    let turns = Arc::new(Semaphore::new(CALLS));
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some((revision, ask)) = order else { return };
                let (client, turns, events) = (Arc::clone(&client), Arc::clone(&turns), events.clone());
                calls.spawn(async move {
                    // Never closed. Waiting for a turn is not the platform's time.
                    let _turn = turns.acquire().await;
                    let answer = call(&client, &revision, &ask).await;
                    let answered = ScalerEvent::Answered { revision, answer };
                    // Without a controller nobody needs to know.
                    let _ = events.send(answered).await;
                });
            }
            Some(_) = calls.join_next() => {}
        }
    }
}

async fn call(client: &Client, revision: &RevisionId, ask: &Ask) -> Answer {
    let ScalerSpec::Webhook(webhook) = &ask.plan.scaler else {
        return Answer::Refused("it has no webhook".to_owned());
    };
    let body = reply::request_body(revision, ask);
    let told = async {
        let reply = client
            .post(&webhook.url, &webhook.headers, &ask.key, body)
            .await?;
        reply::read(reply).await
    };
    match tokio::time::timeout(ask.limit, told).await {
        Ok(Ok(endpoints)) => Answer::Agreed { endpoints },
        Ok(Err(answer)) => answer,
        Err(_) => Answer::Retry {
            detail: format!("the platform did not answer within {:?}", ask.limit),
            after: None,
        },
    }
}

#[cfg(test)]
mod tests;
