//! The routing table: a lookup from host to service, in one or a few hash lookups.

use std::fmt;
use std::sync::Arc;

use crate::hosts::{Claim, HostLeaf};
use crate::name::{Host, Tag};
use crate::route::{HostClaim, RequestView, Route, Rule, Service, Visibility};
use crate::shards::{Seed, Shards, by_leaf};
use crate::split::{TrafficSplit, TrafficTarget};

/// The largest number of rules of one service.
pub const MAX_RULES: usize = crate::hosts::MAX_RULE as usize + 1;

/// A host pattern that a service claims.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// One host.
    Exact(Host),
    /// A wildcard: one or more labels before this suffix.
    Wildcard(Host),
    /// Every host, of a rule of an Ingress that names none; shown as `*`. No configuration file has one, and
    /// [`parse`](Self::parse) makes none.
    Any,
}

impl HostPattern {
    /// Parses `host` or `*.suffix`.
    ///
    /// # Errors
    /// [`NameError`](crate::NameError) when `host` or `suffix` is not a host.
    pub fn parse(raw: &str) -> Result<Self, crate::NameError> {
        match raw.strip_prefix("*.") {
            Some(suffix) => Host::parse(suffix).map(Self::Wildcard),
            None => Host::parse(raw).map(Self::Exact),
        }
    }

    /// Whether a normalised host matches.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(want) => want.as_str() == host,
            Self::Wildcard(suffix) => host
                .strip_suffix(suffix.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|labels| !labels.is_empty()),
            Self::Any => true,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// The reason why a pattern cannot be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableError {
    /// The pattern is claimed by this service already.
    Claimed(HostPattern, Arc<Service>),
    /// The rule's split has no such tag.
    UnknownTag(Tag),
    /// The service has no rule of this index.
    UnknownRule(u16),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claimed(host, by) => {
                write!(f, "host '{host}' is already claimed by service {}", by.id)
            }
            Self::UnknownTag(tag) => write!(f, "no traffic target has tag '{tag}'"),
            Self::UnknownRule(rule) => write!(f, "no rule has index {rule}"),
        }
    }
}

impl std::error::Error for TableError {}

/// A service in the table with its live state `L`, which lives as long as the service is served: `()` in a table
/// without requests, the revisions' live state in a table that requests read.
#[derive(Debug, Clone)]
pub struct Entry<L = ()> {
    /// The configuration.
    pub service: Arc<Service>,
    /// The live state.
    pub live: L,
}

/// The result of a lookup.
#[derive(Debug)]
pub struct Found<'t, L = ()> {
    /// The service the host belongs to.
    pub service: &'t Arc<Service>,
    /// The live state of the service.
    pub live: &'t L,
    /// The rule of the host.
    pub rule: &'t Rule,
    /// The index of the rule in its service.
    pub rule_index: usize,
    /// The matching route with its index in the rule; `None` for the rule's own traffic and for tags.
    pub route: Option<(usize, &'t Route)>,
    /// The split to pick from.
    pub split: &'t TrafficSplit,
    /// The target that the host or the tag header selects: no target is picked then.
    pub tagged: Option<&'t TrafficTarget>,
}

// Implemented by hand: a derived `Clone` would require `L: Clone`.
impl<L> Clone for Found<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Found<'_, L> {}

/// The reason why a lookup found nothing. All are 404 with reason `no_route`: an external listener does not reveal
/// internal hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// No service claims the host.
    UnknownHost,
    /// A service claims the host, and this listener must not serve it.
    NotVisible,
    /// The request matches no route of the host's rule, which has no traffic besides its routes.
    NoMatch,
}

/// The routing table, a persistent map from host to service: a clone shares everything, and a change copies only the
/// changed leaves.
///
/// A cold lookup misses the cache once, for the slot of the host; once more, for the service, if the service has
/// routes or the request has a tag. The caller that picks a target reads the service in any case.
///
/// **Invariant:** [`find`](Self::find) equals a linear scan over all patterns with exact before
/// wildcard, the longer wildcard before the shorter, and [`HostPattern::Any`] last (a property test).
#[derive(Debug, Clone)]
pub struct RouteTable<L = ()> {
    seed: Seed,
    exact: Shards<HostLeaf<L>>,
    /// By suffix; every host has the empty one.
    wildcard: Shards<HostLeaf<L>>,
    hosts: usize,
    wildcards: usize,
}

impl<L: Clone> Default for RouteTable<L> {
    fn default() -> Self {
        Self {
            seed: Seed::of_process(),
            exact: Shards::default(),
            wildcard: Shards::default(),
            hosts: 0,
            wildcards: 0,
        }
    }
}

impl<L: Clone> RouteTable<L> {
    /// Adds a host of a service.
    ///
    /// # Errors
    /// [`TableError`]; the table is unchanged then.
    pub fn insert(&mut self, claim: &HostClaim, entry: &Entry<L>) -> Result<(), TableError> {
        let HostClaim { pattern, rule, tag } = claim;
        let at = usize::from(*rule);
        if at > entry.service.further.len() || at >= MAX_RULES {
            return Err(TableError::UnknownRule(*rule));
        }
        let tagged = match tag {
            None => None,
            Some(tag) => {
                let mut targets = entry.service.rule(at).split.targets().iter();
                let index = targets.position(|t| t.tag.as_ref() == Some(tag));
                Some(index.ok_or_else(|| TableError::UnknownTag(tag.clone()))?)
            }
        };
        let (shards, host) = match pattern {
            HostPattern::Exact(host) => (&mut self.exact, host.as_str()),
            HostPattern::Wildcard(host) => (&mut self.wildcard, host.as_str()),
            HostPattern::Any => (&mut self.wildcard, ""),
        };
        let hash = self.seed.hash(host.as_bytes());
        if let Some(taken) = shards.get(hash).get(hash, host) {
            let by = Arc::clone(&taken.entry.service);
            return Err(TableError::Claimed(pattern.clone(), by));
        }
        shards
            .get_mut(hash)
            .insert(hash, host, entry.clone(), *rule, tagged);
        self.hosts += 1;
        self.wildcards += usize::from(!matches!(pattern, HostPattern::Exact(_)));
        Ok(())
    }

    /// Makes room for many patterns that are inserted next: a leaf that grows step by step leaves free memory behind.
    pub(crate) fn reserve<'p>(&mut self, patterns: impl Iterator<Item = &'p HostPattern> + Clone) {
        let seed = self.seed;
        let exact = patterns.clone().filter_map(|pattern| match pattern {
            HostPattern::Exact(host) => Some(seed.hash(host.as_str().as_bytes())),
            HostPattern::Wildcard(_) | HostPattern::Any => None,
        });
        let wildcard = patterns.filter_map(|pattern| match pattern {
            HostPattern::Wildcard(host) => Some(seed.hash(host.as_str().as_bytes())),
            HostPattern::Exact(_) | HostPattern::Any => None,
        });
        for (shards, leaves) in [
            (&mut self.exact, by_leaf(exact).collect::<Vec<_>>()),
            (&mut self.wildcard, by_leaf(wildcard).collect()),
        ] {
            for (hash, more) in leaves.into_iter().filter(|(_, more)| *more > 0) {
                shards.get_mut(hash).reserve(more);
            }
        }
    }

    /// Removes a pattern, if the table has the pattern.
    pub fn remove(&mut self, pattern: &HostPattern) {
        let (shards, host) = match pattern {
            HostPattern::Exact(host) => (&mut self.exact, host.as_str()),
            HostPattern::Wildcard(host) => (&mut self.wildcard, host.as_str()),
            HostPattern::Any => (&mut self.wildcard, ""),
        };
        let hash = self.seed.hash(host.as_bytes());
        if shards.get(hash).get(hash, host).is_some() {
            shards.get_mut(hash).remove(hash, host);
            self.hosts -= 1;
            self.wildcards -= usize::from(!matches!(pattern, HostPattern::Exact(_)));
        }
    }

    /// The route of a request. `host` is normalised; `tag` is the value of the tag header where that header is
    /// honoured (an unknown tag is ignored). Allocates nothing.
    ///
    /// # Errors
    /// [`NotFound`]; the caller responds with 404 in both cases.
    pub fn find<'t>(
        &'t self,
        listener: Visibility,
        host: &str,
        request: &impl RequestView,
        tag: Option<&str>,
    ) -> Result<Found<'t, L>, NotFound> {
        let claim = self.claim(host).ok_or(NotFound::UnknownHost)?;
        let Entry { service, live } = claim.entry;
        if !listener.may_serve(claim.visibility()) {
            return Err(NotFound::NotVisible);
        }
        let rule = service.rule(claim.rule());
        let split = &rule.split;
        let tagged = match claim.tagged() {
            Some(index) => Some(&split.targets()[index]),
            None => tag.and_then(|tag| split.tagged(tag)),
        };
        let route = match tagged {
            Some(_) => None,
            None if !claim.has_routes() => None,
            None => {
                let mut routes = rule.routes.iter().enumerate();
                let found = routes.find(|(_, route)| route.matches.matches(request));
                if found.is_none() && split.is_none() {
                    return Err(NotFound::NoMatch);
                }
                found
            }
        };
        Ok(Found {
            service,
            live,
            rule,
            rule_index: claim.rule(),
            route,
            split: route.map_or(split, |(_, route)| &route.split),
            tagged,
        })
    }

    /// The number of patterns, exact ones and wildcards.
    pub fn len(&self) -> usize {
        self.hosts
    }

    /// Whether the table has no pattern.
    pub fn is_empty(&self) -> bool {
        self.hosts == 0
    }

    /// Every pattern with its service and tag, in no particular order.
    pub fn hosts(&self) -> impl Iterator<Item = (HostPattern, &Arc<Service>, Option<&Tag>)> {
        self.host_rules()
            .map(|(pattern, service, _, tag)| (pattern, service, tag))
    }

    /// Every pattern with its service, the index of its rule, and its tag, in no particular order.
    pub fn host_rules(&self) -> impl Iterator<Item = (HostPattern, &Arc<Service>, usize, Option<&Tag>)> {
        self.claims().map(|(pattern, claim)| {
            let service = &claim.entry.service;
            let targets = service.rule(claim.rule()).split.targets();
            let tag = claim.tagged().and_then(|index| targets[index].tag.as_ref());
            (pattern, service, claim.rule(), tag)
        })
    }

    fn claims(&self) -> impl Iterator<Item = (HostPattern, Claim<'_, L>)> {
        let exact = self.exact.iter().flat_map(HostLeaf::iter);
        let exact = exact.map(|(text, claim)| (HostPattern::Exact(Host::of_checked(text)), claim));
        let wildcard = self.wildcard.iter().flat_map(HostLeaf::iter);
        let wildcard = wildcard.map(|(text, claim)| match text {
            [] => (HostPattern::Any, claim),
            suffix => (HostPattern::Wildcard(Host::of_checked(suffix)), claim),
        });
        exact.chain(wildcard)
    }

    fn claim(&self, host: &str) -> Option<Claim<'_, L>> {
        let hash = self.seed.hash(host.as_bytes());
        if let Some(claim) = self.exact.get(hash).get(hash, host) {
            return Some(claim);
        }
        if self.wildcards == 0 {
            return None;
        }
        // The longest suffix first: strips one label after the other.
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            let hash = self.seed.hash(suffix.as_bytes());
            if let Some(claim) = self.wildcard.get(hash).get(hash, suffix) {
                return Some(claim);
            }
            rest = suffix;
        }
        let hash = self.seed.hash(b"");
        self.wildcard.get(hash).get(hash, "")
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
