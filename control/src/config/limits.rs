//! Limits of clients: sizes, counts, rates and timeouts.

use std::time::Duration;

use sluice_config_shape::{DurationRange, Integer, Record, Size};
use sluice_model::Limits;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The default limits.
pub(super) fn default_limits() -> Limits {
    Limits {
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        max_header_bytes: 64 << 10,
        max_headers: 128,
        max_uri_bytes: 16 << 10,
        max_body_bytes: None,
        body_read_timeout: Duration::from_secs(60),
        min_body_rate: Some(240),
        write_timeout: Duration::from_secs(60),
        max_connections: Some(50_000),
        max_connections_per_client: None,
        max_connection_age: None,
        max_concurrent_streams: 128,
        max_stream_resets: Some(1000),
        max_control_frames: Some(1000),
        // Below the 5 s keep-alive timeout of Node.js: a POST must not meet a connection that is being closed.
        upstream_idle_timeout: Duration::from_secs(4),
        connect_timeout: Duration::from_secs(5),
        max_hops: 10,
    }
}

pub(super) const LIMITS: Record<Limits> = Record {
    name: "Limits",
    doc: "What a client may ask of the gateway.",
    decode: |o| {
        let d = default_limits();
        let head = Size {
            min: KIB,
            max: 16 * MIB,
        };
        let uri = Size {
            min: 64,
            max: 16 * MIB,
        };
        let count = |min, max| Integer { min, max };
        let or_none = |n: u64| (n > 0).then_some(n);
        let some_u32 = |n: u64| or_none(n).and_then(|n| u32::try_from(n).ok());
        let bytes = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let connections = "Connections, all listeners together; 0 is no limit.";
        Some(Limits {
            header_timeout: o.or(
                "headerTimeout",
                "For a whole request head, from its first byte; also for PROXY header and TLS handshake.",
                DurationRange::POSITIVE,
                d.header_timeout,
            ),
            idle_timeout: o.or(
                "idleTimeout",
                "For a connection without a request.",
                DurationRange::POSITIVE,
                d.idle_timeout,
            ),
            max_header_bytes: super::to_usize(o.or(
                "maxHeaderBytes",
                "A request head.",
                head,
                bytes(d.max_header_bytes),
            )),
            max_headers: super::to_usize(o.or(
                "maxHeaders",
                "Fields of a request head.",
                count(1, 10_000),
                bytes(d.max_headers),
            )),
            max_uri_bytes: super::to_usize(o.or(
                "maxUriBytes",
                "A request's target.",
                uri,
                bytes(d.max_uri_bytes),
            )),
            max_body_bytes: or_none(o.or(
                "maxBodyBytes",
                "A request's body; 0 is no limit.",
                Size { min: 0, max: 1 << 50 },
                0,
            )),
            body_read_timeout: o.or(
                "bodyReadTimeout",
                "Between two reads of a request's body, on HTTP/2 of one with a length; also how long a body may come slower than `minBodyRate`.",
                DurationRange::POSITIVE,
                d.body_read_timeout,
            ),
            min_body_rate: or_none(o.or(
                "minBodyRate",
                "Bytes a second that must come of a request's body, on HTTP/2 of one with a length; 0 is no minimum.",
                Size { min: 0, max: 1 << 40 },
                240,
            )),
            write_timeout: o.or(
                "writeTimeout",
                "Between two writes of a response that the client does not read.",
                DurationRange::POSITIVE,
                d.write_timeout,
            ),
            max_connections: or_none(o.or("maxConnections", connections, count(0, 100_000_000), 50_000))
                .map(super::to_usize),
            max_connections_per_client: or_none(o.or(
                "maxConnectionsPerClient",
                "Connections of one client address; 0 is no limit.",
                count(0, 100_000_000),
                0,
            ))
            .map(super::to_usize),
            max_connection_age: Some(o.or(
                "maxConnectionAge",
                "After which a connection is asked to end; 0s is never.",
                DurationRange::ANY,
                Duration::ZERO,
            ))
            .filter(|age| !age.is_zero()),
            max_concurrent_streams: u32::try_from(o.or(
                "maxConcurrentStreams",
                "Streams open at once on one HTTP/2 connection.",
                count(1, 10_000),
                u64::from(d.max_concurrent_streams),
            ))
            .unwrap_or(d.max_concurrent_streams),
            max_stream_resets: some_u32(o.or(
                "maxStreamResets",
                "Streams of one HTTP/2 connection that may be reset beyond those that were answered; comes back within ten seconds; 0 is no limit.",
                count(0, 1_000_000),
                1000,
            )),
            max_control_frames: some_u32(o.or(
                "maxControlFrames",
                "Frames of one HTTP/2 connection that carry no work (PING, SETTINGS, WINDOW_UPDATE, PRIORITY, empty ones) beyond those that its requests and bodies explain; comes back within ten seconds; 0 is no limit.",
                count(0, 1_000_000),
                1000,
            )),
            upstream_idle_timeout: o.or(
                "upstreamIdleTimeout",
                "How long an idle connection to a backend may be used again.",
                DurationRange::ANY,
                d.upstream_idle_timeout,
            ),
            connect_timeout: o.or(
                "connectTimeout",
                "For connecting to an endpoint.",
                DurationRange::POSITIVE,
                d.connect_timeout,
            ),
            max_hops: u32::try_from(o.or(
                "maxHops",
                "Passes of one request through Sluice, this one included; beyond it is a loop.",
                count(1, 1_000),
                u64::from(d.max_hops),
            ))
            .unwrap_or(d.max_hops),
        })
    },
};
