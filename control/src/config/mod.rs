//! The config format: every key that Sluice has, as shapes of [`sluice_config_shape`].
//!
//! ```text
//! text ── parse ──> NodeRef ── decode ──> FileDraft + Diagnostics ── index, compile ──> services + plans
//! ```
//!
//! Decoding does not stop at the first mistake: what could be read is checked further, and what could not be read is not
//! reported twice.
//!
//! **Invariant:** no input panics, and none takes memory or time out of proportion to its size.

mod admin;
mod autoscaling;
mod backend_tls;
mod cold;
mod gateway;
mod idna;
mod images;
mod limits;
mod manifest;
mod names;
mod no_wake;
mod process;
mod revision;
mod rollout;
mod schedules;
mod schema;
mod service;
mod shared;
mod state;
mod tiers;
mod tls;
mod traffic;

use std::path::Path;

pub(crate) use sluice_config_shape::{Context, Located, NodeRef, did_you_mean, quoted};
pub use sluice_config_shape::{Diagnostic, Diagnostics, Location, Related, Severity};
use sluice_config_shape::{Object, parse};

pub(crate) use autoscaling::{Globals, Scaling};
pub use gateway::Defaults;
pub(crate) use gateway::Draft;
pub(crate) use images::ImageRule;
pub(crate) use manifest::{ConfigurationDraft, ContainerDraft, join};
use process::variables;
#[cfg(feature = "cluster")]
pub(crate) use revision::DEFAULT_QUEUE;
pub(crate) use revision::RevisionDraft;
pub use schema::schema;
use service::SERVICE;
pub(crate) use service::ServiceDraft;
pub(crate) use shared::SharedSettings;
pub(crate) use tiers::{NeedName, TierDraft, as_backend};
pub(crate) use traffic::{Target, TargetRevision, Traffic};

use crate::release::Histories;
pub use crate::source::SourceFile;

/// The decoded services of one file, independent of other files.
#[derive(Debug)]
pub(crate) struct FileDraft {
    pub(crate) services: Vec<ServiceDraft>,
    /// Configurations of manifests, which Routes of any file make services.
    pub(crate) configurations: Vec<ConfigurationDraft>,
    /// The diagnostics so far, without those of top-level keys other than `services`.
    pub(crate) diagnostics: Diagnostics,
    /// The file has the key `services`, with any value, or manifests.
    pub(crate) has_services: bool,
    /// The file has other top-level keys, known or not, and takes part in [`top_level`].
    pub(crate) has_others: bool,
}

/// Decodes the services of one file. Mistakes are in the result; the compiler finds the rest. `env` returns the value of a
/// variable.
///
/// `histories` has the revisions that manifests made before.
pub(crate) fn decode_file(path: &Path, text: &str, env: Env<'_>, histories: &Histories) -> FileDraft {
    let mut cx = Context::default();
    let roots = parse(path, text, &variables(env), &mut cx.diagnostics);
    let roots = mappings(roots, &mut cx);
    let (manifests, roots): (Vec<NodeRef>, Vec<NodeRef>) = roots.into_iter().partition(manifest::is_object);
    let whole = roots.first().cloned().unwrap_or_else(NodeRef::empty);
    let mut object = Object::new(whole, &roots, &mut cx);
    let services = object.list("services", "", SERVICE);
    let has_services = object.has("services") || !manifests.is_empty();
    let has_others = object.has_other_than("services");
    let mut services = services.unwrap_or_default();
    let mut configurations = Vec::new();
    if !manifests.is_empty() {
        let mut decoder = manifest::Decoder::new(path, env, histories);
        for root in &manifests {
            decoder.decode(root, &mut cx);
        }
        services.append(&mut decoder.services);
        configurations = decoder.configurations;
    }
    FileDraft {
        services,
        configurations,
        diagnostics: cx.diagnostics,
        has_services,
        has_others,
    }
}

/// Decodes the settings for all services: the top-level keys of all files, merged, without `services`. `has_services`: a file
/// has that key, so that no unknown key is taken for a misspelling of it.
pub(crate) fn top_level(files: &[SourceFile], has_services: bool, env: Env<'_>) -> (Draft, Diagnostics) {
    let mut cx = Context::default();
    let mut roots = Vec::new();
    for file in files {
        // Mistakes in the file itself are reported with its services.
        let mut discarded = Context::default();
        let parsed = parse(
            &file.path,
            &file.text,
            &variables(env),
            &mut discarded.diagnostics,
        );
        let parsed = mappings(parsed, &mut discarded).into_iter();
        roots.extend(parsed.filter(|root| !manifest::is_object(root)));
    }
    let whole = roots.first().cloned().unwrap_or_else(NodeRef::empty);
    let mut object = Object::new(whole, &roots, &mut cx);
    object.remove("services");
    if has_services {
        object.present_elsewhere("services");
    }
    let draft = gateway::root(&mut object).expect("the root always makes a draft");
    object.close();
    (draft, cx.diagnostics)
}

/// Returns the value of a variable, to several threads at once.
pub type Env<'e> = &'e (dyn Fn(&str) -> Option<String> + Sync);

/// The roots that are mappings. Others are reported, but for empty documents.
fn mappings(roots: Vec<NodeRef>, cx: &mut Context) -> Vec<NodeRef> {
    let is_mapping = |root: &NodeRef| {
        let is_empty = root.scalar().is_some_and(|scalar| scalar.is_null());
        if !root.is_mapping() && !is_empty {
            let hint = "a configuration is keys and values, such as 'services:'";
            cx.mismatch(root, "a mapping", Some(hint.to_owned()));
        }
        root.is_mapping()
    };
    roots.into_iter().filter(is_mapping).collect()
}

/// Converts a count that a range has bounded.
fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
