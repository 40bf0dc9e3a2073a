//! The configuration of a revision, as the data plane reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{Host, RevisionId, ServiceId, Tag};
use crate::settings::CertificateFiles;

/// The address of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddr {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for EndpointAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A configured address; a DNS name may resolve to several endpoints over time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointTarget {
    /// A socket address.
    Address(EndpointAddr),
    /// A DNS name, which is resolved again and again.
    Dns {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

impl fmt::Display for EndpointTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => write!(f, "{addr}"),
            Self::Dns { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The scheme of a URL backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP without TLS.
    Http,
    /// TLS; the certificate is verified against the host.
    Https,
}

/// A backend behind a URL: Host is rewritten, and a 429 counts as back-pressure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlBackend {
    /// HTTP or HTTPS.
    pub scheme: Scheme,
    /// The host to resolve, to send as Host and to verify.
    pub host: Host,
    /// The port; the scheme's default if the URL has none.
    pub port: u16,
    /// The prefix of every path; empty, or with a leading and without a trailing slash.
    pub path_prefix: String,
}

/// The Pods of a Knative revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pods {
    /// Pods that are ready by the cluster's view.
    pub ready: Vec<SocketAddr>,
    /// Pods that are not ready by the cluster's view, which is late by its own probes' interval: they are probed.
    pub starting: Vec<SocketAddr>,
    /// Why waiting does not help, where every Pod has a fault that time does not heal.
    pub failure: Option<Arc<str>>,
    /// Whose they are, for metrics.
    pub owner: Arc<RevisionOwner>,
}

/// The Service and the Configuration of Knative's that a revision belongs to; empty where it has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevisionOwner {
    /// The Service.
    pub service: String,
    /// The Configuration.
    pub configuration: String,
}

impl Pods {
    /// The addresses of all Pods.
    pub fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.ready.iter().chain(&self.starting).copied()
    }
}

/// The kind of a revision's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Configured addresses.
    Static {
        /// The addresses.
        targets: Vec<EndpointTarget>,
        /// Whether another system starts the processes behind these addresses: at zero a request waits and sends
        /// [`Demand`](crate::Demand).
        activated: bool,
    },
    /// One URL.
    Url(UrlBackend),
    /// Pods of a Knative revision, which the cluster's autoscaler starts and stops: at zero a request waits and sends
    /// [`Demand`](crate::Demand).
    Pods(Box<Pods>),
    /// Instances that the control plane starts and reports through
    /// [`EndpointSink`](crate::EndpointSink).
    Managed,
    /// Several kinds in an order, from 2 to [`MAX_TIERS`]: the last tier with a ready endpoint serves.
    Tiers(Arc<[Tier]>),
}

/// The bound of tiers of one revision.
pub const MAX_TIERS: usize = 8;

/// A tier of a revision: endpoints of one kind, with a concurrency limit of their own. All other settings are the
/// revision's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// Its name, unique in the revision.
    pub name: Tag,
    /// The kind of its endpoints; neither [`Backend::Tiers`] nor [`Backend::Pods`].
    pub backend: Backend,
    /// The concurrency limit of one endpoint; `None` is no limit.
    pub container_concurrency: Option<u32>,
}

impl Backend {
    /// Whether endpoints come on demand: at zero a request waits and sends [`Demand`](crate::Demand). Of a revision
    /// with tiers: whether any of them does.
    pub fn is_started(&self) -> bool {
        match self {
            Self::Managed | Self::Pods(_) | Self::Static { activated: true, .. } => true,
            Self::Static { .. } | Self::Url(_) => false,
            Self::Tiers(tiers) => tiers.iter().any(|tier| tier.backend.is_started()),
        }
    }
}

/// The protocol spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// HTTP/2 over TLS, by ALPN; only to an https URL.
    H2,
}

impl Protocol {
    /// Whether the protocol is HTTP/2, where one connection carries several requests.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::H2)
    }
}

/// TLS towards the backend behind an https URL. The default: the system's roots, the URL's host, no client
/// certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackendTls {
    /// The PEM file with the only trusted certificate authorities; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate, for a backend that asks for one.
    pub certificate: Option<CertificateFiles>,
    /// The name for SNI and verification in place of the URL's host; a DNS name or an IP address without brackets.
    pub server_name: Option<String>,
    /// Accepts any certificate: an attacker who can redirect the connection can read and change the traffic.
    pub insecure_skip_verify: bool,
}

impl BackendTls {
    /// The paths of all files in these settings.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let pair = self.certificate.iter().flat_map(|c| [&c.cert_file, &c.key_file]);
        self.ca_file.iter().chain(pair)
    }
}

/// The default bound of concurrent requests on one HTTP/2 connection to a backend.
pub const DEFAULT_STREAMS_PER_CONNECTION: u32 = 100;

/// The kind of a readiness probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// A TCP connect.
    Tcp,
    /// A GET of this path, which needs a status of 200 to 399.
    Http {
        /// Path and query.
        path: String,
    },
    /// A GET that Knative's queue-proxy answers, and only with 200 when the program behind it is ready. Source: contract
    /// of the activator, `pkg/activator/net/revision_backends.go` of knative.dev/serving.
    QueueProxy,
}

/// A readiness probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The kind of the probe.
    pub kind: ProbeKind,
    /// The interval between probes of an endpoint that no request waits for.
    pub period: Duration,
    /// The timeout of one probe.
    pub timeout: Duration,
    /// Consecutive failures after which a ready endpoint counts as failing.
    pub failure_threshold: u32,
}

/// Bounds of one revision's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// The number of waiters.
    pub depth: usize,
    /// The bytes of all waiters' heads; bodies are not read while waiting.
    pub bytes: u64,
    /// The longest time in the queue.
    pub timeout: Duration,
}

/// Timeouts of a request; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevisionTimeouts {
    /// For the whole request, queue included.
    pub total: Option<Duration>,
    /// Until the response head, queue included.
    pub response_start: Option<Duration>,
    /// Between bytes; the only timeout after a 101 besides `max_stream_age`.
    pub idle: Option<Duration>,
    /// The age after which a stream is asked to end.
    pub max_stream_age: Option<Duration>,
}

/// The settings of a revision. Most revisions of a large table have the same settings, so that equal settings are
/// shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionSettings {
    /// The protocol of the endpoints.
    pub protocol: Protocol,
    /// The bound of concurrent requests on one HTTP/2 connection to a backend, unless the backend allows fewer; at
    /// least 1.
    pub max_streams_per_connection: u32,
    /// TLS settings, for a backend behind an https URL.
    pub tls: BackendTls,
    /// Protocols that a request may upgrade to, as names with or without `/version`; `None`: any protocol but TLS and
    /// HTTP/2 itself.
    pub upgrades: Option<Vec<String>>,
    /// The readiness probe; `None`: a successful connect is enough.
    pub readiness: Option<Probe>,
    /// The longest an instance may take to become ready.
    pub start_timeout: Duration,
    /// The concurrency limit of one endpoint; `None` is no limit.
    pub container_concurrency: Option<u32>,
    /// Timeouts of a request.
    pub timeouts: RevisionTimeouts,
    /// Queue bounds.
    pub queue: QueueLimits,
    /// Headers that are set on every request to the revision; values may be secrets.
    pub request_headers: BTreeMap<String, String>,
    /// Revisions that are started, and ready, before this one, and held above zero while it runs.
    pub needs: Vec<RevisionId>,
}

/// The configuration of one revision that serving needs. Dereferences to its [`RevisionSettings`], which are shared
/// only to save memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionSpec {
    /// Its name.
    pub id: RevisionId,
    /// The service it belongs to.
    pub service: ServiceId,
    /// The kind of the revision's endpoints.
    pub backend: Backend,
    /// The settings, shared with other revisions.
    pub settings: Arc<RevisionSettings>,
}

impl Deref for RevisionSpec {
    type Target = RevisionSettings;

    fn deref(&self) -> &RevisionSettings {
        &self.settings
    }
}

/// Copy-on-write: changes the settings of this revision alone.
impl DerefMut for RevisionSpec {
    fn deref_mut(&mut self) -> &mut RevisionSettings {
        Arc::make_mut(&mut self.settings)
    }
}

impl RevisionSpec {
    /// The tiers, the first one first; empty for a revision without tiers.
    pub fn tiers(&self) -> &[Tier] {
        match &self.backend {
            Backend::Tiers(tiers) => tiers,
            _ => &[],
        }
    }

    /// The kind of the endpoints of a tier; of all endpoints, for a revision without tiers.
    pub fn backend_of(&self, tier: u8) -> &Backend {
        let tier = self.tiers().get(usize::from(tier));
        tier.map_or(&self.backend, |tier| &tier.backend)
    }

    /// The concurrency limit of an endpoint of a tier.
    pub fn concurrency_of(&self, tier: u8) -> Option<u32> {
        let tier = self.tiers().get(usize::from(tier));
        tier.map_or(self.container_concurrency, |tier| tier.container_concurrency)
    }

    /// The ids by which the revision is scaled, by tier: its own, or one for each tier.
    pub fn scaled_ids(&self) -> Vec<RevisionId> {
        match self.tiers() {
            [] => vec![self.id.clone()],
            tiers => tiers.iter().map(|tier| self.id.of_tier(&tier.name)).collect(),
        }
    }

    /// A revision that was removed from the configuration: only its remaining instances matter.
    pub fn leaving(id: RevisionId, service: ServiceId, container_concurrency: Option<u32>) -> Self {
        let settings = RevisionSettings {
            protocol: Protocol::Http1,
            max_streams_per_connection: DEFAULT_STREAMS_PER_CONNECTION,
            tls: BackendTls::default(),
            upgrades: None,
            readiness: None,
            start_timeout: Duration::ZERO,
            container_concurrency,
            timeouts: RevisionTimeouts {
                total: None,
                response_start: None,
                idle: None,
                max_stream_age: None,
            },
            queue: QueueLimits {
                depth: 0,
                bytes: 0,
                timeout: Duration::ZERO,
            },
            request_headers: BTreeMap::new(),
            needs: Vec::new(),
        };
        Self {
            id,
            service,
            backend: Backend::Managed,
            settings: Arc::new(settings),
        }
    }
}
