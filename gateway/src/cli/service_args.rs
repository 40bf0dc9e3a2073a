//! Arguments of the commands for revisions, rollouts and single services.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sluice_model::ServiceId;

use super::OutputFormat;
use super::client::{self, AdminUrl};
use crate::admin::parse_service;

/// `sluice revisions`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice revisions
  sluice revisions greeter
  sluice revisions shop/greeter --format json

AGE and CHANGES are known of revisions that were made from the templates of a manifest. Exits 1 when there is no such
service.")]
pub struct RevisionsArgs {
    /// The service, as NAME or NAMESPACE/NAME [default: all]
    #[arg(value_name = "SERVICE", value_parser = parse_service)]
    pub service: Option<ServiceId>,
    /// The admin address of the running gateway
    #[arg(long, value_name = "URL", default_value = client::DEFAULT_ADMIN)]
    pub admin: AdminUrl,
    /// How the table is printed
    #[arg(long, value_enum, default_value = "text")]
    pub format: OutputFormat,
}

/// The service that a command is for, and the gateway that it is given to.
#[derive(Debug, Args)]
pub struct ActionArgs {
    /// The service, as NAME or NAMESPACE/NAME
    #[arg(value_name = "SERVICE", value_parser = parse_service)]
    pub service: ServiceId,
    /// The admin address of the running gateway
    #[arg(long, value_name = "URL", default_value = client::DEFAULT_ADMIN)]
    pub admin: AdminUrl,
    /// A file with the admin token; by default it is taken from $SLUICE_TOKEN
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How the outcome is printed
    #[arg(long, value_enum, default_value = "text")]
    pub format: OutputFormat,
}

/// `sluice rollback`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice rollback greeter                 back to the revision before
  sluice rollback greeter greeter-v1      to this one
  sluice rollback shop/greeter --format json

The revision gets the traffic of all latestRevision targets at once, and an open rollout is aborted. It ends when the files
change the service. `sluice status` shows it, and what to write into the files to make it permanent. Exits 1 when there is
nothing to roll back to.")]
pub struct RollbackArgs {
    /// The service and the gateway.
    #[command(flatten)]
    pub action: ActionArgs,
    /// The revision that gets the traffic [default: the one before]
    #[arg(value_name = "REVISION")]
    pub revision: Option<String>,
}

/// `sluice pause`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice pause greeter
  sluice pause shop/greeter --admin unix:/run/sluice/admin.sock --token-file /etc/sluice/token

Requests to all revisions of the service wait in its queues, within their bounds, and none longer than queue.timeout; those in
flight run to their end, and instances stay. It ends with `sluice resume`, or when the files change the service. Exits 1 when
the service is paused already.")]
pub struct PauseArgs {
    /// The service and the gateway.
    #[command(flatten)]
    pub action: ActionArgs,
}

/// `sluice resume`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice resume greeter

Requests that waited are sent on in the order in which they came. Exits 1 when the service is not paused.")]
pub struct ResumeArgs {
    /// The service and the gateway.
    #[command(flatten)]
    pub action: ActionArgs,
}

/// `sluice rollout`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice rollout status greeter           how far it is, and why
  sluice rollout pause greeter            leave the shares as they are
  sluice rollout resume greeter
  sluice rollout promote greeter          all of the share to the new revision, at once
  sluice rollout abort greeter            all of the share to the old revision, at once
  sluice rollout retry greeter            begin a failed or aborted rollout once more

Exits 1 when there is nothing to act on.")]
pub struct RolloutArgs {
    /// What to do with the rollout.
    #[command(subcommand)]
    pub verb: RolloutVerb,
}

/// What to do with a rollout.
#[derive(Debug, Subcommand)]
pub enum RolloutVerb {
    /// Show how far a rollout is, how it is judged, and what it waits for
    Status(RolloutStatusArgs),
    /// Leave the shares as they are; a revision that is judged worse is still rolled back
    Pause(ActionArgs),
    /// Let a paused rollout go on
    Resume(ActionArgs),
    /// Give the new revision all of the share at once, whatever gate and judgement say
    Promote(ActionArgs),
    /// Give the old revision all of the share at once
    Abort(ActionArgs),
    /// Begin a failed or aborted rollout once more, from the first step and without the old evidence
    Retry(ActionArgs),
}

/// `sluice rollout status`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice rollout status greeter
  sluice rollout status greeter --format json

Exits 1 when there is no rollout.")]
pub struct RolloutStatusArgs {
    /// The service, as NAME or NAMESPACE/NAME
    #[arg(value_name = "SERVICE", value_parser = parse_service)]
    pub service: ServiceId,
    /// The admin address of the running gateway
    #[arg(long, value_name = "URL", default_value = client::DEFAULT_ADMIN)]
    pub admin: AdminUrl,
    /// How the rollout is printed
    #[arg(long, value_enum, default_value = "text")]
    pub format: OutputFormat,
}
