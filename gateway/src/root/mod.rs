//! The modules of the composition root: the only code that knows both planes.

mod build;
pub(crate) mod check;
mod failure;
mod observed;
mod parties;
pub(crate) mod run;
mod signals;
mod upgrade;
mod way_out;
