//! Routing decision: service, split and revision of a request.
//!
//! `sluice explain` runs the same code, so that the two cannot disagree.

use std::net::IpAddr;

use sluice_model::{
    Found, HttpOption, NotFound, RequestView, Snapshot, StickyKey, StickyScope, StickySource, TrafficTarget,
    Visibility,
};

use super::headers::cookie;

/// The header that selects a tagged revision where `tagHeader` is on.
pub const TAG_HEADER: &str = "knative-serving-tag";

/// The source of random points of a split. Called only when a split has to be drawn.
pub trait Draw<L> {
    /// The next point of this split.
    fn draw(&mut self, found: &Found<'_, L>) -> u32;
}

/// Why a revision was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickReason {
    /// By a tag host or the tag header.
    Tag,
    /// The only revision of the split.
    Only,
    /// By the sticky key.
    Sticky,
    /// By a drawn point.
    Drawn(u32),
}

/// The routing decision of a request.
#[derive(Debug)]
pub struct RouteDecision<'t, L> {
    /// The table's match.
    pub found: Found<'t, L>,
    /// The revision chosen.
    pub target: &'t TrafficTarget,
    /// Why the revision was chosen.
    pub picked: PickReason,
    /// The sticky key, where the scope is one endpoint.
    pub endpoint_key: Option<StickyKey>,
}

/// Whether a request over plain HTTP is redirected to https.
pub fn redirects<L>(found: &Found<'_, L>, tls: bool) -> bool {
    !tls && found.rule.http_option == HttpOption::Redirected
}

/// Matches the service and picks a revision. `host` has to be normalised.
///
/// # Errors
/// [`NotFound`]: the response is 404 with reason `no_route`.
pub fn decide<'t, L: Clone>(
    snapshot: &'t Snapshot<L>,
    listener: Visibility,
    host: &str,
    request: &impl RequestView,
    client: IpAddr,
    draw: &mut impl Draw<L>,
) -> Result<RouteDecision<'t, L>, NotFound> {
    let tag = snapshot
        .settings()
        .tag_header
        .then(|| request.header(TAG_HEADER))
        .flatten();
    let tag = tag.and_then(|t| std::str::from_utf8(t).ok());
    let found = snapshot.table().find(listener, host, request, tag)?;
    let sticky = found.service.sticky.as_ref();
    let key = sticky.and_then(|sticky| sticky_key(&sticky.source, request, client));
    let endpoint_key = key.filter(|_| sticky.is_some_and(|s| s.scope == StickyScope::Endpoint));
    let (target, picked) = if let Some(tagged) = found.tagged {
        (tagged, PickReason::Tag)
    } else if let Some(only) = found.split.only() {
        (only, PickReason::Only)
    } else if let Some(key) = key {
        (found.split.pick_sticky(key), PickReason::Sticky)
    } else {
        let point = draw.draw(&found);
        (found.split.pick(point), PickReason::Drawn(point))
    };
    Ok(RouteDecision {
        found,
        target,
        picked,
        endpoint_key,
    })
}

fn sticky_key(source: &StickySource, request: &impl RequestView, client: IpAddr) -> Option<StickyKey> {
    match source {
        StickySource::Cookie(name) => request
            .header("cookie")
            .and_then(|c| cookie(c, name))
            .map(StickyKey::of),
        StickySource::Header(name) => request.header(name).map(StickyKey::of),
        StickySource::ClientIp => Some(match client.to_canonical() {
            IpAddr::V4(ip) => StickyKey::of(&ip.octets()),
            IpAddr::V6(ip) => StickyKey::of(&ip.octets()),
        }),
    }
}
