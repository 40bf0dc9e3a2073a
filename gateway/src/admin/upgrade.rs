//! `POST /api/upgrade`: an upgrade in place. Who may ask for it is decided by [`access`](super::access).

use std::time::Duration;

use http::header::{ALLOW, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use serde_json::json;
use thiserror::Error;

use super::AdminState;
use super::answers::{AdminBody, as_json};

/// The path of the upgrade.
pub const PATH: &str = "/api/upgrade";

/// How long a new process may take to get ready unless the request has a `timeout`.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

/// The longest `timeout` of a request: an admin connection does not live much longer.
const MAX_LIMIT: Duration = Duration::from_secs(50);

/// A successful upgrade: the process that took over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgraded {
    /// The new process's id.
    pub pid: u32,
    /// The version of the new binary.
    pub version: String,
}

/// A failed upgrade: no process took over, and this one goes on as before.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UpgradeError {
    /// No upgrade was tried: another one is under way, or the process shuts down.
    #[error("{0}")]
    NotNow(&'static str),
    /// The upgrade was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// The response: `{upgraded: true, pid, version, previousPid}` with 200; `{upgraded: false, error}` with 409 when it
/// was not tried, 500 when it failed; 400 for an invalid request.
pub(super) async fn answer<B>(state: &dyn AdminState, request: &Request<B>) -> Response<AdminBody> {
    let refused = |status, error: &str| as_json(status, &json!({"upgraded": false, "error": error}));
    if request.method() != Method::POST {
        let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
        return answer;
    }
    let limit = match limit(request.uri().query()) {
        Ok(limit) => limit,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    match state.upgrade(limit).await {
        Ok(Upgraded { pid, version }) => as_json(
            StatusCode::OK,
            &json!({"upgraded": true, "pid": pid, "version": version, "previousPid": std::process::id()}),
        ),
        Err(error @ UpgradeError::NotNow(_)) => refused(StatusCode::CONFLICT, &error.to_string()),
        Err(error @ UpgradeError::Failed(_)) => {
            refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
        }
    }
}

fn limit(query: Option<&str>) -> Result<Duration, String> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(DEFAULT_LIMIT);
    };
    let text = query
        .strip_prefix("timeout=")
        .ok_or_else(|| format!("unknown: {query}; there is only timeout=10s"))?;
    parse_limit(text)
}

/// Parses the `timeout` of an upgrade: how long a new process may take to get ready.
///
/// # Errors
/// Why the text is not a valid timeout, in one line.
pub fn parse_limit(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|e| format!("timeout: {e}; write it as 10s"))?;
    if limit.is_zero() || limit > MAX_LIMIT {
        return Err(format!(
            "timeout: more than 0 and at most {}s",
            MAX_LIMIT.as_secs()
        ));
    }
    Ok(limit)
}
