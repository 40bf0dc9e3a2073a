//! The modules of the composition root: the only code that knows both planes.

#![allow(
    clippy::disallowed_methods,
    reason = "the composition root passes the real clocks in"
)]

mod admin_state;
mod applier;
mod build;
pub(crate) mod check;
mod cluster;
mod outcomes;
mod releases;
pub(crate) mod run;
mod shutdown;
mod signals;
mod startup_error;
mod upgrade;
