//! What the data plane knows of a revision besides its live state.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{Host, RevisionId, ServiceId};
use crate::settings::CertificateFiles;

/// One address that can be connected to.
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

/// One address as configured; a name may stand for several endpoints over time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointTarget {
    /// An address.
    Address(EndpointAddr),
    /// A name that is resolved, and resolved again.
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

/// How a URL backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS; the certificate is verified against the host.
    Https,
}

/// A backend behind a URL: Host rewritten, a 429 treated as back-pressure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlBackend {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// The host to resolve, send as Host and verify.
    pub host: Host,
    /// The port; the scheme's own where the URL names none.
    pub port: u16,
    /// Put before every path; empty or starting with a slash, never ending in one.
    pub path_prefix: String,
}

/// How a revision's endpoints come to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Configured addresses.
    Static {
        /// The addresses.
        targets: Vec<EndpointTarget>,
        /// Whether something elsewhere starts what listens there: at zero a request waits and
        /// sends [`Demand`](crate::Demand).
        activated: bool,
    },
    /// A URL.
    Url(UrlBackend),
    /// Instances that the control plane starts and reports through
    /// [`EndpointSink`](crate::EndpointSink).
    Managed,
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
    /// Whether it is HTTP/2: one connection carries several requests.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::H2)
    }
}

/// TLS towards the backend behind an https URL. The default: the system's roots, the URL's host,
/// no client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackendTls {
    /// PEM file of the only certificate authorities that are trusted; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    /// What the gateway shows when the backend asks for a client certificate.
    pub certificate: Option<CertificateFiles>,
    /// The name that is asked for (SNI) and verified in place of the URL's host; a DNS name or an
    /// IP address without brackets.
    pub server_name: Option<String>,
    /// Takes any certificate: whoever can redirect the connection can read and change it.
    pub insecure_skip_verify: bool,
}

impl BackendTls {
    /// Every file that is read.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let pair = self.certificate.iter().flat_map(|c| [&c.cert_file, &c.key_file]);
        self.ca_file.iter().chain(pair)
    }
}

/// Requests on one HTTP/2 connection to a backend at once where nothing else is configured.
pub const DEFAULT_STREAMS_PER_CONNECTION: u32 = 100;

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// Connects.
    Tcp,
    /// GETs this path and wants a status of 200 to 399.
    Http {
        /// Path and query.
        path: String,
    },
}

/// How readiness is found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is done.
    pub kind: ProbeKind,
    /// Between probes of an endpoint nobody waits for.
    pub period: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Consecutive failures after which a ready endpoint counts as failing.
    pub failure_threshold: u32,
}

/// Bounds of one revision's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Waiters.
    pub depth: usize,
    /// Bytes held by waiters (their heads; bodies are not read while waiting).
    pub bytes: u64,
    /// The longest a waiter waits.
    pub timeout: Duration,
}

/// Timers of a request; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevisionTimeouts {
    /// Whole request, queue included.
    pub total: Option<Duration>,
    /// Until the response head, queue included.
    pub response_start: Option<Duration>,
    /// Between bytes; the only one after a 101 besides `max_stream_age`.
    pub idle: Option<Duration>,
    /// After which a stream is asked to end.
    pub max_stream_age: Option<Duration>,
}

/// How a revision is served. Most revisions of a large table have the same settings; whoever makes
/// many of them shares these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionSettings {
    /// The protocol its endpoints speak.
    pub protocol: Protocol,
    /// Requests on one HTTP/2 connection to a backend at once, unless the backend allows fewer; at
    /// least 1.
    pub max_streams_per_connection: u32,
    /// TLS, where the backend is an https URL.
    pub tls: BackendTls,
    /// Protocols that its backends may be asked to switch to, as names with or without `/version`;
    /// `None`: any but TLS and HTTP/2 itself.
    pub upgrades: Option<Vec<String>>,
    /// How readiness is found out; `None`: connecting is proof enough.
    pub readiness: Option<Probe>,
    /// The longest an instance may take to become ready.
    pub start_timeout: Duration,
    /// Requests one endpoint may hold at once; `None` is no limit.
    pub container_concurrency: Option<u32>,
    /// Timers.
    pub timeouts: RevisionTimeouts,
    /// Queue bounds.
    pub queue: QueueLimits,
    /// Headers set on every request to it; may hold secrets.
    pub request_headers: BTreeMap<String, String>,
}

/// Everything configured about one revision that serving it needs. It has the fields of its
/// [`RevisionSettings`]: that they are shared is a matter of memory alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionSpec {
    /// Its name.
    pub id: RevisionId,
    /// The service it belongs to.
    pub service: ServiceId,
    /// How its endpoints come to be.
    pub backend: Backend,
    /// How it is served.
    pub settings: Arc<RevisionSettings>,
}

impl Deref for RevisionSpec {
    type Target = RevisionSettings;

    fn deref(&self) -> &RevisionSettings {
        &self.settings
    }
}

/// Changes the settings of this one alone.
impl DerefMut for RevisionSpec {
    fn deref_mut(&mut self) -> &mut RevisionSettings {
        Arc::make_mut(&mut self.settings)
    }
}

impl RevisionSpec {
    /// Of a revision that is configured no more: only the instances that it still has matter.
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
        };
        Self {
            id,
            service,
            backend: Backend::Managed,
            settings: Arc::new(settings),
        }
    }
}
