//! Events and actions of a revision whose instances are local processes.

use std::net::SocketAddr;

use sluice_model::{Failure, InstanceId};

use crate::scale::InstanceOrder;
use crate::scale::events::{EndpointAction, RevisionEvent};

/// An event of a revision of local processes.
#[derive(Debug, Clone)]
pub(crate) enum ProcessEvent {
    /// An event that both kinds have.
    Revision(RevisionEvent),
    /// The process runs, and will listen on this address.
    Started(InstanceId, SocketAddr),
    /// The process could not be started.
    Failed {
        instance: InstanceId,
        failure: Failure,
        detail: String,
    },
    /// The process and all that it had started are gone.
    Exited {
        instance: InstanceId,
        detail: String,
        /// Its last output says that its port was taken.
        port_taken: bool,
    },
}

impl From<RevisionEvent> for ProcessEvent {
    fn from(event: RevisionEvent) -> Self {
        Self::Revision(event)
    }
}

/// An action of a revision of local processes.
#[derive(Debug, PartialEq)]
pub(crate) enum ProcessAction {
    /// An order to the data plane.
    Endpoint(EndpointAction),
    /// An order to the scaler of processes.
    Order(InstanceOrder),
}

impl From<EndpointAction> for ProcessAction {
    fn from(action: EndpointAction) -> Self {
        Self::Endpoint(action)
    }
}

impl From<InstanceOrder> for ProcessAction {
    fn from(order: InstanceOrder) -> Self {
        Self::Order(order)
    }
}
