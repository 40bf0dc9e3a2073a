//! The bodies of webhook calls and replies, as in `docs/webhook.md`.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use sluice_model::RevisionId;

use super::client::Reply;
use super::{Answer, Ask};

/// The longest part of an endpoint's name that an error repeats.
const SHOWN: usize = 100;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestBody<'a> {
    api_version: &'static str,
    namespace: &'a str,
    service: &'a str,
    revision: &'a str,
    /// Absent in a revision without tiers.
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'a str>,
    replicas: u32,
    reason: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<String>,
}

#[derive(Deserialize, Default)]
struct ReplyBody {
    #[serde(default)]
    endpoints: Option<Vec<String>>,
}

/// The JSON of a request.
pub(super) fn request_body(revision: &RevisionId, ask: &Ask) -> Vec<u8> {
    let body = RequestBody {
        api_version: "sluice.dev/v1",
        namespace: revision.namespace(),
        service: &ask.plan.service,
        revision: revision.revision_name(),
        tier: revision.tier(),
        replicas: ask.replicas,
        reason: &ask.reason,
        endpoints: ask.endpoints.iter().map(ToString::to_string).collect(),
    };
    serde_json::to_vec(&body).expect("text and numbers become JSON")
}

/// The endpoints of a reply, resolved; any other answer is the error.
pub(super) async fn read(reply: Reply) -> Result<Vec<SocketAddr>, Answer> {
    let Reply {
        status,
        retry_after,
        body,
    } = reply;
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        return Err(Answer::Retry {
            detail: format!("the platform answered {status}"),
            after: retry_after,
        });
    }
    if !status.is_success() {
        return Err(Answer::Refused(format!("the platform answered {status}")));
    }
    let Some(body) = body else {
        return Err(unusable("longer than 64 KiB"));
    };
    let mut found = Vec::new();
    for name in named(&body)? {
        let address = look_up(&name).await?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// The endpoints named in a body. Anything but a JSON object names none: a platform may reply "ok".
fn named(body: &[u8]) -> Result<Vec<String>, Answer> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Ok(Vec::new());
    }
    let reply: ReplyBody =
        serde_json::from_slice(body).map_err(|e| unusable(&format!("not as documented: {e}")))?;
    Ok(reply.endpoints.unwrap_or_default())
}

/// Resolves an endpoint; of a name with several addresses, the first one is used.
async fn look_up(name: &str) -> Result<SocketAddr, Answer> {
    let shown = &name[..name.floor_char_boundary(SHOWN)];
    if let Ok(address) = name.parse::<SocketAddr>() {
        return match address.port() {
            0 => Err(unusable(&format!("'{shown}' has no port"))),
            _ => Ok(address),
        };
    }
    let port = name.rsplit_once(':').and_then(|(host, port)| {
        let sound = !host.is_empty() && !host.contains([':', '/', '@', '[']);
        port.parse::<u16>().ok().filter(|&port| sound && port > 0)
    });
    if port.is_none() {
        return Err(unusable(&format!("'{shown}' is not host:port")));
    }
    let unknown = |why: String| Answer::Retry {
        detail: format!("the platform named an endpoint that cannot be resolved: {shown}: {why}"),
        after: None,
    };
    let mut found = tokio::net::lookup_host(name)
        .await
        .map_err(|e| unknown(e.to_string()))?;
    found.next().ok_or_else(|| unknown("no address".to_owned()))
}

fn unusable(why: &str) -> Answer {
    Answer::Refused(format!("the platform's reply cannot be used: {why}"))
}

/// `Retry-After` in seconds; a date, which would need a clock, is ignored.
pub(super) fn retry_after(value: &http::HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
