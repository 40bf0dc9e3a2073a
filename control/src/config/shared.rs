//! The settings that a cluster gives all its gateways: some of the top-level keys, in the ConfigMap `config-sluice`.
//!
//! Whoever may write a ConfigMap is not who runs the process: there are no variables, no paths and no commands in it.

use std::path::PathBuf;
use std::sync::Mutex;

use ipnet::IpNet;
use sluice_config_shape::{Context, Diagnostic, Diagnostics, Flag, Object, Variables, parse};
use sluice_model::{AccessLogFormat, DrainSettings, Limits, QueueTotals};

use super::autoscaling::{GLOBALS, Globals};
use super::gateway::{ACCESS_LOG, DRAIN, Draft, QUEUE};
use super::limits::LIMITS;
use super::names::NETWORK;
use super::{NodeRef, SourceFile, mappings};

/// The keys, of those at the top level of a file.
pub(super) const KEYS: [&str; 8] = [
    "limits",
    "queue",
    "autoscaling",
    "drain",
    "accessLog",
    "errorDetail",
    "trustedProxies",
    "tagHeader",
];

/// Settings that hold where no file has the key. A key is taken as a whole: of two `limits` those of the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SharedSettings {
    path: PathBuf,
    limits: Option<Limits>,
    queue: Option<QueueTotals>,
    autoscaling: Option<Globals>,
    drain: Option<DrainSettings>,
    access_log: Option<AccessLogFormat>,
    error_detail: Option<bool>,
    trusted_proxies: Option<Vec<IpNet>>,
    tag_header: Option<bool>,
}

impl SharedSettings {
    /// Decodes the text.
    ///
    /// # Errors
    /// All mistakes: a text with one has no effect at all.
    pub(crate) fn decode(text: &SourceFile) -> Result<Self, Diagnostics> {
        let mut cx = Context::default();
        let asked = Mutex::new(None);
        let lookup = |name: &str| {
            if let Ok(mut asked) = asked.lock() {
                asked.get_or_insert_with(|| name.to_owned());
            }
            Some(String::new())
        };
        let roots = parse(
            &text.path,
            &text.text,
            &Variables::new(&lookup),
            &mut cx.diagnostics,
        );
        if let Ok(Some(name)) = asked.into_inner() {
            let mistake =
                Diagnostic::about_file(&text.path, format!("${{{name}}}: there are no variables here"));
            cx.diagnostics
                .push(mistake.hint("write the value itself, or set the key in a file"));
        }
        let roots = mappings(roots, &mut cx);
        let whole = roots.first().cloned().unwrap_or_else(NodeRef::empty);
        let mut o = Object::new(whole, &roots, &mut cx);
        let settings = Self {
            path: text.path.clone(),
            limits: o.optional("limits", "", LIMITS),
            queue: o.optional("queue", "", QUEUE),
            autoscaling: o.optional("autoscaling", "", GLOBALS),
            drain: o.optional("drain", "", DRAIN),
            access_log: o.optional("accessLog", "", ACCESS_LOG),
            error_detail: o.optional("errorDetail", "", Flag),
            trusted_proxies: o.list("trustedProxies", "", NETWORK),
            tag_header: o.optional("tagHeader", "", Flag),
        };
        o.close();
        match cx.diagnostics.errors() {
            0 => Ok(settings),
            _ => Err(cx.diagnostics),
        }
    }

    /// Sets what no file has. Returns a warning for each key that a file has as well.
    pub(crate) fn complete(&self, draft: &mut Draft) -> Diagnostics {
        let mut shadowed = Diagnostics::default();
        let (path, named) = (&self.path, &draft.named);
        let mut is_free = |key: &str, is_here: bool| {
            if is_here && named.contains(&key) {
                let text = format!("'{key}' has no effect: a configuration file has it");
                shadowed.push(
                    Diagnostic::about_file(path, text)
                        .hint("what files say goes first")
                        .warning(),
                );
            }
            !named.contains(&key)
        };
        let settings = &mut draft.settings;
        if is_free("limits", self.limits.is_some())
            && let Some(limits) = &self.limits
        {
            settings.limits.clone_from(limits);
        }
        if is_free("queue", self.queue.is_some())
            && let Some(queue) = self.queue
        {
            settings.queue = queue;
        }
        if is_free("autoscaling", self.autoscaling.is_some())
            && let Some(autoscaling) = &self.autoscaling
        {
            draft.autoscaling.clone_from(autoscaling);
        }
        if is_free("drain", self.drain.is_some())
            && let Some(drain) = self.drain
        {
            settings.drain = drain;
        }
        if is_free("accessLog", self.access_log.is_some())
            && let Some(format) = self.access_log
        {
            settings.access_log = format;
        }
        if is_free("errorDetail", self.error_detail.is_some())
            && let Some(error_detail) = self.error_detail
        {
            settings.error_detail = error_detail;
        }
        if is_free("trustedProxies", self.trusted_proxies.is_some())
            && let Some(proxies) = &self.trusted_proxies
        {
            settings.trusted_proxies.clone_from(proxies);
        }
        if is_free("tagHeader", self.tag_header.is_some())
            && let Some(tag_header) = self.tag_header
        {
            settings.tag_header = tag_header;
        }
        shadowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::top_level;

    fn text(text: &str) -> SourceFile {
        SourceFile {
            path: "ConfigMap knative-serving/config-sluice".into(),
            text: text.to_owned(),
        }
    }

    const ALL: &str = "\
limits: {maxHeaders: 7}
queue: {depth: 8}
autoscaling: {}
drain: {delay: 9s}
accessLog: {format: json}
errorDetail: true
trustedProxies: [10.0.0.0/8]
tagHeader: true
";

    #[test]
    fn each_key_holds_where_no_file_has_it() {
        let shared = SharedSettings::decode(&text(ALL)).expect("is valid");
        let (mut draft, _) = top_level(&[], false, &|_| None);
        assert!(shared.complete(&mut draft).is_empty());
        let settings = &draft.settings;
        assert_eq!((settings.limits.max_headers, settings.queue.depth), (7, 8));
        assert_eq!(settings.drain.delay.as_secs(), 9);
        assert_eq!(settings.access_log, AccessLogFormat::Json);
        assert!(settings.error_detail && settings.tag_header);
        assert_eq!(settings.trusted_proxies.len(), 1);

        let file = SourceFile {
            path: "sluice.yaml".into(),
            text: "limits: {maxUriBytes: 2KiB}\nerrorDetail: false\n".into(),
        };
        let (mut draft, _) = top_level(&[file], false, &|_| None);
        let shadowed = shared.complete(&mut draft);
        assert_eq!((shadowed.warnings(), shadowed.errors()), (2, 0));
        assert!(shadowed.items()[0].to_string().contains("'limits' has no effect"));
        let settings = &draft.settings;
        // As a whole.
        assert_eq!(
            (settings.limits.max_headers, settings.limits.max_uri_bytes),
            (128, 2048)
        );
        assert!(!settings.error_detail && settings.tag_header);
    }

    #[test]
    fn whatever_reaches_beyond_settings_is_refused() {
        for (content, message) in [
            ("listeners: []", "listeners"),
            ("services: []", "services"),
            ("admin: {address: '0.0.0.0:1'}", "admin"),
            ("limit: {}", "limits"),
            ("limits: {maxHeaders: many}", "maxHeaders"),
            ("errorDetail: ${DETAIL}", "no variables"),
            ("limits: {maxHeaders: '${N:-7}'}", "no variables"),
            ("a: [", "ConfigMap"),
            ("- limits", "mapping"),
        ] {
            let mistakes = SharedSettings::decode(&text(content)).expect_err(content);
            assert!(mistakes.to_string().contains(message), "{content}: {mistakes}");
        }
        assert_eq!(SharedSettings::decode(&text("")).map(|s| s.limits), Ok(None));
    }

    #[test]
    fn its_keys_are_those_of_a_file() {
        let known = crate::config::schema();
        for key in KEYS {
            assert!(known["properties"].get(key).is_some(), "{key}");
        }
    }
}
