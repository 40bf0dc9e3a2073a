//! Knative's manifests: objects of `serving.knative.dev` in the place of services.
//!
//! ```text
//! document ── kind ──> Service ──────────────────────> ServiceDraft
//!                      Route, Configuration ── join ──> ServiceDraft
//! ```
//!
//! The draft of a manifest is that of a native service; only what its container runs as is open until the compiler has all
//! entries of `images`. A revision of a history is decoded from its template by the code that decodes the present one.

mod annotations;
mod canonical;
mod container;
mod history;
mod metadata;
mod object;
mod quantity;
mod template;

use std::path::Path;

use sluice_config_shape::{Context, NodeRef, quoted};

use super::service::ServiceDraft;
use super::{Env, did_you_mean};
use crate::release::Histories;

pub(crate) use container::ContainerDraft;
pub(crate) use history::{ManifestDraft, join};
pub(crate) use object::{ConfigurationDraft, RouteOfManifest};

/// Whether a document is an object of Kubernetes, of whatever kind.
pub(super) fn is_object(root: &NodeRef) -> bool {
    root.get("apiVersion").is_some() || root.get("kind").is_some()
}

/// The bound of lists within lists.
const MAX_NESTING: usize = 8;

/// Decodes the objects of one file.
pub(super) struct Decoder<'p> {
    path: &'p Path,
    env: Env<'p>,
    histories: &'p Histories,
    pub(super) services: Vec<ServiceDraft>,
    pub(super) configurations: Vec<ConfigurationDraft>,
}

impl<'p> Decoder<'p> {
    pub(super) fn new(path: &'p Path, env: Env<'p>, histories: &'p Histories) -> Self {
        Self {
            path,
            env,
            histories,
            services: Vec::new(),
            configurations: Vec::new(),
        }
    }

    /// Decodes an object, or the objects of a list.
    pub(super) fn decode(&mut self, root: &NodeRef, cx: &mut Context) {
        decode_nested(root, 0, self, cx);
    }
}

fn decode_nested(at: &NodeRef, depth: usize, out: &mut Decoder<'_>, cx: &mut Context) {
    let text = |key| {
        let value = at.get(key)?;
        Some((value.scalar()?.text().to_owned(), value))
    };
    let (Some((version, at_version)), Some((kind, at_kind))) = (text("apiVersion"), text("kind")) else {
        let missing = if text("kind").is_some() {
            "apiVersion"
        } else {
            "kind"
        };
        let hint = "a manifest has apiVersion: serving.knative.dev/v1 and kind: Service";
        cx.report(at.error(format!("the key '{missing}' is missing")).hint(hint));
        return;
    };
    let (group, number) = version.split_once('/').unwrap_or(("", &version));
    if kind == "List" || group == GROUP && kind.ends_with("List") {
        let items = at.get("items");
        if items.as_ref().is_none_or(|items| items.list_len().is_none()) {
            cx.report(at.error("a List has a list of items"));
        }
        if depth >= MAX_NESTING {
            cx.report(at.error(format!("lists are nested more than {MAX_NESTING} deep")));
            return;
        }
        for item in items.iter().flat_map(NodeRef::items) {
            decode_nested(&item, depth + 1, out, cx);
        }
        return;
    }
    if group != GROUP {
        if let Some(meant) = did_you_mean(group, [GROUP]).filter(|_| KINDS.contains(&kind.as_str())) {
            let diagnostic = at_version.error(format!("there is no API group {}", quoted(group)));
            cx.report(diagnostic.hint(format!("did you mean '{meant}/v1'?")));
            return;
        }
        not_used(&at_kind, &format!("{version} {kind}"), cx);
        return;
    }
    if !VERSIONS.contains(&number) {
        let diagnostic = at_version.error(format!("{} is no version of {GROUP}", quoted(number)));
        cx.report(diagnostic.hint(format!("one of {}", VERSIONS.join(", "))));
        return;
    }
    match kind.as_str() {
        "Service" => out.service(at, cx),
        "Route" | "Configuration" if owner(at).is_some() => {
            let owner = owner(at).unwrap_or_default();
            not_used(&at_kind, &format!("{kind} of the Service '{owner}'"), cx);
        }
        "Route" => out.route(at, cx),
        "Configuration" => out.configuration(at, cx),
        "Revision" | "DomainMapping" => not_used(&at_kind, &kind, cx),
        other => {
            let diagnostic = at_kind.error(format!("{} is no kind of {GROUP}", quoted(other)));
            cx.report(match did_you_mean(other, KINDS) {
                Some(meant) => diagnostic.hint(format!("did you mean '{meant}'?")),
                None => diagnostic.hint(format!("one of {}", KINDS.join(", "))),
            });
        }
    }
}

/// The Service that made a Route or a Configuration, as dumps have it.
fn owner(at: &NodeRef) -> Option<String> {
    let owners = at.get("metadata")?.get("ownerReferences")?;
    let text = |owner: &NodeRef, key| Some(owner.get(key)?.scalar()?.text().to_owned());
    let mut owners = owners.items();
    let service = owners.find(|owner| text(owner, "kind").as_deref() == Some("Service"))?;
    text(&service, "name")
}

const GROUP: &str = "serving.knative.dev";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const KINDS: [&str; 3] = ["Service", "Route", "Configuration"];

fn not_used(at_kind: &NodeRef, what: &str, cx: &mut Context) {
    let message = format!("the object is not used: {what}");
    let hint = "what runs here are Services, Routes and Configurations of serving.knative.dev";
    cx.report(at_kind.error(message).hint(hint).warning());
}
