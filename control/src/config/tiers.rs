//! Tiers of a revision, and the revisions that it needs.

use std::collections::HashMap;

use sluice_config_shape::{List, Located, NodeRef, Object, ParseError, Parsed, Record, WithLocation};
use sluice_model::{Backend, MAX_TIERS, RevisionId, Tag, Tier};

use super::names::{BACKEND_URL, ENDPOINT};
use super::process::PROCESS;
use super::revision::{ACTIVATION, RevisionDraft, backend, concurrency};
use crate::plan::ScalerSpec;

/// A tier, as far as it could be decoded.
#[derive(Debug, Clone)]
pub(crate) struct TierDraft {
    pub(crate) name: Tag,
    /// `None` after a mistake.
    pub(crate) backend: Option<Backend>,
    pub(crate) scaler: Option<ScalerSpec>,
    pub(crate) container_concurrency: Option<u32>,
    /// As many instances are always there, and no more; 0: as many as the autoscaler wants.
    pub(crate) always: u32,
}

const KINDS: [&str; 4] = ["endpoints", "url", "process", "activation"];

pub(super) const TIER: Record<(Option<Located<Tag>>, TierDraft)> = Record {
    name: "Tier",
    doc: "Endpoints of one kind. Every other setting is the revision's.",
    decode: |o| {
        let name = o.required("name", "Unique in the revision.", WithLocation(TIER_NAME));
        let endpoints = o.optional(
            "endpoints",
            "Fixed addresses: host:port, [::1]:port or unix:/path.",
            List(WithLocation(ENDPOINT)),
        );
        let url = o.optional("url", "A backend behind a URL.", WithLocation(BACKEND_URL));
        let process = o.optional(
            "process",
            "A local process, started by the first request.",
            PROCESS,
        );
        let activation = o.optional(
            "activation",
            "What starts instances elsewhere, for the first request.",
            ACTIVATION,
        );
        let own = o.has("containerConcurrency");
        let limit = concurrency(o);
        let (backend, scaler) = backend(o, endpoints, url, process, activation);
        o.want_one_of(
            &KINDS,
            "the tier has no backend",
            "give it endpoints, a url, or a process",
        );
        let draft = TierDraft {
            name: name.as_ref().map_or_else(unnamed, |name| name.value.clone()),
            backend,
            scaler,
            container_concurrency: if own { Some(limit.unwrap_or(0)) } else { None },
            always: 0,
        };
        Some((name, draft))
    },
};

/// Stands in for a name that was reported.
fn unnamed() -> Tag {
    Tag::parse("unnamed").expect("a label")
}

const TIER_NAME: Parsed<Tag> = Parsed {
    what: "the name of a tier",
    parse: |text, _| {
        let hint = "a name is up to 63 lower-case letters, digits and '-'";
        Tag::parse(text).map_err(|e| ParseError::with_hint(e.to_string(), hint))
    },
};

type Decoded = Located<(Option<Located<Tag>>, TierDraft)>;

/// Checks the tiers with each other. Those without a limit of their own get the revision's.
pub(super) fn check_tiers(
    o: &mut Object<'_>,
    tiers: Vec<Decoded>,
    revision: &RevisionDraft,
) -> Vec<TierDraft> {
    let listed = o.value("tiers").and_then(|value| value.list_len());
    if let (Some(0 | 1), Some(key)) = (listed, o.key("tiers")) {
        let diagnostic = key.error("a revision with tiers has two at least");
        o.cx.report(diagnostic.hint("give endpoints, a url or a process to the revision itself"));
    }
    if let Some(one_more) = tiers.get(MAX_TIERS) {
        let diagnostic = one_more
            .node
            .whole()
            .error(format!("a revision has {MAX_TIERS} tiers at most"));
        o.cx.report(diagnostic.hint("leave some out"));
    }
    let mut first: HashMap<Tag, NodeRef> = HashMap::new();
    for name in tiers.iter().filter_map(|tier| tier.value.0.as_ref()) {
        if let Some(earlier) = first.get(&name.value) {
            let diagnostic = name
                .node
                .error(format!("the tier '{}' is listed twice", name.value));
            let diagnostic = diagnostic.hint("rename one of them");
            o.cx.report(diagnostic.related(earlier.location(), "it is listed here first"));
        } else {
            first.insert(name.value.clone(), name.node.clone());
        }
    }
    for tier in tiers.iter().skip(1) {
        let (name, draft) = &tier.value;
        let always = draft
            .backend
            .as_ref()
            .is_some_and(|backend| !backend.is_started());
        if let (Some(name), true, None) = (name, always, &revision.readiness) {
            let message = format!(
                "the tier '{}' is always there: the ones before it serve nothing but what it answers with 429",
                name.value
            );
            let hint = "list what is always there first, or give the revision a readinessProbe";
            o.cx.report(name.node.error(message).hint(hint).warning());
        }
    }
    let tiers = tiers.into_iter().map(|tier| {
        let draft = tier.value.1;
        let limit = draft.container_concurrency.or(revision.container_concurrency);
        TierDraft {
            container_concurrency: limit.filter(|limit| *limit > 0),
            ..draft
        }
    });
    tiers.collect()
}

/// The tiers as the kind of a revision's endpoints; those with mistakes are left out.
pub(crate) fn as_backend(tiers: &[TierDraft]) -> Backend {
    let tiers = tiers.iter().filter_map(|tier| {
        Some(Tier {
            name: tier.name.clone(),
            backend: tier.backend.clone()?,
            container_concurrency: tier.container_concurrency,
        })
    });
    Backend::Tiers(tiers.collect())
}

/// The name of something that is needed: of a revision, or of a service, which stands for its revisions with a share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NeedName {
    /// `None` is the namespace of the service that needs it.
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

pub(super) const NEED: Parsed<NeedName> = Parsed {
    what: "the name of a revision or service",
    parse: |text, _| {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let hint = "write namespace/name, each up to 63 lower-case letters, digits and '-'";
        RevisionId::parse(namespace.unwrap_or("default"), name)
            .map_err(|e| ParseError::with_hint(e.to_string(), hint))?;
        Ok(NeedName {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    },
};
