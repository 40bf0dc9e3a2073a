//! The top-level settings: the keys besides `services`, merged from all objects.

use crate::compile::serves_internal;
use crate::config::{Defaults, Diagnostics, Draft, Env, SharedSettings, SourceFile, top_level};
use crate::source::ObjectKey;

/// The merged top-level keys of all objects.
#[derive(Debug)]
pub(super) struct TopLevel {
    defaults: Defaults,
    /// Those of the cluster, which hold where no object has the key.
    shared: Option<SharedSettings>,
    draft: Draft,
    diagnostics: Diagnostics,
    /// An object with top-level keys has changed since the keys were merged.
    pub(super) is_stale: bool,
    had_services: bool,
    other_domain: bool,
    /// The number of changes of settings that services are compiled by.
    version: u64,
    /// The settings are those of another index, set by [`follow`](Self::follow).
    is_given: bool,
}

impl TopLevel {
    /// The settings of no object.
    pub(super) fn new(defaults: Defaults) -> Self {
        let (mut draft, diagnostics) = top_level(&[], false, &|_| None);
        defaults.complete(&mut draft);
        Self {
            defaults,
            shared: None,
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

    /// The version of the settings that services are compiled by: equal versions mean equal settings.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// Replaces the settings of the cluster. Returns whether they are other ones: the keys are to be merged again.
    pub(super) fn set_shared(&mut self, shared: Option<SharedSettings>) -> bool {
        let is_other = self.shared != shared;
        self.shared = shared;
        self.is_stale |= is_other;
        is_other
    }

    /// Merges the keys again if an object with such keys has changed. Returns whether settings have changed that
    /// services are compiled by.
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
        let (mut draft, mut diagnostics) = top_level(&files, has_services, env);
        self.defaults.complete(&mut draft);
        if let Some(shared) = &self.shared {
            diagnostics.append(shared.complete(&mut draft));
        }
        self.diagnostics = diagnostics;
        self.replace(draft)
    }

    /// Replaces the settings by those of another index, from now on. Returns whether settings have changed that
    /// services are compiled by.
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
            || before.images != self.draft.images
            || before.settings.state_directory.is_some() != self.draft.settings.state_directory.is_some()
            || serves_internal(&before) != serves_internal(&self.draft);
        self.version += u64::from(is_other);
        is_other
    }

    /// Returns and clears the flag that the domain has changed, which changes the derived hosts.
    pub(super) fn take_other_domain(&mut self) -> bool {
        std::mem::take(&mut self.other_domain)
    }
}

/// The top-level keys of manifests.
const OF_MANIFESTS: [&str; 6] = ["apiVersion:", "kind:", "metadata:", "spec:", "status:", "items:"];

/// Whether a text seems to have top-level keys besides `services`. A heuristic that only saves work: objects with
/// such keys are read first.
pub(super) fn may_have_others(content: &str) -> bool {
    content.lines().any(|line| {
        let key = line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '"');
        key && !line.starts_with("services:") && !OF_MANIFESTS.iter().any(|key| line.starts_with(key))
    })
}
