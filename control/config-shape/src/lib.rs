//! A declarative config decoder: YAML (and so JSON) text into checked values, with a diagnostic and a position for
//! every mistake, and the JSON Schema of what is accepted from the same description.
//!
//! ```text
//! text ── parse ──> NodeRef (a tree with positions) ── Shape::decode ──> value + Diagnostics
//!                                                      Shape::schema ──> JSON Schema
//! ```
//!
//! A configuration format is a set of [`Shape`]s: scalars with ranges and units, lists, tables, and [`Record`]s, which
//! are mappings with known keys. The crate knows the keys of no format.
//!
//! - Decoding does not stop at the first mistake, and does not report one mistake twice.
//! - Values keep their position ([`Located`]), so that checks across values can point at both.
//! - Variables (`${NAME}`) are expanded in scalars after parsing: a value never becomes YAML structure. Diagnostics show a
//!   variable by its name, never by its value.
//!
//! **Invariant:** no input panics, and none takes memory or time out of proportion to its size.
//!
//! Rejected: serde with `serde_yaml` stops at the first mistake, and its derived types forget positions; `schemars`
//! describes types rather than the decoder, so that schema and decoder can drift apart.
//!
//! ```
//! use sluice_config_shape::{Context, DurationRange, Integer, Record, Shape, Variables, parse};
//!
//! const LIMITS: Record<(u64, std::time::Duration)> = Record {
//!     name: "Limits",
//!     doc: "What a client may ask.",
//!     decode: |o| {
//!         let connections = o.or("connections", "At once.", Integer { min: 1, max: 100 }, 10);
//!         let timeout = o.required("timeout", "Of a request.", DurationRange::POSITIVE);
//!         Some((connections, timeout?))
//!     },
//! };
//!
//! let mut cx = Context::default();
//! let text = "connections: 200\ntimeuot: 5s\n";
//! let roots = parse("limits.yaml".as_ref(), text, &Variables::none(), &mut cx.diagnostics);
//! LIMITS.decode(&roots[0], &mut cx);
//! assert_eq!(
//!     cx.diagnostics.to_string(),
//!     "limits.yaml:1:14: error: '200' is not between 1 and 100\n  at connections\n\
//!      limits.yaml:2:1: error: unknown key 'timeuot'\n  at timeuot\n  hint: did you mean 'timeout'?"
//! );
//! ```

mod diagnostic;
mod expand;
mod flow;
mod object;
mod scalar;
mod shape;
mod tree;
mod units;
mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics, Location, Related, Severity};
pub use expand::{DeferredText, Lookup, Variables, escape_deferred};
pub use flow::{MAX_QUOTED_BYTES, flow_list};
pub use object::{Object, Record, describe, did_you_mean};
pub use scalar::{
    Choice, DurationRange, Flag, Integer, MAX_DURATION, Number, ParseError, Parsed, Percentage, Seconds,
    Size, Verbatim,
};
pub use shape::{Anything, Context, Definitions, List, OrNull, Shape, Table, WithLocation};
pub use tree::{Located, NodeRef, Scalar, quoted};
pub use units::parse_duration;
pub use yaml::parse;

#[cfg(test)]
mod tests;
