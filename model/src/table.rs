//! The routing table: host → service, in one or a few hash lookups.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::name::{Host, Tag};
use crate::route::{RequestView, Route, Service, Visibility};
use crate::split::{TrafficSplit, TrafficTarget};

/// What hosts a service claims.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This host.
    Exact(Host),
    /// One or more labels before this suffix.
    Wildcard(Host),
}

impl HostPattern {
    /// Reads `host` or `*.suffix`.
    ///
    /// # Errors
    /// [`NameError`](crate::NameError) when what remains is no host.
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
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// Why a pattern cannot be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableError {
    /// The pattern is taken; by this service.
    Claimed(HostPattern, Arc<Service>),
    /// The service's split has no such tag.
    UnknownTag(Tag),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claimed(host, by) => {
                write!(f, "host '{host}' is already claimed by service {}", by.id)
            }
            Self::UnknownTag(tag) => write!(f, "no traffic target has tag '{tag}'"),
        }
    }
}

impl std::error::Error for TableError {}

/// Where a host leads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostEntry {
    service: Arc<Service>,
    /// Index of the tagged target, for a tag host.
    tagged: Option<usize>,
}

/// What a lookup found.
#[derive(Debug, Clone, Copy)]
pub struct Found<'t> {
    /// The service the host belongs to.
    pub service: &'t Arc<Service>,
    /// The route that matched with its index; `None` for the service's own traffic and for tags.
    pub route: Option<(usize, &'t Route)>,
    /// The split to pick from.
    pub split: &'t TrafficSplit,
    /// Set when the host or the tag header fixed the target: nothing is left to pick.
    pub tagged: Option<&'t TrafficTarget>,
}

/// Why a lookup found nothing. Both are 404 with reason `no_route`: a listener does not tell the
/// outside what exists inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// No service claims the host.
    UnknownHost,
    /// A service claims it that this listener must not serve.
    NotVisible,
}

/// Host → service.
///
/// **Invariant:** [`find`](Self::find) equals a linear scan over all patterns with exact before
/// wildcard and the longer wildcard before the shorter (a property test).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteTable {
    exact: HashMap<Host, HostEntry>,
    wildcard: HashMap<Host, HostEntry>,
}

impl std::borrow::Borrow<str> for Host {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl RouteTable {
    /// Adds a pattern for a service, or for one of its tags.
    ///
    /// # Errors
    /// [`TableError`]; the table is unchanged then.
    pub fn insert(
        &mut self,
        pattern: HostPattern,
        service: &Arc<Service>,
        tag: Option<&Tag>,
    ) -> Result<(), TableError> {
        let tagged = match tag {
            None => None,
            Some(tag) => {
                let index = service
                    .split
                    .targets()
                    .iter()
                    .position(|t| t.tag.as_ref() == Some(tag));
                Some(index.ok_or_else(|| TableError::UnknownTag(tag.clone()))?)
            }
        };
        let (map, host) = match &pattern {
            HostPattern::Exact(host) => (&mut self.exact, host),
            HostPattern::Wildcard(host) => (&mut self.wildcard, host),
        };
        if let Some(taken) = map.get(host) {
            let by = Arc::clone(&taken.service);
            return Err(TableError::Claimed(pattern, by));
        }
        map.insert(
            host.clone(),
            HostEntry {
                service: Arc::clone(service),
                tagged,
            },
        );
        Ok(())
    }

    /// The route of a request. `host` is normalised; `tag` is the tag header's value where that
    /// header is honoured (an unknown tag is ignored). Allocates nothing.
    ///
    /// # Errors
    /// [`NotFound`]; the caller answers 404 either way.
    pub fn find<'t>(
        &'t self,
        listener: Visibility,
        host: &str,
        request: &impl RequestView,
        tag: Option<&str>,
    ) -> Result<Found<'t>, NotFound> {
        let entry = self.entry(host).ok_or(NotFound::UnknownHost)?;
        let service = &entry.service;
        if !listener.may_serve(service.visibility) {
            return Err(NotFound::NotVisible);
        }
        let split = &service.split;
        let tagged = match entry.tagged {
            Some(index) => Some(&split.targets()[index]),
            None => tag.and_then(|tag| split.tagged(tag)),
        };
        if tagged.is_some() {
            return Ok(Found {
                service,
                route: None,
                split,
                tagged,
            });
        }
        let route = service
            .routes
            .iter()
            .enumerate()
            .find(|(_, r)| r.matches.matches(request));
        let split = route.map_or(split, |(_, r)| &r.split);
        Ok(Found {
            service,
            route,
            split,
            tagged: None,
        })
    }

    /// Every pattern with its service and tag, in no particular order.
    pub fn hosts(&self) -> impl Iterator<Item = (HostPattern, &Arc<Service>, Option<&Tag>)> {
        let exact = self.exact.iter().map(|(h, e)| (HostPattern::Exact(h.clone()), e));
        let wildcard = self
            .wildcard
            .iter()
            .map(|(h, e)| (HostPattern::Wildcard(h.clone()), e));
        exact.chain(wildcard).map(|(pattern, e)| {
            let tag = e.tagged.and_then(|i| e.service.split.targets()[i].tag.as_ref());
            (pattern, &e.service, tag)
        })
    }

    fn entry(&self, host: &str) -> Option<&HostEntry> {
        if let Some(entry) = self.exact.get(host) {
            return Some(entry);
        }
        if self.wildcard.is_empty() {
            return None;
        }
        // Longest suffix first: strip one label after the other.
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(entry) = self.wildcard.get(suffix) {
                return Some(entry);
            }
            rest = suffix;
        }
        None
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
