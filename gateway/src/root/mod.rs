//! The modules of the composition root: the only code that knows both planes.

pub(crate) mod check;
mod observed;
mod parties;
pub(crate) mod run;
mod signals;
mod upgrade;
mod way_out;
