//! Revisions of templates: their names, and those that a history kept.

use std::path::Path;

use sluice_config_shape::{Context, Located, NodeRef, parse};
use sluice_model::RevisionId;

use super::canonical::{canonical, is_same_revision};
use super::metadata::Unused;
use super::template;
use crate::config::Env;
use crate::config::process::variables;
use crate::config::revision::RevisionDraft;
use crate::release::{KeptRevision, ServiceHistory};

/// What is known of a service that comes from manifests.
#[derive(Debug, Clone)]
pub(crate) struct ManifestDraft {
    /// The revision of the present template. Its times are for the one who publishes it.
    pub(crate) made: KeptRevision,
}

/// What templates of a history are decoded by.
#[derive(Clone, Copy)]
pub(super) struct Past<'p> {
    pub(super) path: &'p Path,
    pub(super) env: Env<'p>,
}

/// The present template of a configuration, decoded; what its revision is called is open.
#[derive(Debug, Clone)]
pub(crate) struct PresentDraft {
    pub(crate) configuration: Located<String>,
    revision: RevisionDraft,
    /// The template's own name.
    pub(crate) given: Option<Located<String>>,
    /// The name that the status of a dump has for it.
    of_status: Option<Located<String>>,
    /// As canonical JSON.
    template: serde_json::Value,
    at: NodeRef,
}

/// Decodes the present template of a configuration. `None` after a mistake.
pub(super) fn present(
    at: &NodeRef,
    configuration: &Located<String>,
    status: Option<&NodeRef>,
    unused: &mut Unused,
    cx: &mut Context,
) -> Option<PresentDraft> {
    let template = template::decode(at, &configuration.value, cx)?;
    unused.append(template.unused);
    let given = template.metadata.name.clone();
    if template.metadata.has_name && given.is_none() {
        return None;
    }
    if let Some(name) = &given
        && !is_own(&name.value, &configuration.value)
    {
        let message = format!("'{}' does not start with '{}-'", name.value, configuration.value);
        let hint = "a revision's name starts with the name of what makes it";
        cx.report(name.node.error(message).hint(hint));
    }
    Some(PresentDraft {
        given,
        of_status: status.and_then(|status| of_status(status, &configuration.value)),
        revision: template.revision,
        template: canonical(at),
        at: at.whole(),
        configuration: configuration.clone(),
    })
}

/// The revisions of a history. Those that cannot be decoded any more are told and left out.
pub(super) fn kept(
    history: Option<&ServiceHistory>,
    configuration: &Located<String>,
    past: Past<'_>,
    cx: &mut Context,
) -> Vec<RevisionDraft> {
    let kept = history.map(|history| &*history.revisions).unwrap_or_default();
    kept.iter()
        .filter_map(|one| decode_kept(one, configuration, past, cx))
        .collect()
}

/// The revisions of a service: those that its history kept, and that of the present template in the end. `None` after a
/// mistake.
pub(crate) fn join(
    present: PresentDraft,
    mut kept: Vec<RevisionDraft>,
    history: Option<&ServiceHistory>,
    cx: &mut Context,
) -> Option<(Vec<RevisionDraft>, ManifestDraft)> {
    let known = history.map(|history| &*history.revisions).unwrap_or_default();
    let (name, made) = name(&present, known, cx)?;
    let mut revision = present.revision;
    let is_settled = history.is_some_and(|history| history.settled.as_deref() == Some(&made.name));
    if made.created > 0 && is_settled {
        start_none(&mut revision);
    }
    kept.retain(|one| one.name.as_ref().is_none_or(|one| one.value != name.value));
    revision.name = Some(name);
    kept.push(revision);
    Some((kept, ManifestDraft { made }))
}

fn is_own(name: &str, configuration: &str) -> bool {
    name.strip_prefix(configuration)
        .is_some_and(|rest| rest.starts_with('-'))
}

/// The initial scale is that of a new revision, to see that it starts.
fn start_none(revision: &mut RevisionDraft) {
    if let Some(scaling) = &mut revision.scaling {
        scaling.value.initial_scale = Some(0);
    }
}

/// The name of the present template's revision, and what a history keeps of it.
fn name(
    present: &PresentDraft,
    kept: &[KeptRevision],
    cx: &mut Context,
) -> Option<(Located<String>, KeptRevision)> {
    let template = &present.template;
    let generation = kept
        .iter()
        .map(|one| one.generation)
        .max()
        .unwrap_or(0)
        .saturating_add(1);
    let new = |name: &str, generation| KeptRevision {
        name: name.to_owned(),
        generation,
        template: template.clone(),
        created: 0,
        last_active: 0,
        active: false,
    };
    let find = |name: &str| kept.iter().find(|one| one.name == name);
    if let Some(name) = &present.given {
        let Some(known) = find(&name.value) else {
            return Some((name.clone(), new(&name.value, generation)));
        };
        if !is_same_revision(&known.template, template) {
            let message = format!(
                "the template of revision '{}' has changed, and its name has not",
                name.value
            );
            let hint = "a revision stays what it is: give the template another name, or none";
            cx.report(name.node.error(message).hint(hint));
            return None;
        }
        return Some((name.clone(), known.clone()));
    }
    let at_template = |value: &str| Located {
        value: value.to_owned(),
        node: present.at.clone(),
    };
    if let Some(last) = kept.last().filter(|last| last.template == *template) {
        return Some((at_template(&last.name), last.clone()));
    }
    if let Some(name) = &present.of_status {
        match find(&name.value) {
            None => {
                let digits = name
                    .value
                    .rsplit('-')
                    .next()
                    .and_then(|digits| digits.parse().ok());
                return Some((
                    name.clone(),
                    new(&name.value, generation.max(digits.unwrap_or(0))),
                ));
            }
            Some(known) if known.template == *template => return Some((name.clone(), known.clone())),
            // Changed since the dump was made.
            Some(_) => {}
        }
    }
    let configuration = &present.configuration;
    // As many numbers more as there are names that may have taken one.
    let last = generation.saturating_add(u32::try_from(kept.len()).unwrap_or(u32::MAX));
    let mut numbered =
        (generation..=last).map(|number| (number, format!("{}-{number:05}", configuration.value)));
    let (number, name) = numbered.find(|(_, name)| find(name).is_none())?;
    if let Err(e) = RevisionId::parse("default", &name) {
        let message = format!("its revision '{name}' has no valid name: {e}");
        cx.report(configuration.node.error(message).hint("shorten the name"));
        return None;
    }
    Some((at_template(&name), new(&name, number)))
}

/// The name that the status of a dump has for the template.
fn of_status(status: &NodeRef, configuration: &str) -> Option<Located<String>> {
    let node = status.get("latestCreatedRevisionName")?;
    let value = node.scalar()?.text().to_owned();
    let is_sound = is_own(&value, configuration) && RevisionId::parse("default", &value).is_ok();
    is_sound.then_some(Located { value, node })
}

/// A revision of a history. One that cannot be decoded any more is told and left out.
fn decode_kept(
    kept: &KeptRevision,
    configuration: &Located<String>,
    past: Past<'_>,
    cx: &mut Context,
) -> Option<RevisionDraft> {
    let mut own = Context::default();
    let text = kept.template.to_string();
    let roots = parse(past.path, &text, &variables(past.env), &mut own.diagnostics);
    let decoded = roots
        .first()
        .and_then(|root| template::decode(root, &configuration.value, &mut own));
    let sound = decoded.filter(|_| own.errors() == 0);
    let Some(template) = sound else {
        let why = own.diagnostics.items().first().map(|first| first.message.clone());
        let message = format!(
            "the earlier revision '{}' is left out: {}",
            kept.name,
            why.unwrap_or_else(|| "its template cannot be read".to_owned())
        );
        cx.report(configuration.node.error(message).warning());
        return None;
    };
    // What is told about it later is told at the manifest: its template has no place in a file.
    let node = &configuration.node;
    let mut revision = template.revision;
    start_none(&mut revision);
    if let Some(scaling) = &mut revision.scaling {
        scaling.node = node.clone();
    }
    if let Some(container) = &mut revision.container {
        container.image.node = node.clone();
        container.node = node.clone();
        container.is_kept = true;
        if let Some(command) = &mut container.command {
            command.node = node.clone();
        }
    }
    revision.name = Some(Located {
        value: kept.name.clone(),
        node: node.clone(),
    });
    Some(revision)
}
