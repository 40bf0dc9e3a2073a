//! Decisions become running instances.

mod backoff;
mod state;
pub mod supervisor;
#[cfg(test)]
mod testing;
