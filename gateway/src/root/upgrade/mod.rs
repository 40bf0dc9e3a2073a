//! The upgrade in place: the binary now on disk takes over from the running process.

mod scaling;
mod wire;
