//! Paths that lead back to us: an ExternalName Service that leads to our own Service, with a rewritten host. Pure.
//!
//! Serving makes them for DomainMappings. A second hop through ourselves would cost its time, count every request twice
//! and drop the original host, which only the first hop may set.

use sluice_model::{Route, Visibility};

use super::hosts::forms;
use super::objects::{IngressPath, IngressRule, IngressSpec};
use super::resolve::{Build, check_headers, visibility};
use super::store::Name;
use crate::ingress::IngressProblem;

/// The hosts of the rules inside the cluster, in all their forms.
pub(super) fn internal_hosts(spec: &IngressSpec, cluster_domain: &str) -> Vec<String> {
    let rules = spec
        .rules
        .iter()
        .filter(|rule| visibility(rule, "") == Ok(Visibility::Internal));
    let hosts = rules.flat_map(|rule| &rule.hosts);
    let hosts = hosts.flat_map(|host| forms(host, cluster_domain));
    hosts.map(str::to_owned).collect()
}

/// The hosts that requests are rewritten to.
pub(super) fn rewritten_hosts(spec: &IngressSpec) -> impl Iterator<Item = String> {
    let http = spec.rules.iter().filter_map(|rule| rule.http.as_ref());
    let paths = http.flat_map(|http| http.paths.iter().flatten());
    let hosts = paths.map(|path| path.rewrite_host.clone());
    hosts.filter(|host| !host.is_empty())
}

impl Build<'_> {
    /// The rule that a path leads to by way of our own Service: that of a host inside the cluster which the path
    /// rewrites to. So a DomainMapping, whose requests would come back to us, costs no second hop.
    pub(super) fn shortcut(&self, path: &IngressPath) -> Option<IngressRule> {
        let [split] = path.splits.as_deref()? else {
            return None;
        };
        let name = Name {
            namespace: split.service_namespace.clone(),
            name: split.service_name.clone(),
        };
        let service = self.objects.services.get(&name)?;
        if service.kind != "ExternalName" || service.external_name != self.policy.own_service {
            return None;
        }
        let (owner, spec) = self.objects.internal(&path.rewrite_host)?;
        // Its Services are resolved as our own.
        if owner.namespace != self.name.namespace {
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
        let mut before = path.append_headers.clone();
        let splits = path.splits.iter().flatten();
        before.extend(splits.flat_map(|split| split.append_headers.clone()));
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
            both.append_headers = before.clone();
            both.append_headers.extend(inner.append_headers.clone());
            if both.rewrite_host.is_empty() {
                both.rewrite_host = path.rewrite_host.clone();
            }
            routes.push(self.route(&both, at)?);
        }
        Ok(routes)
    }
}
