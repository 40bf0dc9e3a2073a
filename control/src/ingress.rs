//! An Ingress of a cluster as the index gets it: compiled alone, with what is wrong about it.

use std::fmt;
use std::sync::Arc;

use sluice_model::Service;

pub use crate::object_name::ObjectName;

/// An Ingress, resolved by the objects that it names: its Services, their endpoints, its Secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressObject {
    /// Namespace and name.
    pub name: ObjectName,
    /// The unique id: an Ingress that is deleted and created again has another one.
    pub uid: Arc<str>,
    /// The generation of the newest specification.
    pub generation: i64,
    /// The service to be served: of the newest specification or, while that one cannot be served, of the last one that
    /// could. `None`: there was none.
    pub service: Option<Arc<Service>>,
    /// Why the newest specification is not served.
    pub problem: Option<IngressProblem>,
}

/// The kind of a problem: the reason in the status of an Ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The specification is not valid, whatever else there is in the cluster.
    Invalid,
    /// A Service, a port or a Secret is not there.
    Missing,
    /// A Service is there and has no endpoint that is ready.
    NotReady,
    /// Another object has one of the hosts.
    HostConflict,
}

impl ProblemKind {
    /// The reason, as conditions have it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Invalid => "InvalidIngress",
            Self::Missing => "BackendMissing",
            Self::NotReady => "BackendNotReady",
            Self::HostConflict => "HostConflict",
        }
    }

    /// Whether only a change of the object itself, or of another one, helps; else waiting does.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Invalid | Self::HostConflict)
    }
}

/// Why a specification is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressProblem {
    /// The kind.
    pub kind: ProblemKind,
    /// The message, for people.
    pub message: String,
}

impl IngressProblem {
    /// A problem of this kind.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl fmt::Display for IngressProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The outcome of publishing an Ingress, for its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressOutcome {
    /// The object.
    pub object: Arc<IngressObject>,
    /// Why the newest specification is not served, or not all of it; `None`: requests are served by it.
    pub problem: Option<IngressProblem>,
}
