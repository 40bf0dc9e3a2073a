//! Services: hosts, routes, stickiness.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use sluice_config_shape::{
    Choice, Flag, List, Located, NodeRef, Object, Record, Table, Verbatim, WithLocation,
};
use sluice_model::{
    HeaderMatch, HeaderMatcher, HostPattern, HttpOption, NoWake, PathMatch, PathRewrite, RouteMatch, Sticky,
    StickyScope, StickySource, Visibility,
};

use super::cold::{COLD, ColdDraft};
use super::manifest::{ManifestDraft, RouteOfManifest};
use super::names::{AUTHORITY, COOKIE_NAME, HEADER_NAME, HOST_PATTERN, LABEL, METHOD, URL_PATH, header_name};
use super::no_wake::NO_WAKE;
use super::revision::{BACKENDS, REVISION, RevisionDraft, SET, revision_keys};
use super::rollout::ROLLOUT;
use super::traffic::{TargetRevision, Traffic, TrafficShape};
use crate::rollout::RolloutPolicy;

/// The visibility of a service, and of a listener.
pub(super) const VISIBILITY: Choice<Visibility> = Choice(&[
    ("external", Visibility::External),
    ("internal", Visibility::Internal),
]);

/// A service, as far as it could be decoded.
#[derive(Debug, Clone)]
pub(crate) struct ServiceDraft {
    pub(crate) node: NodeRef,
    /// `None` after a mistake.
    pub(crate) name: Option<Located<String>>,
    /// `None` after a mistake.
    pub(crate) namespace: Option<String>,
    pub(crate) visibility: Visibility,
    pub(crate) hosts: Vec<Located<HostPattern>>,
    pub(crate) http_option: HttpOption,
    pub(crate) traffic: Option<Traffic>,
    pub(crate) sticky: Option<Sticky>,
    pub(crate) cold: Option<ColdDraft>,
    pub(crate) no_wake: Option<NoWake>,
    /// How traffic moves to a new latest revision; `None`: at once.
    pub(crate) rollout: Option<Arc<RolloutPolicy>>,
    /// The annotation of a manifest that asks for a rollout.
    pub(crate) rollout_at: Option<NodeRef>,
    pub(crate) routes: Vec<RouteDraft>,
    pub(crate) revisions: Vec<RevisionDraft>,
    /// Every revision has its name, so that a target with an unknown name is an error of its own.
    pub(crate) all_named: bool,
    /// A shorthand: the service itself is its one revision.
    pub(crate) shorthand: bool,
    /// The service is a manifest, with a history.
    pub(crate) manifest: Option<ManifestDraft>,
    /// The service is a Route, whose Configuration is to be found.
    pub(crate) route: Option<Box<RouteOfManifest>>,
    /// The Configuration of a Route.
    pub(crate) further: Option<NodeRef>,
}

impl ServiceDraft {
    /// A digest of the service as the files have it.
    pub(crate) fn digest(&self) -> u64 {
        let further = self.further.as_ref().map_or(0, NodeRef::digest);
        self.node.digest() ^ further.rotate_left(1)
    }

    /// The files of waiting pages.
    pub(crate) fn page_files(&self) -> impl Iterator<Item = &Located<PathBuf>> {
        let routes = self.routes.iter().map(|route| &route.cold);
        let all = std::iter::once(&self.cold).chain(routes);
        all.filter_map(|cold| cold.as_ref()?.file.as_ref())
    }
}

/// A route, as far as it could be decoded.
#[derive(Debug, Clone)]
pub(crate) struct RouteDraft {
    pub(crate) matches: RouteMatch,
    pub(crate) rewrite_host: Option<String>,
    pub(crate) rewrite_path: Option<PathRewrite>,
    pub(crate) append_headers: BTreeMap<String, String>,
    /// The route's cold answer; `None`: the service's.
    pub(crate) cold: Option<ColdDraft>,
    /// The route's traffic; `None`: the service's.
    pub(crate) traffic: Option<Traffic>,
}

pub(super) const SERVICE: Record<ServiceDraft> = Record {
    name: "Service",
    doc: "What hosts lead to. With endpoints, a url or a process of its own it is shorthand for one revision, {name}-00001, and takes every key of one.",
    decode: service,
};

fn service(o: &mut Object<'_>) -> Option<ServiceDraft> {
    let name = o.required("name", "Unique in its namespace.", WithLocation(LABEL));
    let namespace = o.optional("namespace", "Default: default.", LABEL);
    let visibility = o.or(
        "visibility",
        "internal: served by internal listeners only.",
        VISIBILITY,
        Visibility::External,
    );
    let hosts = o.optional(
        "hosts",
        "Besides {service}.{namespace}.{domain}. *.example.com is one or more labels. Tags: {tag}-{host}.",
        List(WithLocation(HOST_PATTERN)),
    );
    let http_option = o.or(
        "httpOption",
        "redirected: plain HTTP gets a redirect to https, 301 for GET and HEAD, 308 for the rest.",
        Choice(&[
            ("enabled", HttpOption::Enabled),
            ("redirected", HttpOption::Redirected),
        ]),
        HttpOption::Enabled,
    );
    let traffic = o.optional(
        "traffic",
        "Shares of the revisions. Default: 100 % to the last one listed.",
        TrafficShape { tags: true },
    );
    let sticky = o.optional("sticky", "Makes choices a function of the client.", STICKY);
    let cold = o.optional(
        "cold",
        "What a client gets while nothing is ready and something starts. Default: requests are held.",
        COLD,
    );
    let no_wake = o.optional(
        "noWake",
        "Requests that start nothing and count as no activity; any entry has to match. At zero they get 503, reason dormant.",
        NO_WAKE,
    );
    let rollout = o.optional(
        "rollout",
        "How traffic moves to a new latest revision. Default: at once.",
        WithLocation(ROLLOUT),
    );
    let routes = o.optional(
        "routes",
        "The first match wins; the service's own traffic is the last resort.",
        List(ROUTE),
    );
    let before = o.cx.errors();
    let revisions = o.optional("revisions", "Versions of the service.", List(REVISION));
    // Missing keys are reported after the mistakes of present keys; see close().
    let listed_sound = o.cx.errors() == before;
    let beside = o.asked();
    let own = revision_keys(o);
    let own_keys = o.asked_since(beside);
    o.close();
    let revisions = match revisions {
        Some(revisions) => {
            reject_own_keys(o, &own_keys);
            if revisions.is_empty() && listed_sound {
                no_revisions(o);
            }
            revisions
        }
        None if o.has("revisions") => Vec::new(),
        None if BACKENDS.iter().any(|key| o.has_or_meant(key)) => vec![own],
        None => {
            if !o.has_or_meant("revisions") {
                no_revisions(o);
            }
            Vec::new()
        }
    };
    check_repeated_hosts(o, hosts.as_deref().unwrap_or_default());
    if let (Some(rollout), Some(traffic)) = (&rollout, &traffic)
        && !routes
            .iter()
            .flatten()
            .any(|route| route.traffic.as_ref().is_some_and(follows_latest))
        && !follows_latest(traffic)
    {
        let diagnostic = rollout
            .node
            .whole()
            .error("no share follows the latest revision: there is nothing to roll out");
        let hint = "give a target latestRevision: true in place of revisionName";
        o.cx.report(diagnostic.hint(hint).warning());
    }
    let shorthand = !o.has("revisions");
    let all_named = if shorthand {
        !revisions.is_empty()
    } else {
        decoded_all(o, &revisions) && revisions.iter().all(|r| r.name.is_some())
    };
    Some(ServiceDraft {
        node: o.at.clone(),
        all_named,
        shorthand,
        manifest: None,
        route: None,
        further: None,
        namespace: if o.has("namespace") {
            namespace
        } else {
            Some("default".to_owned())
        },
        name,
        visibility,
        hosts: hosts.unwrap_or_default(),
        http_option,
        traffic,
        sticky: sticky.flatten(),
        cold,
        no_wake,
        rollout: rollout.and_then(|rollout| rollout.value),
        rollout_at: None,
        routes: routes.unwrap_or_default(),
        revisions,
    })
}

/// Whether some share follows the latest revision.
fn follows_latest(traffic: &Traffic) -> bool {
    let mut targets = traffic
        .targets
        .iter()
        .filter(|target| target.percent.hundredths() > 0);
    targets.any(|target| !matches!(target.revision, TargetRevision::Named { .. }))
}

/// Whether every element of `revisions` became a draft.
fn decoded_all(o: &Object<'_>, revisions: &[RevisionDraft]) -> bool {
    o.value("revisions")
        .is_some_and(|v| v.list_len() == Some(revisions.len()))
}

fn no_revisions(o: &mut Object<'_>) {
    let diagnostic = o.at.whole().error("the service has no revisions");
    let hint = "give it revisions, or endpoints, a url or a process of its own";
    o.cx.report(diagnostic.hint(hint));
}

/// Reports keys of a revision beside `revisions`.
fn reject_own_keys(o: &mut Object<'_>, own: &[&'static str]) {
    for name in own {
        if let Some(key) = o.key(name) {
            let message = format!("'{name}' stands beside 'revisions'");
            let hint = "move it into the revisions that it is meant for";
            o.cx.report(key.error(message).hint(hint));
        }
    }
}

fn check_repeated_hosts(o: &mut Object<'_>, hosts: &[Located<HostPattern>]) {
    let mut first = std::collections::HashMap::new();
    for host in hosts {
        if let Some(earlier) = first.get(&host.value) {
            let earlier: &&NodeRef = earlier;
            let message = format!("the host '{}' is listed twice", host.value);
            let diagnostic = host.node.error(message).hint("leave one out");
            o.cx.report(diagnostic.related(earlier.location(), "it is listed here first"));
        } else {
            first.insert(&host.value, &host.node);
        }
    }
}

const STICKY: Record<Option<Sticky>> = Record {
    name: "Sticky",
    doc: "Where the key of a sticky choice comes from. A request without it is not sticky.",
    decode: |o| {
        let cookie = o.optional("cookie", "The value of this cookie.", COOKIE_NAME);
        let header = o.optional("header", "The value of this header.", HEADER_NAME);
        let client_ip = o.optional("clientIp", "true: the client's address.", WithLocation(Flag));
        if let Some(no) = client_ip.as_ref().filter(|yes| !yes.value) {
            let diagnostic = no.node.error("clientIp: false makes nothing sticky");
            o.cx.report(diagnostic.hint("leave sticky out"));
        }
        let scope = o.or(
            "scope",
            "How far the choice reaches: to a revision, or on to one endpoint of it.",
            Choice(&[
                ("revision", StickyScope::Revision),
                ("endpoint", StickyScope::Endpoint),
            ]),
            StickyScope::Revision,
        );
        let keys = ["cookie", "header", "clientIp"];
        o.want_one_of(
            &keys,
            "nothing says what is sticky",
            "give cookie, header or clientIp: true",
        );
        let source = match o.only_one_of(&keys) {
            Some("cookie") => cookie.map(StickySource::Cookie),
            Some("header") => header.map(StickySource::Header),
            Some(_) => client_ip.map(|_| StickySource::ClientIp),
            None => None,
        };
        Some(source.map(|source| Sticky { source, scope }))
    },
};

const ROUTE: Record<RouteDraft> = Record {
    name: "Route",
    doc: "Which requests of a service go elsewhere than its own traffic.",
    decode: |o| {
        let matches = o.optional(
            "match",
            "All that a request has to match; without it every one does.",
            MATCH,
        );
        Some(RouteDraft {
            matches: matches.unwrap_or_default(),
            rewrite_host: o.optional("rewriteHost", "The Host the backend sees.", AUTHORITY),
            rewrite_path: o
                .optional("rewritePath", "What the path becomes.", REWRITE)
                .flatten(),
            append_headers: o
                .optional(
                    "appendHeaders",
                    "Set on the request; what the client sent is overwritten.",
                    SET,
                )
                .unwrap_or_default(),
            cold: o.optional(
                "cold",
                "The cold answer to matching requests; without it the service's.",
                COLD,
            ),
            traffic: o.optional(
                "traffic",
                "Where matching requests go; without it the service's own traffic.",
                TrafficShape { tags: false },
            ),
        })
    },
};

const MATCH: Record<RouteMatch> = Record {
    name: "Match",
    doc: "All that a request has to match.",
    decode: |o| {
        let headers = o.optional("headers", "Every one of these headers.", HEADERS);
        Some(RouteMatch {
            path: o.optional("path", "The path.", PATH).flatten(),
            headers: headers
                .unwrap_or_default()
                .into_iter()
                .filter_map(|(name, matcher)| {
                    Some(HeaderMatch {
                        name,
                        matcher: matcher?,
                    })
                })
                .collect(),
            methods: o
                .optional("methods", "One of these methods.", List(METHOD))
                .unwrap_or_default(),
        })
    },
};

const PATH: Record<Option<PathMatch>> = Record {
    name: "PathMatch",
    doc: "One way to match a path.",
    decode: |o| {
        let exact = o.optional("exact", "The whole path.", URL_PATH);
        let prefix = o.optional(
            "prefix",
            "Whole segments: /v2 matches /v2 and /v2/x, not /v2x.",
            URL_PATH,
        );
        let raw = o.optional("rawPrefix", "The raw string, as in KIngress.", URL_PATH);
        let keys = ["exact", "prefix", "rawPrefix"];
        o.want_one_of(
            &keys,
            "nothing says how the path matches",
            "give exact, prefix or rawPrefix",
        );
        Some(match o.only_one_of(&keys) {
            Some("exact") => exact.map(PathMatch::Exact),
            Some("prefix") => prefix.map(PathMatch::Prefix),
            _ => raw.map(PathMatch::RawPrefix),
        })
    },
};

const HEADERS: Table<Record<Option<HeaderMatcher>>> = Table {
    check: header_name,
    values: Record {
        name: "HeaderMatch",
        doc: "One way to match a header's value.",
        decode: |o| {
            let exact = o.optional("exact", "The whole value.", Verbatim);
            let prefix = o.optional("prefix", "The start of the value.", Verbatim);
            let present = o.optional("present", "true: any value.", WithLocation(Flag));
            if let Some(present) = present.as_ref().filter(|p| !p.value) {
                let diagnostic = present.node.error("only the presence of a header can be matched");
                o.cx.report(diagnostic.hint("write present: true, or leave it out"));
            }
            let keys = ["exact", "prefix", "present"];
            o.want_one_of(
                &keys,
                "nothing says how the header matches",
                "give exact, prefix or present: true",
            );
            Some(match o.only_one_of(&keys) {
                Some("exact") => exact.map(HeaderMatcher::Exact),
                Some("prefix") => prefix.map(HeaderMatcher::Prefix),
                Some(_) => Some(HeaderMatcher::Present),
                None => None,
            })
        },
    },
};

const REWRITE: Record<Option<PathRewrite>> = Record {
    name: "PathRewrite",
    doc: "What a path becomes on its way to the backend.",
    decode: |o| {
        let prefix = o.optional(
            "prefix",
            "Replaces the matched prefix; without a prefix match the whole path.",
            URL_PATH,
        );
        let full = o.optional("full", "Replaces the whole path.", URL_PATH);
        let keys = ["prefix", "full"];
        o.want_one_of(&keys, "nothing says what the path becomes", "give prefix or full");
        Some(match o.only_one_of(&keys) {
            Some("prefix") => prefix.map(PathRewrite::Prefix),
            _ => full.map(PathRewrite::Full),
        })
    },
};
