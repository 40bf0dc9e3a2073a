//! Tests that kill what the cluster is made of, or that need the gateway's own namespace to be as they leave it.

mod acknowledgements;
mod faults;
mod fused;
mod manifest;
mod packaging;
mod restart;
mod settings;
mod slots;
mod zero;
