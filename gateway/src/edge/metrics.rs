//! Connection metrics of the edge: states, close reasons, and the trait that counts them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The state of an open connection, as the `protocol` label of `sluice_connections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionProtocol {
    /// Not known yet: PROXY header, TLS handshake or first bytes.
    Opening,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl ConnectionProtocol {
    /// All values, in the order of the variants.
    pub const ALL: [Self; 3] = [Self::Opening, Self::Http1, Self::Http2];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// Why a connection ended, as the `reason` label of `sluice_connections_closed_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Served to its end: the client closed the connection, or a response said that it ends.
    Served,
    /// The client connected and closed without sending a byte, as load balancers do to probe.
    Probe,
    /// The client left, or the connection broke, before its protocol was known.
    ClientGone,
    /// `limits.maxConnections` were open.
    ConnectionLimit,
    /// `limits.maxConnectionsPerClient` were open.
    ClientLimit,
    /// Refused, to leave file descriptors for the open connections.
    DescriptorLimit,
    /// `limits.headerTimeout` passed before the protocol was known, or in the middle of a head.
    HeaderTimeout,
    /// `limits.idleTimeout` passed without a request.
    IdleTimeout,
    /// `limits.maxConnectionAge` passed.
    MaxAge,
    /// A request's body stalled, or came below `limits.minBodyRate`. HTTP/1.
    BodyTimeout,
    /// The client accepted no byte within `limits.writeTimeout`.
    WriteTimeout,
    /// More streams were reset than `limits.maxStreamResets` allows.
    ResetFlood,
    /// A head in more CONTINUATION frames than its largest size needs.
    ContinuationFlood,
    /// More PING than `limits.maxControlFrames` allows.
    PingFlood,
    /// More SETTINGS than `limits.maxControlFrames` allows.
    SettingsFlood,
    /// More WINDOW_UPDATE than `limits.maxControlFrames` allows.
    WindowUpdateFlood,
    /// More PRIORITY or unknown frames than `limits.maxControlFrames` allows.
    PriorityFlood,
    /// More frames without content than `limits.maxControlFrames` allows.
    EmptyFrameFlood,
    /// A head that unpacks to far more than `limits.maxHeaderBytes`.
    HeaderBomb,
    /// A violation of HTTP/2.
    ProtocolError,
    /// A required PROXY header is missing.
    ProxyMissing,
    /// A PROXY header came from outside `proxyProtocol.from`.
    ProxyForbidden,
    /// A PROXY header was malformed.
    ProxyMalformed,
    /// The TLS handshake failed.
    TlsFailed,
    /// Closed by the drain.
    Drained,
    /// The connection's task panicked: a bug.
    Panicked,
}

impl CloseReason {
    /// All values, in the order of the variants.
    pub const ALL: [Self; 26] = [
        Self::Served,
        Self::Probe,
        Self::ClientGone,
        Self::ConnectionLimit,
        Self::ClientLimit,
        Self::DescriptorLimit,
        Self::HeaderTimeout,
        Self::IdleTimeout,
        Self::MaxAge,
        Self::BodyTimeout,
        Self::WriteTimeout,
        Self::ResetFlood,
        Self::ContinuationFlood,
        Self::PingFlood,
        Self::SettingsFlood,
        Self::WindowUpdateFlood,
        Self::PriorityFlood,
        Self::EmptyFrameFlood,
        Self::HeaderBomb,
        Self::ProtocolError,
        Self::ProxyMissing,
        Self::ProxyForbidden,
        Self::ProxyMalformed,
        Self::TlsFailed,
        Self::Drained,
        Self::Panicked,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Probe => "probe",
            Self::ClientGone => "client_gone",
            Self::ConnectionLimit => "connection_limit",
            Self::ClientLimit => "client_limit",
            Self::DescriptorLimit => "descriptor_limit",
            Self::HeaderTimeout => "header_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::MaxAge => "max_age",
            Self::BodyTimeout => "body_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::ResetFlood => "reset_flood",
            Self::ContinuationFlood => "continuation_flood",
            Self::PingFlood => "ping_flood",
            Self::SettingsFlood => "settings_flood",
            Self::WindowUpdateFlood => "window_update_flood",
            Self::PriorityFlood => "priority_flood",
            Self::EmptyFrameFlood => "empty_frame_flood",
            Self::HeaderBomb => "header_bomb",
            Self::ProtocolError => "protocol_error",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyForbidden => "proxy_forbidden",
            Self::ProxyMalformed => "proxy_malformed",
            Self::TlsFailed => "tls_failed",
            Self::Drained => "drained",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Registers the metrics of a listener when it is bound, so that labels are resolved once and not per
/// connection.
pub trait EdgeMetrics: Send + Sync + 'static {
    /// The metrics of the listener bound to this address.
    fn listener(&self, bound: SocketAddr) -> Arc<dyn ListenerMetrics>;
}

/// Counts the events of one listener. Called for every connection: must neither block nor panic.
pub trait ListenerMetrics: Send + Sync + 'static {
    /// A connection entered this state: adds one to the gauge.
    fn entered(&self, protocol: ConnectionProtocol);
    /// A connection left this state: takes one from the gauge.
    fn left(&self, protocol: ConnectionProtocol);
    /// A connection ended, or was refused without ever being counted as open.
    fn closed(&self, reason: CloseReason);
    /// Accepting pauses because descriptors or memory ran out; called once per episode.
    fn exhausted(&self);
}

/// Guard of one open connection in the gauges.
pub(super) struct ConnectionGauge {
    metrics: Arc<dyn ListenerMetrics>,
    protocol: ConnectionProtocol,
}

impl ConnectionGauge {
    pub(super) fn open(metrics: Arc<dyn ListenerMetrics>) -> Self {
        metrics.entered(ConnectionProtocol::Opening);
        Self {
            metrics,
            protocol: ConnectionProtocol::Opening,
        }
    }

    pub(super) fn set_protocol(&mut self, protocol: ConnectionProtocol) {
        self.metrics.left(self.protocol);
        self.metrics.entered(protocol);
        self.protocol = protocol;
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.metrics.left(self.protocol);
    }
}
