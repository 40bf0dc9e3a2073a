//! Settings for tests, with the documented defaults of the configuration: a test names only the settings under test.
//!
//! Behind the feature `test-util`, which only tests turn on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::admin::AdminSettings;
use crate::revision::{
    BackendTls, DEFAULT_STREAMS_PER_CONNECTION, Protocol, QueueLimits, RevisionSettings, RevisionTimeouts,
};
use crate::route::Visibility;
use crate::settings::{
    AccessLogFormat, DrainSettings, Http2Settings, Limits, ListenerSettings, QueueTotals, Settings,
};

/// The limits of a configuration without `limits`.
pub fn limits() -> Limits {
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
        upstream_idle_timeout: Duration::from_secs(4),
        connect_timeout: Duration::from_secs(5),
        max_hops: 10,
    }
}

/// An external listener without TLS on any free port of 127.0.0.1.
pub fn listener() -> ListenerSettings {
    ListenerSettings {
        address: ([127, 0, 0, 1], 0).into(),
        visibility: Visibility::External,
        tls: None,
        proxy_protocol: None,
        http2: Http2Settings::default(),
        activator: None,
    }
}

/// Settings with one [`listener`], [`limits`], free ports and no access log; everything else as documented.
pub fn settings() -> Settings {
    Settings {
        domain: "localhost".into(),
        listeners: vec![listener()],
        trusted_proxies: Vec::new(),
        tag_header: false,
        access_log: AccessLogFormat::Off,
        error_detail: false,
        limits: limits(),
        queue: QueueTotals {
            depth: 100_000,
            bytes: 1 << 30,
        },
        drain: DrainSettings {
            delay: Duration::ZERO,
            timeout: Duration::from_secs(300),
        },
        health: None,
        admin: AdminSettings::at(SocketAddr::from(([127, 0, 0, 1], 0))),
        dns_refresh: Duration::from_secs(5),
        state_directory: None,
        retention: crate::Retention::default(),
    }
}

/// Revision settings with HTTP/1, no probe, no concurrency limit, no timeout; everything else as documented.
pub fn revision_settings() -> RevisionSettings {
    RevisionSettings {
        protocol: Protocol::Http1,
        max_streams_per_connection: DEFAULT_STREAMS_PER_CONNECTION,
        tls: BackendTls::default(),
        upgrades: None,
        readiness: None,
        start_timeout: Duration::from_secs(60),
        container_concurrency: None,
        timeouts: no_timeouts(),
        queue: QueueLimits {
            depth: 10_000,
            bytes: 64 << 20,
            timeout: Duration::from_secs(60),
        },
        request_headers: BTreeMap::new(),
        needs: Vec::new(),
    }
}

/// Timeouts without any limit.
pub fn no_timeouts() -> RevisionTimeouts {
    RevisionTimeouts {
        total: None,
        response_start: None,
        idle: None,
        max_stream_age: None,
    }
}
