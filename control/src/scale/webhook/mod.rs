//! The scaler of platforms: posts the number of instances of a revision over HTTP; starting them is up to the platform.

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

/// The bound of concurrent calls, all revisions together: each holds a connection.
const CALLS: usize = 128;

/// A call of a platform with the number of instances of a revision. Answered by [`ScalerEvent::Answered`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    /// The idempotency key: the same in every call of one decision.
    pub(crate) key: String,
    /// The number of instances.
    pub(crate) replicas: u32,
    /// The reason, in one line.
    pub(crate) reason: String,
    /// Endpoints of an earlier reply that stay in use.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// The timeout of the call.
    pub(crate) limit: Duration,
    /// The plan, which has the URL.
    pub(crate) plan: Arc<RevisionPlan>,
}

/// A platform's answer. Details are for people: one line, no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The platform agreed; the endpoints are the addresses that it named, if any.
    Agreed { endpoints: Vec<SocketAddr> },
    /// The platform refused for good.
    Refused(String),
    /// The call failed, or was not answered; `after` is the platform's Retry-After.
    Retry { detail: String, after: Option<Duration> },
}

/// The handle of the task that calls platforms. The caller orders one call at a time for each revision. Dropping the handle
/// cancels every call, with an unknown outcome.
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
    /// Starts the task on the current runtime.
    pub(crate) fn spawn(events: mpsc::Sender<ScalerEvent>) -> Self {
        Self::with_client(Client::new(), events)
    }

    fn with_client(client: Client, events: mpsc::Sender<ScalerEvent>) -> Self {
        // Unbounded, because the controller must not wait for a task that waits for the controller. Bounded in practice:
        // one order for each revision.
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
        // The task ends only after the sender is dropped.
        let _ = self.orders.send((revision.clone(), ask));
    }
}

async fn run(
    client: Arc<Client>,
    mut inbox: mpsc::UnboundedReceiver<(RevisionId, Ask)>,
    events: mpsc::Sender<ScalerEvent>,
) {
    let slots = Arc::new(Semaphore::new(CALLS));
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some((revision, ask)) = order else { return };
                let (client, slots, events) = (Arc::clone(&client), Arc::clone(&slots), events.clone());
                calls.spawn(async move {
                    // Never closed. Waiting for a slot does not count against the timeout of the call.
                    let _slot = slots.acquire().await;
                    let answer = call(&client, &revision, &ask).await;
                    let answered = ScalerEvent::Answered { revision, answer };
                    // A controller that is gone needs no event.
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
    let reply = async {
        let reply = client
            .post(&webhook.url, &webhook.headers, &ask.key, body)
            .await?;
        reply::read(reply).await
    };
    match tokio::time::timeout(ask.limit, reply).await {
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
