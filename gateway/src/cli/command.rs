//! `sluice rollback`, `pause`, `resume` and `rollout …`: commands for one service, given to the admin API.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::release::override_lines;
use super::service_args::{ActionArgs, RollbackArgs, RolloutVerb};
use super::table::printable;
use super::token::token;
use super::{AdminError, OutputFormat, block_on, client, fail, print, rollout};
use crate::admin::{RolloutCommand, ServiceCommand};
use crate::observe::wall_clock;

/// Longer than the gateway tries.
const LIMIT: Duration = Duration::from_secs(40);

/// `sluice rollback`. Exits 0, 1 when there is nothing to act on, 2 when there is no gateway; so do all of these.
pub fn rollback(args: &RollbackArgs) -> ExitCode {
    give(&args.action, &ServiceCommand::Rollback(args.revision.clone()))
}

/// `sluice pause`
pub fn pause(args: &ActionArgs) -> ExitCode {
    give(args, &ServiceCommand::Pause)
}

/// `sluice resume`
pub fn resume(args: &ActionArgs) -> ExitCode {
    give(args, &ServiceCommand::Resume)
}

/// `sluice rollout …`
pub fn rollout(verb: &RolloutVerb) -> ExitCode {
    let (args, command) = match verb {
        RolloutVerb::Status(args) => return rollout::run(args),
        RolloutVerb::Pause(args) => (args, RolloutCommand::Pause),
        RolloutVerb::Resume(args) => (args, RolloutCommand::Resume),
        RolloutVerb::Promote(args) => (args, RolloutCommand::Promote),
        RolloutVerb::Abort(args) => (args, RolloutCommand::Abort),
        RolloutVerb::Retry(args) => (args, RolloutCommand::Retry),
    };
    give(args, &ServiceCommand::Rollout(command))
}

fn give(args: &ActionArgs, command: &ServiceCommand) -> ExitCode {
    let token = match token(args.token_file.as_deref()) {
        Ok(token) => token,
        Err(error) => return fail(error),
    };
    let target = command.target(&args.service);
    let answer = match block_on(client::post(&args.admin, &target, token.as_ref(), LIMIT)) {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    match answer.and_then(|(status, body)| judge(args, status, &body)) {
        Ok(Ok(done)) => {
            match args.format {
                OutputFormat::Text => print(&render(&done, wall_clock())),
                OutputFormat::Json => print(&format!("{done:#}\n")),
            }
            ExitCode::SUCCESS
        }
        Ok(Err(why)) => not_done(&why),
        // The request was sent: whether it was carried out is unknown.
        Err(error @ (AdminError::Slow { .. } | AdminError::Broken { .. })) => not_done(&error.to_string()),
        Err(error) => fail(error),
    }
}

fn not_done(why: &str) -> ExitCode {
    eprintln!("sluice: {}", printable(why));
    ExitCode::from(1)
}

/// Interprets the response: what was done, or why it was not.
fn judge(args: &ActionArgs, status: StatusCode, body: &Bytes) -> Result<Result<Value, String>, AdminError> {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    match (said["done"].as_bool(), said["error"].as_str()) {
        (Some(true), _) => Ok(Ok(said)),
        (Some(false), Some(error)) => Ok(Err(error.to_owned())),
        _ => Err(AdminError::Strange {
            url: args.admin.clone(),
            what: format!("the command's answer is {status}"),
        }),
    }
}

/// What was done, and what is overridden from now on.
fn render(done: &Value, now: std::time::SystemTime) -> String {
    let service = done["service"].as_str().unwrap_or("?");
    let message = done["message"].as_str().unwrap_or("done");
    let mut text = format!("{}: {}\n", printable(service), printable(message));
    for line in override_lines(service, &done["override"], now) {
        // A String takes everything.
        let _ = writeln!(text, "  {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use clap::Parser;
    use serde_json::json;

    use super::super::{Cli, Command};
    use super::*;

    fn judged(status: u16, body: &'static str) -> Result<Result<Value, String>, AdminError> {
        let line = ["sluice", "resume", "greeter"];
        let Command::Resume(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!()
        };
        let status = StatusCode::from_u16(status).unwrap();
        judge(&args.action, status, &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn answers_are_told_apart() {
        assert!(judged(200, r#"{"done": true, "message": "m"}"#).unwrap().is_ok());
        assert_eq!(
            judged(409, r#"{"done": false, "error": "the service is not paused"}"#).unwrap(),
            Err("the service is not paused".to_owned())
        );
        for body in ["nothing here", "{}", "[]"] {
            assert!(matches!(judged(404, body), Err(AdminError::Strange { .. })));
        }
    }

    #[test]
    fn a_rollback_says_how_to_make_it_permanent() {
        let done = json!({
            "done": true, "service": "default/greeter", "message": "greeter-v1 has the traffic",
            "override": {
                "pinned": "greeter-v1", "paused": false, "since": "1970-01-01T00:01:00Z",
                "files": {"latestRevision": "greeter-v2", "percent": 100.0},
                "permanent": "in the files, `revisionName: greeter-v1`",
            },
        });
        assert_eq!(
            render(&done, SystemTime::UNIX_EPOCH + Duration::from_secs(90)),
            "\
default/greeter: greeter-v1 has the traffic
  rolled back to greeter-v1 by command 30s ago; the files say: 100 % to the latest revision, greeter-v2
  To make it permanent: in the files, `revisionName: greeter-v1`. It ends when the files change the service.
"
        );
    }
}
