//! Leases of slots between processes, outside of the throttlers: how messages are encoded.

mod wire;

pub(crate) use wire::{Id, Said};
