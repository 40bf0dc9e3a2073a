//! `sluice upgrade`: asks the admin API for an upgrade in place.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::token::token;
use super::{AdminError, UpgradeArgs, block_on, client, fail, print};
use crate::admin::UPGRADE_PATH;

/// Time for the steps after the new process is ready (the hand-over), or for ending a process that failed.
const AFTERWARDS: Duration = Duration::from_secs(20);

/// Requests the upgrade and prints the result. Exits 0, 1 when the old process goes on, 2 when
/// there is no gateway.
pub fn run(args: &UpgradeArgs) -> ExitCode {
    let target = format!("{UPGRADE_PATH}?timeout={}ms", args.timeout.as_millis());
    let token = match token(args.token_file.as_deref()) {
        Ok(token) => token,
        Err(error) => return fail(error),
    };
    let limit = args.timeout + AFTERWARDS;
    let answer = match block_on(client::post(&args.admin, &target, token.as_ref(), limit)) {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    match answer.and_then(|(status, body)| judge(args, status, &body)) {
        Ok(Ok(text)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Ok(Err(why)) => not_upgraded(&why),
        // The request was sent, so an upgrade may have begun; its success is unknown.
        Err(error @ (AdminError::Slow { .. } | AdminError::Broken { .. })) => {
            not_upgraded(&error.to_string())
        }
        Err(error) => fail(error),
    }
}

fn not_upgraded(why: &str) -> ExitCode {
    eprintln!("sluice: not upgraded: {why}");
    ExitCode::from(1)
}

/// Interprets the response: the text of a success, or why the upgrade failed.
fn judge(args: &UpgradeArgs, status: StatusCode, body: &Bytes) -> Result<Result<String, String>, AdminError> {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    match (said["upgraded"].as_bool(), said["error"].as_str()) {
        (Some(true), _) => Ok(Ok(success(&said))),
        (Some(false), Some(error)) => Ok(Err(error.to_owned())),
        _ => Err(AdminError::Strange {
            url: args.admin.clone(),
            what: format!("POST {UPGRADE_PATH} is {status}"),
        }),
    }
}

fn success(said: &Value) -> String {
    let mut text = format!("upgraded: process {} serves", said["pid"]);
    if let Some(version) = said["version"].as_str().filter(|version| !version.is_empty()) {
        let _ = write!(text, " (version {version})");
    }
    let _ = writeln!(
        text,
        "; process {} finishes what it has and exits",
        said["previousPid"]
    );
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn judged(status: u16, body: &'static str) -> Result<Result<String, String>, AdminError> {
        let Command::Upgrade(args) = Cli::try_parse_from(["sluice", "upgrade"]).unwrap().command else {
            panic!()
        };
        judge(
            &args,
            StatusCode::from_u16(status).unwrap(),
            &Bytes::from_static(body.as_bytes()),
        )
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(
            judged(
                200,
                r#"{"upgraded": true, "pid": 7, "version": "1.2.3", "previousPid": 6}"#
            )
            .unwrap(),
            Ok(
                "upgraded: process 7 serves (version 1.2.3); process 6 finishes what it has and exits\n"
                    .to_owned()
            )
        );
        assert_eq!(
            judged(500, r#"{"upgraded": false, "error": "it exited"}"#).unwrap(),
            Err("it exited".to_owned())
        );
        // A gateway that has no such path, or no gateway at all.
        for body in ["nothing here", "{}", "[]"] {
            assert!(matches!(judged(404, body), Err(AdminError::Strange { .. })));
        }
    }
}
