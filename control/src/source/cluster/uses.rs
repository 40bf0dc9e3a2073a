//! Which Ingresses name which other objects. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::objects::IngressSpec;
use super::{resolve, shortcut};
use crate::object_name::ObjectName;

/// The objects that an Ingress names, in its newest specification and in the last good one: each once, in order.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pub(super) services: Box<[ObjectName]>,
    pub(super) secrets: Box<[ObjectName]>,
    pub(super) revisions: Box<[ObjectName]>,
    /// Hosts that requests are rewritten to, as [`shortcut::canonical`] has them.
    pub(super) hosts: Box<[Arc<str>]>,
}

impl Uses {
    pub(super) fn of(namespace: &str, specs: &[Arc<IngressSpec>], cluster_domain: &str) -> Self {
        let (mut services, mut secrets) = (BTreeSet::new(), BTreeSet::new());
        let (mut revisions, mut hosts) = (BTreeSet::new(), BTreeSet::new());
        for spec in specs {
            let named = resolve::backends(spec).into_iter();
            services.extend(named.map(|(name, _)| ObjectName::new(namespace, &name)));
            // Of another namespace it would be an instruction of one tenant to read another's.
            let own = resolve::secrets(spec).into_iter();
            secrets.extend(own.filter(|secret| secret.namespace() == namespace));
            revisions.extend(resolve::revisions(spec));
            let rewritten = shortcut::rewritten_hosts(spec);
            hosts.extend(rewritten.map(|host| Arc::from(shortcut::canonical(host, cluster_domain))));
        }
        Self {
            services: services.into_iter().collect(),
            secrets: secrets.into_iter().collect(),
            revisions: revisions.into_iter().collect(),
            hosts: hosts.into_iter().collect(),
        }
    }
}

/// The relation of objects of one kind and the Ingresses that name them. One set of pairs, not a set for each object: nearly
/// all have one user.
#[derive(Debug)]
pub(super) struct Users<K>(BTreeSet<(K, ObjectName)>);

impl<K> Default for Users<K> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<K: Clone + Ord> Users<K> {
    /// The users of an object.
    pub(super) fn of(&self, used: &K) -> impl Iterator<Item = &ObjectName> {
        let from = (used.clone(), ObjectName::new("", ""));
        let pairs = self.0.range(from..).take_while(move |(of, _)| of == used);
        pairs.map(|(_, user)| user)
    }

    /// Whether an object has a user.
    pub(super) fn has(&self, used: &K) -> bool {
        self.of(used).next().is_some()
    }

    /// Replaces what one Ingress uses. Both lists are in order. Returns what it used before and does not now, or the other
    /// way round.
    pub(super) fn replace<'u>(&mut self, user: &ObjectName, before: &'u [K], now: &'u [K]) -> Vec<&'u K> {
        let gone = before.iter().filter(|used| now.binary_search(used).is_err());
        let new = now.iter().filter(|used| before.binary_search(used).is_err());
        for used in gone.clone() {
            self.0.remove(&(used.clone(), user.clone()));
        }
        self.0
            .extend(new.clone().map(|used| (used.clone(), user.clone())));
        gone.chain(new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_the_users_that_name_it() {
        let name = |name: &str| ObjectName::new("d", name);
        let (mut users, none) = (Users::default(), []);
        let before = [name("a"), name("b")];
        users.replace(&name("one"), &none, &before);
        users.replace(&name("two"), &none, &[name("b")]);
        let of = |users: &Users<ObjectName>, used: &str| {
            users
                .of(&name(used))
                .map(ObjectName::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&users, "b"), ["d/one", "d/two"]);
        let now = [name("b"), name("c")];
        let changed = users.replace(&name("one"), &before, &now);
        assert_eq!(changed, [&name("a"), &name("c")]);
        assert_eq!(of(&users, "b"), ["d/one", "d/two"]);
        assert_eq!(
            (of(&users, "c"), users.has(&name("a"))),
            (vec!["d/one".to_owned()], false)
        );
        users.replace(&name("one"), &now, &none);
        assert_eq!(of(&users, "b"), ["d/two"]);
    }
}
