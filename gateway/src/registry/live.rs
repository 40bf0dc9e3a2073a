//! The live state of one revision.

use std::collections::HashSet;
use std::mem::discriminant;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sluice_model::{Backend, EndpointTarget, ManagedEndpoint, RevisionId, RevisionSpec};
use tokio::sync::Notify;

use crate::throttle::{
    EndpointState, RevisionObserver, RevisionThrottler, Supply, ThrottleEnv, ThrottleLimits,
};
use crate::upkeep::{Names, UpkeepEnv, probe, resolve};
use crate::upstream::TlsSlot;

/// The live state of one revision: it outlives Snapshots, and its probes and name lookups end
/// with it.
#[derive(Debug)]
pub struct LiveRevision {
    spec: ArcSwap<RevisionSpec>,
    tls: TlsSlot,
    throttler: Arc<RevisionThrottler>,
    observer: Arc<dyn RevisionObserver>,
    names: Mutex<Names>,
    /// Tells the resolver that there are other names, or that it may end.
    names_changed: Arc<Notify>,
    /// Whether the resolver runs: from the first name on.
    resolving: AtomicBool,
    /// Requests that a backend put off, until they are tried again: they have no place in the queue.
    put_off: AtomicUsize,
    /// Keys of the endpoints that have a probe running.
    probed: Mutex<HashSet<u64>>,
    upkeep: UpkeepEnv,
    runtime: tokio::runtime::Handle,
}

impl LiveRevision {
    /// Fresh state; its upkeep is running when this returns.
    pub(super) fn start(
        spec: Arc<RevisionSpec>,
        env: ThrottleEnv,
        upkeep: UpkeepEnv,
        now: Instant,
    ) -> Arc<Self> {
        let observer = Arc::clone(&env.observer);
        let runtime = env.runtime.clone();
        let names = Names::default();
        let limits = limits(&spec, names.addresses(&targets(&spec)).pending);
        let live = Arc::new(Self {
            throttler: RevisionThrottler::new(spec.id.clone(), spec.service.clone(), limits, env),
            observer,
            names: Mutex::new(names),
            names_changed: Arc::new(Notify::new()),
            resolving: AtomicBool::new(false),
            put_off: AtomicUsize::new(0),
            tls: TlsSlot::new(&spec, &runtime),
            probed: Mutex::default(),
            spec: ArcSwap::new(spec),
            upkeep,
            runtime,
        });
        live.refresh(&live.names.lock(), now);
        live
    }

    /// The revision.
    pub fn id(&self) -> &RevisionId {
        self.throttler.id()
    }

    /// TLS towards its backend.
    pub(crate) fn tls(&self) -> &TlsSlot {
        &self.tls
    }

    /// What is configured now. A request uses the one of its own Snapshot.
    pub fn spec(&self) -> Arc<RevisionSpec> {
        self.spec.load_full()
    }

    /// Admission.
    pub fn throttler(&self) -> &Arc<RevisionThrottler> {
        &self.throttler
    }

    /// Holds a request that its backend put off. `None`: as many as may wait in the revision's queue
    /// are held already.
    pub fn put_off(self: &Arc<Self>) -> Option<PutOff> {
        let most = self.spec().queue.depth;
        let room = |held: usize| (held < most).then_some(held + 1);
        self.put_off
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        Some(PutOff(Arc::clone(self)))
    }

    /// Requests that are held because a backend put them off.
    pub fn held(&self) -> usize {
        self.put_off.load(Ordering::Relaxed)
    }

    /// What [`Registry::new`](super::Registry::new)'s factory made for it.
    pub fn observer(&self) -> &Arc<dyn RevisionObserver> {
        &self.observer
    }

    /// Whether this state can serve that spec too. Not when endpoints come to be in another way,
    /// or when pooled connections would be of the wrong kind.
    pub(super) fn fits(&self, spec: &RevisionSpec) -> bool {
        let mine = self.spec();
        let same_backend = match (&mine.backend, &spec.backend) {
            (Backend::Static { activated: a, .. }, Backend::Static { activated: b, .. }) => a == b,
            (Backend::Url(a), Backend::Url(b)) => a == b,
            (a, b) => discriminant(a) == discriminant(b),
        };
        // Instances are replaced one by one when they are to speak something else.
        let same_wire = mine.protocol == spec.protocol || matches!(spec.backend, Backend::Managed);
        // A connection that was verified otherwise is not used again.
        same_backend && same_wire && mine.tls == spec.tls
    }

    pub(super) fn update(self: &Arc<Self>, spec: Arc<RevisionSpec>, now: Instant) {
        if *self.spec() == *spec {
            return;
        }
        let names = self.names.lock();
        self.throttler.set_service(&spec.service);
        self.spec.store(spec);
        self.refresh(&names, now);
        drop(names);
        self.names_changed.notify_one();
        self.throttler.wake_probes();
    }

    pub(super) fn takes_instances(&self) -> bool {
        matches!(
            self.spec().backend,
            Backend::Managed | Backend::Static { activated: true, .. }
        )
    }

    pub(super) fn add_instance(self: &Arc<Self>, endpoint: &ManagedEndpoint, now: Instant) {
        if self.throttler.add_instance(endpoint, now).is_some() {
            self.start_probes();
        }
    }

    /// Whether a name is being looked up for the first time.
    pub(super) fn is_resolving(&self) -> bool {
        self.names.lock().addresses(&targets(&self.spec())).pending
    }

    /// What the resolver has to look up.
    pub(crate) fn names_wanted(&self) -> Vec<(String, u16)> {
        let targets = targets(&self.spec());
        let names = targets.into_iter().filter_map(|target| match target {
            EndpointTarget::Dns { host, port } => Some((host, port)),
            EndpointTarget::Address(_) => None,
        });
        names.collect()
    }

    /// Changes what is known of names, then the throttler's addresses with it.
    pub(crate) fn with_names<R>(self: &Arc<Self>, now: Instant, change: impl FnOnce(&mut Names) -> R) -> R {
        let mut names = self.names.lock();
        let result = change(&mut names);
        self.refresh(&names, now);
        result
    }

    /// Forgets that an endpoint has a probe.
    pub(crate) fn probe_ended(&self, key: u64) {
        self.probed.lock().remove(&key);
    }

    /// Whether an endpoint is probed at all: one that nothing proves ready is taken as ready.
    pub(crate) fn wants_probe(&self, endpoint: &EndpointState) -> bool {
        let spec = self.spec();
        endpoint.instance.is_some() || spec.readiness.is_some() || self.takes_instances()
    }

    /// Makes limits and addresses what spec and names say. `names` is the locked one: a lookup that
    /// comes in together with a new spec must not overwrite it with addresses of the old one.
    fn refresh(self: &Arc<Self>, names: &Names, now: Instant) {
        let spec = self.spec();
        if matches!(spec.backend, Backend::Managed) {
            self.throttler.set_limits(limits(&spec, false), now);
            return;
        }
        let targets = targets(&spec);
        let known = names.addresses(&targets);
        let limits = limits(&spec, known.pending);
        let ready = !self.takes_instances();
        // With a name pending, waiting is allowed before addresses go; without one, addresses come
        // before waiting ends. Either way nobody is turned away in between.
        if known.pending {
            self.throttler.set_limits(limits, now);
            self.throttler.set_addresses(&known.addresses, ready, now);
        } else {
            self.throttler.set_addresses(&known.addresses, ready, now);
            self.throttler.set_limits(limits, now);
        }
        self.start_probes();
        if targets.iter().any(is_name) && !self.resolving.swap(true, Ordering::Relaxed) {
            let changed = Arc::clone(&self.names_changed);
            let task = resolve::run(Arc::downgrade(self), changed, self.upkeep.clone());
            drop(self.runtime.spawn(task));
        }
    }

    pub(super) fn start_probes(self: &Arc<Self>) {
        let views = self.throttler.endpoints();
        let mut probed = self.probed.lock();
        for view in views {
            if self.wants_probe(&view.endpoint) && probed.insert(view.endpoint.key) {
                let throttler = Arc::clone(&self.throttler);
                let task = probe::run(
                    Arc::downgrade(self),
                    throttler,
                    view.endpoint,
                    self.upkeep.clone(),
                );
                drop(self.runtime.spawn(task));
            }
        }
    }
}

/// A request that its backend put off; dropping it says that it waits no more.
#[derive(Debug)]
pub struct PutOff(Arc<LiveRevision>);

impl Drop for PutOff {
    fn drop(&mut self) {
        self.0.put_off.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for LiveRevision {
    fn drop(&mut self) {
        // Upkeep looks whether it is still wanted, and is not.
        self.throttler.wake_probes();
        self.names_changed.notify_one();
    }
}

fn limits(spec: &RevisionSpec, names_pending: bool) -> ThrottleLimits {
    let supply = match &spec.backend {
        Backend::Managed | Backend::Static { activated: true, .. } => Supply::Activated,
        _ if names_pending => Supply::Resolving,
        _ => Supply::Fixed,
    };
    ThrottleLimits {
        // Zero is no limit wherever a limit is configured.
        concurrency: spec.container_concurrency.filter(|&limit| limit > 0),
        queue: spec.queue,
        start_timeout: spec.start_timeout,
        supply,
    }
}

fn targets(spec: &RevisionSpec) -> Vec<EndpointTarget> {
    match &spec.backend {
        Backend::Managed => Vec::new(),
        Backend::Static { targets, .. } => targets.clone(),
        Backend::Url(url) => vec![EndpointTarget::Dns {
            host: url.host.as_str().to_owned(),
            port: url.port,
        }],
    }
}

fn is_name(target: &EndpointTarget) -> bool {
    matches!(target, EndpointTarget::Dns { .. })
}
