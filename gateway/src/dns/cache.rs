//! DNS cache: the last good addresses of each name. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use sluice_model::{EndpointAddr, EndpointTarget};

/// A name with its port, as configured.
pub(crate) type Name = (String, u16);

/// The last good addresses of each name.
#[derive(Debug, Default)]
pub(crate) struct NameCache {
    known: HashMap<Name, CachedName>,
}

#[derive(Debug, Default)]
struct CachedName {
    good: Vec<SocketAddr>,
    failing: bool,
}

/// Targets resolved to addresses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ResolvedTargets {
    /// Configured addresses and those that names resolved to.
    pub(crate) addresses: Vec<EndpointAddr>,
    /// A name was never looked up yet, neither successfully nor in vain.
    pub(crate) pending: bool,
}

/// Change of a name's state by a lookup, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookupChange {
    /// No change.
    None,
    /// The name resolved before, or was never tried, and does not resolve now.
    Failing,
    /// The name resolves again.
    Recovered,
}

impl NameCache {
    /// Resolves targets from the cache.
    pub(crate) fn addresses(&self, targets: &[EndpointTarget]) -> ResolvedTargets {
        let mut addresses = Vec::new();
        let mut pending = false;
        for target in targets {
            match target {
                EndpointTarget::Address(address) => addresses.push(address.clone()),
                EndpointTarget::Dns { host, port } => match self.known.get(&(host.clone(), *port)) {
                    Some(known) => addresses.extend(known.good.iter().copied().map(EndpointAddr::Tcp)),
                    None => pending = true,
                },
            }
        }
        ResolvedTargets { addresses, pending }
    }

    /// Records a lookup. A failed one, or one that found no address, keeps the last good addresses.
    pub(crate) fn record(&mut self, name: Name, found: Option<Vec<SocketAddr>>) -> LookupChange {
        let known = self.known.entry(name).or_default();
        match found {
            Some(found) if !found.is_empty() => {
                known.good = found;
                if std::mem::take(&mut known.failing) {
                    LookupChange::Recovered
                } else {
                    LookupChange::None
                }
            }
            _ if std::mem::replace(&mut known.failing, true) => LookupChange::None,
            _ => LookupChange::Failing,
        }
    }

    /// Drops names that are no longer configured.
    pub(crate) fn retain(&mut self, wanted: &[Name]) {
        self.known.retain(|name, _| wanted.contains(name));
    }

    /// Whether some name has no address, so that a retry soon is worthwhile.
    pub(crate) fn any_unresolved(&self) -> bool {
        self.known.values().any(|known| known.good.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(host: &str) -> EndpointTarget {
        EndpointTarget::Dns {
            host: host.into(),
            port: 80,
        }
    }

    #[test]
    fn a_failed_lookup_keeps_what_was_known_and_is_told_once() {
        let name = || ("a".to_owned(), 80);
        let one: SocketAddr = "127.0.0.1:80".parse().expect("an address");
        let mut names = NameCache::default();
        let targets = [dns("a")];
        assert!(names.addresses(&targets).pending);
        assert_eq!(names.record(name(), None), LookupChange::Failing);
        assert!(!names.addresses(&targets).pending && names.any_unresolved());
        assert_eq!(names.record(name(), Some(vec![])), LookupChange::None);
        assert_eq!(names.record(name(), Some(vec![one])), LookupChange::Recovered);
        assert_eq!(names.record(name(), None), LookupChange::Failing);
        let known = names.addresses(&targets);
        assert_eq!(known.addresses, [EndpointAddr::Tcp(one)]);
        assert!(!names.any_unresolved());
        names.retain(&[]);
        assert!(names.addresses(&targets).pending);
    }
}
