//! Watches: each kind of object is listed and then followed; a broken watch is resumed, and what was missed is listed
//! again.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, utils::Backoff, watcher as watch_objects};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use super::objects::{EndpointSlice, Ingress, Pod, Revision, Secret, Service};
use super::store::{AnyUpdate, Update};

/// The label of the Secrets that Knative's certificates are in.
const CERTIFICATE: &str = "networking.internal.knative.dev/certificate-uid";

/// The label of the Pods of revisions.
const OF_REVISION: &str = "serving.knative.dev/revisionUID";

/// The longest pause before the next attempt. kube's own back-off goes up to 30 s: after an outage of minutes a gateway
/// would be blind for half a minute more.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The pause after the first failure.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Follows all kinds until the receiver is dropped.
pub(super) async fn watch(client: Client, updates: Sender<AnyUpdate>) {
    let all = watcher::Config::default();
    let of_revisions = all.clone().labels(OF_REVISION);
    let labelled = all.clone().labels(CERTIFICATE);
    tokio::join!(
        follow::<Ingress>(client.clone(), all.clone(), updates.clone(), AnyUpdate::Ingress),
        follow::<Service>(client.clone(), all.clone(), updates.clone(), AnyUpdate::Service),
        follow::<EndpointSlice>(client.clone(), all, updates.clone(), AnyUpdate::Slice),
        follow::<Secret>(client.clone(), labelled, updates.clone(), AnyUpdate::Secret),
        follow::<Revision>(
            client.clone(),
            watcher::Config::default(),
            updates.clone(),
            AnyUpdate::Revision
        ),
        follow::<Pod>(client, of_revisions, updates, AnyUpdate::Pod),
    );
}

async fn follow<K>(
    client: Client,
    config: watcher::Config,
    updates: Sender<AnyUpdate>,
    wrap: fn(Update<K>) -> AnyUpdate,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    follow_in(Api::all(client), config, updates, wrap).await;
}

/// Follows one kind, in one namespace or in all, until the receiver is dropped.
pub(super) async fn follow_in<K, U>(
    api: Api<K>,
    config: watcher::Config,
    updates: Sender<U>,
    wrap: fn(Update<K>) -> U,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&());
    let mut stream = Box::pin(watch_objects(api, config).backoff(Pauses::default()));
    let mut listed = Vec::new();
    let (mut is_broken, mut is_absent) = (false, false);
    while let Some(event) = stream.next().await {
        if let Ok(event) = &event
            && std::mem::take(&mut is_broken)
        {
            tracing::info!(%kind, event = ?std::mem::discriminant(event), "the watch goes on");
        }
        let update = match event {
            Ok(Event::Init) => {
                listed = Vec::new();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed.push(object);
                continue;
            }
            Ok(Event::InitDone) => Update::List(std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => Update::Apply(object),
            Ok(Event::Delete(object)) => Update::Delete(object),
            // Knative's networking without Serving: there are no such objects, until somebody installs it.
            Err(error) if K::kind(&()) == "Revision" && is_unknown_kind(&error) => {
                if std::mem::replace(&mut is_absent, true) {
                    continue;
                }
                tracing::info!(%kind, "the API server knows no such objects: there are none");
                Update::List(Vec::new())
            }
            Err(error) => {
                if !std::mem::replace(&mut is_broken, true) {
                    tracing::warn!(%kind, %error, "the watch is broken and is tried again: what is known is served");
                }
                continue;
            }
        };
        if updates.send(wrap(update)).await.is_err() {
            return;
        }
    }
}

fn is_unknown_kind(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(answer)) => answer.code == 404,
        _ => false,
    }
}

/// The back-off of a watch: doubling pauses, with a spread of half, so that replicas do not come back at once.
#[derive(Debug)]
struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: MIN_PAUSE }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(MAX_PAUSE);
        Some(pause / 2 + pause.mul_f64(fastrand::f64() / 2.0))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_seconds_and_begin_anew() {
        let mut pauses = Pauses::default();
        let all: Vec<Duration> = pauses.by_ref().take(50).collect();
        assert!(all[0] <= MIN_PAUSE && all[0] >= MIN_PAUSE / 2);
        assert!(all.iter().all(|pause| *pause <= MAX_PAUSE));
        assert!(all[49] >= MAX_PAUSE / 2);
        pauses.reset();
        assert!(pauses.next().expect("never ends") <= MIN_PAUSE);
    }
}
