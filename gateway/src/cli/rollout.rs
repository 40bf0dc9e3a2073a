//! `sluice rollout status`: how far a rollout is, and how it is judged.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::release::{override_lines, rollout_lines};
use super::service_args::RolloutStatusArgs;
use super::{OutputFormat, block_on, client, fail, print};
use crate::observe::wall_clock;

/// Queries the gateway and prints the rollout. Exits 0, 1 when there is none, 2 when there is no response.
pub(super) fn run(args: &RolloutStatusArgs) -> ExitCode {
    let value = match block_on(client::revisions(&args.admin, Some(&args.service))) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => return fail(error),
        Err(error) => return fail(error),
    };
    let first = &value["revisions"][0];
    let (rollout, over) = (&first["rollout"], &first["override"]);
    let service = args.service.to_string();
    if args.format == OutputFormat::Json {
        let status = json!({"service": service, "rollout": rollout, "override": over});
        print(&format!("{status:#}\n"));
    }
    if client::is_empty(&value) {
        return nothing(&format!("there is no service '{service}'"));
    }
    if rollout.is_null() {
        return nothing(&format!("there is no rollout of '{service}'"));
    }
    if args.format == OutputFormat::Text {
        print(&render(&service, rollout, over));
    }
    ExitCode::SUCCESS
}

fn nothing(why: &str) -> ExitCode {
    eprintln!("sluice: {why}");
    ExitCode::from(1)
}

fn render(service: &str, rollout: &Value, over: &Value) -> String {
    let now = wall_clock();
    let lines = rollout_lines(rollout, now);
    let lines = lines.into_iter().chain(override_lines(service, over, now));
    let lines: Vec<String> = lines.collect();
    format!("{service}: {}\n", lines.join("\n  "))
}
