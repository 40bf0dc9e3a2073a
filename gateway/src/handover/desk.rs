//! What the two processes say to each other, by desk: a revision, named by its place in the list of all.

use serde::{Deserialize, Serialize};
use sluice_model::{RevisionId, ServiceId};

use crate::lease::{Id, Said};
use crate::registry::{Inherited, LiveRevision, backend_kind};
use crate::throttle::{EndpointInUse, EndpointPhase, LeaseMessage};

/// What the older process has of one revision. A desk is named by its place in the list of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Desk {
    namespace: String,
    revision: String,
    /// Of the service; namespace and name.
    service: (String, String),
    /// How its requests are sent.
    kind: String,
    /// Requests that one endpoint may hold.
    concurrency: Option<u32>,
    endpoints: Vec<InUse>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct InUse {
    #[serde(flatten)]
    id: Id,
    phase: Phase,
    in_flight: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Starting,
    Ready,
    Ejected,
    Draining,
    Gone,
}

/// A message about a desk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeskMessage {
    desk: u32,
    pub(super) said: Said,
}

impl DeskMessage {
    pub(super) fn new((desk, message): (u32, LeaseMessage)) -> Self {
        let said = message.into();
        Self { desk, said }
    }

    pub(super) fn into_parts(self) -> (u32, LeaseMessage) {
        (self.desk, self.said.into())
    }
}

impl Desk {
    pub(super) fn new(live: &LiveRevision, endpoints: &[EndpointInUse]) -> Self {
        let (revision, spec) = (live.id(), live.spec());
        let endpoints = endpoints.iter().map(|endpoint| InUse {
            id: (&endpoint.id).into(),
            phase: match endpoint.phase {
                EndpointPhase::Starting => Phase::Starting,
                EndpointPhase::Ready => Phase::Ready,
                EndpointPhase::Ejected { .. } => Phase::Ejected,
                EndpointPhase::Draining => Phase::Draining,
                EndpointPhase::Gone => Phase::Gone,
            },
            in_flight: endpoint.in_flight,
        });
        Self {
            namespace: revision.namespace().to_owned(),
            revision: revision.name().to_owned(),
            service: (
                spec.service.namespace().to_owned(),
                spec.service.name().to_owned(),
            ),
            kind: backend_kind(&spec),
            concurrency: spec.container_concurrency,
            endpoints: endpoints.collect(),
        }
    }

    /// `None` for names that this process does not take for names: it serves none of them.
    pub(crate) fn inherited(&self) -> Option<Inherited> {
        let endpoints = self.endpoints.iter().map(|endpoint| EndpointInUse {
            id: (&endpoint.id).into(),
            phase: match endpoint.phase {
                Phase::Starting => EndpointPhase::Starting,
                // Judged anew: what made the other one set it aside may be over.
                Phase::Ready | Phase::Ejected => EndpointPhase::Ready,
                Phase::Draining => EndpointPhase::Draining,
                Phase::Gone => EndpointPhase::Gone,
            },
            in_flight: endpoint.in_flight,
        });
        Some(Inherited {
            revision: RevisionId::parse(&self.namespace, &self.revision).ok()?,
            service: ServiceId::parse(&self.service.0, &self.service.1).ok()?,
            kind: self.kind.clone(),
            concurrency: self.concurrency,
            endpoints: endpoints.collect(),
        })
    }
}
