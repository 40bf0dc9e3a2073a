//! Resolving an Ingress: its specification, and the objects that it names, become a service. Pure.
//!
//! Sources: validation and defaults of knative.dev/networking (`ingress_validation.go`, `ingress_defaults.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_model::{
    Backend, EndpointAddr, EndpointTarget, Host, HostClaim, HostPattern, HttpOption, IngressExtras,
    MAX_RULES, PathMatch, Percent, Protocol, RevisionId, RevisionSettings, RevisionSpec, Route, RouteMatch,
    Rule, ServiceCertificate, ServiceId, TrafficSplit, TrafficTarget, Visibility,
};
use sluice_model::{HeaderMatch, HeaderMatcher, Pods, Service};

use super::endpoints::Condition;
use super::hash::network_hash;
use super::hosts::forms;
use super::objects::{
    Headers, IngressPath, IngressRule, IngressSpec, IngressSplit, IngressTls, PortName, ServicePort,
    ServiceSpec,
};
use super::store::Objects;
use crate::ingress::{IngressProblem, ProblemKind};
use crate::object_name::ObjectName;

/// A resolved specification.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) service: Service,
    /// The Services that have no ready endpoint, with their ports.
    pub(super) not_ready: BTreeSet<BackendName>,
}

/// A Service and its port, as a split names them.
pub(super) type BackendName = (String, PortName);

/// Settings of the resolution that are the same for all Ingresses.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// `cluster.local` as a rule.
    pub(super) cluster_domain: String,
    /// The name of our own Service inside the cluster: what leads to it would come back to us.
    pub(super) own_service: String,
    /// The settings of a revision that the Ingress sets no other ones for.
    pub(super) settings: Arc<RevisionSettings>,
}

/// Resolves a specification.
///
/// # Errors
/// The first [`IngressProblem`] that keeps it from being served.
pub(super) fn resolve(
    name: &ObjectName,
    spec: &IngressSpec,
    objects: &Objects,
    policy: &Policy,
) -> Result<Resolved, IngressProblem> {
    let id =
        ServiceId::of_object(name.namespace(), name.name()).map_err(|e| invalid(format!("name: {e}")))?;
    if spec.rules.is_empty() {
        return Err(invalid("spec.rules is empty"));
    }
    if spec.rules.len() > MAX_RULES {
        return Err(invalid(format!("spec.rules has more than {MAX_RULES} rules")));
    }
    let redirected = match spec.http_option.as_str() {
        "" | "Enabled" => false,
        "Redirected" => true,
        other => {
            return Err(invalid(format!(
                "spec.httpOption '{other}' is neither Enabled nor Redirected"
            )));
        }
    };
    let mut build = Build {
        name,
        id: &id,
        objects,
        policy,
        revisions: Vec::new(),
        slots: BTreeMap::new(),
        not_ready: BTreeSet::new(),
    };
    let mut rules = Vec::with_capacity(spec.rules.len());
    let mut hosts: Vec<HostClaim> = Vec::new();
    let mut taken = BTreeSet::new();
    for (nth, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{nth}]");
        for pattern in patterns(rule, &at, &policy.cluster_domain)? {
            // The first rule of a host wins.
            if taken.insert(pattern.clone()) {
                hosts.push(HostClaim {
                    pattern,
                    rule: u16::try_from(nth).unwrap_or(u16::MAX),
                    tag: None,
                });
            }
        }
        rules.push(build.rule(rule, redirected, &at)?);
    }
    let certificates = certificates(name, spec, objects)?;
    let mut rules = rules.into_iter();
    let main = rules.next().ok_or_else(|| invalid("spec.rules is empty"))?;
    let Build {
        revisions, not_ready, ..
    } = build;
    let service = Service {
        id,
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts,
        revisions,
        main,
        further: rules.collect(),
        ingress: Some(Box::new(IngressExtras {
            network_hash: network_hash(spec, name.namespace(), name.name()),
            certificates,
        })),
    };
    Ok(Resolved { service, not_ready })
}

/// The Services that a specification names, and their ports.
pub(super) fn backends(spec: &IngressSpec) -> BTreeSet<BackendName> {
    let named = splits(spec).map(|split| (split.service_name.clone(), split.service_port.clone()));
    named.collect()
}

/// The revisions of Knative's that a specification names, in the headers of its splits.
pub(super) fn revisions(spec: &IngressSpec) -> BTreeSet<ObjectName> {
    splits(spec).filter_map(revision_of).collect()
}

/// The revision of Knative's that a split leads to: its Service stands for whoever is on the path.
fn revision_of(split: &IngressSplit) -> Option<ObjectName> {
    let namespace = split.append_headers.get("Knative-Serving-Namespace")?;
    let name = split.append_headers.get("Knative-Serving-Revision")?;
    // Of another namespace it would be an instruction of one tenant about another's Pods.
    (namespace == split.service_namespace).then(|| ObjectName::new(namespace, name))
}

/// The Secrets that a specification names.
pub(super) fn secrets(spec: &IngressSpec) -> BTreeSet<ObjectName> {
    let named = spec
        .tls
        .iter()
        .map(|tls| ObjectName::new(&tls.secret_namespace, &tls.secret_name));
    named.collect()
}

fn splits(spec: &IngressSpec) -> impl Iterator<Item = &IngressSplit> {
    let http = spec.rules.iter().filter_map(|rule| rule.http.as_ref());
    let paths = http.flat_map(|http| http.paths.iter().flatten());
    paths.flat_map(|path| path.splits.iter().flatten())
}

fn invalid(message: impl Into<String>) -> IngressProblem {
    IngressProblem::new(ProblemKind::Invalid, message)
}

fn missing(message: impl Into<String>) -> IngressProblem {
    IngressProblem::new(ProblemKind::Missing, message)
}

pub(super) fn visibility(rule: &IngressRule, at: &str) -> Result<Visibility, IngressProblem> {
    match rule.visibility.as_str() {
        "" | "ExternalIP" => Ok(Visibility::External),
        "ClusterLocal" => Ok(Visibility::Internal),
        other => Err(invalid(format!(
            "{at}.visibility '{other}' is neither ExternalIP nor ClusterLocal"
        ))),
    }
}

fn patterns(rule: &IngressRule, at: &str, cluster_domain: &str) -> Result<Vec<HostPattern>, IngressProblem> {
    if rule.hosts.is_empty() {
        return Ok(vec![HostPattern::Any]);
    }
    let mut patterns = Vec::new();
    for (nth, host) in rule.hosts.iter().enumerate() {
        let parsed = Host::parse(host).map_err(|e| invalid(format!("{at}.hosts[{nth}] '{host}': {e}")))?;
        for form in forms(parsed.as_str(), cluster_domain) {
            let form = Host::parse(form).map_err(|e| invalid(format!("{at}.hosts[{nth}]: {e}")))?;
            patterns.push(HostPattern::Exact(form));
        }
    }
    Ok(patterns)
}

/// The service under construction.
pub(super) struct Build<'o> {
    pub(super) name: &'o ObjectName,
    id: &'o ServiceId,
    pub(super) objects: &'o Objects,
    pub(super) policy: &'o Policy,
    revisions: Vec<Arc<RevisionSpec>>,
    slots: BTreeMap<BackendName, usize>,
    not_ready: BTreeSet<BackendName>,
}

impl Build<'_> {
    fn rule(&mut self, rule: &IngressRule, redirected: bool, at: &str) -> Result<Rule, IngressProblem> {
        let visibility = visibility(rule, at)?;
        let paths = rule.http.as_ref().and_then(|http| http.paths.as_ref());
        let paths = paths.filter(|paths| !paths.is_empty());
        let paths = paths.ok_or_else(|| invalid(format!("{at}.http.paths is empty")))?;
        let mut routes = Vec::with_capacity(paths.len());
        for (nth, path) in paths.iter().enumerate() {
            let at = format!("{at}.http.paths[{nth}]");
            match self.shortcut(path) {
                Some(rule) => routes.extend(self.through(path, &rule, &at)?),
                None => routes.push(self.route(path, &at)?),
            }
        }
        // A last path without conditions and edits is the rule's own traffic: its lookup reads no route then.
        let is_plain = |route: &mut Route| {
            route.matches == RouteMatch::default()
                && route.rewrite_host.is_none()
                && route.append_headers.is_empty()
        };
        let split = match routes.pop_if(is_plain) {
            Some(last) => last.split,
            None => TrafficSplit::none(),
        };
        let redirected = redirected && visibility == Visibility::External;
        Ok(Rule {
            visibility,
            http_option: if redirected {
                HttpOption::Redirected
            } else {
                HttpOption::Enabled
            },
            routes,
            split,
        })
    }

    pub(super) fn route(&mut self, path: &IngressPath, at: &str) -> Result<Route, IngressProblem> {
        let matched = match path.path.as_str() {
            // Every path begins with a slash.
            "" | "/" => None,
            prefix if prefix.starts_with('/') => Some(PathMatch::RawPrefix(prefix.to_owned())),
            other => return Err(invalid(format!("{at}.path '{other}' does not start with '/'"))),
        };
        let headers = path.headers.iter().map(|(name, matcher)| HeaderMatch {
            name: name.to_ascii_lowercase(),
            matcher: HeaderMatcher::Exact(matcher.exact.clone()),
        });
        check_headers(&path.append_headers, at)?;
        let rewrite_host = (!path.rewrite_host.is_empty()).then(|| path.rewrite_host.clone());
        if let Some(host) = &rewrite_host
            && let Err(e) = Host::parse(host)
        {
            return Err(invalid(format!("{at}.rewriteHost '{host}': {e}")));
        }
        Ok(Route {
            matches: RouteMatch {
                path: matched,
                headers: headers.collect(),
                methods: Vec::new(),
            },
            rewrite_host,
            rewrite_path: None,
            append_headers: Arc::clone(&path.append_headers.0),
            cold: None,
            split: self.split(path, at)?,
        })
    }

    fn split(&mut self, path: &IngressPath, at: &str) -> Result<TrafficSplit, IngressProblem> {
        let splits = path.splits.as_deref().unwrap_or_default();
        let mut targets = Vec::with_capacity(splits.len());
        for (nth, split) in splits.iter().enumerate() {
            let at = format!("{at}.splits[{nth}]");
            check_headers(&split.append_headers, &at)?;
            // A single split without a percent has all.
            let percent = match (splits.len(), split.percent) {
                (1, 0) => 100,
                (_, percent) => percent,
            };
            let hundredths = u32::try_from(percent)
                .ok()
                .and_then(|percent| percent.checked_mul(100));
            let share = hundredths.and_then(Percent::from_hundredths);
            let share = share.ok_or_else(|| invalid(format!("{at}.percent {percent} is not in 0 to 100")))?;
            let slot = self.backend(split, &at)?;
            targets.push(TrafficTarget {
                revision: self.revisions[slot].id.clone(),
                slot,
                percent: share,
                tag: None,
                append_headers: Arc::clone(&split.append_headers.0),
            });
        }
        let sum: i64 = targets
            .iter()
            .map(|t| i64::from(t.percent.hundredths()) / 100)
            .sum();
        TrafficSplit::new(targets).map_err(|_| {
            invalid(format!(
                "traffic split percentage must total to 100, but was {sum} ({at}.splits)"
            ))
        })
    }

    /// The slot of the revision that stands for a Service and its port.
    fn backend(&mut self, split: &IngressSplit, at: &str) -> Result<usize, IngressProblem> {
        if split.service_namespace != self.name.namespace() {
            return Err(invalid(format!(
                "{at}: service namespace must match ingress namespace"
            )));
        }
        let backend = (split.service_name.clone(), split.service_port.clone());
        if let Some(slot) = self.slots.get(&backend) {
            return Ok(*slot);
        }
        let (service_name, port_name) = &backend;
        let name = ObjectName::new(&split.service_namespace, service_name);
        let service = self.objects.services.get(&name);
        let service = service.ok_or_else(|| missing(format!("Service {name} is not there ({at})")))?;
        let port = port(service, port_name);
        let port = port.ok_or_else(|| missing(format!("Service {name} has no port {port_name} ({at})")))?;
        let revision = revision_of(split);
        let (kind, mut settings) = match revision.and_then(|name| pods(&name, self.objects)) {
            Some((pods, settings, _)) => (Backend::Pods(Box::new(pods)), settings),
            None => {
                let targets = self.targets(&name, service, port);
                if targets.is_empty() {
                    self.not_ready.insert(backend.clone());
                }
                let activated = false;
                (
                    Backend::Static { targets, activated },
                    Arc::clone(&self.policy.settings),
                )
            }
        };
        let protocol = protocol(port);
        if settings.protocol != protocol {
            Arc::make_mut(&mut settings).protocol = protocol;
        }
        // A revision of Knative's has its own name, by which people know it.
        let revision = split.append_headers.get("Knative-Serving-Revision");
        let revision = revision
            .map(str::to_owned)
            .unwrap_or_else(|| format!("{service_name}:{port_name}"));
        let id = |revision: &str| {
            let id = RevisionId::of_object(name.namespace(), &revision.to_ascii_lowercase());
            id.map_err(|e| invalid(format!("{at}: revision '{revision}': {e}")))
        };
        let mut revision_id = id(&revision)?;
        if self.revisions.iter().any(|known| known.id == revision_id) {
            // Another port of the same revision.
            revision_id = id(&format!("{revision}~{service_name}:{port_name}"))?;
        }
        let slot = self.revisions.len();
        self.revisions.push(Arc::new(RevisionSpec {
            id: revision_id,
            service: self.id.clone(),
            backend: kind,
            settings,
        }));
        self.slots.insert(backend, slot);
        Ok(slot)
    }

    fn targets(&self, name: &ObjectName, service: &ServiceSpec, port: &ServicePort) -> Vec<EndpointTarget> {
        if let Some(external) = &service.external_name {
            let host = Host::parse(external).ok();
            let port = u16::try_from(port.port).ok();
            let target = host.zip(port).map(|(host, port)| EndpointTarget::Dns {
                host: host.to_string(),
                port,
            });
            return target.into_iter().collect();
        }
        let mut targets: Vec<EndpointTarget> = self
            .objects
            .endpoints
            .addresses(name, service, &port.name)
            .into_iter()
            .map(|address| EndpointTarget::Address(EndpointAddr::Tcp(address)))
            .collect();
        targets.shrink_to_fit();
        targets
    }
}

/// The Pods of a revision, by its private Service, its settings, and the protocol of its Pods. `None` while either object
/// is not known: its requests go to the public Service then, as for any other ingress.
pub(super) fn pods(
    revision: &ObjectName,
    objects: &Objects,
) -> Option<(Pods, Arc<RevisionSettings>, Protocol)> {
    let object = objects.revisions.get(revision)?;
    let private = objects.private.get(revision)?;
    let service = objects.services.get(private)?;
    let mut ports = service.ports.iter();
    let port = ports.find(|port| matches!(&*port.name, "http" | "http2"))?;
    let addresses = |condition| {
        let endpoints = &objects.endpoints;
        endpoints.addresses_in(private, service, &port.name, condition)
    };
    let pods = Pods {
        ready: addresses(Condition::Ready),
        starting: match object.may_be_probed {
            true => addresses(Condition::Starting),
            false => Vec::new(),
        },
        failure: objects.faulty.failure(revision, object.refusal.as_ref()),
        owner: Arc::clone(&object.owner),
    };
    Some((pods, Arc::clone(&object.settings), protocol(port)))
}

fn port<'s>(service: &'s ServiceSpec, wanted: &PortName) -> Option<&'s ServicePort> {
    service.ports.iter().find(|port| match wanted {
        PortName::Number(number) => port.port == *number,
        PortName::Name(name) => *port.name == **name,
    })
}

/// HTTP/2 without TLS by the application protocol, or by the names that Knative and Kourier go by.
fn protocol(port: &ServicePort) -> Protocol {
    let by_protocol = port.app_protocol.as_deref() == Some("kubernetes.io/h2c");
    match by_protocol || matches!(&*port.name, "http2" | "h2c") {
        true => Protocol::H2c,
        false => Protocol::Http1,
    }
}

/// Rejects headers that cannot be written: nothing validates them before.
pub(super) fn check_headers(headers: &Headers, at: &str) -> Result<(), IngressProblem> {
    for (name, value) in &*headers.0 {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(invalid(format!("{at}.appendHeaders: '{name}' is no header name")));
        }
        if http::HeaderValue::from_str(value).is_err() {
            return Err(invalid(format!(
                "{at}.appendHeaders: the value of '{name}' is no header value"
            )));
        }
    }
    Ok(())
}

fn certificates(
    name: &ObjectName,
    spec: &IngressSpec,
    objects: &Objects,
) -> Result<Vec<ServiceCertificate>, IngressProblem> {
    let mut certificates = Vec::new();
    for (nth, tls) in spec.tls.iter().enumerate() {
        let secret = ObjectName::new(&tls.secret_namespace, &tls.secret_name);
        if secret.namespace() != name.namespace() {
            let message = format!("spec.tls[{nth}]: the Secret {secret} is in another namespace");
            return Err(invalid(message));
        }
        let pem = objects.secrets.get(&secret);
        let pem =
            pem.ok_or_else(|| missing(format!("Secret {secret} is not there, or has no certificate")))?;
        for visibility in [Visibility::External, Visibility::Internal] {
            if covers_rule(tls, spec, visibility) {
                certificates.push(ServiceCertificate {
                    visibility,
                    name: secret.to_string(),
                    pem: pem.clone(),
                });
            }
        }
    }
    Ok(certificates)
}

/// Whether an entry has all hosts of some rule of this visibility.
fn covers_rule(tls: &IngressTls, spec: &IngressSpec, of: Visibility) -> bool {
    let mut rules = spec.rules.iter().filter(|rule| visibility(rule, "") == Ok(of));
    rules.any(|rule| !rule.hosts.is_empty() && rule.hosts.iter().all(|host| tls.hosts.contains(host)))
}
