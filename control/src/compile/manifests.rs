//! What the containers of manifests run as.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use sluice_model::{Backend, Tag};

use super::targets;
use crate::config::{
    ConfigurationDraft, ContainerDraft, Context, Diagnostic, Draft, ImageRule, NodeRef, ServiceDraft,
    TierDraft, as_backend, join, quoted,
};
use crate::plan::{ProcessSpec, ScalerSpec};

/// The names of Configurations that may be the one of a Route: the one that its traffic names, those by which revisions of
/// its traffic are numbered, and the Route's own.
pub(super) fn candidates(service: &ServiceDraft) -> impl Iterator<Item = &str> {
    let named = service
        .route
        .iter()
        .filter_map(|route| route.configuration.as_ref());
    let named = named.map(|name| name.value.as_str());
    let is_named = service
        .route
        .as_ref()
        .is_some_and(|route| route.configuration.is_some());
    let numbered = targets::named(service).filter_map(|name| Some(name.rsplit_once('-')?.0));
    let others = numbered.chain(service.name.iter().map(|name| name.value.as_str()));
    named.chain(others.filter(move |_| !is_named))
}

/// Gives each Route the revisions of its Configuration.
pub(super) fn join_routes(
    services: &mut [ServiceDraft],
    configurations: Vec<ConfigurationDraft>,
    cx: &mut Context,
) {
    let mut free: HashMap<(String, String), ConfigurationDraft> = HashMap::new();
    for configuration in configurations {
        let key = (configuration.namespace.clone(), configuration.name.value.clone());
        match free.entry(key) {
            Entry::Vacant(vacant) => _ = vacant.insert(configuration),
            Entry::Occupied(first) => {
                let message = format!("Configuration '{}' is there already", configuration.name.value);
                let diagnostic = configuration.name.node.error(message).hint("rename one of them");
                cx.report(diagnostic.related(first.get().name.node.location(), "the other one"));
            }
        }
    }
    let given = |draft: &ConfigurationDraft| Some(draft.present.as_ref()?.given.as_ref()?.value.clone());
    let by_template = free
        .iter()
        .filter_map(|(key, draft)| Some(((key.0.clone(), given(draft)?), key.clone())));
    let by_template: HashMap<(String, String), (String, String)> = by_template.collect();
    let mut taken: HashMap<(String, String), NodeRef> = HashMap::new();
    for service in services.iter_mut().filter(|service| service.route.is_some()) {
        let (Some(namespace), Some(name)) = (service.namespace.clone(), service.name.clone()) else {
            continue;
        };
        let by_name = |candidate: &str| (namespace.clone(), candidate.to_owned());
        // A template's own name says whose it is without a doubt.
        let given = targets::named(service).find_map(|named| by_template.get(&by_name(named)).cloned());
        let candidates: Vec<(String, String)> = given
            .into_iter()
            .chain(candidates(service).map(by_name))
            .collect();
        let is_there = |key: &&(String, String)| free.contains_key(*key) || taken.contains_key(*key);
        let Some(route) = service.route.take() else {
            continue;
        };
        let at = route.configuration.as_ref().unwrap_or(&name);
        let Some(key) = candidates.iter().find(is_there) else {
            let message = format!(
                "there is no Configuration '{}' in namespace '{namespace}'",
                at.value
            );
            let hint = "a Route has the revisions of a Configuration: a Service is both in one";
            cx.report(at.node.error(message).hint(hint));
            service.revisions.clear();
            continue;
        };
        let Some(configuration) = free.remove(key) else {
            let message = format!("another Route leads to Configuration '{}'", key.1);
            let hint = "here a Configuration has one Route: give each a Service";
            let diagnostic = at.node.error(message).hint(hint);
            cx.report(match taken.get(key) {
                Some(other) => diagnostic.related(other.location(), "the other one"),
                None => diagnostic,
            });
            service.revisions.clear();
            continue;
        };
        taken.insert(key.clone(), name.node.clone());
        service.further = Some(configuration.node.clone());
        let mut kept = std::mem::take(&mut service.revisions);
        for container in kept.iter_mut().filter_map(|revision| revision.container.as_mut()) {
            container.configuration.clone_from(&configuration.name.value);
        }
        let present = configuration.present;
        let joined = present.and_then(|present| join(present, kept, route.history.as_deref(), cx));
        if let Some((revisions, manifest)) = joined {
            service.revisions = revisions;
            service.manifest = Some(manifest);
            service.all_named = true;
        }
    }
    for configuration in free.into_values() {
        let message = format!("no Route leads to Configuration '{}'", configuration.name.value);
        let hint = "a Route with configurationName gives it a host; a Service is both in one";
        cx.report(configuration.name.node.error(message).hint(hint).warning());
    }
}

/// The bound of all texts of one process, in bytes: references to variables may double them again and again.
const MAX_BYTES: usize = 1 << 20;

/// Makes each container the process that the first matching entry of `images` allows. A container without one is reported
/// at its image; an earlier revision without one is told and left out. Without a state directory there are no earlier
/// revisions, and no history is made.
pub(super) fn resolve(services: &mut [ServiceDraft], top_level: &Draft, cx: &mut Context) {
    let keeps = top_level.settings.state_directory.is_some();
    for service in services {
        if service.manifest.is_none() {
            continue;
        }
        if !keeps {
            service.manifest = None;
            if let Some(rollout) = &service.rollout_at {
                let message = "there is no earlier revision to roll out from: no state directory keeps any";
                let hint = "set state: {directory: …}, or leave the annotation out";
                cx.report(rollout.error(message).hint(hint));
            }
        }
        service.revisions.retain_mut(|revision| {
            let Some(container) = &revision.container else {
                return true;
            };
            if container.is_kept && !keeps {
                return false;
            }
            match process(container, &top_level.images, cx) {
                Ok(process) if container.reserve > 0 => {
                    let scaler = ScalerSpec::Process(process);
                    revision.tiers = tiers(&scaler, container.reserve, revision.container_concurrency);
                    revision.backend = Some(as_backend(&revision.tiers));
                }
                Ok(process) => revision.scaler = Some(ScalerSpec::Process(process)),
                Err(mistake) if container.is_kept => {
                    let name = revision
                        .name
                        .as_ref()
                        .map(|name| name.value.as_str())
                        .unwrap_or_default();
                    let message = format!("the earlier revision '{name}' is left out: {}", mistake.message);
                    cx.report(container.node.error(message).warning());
                    return false;
                }
                Err(mistake) => {
                    cx.report(*mistake);
                    revision.backend = None;
                }
            }
            true
        });
    }
}

/// A reserve that is always there, and what the first request starts.
fn tiers(scaler: &ScalerSpec, reserve: u32, container_concurrency: Option<u32>) -> Vec<TierDraft> {
    let tier = |name, always| {
        Some(TierDraft {
            name: Tag::parse(name).ok()?,
            backend: Some(Backend::Managed),
            scaler: Some(scaler.clone()),
            container_concurrency,
            always,
        })
    };
    [tier("reserve", reserve), tier("standard", 0)]
        .into_iter()
        .flatten()
        .collect()
}

fn process(
    container: &ContainerDraft,
    images: &[ImageRule],
    cx: &mut Context,
) -> Result<ProcessSpec, Box<Diagnostic>> {
    let image = &container.image;
    let Some(rule) = images.iter().find(|rule| rule.matches(&image.value)) else {
        let message = format!("no entry of images matches {}", quoted(&image.value));
        let hint = format!(
            "say what runs in its place: images: [{{match: \"{}\", command: […]}}]",
            image.value
        );
        return Err(Box::new(image.node.error(message).hint(hint)));
    };
    let mut command = rule.process.command.clone();
    if let Some(own) = &container.command {
        if rule.allow_command {
            command.clone_from(&own.value);
        } else if !container.is_kept {
            let message = "the command is not used: the entry of images has one";
            let hint = "allowCommand: true lets manifests say what runs";
            cx.report(own.node.whole().error(message).hint(hint).warning());
        }
    }
    let expanded = expand(
        command.into_iter().chain(container.args.iter().cloned()),
        container,
        rule,
    );
    let Some((command, env)) = expanded else {
        let message = "command and variables are longer than 1 MiB once $(NAME) is expanded";
        return Err(Box::new(container.node.error(message)));
    };
    Ok(ProcessSpec {
        command,
        env,
        ..rule.process.clone()
    })
}

/// The name of the variable with the configuration's name.
const CONFIGURATION: &str = "K_CONFIGURATION";

type CommandAndEnv = (Vec<String>, BTreeMap<String, String>);

/// Resolves references between variables; those to an instance's own stay. `None` beyond the bound.
fn expand(
    command: impl Iterator<Item = String>,
    container: &ContainerDraft,
    rule: &ImageRule,
) -> Option<CommandAndEnv> {
    let mut env = rule.process.env.clone();
    env.insert(CONFIGURATION.to_owned(), container.configuration.clone());
    let mut left = MAX_BYTES;
    // A value refers to those before it, as in Kubernetes.
    for (name, value) in &container.env {
        let value = refer(value, &env, &mut left)?;
        env.insert(name.clone(), value);
    }
    let command: Option<Vec<String>> = command.map(|word| refer(&word, &env, &mut left)).collect();
    Some((command?, env))
}

/// Replaces `$(NAME)` by the variable's text, which is expanded once more when an instance starts. Escapes (`$$`) and
/// unknown names stay for that expansion.
fn refer(text: &str, env: &BTreeMap<String, String>, left: &mut usize) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut add = |out: &mut String, part: &str| {
        *left = left.checked_sub(part.len())?;
        out.push_str(part);
        Some(())
    };
    while let Some(at) = rest.find('$') {
        add(&mut out, &rest[..at])?;
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            add(&mut out, "$$")?;
            rest = after;
            continue;
        }
        let name = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match name.and_then(|(name, tail)| Some((env.get(name)?, tail))) {
            Some((value, tail)) => {
                add(&mut out, value)?;
                rest = tail;
            }
            None => {
                add(&mut out, "$")?;
                rest = after;
            }
        }
    }
    add(&mut out, rest)?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_and_escapes_stay() {
        let env = BTreeMap::from([
            ("A".to_owned(), "$(PORT)".to_owned()),
            ("B".to_owned(), "x$$y".to_owned()),
        ]);
        for (text, expected) in [
            ("--a=$(A)", "--a=$(PORT)"),
            ("$(B)", "x$$y"),
            ("$$(A)", "$$(A)"),
            ("$$$(A)", "$$$(PORT)"),
            ("$(C) $(A", "$(C) $(A"),
            ("$", "$"),
        ] {
            assert_eq!(refer(text, &env, &mut 100).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(refer("$(A)$(A)", &env, &mut 10), None);
    }
}
