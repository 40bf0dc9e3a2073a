//! The key `state`: where the gateway keeps what outlives the process.

use std::path::PathBuf;

use sluice_config_shape::{Parsed, Record};

use super::names::resolve;

pub(super) const STATE: Record<Option<PathBuf>> = Record {
    name: "State",
    doc: "What outlives the process: what forecasts learned.",
    decode: |o| {
        Some(o.required(
            "directory",
            "A directory of this gateway alone, made if need be. Absent state: nothing is kept.",
            DIRECTORY,
        ))
    },
};

const DIRECTORY: Parsed<PathBuf> = Parsed {
    what: "a directory",
    parse: |text, at| Ok(resolve(text, at)),
};
