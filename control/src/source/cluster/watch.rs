//! Watches: each kind of object is listed and then followed; a broken watch is resumed, and what was missed is listed
//! again.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::runtime::watcher as watch_objects;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::objects::{ConfigMap, Secret};
use super::settings::{NETWORK, SHARED};
use super::store::{AnyUpdate, Kind, Update};
use crate::object_name::ObjectName;

/// The label of the Secrets that Knative's certificates are in.
const CERTIFICATE: &str = "networking.internal.knative.dev/certificate-uid";

/// The label of the Pods of revisions.
const OF_REVISION: &str = "serving.knative.dev/revisionUID";

/// Secrets that are watched by name at once.
const WATCHED: usize = 64;

/// The pause between two reads of Secrets that are not watched.
const READ_EVERY: Duration = Duration::from_secs(1);

/// The time limit of one of those reads: the others wait for it.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A failure so long after the one before is another one: a watch of objects that do not change shows by nothing else that it
/// went on.
const ANOTHER_BREAK: Duration = Duration::from_secs(30);

/// The longest pause before the next attempt. kube's own back-off goes up to 30 s: after an outage of minutes a gateway
/// would be blind for half a minute more.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The pause after the first failure.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Follows all kinds until the receiver is dropped. The ConfigMaps are those in `knative`, Serving's namespace.
pub(super) async fn watch_all(client: Client, knative: String, updates: Sender<AnyUpdate>) {
    let all = watcher::Config::default();
    let of_revisions = all.clone().labels(OF_REVISION);
    let labelled = all.clone().labels(CERTIFICATE);
    let named = |name: &str| all.clone().fields(&format!("metadata.name={name}"));
    let config_maps = || Api::<ConfigMap>::namespaced(client.clone(), &knative);
    let send = || updates.clone();
    let of = client.clone();
    tokio::join!(
        follow_many(of.clone(), all.clone(), send(), AnyUpdate::Ingress, Kind::Ingress),
        follow_many(of.clone(), all.clone(), send(), AnyUpdate::Service, Kind::Service),
        follow_many(of.clone(), all.clone(), send(), AnyUpdate::Slice, Kind::Slice),
        follow_in(Api::all(of.clone()), labelled, send(), AnyUpdate::Secret),
        follow_many(
            of.clone(),
            all.clone(),
            send(),
            AnyUpdate::Revision,
            Kind::Revision
        ),
        follow_many(of.clone(), of_revisions, send(), AnyUpdate::Pod, Kind::Pod),
        follow_in(config_maps(), named(SHARED), send(), AnyUpdate::Shared),
        follow_in(config_maps(), named(NETWORK), send(), AnyUpdate::Network),
    );
}

/// Follows Secrets by their names, those in `wanted`, until the receiver is dropped.
///
/// Each is a watch with a request of its own. Beyond [`WATCHED`] a Secret is read once as soon as it is wanted, and again
/// in rotation, one request a second in all: what a thousand of them cost the API server is bounded.
pub(super) async fn follow_secrets(
    client: Client,
    mut wanted: watch::Receiver<BTreeSet<ObjectName>>,
    updates: Sender<AnyUpdate>,
) {
    let mut watched: HashMap<ObjectName, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    // Those that are read, the next one first.
    let mut read: VecDeque<ObjectName> = VecDeque::new();
    let mut unread: VecDeque<ObjectName> = VecDeque::new();
    // Those of the read ones that the store knows.
    let mut told: HashSet<ObjectName> = HashSet::new();
    let mut is_told = false;
    loop {
        {
            let names = wanted.borrow_and_update();
            watched.retain(|name, task| {
                let is_wanted = names.contains(name);
                if !is_wanted {
                    task.abort();
                }
                is_wanted
            });
            read.retain(|name| names.contains(name));
            unread.retain(|name| names.contains(name));
            told.retain(|name| names.contains(name));
            let known: HashSet<&ObjectName> = read.iter().chain(&unread).collect();
            let new = names
                .iter()
                .filter(|name| !watched.contains_key(*name) && !known.contains(*name));
            let new: Vec<ObjectName> = new.cloned().collect();
            for name in new {
                if watched.len() < WATCHED {
                    let task = follow_secret(client.clone(), name.clone(), updates.clone());
                    watched.insert(name, tasks.spawn(task));
                } else {
                    unread.push_back(name);
                }
            }
        }
        if !unread.is_empty() && !std::mem::replace(&mut is_told, true) {
            tracing::warn!(
                "Ingresses name more than {WATCHED} Secrets without the label {CERTIFICATE}: a change of the others is \
                 seen late; label them"
            );
        }
        let next = unread.pop_front();
        let pause = if next.is_some() {
            Duration::ZERO
        } else {
            READ_EVERY
        };
        let next = next.or_else(|| read.pop_front());
        tokio::select! {
            changed = wanted.changed() => {
                // Back to where it was: nothing was read.
                next.into_iter().for_each(|name| read.push_front(name));
                if changed.is_err() {
                    return;
                }
            }
            () = sleep(pause), if next.is_some() => {
                let Some(name) = next else { continue };
                let api = Api::<Secret>::namespaced(client.clone(), name.namespace());
                let found = match timeout(READ_TIMEOUT, api.get_opt(name.name())).await {
                    Ok(Ok(found)) => Some(found),
                    Ok(Err(error)) => {
                        tracing::debug!(secret = %name, %error, "cannot be read, and is tried again");
                        // One that is refused counts as missing, as with those that are watched.
                        (refuses(&error) && !told.contains(&name)).then_some(None)
                    }
                    Err(_) => {
                        tracing::debug!(secret = %name, "is not answered, and is asked for again");
                        None
                    }
                };
                match found {
                    Some(found) => {
                        told.insert(name.clone());
                        if updates.send(AnyUpdate::NamedSecret(name.clone(), found)).await.is_err() {
                            return;
                        }
                    }
                    None => sleep(READ_EVERY).await,
                }
                // In turn with the others, which it must not hold up.
                read.push_back(name);
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {
                next.into_iter().for_each(|name| read.push_front(name));
            }
        }
    }
}

async fn follow_secret(client: Client, name: ObjectName, updates: Sender<AnyUpdate>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", name.name()));
    let api = Api::<Secret>::namespaced(client, name.namespace());
    let mut events = Paced::new(watch_objects(api, config));
    let (mut listed, mut is_told, mut broken) = (None, false, Break::default());
    while let Some(event) = events.next().await {
        if is_success(&event) {
            broken.succeeded();
        }
        let found = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(secret)) => {
                listed = Some(secret);
                continue;
            }
            Ok(Event::InitDone) => listed.take(),
            Ok(Event::Apply(secret)) => Some(secret),
            Ok(Event::Delete(_)) => None,
            Err(error) => {
                if broken.failed(Instant::now()) {
                    tracing::warn!(secret = %name, %error, "the watch is broken and is tried again: what is known is served");
                }
                // Nothing is served before every named Secret is known: one that is refused counts as missing, or one Ingress
                // would hold up all others at the start.
                if is_told || !is_refusal(&error) {
                    continue;
                }
                None
            }
        };
        is_told = true;
        if updates
            .send(AnyUpdate::NamedSecret(name.clone(), found))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Follows one kind, in one namespace or in all, until the receiver is dropped. Each list is one update.
pub(super) async fn follow_in<K, U>(
    api: Api<K>,
    config: watcher::Config,
    updates: Sender<U>,
    wrap: fn(Update<K>) -> U,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    follow(api, config, updates, wrap, None).await;
}

/// Follows one kind in all namespaces until the receiver is dropped. The objects of the first list are sent as they are read:
/// they are cut down at once, and the whole list is never in memory. Later lists are one update each, or what is served would
/// see half of them.
async fn follow_many<K>(
    client: Client,
    config: watcher::Config,
    updates: Sender<AnyUpdate>,
    wrap: fn(Update<K>) -> AnyUpdate,
    kind: Kind,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let listed = || AnyUpdate::Listed(kind);
    follow(Api::all(client), config, updates, wrap, Some(&listed)).await;
}

/// `one_by_one` makes the update that says that all objects of the first list were sent, each as one; `None`: a first list is
/// one update, like those after it.
async fn follow<K, U>(
    api: Api<K>,
    config: watcher::Config,
    updates: Sender<U>,
    wrap: fn(Update<K>) -> U,
    one_by_one: Option<&(dyn Fn() -> U + Sync)>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = Paced::new(watch_objects(api, config));
    forward(events, updates, wrap, one_by_one).await;
}

/// Sends the updates that the events of a watch are, until these end or the receiver is dropped.
async fn forward<K, U>(
    mut events: Paced<impl Stream<Item = Result<Event<K>, watcher::Error>>>,
    updates: Sender<U>,
    wrap: fn(Update<K>) -> U,
    mut one_by_one: Option<&(dyn Fn() -> U + Sync)>,
) where
    K: Resource<DynamicType = ()>,
{
    let kind = K::kind(&());
    let (mut listed, mut was_any_sent) = (Vec::new(), false);
    let (mut broken, mut is_absent, mut was_listed) = (Break::default(), false, false);
    while let Some(event) = events.next().await {
        if is_success(&event) && broken.succeeded() {
            tracing::info!(%kind, "the watch goes on");
        }
        let update = match event {
            Ok(Event::Init) => {
                // A list that broke off may have named objects that the next one does not: only a whole list tells.
                one_by_one = one_by_one.filter(|_| !was_any_sent);
                listed = Vec::new();
                continue;
            }
            Ok(Event::InitApply(object)) if one_by_one.is_some() => Update::Apply(object),
            Ok(Event::InitApply(object)) => {
                listed.push(object);
                continue;
            }
            Ok(Event::InitDone) => {
                (is_absent, was_listed) = (false, true);
                match one_by_one.take() {
                    None => Update::List(std::mem::take(&mut listed)),
                    Some(all_sent) if updates.send(all_sent()).await.is_err() => return,
                    Some(_) => continue,
                }
            }
            Ok(Event::Apply(object)) => Update::Apply(object),
            Ok(Event::Delete(object)) => Update::Delete(object),
            // Knative's networking without Serving, or without the right to see Serving's settings: there are none, until
            // somebody installs it or grants the right. What was listed once is kept: a refusal later, of an API server that is
            // being changed or restarted, does not say that the objects are gone.
            Err(error) if !was_listed && is_absent_kind(&K::kind(&()), &error) => {
                if std::mem::replace(&mut is_absent, true) {
                    continue;
                }
                tracing::info!(%kind, %error, "no such objects are to be seen: there are none");
                Update::List(Vec::new())
            }
            Err(error) => {
                if broken.failed(Instant::now()) {
                    tracing::warn!(%kind, %error, "the watch is broken and is tried again: what is known is served");
                }
                continue;
            }
        };
        was_any_sent = true;
        if updates.send(wrap(update)).await.is_err() {
            return;
        }
    }
}

/// Whether an error says that there are no objects of a kind that a gateway can do without.
fn is_absent_kind(kind: &str, error: &watcher::Error) -> bool {
    let watcher::Error::InitialListFailed(kube::Error::Api(answer)) = error else {
        return false;
    };
    match kind {
        "Revision" => answer.code == 404,
        "ConfigMap" => matches!(answer.code, 403 | 404),
        _ => false,
    }
}

/// Whether the API server refuses a list for what it is: by its rules of access, or because it names nothing that can be.
fn is_refusal(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) => refuses(error),
        _ => false,
    }
}

fn refuses(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            (400..500).contains(&status.code) && !matches!(status.code, 408 | 410 | 429)
        }
        _ => false,
    }
}

/// Whether a watch is broken, for one line in the log for each break.
#[derive(Debug, Default)]
struct Break {
    /// The last failure, unless something succeeded since.
    last: Option<Instant>,
}

impl Break {
    /// Records a failure. Returns whether it begins a break.
    fn failed(&mut self, now: Instant) -> bool {
        let before = self.last.replace(now);
        before.is_none_or(|before| now.duration_since(before) >= ANOTHER_BREAK)
    }

    /// Records a success. Returns whether it ends a break.
    fn succeeded(&mut self) -> bool {
        self.last.take().is_some()
    }
}

/// Whether an event shows that the API server answers. [`Event::Init`] does not: it comes before the list is asked for.
fn is_success<K>(event: &Result<Event<K>, watcher::Error>) -> bool {
    event.as_ref().is_ok_and(|event| !matches!(event, Event::Init))
}

/// The events of a watch, with a back-off after each failure that grows until something has succeeded. That of kube
/// begins anew with every `Ok`, so with [`Event::Init`] too: lists that fail, of an absent kind or by an API server that
/// is away, would be tried ten times a second for as long as they fail.
struct Paced<S> {
    events: Pin<Box<S>>,
    pauses: Pauses,
    pause: Option<Duration>,
}

impl<K, S: Stream<Item = Result<Event<K>, watcher::Error>>> Paced<S> {
    fn new(events: S) -> Self {
        Self {
            events: Box::pin(events),
            pauses: Pauses::default(),
            pause: None,
        }
    }

    /// The next event. Dropped before it comes, it loses the rest of a pause and no event.
    async fn next(&mut self) -> Option<S::Item> {
        if let Some(pause) = self.pause.take() {
            sleep(pause).await;
        }
        let event = self.events.next().await?;
        if event.is_err() {
            self.pause = Some(self.pauses.after());
        } else if is_success(&event) {
            self.pauses = Pauses::default();
        }
        Some(event)
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

impl Pauses {
    /// The pause after one more failure.
    fn after(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(MAX_PAUSE);
        pause / 2 + pause.mul_f64(fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
