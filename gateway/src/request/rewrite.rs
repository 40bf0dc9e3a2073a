//! Rewriting of target and Host for the backend.

use std::borrow::Cow;

use sluice_model::{Backend, Scheme, UrlBackend};

use super::ctx::Routed;

/// The Host of a URL backend: with its port, unless that is the scheme's default.
fn url_host(url: &UrlBackend) -> String {
    let default = match url.scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    if url.port == default {
        url.host.to_string()
    } else {
        format!("{}:{}", url.host, url.port)
    }
}

/// The path and query for the backend: `target` as the client sent it, unless route or backend change the
/// path.
pub fn target_for<'t>(target: &'t str, routed: &Routed) -> Cow<'t, str> {
    let prefix = match routed.backend() {
        Backend::Url(url) => url.path_prefix.as_str(),
        _ => "",
    };
    if routed.route.is_none() && prefix.is_empty() {
        return Cow::Borrowed(target);
    }
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(p, q)| (p, Some(q)));
    let by_route = routed.route().and_then(|route| route.rewritten_path(path));
    if by_route.is_none() && prefix.is_empty() {
        return Cow::Borrowed(target);
    }
    let path = by_route.as_deref().unwrap_or(path);
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    Cow::Owned(format!("{prefix}{path}{query}"))
}

/// The Host for the backend: `host` as the client sent it, unless route or backend name another.
pub fn host_for<'h>(host: &'h [u8], routed: &Routed) -> Cow<'h, [u8]> {
    let by_route = routed.route().and_then(|route| route.rewrite_host.as_deref());
    match (by_route, routed.backend()) {
        (Some(host), _) => Cow::Owned(host.as_bytes().to_vec()),
        (None, Backend::Url(url)) => Cow::Owned(url_host(url).into_bytes()),
        (None, _) => Cow::Borrowed(host),
    }
}
