//! The contract between Sluice's two planes: a [`Snapshot`] goes down, [`Demand`] goes up.
//!
//! The control plane compiles configuration into one immutable [`Snapshot`]; the data plane reads one Snapshot per
//! request and no other configuration. The data plane reports events as [`Demand`] (a request waits for a revision at
//! zero, an instance passed its probe); endpoints that the control plane starts come down through [`EndpointSink`].
//!
//! **Invariant:** no I/O, no clock, no randomness, no async, no serde. Time and randomness are arguments. Every item
//! is used by both planes, except [`Shards`]: the data plane keeps more than the Snapshot in such arrays.

mod admin;
mod cold;
mod demand;
mod draw;
mod hash;
mod hosts;
mod ids;
mod name;
mod outcome;
mod replicas;
mod revision;
mod route;
mod scaling;
mod settings;
mod shards;
mod snapshot;
mod split;
mod table;
#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
mod wildcard;

pub use admin::{AdminAddress, AdminSettings, MAX_SOCKET_PATH, Secret};
pub use cold::{ColdAnswer, ColdStream, NoWake, NoWakeRule, StreamFormat, WaitingPage};
pub use demand::{
    ActivationFailure, Demand, DemandSink, EndpointSink, Expectation, Failure, InstanceId, LaunchStep, Load,
    ManagedEndpoint, RevisionStatus, StatusSource,
};
pub use draw::draw_point;
pub use hash::{StickyKey, rendezvous, stable_hash};
pub use name::{Host, NameError, RevisionId, ServiceId, Tag, normalize_host};
pub use outcome::{OutcomeSource, Outcomes, latency_bound, latency_bucket};
pub use replicas::{Replica, ReplicaSender, ReplicaSink};
pub use revision::{
    Backend, BackendTls, DEFAULT_STREAMS_PER_CONNECTION, EndpointAddr, EndpointTarget, MAX_TIERS, Pods,
    Probe, ProbeKind, Protocol, QueueLimits, RevisionOwner, RevisionSettings, RevisionSpec, RevisionTimeouts,
    Scheme, Tier, UrlBackend,
};
pub use route::{
    CertificatePem, HeaderMatch, HeaderMatcher, HostClaim, HttpOption, IngressExtras, PathMatch, PathRewrite,
    RequestView, Route, RouteMatch, Rule, Service, ServiceCertificate, Sticky, StickyScope, StickySource,
    Visibility,
};
pub use scaling::{ForecastStatus, ObservedScaling, ScaleSource, ScaleWants, ScalingSource, ScalingStatus};
pub use settings::{
    AccessLogFormat, CertificateFiles, CipherSuite, DrainSettings, Http2Settings, Limits, ListenerSettings,
    ProxyProtocol, ProxyProtocolMode, QueueTotals, Retention, Settings, TlsSettings, TlsVersion,
};
pub use shards::{Seed, Shards};
pub use snapshot::{
    Delta, Generation, Snapshot, SnapshotBuilder, SnapshotError, SnapshotPublisher, SnapshotReader,
};
pub use split::{Percent, SplitError, TrafficSplit, TrafficTarget};
pub use table::{Entry, Found, HostPattern, MAX_RULES, NotFound, RouteTable, TableError};
pub use wildcard::Wildcard;
