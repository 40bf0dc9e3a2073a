//! Persistent map from server names to the certificates that services offer for these names.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use sluice_model::{Seed, ServiceId, Shards};

use super::certificates::Certificate;

/// A certificate that a service offers for one name.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    /// How precisely the service's host matches the name: `usize::MAX` for the name itself, else the length of the
    /// wildcard's suffix. Requests are routed to the most precise host.
    pub(super) precision: usize,
    /// The certificate.
    pub(super) certificate: Arc<Certificate>,
}

impl Offer {
    /// Whether both are the same certificate with the same precision.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.precision == other.precision && Arc::ptr_eq(&self.certificate, &other.certificate)
    }
}

/// Certificates by server name. A clone shares everything, and a change copies the leaves of the names it touches, so
/// that a handshake reads one version from its first byte on.
///
/// A name is a server, or the suffix of a one-label wildcard with its leading dot, which no server name begins with.
#[derive(Debug, Clone)]
pub(super) struct SniMap {
    seed: Seed,
    leaves: Shards<Arc<Vec<Entry>>>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: Arc<str>,
    /// Best first, at most one of each service, never empty.
    offers: Vec<(ServiceId, Offer)>,
}

impl Default for SniMap {
    fn default() -> Self {
        Self {
            seed: Seed::of_process(),
            leaves: Shards::default(),
        }
    }
}

impl SniMap {
    /// The certificate offered for this very server.
    pub(super) fn exact(&self, name: &str) -> Option<&Arc<Certificate>> {
        let leaf = self.leaves.get(self.seed.hash(name.as_bytes()));
        let at = find(leaf, name).ok()?;
        leaf[at].offers.first().map(|(_, offer)| &offer.certificate)
    }

    /// The certificate offered for the one-label wildcard that covers this server.
    pub(super) fn wildcard(&self, name: &str) -> Option<&Arc<Certificate>> {
        let dot = name.find('.')?;
        self.exact(&name[dot..])
    }

    /// Adds the offer of a service for a name, in place of the one that the service made before. Of several services'
    /// offers the most precise one is served, and among equals that of the smaller id.
    pub(super) fn insert(&mut self, name: &Arc<str>, service: &ServiceId, offer: Offer) {
        let leaf = Arc::make_mut(self.leaves.get_mut(self.seed.hash(name.as_bytes())));
        let at = find(leaf, name).unwrap_or_else(|at| {
            let offers = Vec::with_capacity(1);
            let name = Arc::clone(name);
            leaf.insert(at, Entry { name, offers });
            at
        });
        let offers = &mut leaf[at].offers;
        offers.retain(|(by, _)| by != service);
        let mine = (Reverse(offer.precision), service);
        let place = offers.partition_point(|(by, other)| (Reverse(other.precision), by) < mine);
        offers.insert(place, (service.clone(), offer));
    }

    /// Removes the offer of a service for a name.
    pub(super) fn remove(&mut self, name: &str, service: &ServiceId) {
        let hash = self.seed.hash(name.as_bytes());
        let Ok(at) = find(self.leaves.get(hash), name) else {
            return;
        };
        let leaf = Arc::make_mut(self.leaves.get_mut(hash));
        leaf[at].offers.retain(|(by, _)| by != service);
        if leaf[at].offers.is_empty() {
            leaf.remove(at);
        }
    }

    /// All certificates, by name. Walks the whole map: for people and metrics, not for handshakes.
    pub(super) fn certificates(&self) -> Vec<Arc<Certificate>> {
        let offers = self.leaves.iter().flat_map(|leaf| leaf.iter());
        let offers = offers.flat_map(|entry| &entry.offers);
        let mut seen = HashSet::new();
        let mut all: Vec<_> = offers
            .map(|(_, offer)| &offer.certificate)
            .filter(|certificate| seen.insert(Arc::as_ptr(certificate)))
            .cloned()
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// The index of a name in a leaf, or the index where the name would go.
fn find(leaf: &[Entry], name: &str) -> Result<usize, usize> {
    leaf.binary_search_by(|entry| (*entry.name).cmp(name))
}

#[cfg(test)]
impl SniMap {
    /// The number of leaves that two versions do not share.
    pub(super) fn differing_leaves(&self, other: &Self) -> usize {
        let both = self.leaves.iter().zip(other.leaves.iter());
        both.filter(|(a, b)| !Arc::ptr_eq(a, b)).count()
    }
}
