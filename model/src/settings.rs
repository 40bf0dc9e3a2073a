//! Settings of the whole gateway.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::route::Visibility;

/// Whether a listener speaks the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocolMode {
    /// A header may come.
    Optional,
    /// A header must come.
    Required,
}

/// A listener's PROXY protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// May or must.
    pub mode: ProxyProtocolMode,
    /// Who may send one; from elsewhere it closes the connection.
    pub from: Vec<IpNet>,
}

/// One certificate with its key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The oldest TLS a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// 1.2 and 1.3.
    #[default]
    Tls12,
    /// 1.3 alone.
    Tls13,
}

/// A cipher suite that may be offered. There are no others: all of them are forward secret and authenticated.
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
    /// All of them.
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

    /// IANA's name.
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

    /// Whether it belongs to TLS 1.3; the others belong to 1.2.
    pub fn is_tls13(self) -> bool {
        matches!(
            self,
            Self::Tls13Aes256GcmSha384 | Self::Tls13Aes128GcmSha256 | Self::Tls13Chacha20Poly1305Sha256
        )
    }
}

/// A listener's TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Chosen by SNI; the first is the default. Never empty.
    pub certificates: Vec<CertificateFiles>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// What may be agreed on; `None` for all of them. Has at least one that `min_version` can use.
    pub cipher_suites: Option<Vec<CipherSuite>>,
}

impl TlsSettings {
    /// These certificates under the default policy.
    pub fn new(certificates: Vec<CertificateFiles>) -> Self {
        Self {
            certificates,
            min_version: TlsVersion::default(),
            cipher_suites: None,
        }
    }
}

/// A listener's HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Http2Settings {
    /// Announces extended CONNECT (RFC 8441): WebSocket over HTTP/2. Browsers then use it for every
    /// WebSocket of the origin.
    pub web_socket: bool,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSettings {
    /// Where it binds; port 0 is allowed.
    pub address: SocketAddr,
    /// What it may serve.
    pub visibility: Visibility,
    /// TLS, if it speaks it.
    pub tls: Option<TlsSettings>,
    /// PROXY, if it speaks it.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// HTTP/2.
    pub http2: Http2Settings,
}

/// How requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// For people.
    Pretty,
    /// One object a line.
    Json,
    /// Not at all.
    Off,
}

/// What a client may ask of the gateway. A number of 0 in the file is `None` here: no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// For a whole request head, from its first byte; also for PROXY header and TLS handshake.
    pub header_timeout: Duration,
    /// For a connection without a request, h1 or h2.
    pub idle_timeout: Duration,
    /// A request head's bytes.
    pub max_header_bytes: usize,
    /// A request head's fields.
    pub max_headers: usize,
    /// A request target's bytes.
    pub max_uri_bytes: usize,
    /// A request body's bytes.
    pub max_body_bytes: Option<u64>,
    /// Between two reads of a request body; also how long one below the minimum rate may last.
    pub body_read_timeout: Duration,
    /// The least that must come of a request body, in bytes a second.
    pub min_body_rate: Option<u64>,
    /// Between two writes of a response that the client does not read.
    pub write_timeout: Duration,
    /// Connections, all listeners together.
    pub max_connections: Option<usize>,
    /// Connections of one client address.
    pub max_connections_per_client: Option<usize>,
    /// After which a connection is asked to end.
    pub max_connection_age: Option<Duration>,
    /// Streams open at once on one h2 connection.
    pub max_concurrent_streams: u32,
    /// Streams of one h2 connection that may be reset beyond those that were answered.
    pub max_stream_resets: Option<u32>,
    /// Frames of one h2 connection that carry no work, beyond those that its requests explain.
    pub max_control_frames: Option<u32>,
    /// How long an idle upstream connection may be reused.
    pub upstream_idle_timeout: Duration,
    /// For connecting to an endpoint.
    pub connect_timeout: Duration,
    /// Passes of one request through Sluice, this one included; beyond it is a loop. At least 1.
    pub max_hops: u32,
}

/// Bounds of all queues together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueTotals {
    /// Waiters.
    pub depth: usize,
    /// Bytes held by waiters.
    pub bytes: u64,
}

/// How the gateway goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long new connections are still served after `/readyz` turned 503.
    pub delay: Duration,
    /// How long open requests may still take.
    pub timeout: Duration,
}

/// Settings of the whole gateway. The addresses of `health` and `admin` are fixed while it runs; the rest
/// follows a reload, listeners included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The domain under which services have derived hosts.
    pub domain: String,
    /// Where requests come in. Never empty.
    pub listeners: Vec<ListenerSettings>,
    /// Who may send `X-Forwarded-*`.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether `Knative-Serving-Tag` selects a tagged revision.
    pub tag_header: bool,
    /// How requests are logged.
    pub access_log: AccessLogFormat,
    /// Whether clients see why an activation failed.
    pub error_detail: bool,
    /// What a client may ask.
    pub limits: Limits,
    /// Bounds of all queues together.
    pub queue: QueueTotals,
    /// How the gateway goes away.
    pub drain: DrainSettings,
    /// The listener for balancers' health checks, if any.
    pub health: Option<SocketAddr>,
    /// The admin listener.
    pub admin: SocketAddr,
    /// How often names are resolved again.
    pub dns_refresh: Duration,
}

impl Settings {
    /// Whether a peer may send `X-Forwarded-*`.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|net| net.contains(&peer.to_canonical()))
    }
}
