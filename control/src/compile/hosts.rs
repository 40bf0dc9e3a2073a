//! Assigns hosts to services: derived hosts, custom hosts, and hosts of tags.

use std::collections::HashMap;

use sluice_model::{Host, HostClaim, HostPattern, Tag};

use super::Catalog;
use crate::config::{Context, Located, NodeRef, ServiceDraft};

/// The first claim of a host.
struct Claim {
    service: usize,
    tag: Option<Tag>,
    node: NodeRef,
}

/// The hosts of each service, in the order of the draft.
type Hosts = Vec<Vec<HostClaim>>;

struct Claims<'a> {
    domain: &'a str,
    catalog: &'a Catalog,
    taken: HashMap<HostPattern, Claim>,
    hosts: Hosts,
}

/// Claims the hosts of all services. Derived hosts are claimed first: in a collision with a custom host, the custom one can be
/// changed.
pub(super) fn claim(services: &[ServiceDraft], domain: &str, catalog: &Catalog, cx: &mut Context) -> Hosts {
    let mut claims = Claims {
        domain,
        catalog,
        taken: HashMap::new(),
        hosts: vec![Vec::new(); services.len()],
    };
    for (index, service) in services.iter().enumerate() {
        claims.derived(index, service, cx);
    }
    for (index, service) in services.iter().enumerate() {
        claims.custom(index, service, cx);
    }
    claims.hosts
}

fn tags(service: &ServiceDraft) -> impl Iterator<Item = &Located<Tag>> {
    let targets = service.traffic.iter().flat_map(|traffic| &traffic.targets);
    // A repeated tag was reported; one host for the tag is enough.
    let tags: Vec<&Located<Tag>> = targets.filter_map(|target| target.tag.as_ref()).collect();
    let fresh: Vec<&Located<Tag>> = tags
        .iter()
        .enumerate()
        .filter(|(i, tag)| !tags[..*i].iter().any(|earlier| earlier.value == tag.value))
        .map(|(_, tag)| *tag)
        .collect();
    fresh.into_iter()
}

/// Every host that a service may claim, without regard to other services.
pub(super) fn possible(domain: &str, service: &ServiceDraft, host: &mut impl FnMut(&str)) {
    if let (Some(name), Some(namespace)) = (&service.name, &service.namespace) {
        let base = format!("{}.{namespace}.{domain}", name.value);
        host(&base);
        for tag in tags(service) {
            host(&format!("{}-{base}", tag.value));
        }
    }
    for custom in &service.hosts {
        host(&custom.value.to_string());
        if let HostPattern::Exact(exact) = &custom.value {
            for tag in tags(service) {
                host(&format!("{}-{exact}", tag.value));
            }
        }
    }
}

impl Claims<'_> {
    fn derived(&mut self, index: usize, service: &ServiceDraft, cx: &mut Context) {
        // A repeated service, reported already, would only collide with the first one.
        let (Some(id), Some(name)) = (&self.catalog.services[index], &service.name) else {
            return;
        };
        let domain = self.domain;
        let base = format!("{}.{}.{domain}", id.name(), id.namespace());
        self.one(index, &base, None, &name.node, cx);
        for tag in tags(service) {
            let host = format!("{}-{base}", tag.value);
            self.one(index, &host, Some(&tag.value), &tag.node, cx);
        }
    }

    fn custom(&mut self, index: usize, service: &ServiceDraft, cx: &mut Context) {
        // Of a repeated service the hosts are repeated, too.
        if self.catalog.services[index].is_none() && service.name.is_some() && service.namespace.is_some() {
            return;
        }
        for host in &service.hosts {
            if !self.pattern(index, host.value.clone(), None, &host.node, cx) {
                continue;
            }
            // A wildcard has no tag hosts: `tag-*.example.com` is no valid pattern.
            if let HostPattern::Exact(exact) = &host.value
                && !exact.as_str().starts_with('[')
            {
                for tag in tags(service) {
                    let host = format!("{}-{exact}", tag.value);
                    self.one(index, &host, Some(&tag.value), &tag.node, cx);
                }
            }
        }
    }

    fn one(&mut self, index: usize, host: &str, tag: Option<&Tag>, node: &NodeRef, cx: &mut Context) {
        let label = host.split('.').next().unwrap_or_default();
        let problem = match Host::parse(host) {
            _ if label.len() > 63 => format!("its first label has {} bytes, more than 63", label.len()),
            Ok(host) => {
                self.pattern(index, HostPattern::Exact(host), tag, node, cx);
                return;
            }
            Err(e) => e.to_string(),
        };
        let hint = match tag {
            Some(_) => "shorten the tag or the host",
            None => "shorten the service's name or the domain",
        };
        let diagnostic = node.error(format!("the host '{host}' is not possible: {problem}"));
        cx.report(diagnostic.hint(hint));
    }

    /// Whether the claim is the first one.
    fn pattern(
        &mut self,
        index: usize,
        pattern: HostPattern,
        tag: Option<&Tag>,
        node: &NodeRef,
        cx: &mut Context,
    ) -> bool {
        let Some(first) = self.taken.get(&pattern) else {
            self.hosts[index].push(HostClaim {
                pattern: pattern.clone(),
                rule: 0,
                tag: tag.cloned(),
            });
            let claim = Claim {
                service: index,
                tag: tag.cloned(),
                node: node.clone(),
            };
            self.taken.insert(pattern, claim);
            return true;
        };
        if first.service == index && first.tag.as_ref() == tag {
            // A derived host written out, or a host listed twice, which was reported already.
            return false;
        }
        let mut whom = match &self.catalog.services[first.service] {
            Some(id) if first.service != index => format!("service {id}"),
            Some(_) => "this service".to_owned(),
            None => "another service".to_owned(),
        };
        if let Some(tag) = &first.tag {
            whom = format!("tag '{tag}' of {whom}");
        }
        let whose = tag.map(|t| format!(" of tag '{t}'")).unwrap_or_default();
        let message = format!("the host '{pattern}'{whose} is already claimed by {whom}");
        let hint = if tag.is_some() {
            "rename the tag or the service"
        } else {
            "a host leads to one service: take it from one of them"
        };
        let diagnostic = node.error(message).hint(hint);
        cx.report(diagnostic.related(first.node.location(), "it is claimed here"));
        false
    }
}
