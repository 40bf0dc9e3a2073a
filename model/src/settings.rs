//! Settings of the whole gateway.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::admin::AdminSettings;
use crate::route::Visibility;

/// The mode of a listener's PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocolMode {
    /// A PROXY header is accepted.
    Optional,
    /// A PROXY header is required.
    Required,
}

/// The PROXY protocol of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Optional or required.
    pub mode: ProxyProtocolMode,
    /// The networks that may send a PROXY header; a header from elsewhere closes the connection.
    pub from: Vec<IpNet>,
}

/// One certificate with its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The minimum TLS version of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// 1.2 and 1.3.
    #[default]
    Tls12,
    /// 1.3 alone.
    Tls13,
}

/// A cipher suite that may be offered. There are no other suites: all of these are forward secret and authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as IANA does")]
pub enum CipherSuite {
    Tls13Aes256GcmSha384,
    Tls13Aes128GcmSha256,
    Tls13Chacha20Poly1305Sha256,
    EcdheEcdsaAes256GcmSha384,
    EcdheEcdsaAes128GcmSha256,
    EcdheEcdsaChacha20Poly1305Sha256,
    EcdheRsaAes256GcmSha384,
    EcdheRsaAes128GcmSha256,
    EcdheRsaChacha20Poly1305Sha256,
}

impl CipherSuite {
    /// All cipher suites.
    pub const ALL: [Self; 9] = [
        Self::Tls13Aes256GcmSha384,
        Self::Tls13Aes128GcmSha256,
        Self::Tls13Chacha20Poly1305Sha256,
        Self::EcdheEcdsaAes256GcmSha384,
        Self::EcdheEcdsaAes128GcmSha256,
        Self::EcdheEcdsaChacha20Poly1305Sha256,
        Self::EcdheRsaAes256GcmSha384,
        Self::EcdheRsaAes128GcmSha256,
        Self::EcdheRsaChacha20Poly1305Sha256,
    ];

    /// The IANA name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls13Aes256GcmSha384 => "TLS_AES_256_GCM_SHA384",
            Self::Tls13Aes128GcmSha256 => "TLS_AES_128_GCM_SHA256",
            Self::Tls13Chacha20Poly1305Sha256 => "TLS_CHACHA20_POLY1305_SHA256",
            Self::EcdheEcdsaAes256GcmSha384 => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheEcdsaAes128GcmSha256 => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            Self::EcdheEcdsaChacha20Poly1305Sha256 => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            Self::EcdheRsaAes256GcmSha384 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheRsaAes128GcmSha256 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            Self::EcdheRsaChacha20Poly1305Sha256 => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        }
    }

    /// Whether the suite belongs to TLS 1.3; the other suites belong to 1.2.
    pub fn is_tls13(self) -> bool {
        matches!(
            self,
            Self::Tls13Aes256GcmSha384 | Self::Tls13Aes128GcmSha256 | Self::Tls13Chacha20Poly1305Sha256
        )
    }
}

/// The TLS settings of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The certificates, chosen by SNI; the first one is the default. Empty where services alone bring certificates:
    /// a client that names none of their hosts is refused. A listener of a config file has one at least.
    pub certificates: Vec<CertificateFiles>,
    /// The minimum TLS version.
    pub min_version: TlsVersion,
    /// The cipher suites that may be negotiated; `None` for all. Has at least one suite that `min_version` can use.
    pub cipher_suites: Option<Vec<CipherSuite>>,
}

impl TlsSettings {
    /// TLS settings of these certificates with the default policy.
    pub fn new(certificates: Vec<CertificateFiles>) -> Self {
        Self {
            certificates,
            min_version: TlsVersion::default(),
            cipher_suites: None,
        }
    }
}

/// The HTTP/2 settings of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Http2Settings {
    /// Announces extended CONNECT (RFC 8441) for WebSocket over HTTP/2. Browsers then use HTTP/2 for every WebSocket
    /// of the origin.
    pub web_socket: bool,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSettings {
    /// The address to bind; port 0 is allowed.
    pub address: SocketAddr,
    /// The visibility, which limits the routes that the listener serves.
    pub visibility: Visibility,
    /// TLS settings, if the listener uses TLS.
    pub tls: Option<TlsSettings>,
    /// PROXY protocol settings, if the listener uses it.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// HTTP/2 settings.
    pub http2: Http2Settings,
    /// The cluster's domain, if the listener does as Knative's activator: its requests name a revision, by fields or by
    /// a host below `svc.<domain>`, and no route is looked up.
    pub activator: Option<Arc<str>>,
}

/// The format of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Text for people.
    Pretty,
    /// One JSON object a line.
    Json,
    /// No access log.
    Off,
}

/// Limits for clients. A number of 0 in the file is `None` here: no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The timeout of a whole request head, from its first byte; also of the PROXY header and the TLS handshake.
    pub header_timeout: Duration,
    /// The timeout of a connection without a request, HTTP/1 or HTTP/2.
    pub idle_timeout: Duration,
    /// The size of a request head.
    pub max_header_bytes: usize,
    /// The number of fields of a request head.
    pub max_headers: usize,
    /// The size of a request target.
    pub max_uri_bytes: usize,
    /// The size of a request body.
    pub max_body_bytes: Option<u64>,
    /// The timeout between two reads of a request body; also how long a body may stay below the minimum rate.
    pub body_read_timeout: Duration,
    /// The minimum rate of a request body, in bytes a second.
    pub min_body_rate: Option<u64>,
    /// The timeout between two writes of a response that the client does not read.
    pub write_timeout: Duration,
    /// The number of connections, all listeners together.
    pub max_connections: Option<usize>,
    /// The number of connections of one client address.
    pub max_connections_per_client: Option<usize>,
    /// The age after which a connection is asked to end.
    pub max_connection_age: Option<Duration>,
    /// The number of concurrent streams of one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// The number of streams of one HTTP/2 connection that may be reset beyond the number of answered streams.
    pub max_stream_resets: Option<u32>,
    /// The number of frames without work of one HTTP/2 connection, beyond those that its requests explain.
    pub max_control_frames: Option<u32>,
    /// The time for which an idle upstream connection may be reused.
    pub upstream_idle_timeout: Duration,
    /// The timeout of connecting to an endpoint.
    pub connect_timeout: Duration,
    /// The number of passes of one request through Sluice, this pass included; more passes are a loop. At least 1.
    pub max_hops: u32,
}

/// Bounds of all queues together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueTotals {
    /// The number of waiters.
    pub depth: usize,
    /// The bytes of all waiters.
    pub bytes: u64,
}

/// The drain of the gateway before it exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainSettings {
    /// The time for which new connections are still served after `/readyz` turned 503.
    pub delay: Duration,
    /// The time that open requests may still take.
    pub timeout: Duration,
}

/// Settings of the whole gateway. The addresses of `health` and `admin` and the state directory are fixed at the start of
/// the process; a reload changes all other settings, listeners included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The domain of the derived hosts of services.
    pub domain: String,
    /// The listeners. Never empty.
    pub listeners: Vec<ListenerSettings>,
    /// The networks that may send `X-Forwarded-*`.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether `Knative-Serving-Tag` selects a tagged revision.
    pub tag_header: bool,
    /// The format of the access log.
    pub access_log: AccessLogFormat,
    /// Whether a response has the cause of a failed activation.
    pub error_detail: bool,
    /// Limits for clients.
    pub limits: Limits,
    /// Bounds of all queues together.
    pub queue: QueueTotals,
    /// The drain before the process exits.
    pub drain: DrainSettings,
    /// The listener for balancers' health checks, if any.
    pub health: Option<SocketAddr>,
    /// The admin listener.
    pub admin: AdminSettings,
    /// The interval at which DNS names are resolved again.
    pub dns_refresh: Duration,
    /// The directory of what outlives the process; `None`: nothing does. Fixed at the start of the process.
    pub state_directory: Option<PathBuf>,
    /// How long revisions of manifests are kept that nothing leads to.
    pub retention: Retention,
}

/// How long revisions of manifests are kept that no share and no tag leads to: Knative's `config-gc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Since the revision was made; `None`: does not count.
    pub since_create: Option<Duration>,
    /// Since something led to the revision; `None`: does not count.
    pub since_last_active: Option<Duration>,
    /// As many are kept of a service, whatever their age.
    pub min_non_active: usize,
    /// No more are kept of a service, whatever their age; `None`: as many as there are.
    pub max_non_active: Option<usize>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            since_create: Some(Duration::from_secs(48 * 3600)),
            since_last_active: Some(Duration::from_secs(15 * 3600)),
            min_non_active: 20,
            max_non_active: Some(1000),
        }
    }
}

impl Settings {
    /// Whether a peer may send `X-Forwarded-*`.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|net| net.contains(&peer.to_canonical()))
    }
}
