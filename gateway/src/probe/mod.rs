//! Readiness probes: one task per endpoint that a probe has to prove ready.
//!
//! Every task belongs to one live revision, holds only a weak reference to it and ends with it.

mod http;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_model::{Backend, EndpointAddr, Probe, ProbeKind, Protocol, RevisionSpec};
use tokio::net::{TcpStream, UnixStream};
use tracing::debug;

use self::http::{get_h2c, get_http1};
use crate::registry::LiveRevision;
use crate::throttle::{EndpointPhase, EndpointState, EndpointView, RevisionThrottler, clock};
use crate::token_bucket::TokenBucket;
use crate::upstream::PlainStream;

/// Probe interval while a request waits and the endpoint is on this machine.
const TIGHT_LOCAL: Duration = Duration::from_millis(2);
/// Probe interval while a request waits and a network is in between, for each endpoint that starts: 400 probes a second for
/// each revision with up to ten.
const TIGHT_REMOTE: Duration = Duration::from_micros(2_500);
/// The bounds of that: of a revision with one starting endpoint, and with many.
const TIGHT_REMOTE_RANGE: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(25)];
/// Probe interval of a starting endpoint while no request waits.
const CALM: Duration = Duration::from_millis(100);
/// From a failed probe of a ready endpoint to the next probe, at most.
const CONFIRM: Duration = Duration::from_secs(1);
/// How long the connection to a starting instance must stay open to prove anything. A server whose listener
/// exists before the program behind it accepts (a runtime that loads, a proxy in front of a container) accepts
/// and closes; on this machine within the millisecond.
const STAYS: Duration = Duration::from_millis(3);
/// The same for an instance that has closed a probe's connection before. It is probed hundreds of times while
/// it loads, and on a busy machine it closes later than [`STAYS`] now and then: a connection that nobody has
/// accepted yet looks open.
const STAYS_AGAIN: Duration = Duration::from_millis(30);
/// The longest such time, for an instance that was taken for ready too early again and again; three times as
/// long each time.
const STAYS_MOST: Duration = Duration::from_secs(1);
/// Timeout of the connect where no probe is configured.
const CONNECT: Duration = Duration::from_secs(1);

/// 8,000 probes a second: four starting instances each get their probe every 2 ms with half of the rate to
/// spare, and a thousand are still probed eight times a second each.
const INTERVAL: Duration = Duration::from_micros(125);

/// Rate limiter of all probes together: their starts are at least [`INTERVAL`] apart, first come first served.
///
/// Not a limit of how many run at once: probes that hang until their timeout must not slow down the others.
#[derive(Debug)]
pub(crate) struct ProbeLimiter(Mutex<TokenBucket>);

impl ProbeLimiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(TokenBucket::new(1, INTERVAL, now)))
    }

    /// When the next probe may start.
    fn reserve(&self, now: Instant) -> Instant {
        self.0.lock().reserve(now)
    }
}

/// Inputs of the probe schedule of one endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbeTiming {
    pub(crate) phase: EndpointPhase,
    /// A request waits for a slot, or a browser that was shown a waiting page is expected back.
    pub(crate) waiting: bool,
    /// The endpoint is on this machine.
    pub(crate) local: bool,
    /// Endpoints of the revision that start.
    pub(crate) starting: u32,
    /// The control plane started the endpoint.
    pub(crate) instance: bool,
    /// The configured period for ready endpoints.
    pub(crate) period: Option<Duration>,
    /// The endpoint is ready, but its last probe failed.
    pub(crate) doubtful: bool,
    /// The shortest interval while it starts: its readiness was believed too early before.
    pub(crate) min_delay: Duration,
}

/// Probe interval, from start to start; `None`: not before the state changes.
pub(crate) fn next_delay(timing: ProbeTiming) -> Option<Duration> {
    match timing.phase {
        EndpointPhase::Starting if timing.waiting && timing.local => Some(TIGHT_LOCAL.max(timing.min_delay)),
        EndpointPhase::Starting if timing.waiting => {
            let [shortest, longest] = TIGHT_REMOTE_RANGE;
            let interval = TIGHT_REMOTE.saturating_mul(timing.starting);
            Some(interval.clamp(shortest, longest).max(timing.min_delay))
        }
        EndpointPhase::Starting if timing.instance => Some(CALM.max(timing.min_delay)),
        // A configured address whose process another platform starts on demand: proving it ready while no
        // request wants it would only make the next request trust an instance that may be stopping.
        EndpointPhase::Starting => None,
        // A failed probe is confirmed soon: three times ten seconds would be half a minute of errors.
        EndpointPhase::Ready if timing.doubtful => timing.period.map(|p| p.clamp(TIGHT_LOCAL, CONFIRM)),
        EndpointPhase::Ready | EndpointPhase::Ejected { .. } => timing.period.map(|p| p.max(TIGHT_LOCAL)),
        EndpointPhase::Draining | EndpointPhase::Gone => None,
    }
}

/// How long a connection must stay open, or an HTTP probe wait, by how often the endpoint hung up since its
/// start.
fn hold(hang_ups: u32) -> Duration {
    match hang_ups.checked_sub(1) {
        None => STAYS,
        Some(more) => STAYS_AGAIN
            .saturating_mul(3_u32.saturating_pow(more))
            .min(STAYS_MOST),
    }
}

/// Probes one endpoint until it or its revision is gone.
pub(crate) async fn run(
    live: Weak<LiveRevision>,
    throttler: Arc<RevisionThrottler>,
    endpoint: Arc<EndpointState>,
    limiter: Arc<ProbeLimiter>,
) {
    let mut last: Option<Instant> = None;
    let mut failures = 0;
    let mut hung_up = false;
    loop {
        // Enabled before the state is read, so that no wake-up in between is missed.
        let mut wakeup = pin!(throttler.probe_wakeups());
        wakeup.as_mut().enable();
        let Some(revision) = live.upgrade() else {
            return;
        };
        let view = throttler.endpoint(endpoint.key);
        let wanted = revision.wants_probe(&endpoint);
        let Some(view) = view.filter(|_| wanted) else {
            revision.probe_ended(endpoint.key);
            return;
        };
        let spec = revision.spec();
        drop(revision);
        // After a hand-over the newer process probes readiness.
        let hang_ups = if endpoint.has_answered() {
            0
        } else {
            endpoint.refuted() + u32::from(hung_up)
        };
        let hold = hold(hang_ups);
        let mut timing = timing(&view, &spec, failures > 0);
        if hang_ups > 0 && http_path(&spec, endpoint.tier).is_some() {
            timing.min_delay = hold;
        }
        let delay = next_delay(timing).filter(|_| !throttler.is_flipped());
        let due = delay.map(|delay| last.map_or_else(clock, |last| last + delay));
        if due.is_none_or(|due| due > clock()) {
            tokio::select! {
                () = sleep_until(due) => {}
                () = wakeup, if view.phase == EndpointPhase::Starting => {}
                () = endpoint.probe_wakeup() => {}
            }
            continue;
        }
        let now = clock();
        let start = limiter.reserve(now);
        // Timers round up to a millisecond: no timer for no wait.
        if start > now {
            tokio::time::sleep_until(start.into()).await;
        }
        last = Some(clock());
        // The connection is kept only for a waiting request. Behind a URL there may be TLS, for which it is
        // useless.
        let wanted = |view: &EndpointView| view.phase == EndpointPhase::Starting && view.waiting;
        let keep = wanted(&view) && !matches!(spec.backend_of(endpoint.tier), Backend::Url(_));
        let starting = view.phase == EndpointPhase::Starting;
        let at_once = hang_ups == 0 && !(timing.instance && timing.local);
        let must_stay = (starting && !at_once).then_some(hold);
        match attempt(&endpoint.address, endpoint.tier, &spec, keep, must_stay).await {
            Ok(connection) => {
                failures = 0;
                if let Some(connection) = connection
                    && throttler.endpoint(endpoint.key).as_ref().is_some_and(wanted)
                {
                    // Kept before the endpoint is ready: the waiting request is sent at that very moment.
                    endpoint.prewarmed().keep(connection);
                }
                throttler.endpoint_ready(endpoint.key, clock());
            }
            Err(failed) => {
                failures += 1;
                hung_up |= failed.hung_up;
                let threshold = spec.readiness.as_ref().map_or(1, |p| p.failure_threshold);
                if view.phase == EndpointPhase::Ready && failures >= threshold {
                    debug!(revision = %spec.id, endpoint = %endpoint.address, "probe fails: {}", failed.reason);
                    throttler.endpoint_failing(endpoint.key, clock());
                }
            }
        }
    }
}

/// Sleeps until then; `None`: for ever.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn timing(view: &EndpointView, spec: &RevisionSpec, doubtful: bool) -> ProbeTiming {
    ProbeTiming {
        phase: view.phase,
        waiting: view.waiting || view.expected,
        local: is_local(&view.endpoint.address),
        starting: view.starting,
        instance: view.endpoint.instance.is_some() || matches!(spec.backend, Backend::Pods(_)),
        // A ready Pod is probed by the cluster.
        period: match spec.backend_of(view.endpoint.tier) {
            Backend::Pods(_) => None,
            _ => spec.readiness.as_ref().map(|probe| probe.period),
        },
        doubtful,
        min_delay: Duration::ZERO,
    }
}

/// The path of an HTTP probe, if one is configured. A URL may be behind TLS: there only a connect is tried.
fn http_path(spec: &RevisionSpec, tier: u8) -> Option<&str> {
    match &spec.readiness.as_ref()?.kind {
        ProbeKind::Http { path } if !matches!(spec.backend_of(tier), Backend::Url(_)) => Some(path),
        ProbeKind::QueueProxy => Some(QUEUE_PROXY_PATH),
        _ => None,
    }
}

/// The path of a probe of queue-proxy.
const QUEUE_PROXY_PATH: &str = "/healthz";

/// The fields of a probe: queue-proxy counts a request from any other agent.
fn fields(spec: &RevisionSpec) -> &'static [(&'static str, &'static str)] {
    match spec.readiness.as_ref().map(|probe| &probe.kind) {
        Some(ProbeKind::QueueProxy) => &[
            ("user-agent", "Knative-Activator-Probe"),
            ("k-network-probe", "queue"),
        ],
        _ => &[("user-agent", http::AGENT)],
    }
}

fn is_local(address: &EndpointAddr) -> bool {
    match address {
        EndpointAddr::Tcp(address) => address.ip().to_canonical().is_loopback(),
        EndpointAddr::Unix(_) => true,
    }
}

/// Why a probe failed.
#[derive(Debug)]
struct Failed {
    reason: String,
    /// The endpoint accepted the connection, and closed it.
    hung_up: bool,
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        let hung_up = false;
        Self { reason, hung_up }
    }
}

/// Probes once. Returns the connection if it is to be kept and as good as a new one. With `must_stay` and
/// without an HTTP path, only a connection that is still open after that time proves readiness.
async fn attempt(
    address: &EndpointAddr,
    tier: u8,
    spec: &RevisionSpec,
    keep: bool,
    must_stay: Option<Duration>,
) -> Result<Option<PlainStream>, Failed> {
    let connect_only = Probe {
        kind: ProbeKind::Tcp,
        period: CALM,
        timeout: CONNECT,
        failure_threshold: 1,
    };
    let probe = spec.readiness.as_ref().unwrap_or(&connect_only);
    let path = http_path(spec, tier);
    let limit = probe.timeout;
    let tried = tokio::time::timeout(limit, async {
        match address {
            EndpointAddr::Tcp(to) => {
                let mut stream = connect(*to).await?;
                let reusable = ask(&mut stream, spec, &to.to_string(), path, keep).await?;
                Ok((reusable, PlainStream::Tcp(stream)))
            }
            EndpointAddr::Unix(to) => {
                let mut stream = UnixStream::connect(to).await.map_err(|e| e.to_string())?;
                let reusable = ask(&mut stream, spec, "localhost", path, keep).await?;
                Ok((reusable, PlainStream::Unix(stream)))
            }
        }
    });
    let late = |_| Err(format!("no answer within {limit:?}"));
    let (reusable, connection) = tried.await.unwrap_or_else(late)?;
    if let (Some(long), None) = (must_stay, path)
        && !stays_open(&connection, long).await
    {
        return Err(Failed {
            reason: format!("accepted, and closed within {long:?}"),
            hung_up: true,
        });
    }
    Ok(reusable.then_some(connection))
}

/// Whether a connection stays open for `long`; returns early when the peer closes it.
async fn stays_open(connection: &PlainStream, long: Duration) -> bool {
    let until = tokio::time::Instant::now() + long;
    if tokio::time::timeout_at(until, connection.news()).await.is_ok() && !connection.is_open() {
        return false;
    }
    // A wake-up may be spurious.
    tokio::time::sleep_until(until).await;
    connection.is_open()
}

/// Connects, and rejects a TCP self-connection: a connect to a free port of the ephemeral range on this machine
/// can meet itself (simultaneous open with the same socket), and such a connection proves nothing.
async fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    match stream.local_addr() {
        Ok(from) if from == to => Err("connected to itself".to_owned()),
        _ => Ok(stream),
    }
}

/// Sends the probe's request, if any. Returns whether the connection can be kept.
async fn ask<S>(
    stream: &mut S,
    spec: &RevisionSpec,
    host: &str,
    path: Option<&str>,
    keep: bool,
) -> Result<bool, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let fields = fields(spec);
    let (status, reusable) = match (path, spec.protocol) {
        (None, _) => return Ok(keep),
        (Some(path), Protocol::Http1) => get_http1(stream, host, path, fields, keep).await?,
        (Some(path), Protocol::H2c | Protocol::H2) => (get_h2c(stream, host, path, fields).await?, false),
    };
    if (200..400).contains(&status) {
        Ok(reusable)
    } else {
        Err(format!("status {status}"))
    }
}
