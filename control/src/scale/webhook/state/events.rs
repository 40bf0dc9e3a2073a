//! Events and actions of a revision whose instances a platform runs.

use sluice_model::InstanceId;

use super::super::{Answer, Ask};
use crate::scale::events::{EndpointAction, RevisionEvent};

/// An event of a revision that a platform scales.
#[derive(Debug, Clone)]
pub(crate) enum WebhookEvent {
    /// An event that both kinds have.
    Revision(RevisionEvent),
    /// The data plane's answer to [`WebhookAction::ToZero`]: the retired instances, or `None` when it refused.
    AtZero(Option<Vec<InstanceId>>),
    /// The platform's answer to [`WebhookAction::Ask`].
    Answered(Answer),
}

impl From<RevisionEvent> for WebhookEvent {
    fn from(event: RevisionEvent) -> Self {
        Self::Revision(event)
    }
}

/// An action of a revision that a platform scales.
#[derive(Debug, PartialEq)]
pub(crate) enum WebhookAction {
    /// An order to the data plane.
    Endpoint(EndpointAction),
    /// Asks the data plane to agree to zero. Answered by [`WebhookEvent::AtZero`].
    ToZero,
    /// Calls the platform with a number. Answered by [`WebhookEvent::Answered`].
    Ask(Ask),
}

impl From<EndpointAction> for WebhookAction {
    fn from(action: EndpointAction) -> Self {
        Self::Endpoint(action)
    }
}
