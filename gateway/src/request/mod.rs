//! The decision part of the request path: find, pick, admit, choose an endpoint, which headers.
//!
//! **Invariant:** protocol-neutral. No type of Pingora's is named here; each adapter (HTTP through
//! pingora-proxy, upgrades through the tunnel, a leaner HTTP/1 path to come) drives a
//! [`RequestCtx`] through the same steps: `route`, `admit`, then for each attempt the endpoint of
//! its Permit, `fail_over` after a failed one, and `finish`.

mod admit;
mod ctx;
mod decide;
mod headers;
mod measure;
mod offer;
mod pace;
mod target;
mod timers;

pub use admit::refusal_of;
pub use ctx::{Attempt, Ending, Engine, Incoming, Refusal, RequestCtx, Routed};
pub use decide::{Decision, Draw, Picked, TAG_HEADER, decide, redirects};
pub use headers::{
    Forwarding, HeadMut, cookie, from_backend, grpc_timeout, request_id, strip_hop_by_hop, to_backend,
};
pub use measure::MeasuredRevision;
pub use offer::{is_upgrade, upgrade_to_forward};
pub use pace::Pace;
pub use target::{Target, TargetFault, judge_target};
pub use timers::{Breakable, RequestTimers};
