//! The harness of the end-to-end tests: the real binary, real sockets and processes on both sides.
//!
//! `gateway` starts `sluice` and learns where it listens; `backend`, `raw_backend` and `recorder` are what it
//! routes to; `wire` is a backend of either protocol that records strictly, `bodies` every way to end a request;
//! `h1`, `h2_client`, `h2_frames`, `blocking`, `grpc` and `load` are clients, and `balancer` may stand between. `wait` holds the only timer.
//!
//! **Invariant:** no client retries and no port is fixed: a refusal, an end of file or a reset is
//! always seen by the test that caused it.

pub mod backend;
pub mod balancer;
pub mod blocking;
pub mod bodies;
pub mod cli;
pub mod dial;
pub mod gateway;
pub mod grpc;
pub mod h1;
pub mod h2_client;
pub mod h2_frames;
pub mod load;
pub mod metrics;
pub mod process;
pub mod raw_backend;
pub mod recorder;
pub mod tls;
pub mod wait;
pub mod websocket;
pub mod wire;

#[cfg(test)]
mod self_tests;
