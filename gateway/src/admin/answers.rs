//! What the admin and the health address answer, and to whom: [`access`](super::access) decides before anything else.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use sluice_model::{AdminAddress, RevisionId};

use super::access::{self, Refusal};
use super::feed::{EventStream, Feed};
use super::graceful_shutdown::ShutdownRequest;
use super::query::{ExplainQuery, history_query, revisions_query};
use super::server::Purpose;
use super::{AdminState, api, commands, dashboard, upgrade};
use crate::explain::{explain, scaled};
use crate::observe::{LiveGauges, RevisionLoad};

/// A response: a whole one, or the stream of `/api/events`.
pub(super) type AdminBody = Either<Full<Bytes>, EventStream>;

/// What every request of a server is answered by.
pub(super) struct Context {
    /// As bound.
    pub(super) address: AdminAddress,
    pub(super) purpose: Purpose,
    pub(super) state: Arc<dyn AdminState>,
    pub(super) feed: Feed,
    pub(super) shutdown: ShutdownRequest,
}

/// The response to a request of a server.
pub(super) async fn answer(context: Arc<Context>, request: Request<Incoming>) -> Response<AdminBody> {
    let Context {
        address,
        purpose,
        state,
        feed,
        shutdown,
    } = &*context;
    let purpose = *purpose;
    if purpose == Purpose::Admin {
        let allowed = access::check(&request, address, &state.table().settings().admin);
        if let Err(refusal) = allowed {
            return refused(refusal, request.uri().path());
        }
        match (request.method(), request.uri().path()) {
            (_, upgrade::PATH) => return upgrade::answer(&**state, &request).await,
            (_, path) if commands::is_command(path) => {
                return commands::answer(&**state, &request)
                    .await
                    .unwrap_or_else(not_found);
            }
            (&Method::GET, EVENTS) => return events(feed, shutdown.clone()),
            _ => {}
        }
    }
    // Health checks run on the async threads, so that they fail when these threads hang. All other paths take
    // time in proportion to the number of revisions, and run on a blocking thread.
    if let Some(answer) = health(&**state, &request) {
        return answer;
    }
    let is_served = match purpose {
        Purpose::Admin => true,
        Purpose::Health => false,
        Purpose::HealthAndMetrics => request.uri().path() == "/metrics",
    };
    if !is_served {
        return not_found();
    }
    let asked = Arc::clone(&context);
    let task = tokio::task::spawn_blocking(move || admin(&asked, request.uri()));
    task.await.unwrap_or_else(|e| {
        tracing::error!(error = %e, "an admin request panicked");
        text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this request hit a bug; the log says more\n",
        )
    })
}

/// The response to a health path, or to a method that no path takes; `None` for any other path.
fn health<B>(state: &dyn AdminState, request: &Request<B>) -> Option<Response<AdminBody>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(answer);
    }
    match request.uri().path() {
        "/healthz" => Some(text(StatusCode::OK, "ok\n")),
        "/readyz" => Some(match state.ready() {
            Ok(generation) => text(StatusCode::OK, format!("ready, generation {generation}\n")),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        }),
        _ => None,
    }
}

const EVENTS: &str = "/api/events";

/// The stream of `/api/events`, or 503 when as many follow as may.
fn events(feed: &Feed, shutdown: ShutdownRequest) -> Response<AdminBody> {
    let Some(stream) = feed.follow(shutdown) else {
        let error = "too many follow already: close a dashboard, or ask /api/revisions";
        return as_json(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": error}));
    };
    let mut answer = typed(StatusCode::OK, "text/event-stream", "").map(|_| Either::Right(stream));
    // After the stream nothing is expected: a browser follows again on a new connection.
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The response to a request that [`access::check`] refuses.
fn refused(refusal: Refusal, path: &str) -> Response<AdminBody> {
    tracing::debug!(?refusal, path, "admin request refused");
    let advice = refusal.advice();
    let mut answer = match path {
        upgrade::PATH => as_json(refusal.status(), &json!({"upgraded": false, "error": advice})),
        path if commands::is_command(path) => as_json(refusal.status(), &commands::not_done(advice)),
        path if path.starts_with("/api/") => as_json(refusal.status(), &json!({"error": advice})),
        _ => text(refusal.status(), format!("{advice}\n")),
    };
    if refusal == Refusal::Token {
        let challenge = HeaderValue::from_static("Bearer realm=\"sluice\"");
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    answer
}

fn admin(context: &Context, uri: &Uri) -> Response<AdminBody> {
    let state = &*context.state;
    match uri.path() {
        dashboard::PATH => dashboard::page(),
        "/api/history" => match history_query(uri.query().unwrap_or_default()) {
            Ok(revision) => hour(&context.feed, revision.as_ref()),
            Err(error) => as_json(StatusCode::BAD_REQUEST, &json!({"error": error})),
        },
        "/" => typed(StatusCode::OK, "text/html; charset=utf-8", INDEX),
        "/metrics" => typed(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics(state),
        ),
        "/api/routes" => as_json(StatusCode::OK, &api::routes(&state.table())),
        "/api/revisions" => match revisions_query(uri.query().unwrap_or_default()) {
            Ok(service) => as_json(StatusCode::OK, &api::revisions(state, service.as_ref())),
            Err(error) => as_json(StatusCode::BAD_REQUEST, &json!({"error": error})),
        },
        "/api/config" => as_json(StatusCode::OK, &api::config(state)),
        "/api/explain" => match ExplainQuery::parse(uri.query().unwrap_or_default()) {
            Ok(query) => {
                let mut found = explain(&state.table(), &state.bound().listeners, &query);
                let scaling = state.scaling();
                scaled(&mut found, &scaling["revisions"]);
                as_json(StatusCode::OK, &found)
            }
            Err(error) => as_json(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
        },
        _ => not_found(),
    }
}

fn metrics(state: &dyn AdminState) -> String {
    let loads = state.loads();
    let table = state.table();
    let desired = |load: &RevisionLoad| {
        let status = super::tiers::status(state, &table, &load.revision)?;
        Some((load.revision.clone(), status.desired))
    };
    let scaling = |load: &RevisionLoad| {
        let status = state.scaling_status(&load.revision)?;
        Some((load.revision.clone(), status))
    };
    state.metrics().expose(&LiveGauges {
        scaling: loads.iter().filter_map(scaling).collect(),
        desired: loads.iter().filter_map(desired).collect(),
        loads,
        tables: state.tables(),
        certificates: state.certificates(),
        rollouts: state.rollouts(),
        stats: state.stats_connection(),
        replicas: state.replicas(),
    })
}

/// The hour of a revision, or of the whole gateway.
fn hour(feed: &Feed, revision: Option<&RevisionId>) -> Response<AdminBody> {
    match feed.hour(revision) {
        // Not indented: a list has 360 numbers.
        Some(hour) => typed(StatusCode::OK, "application/json", hour.to_string()),
        None => {
            let error = "this revision had no request in the last hour";
            as_json(StatusCode::NOT_FOUND, &json!({"error": error}))
        }
    }
}

fn not_found() -> Response<AdminBody> {
    text(StatusCode::NOT_FOUND, "nothing here; / lists what there is\n")
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<AdminBody> {
    typed(status, "text/plain; charset=utf-8", body)
}

pub(super) fn as_json(status: StatusCode, value: &Value) -> Response<AdminBody> {
    typed(status, "application/json", format!("{value:#}\n"))
}

pub(super) fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<AdminBody> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

const INDEX: &str = r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Sluice</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:3em auto;max-width:42em;padding:0 1em}td{padding-right:1.5em}</style>
<h1>Sluice</h1>
<table>
<tr><td><a href="/dashboard">/dashboard</a><td>all of it at a glance, live
<tr><td><a href="/healthz">/healthz</a><td>the process is alive
<tr><td><a href="/readyz">/readyz</a><td>a Snapshot is served and nothing drains
<tr><td><a href="/metrics">/metrics</a><td>Prometheus metrics
<tr><td><a href="/api/revisions">/api/revisions</a><td>what runs, as <code>sluice status</code> shows it
<tr><td><a href="/api/routes">/api/routes</a><td>hosts and where they lead
<tr><td><a href="/api/config">/api/config</a><td>settings in force, secrets left out
<tr><td><a href="/api/history">/api/history</a><td>the last hour in steps of 10 s; <code>?revision=default/greeter-v1</code>
<tr><td><a href="/api/events">/api/events</a><td>server-sent events: <code>snapshot</code>, then each <code>change</code>
<tr><td><code>POST /api/rollback?service=…</code><td>what <code>sluice rollback</code> asks for; likewise <code>/api/pause</code>, <code>/api/resume</code> and <code>/api/rollout/…</code>
<tr><td><code>POST /api/upgrade</code><td>what <code>sluice upgrade</code> asks for: the binary now on disk takes over
<tr><td><a href="/api/explain?url=http://greeter.default.localhost/">/api/explain?url=…</a><td>which revision would serve this, and why
</table>
"#;
