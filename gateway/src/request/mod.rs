//! The decision part of the request path: routing, splits, admission, header rewriting, deadlines.
//!
//! **Invariant:** protocol-neutral and without I/O of its own. `exchange` drives a [`RequestCtx`] through its
//! steps: `route`, `admit`, then for each attempt the endpoint of its Permit, `fail_over` after a failed
//! attempt, and `finish`.

mod accept;
mod activator;
mod admit;
mod body_rate;
mod client_address;
mod clocks;
mod cold;
mod ctx;
mod decide;
mod headers;
mod measure;
mod network_probe;
mod origin_form;
mod rewrite;
mod trace;
mod upgrade_offer;
mod waiting_page;

pub use accept::names_media_type;
pub use activator::revision as named_revision;
pub use admit::{PollGone, rejection_response};
pub use body_rate::BodyRate;
pub use client_address::client_behind_proxies;
pub use clocks::Clocks;
pub use cold::{takes_page, takes_stream};
pub use ctx::{Engine, IncomingRequest, NextAttempt, RequestCtx, RequestEnd, Routed};
pub use decide::{Draw, PickReason, RouteDecision, TAG_HEADER, decide, redirects};
pub use headers::{
    FieldSink, Fields, Forwarding, HOPS_HEADER, Nominated, RequestEdit, RequestId, cookie, grpc_timeout,
    hops, may_be_trailer, request_fields, response_fields,
};
pub use measure::MeasuredRevision;
pub use origin_form::OriginForm;
pub use rewrite::{host_for, target_for};
pub use trace::OutgoingTrace;
pub use upgrade_offer::upgrade_to_forward;
pub use waiting_page::{phase_name, seconds, waiting_page};
