//! The config format: text into a draft that knows where everything stands, and every mistake.
//!
//! ```text
//! text ── yaml ──> Tree ── decode ──> FileDraft + Diagnostics ── index, compile ──> services + plans
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

use std::path::{Path, PathBuf};
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
use service::SERVICE;
use tree::{Content, Node, Segment, Tree};

/// What one file says, whatever other files say.
#[derive(Debug)]
pub(crate) struct FileDraft {
    pub(crate) services: Vec<ServiceDraft>,
    /// What is wrong so far; that of top-level keys other than `services` is not among it.
    pub(crate) diagnostics: Diagnostics,
    /// It has the key `services`, whatever is under it.
    pub(crate) has_services: bool,
    /// It has other top-level keys, known or not: it takes part in [`ground`].
    pub(crate) has_others: bool,
}

/// Reads one file. Never fails: mistakes are in the result, and compiling it finds the rest. `env`
/// gives the value of a variable.
pub(crate) fn decode_file(path: &Path, text: &str, env: Env<'_>) -> FileDraft {
    let mut cx = Context::default();
    let tree = yaml::parse(path, text, env, &mut cx.diagnostics);
    let roots = mappings(&tree, &mut cx);
    let whole = roots.first().cloned().unwrap_or_else(nothing);
    let mut object = Object::new(whole, &roots, &mut cx);
    let services = object.list("services", "", SERVICE);
    let has_services = object.has("services");
    let has_others = object.has_other_than("services");
    FileDraft {
        services: services.unwrap_or_default(),
        diagnostics: cx.diagnostics,
        has_services,
        has_others,
    }
}

/// What holds for all services: the top-level keys of the files that have some, read as one
/// configuration. Services are not among it. `has_services`: some file has that key, so that no other
/// one was meant to be it.
pub(crate) fn ground(files: &[SourceFile], has_services: bool, env: Env<'_>) -> (Draft, Diagnostics) {
    let mut cx = Context::default();
    let mut roots = Vec::new();
    for file in files {
        // What is wrong with the file itself was told with its services.
        let mut told = Context::default();
        let tree = yaml::parse(&file.path, &file.text, env, &mut told.diagnostics);
        roots.extend(mappings(&tree, &mut told));
    }
    let whole = roots.first().cloned().unwrap_or_else(nothing);
    let mut object = Object::new(whole, &roots, &mut cx);
    object.forget("services");
    if has_services {
        object.has_elsewhere("services");
    }
    let draft = gateway::root(&mut object).expect("the root always makes a draft");
    object.close();
    (draft, cx.diagnostics)
}

/// Gives the value of a variable, to several threads at once.
pub type Env<'e> = &'e (dyn Fn(&str) -> Option<String> + Sync);

/// The roots of a file's documents.
fn mappings(tree: &Arc<Tree>, cx: &mut Context) -> Vec<Spot> {
    let mut roots = Vec::new();
    for &root in &tree.roots {
        let root = Spot::new(tree, root);
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
    roots
}

/// An empty mapping that stands nowhere.
fn nothing() -> Spot {
    let tree = Tree {
        file: PathBuf::new(),
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
