//! The config format: text into a draft that knows where everything stands, and every mistake.
//!
//! ```text
//! text ── yaml ──> Tree ── decode ──> Draft + Diagnostics ── compile ──> Snapshot + Plan
//! ```
//!
//! Nothing stops at the first mistake: what could be read is checked further, and what could not is
//! not complained about twice. The only module that knows YAML.
//!
//! **Invariant:** no input makes it panic, and none makes it use memory or time out of proportion.

mod autoscaling;
mod backend_tls;
mod decode;
mod diagnostic;
mod expand;
mod gateway;
mod limits;
mod names;
mod revision;
mod scalar;
mod schema;
mod service;
mod tls;
mod traffic;
mod tree;
mod units;
mod written;
mod yaml;

use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use autoscaling::{Globals, Scaling};
pub(crate) use decode::{Context, did_you_mean};
pub use diagnostic::{Diagnostic, Diagnostics, Place, Related, Severity};
pub(crate) use gateway::Draft;
pub(crate) use revision::RevisionDraft;
pub use schema::schema;

pub use crate::source::SourceFile;
pub(crate) use service::ServiceDraft;
pub(crate) use traffic::{Target, Traffic, Which};
pub(crate) use tree::{At, Spot};

use decode::Object;
use tree::{Content, Node, Segment, Tree};

/// All files together. Each is bounded by itself as well.
const MAX_TOTAL_BYTES: usize = 256 << 20;

/// What files say, as far as they could be read, with everything that is wrong so far.
/// [`compile`](crate::compile::compile) checks it further.
#[derive(Debug)]
pub struct Parsed {
    pub(crate) draft: Draft,
    pub(crate) diagnostics: Diagnostics,
    /// In the order given, to sort diagnostics by.
    pub(crate) files: Vec<PathBuf>,
}

impl Parsed {
    /// What is wrong so far.
    pub fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }
}

/// Reads all files as one configuration. Never fails: mistakes are in the result, and compiling it
/// finds the rest. `env` gives the value of a variable.
pub fn parse(files: &[SourceFile], env: &dyn Fn(&str) -> Option<String>) -> Parsed {
    let mut cx = Context::default();
    let mut roots = Vec::new();
    let mut bytes = 0;
    for file in files {
        bytes += file.text.len();
        if bytes > MAX_TOTAL_BYTES {
            let message = format!("all files together are larger than {} MiB", MAX_TOTAL_BYTES >> 20);
            cx.report(Diagnostic::about_file(&file.path, message));
            break;
        }
        let tree = yaml::parse(file, env, &mut cx.diagnostics);
        for &root in &tree.roots {
            let root = Spot::new(&tree, root);
            match root.content() {
                Content::Mapping(_) => roots.push(root),
                // An empty document says nothing.
                Content::Scalar(scalar) if scalar.is_null() => {}
                _ => {
                    let hint = "a configuration is keys and values, such as 'services:'";
                    cx.mismatch(&root, "a mapping", Some(hint.to_owned()));
                }
            }
        }
    }
    let whole = roots.first().cloned().unwrap_or_else(nothing);
    let mut object = Object::new(whole, &roots, &mut cx);
    let draft = gateway::root(&mut object).expect("the root always makes a draft");
    object.close();
    Parsed {
        draft,
        diagnostics: cx.diagnostics,
        files: files.iter().map(|f| f.path.clone()).collect(),
    }
}

/// An empty mapping that stands nowhere.
fn nothing() -> Spot {
    let tree = Tree {
        file: PathBuf::new(),
        directory: PathBuf::new(),
        nodes: vec![Node {
            line: 0,
            column: 0,
            parent: 0,
            segment: Segment::Root,
            content: Content::Mapping(Vec::new()),
        }],
        roots: vec![0],
    };
    Spot::new(&Arc::new(tree), 0)
}

/// For counts that a range already bounded.
fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
