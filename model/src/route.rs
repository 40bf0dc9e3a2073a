//! Routes: the rules that match requests of a service to a split.

use std::sync::Arc;

use crate::cold::{ColdAnswer, NoWake, WaitingPage};
use crate::name::{ServiceId, Tag};
use crate::revision::RevisionSpec;
use crate::split::TrafficSplit;
use crate::table::HostPattern;

/// The visibility of a route or of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Public. An external listener serves external routes only.
    External,
    /// Internal. An internal listener serves external routes too.
    Internal,
}

impl Visibility {
    /// Whether a listener of this visibility may serve a route of visibility `route`.
    pub fn may_serve(self, route: Self) -> bool {
        self == Self::Internal || route == Self::External
    }
}

/// The parts of a request that a lookup reads; each protocol adapter implements this trait.
pub trait RequestView {
    /// The method, in upper case as sent.
    fn method(&self) -> &str;
    /// The path without query.
    fn path(&self) -> &str;
    /// The first value of a header, given in lower case.
    fn header(&self, name: &str) -> Option<&[u8]>;
}

/// A path match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Matches the whole path.
    Exact(String),
    /// Matches whole segments: `/v2` matches `/v2` and `/v2/x`, not `/v2x`.
    Prefix(String),
    /// Matches the start of the path as a string, as in KIngress.
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

/// The rest of `path` after `prefix`, if `prefix` covers whole segments.
fn segment_rest<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// A match of a header's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderMatcher {
    /// Matches the whole value.
    Exact(String),
    /// Matches the start of the value.
    Prefix(String),
    /// Matches any value.
    Present,
}

/// A match of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The name in lower case.
    pub name: String,
    /// The match of the value.
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

/// The conditions of a route, all of which a request has to match; empty conditions match every request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// The path match, if any.
    pub path: Option<PathMatch>,
    /// Header matches, all of which have to match.
    pub headers: Vec<HeaderMatch>,
    /// Methods, one of which has to match, if there are any; upper case.
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

/// A rewrite of the path on the way to the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// Replaces the matched prefix; without a prefix match the whole path.
    Prefix(String),
    /// Replaces the whole path.
    Full(String),
}

/// One route of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The conditions.
    pub matches: RouteMatch,
    /// The Host for the backend, if it is rewritten.
    pub rewrite_host: Option<String>,
    /// The path rewrite for the backend, if any.
    pub rewrite_path: Option<PathRewrite>,
    /// Headers that are set on the request; a client's values under these names are overwritten.
    pub append_headers: Arc<[(String, String)]>,
    /// The cold answer; `None`: the service's.
    pub cold: Option<Arc<ColdAnswer>>,
    /// The split of matching requests.
    pub split: TrafficSplit,
}

impl Route {
    /// The rewritten path of `path` (without query), if it differs.
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

/// Joins two parts with one slash; the result is never empty.
fn join(prefix: &str, rest: &str) -> String {
    let prefix = prefix.trim_end_matches('/');
    match rest.strip_prefix('/') {
        Some(rest) => format!("{prefix}/{rest}"),
        None if rest.is_empty() && prefix.is_empty() => "/".to_owned(),
        None if rest.is_empty() => prefix.to_owned(),
        None => format!("{prefix}/{rest}"),
    }
}

/// The treatment of plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpOption {
    /// Plain HTTP is served.
    Enabled,
    /// A redirect to https: 301 for GET and HEAD, 308 for the rest.
    Redirected,
}

/// The source of the key of a sticky choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StickySource {
    /// The value of this cookie.
    Cookie(String),
    /// The value of this header, in lower case.
    Header(String),
    /// The client's address.
    ClientIp,
}

/// The scope of a sticky choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StickyScope {
    /// The choice of a revision.
    Revision,
    /// The choice of a revision and of one endpoint of the revision.
    Endpoint,
}

/// The session affinity of a service ("sticky").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// The source of the key; a request without the key is not sticky.
    pub source: StickySource,
    /// The scope of the choice.
    pub scope: StickyScope,
}

/// The rule of some hosts of a service: who may reach these hosts, and which split a request goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The listeners that serve the rule.
    pub visibility: Visibility,
    /// The treatment of plain HTTP.
    pub http_option: HttpOption,
    /// Tried in order; the first match wins.
    pub routes: Vec<Route>,
    /// The split of requests that match no route. Its tags have hosts of their own. [`TrafficSplit::none`]: such
    /// requests are answered 404; then there are routes.
    pub split: TrafficSplit,
}

impl Rule {
    /// All splits: the rule's own, then those of its routes.
    pub fn splits(&self) -> impl Iterator<Item = &TrafficSplit> {
        std::iter::once(&self.split).chain(self.routes.iter().map(|route| &route.split))
    }
}

/// A claim of a host by a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostClaim {
    /// The host, or a wildcard.
    pub pattern: HostPattern,
    /// The index of the rule that the host leads to, for [`Service::rule`].
    pub rule: u16,
    /// The tag in the split of the rule, for a host that leads to the target of a tag.
    pub tag: Option<Tag>,
}

/// A certificate chain with its key, as PEM text, not as files.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificatePem {
    /// The chain, leaf first.
    pub chain: Arc<[u8]>,
    /// The private key: a secret.
    pub key: Arc<[u8]>,
}

/// Without the key.
impl std::fmt::Debug for CertificatePem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificatePem").finish_non_exhaustive()
    }
}

/// A certificate that a service brings for its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCertificate {
    /// The listeners that offer the certificate: only those of this very visibility.
    pub visibility: Visibility,
    /// The name of the certificate, for people: namespace and name of a Secret.
    pub name: String,
    /// The content.
    pub pem: CertificatePem,
}

/// The parts of a service that only an Ingress of a cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressExtras {
    /// The version of the Ingress, by which Knative's probes tell whether it is served (`K-Network-Hash`): the
    /// SHA-256 of its specification, namespace and name, in lower-case hexadecimal digits.
    pub network_hash: String,
    /// The certificates of its hosts.
    pub certificates: Vec<ServiceCertificate>,
}

/// A service: the configuration behind its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub id: ServiceId,
    /// Session affinity, if any.
    pub sticky: Option<Box<Sticky>>,
    /// The cold answer; `None`: requests are held.
    pub cold: Option<Arc<ColdAnswer>>,
    /// Which requests start nothing and count as no activity; `None`: no request does.
    pub no_wake: Option<Arc<NoWake>>,
    /// An operator paused the service: requests to all of its revisions are held, also those that could be served at once.
    pub paused: bool,
    /// The hosts that the service claims.
    pub hosts: Vec<HostClaim>,
    /// The service's own revisions, in the order of the configuration. Traffic goes to these revisions alone:
    /// [`TrafficTarget::slot`](crate::TrafficTarget::slot) is an index into this list, so that a change of another
    /// service renumbers nothing.
    pub revisions: Vec<Arc<RevisionSpec>>,
    /// The first rule: of a service in files the only one.
    pub main: Rule,
    /// Further rules; only an Ingress has any. Apart from the first rule, which costs no allocation so.
    pub further: Box<[Rule]>,
    /// What only an Ingress has.
    pub ingress: Option<Box<IngressExtras>>,
}

impl Service {
    /// All waiting pages: the service's own, then those of its routes.
    pub fn pages(&self) -> impl Iterator<Item = &WaitingPage> {
        let routes = self
            .rules()
            .flat_map(|rule| &rule.routes)
            .map(|route| &route.cold);
        std::iter::once(&self.cold)
            .chain(routes)
            .filter_map(|cold| match cold.as_deref() {
                Some(ColdAnswer::Page(page)) => Some(page),
                _ => None,
            })
    }

    /// All rules, in the order of their indices.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        std::iter::once(&self.main).chain(&self.further)
    }

    /// The rule with this index. Panics if the service has no such rule: a Snapshot has no such claim.
    pub fn rule(&self, index: usize) -> &Rule {
        match index.checked_sub(1) {
            None => &self.main,
            Some(further) => &self.further[further],
        }
    }

    /// All splits of all rules.
    pub fn splits(&self) -> impl Iterator<Item = &TrafficSplit> {
        self.rules().flat_map(Rule::splits)
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
