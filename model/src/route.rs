//! Routes: which requests of a service go to which split.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::{ServiceId, Tag};
use crate::revision::RevisionSpec;
use crate::split::TrafficSplit;
use crate::table::HostPattern;

/// Who may reach a route, and who comes in by a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// The world. An external listener serves external routes only.
    External,
    /// The inside. An internal listener serves external routes too.
    Internal,
}

impl Visibility {
    /// Whether a listener of this visibility may serve a route of that one.
    pub fn may_serve(self, route: Self) -> bool {
        self == Self::Internal || route == Self::External
    }
}

/// What a lookup needs to see of a request; each protocol adapter brings its own.
pub trait RequestView {
    /// The method, in upper case as sent.
    fn method(&self) -> &str;
    /// The path without query.
    fn path(&self) -> &str;
    /// The first value of a header, given in lower case.
    fn header(&self, name: &str) -> Option<&[u8]>;
}

/// How a path is matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments: `/v2` matches `/v2` and `/v2/x`, not `/v2x`.
    Prefix(String),
    /// The raw string, as in KIngress.
    RawPrefix(String),
}

impl PathMatch {
    /// Whether `path` (without query) matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(want) => path == want,
            Self::Prefix(want) => segment_rest(path, want).is_some(),
            Self::RawPrefix(want) => path.starts_with(want.as_str()),
        }
    }
}

/// What follows `prefix` in `path` when `prefix` covers whole segments.
fn segment_rest<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// How a header's value is matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderMatcher {
    /// The whole value.
    Exact(String),
    /// The start of the value.
    Prefix(String),
    /// Any value.
    Present,
}

/// One header that has to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The name in lower case.
    pub name: String,
    /// What its value has to be.
    pub matcher: HeaderMatcher,
}

impl HeaderMatch {
    fn matches(&self, request: &impl RequestView) -> bool {
        request
            .header(&self.name)
            .is_some_and(|value| match &self.matcher {
                HeaderMatcher::Exact(want) => value == want.as_bytes(),
                HeaderMatcher::Prefix(want) => value.starts_with(want.as_bytes()),
                HeaderMatcher::Present => true,
            })
    }
}

/// All that a request has to match; an empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// The path, if it matters.
    pub path: Option<PathMatch>,
    /// Every one of these.
    pub headers: Vec<HeaderMatch>,
    /// One of these, if any is given; upper case.
    pub methods: Vec<String>,
}

impl RouteMatch {
    /// Whether a request matches.
    pub fn matches(&self, request: &impl RequestView) -> bool {
        self.path.as_ref().is_none_or(|p| p.matches(request.path()))
            && (self.methods.is_empty() || self.methods.iter().any(|m| m == request.method()))
            && self.headers.iter().all(|h| h.matches(request))
    }
}

/// What the path becomes on its way to the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// The matched prefix becomes this one; without a prefix match the whole path does.
    Prefix(String),
    /// The whole path becomes this one.
    Full(String),
}

/// One rule of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What has to match.
    pub matches: RouteMatch,
    /// The Host the backend sees, if not the client's.
    pub rewrite_host: Option<String>,
    /// The path the backend sees, if not the client's.
    pub rewrite_path: Option<PathRewrite>,
    /// Headers set on the request; what the client sent under these names is overwritten.
    pub append_headers: BTreeMap<String, String>,
    /// Where matching requests go.
    pub split: TrafficSplit,
}

impl Route {
    /// The path the backend sees for `path` (without query), if it is another one.
    pub fn rewritten_path(&self, path: &str) -> Option<String> {
        match self.rewrite_path.as_ref()? {
            PathRewrite::Full(full) => Some(full.clone()),
            PathRewrite::Prefix(to) => {
                let rest = match &self.matches.path {
                    Some(PathMatch::Prefix(from)) => segment_rest(path, from)?,
                    Some(PathMatch::RawPrefix(from)) => path.strip_prefix(from.as_str())?,
                    Some(PathMatch::Exact(_)) => "",
                    None => return Some(to.clone()),
                };
                Some(join(to, rest))
            }
        }
    }
}

/// One slash between the parts, and never an empty path.
fn join(prefix: &str, rest: &str) -> String {
    let prefix = prefix.trim_end_matches('/');
    match rest.strip_prefix('/') {
        Some(rest) => format!("{prefix}/{rest}"),
        None if rest.is_empty() && prefix.is_empty() => "/".to_owned(),
        None if rest.is_empty() => prefix.to_owned(),
        None => format!("{prefix}/{rest}"),
    }
}

/// What plain HTTP gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpOption {
    /// It is served.
    Enabled,
    /// A redirect to https: 301 for GET and HEAD, 308 for the rest.
    Redirected,
}

/// What a sticky choice is a function of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StickySource {
    /// The value of this cookie.
    Cookie(String),
    /// The value of this header, in lower case.
    Header(String),
    /// The client's address.
    ClientIp,
}

/// How far a sticky choice reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StickyScope {
    /// To a revision.
    Revision,
    /// On to one endpoint of it.
    Endpoint,
}

/// A service's sticky setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// Where the key comes from; a request without it is not sticky.
    pub source: StickySource,
    /// How far the choice reaches.
    pub scope: StickyScope,
}

/// A service: what its hosts lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub id: ServiceId,
    /// Who may reach it.
    pub visibility: Visibility,
    /// What plain HTTP gets.
    pub http_option: HttpOption,
    /// Whether choices stick.
    pub sticky: Option<Sticky>,
    /// What hosts it claims: for its own traffic, or for the target of a tag.
    pub hosts: Vec<(HostPattern, Option<Tag>)>,
    /// Its own revisions, in the order of the configuration. Traffic goes to these alone:
    /// [`TrafficTarget::slot`](crate::TrafficTarget::slot) counts within them, so that no other
    /// service's change renumbers it.
    pub revisions: Vec<Arc<RevisionSpec>>,
    /// Tried in order; the first match wins.
    pub routes: Vec<Route>,
    /// The last resort. Its tags have hosts of their own.
    pub split: TrafficSplit,
}

impl Service {
    /// Every split: its own, then those of its routes.
    pub fn splits(&self) -> impl Iterator<Item = &TrafficSplit> {
        std::iter::once(&self.split).chain(self.routes.iter().map(|route| &route.split))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_matches_whole_segments_only() {
        for prefix in ["/v2", "/v2/"] {
            let prefix = PathMatch::Prefix(prefix.into());
            assert!(prefix.matches("/v2") && prefix.matches("/v2/") && prefix.matches("/v2/x"));
            assert!(!prefix.matches("/v2x") && !prefix.matches("/v") && !prefix.matches("/x/v2"));
        }
        assert!(PathMatch::Prefix("/".into()).matches("/anything"));
        assert!(PathMatch::RawPrefix("/v2".into()).matches("/v2x"));
    }

    #[test]
    fn prefixes_are_rewritten_with_one_slash() {
        for (from, to, path, want) in [
            ("/v2", "/", "/v2", "/"),
            ("/v2", "/", "/v2/x", "/x"),
            ("/v2/", "/", "/v2/x", "/x"),
            ("/v2", "/api", "/v2/x", "/api/x"),
            ("/v2", "/api/", "/v2", "/api"),
            ("/", "/api", "/x", "/api/x"),
        ] {
            let rest = segment_rest(path, from).expect("matches");
            assert_eq!(join(to, rest), want, "{from} -> {to}: {path}");
        }
    }

    #[test]
    fn internal_listeners_serve_both_external_ones_only_external() {
        use Visibility::{External, Internal};
        assert!(Internal.may_serve(External) && Internal.may_serve(Internal));
        assert!(External.may_serve(External) && !External.may_serve(Internal));
    }
}
