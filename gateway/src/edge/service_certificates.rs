//! Certificates that services bring (Secrets of an Ingress), for the TLS listeners of one visibility each.
//!
//! A service offers a certificate for those of its hosts that the certificate covers, and for no other name: a Secret
//! with a foreign name in it does not take that name from its owner. The cost of a change depends on the services that
//! change, not on how many there are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, ring};
use sluice_model::{
    CertificatePem, Delta, HostClaim, HostPattern, Service, ServiceCertificate, ServiceId, Visibility,
};
use tracing::{error, warn};

use super::certificates::{Certificate, CertificateFault, PemPart};
use super::sni_map::{Offer, SniMap};

/// Number of parsed certificates at which those that no service uses any more are swept for the first time.
const SWEEP: usize = 64;

/// The certificates that services bring, with the only writer of the maps that handshakes read.
#[derive(Debug, Default)]
pub(super) struct ServiceCertificates {
    /// By visibility.
    served: [ArcSwap<SniMap>; 2],
    state: Mutex<State>,
}

/// What is known of services that bring certificates, or brought some that are still served.
#[derive(Debug)]
struct State {
    services: HashMap<ServiceId, Arc<Record>>,
    /// The last content of each certificate by its name: a Secret that many services use is parsed once.
    parsed: HashMap<String, Weak<Parsed>>,
    /// Size of `parsed` at which the next sweep happens.
    sweep_at: usize,
    provider: CryptoProvider,
}

/// The certificates of one service.
#[derive(Debug, Default)]
struct Record {
    wanted: Vec<Wanted>,
    /// By visibility: the names with their certificates.
    offers: [Offers; 2],
}

type Offers = BTreeMap<Arc<str>, Offer>;

/// A certificate as a service has it.
#[derive(Debug)]
struct Wanted {
    visibility: Visibility,
    parsed: Arc<Parsed>,
    /// The certificate, or in place of one that cannot be used those from before.
    served: Vec<Arc<Certificate>>,
}

/// A certificate's content, and what came of parsing it.
#[derive(Debug)]
struct Parsed {
    name: String,
    pem: CertificatePem,
    certificate: Option<Arc<Certificate>>,
}

/// Something about a certificate of a service that an operator has to know.
#[derive(Debug, thiserror::Error)]
pub(super) enum Complaint {
    /// The content cannot be used. What was served before is served on.
    #[error("{name}: {}: {fault}", part.as_str())]
    Refused {
        /// The certificate.
        name: String,
        /// The wrong part.
        part: PemPart,
        /// Why.
        fault: CertificateFault,
    },
    /// The certificate covers no host of the service, so that it is never served.
    #[error("{name}: covers no host of {service}")]
    CoversNothing {
        /// The certificate.
        name: String,
        /// The service.
        service: ServiceId,
    },
}

impl Complaint {
    fn log(&self) {
        match self {
            Self::Refused { .. } => {
                error!(error = %self, "a certificate cannot be used: the one from before stays")
            }
            Self::CoversNothing { .. } => warn!(reason = %self, "a certificate is not served"),
        }
    }
}

impl ServiceCertificates {
    /// The map for listeners of this visibility.
    pub(super) fn served(&self, visibility: Visibility) -> Arc<SniMap> {
        self.served[index(visibility)].load_full()
    }

    /// Offers the certificates of the changed services, beside all that is offered now. Parses the certificates that
    /// are new, up to a millisecond each (RSA keys), and logs those that cannot be used.
    pub(super) fn offer(self: &Arc<Self>, delta: &Delta) -> CertificateChange {
        let (change, complaints) = self.prepare(delta);
        complaints.iter().for_each(Complaint::log);
        change
    }

    fn prepare(self: &Arc<Self>, delta: &Delta) -> (CertificateChange, Vec<Complaint>) {
        let mut complaints = Vec::new();
        let mut state = self.state.lock();
        let mut changes = Vec::new();
        for service in &delta.services {
            let before = state.services.get(&service.id).cloned();
            let after = state.record(service, before.as_deref(), &mut complaints);
            if before.is_some() || after.is_some() {
                changes.push((service.id.clone(), before, after.map(Arc::new)));
            }
        }
        for id in &delta.removed {
            if let Some(before) = state.services.get(id) {
                changes.push((id.clone(), Some(Arc::clone(before)), None));
            }
        }
        let both = changes.iter().map(|(id, before, after)| {
            let both = match (before, after) {
                (Some(before), Some(after)) => Some(Arc::new(after.beside(before))),
                (before, after) => after.as_ref().or(before.as_ref()).cloned(),
            };
            (id, both)
        });
        self.replace(&mut state, both);
        drop(state);
        let change = CertificateChange {
            certificates: Arc::clone(self),
            changes,
            complete: false,
        };
        (change, complaints)
    }

    /// Replaces the records of these services, and publishes the maps that differ.
    fn replace<'c>(
        &self,
        state: &mut State,
        records: impl Iterator<Item = (&'c ServiceId, Option<Arc<Record>>)>,
    ) {
        let mut maps: [Option<SniMap>; 2] = [None, None];
        for (id, record) in records {
            let before = match &record {
                Some(record) => state.services.insert(id.clone(), Arc::clone(record)),
                None => state.services.remove(id),
            };
            let none = Record::default();
            let (before, after) = (
                before.as_deref().unwrap_or(&none),
                record.as_deref().unwrap_or(&none),
            );
            for (side, map) in maps.iter_mut().enumerate() {
                let (old, new) = (&before.offers[side], &after.offers[side]);
                let gone = old.keys().filter(|name| !new.contains_key(*name));
                let added = new.iter().filter(|(name, offer)| {
                    let old = old.get(*name);
                    !old.is_some_and(|old| old.is(offer))
                });
                let mut edit = |edit: &dyn Fn(&mut SniMap)| {
                    edit(map.get_or_insert_with(|| SniMap::clone(&self.served[side].load_full())));
                };
                for name in gone {
                    edit(&|map| map.remove(name, id));
                }
                for (name, offer) in added {
                    edit(&|map| map.insert(name, id, offer.clone()));
                }
            }
        }
        for (side, map) in maps.into_iter().enumerate() {
            if let Some(map) = map {
                self.served[side].store(Arc::new(map));
            }
        }
    }
}

/// The records of a changed service, before and after.
type RecordChange = (ServiceId, Option<Arc<Record>>, Option<Arc<Record>>);

/// A change of which both sides are offered: what was served before, and what comes. Dropping it takes back what
/// came.
#[must_use = "dropping it takes the change back"]
#[derive(Debug)]
pub struct CertificateChange {
    certificates: Arc<ServiceCertificates>,
    /// The records of each changed service, before and after.
    changes: Vec<RecordChange>,
    complete: bool,
}

impl CertificateChange {
    /// Withdraws what was served before and is not offered any more.
    pub fn complete(mut self) {
        self.complete = true;
    }
}

impl Drop for CertificateChange {
    fn drop(&mut self) {
        let records = self.changes.iter().map(|(id, before, after)| {
            let record = if self.complete { after } else { before };
            (id, record.clone())
        });
        let mut state = self.certificates.state.lock();
        self.certificates.replace(&mut state, records);
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            services: HashMap::new(),
            parsed: HashMap::new(),
            sweep_at: SWEEP,
            // The key's kind decides nothing here; suites are the listener's.
            provider: ring::default_provider(),
        }
    }
}

impl State {
    /// The record of a service; `None` for one without certificates.
    fn record(
        &mut self,
        service: &Service,
        before: Option<&Record>,
        complaints: &mut Vec<Complaint>,
    ) -> Option<Record> {
        let certificates = &service.ingress.as_ref()?.certificates;
        if certificates.is_empty() {
            return None;
        }
        let wanted = certificates.iter().map(|certificate| {
            let parsed = self.parsed(certificate, complaints);
            let served = match (&parsed.certificate, before) {
                (Some(good), _) => vec![Arc::clone(good)],
                (None, Some(before)) => before.in_place_of(certificate, certificates),
                (None, None) => Vec::new(),
            };
            Wanted {
                visibility: certificate.visibility,
                parsed,
                served,
            }
        });
        let wanted: Vec<_> = wanted.collect();
        let hosts = ServiceHosts::of(&service.hosts);
        let mut offers = [Offers::new(), Offers::new()];
        for visibility in [Visibility::External, Visibility::Internal] {
            let mine = wanted.iter().filter(|wanted| wanted.visibility == visibility);
            let mine = mine.flat_map(|wanted| &wanted.served);
            offers[index(visibility)] = hosts.offers(mine);
        }
        for (certificate, wanted) in certificates.iter().zip(&wanted) {
            let offered = &offers[index(certificate.visibility)];
            let known = before.is_some_and(|before| before.has(&wanted.parsed));
            if let (Some(good), false) = (&wanted.parsed.certificate, known)
                && !offered
                    .values()
                    .any(|offer| Arc::ptr_eq(&offer.certificate, good))
                && !hosts.any_covered(good)
            {
                complaints.push(Complaint::CoversNothing {
                    name: certificate.name.clone(),
                    service: service.id.clone(),
                });
            }
        }
        Some(Record { wanted, offers })
    }

    /// The parsed content: that of another service or of before, where it is the same.
    fn parsed(&mut self, wanted: &ServiceCertificate, complaints: &mut Vec<Complaint>) -> Arc<Parsed> {
        let known = self.parsed.get(&wanted.name).and_then(Weak::upgrade);
        if let Some(same) = known.filter(|known| known.pem == wanted.pem) {
            return same;
        }
        let name = &wanted.name;
        let certificate = match Certificate::of_pem(name, &wanted.pem, &self.provider) {
            Ok(certificate) => Some(Arc::new(certificate)),
            Err((part, fault)) => {
                let name = name.clone();
                complaints.push(Complaint::Refused { name, part, fault });
                None
            }
        };
        let parsed = Arc::new(Parsed {
            name: name.clone(),
            pem: wanted.pem.clone(),
            certificate,
        });
        if self.parsed.len() >= self.sweep_at {
            self.parsed.retain(|_, parsed| parsed.strong_count() > 0);
            self.sweep_at = self.parsed.len() * 2 + SWEEP;
        }
        self.parsed.insert(name.clone(), Arc::downgrade(&parsed));
        parsed
    }
}

impl Record {
    fn has(&self, parsed: &Arc<Parsed>) -> bool {
        self.wanted
            .iter()
            .any(|wanted| Arc::ptr_eq(&wanted.parsed, parsed))
    }

    /// What this record serves in place of a certificate that cannot be used: the certificate of the same name, else
    /// those whose names are not wanted any more, one of which the certificate replaces.
    fn in_place_of(&self, bad: &ServiceCertificate, wanted: &[ServiceCertificate]) -> Vec<Arc<Certificate>> {
        let mine = self
            .wanted
            .iter()
            .filter(|known| known.visibility == bad.visibility);
        if let Some(same) = mine.clone().find(|known| known.parsed.name == bad.name) {
            return same.served.clone();
        }
        let left = mine.filter(|known| {
            let mut wanted = wanted.iter().filter(|other| other.visibility == bad.visibility);
            !wanted.any(|other| other.name == known.parsed.name)
        });
        left.flat_map(|known| &known.served).cloned().collect()
    }

    /// This record with what `before` offers and this record does not.
    fn beside(&self, before: &Self) -> Self {
        let both = |side: usize| {
            let mut offers = before.offers[side].clone();
            offers.extend(self.offers[side].clone());
            offers
        };
        Self {
            wanted: Vec::new(),
            offers: [both(0), both(1)],
        }
    }
}

/// The hosts of a service, to find those that a certificate covers.
struct ServiceHosts<'s> {
    exact: HashSet<&'s str>,
    /// Suffixes of wildcards, without the dot.
    wildcards: HashSet<&'s str>,
    /// Whether the service has every host.
    any: bool,
}

impl<'s> ServiceHosts<'s> {
    fn of(claims: &'s [HostClaim]) -> Self {
        let mut hosts = Self {
            exact: HashSet::new(),
            wildcards: HashSet::new(),
            any: false,
        };
        for claim in claims {
            match &claim.pattern {
                HostPattern::Exact(host) => _ = hosts.exact.insert(host.as_str()),
                HostPattern::Wildcard(suffix) => _ = hosts.wildcards.insert(suffix.as_str()),
                HostPattern::Any => hosts.any = true,
            }
        }
        hosts
    }

    /// The names that the service offers, each with the first certificate that names it, else with the first whose
    /// wildcard covers it.
    fn offers<'c>(&self, certificates: impl Iterator<Item = &'c Arc<Certificate>> + Clone) -> Offers {
        let mut offers = Offers::new();
        for wildcard in [false, true] {
            for certificate in certificates.clone() {
                self.covered(certificate, wildcard, |name, precision| {
                    offers.entry(name.into()).or_insert_with(|| Offer {
                        precision,
                        certificate: Arc::clone(certificate),
                    });
                });
            }
        }
        offers
    }

    fn any_covered(&self, certificate: &Certificate) -> bool {
        let mut any = false;
        for wildcard in [false, true] {
            self.covered(certificate, wildcard, |_, _| any = true);
        }
        any
    }

    /// Calls `offer` for what is both in the service's hosts and in the names of the certificate: in its wildcards or
    /// in its other names. A wildcard that both have is offered as the suffix with its dot.
    fn covered(&self, certificate: &Certificate, wildcard: bool, mut offer: impl FnMut(&str, usize)) {
        if !wildcard {
            for name in certificate
                .names
                .iter()
                .filter(|name| !name.starts_with(['*', '.']))
            {
                if let Some(precision) = self.precision(name) {
                    offer(name, precision);
                }
            }
            return;
        }
        let wildcards = certificate.names.iter().filter_map(|name| name.strip_prefix('*'));
        let wildcards: HashSet<&str> = wildcards.filter(|suffix| suffix.starts_with('.')).collect();
        for host in &self.exact {
            let dot = host.find('.');
            if dot.is_some_and(|dot| wildcards.contains(&host[dot..])) {
                offer(host, usize::MAX);
            }
        }
        for suffix in wildcards {
            if let Some(precision) = self.longest_wildcard(suffix) {
                offer(suffix, precision);
            }
        }
    }

    /// How precisely a host of the service matches a server name.
    fn precision(&self, name: &str) -> Option<usize> {
        if self.exact.contains(name) {
            return Some(usize::MAX);
        }
        self.longest_wildcard(name.find('.').map_or("", |dot| &name[dot..]))
    }

    /// The length of the longest wildcard that matches all names with this suffix, which begins with a dot; 0 for a
    /// service that has every host.
    fn longest_wildcard(&self, suffix: &str) -> Option<usize> {
        let mut dots = suffix.match_indices('.').map(|(dot, _)| &suffix[dot + 1..]);
        let longest = dots.find(|suffix| self.wildcards.contains(suffix));
        longest.map(str::len).or_else(|| self.any.then_some(0))
    }
}

fn index(visibility: Visibility) -> usize {
    match visibility {
        Visibility::External => 0,
        Visibility::Internal => 1,
    }
}

#[cfg(test)]
#[path = "service_certificates_tests.rs"]
mod tests;
