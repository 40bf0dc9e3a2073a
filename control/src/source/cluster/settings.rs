//! The ConfigMaps that a gateway follows: `config-sluice`, its own settings for all gateways of the cluster, and
//! `config-network` of Knative's, as far as it says what a gateway cannot do. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::objects::ConfigMap;
use super::store::Update;
use crate::object_name::ObjectName;
use crate::source::SourceFile;

/// The ConfigMap of the gateway's settings.
pub(super) const SHARED: &str = "config-sluice";

/// The ConfigMap of Knative's networking.
pub(super) const NETWORK: &str = "config-network";

/// The key that the settings are under.
const KEY: &str = "sluice.yaml";

/// What both ConfigMaps have.
#[derive(Debug, Default)]
pub(super) struct Settings {
    shared: Option<SourceFile>,
    is_changed: bool,
    warnings: Vec<String>,
    new_warnings: Vec<String>,
}

impl Settings {
    /// Records a change of `config-sluice`.
    pub(super) fn shared(&mut self, update: Update<ConfigMap>) {
        let shared = only(update).and_then(|object| {
            let path = PathBuf::from(format!("ConfigMap {}", ObjectName::of(&object)));
            let text = object.data.get(KEY)?.clone();
            Some(SourceFile { path, text })
        });
        self.is_changed |= shared != self.shared;
        self.shared = shared;
    }

    /// The settings, if they are other ones than at the last call.
    pub(super) fn take(&mut self) -> Option<Option<SourceFile>> {
        std::mem::take(&mut self.is_changed).then(|| self.shared.clone())
    }

    /// Records a change of `config-network`.
    pub(super) fn network(&mut self, update: Update<ConfigMap>) {
        let warnings = only(update).map_or_else(Vec::new, |object| unsupported(&object.data));
        if self.warnings != warnings {
            self.new_warnings.clone_from(&warnings);
            self.warnings = warnings;
        }
    }

    /// What is to be said of `config-network` since the last call.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.new_warnings)
    }
}

/// The one object of a watch by name.
fn only(update: Update<ConfigMap>) -> Option<ConfigMap> {
    match update {
        Update::Apply(object) => Some(object),
        Update::Delete(_) => None,
        Update::List(all) => all.into_iter().next(),
    }
}

/// What Knative's network settings ask of an ingress and activator that this gateway does not do.
fn unsupported(data: &BTreeMap<String, String>) -> Vec<String> {
    let has = |keys: &[&str], values: &[&str]| {
        let value = keys.iter().find_map(|key| data.get(*key));
        value.is_some_and(|value| {
            values
                .iter()
                .any(|wanted| value.trim().eq_ignore_ascii_case(wanted))
        })
    };
    let mut warnings = Vec::new();
    if has(
        &["system-internal-tls", "internal-encryption"],
        &["enabled", "true"],
    ) {
        warnings.push(
            "config-network: system-internal-tls is enabled: requests go to Pods without TLS".to_owned(),
        );
    }
    if has(&["mesh-compatibility-mode"], &["enabled"]) {
        warnings.push(
            "config-network: mesh-compatibility-mode is enabled: requests go to Pods by their own addresses"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(data: serde_json::Value) -> ConfigMap {
        let metadata = json!({"namespace": "knative-serving", "name": "config"});
        serde_json::from_value(json!({"metadata": metadata, "data": data})).expect("a ConfigMap")
    }

    #[test]
    fn settings_are_told_once_for_each_change() {
        let mut settings = Settings::default();
        settings.shared(Update::List(Vec::new()));
        assert_eq!(settings.take(), None, "there were none");
        settings.shared(Update::Apply(map(
            json!({"_example": "x", "sluice.yaml": "errorDetail: true"}),
        )));
        let told = settings.take().flatten().expect("a text");
        assert_eq!(told.text, "errorDetail: true");
        assert_eq!(told.path.to_str(), Some("ConfigMap knative-serving/config"));
        settings.shared(Update::List(vec![map(
            json!({"sluice.yaml": "errorDetail: true"}),
        )]));
        assert_eq!(settings.take(), None);
        settings.shared(Update::Apply(map(json!({}))));
        assert_eq!(settings.take(), Some(None));
    }

    #[test]
    fn what_is_asked_for_in_vain_is_said_once() {
        let mut settings = Settings::default();
        let ask = |settings: &mut Settings, data| {
            settings.network(Update::Apply(map(data)));
            settings.take_warnings().len()
        };
        assert_eq!(
            ask(
                &mut settings,
                json!({"ingress-class": "x", "mesh-compatibility-mode": "auto"})
            ),
            0
        );
        assert_eq!(ask(&mut settings, json!({"system-internal-tls": "Enabled"})), 1);
        assert_eq!(
            ask(&mut settings, json!({"system-internal-tls": "enabled", "x": "y"})),
            0
        );
        // A new spelling goes before the old one.
        assert_eq!(
            ask(
                &mut settings,
                json!({"system-internal-tls": "disabled", "internal-encryption": "true"})
            ),
            0
        );
        assert_eq!(
            ask(
                &mut settings,
                json!({"internal-encryption": "true", "mesh-compatibility-mode": "enabled"})
            ),
            2
        );
    }
}
