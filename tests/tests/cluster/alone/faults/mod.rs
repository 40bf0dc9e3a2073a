//! Faults of the cluster under traffic: no request fails, and afterwards the gateway serves what the cluster says.
//!
//! What each test breaks really was broken: it asserts that too. Other faults under traffic are beside what they belong
//! to: the autoscaler in `zero`, a replica's way to the API server in `acknowledgements`.

mod api_server;
mod churn;
mod leader;
mod relist;
mod rollout;
pub(super) mod scene;
mod secrets;
mod statistics;
mod statuses;
mod watches;
mod waves;
