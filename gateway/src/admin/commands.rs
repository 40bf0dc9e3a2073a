//! Commands of operators for one service: `POST /api/rollback`, `/api/pause`, `/api/resume` and `/api/rollout/…`, each with
//! `?service=NAMESPACE/NAME`. Who may give them is decided by [`access`](super::access).

use std::time::Duration;

use http::header::{ALLOW, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use sluice_model::ServiceId;
use thiserror::Error;

use super::AdminState;
use super::answers::{AdminBody, as_json};
use super::query::{decode, encode};

/// The namespace of a service that is named without one.
const NAMESPACE: &str = "default";

/// How long a command may take. It waits while a change of files is being compiled, and while the older process of an
/// upgrade has the state directory.
const LIMIT: Duration = Duration::from_secs(30);

/// A command for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceCommand {
    /// Gives another revision the traffic of `latestRevision`; `None`: the one before.
    Rollback(Option<String>),
    /// Holds the requests to the service.
    Pause,
    /// Lets them go on.
    Resume,
    /// A command for the rollout of the service.
    Rollout(RolloutCommand),
}

/// A command for a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutCommand {
    /// Stops the clock of the rollout; the share stays.
    Pause,
    /// Lets the rollout go on.
    Resume,
    /// Gives the newer revision all of the share.
    Promote,
    /// Gives the older revision all of the share.
    Abort,
    /// Begins a failed or aborted rollout once more.
    Retry,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// There is no such service.
    #[error("{0}")]
    NoService(String),
    /// There is nothing to act on, or the command names what is not there.
    #[error("{0}")]
    Refused(String),
}

impl RolloutCommand {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pause, Self::Resume, Self::Promote, Self::Abort, Self::Retry];

    /// The name on the command line and in the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
            Self::Retry => "retry",
        }
    }
}

impl ServiceCommand {
    /// The request target that `parse` reads back.
    pub fn target(&self, service: &ServiceId) -> String {
        let mut target = match self {
            Self::Rollback(_) => "/api/rollback".to_owned(),
            Self::Pause => "/api/pause".to_owned(),
            Self::Resume => "/api/resume".to_owned(),
            Self::Rollout(command) => format!("{ROLLOUT}{}", command.as_str()),
        };
        target.push_str("?service=");
        encode(&mut target, &service.to_string());
        if let Self::Rollback(Some(revision)) = self {
            target.push_str("&revision=");
            encode(&mut target, revision);
        }
        target
    }

    /// The command of a path; that of a rollback has no revision yet.
    fn of_path(path: &str) -> Option<Self> {
        match path {
            "/api/rollback" => Some(Self::Rollback(None)),
            "/api/pause" => Some(Self::Pause),
            "/api/resume" => Some(Self::Resume),
            _ => {
                let name = path.strip_prefix(ROLLOUT)?;
                let mut all = RolloutCommand::ALL.into_iter();
                all.find(|command| command.as_str() == name).map(Self::Rollout)
            }
        }
    }
}

const ROLLOUT: &str = "/api/rollout/";

/// Whether a path is a command's.
pub(super) fn is_command(path: &str) -> bool {
    ServiceCommand::of_path(path).is_some()
}

/// A service as operators name it: `name` or `namespace/name`.
///
/// # Errors
/// What to write, in one line.
pub fn parse_service(text: &str) -> Result<ServiceId, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((NAMESPACE, text));
    ServiceId::parse(namespace, name)
        .map_err(|error| format!("{error}; write a service as NAME or NAMESPACE/NAME"))
}

/// The command and the service of a request.
///
/// # Errors
/// What to write, in one line.
fn parse(mut command: ServiceCommand, query: &str) -> Result<(ServiceId, ServiceCommand), String> {
    let mut service = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).map_err(|error| error.to_string())?;
        match (key, &mut command) {
            ("service", _) if service.is_none() => service = Some(parse_service(&value)?),
            ("revision", ServiceCommand::Rollback(revision)) if revision.is_none() => {
                *revision = Some(value).filter(|value| !value.is_empty());
            }
            ("service" | "revision", _) => {
                return Err(format!("`{key}` does not belong here, or is given twice"));
            }
            _ => {
                return Err(format!(
                    "unknown parameter `{key}`: service and, for a rollback, revision are known"
                ));
            }
        }
    }
    let service = service.ok_or("the parameter `service` is missing: ?service=default/greeter")?;
    Ok((service, command))
}

/// The response to a command: `{done: true, service, message, rollout, override}` with 200; `{done: false, error}` with 404
/// for a service that is not there, 409 where there is nothing to act on, 400 for an invalid request. `None` for a path that
/// is no command's.
pub(super) async fn answer<B>(state: &dyn AdminState, request: &Request<B>) -> Option<Response<AdminBody>> {
    let command = ServiceCommand::of_path(request.uri().path())?;
    let refused = |status, error: &str| as_json(status, &not_done(error));
    if request.method() != Method::POST {
        let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(answer);
    }
    let (service, command) = match parse(command, request.uri().query().unwrap_or_default()) {
        Ok(parsed) => parsed,
        Err(error) => return Some(refused(StatusCode::BAD_REQUEST, &error)),
    };
    let outcome = tokio::time::timeout(LIMIT, state.command(&service, command.clone()));
    Some(match outcome.await {
        Ok(Ok(message)) => {
            tracing::info!(%service, ?command, "by command: {message}");
            let mut done = json!({"done": true, "service": service.to_string(), "message": message});
            let release = state.release(&service).unwrap_or_default();
            done["rollout"] = release.rollout;
            done["override"] = release.overridden;
            as_json(StatusCode::OK, &done)
        }
        Ok(Err(error @ CommandError::NoService(_))) => refused(StatusCode::NOT_FOUND, &error.to_string()),
        Ok(Err(error @ CommandError::Refused(_))) => refused(StatusCode::CONFLICT, &error.to_string()),
        Err(_) => {
            let late = "not carried out yet: the gateway is busy with another change; see `sluice status`";
            refused(StatusCode::SERVICE_UNAVAILABLE, late)
        }
    })
}

/// The body of a command that was not carried out.
pub(super) fn not_done(error: &str) -> Value {
    json!({"done": false, "error": error})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str, query: &str) -> Result<(ServiceId, ServiceCommand), String> {
        parse(ServiceCommand::of_path(path).unwrap(), query)
    }

    #[test]
    fn targets_are_read_back() {
        let service = parse_service("shop/greeter").unwrap();
        let rollouts = RolloutCommand::ALL.map(ServiceCommand::Rollout);
        let mut all = vec![
            ServiceCommand::Rollback(None),
            ServiceCommand::Rollback(Some("greeter-v1".to_owned())),
            ServiceCommand::Rollback(Some("a&b=c %".to_owned())),
            ServiceCommand::Pause,
            ServiceCommand::Resume,
        ];
        all.extend(rollouts);
        for command in all {
            let target = command.target(&service);
            let (path, query) = target.split_once('?').unwrap();
            assert!(is_command(path));
            assert_eq!(parsed(path, query), Ok((service.clone(), command)), "{target}");
        }
        for path in [
            "/api/upgrade",
            "/api/rollout/",
            "/api/rollout/status",
            "/api/rollback/",
            "/",
        ] {
            assert!(!is_command(path), "{path}");
        }
    }

    #[test]
    fn a_service_without_a_namespace_is_in_default() {
        assert_eq!(parse_service("greeter").unwrap().to_string(), "default/greeter");
        assert_eq!(parse_service("shop/greeter").unwrap().to_string(), "shop/greeter");
        for wrong in ["", "/", "a/b/c", "shop/", "a b", "<img src=x onerror=alert(1)>"] {
            let error = parse_service(wrong).unwrap_err();
            assert!(error.contains("NAMESPACE/NAME"), "{error}");
        }
    }

    #[test]
    fn what_is_not_understood_says_what_to_write() {
        for (path, query, want) in [
            ("/api/pause", "", "`service` is missing"),
            ("/api/pause", "service=a&service=b", "twice"),
            ("/api/pause", "service=a&revision=b", "does not belong"),
            ("/api/rollback", "service=a&revision=b&revision=c", "twice"),
            ("/api/rollback", "servise=a", "unknown parameter `servise`"),
            ("/api/rollback", "service=%zz", "percent"),
        ] {
            let error = parsed(path, query).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
