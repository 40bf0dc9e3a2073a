//! `POST /api/upgrade`: the only thing that can be done here, not only seen.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;
use thiserror::Error;

use super::AdminState;
use super::server::as_json;

/// Where it is asked for.
pub const PATH: &str = "/api/upgrade";

/// How long a new process may take to get ready unless the asker says otherwise.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

/// The longest it may be asked to wait: an admin connection does not live much longer.
const MAX_LIMIT: Duration = Duration::from_secs(50);

/// The process that took over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgraded {
    /// Its process id.
    pub pid: u32,
    /// The version of its binary.
    pub version: String,
}

/// Why no process took over; this one goes on as before.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UpgradeError {
    /// Not now: another upgrade, or the way out.
    #[error("{0}")]
    NotNow(&'static str),
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

/// `{upgraded: true, pid, version, previousPid}` with 200; `{upgraded: false, error}` with 409 when it
/// was not tried, 500 when it failed; 400 and 403 for a request that is wrong.
pub(super) async fn answer<B>(state: &dyn AdminState, request: &Request<B>) -> Response<Full<Bytes>> {
    let refused = |status, error: &str| as_json(status, &json!({"upgraded": false, "error": error}));
    if request.method() != Method::POST {
        let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
        return answer;
    }
    // A page that a browser shows can POST to a loopback address, but not without saying that it is a page.
    if request.headers().contains_key(ORIGIN) {
        return refused(StatusCode::FORBIDDEN, "not from a web page");
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

/// Reads how long a new process may take to get ready.
///
/// # Errors
/// What is wrong with it, in one line.
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
