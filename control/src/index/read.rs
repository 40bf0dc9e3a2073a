//! Decoding and compiling one object alone, as if no other object shared a claim: the part of a change that needs no
//! index, and so may run on many threads at once.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use sluice_model::RevisionSettings;

use super::{ingresses, name_claims};
use crate::compile::{CompiledService, FileReference, Shared, compile};
use crate::config::{Context, Diagnostic, Diagnostics, Draft, Env, FileDraft, decode_file};
use crate::ingress::IngressObject;
use crate::release::Histories;
use crate::source::{Content, ObjectKey};

/// The result of decoding one object.
#[derive(Debug)]
pub(super) struct DecodedObject {
    /// Hashes of the claims of the object.
    pub(super) claims: Vec<u64>,
    pub(super) has_services: bool,
    pub(super) has_others: bool,
    /// Files that the services of the object name.
    pub(super) files: Box<[FileReference]>,
    pub(super) form: Form,
}

/// The object as a draft or compiled.
#[derive(Debug)]
pub(super) enum Form {
    Draft(ObjectDraft),
    /// Valid as long as no other object shares a claim. The draft, which takes twenty times as much memory, is freed.
    Compiled(CompiledObject),
}

/// A decoded object.
#[derive(Debug)]
pub(super) enum ObjectDraft {
    File(FileDraft),
    Ingress(Arc<IngressObject>),
}

/// The result of compiling one object.
#[derive(Debug, Default)]
pub(super) struct CompiledObject {
    /// Errors and warnings about the object.
    pub(super) diagnostics: Diagnostics,
    /// The compiled services; `None` after an error.
    pub(super) services: Option<Vec<CompiledService>>,
    /// The hosts that an Ingress lost to other objects, and to which.
    pub(super) conflict: Option<String>,
}

/// What an object is decoded and compiled by.
#[derive(Clone, Copy)]
pub(super) struct Known<'k> {
    top_level: &'k Draft,
    histories: &'k Histories,
    env: Env<'k>,
}

impl<'k> Known<'k> {
    pub(super) fn of(top_level: &'k Draft, histories: &'k Histories, env: Env<'k>) -> Self {
        Self {
            top_level,
            histories,
            env,
        }
    }
}

/// Decodes an object, and compiles it if `alone`.
pub(super) fn read(
    key: &ObjectKey,
    content: &Content,
    alone: bool,
    known: &Known<'_>,
    settings: &mut Shared<RevisionSettings>,
) -> DecodedObject {
    let top_level = known.top_level;
    let draft = decode(key, content, known.env, known.histories);
    let claims = name_claims::of(&top_level.settings.domain, &draft);
    let (has_services, has_others, files) = match &draft {
        ObjectDraft::Ingress(_) => (true, false, Box::default()),
        ObjectDraft::File(draft) => {
            let revisions = draft.services.iter().flat_map(|service| &service.revisions);
            let pages = draft.services.iter().flat_map(|service| service.page_files());
            let files = revisions.flat_map(|revision| &revision.tls_files).chain(pages);
            let files = files.map(FileReference::new).collect();
            (draft.has_services, draft.has_others, files)
        }
    };
    DecodedObject {
        claims,
        has_services,
        has_others,
        files,
        form: match alone {
            true => Form::Compiled(compile_alone(key, draft, top_level, settings)),
            false => Form::Draft(draft),
        },
    }
}

/// Decodes one object. Catches a panic: a bug in the decoder costs this object, not all objects after it.
pub(super) fn decode(key: &ObjectKey, content: &Content, env: Env<'_>, histories: &Histories) -> ObjectDraft {
    let text = match content {
        Content::Text(text) => text,
        Content::Ingress(ingress) => return ObjectDraft::Ingress(Arc::clone(ingress)),
    };
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_file(key.path(), text, env, histories)));
    ObjectDraft::File(decoded.unwrap_or_else(|_| {
        let mut diagnostics = Diagnostics::default();
        diagnostics.push(Diagnostic::about_file(key.path(), PANICKED));
        FileDraft {
            services: Vec::new(),
            configurations: Vec::new(),
            diagnostics,
            has_services: true,
            has_others: false,
        }
    }))
}

fn compile_alone(
    key: &ObjectKey,
    draft: ObjectDraft,
    top_level: &Draft,
    settings: &mut Shared<RevisionSettings>,
) -> CompiledObject {
    let compiled = compile_together(vec![(key, draft)], top_level, settings);
    compiled.into_iter().next().unwrap_or_default()
}

/// Compiles objects that share claims, in the order of their keys.
pub(super) fn compile_together(
    objects: Vec<(&ObjectKey, ObjectDraft)>,
    top_level: &Draft,
    settings: &mut Shared<RevisionSettings>,
) -> Vec<CompiledObject> {
    // An index has objects of one kind.
    let (mut files, mut ingresses) = (Vec::new(), Vec::new());
    for (key, draft) in objects {
        match draft {
            ObjectDraft::File(draft) => files.push((key, draft)),
            ObjectDraft::Ingress(ingress) => ingresses.push((key, ingress)),
        }
    }
    match ingresses.is_empty() {
        true => compile_files(files, top_level, settings),
        false => ingresses::compile(ingresses),
    }
}

fn compile_files(
    objects: Vec<(&ObjectKey, FileDraft)>,
    top_level: &Draft,
    settings: &mut Shared<RevisionSettings>,
) -> Vec<CompiledObject> {
    let mut diagnostics = Diagnostics::default();
    let mut services = Vec::new();
    let mut configurations = Vec::new();
    let mut parts = Vec::with_capacity(objects.len());
    for (key, draft) in objects {
        diagnostics.append(draft.diagnostics);
        parts.push((key, draft.services.len()));
        configurations.extend(draft.configurations);
        match services.is_empty() {
            true => services = draft.services,
            false => services.extend(draft.services),
        }
    }
    let mut cx = Context { diagnostics };
    // Catches a panic: a bug in the compiler costs these objects, not all objects after them.
    let compiled = catch_unwind(AssertUnwindSafe(|| {
        compile(top_level, services, configurations, settings, &mut cx)
    }));
    let mut diagnostics = cx.diagnostics;
    let mut services = match compiled {
        Ok(services) => services,
        Err(_) => {
            for (key, _) in &parts {
                diagnostics.push(Diagnostic::about_file(key.path(), PANICKED));
            }
            Vec::new()
        }
    }
    .into_iter();
    let told = by_object(diagnostics, &parts);
    let all = parts.into_iter().zip(told);
    all.map(|((key, count), mut told)| {
        let own: Vec<Option<CompiledService>> = services.by_ref().take(count).collect();
        let services: Option<Vec<CompiledService>> = own.into_iter().collect();
        if services.is_none() && told.errors() == 0 {
            told.push(Diagnostic::about_file(key.path(), CONTRADICTS));
        }
        CompiledObject {
            diagnostics: told,
            services,
            conflict: None,
        }
    })
    .collect()
}

fn by_object(mut diagnostics: Diagnostics, parts: &[(&ObjectKey, usize)]) -> Vec<Diagnostics> {
    if diagnostics.is_empty() {
        return parts.iter().map(|_| Diagnostics::default()).collect();
    }
    let paths = parts.iter().map(|(key, _)| key.path());
    let ranks: HashMap<&Path, usize> = paths.enumerate().map(|(rank, path)| (path, rank)).collect();
    diagnostics.sort_and_dedup(|file| ranks.get(file).copied().unwrap_or(usize::MAX));
    diagnostics.by_file(parts.len(), |file| ranks.get(file).copied().unwrap_or(0))
}

/// The new content of a changed object; `None` for a deleted object.
pub(super) type NewContent = Option<Content>;

const PANICKED: &str = "internal error: loading this file panicked";

const CONTRADICTS: &str = "the configuration contradicts itself";
