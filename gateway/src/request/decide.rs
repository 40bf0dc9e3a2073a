//! Which service, split and revision a request goes to: the data plane's find and pick.
//!
//! Also what `sluice explain` runs, so that the two cannot disagree.

use std::net::IpAddr;

use sluice_model::{
    Found, HttpOption, NotFound, RequestView, Snapshot, StickyKey, StickyScope, StickySource, TrafficTarget,
    Visibility,
};

use super::headers::cookie;

/// The header that selects a tagged revision where `tagHeader` is on.
pub const TAG_HEADER: &str = "knative-serving-tag";

/// Where a point of a split comes from. Taken only when a split really has to be drawn.
pub trait Draw<L> {
    /// The next point for the split that was found.
    fn draw(&mut self, found: &Found<'_, L>) -> u32;
}

/// Why a revision was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickReason {
    /// A tag host or the tag header fixed it.
    Tag,
    /// It has 100 %.
    Only,
    /// The sticky key fell on it.
    Sticky,
    /// The point drawn fell on it.
    Drawn(u32),
}

/// Where a request goes.
#[derive(Debug)]
pub struct RouteDecision<'t, L> {
    /// What the table found.
    pub found: Found<'t, L>,
    /// The revision chosen.
    pub target: &'t TrafficTarget,
    /// Why.
    pub picked: PickReason,
    /// The key, where the choice sticks to one endpoint.
    pub endpoint_key: Option<StickyKey>,
}

/// Whether plain HTTP is answered with a redirect to https instead.
pub fn redirects<L>(found: &Found<'_, L>, tls: bool) -> bool {
    !tls && found.service.http_option == HttpOption::Redirected
}

/// Finds and picks. `host` is normalised.
///
/// # Errors
/// [`NotFound`]: 404 with reason `no_route`.
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
