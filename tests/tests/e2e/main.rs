//! End to end: the real binary between real clients and real backends.
//!
//! One test executable with a module per concern, because each executable is linked anew.

#![allow(clippy::disallowed_methods, reason = "real clients, real time")]

mod admin_access;
mod autoscaling;
mod backends;
mod balancer;
mod certificates;
mod check;
mod cli;
mod cold_start;
mod cold_start_failures;
mod cold_stream;
mod cold_timing;
mod commands;
mod configs;
mod corpus;
mod dashboard;
mod dashboard_browser;
mod dashboard_releases;
mod drain;
mod early_responses;
mod ejection;
mod elasticity;
mod exchange_bodiless;
mod exchange_bounds;
mod exchange_streams;
mod exchange_tls;
mod exchange_trailers;
mod exchange_websocket;
mod exchange_writes;
mod exhaustion;
mod explain;
mod false_readiness;
mod faults_bodies;
mod faults_engine;
mod faults_fields;
mod faults_interim;
mod faults_upgrades;
mod floods;
mod framing;
mod grpc_refusals;
mod h2spec;
mod headers;
mod hints;
mod instance_environment;
mod limits;
mod listeners;
mod local_responses;
mod loop_detection;
mod misbehaviour;
mod needs;
mod no_wake;
mod operator;
mod packaging;
mod pause;
mod prewarmed_connection;
mod protocols_h1;
mod protocols_h2;
mod protocols_streams;
mod proxy_protocol;
mod reload;
mod reload_without_inotify;
mod rollouts;
mod routing;
mod scale_down;
mod schedules;
mod slow_clients;
mod splitting;
mod tiers;
mod timeouts;
mod traces;
mod traces_collector;
mod traces_delivery;
mod tunnels;
mod tutorial;
mod upgrade;
mod upgrade_failures;
mod upgrade_scaling;
mod url_backends;
mod waiting_page;
mod webhook;

use std::net::SocketAddr;

/// The host of the service that [`web`] configures.
const WEB: &str = "web.default.localhost";

/// The service `web` with one endpoint.
fn web(addr: SocketAddr) -> String {
    web_with(addr, "")
}

/// The service `web` with one endpoint and more keys of its revision, one a line.
fn web_with(addr: SocketAddr, revision: &str) -> String {
    let more: String = revision
        .lines()
        .map(|line| format!("        {}\n", line.trim()))
        .collect();
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        endpoints: [\"{addr}\"]\n{more}"
    )
}

/// The service `web` with two endpoints and one more line of keys of its revision.
fn web_two(a: SocketAddr, b: SocketAddr, revision: &str) -> String {
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        endpoints: [\"{a}\", \"{b}\"]\n        {revision}\n"
    )
}

/// The service `web` with a split between revisions `web-a` and `web-b` of one endpoint each.
fn web_split(a: SocketAddr, share_a: &str, b: SocketAddr, share_b: &str, service: &str) -> String {
    format!(
        r#"services:
  - name: web
    {service}
    traffic:
      - {{revisionName: web-a, percent: {share_a}, tag: a}}
      - {{revisionName: web-b, percent: {share_b}, tag: b}}
    revisions:
      - {{name: web-a, endpoints: ["{a}"]}}
      - {{name: web-b, endpoints: ["{b}"]}}
"#
    )
}
