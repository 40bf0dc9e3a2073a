//! The test harness of the end-to-end tests: the real binary, real sockets and processes on both sides.
//!
//! `gateway` starts `sluice` and reads the bound addresses; `backend`, `raw_backend`, `recorder` and `wire` are
//! backends, from convenient to strict; `collector` takes traces; `bodies` lists every way to end a request; `h1`, `h2_client`, `h2_frames`,
//! `blocking`, `grpc`, `websocket`, `browser` and `load` are clients; `balancer` is a load balancer between clients and
//! gateways, `relay` a way that can be cut; `cluster` is the Kubernetes cluster around a test, `api_server` a client of
//! its API server. `wait` has the only timers.
//!
//! **Invariant:** no client retries and no port is fixed: the test that causes a refusal, an end of file or a reset
//! always sees it as an error.

#![allow(clippy::disallowed_methods, reason = "real clients, real time")]

pub mod api_server;
pub mod backend;
pub mod balancer;
pub mod blocking;
pub mod bodies;
pub mod browser;
pub mod cli;
pub mod cluster;
pub mod collector;
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
pub mod relay;
pub mod tls;
pub mod wait;
pub mod websocket;
pub mod wire;

#[cfg(test)]
mod self_tests;
