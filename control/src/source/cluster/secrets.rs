//! The certificates of Secrets, and which Secrets have to be asked for by name. Pure.
//!
//! Those with Knative's label come by one watch. A Secret that an Ingress names and that has no label, as one that somebody
//! made for a DomainMapping, is followed by its name: a watch of all Secrets would read what no Ingress names.

use std::collections::{BTreeSet, HashMap, HashSet};

use sluice_model::CertificatePem;

use super::objects::Secret;
use super::store::Update;
use crate::object_name::ObjectName;

/// The Secrets that Ingresses name, or may name.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    /// Those with the label, with their certificates, if they have any.
    labelled: HashMap<ObjectName, Option<CertificatePem>>,
    is_listed: bool,
    /// Those that Ingresses name.
    used: HashSet<ObjectName>,
    /// The certificates of those that are followed by name; absent until the first answer.
    by_name: HashMap<ObjectName, Option<CertificatePem>>,
    /// Those to be followed by name.
    wanted: BTreeSet<ObjectName>,
    is_changed: bool,
}

impl Secrets {
    /// The certificate of a Secret.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&CertificatePem> {
        let labelled = self.labelled.get(name);
        labelled.or_else(|| self.by_name.get(name))?.as_ref()
    }

    /// Records a change of the Secrets with the label. Returns those whose certificate is another one.
    pub(super) fn update(&mut self, update: Update<Secret>) -> Vec<ObjectName> {
        let changes: Vec<(ObjectName, Option<Option<CertificatePem>>)> = match update {
            Update::Apply(secret) => vec![(ObjectName::of(&secret), Some(pem(secret)))],
            Update::Delete(secret) => vec![(ObjectName::of(&secret), None)],
            Update::List(all) => {
                let names: HashSet<ObjectName> = all.iter().map(ObjectName::of).collect();
                let gone = self.labelled.keys().filter(|name| !names.contains(*name));
                let gone: Vec<_> = gone.map(|name| (name.clone(), None)).collect();
                let found = all
                    .into_iter()
                    .map(|secret| (ObjectName::of(&secret), Some(pem(secret))));
                gone.into_iter().chain(found).collect()
            }
        };
        let mut touched = Vec::new();
        for (name, now) in changes {
            let before = self.get(&name).cloned();
            match now {
                Some(now) => _ = self.labelled.insert(name.clone(), now),
                None => _ = self.labelled.remove(&name),
            }
            self.want(&name);
            // Without the label it may be there still: its name is asked for before it counts as gone.
            if self.is_awaited(&name) || self.get(&name) != before.as_ref() {
                touched.push(name);
            }
        }
        touched
    }

    /// Records that the Secrets with the label were listed: what is used and was not among them is wanted.
    pub(super) fn listed(&mut self) {
        if !std::mem::replace(&mut self.is_listed, true) {
            let used: Vec<ObjectName> = self.used.iter().cloned().collect();
            used.iter().for_each(|name| self.want(name));
        }
    }

    /// Records what the API server has by this name. Returns whether the certificate is another one, or known for the
    /// first time.
    pub(super) fn found(&mut self, name: &ObjectName, secret: Option<Secret>) -> bool {
        if !self.wanted.contains(name) {
            return false;
        }
        let now = secret.and_then(pem);
        let before = self.by_name.insert(name.clone(), now.clone());
        before != Some(now)
    }

    /// Records whether an Ingress names a Secret.
    pub(super) fn set_used(&mut self, name: &ObjectName, is_used: bool) {
        match is_used {
            true => _ = self.used.insert(name.clone()),
            false => _ = self.used.remove(name),
        }
        self.want(name);
    }

    fn want(&mut self, name: &ObjectName) {
        let is_wanted = self.is_listed && self.used.contains(name) && !self.labelled.contains_key(name);
        if is_wanted == self.wanted.contains(name) {
            return;
        }
        self.is_changed = true;
        match is_wanted {
            true => _ = self.wanted.insert(name.clone()),
            false => {
                self.wanted.remove(name);
                self.by_name.remove(name);
            }
        }
    }

    /// Whether a Secret was asked for by its name and there is no answer yet.
    pub(super) fn is_awaited(&self, name: &ObjectName) -> bool {
        self.wanted.contains(name) && !self.by_name.contains_key(name)
    }

    /// Whether any Secret is awaited.
    pub(super) fn awaits_any(&self) -> bool {
        self.by_name.len() < self.wanted.len()
    }

    /// The Secrets to be followed by name, if they are other ones than at the last call.
    pub(super) fn take_wanted(&mut self) -> Option<BTreeSet<ObjectName>> {
        std::mem::take(&mut self.is_changed).then(|| self.wanted.clone())
    }
}

/// The certificate of a Secret; `None` for a Secret that has none.
fn pem(secret: Secret) -> Option<CertificatePem> {
    Some(CertificatePem {
        chain: secret.data.chain?.0.into(),
        key: secret.data.key?.0.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name() -> ObjectName {
        ObjectName::new("d", "cert")
    }

    fn secret(chain: &str) -> Secret {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "cert"},
            "data": {"tls.crt": chain, "tls.key": "a2V5"}}))
        .expect("a Secret")
    }

    fn chain(secrets: &Secrets) -> Option<Vec<u8>> {
        secrets.get(&name()).map(|pem| pem.chain.to_vec())
    }

    #[test]
    fn a_secret_is_asked_for_by_name_only_while_it_is_used_and_has_no_label() {
        let mut secrets = Secrets::default();
        secrets.set_used(&name(), true);
        assert_eq!(secrets.take_wanted(), None, "the labelled ones are not known yet");
        secrets.update(Update::List(Vec::new()));
        secrets.listed();
        assert_eq!(secrets.take_wanted(), Some(BTreeSet::from([name()])));
        assert_eq!(secrets.take_wanted(), None);
        assert!(secrets.is_awaited(&name()) && secrets.awaits_any());
        assert!(secrets.found(&name(), None), "known for the first time");
        assert!(!secrets.found(&name(), None) && !secrets.awaits_any());
        assert!(secrets.found(&name(), Some(secret("YQ=="))));
        assert_eq!(chain(&secrets).as_deref(), Some(&b"a"[..]));
        assert!(!secrets.found(&name(), Some(secret("YQ=="))));

        // It gets the label, and loses it: what is known by name is asked for anew.
        assert_eq!(secrets.update(Update::Apply(secret("Yg=="))), [name()]);
        assert_eq!(secrets.take_wanted(), Some(BTreeSet::new()));
        assert!(!secrets.found(&name(), Some(secret("Yw=="))), "too late");
        assert_eq!(chain(&secrets).as_deref(), Some(&b"b"[..]));
        assert_eq!(secrets.update(Update::Delete(secret("Yg=="))), [name()]);
        assert!(secrets.is_awaited(&name()));
        assert_eq!(secrets.take_wanted(), Some(BTreeSet::from([name()])));
        secrets.found(&name(), Some(secret("Yg==")));

        secrets.set_used(&name(), false);
        assert_eq!(secrets.take_wanted(), Some(BTreeSet::new()));
        assert_eq!(chain(&secrets), None, "not kept");
    }
}
