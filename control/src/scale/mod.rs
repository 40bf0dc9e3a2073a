//! Decisions become running instances.

pub mod supervisor;
