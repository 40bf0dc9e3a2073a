//! The endpoints of Services, from their EndpointSlices. Pure.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::objects::{EndpointConditions, EndpointSlice, SERVICE_NAME, ServiceSpec};
use super::store::Update;
use crate::object_name::ObjectName;

/// The condition of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Ready,
    /// Not ready any more, and still serving while it is being stopped.
    Leaving,
    /// Not ready yet, or for a while.
    Starting,
}

/// A part of the endpoints of a Service.
#[derive(Debug, PartialEq, Eq)]
struct Slice {
    is_ipv6: bool,
    endpoints: Box<[(IpAddr, Condition)]>,
    ports: Box<[(Box<str>, u16)]>,
}

/// The slices of all Services, with their names. A Service has one as a rule, and no room for more before there are.
#[derive(Debug, Default)]
pub(super) struct Endpoints(HashMap<ObjectName, Vec<(Box<str>, Slice)>>);

impl Endpoints {
    /// Records a change. Returns the Services whose endpoints are other ones.
    pub(super) fn update(&mut self, update: Update<EndpointSlice>) -> HashSet<ObjectName> {
        let mut touched = HashSet::new();
        match update {
            Update::Apply(slice) => self.apply(slice, &mut touched),
            Update::Delete(slice) => {
                let (service, name) = slice_name(&slice);
                self.forget(service, &name, &mut touched);
            }
            Update::List(all) => {
                let names: HashSet<(ObjectName, Box<str>)> = all.iter().map(slice_name).collect();
                let known = self.0.iter().flat_map(|(service, slices)| {
                    slices
                        .iter()
                        .map(move |(name, _)| (service.clone(), name.clone()))
                });
                let gone: Vec<_> = known.filter(|slice| !names.contains(slice)).collect();
                for (service, name) in gone {
                    self.forget(service, &name, &mut touched);
                }
                all.into_iter().for_each(|slice| self.apply(slice, &mut touched));
            }
        }
        touched
    }

    fn apply(&mut self, slice: EndpointSlice, touched: &mut HashSet<ObjectName>) {
        let (service, name) = slice_name(&slice);
        let slice = cut(slice);
        let slices = self.0.entry(service.clone()).or_default();
        match slices.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) if *known == slice => return,
            Some((_, known)) => *known = slice,
            None => {
                slices.reserve_exact(1);
                slices.push((name, slice));
            }
        }
        touched.insert(service);
    }

    fn forget(&mut self, service: ObjectName, name: &str, touched: &mut HashSet<ObjectName>) {
        if let Some(slices) = self.0.get_mut(&service)
            && let Some(at) = slices.iter().position(|(known, _)| **known == *name)
        {
            slices.swap_remove(at);
            if slices.is_empty() {
                self.0.remove(&service);
            }
            touched.insert(service);
        }
    }

    /// The ready addresses of a Service for the port of this name, sorted: of its first address family, since the
    /// slices of another family have the same Pods again. Where no endpoint is ready, those that still serve while they
    /// are being stopped.
    pub(super) fn addresses(&self, name: &ObjectName, service: &ServiceSpec, port: &str) -> Vec<SocketAddr> {
        let ready = self.addresses_in(name, service, port, Condition::Ready);
        match ready.is_empty() {
            true => self.addresses_in(name, service, port, Condition::Leaving),
            false => ready,
        }
    }

    /// The addresses of a Service in this condition, as [`addresses`](Self::addresses) chooses them.
    pub(super) fn addresses_in(
        &self,
        name: &ObjectName,
        service: &ServiceSpec,
        port: &str,
        condition: Condition,
    ) -> Vec<SocketAddr> {
        let Some(slices) = self.0.get(name) else {
            return Vec::new();
        };
        let of_family = |wanted: bool| -> Vec<SocketAddr> {
            let mut found = Vec::new();
            let slices = slices.iter().map(|(_, slice)| slice);
            for slice in slices.filter(|slice| (slice.is_ipv6 == service.is_ipv6) == wanted) {
                let number = slice.ports.iter().find(|(name, _)| **name == *port);
                let Some((_, number)) = number else { continue };
                let ips = slice.endpoints.iter().filter(|(_, is)| *is == condition);
                found.extend(ips.map(|(ip, _)| SocketAddr::new(*ip, *number)));
            }
            // Slices are in order, as a rule, and so are their addresses: that takes linear time.
            found.sort();
            found.dedup();
            found
        };
        let own = of_family(true);
        if own.is_empty() { of_family(false) } else { own }
    }
}

/// The Service and the name of a slice.
fn slice_name(slice: &EndpointSlice) -> (ObjectName, Box<str>) {
    let meta = &slice.metadata;
    let service = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    let service = service.map(String::as_str).unwrap_or_default();
    let name = ObjectName::new(meta.namespace.as_deref().unwrap_or_default(), service);
    (name, meta.name.as_deref().unwrap_or_default().into())
}

fn cut(slice: EndpointSlice) -> Slice {
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for endpoint in &slice.endpoints {
        let EndpointConditions {
            ready,
            serving,
            terminating,
        } = endpoint.conditions;
        let condition = match (ready.unwrap_or(true), terminating.unwrap_or(false)) {
            (true, _) => Condition::Ready,
            (false, true) if serving != Some(true) => continue,
            (false, true) => Condition::Leaving,
            (false, false) => Condition::Starting,
        };
        // All addresses of an endpoint are the same Pod: the first one is enough.
        let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
        endpoints.extend(address.map(|address| (address, condition)));
    }
    let ports = slice.ports.into_iter().filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        Some((port.name.into_boxed_str(), number))
    });
    Slice {
        is_ipv6: slice.address_type == "IPv6",
        endpoints: endpoints.into(),
        ports: ports.collect(),
    }
}
