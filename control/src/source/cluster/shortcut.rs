//! Paths that lead back to us: an ExternalName Service that leads to our own Service, with a rewritten host. Pure.
//!
//! Serving makes them for DomainMappings. A second hop through ourselves would cost its time, count every request twice
//! and drop the original host, which only the first hop may set.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluice_model::{Route, Visibility};

use super::hosts::forms;
use super::objects::{IngressPath, IngressRule, IngressSpec};
use super::resolve::{Build, check_headers, visibility};
use crate::ingress::IngressProblem;
use crate::object_name::ObjectName;

/// The shortest form of a host inside the cluster, whatever form it is written in. Hosts that are different ones without the
/// cluster's domain may have the same: it finds candidates.
pub(super) fn canonical<'h>(host: &'h str, cluster_domain: &str) -> &'h str {
    let host = host.trim_end_matches('.');
    let in_domain = host
        .strip_suffix(cluster_domain)
        .and_then(|rest| rest.strip_suffix('.'));
    let host = in_domain.unwrap_or(host);
    host.strip_suffix(".svc").unwrap_or(host)
}

/// The hosts of the rules inside the cluster, each once, as [`canonical`] has them.
pub(super) fn internal_hosts(spec: &IngressSpec, cluster_domain: &str) -> BTreeSet<Arc<str>> {
    let rules = spec
        .rules
        .iter()
        .filter(|rule| visibility(rule, "") == Ok(Visibility::Internal));
    let hosts = rules.flat_map(|rule| &rule.hosts);
    hosts
        .map(|host| Arc::from(canonical(host, cluster_domain)))
        .collect()
}

/// The hosts that requests are rewritten to.
pub(super) fn rewritten_hosts(spec: &IngressSpec) -> impl Iterator<Item = &str> {
    let http = spec.rules.iter().filter_map(|rule| rule.http.as_ref());
    let paths = http.flat_map(|http| http.paths.iter().flatten());
    let hosts = paths.map(|path| path.rewrite_host.as_str());
    hosts.filter(|host| !host.is_empty())
}

impl Build<'_> {
    /// The rule that a path leads to by way of our own Service: that of a host inside the cluster which the path
    /// rewrites to. So a DomainMapping, whose requests would come back to us, costs no second hop.
    pub(super) fn shortcut(&self, path: &IngressPath) -> Option<IngressRule> {
        let [split] = path.splits.as_deref()? else {
            return None;
        };
        let name = ObjectName::new(&split.service_namespace, &split.service_name);
        let service = self.objects.services.get(&name)?;
        if service.external_name.as_deref() != Some(&*self.policy.own_service) {
            return None;
        }
        let host = canonical(&path.rewrite_host, &self.policy.cluster_domain);
        let (owner, spec) = self.objects.internal(host)?;
        // Its Services are resolved as our own.
        if owner.namespace() != self.name.namespace() {
            return None;
        }
        let leads_here = |host: &String| {
            let mut forms = forms(host, &self.policy.cluster_domain);
            forms.any(|form| form == path.rewrite_host)
        };
        let mut rules = spec.rules.iter();
        let found = rules.find(|rule| {
            visibility(rule, "") == Ok(Visibility::Internal) && rule.hosts.iter().any(leads_here)
        });
        found.cloned()
    }

    /// The routes of a path that leads to the paths of another rule: what both match, and the headers of both, in the
    /// order in which two hops would set them.
    pub(super) fn through(
        &mut self,
        path: &IngressPath,
        rule: &IngressRule,
        at: &str,
    ) -> Result<Vec<Route>, IngressProblem> {
        let splits = path.splits.iter().flatten();
        let of_splits = splits.map(|split| &split.append_headers);
        let before = of_splits.fold(path.append_headers.clone(), |all, split| all.and(split));
        check_headers(&before, at)?;
        let mut routes = Vec::new();
        let paths = rule.http.iter().flat_map(|http| http.paths.iter().flatten());
        for inner in paths {
            let longer = match (
                inner.path.starts_with(&path.path),
                path.path.starts_with(&inner.path),
            ) {
                (true, _) => &inner.path,
                (false, true) => &path.path,
                (false, false) => continue,
            };
            let mut both = inner.clone();
            both.path = longer.clone();
            both.headers.extend(path.headers.clone());
            both.append_headers = before.and(&inner.append_headers);
            if both.rewrite_host.is_empty() {
                both.rewrite_host = path.rewrite_host.clone();
            }
            routes.push(self.route(&both, at)?);
        }
        Ok(routes)
    }
}
