//! The live state of one revision.

use std::collections::HashSet;
use std::fmt;
use std::mem::discriminant;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sluice_model::{
    ActivationFailure, Backend, DemandSink, EndpointAddr, EndpointTarget, Failure, Load, ManagedEndpoint,
    Pods, RevisionId, RevisionSpec, Tier,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::MakeObserver;
use crate::dns::{self, DnsEnv, NameCache};
use crate::probe::{self, ProbeLimiter};
use crate::replicas::{Replicas, Want};
use crate::throttle::{
    Closing, EndpointPhase, EndpointState, QueueBudget, RevisionObserver, RevisionThrottler, Supply,
    ThrottleEnv, ThrottleLimits, TierLimits, clock,
};
use crate::upstream::RevisionTls;

/// State that all live states share.
pub(super) struct LiveEnv {
    pub(super) demand: Arc<dyn DemandSink>,
    pub(super) make_observer: MakeObserver,
    pub(super) budget: Arc<QueueBudget>,
    pub(super) dns: DnsEnv,
    pub(super) probe_limiter: Arc<ProbeLimiter>,
    /// Runs timers, probes and name lookups.
    pub(super) runtime: Handle,
    /// Those that share slots of Knative revisions.
    pub(super) replicas: Option<Arc<Replicas>>,
}

impl fmt::Debug for LiveEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveEnv").finish_non_exhaustive()
    }
}

/// The live state of one revision: it outlives Snapshots, and its probes and name lookups end with it.
///
/// Lazily initialised: dormant until the first request, instance, probe or lookup needs it. Of a hundred
/// thousand revisions few are in use, and one in use takes twenty times the memory.
#[derive(Debug)]
pub struct LiveRevision {
    id: RevisionId,
    spec: ArcSwap<RevisionSpec>,
    env: Arc<LiveEnv>,
    /// State while dormant. Locked while it wakes and while the spec is changed, so that it does not wake with
    /// an old spec.
    asleep: Mutex<Asleep>,
    /// Kept while its slots are shared among replicas.
    shares: Mutex<Option<Want>>,
    awake: OnceLock<Box<Awake>>,
}

/// State of a revision that is not initialised yet.
#[derive(Debug)]
struct Asleep {
    /// Since when the load was zero; reset by each sample.
    since: Instant,
    closed: Option<Closing>,
    paused: bool,
}

/// State of a revision that is in use.
#[derive(Debug)]
struct Awake {
    /// By tier; one without tiers.
    tls: Box<[RevisionTls]>,
    throttler: Arc<RevisionThrottler>,
    observer: Arc<dyn RevisionObserver>,
    names: Mutex<NameCache>,
    /// Wakes the resolver: the names changed, or it may end.
    names_changed: Arc<Notify>,
    /// Whether the resolver runs: from the first name on.
    resolving: AtomicBool,
    /// Number of requests that wait for a retry after a backend's `Retry-After`: they have no place in the
    /// queue.
    put_off: AtomicUsize,
    /// Keys of the endpoints that have a probe task.
    probed: Mutex<HashSet<u64>>,
}

impl Awake {
    fn new(spec: &RevisionSpec, env: &LiveEnv, asleep: &Asleep, now: Instant) -> Self {
        let observer = (env.make_observer)(spec);
        let throttle = ThrottleEnv {
            demand: Arc::clone(&env.demand),
            observer: Arc::clone(&observer),
            budget: Arc::clone(&env.budget),
            runtime: env.runtime.clone(),
        };
        let names = NameCache::default();
        let known: Vec<_> = tiers(spec)
            .map(|tier| names.addresses(&targets(spec.backend_of(tier))))
            .collect();
        let limits = limits(spec, known[0].pending);
        let tier_limits = tiers(spec)
            .zip(&known)
            .map(|(tier, known)| tier_limits(spec, tier, known.pending));
        let scaled = spec.scaled_ids().into_iter().zip(tier_limits).collect();
        let (id, service) = (spec.id.clone(), spec.service.clone());
        let throttler = RevisionThrottler::with_tiers(id, service, limits, scaled, throttle);
        throttler.idle_since(asleep.since);
        // Before it has an endpoint: none is this process's unless it is dealt to it.
        if let Some(replicas) = env.replicas.as_ref().filter(|_| is_shared(spec)) {
            replicas.join(&throttler);
        }
        for (tier, known) in tiers(spec).zip(&known) {
            let ready = !spec.backend_of(tier).is_started();
            throttler.set_addresses(tier, &known.addresses, ready, now);
        }
        if let Backend::Pods(pods) = &spec.backend {
            believe(&throttler, pods, now);
            if let Some(why) = &pods.failure {
                fail(&spec.id, &throttler, why, now);
            }
        }
        if asleep.paused {
            throttler.pause(true, now);
        }
        if let Some(closing) = asleep.closed {
            throttler.close(closing, now);
        }
        Self {
            tls: tiers(spec)
                .map(|tier| RevisionTls::of_tier(spec, tier, &env.runtime))
                .collect(),
            throttler,
            observer,
            names: Mutex::new(names),
            names_changed: Arc::new(Notify::new()),
            resolving: AtomicBool::new(false),
            put_off: AtomicUsize::new(0),
            probed: Mutex::default(),
        }
    }
}

/// Whether replicas share its slots: its Pods are every replica's, and they have a limit.
fn is_shared(spec: &RevisionSpec) -> bool {
    matches!(spec.backend, Backend::Pods(_)) && spec.container_concurrency.is_some()
}

impl LiveRevision {
    /// Fresh state; its probes and name lookups, if it needs any, are running when this returns.
    pub(super) fn start(spec: Arc<RevisionSpec>, env: Arc<LiveEnv>, now: Instant) -> Arc<Self> {
        let live = Arc::new(Self {
            id: spec.id.clone(),
            spec: ArcSwap::new(spec),
            env,
            asleep: Mutex::new(Asleep {
                since: now,
                closed: None,
                paused: false,
            }),
            shares: Mutex::new(None),
            awake: OnceLock::new(),
        });
        live.share();
        live.start_probes_and_lookups(now);
        live
    }

    /// Whether its slots are shared with other replicas.
    pub fn is_shared(&self) -> bool {
        is_shared(&self.spec())
    }

    /// Begins to share its slots with other replicas, or ends it. `true`: it begins.
    fn share(&self) -> bool {
        let Some(replicas) = &self.env.replicas else {
            return false;
        };
        let is_shared = is_shared(&self.spec());
        let mut shares = self.shares.lock();
        let begins = is_shared && shares.is_none();
        if begins {
            *shares = Some(replicas.want());
        } else if !is_shared {
            *shares = None;
        }
        begins
    }

    /// The revision.
    pub fn id(&self) -> &RevisionId {
        &self.id
    }

    /// TLS towards the backend of a tier.
    pub(crate) fn tls(&self, tier: u8) -> &RevisionTls {
        let tls = &self.wake().tls;
        tls.get(usize::from(tier)).unwrap_or(&tls[0])
    }

    /// The tier that the control plane scales by this id; `None` where the revision has no such tier.
    pub(super) fn tier_of(&self, id: &RevisionId) -> Option<u8> {
        let spec = self.spec();
        tiers(&spec).find(|&tier| match spec.tiers().get(usize::from(tier)) {
            Some(tier) => id.tier() == Some(tier.name.as_str()),
            None => id.tier().is_none(),
        })
    }

    /// The present configuration. A request uses the spec of its own Snapshot.
    pub fn spec(&self) -> Arc<RevisionSpec> {
        self.spec.load_full()
    }

    /// Its throttler, initialised if need be: callers that only read use [`awake`](Self::awake).
    pub fn throttler(&self) -> &Arc<RevisionThrottler> {
        &self.wake().throttler
    }

    /// Its throttler, if it is initialised.
    pub fn awake(&self) -> Option<&Arc<RevisionThrottler>> {
        Some(&self.awake.get()?.throttler)
    }

    fn wake(&self) -> &Awake {
        if let Some(awake) = self.awake.get() {
            return awake;
        }
        let asleep = self.asleep.lock();
        let awake = || Box::new(Awake::new(&self.spec(), &self.env, &asleep, clock()));
        self.awake.get_or_init(awake)
    }

    /// The load since the last sample.
    pub fn peek(&self, now: Instant) -> Load {
        match self.awake() {
            Some(throttler) => throttler.peek(now),
            None => self.resting(),
        }
    }

    /// The load since the last call; for the autoscaler alone.
    pub(super) fn sample(&self, tier: u8, now: Instant) -> Load {
        let mut asleep = self.asleep.lock();
        if let Some(throttler) = self.awake() {
            return throttler.sample(tier, now);
        }
        asleep.since = now;
        let spec = self.spec();
        let addresses = NameCache::default().addresses(&targets(spec.backend_of(tier)));
        resting(addresses.addresses.len())
    }

    fn resting(&self) -> Load {
        resting(self.addresses().len())
    }

    /// The addresses it is configured with; a dormant revision uses all of them once it wakes.
    pub fn addresses(&self) -> Vec<EndpointAddr> {
        let spec = self.spec();
        let all = tiers(&spec).flat_map(|tier| targets(spec.backend_of(tier)));
        NameCache::default().addresses(&all.collect::<Vec<_>>()).addresses
    }

    /// As [`RevisionThrottler::pause`].
    pub(super) fn pause(&self, paused: bool, now: Instant) {
        let mut asleep = self.asleep.lock();
        let before = std::mem::replace(&mut asleep.paused, paused);
        let awake = self.awake();
        drop(asleep);
        if before != paused
            && let Some(throttler) = awake
        {
            throttler.pause(paused, now);
        }
    }

    /// As [`RevisionThrottler::close`].
    pub(super) fn close(&self, closing: Closing, now: Instant) {
        let mut asleep = self.asleep.lock();
        match self.awake() {
            Some(throttler) => {
                drop(asleep);
                throttler.close(closing, now);
            }
            None => asleep.closed = Some(closing),
        }
    }

    /// As [`RevisionThrottler::reopen`].
    pub(super) fn reopen(&self) {
        let mut asleep = self.asleep.lock();
        match self.awake() {
            Some(throttler) => throttler.reopen(),
            None => asleep.closed = asleep.closed.filter(|closing| *closing != Closing::Removed),
        }
    }

    /// As [`RevisionThrottler::is_spent`].
    pub(super) fn is_spent(&self) -> bool {
        self.awake().is_none_or(|throttler| throttler.is_spent())
    }

    /// Reserves one of the places for requests that wait for a retry after a backend's `Retry-After`. `None`:
    /// as many wait already as the revision's queue is deep.
    pub fn put_off(self: &Arc<Self>) -> Option<RetryHold> {
        let most = self.spec().queue.depth;
        let room = |held: usize| (held < most).then_some(held + 1);
        let held = &self.wake().put_off;
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        Some(RetryHold(Arc::clone(self)))
    }

    /// Number of requests that wait for a retry after a backend's `Retry-After`.
    pub fn held(&self) -> usize {
        let awake = self.awake.get();
        awake.map_or(0, |awake| awake.put_off.load(Ordering::Relaxed))
    }

    /// The observer that [`Registry::new`](super::Registry::new)'s factory made for it.
    pub fn observer(&self) -> &Arc<dyn RevisionObserver> {
        &self.wake().observer
    }

    /// Whether this state can serve another spec. Not when endpoints are discovered in another way, or when
    /// pooled connections would be of the wrong kind.
    pub(super) fn fits(&self, spec: &RevisionSpec) -> bool {
        let mine = self.spec();
        let same_backend = is_same_kind(&mine.backend, &spec.backend);
        // Instances are replaced one by one when their protocol changes.
        let same_wire = mine.protocol == spec.protocol || matches!(spec.backend, Backend::Managed);
        // A connection that was verified by other TLS settings is not used again.
        same_backend && same_wire && mine.tls == spec.tls
    }

    pub(super) fn update(self: &Arc<Self>, spec: Arc<RevisionSpec>, now: Instant) {
        let before = self.spec();
        if Arc::ptr_eq(&before, &spec) || *before == *spec {
            return;
        }
        let asleep = self.asleep.lock();
        self.spec.store(Arc::clone(&spec));
        let awake = self.awake.get();
        drop(asleep);
        let begins = self.share();
        let Some(awake) = awake else {
            self.start_probes_and_lookups(now);
            return;
        };
        if let Some(replicas) = self.env.replicas.as_ref().filter(|_| begins) {
            replicas.join(&awake.throttler);
        }
        let names = awake.names.lock();
        awake.throttler.set_service(&spec.service);
        self.refresh(awake, &names, now);
        drop(names);
        if let (Backend::Pods(before), Backend::Pods(pods)) = (&before.backend, &spec.backend) {
            // After the Pods that are ready now: a waiter is not sent back to zero in between.
            doubt(&awake.throttler, before, pods, now);
            match &pods.failure {
                Some(why) if before.failure != pods.failure => fail(&self.id, &awake.throttler, why, now),
                None if before.failure.is_some() => awake.throttler.forgive(0),
                _ => {}
            }
        }
        awake.names_changed.notify_one();
        if before.readiness != spec.readiness {
            awake.throttler.wake_probes();
        }
    }

    /// Wakes a revision with addresses to probe or names to look up.
    fn start_probes_and_lookups(self: &Arc<Self>, now: Instant) {
        let spec = self.spec();
        let needed = match &spec.backend {
            Backend::Managed => false,
            Backend::Url(_) => true,
            // Ready Pods need no probe. Where one starts, the revision is in use, or soon will be.
            Backend::Pods(pods) => !pods.starting.is_empty(),
            Backend::Static { targets, activated } => {
                *activated || spec.readiness.is_some() || targets.iter().any(is_name)
            }
            Backend::Tiers(_) => true,
        };
        if needed {
            let awake = self.wake();
            self.refresh(awake, &awake.names.lock(), now);
        }
    }

    pub(super) fn add_instance(self: &Arc<Self>, tier: u8, endpoint: &ManagedEndpoint, now: Instant) {
        if self.throttler().add_instance(tier, endpoint, now).is_some() {
            self.start_probes();
        }
    }

    /// Whether a name is being looked up for the first time.
    pub(super) fn is_resolving(&self) -> bool {
        let spec = self.spec();
        let all: Vec<_> = tiers(&spec)
            .flat_map(|tier| targets(spec.backend_of(tier)))
            .collect();
        let awake = self.awake.get();
        awake.is_some_and(|awake| awake.names.lock().addresses(&all).pending)
    }

    /// The names that the resolver has to look up.
    pub(crate) fn names_wanted(&self) -> Vec<(String, u16)> {
        let spec = self.spec();
        let targets = tiers(&spec).flat_map(|tier| targets(spec.backend_of(tier)));
        let names = targets.filter_map(|target| match target {
            EndpointTarget::Dns { host, port } => Some((host, port)),
            EndpointTarget::Address(_) => None,
        });
        names.collect()
    }

    /// Changes the DNS cache, then the throttler's addresses with it.
    pub(crate) fn with_names<R>(
        self: &Arc<Self>,
        now: Instant,
        change: impl FnOnce(&mut NameCache) -> R,
    ) -> R {
        let awake = self.wake();
        let mut names = awake.names.lock();
        let result = change(&mut names);
        self.refresh(awake, &names, now);
        result
    }

    /// Records that an endpoint's probe task has ended.
    pub(crate) fn probe_ended(&self, key: u64) {
        self.wake().probed.lock().remove(&key);
    }

    /// Whether an endpoint is probed: an endpoint without a probe is taken as ready.
    pub(crate) fn wants_probe(&self, endpoint: &EndpointState) -> bool {
        wants_probe(&self.spec(), endpoint)
    }

    /// Applies spec and DNS cache to the throttler's limits and addresses. `names` is the locked cache: a
    /// lookup that completes together with a new spec must not overwrite its addresses with those of the old
    /// one.
    fn refresh(self: &Arc<Self>, awake: &Awake, names: &NameCache, now: Instant) {
        let spec = self.spec();
        let throttler = &awake.throttler;
        if matches!(spec.backend, Backend::Managed) {
            throttler.set_limits(limits(&spec, false), now);
            return;
        }
        let targets: Vec<_> = tiers(&spec).map(|tier| targets(spec.backend_of(tier))).collect();
        let known: Vec<_> = targets.iter().map(|targets| names.addresses(targets)).collect();
        let limits = limits(&spec, known[0].pending);
        let of_tiers = tiers(&spec).zip(&known);
        let of_tiers = of_tiers.map(|(tier, known)| tier_limits(&spec, tier, known.pending));
        let of_tiers: Vec<_> = of_tiers.collect();
        let set_addresses = || {
            for (tier, known) in tiers(&spec).zip(&known) {
                let ready = !spec.backend_of(tier).is_started();
                throttler.set_addresses(tier, &known.addresses, ready, now);
            }
        };
        // With a name pending, requests may wait before addresses go; without one, addresses come before
        // waiting ends. Either way no request is rejected in between.
        if known.iter().any(|known| known.pending) {
            throttler.set_tier_limits(limits, &of_tiers, now);
            set_addresses();
        } else {
            set_addresses();
            throttler.set_tier_limits(limits, &of_tiers, now);
        }
        if let Backend::Pods(pods) = &spec.backend {
            believe(throttler, pods, now);
        }
        self.start_probes();
        if targets.iter().flatten().any(is_name) && !awake.resolving.swap(true, Ordering::Relaxed) {
            let changed = Arc::clone(&awake.names_changed);
            let task = dns::run(Arc::downgrade(self), changed, self.env.dns.clone());
            drop(self.env.runtime.spawn(task));
        }
    }

    pub(super) fn start_probes(self: &Arc<Self>) {
        let Awake {
            throttler, probed, ..
        } = self.wake();
        let views = throttler.endpoints();
        let spec = self.spec();
        let mut probed = probed.lock();
        for view in views {
            if wants_probe(&spec, &view.endpoint) && probed.insert(view.endpoint.key) {
                let limiter = Arc::clone(&self.env.probe_limiter);
                let task = probe::run(
                    Arc::downgrade(self),
                    Arc::clone(throttler),
                    view.endpoint,
                    limiter,
                );
                drop(self.env.runtime.spawn(task));
            }
        }
    }
}

/// The place of a request that waits for a retry after a backend's `Retry-After`; dropping it gives the place
/// back.
#[derive(Debug)]
pub struct RetryHold(Arc<LiveRevision>);

impl Drop for RetryHold {
    fn drop(&mut self) {
        self.0.wake().put_off.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for LiveRevision {
    fn drop(&mut self) {
        // Probe tasks and resolver wake up, find the revision gone and end.
        if let Some(awake) = self.awake.get() {
            awake.throttler.wake_probes();
            awake.names_changed.notify_one();
        }
    }
}

/// The back-off for arrivals after [`fail`]. The cluster's next try of a Pod, which changes its state, is seen before.
const RETRY_PODS: Duration = Duration::from_secs(60);

fn wants_probe(spec: &RevisionSpec, endpoint: &EndpointState) -> bool {
    endpoint.instance.is_some() || spec.readiness.is_some() || spec.backend_of(endpoint.tier).is_started()
}

/// Fails all waiters: the cluster says that no Pod can become ready.
fn fail(revision: &RevisionId, throttler: &Arc<RevisionThrottler>, why: &str, now: Instant) {
    tracing::warn!(%revision, "no Pod can become ready: {why}");
    let failure = ActivationFailure {
        failure: Failure::Failed,
        detail: why.to_owned(),
        retry_after: RETRY_PODS,
    };
    throttler.fail(0, &Arc::new(failure), now);
}

/// Takes the Pods that are ready by the cluster's view as ready, without a probe.
fn believe(throttler: &Arc<RevisionThrottler>, pods: &Pods, now: Instant) {
    let mut views = throttler.endpoints();
    views.retain(|view| view.phase == EndpointPhase::Starting);
    if views.is_empty() {
        return;
    }
    let ready: HashSet<&SocketAddr> = pods.ready.iter().collect();
    for view in views {
        if let EndpointAddr::Tcp(address) = &view.endpoint.address
            && ready.contains(address)
        {
            throttler.endpoint_ready(view.endpoint.key, now);
        }
    }
}

/// Takes Pods that were ready by the cluster's view, and are not any more, as starting: they are probed.
fn doubt(throttler: &Arc<RevisionThrottler>, before: &Pods, pods: &Pods, now: Instant) {
    let failing: HashSet<&SocketAddr> = pods.starting.iter().collect();
    let failing: HashSet<&SocketAddr> = before.ready.iter().filter(|pod| failing.contains(pod)).collect();
    if failing.is_empty() {
        return;
    }
    for view in throttler.endpoints() {
        if let EndpointAddr::Tcp(address) = &view.endpoint.address
            && failing.contains(address)
        {
            throttler.endpoint_unproven(view.endpoint.key, now);
        }
    }
}

/// Whether endpoints of both are discovered in the same way.
fn is_same_kind(a: &Backend, b: &Backend) -> bool {
    match (a, b) {
        (Backend::Static { activated: a, .. }, Backend::Static { activated: b, .. }) => a == b,
        (Backend::Url(a), Backend::Url(b)) => a == b,
        // Tiers are counted by their order.
        (Backend::Tiers(a), Backend::Tiers(b)) => {
            let names = |tiers: &[Tier]| tiers.iter().map(|tier| tier.name.clone()).collect::<Vec<_>>();
            let mut pairs = a.iter().zip(b.iter());
            names(a) == names(b) && pairs.all(|(a, b)| is_same_kind(&a.backend, &b.backend))
        }
        (a, b) => discriminant(a) == discriminant(b),
    }
}

fn resting(ready: usize) -> Load {
    Load {
        ready: u32::try_from(ready).unwrap_or(u32::MAX),
        ..Load::default()
    }
}

/// The indices of the tiers; one for a revision without tiers.
fn tiers(spec: &RevisionSpec) -> impl Iterator<Item = u8> + use<> {
    0..u8::try_from(spec.tiers().len().max(1)).expect("at most MAX_TIERS")
}

fn tier_limits(spec: &RevisionSpec, tier: u8, names_pending: bool) -> TierLimits {
    TierLimits {
        // Zero is no limit wherever a limit is configured.
        concurrency: spec.concurrency_of(tier).filter(|&limit| limit > 0),
        supply: match spec.backend_of(tier) {
            backend if backend.is_started() => Supply::Activated,
            _ if names_pending => Supply::Resolving,
            _ => Supply::Fixed,
        },
    }
}

fn limits(spec: &RevisionSpec, names_pending: bool) -> ThrottleLimits {
    let TierLimits { concurrency, supply } = tier_limits(spec, 0, names_pending);
    ThrottleLimits {
        concurrency,
        queue: spec.queue,
        start_timeout: spec.start_timeout,
        supply,
    }
}

fn targets(backend: &Backend) -> Vec<EndpointTarget> {
    match backend {
        Backend::Managed | Backend::Tiers(_) => Vec::new(),
        Backend::Static { targets, .. } => targets.clone(),
        Backend::Pods(pods) => {
            let all = pods.all().map(EndpointAddr::Tcp);
            all.map(EndpointTarget::Address).collect()
        }
        Backend::Url(url) => vec![EndpointTarget::Dns {
            host: url.host.as_str().to_owned(),
            port: url.port,
        }],
    }
}

fn is_name(target: &EndpointTarget) -> bool {
    matches!(target, EndpointTarget::Dns { .. })
}
