//! What holds for all objects: the top-level keys besides `services`.

use crate::compile::serves_internal;
use crate::config::{Diagnostics, Draft, Env, SourceFile, top_level};
use crate::source::ObjectKey;

/// The top-level keys of all objects, read as one configuration.
#[derive(Debug)]
pub(super) struct TopLevel {
    draft: Draft,
    diagnostics: Diagnostics,
    /// Some object that takes part in it is another than when it was read.
    pub(super) is_stale: bool,
    had_services: bool,
    other_domain: bool,
    /// How often something became another that services are compiled by.
    version: u64,
    /// It is another set's, which says what it is.
    is_given: bool,
}

impl Default for TopLevel {
    fn default() -> Self {
        let (draft, diagnostics) = top_level(&[], false, &|_| None);
        Self {
            draft,
            diagnostics,
            is_stale: false,
            had_services: false,
            other_domain: false,
            version: 0,
            is_given: false,
        }
    }
}

impl TopLevel {
    pub(super) fn draft(&self) -> &Draft {
        &self.draft
    }

    pub(super) fn domain(&self) -> &str {
        &self.draft.settings.domain
    }

    /// Services that were compiled by the same version were compiled by the same.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// Reads it again where that is needed. Returns whether something became another that services are
    /// compiled by.
    pub(super) fn refresh<'k>(
        &mut self,
        has_services: bool,
        keys: impl Iterator<Item = &'k ObjectKey>,
        file: impl Fn(&ObjectKey) -> Option<SourceFile>,
        env: Env<'_>,
    ) -> bool {
        if self.is_given || !self.is_stale && self.had_services == has_services {
            return false;
        }
        let files: Vec<SourceFile> = keys.filter_map(file).collect();
        self.is_stale = false;
        self.had_services = has_services;
        let (draft, diagnostics) = top_level(&files, has_services, env);
        self.diagnostics = diagnostics;
        self.replace(draft)
    }

    /// Makes it what holds for another set of objects, from now on. Returns whether something became another
    /// that services are compiled by.
    pub(super) fn follow(&mut self, draft: &Draft) -> bool {
        self.is_given = true;
        self.diagnostics = Diagnostics::default();
        self.replace(draft.clone())
    }

    fn replace(&mut self, draft: Draft) -> bool {
        let before = std::mem::replace(&mut self.draft, draft);
        let other_domain = before.settings.domain != self.draft.settings.domain;
        self.other_domain |= other_domain;
        let is_other = other_domain
            || before.autoscaling != self.draft.autoscaling
            || serves_internal(&before) != serves_internal(&self.draft);
        self.version += u64::from(is_other);
        is_other
    }

    /// Whether the domain is another than when this was asked last: hosts are other ones then.
    pub(super) fn take_other_domain(&mut self) -> bool {
        std::mem::take(&mut self.other_domain)
    }
}

/// Whether a text seems to have top-level keys besides `services`. Only a guess that saves work: such
/// objects are read first.
pub(super) fn may_have_others(content: &str) -> bool {
    content.lines().any(|line| {
        let key = line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '"');
        key && !line.starts_with("services:")
    })
}
