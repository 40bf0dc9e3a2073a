//! Histories on disk: one document of the state directory for each.

use std::sync::Arc;

use sluice_model::ServiceId;

use super::history::{Histories, ServiceHistory};
use crate::index::ReleaseChange;
use crate::state::{Documents, StateError, StateHandle};

const PREFIX: &str = "revisions.";

/// Reads all histories. A document that cannot be read is logged and left out: its service begins anew. Blocks on I/O.
///
/// # Errors
/// The directory cannot be read.
pub fn restore(documents: &Documents) -> Result<Histories, StateError> {
    let mut histories = Histories::new();
    for name in documents.names()? {
        let Some(service) = service(&name) else { continue };
        let history = documents.read(&name).map_err(|error| error.to_string());
        let history = history.and_then(|bytes| {
            let history = serde_json::from_slice::<ServiceHistory>(&bytes.unwrap_or_default());
            history.map_err(|error| error.to_string())
        });
        match history {
            Ok(history) => _ = histories.insert(service, Arc::new(history)),
            Err(error) => {
                tracing::error!(%service, "state: {name} cannot be read, and the service begins anew: {error}");
            }
        }
    }
    Ok(histories)
}

/// Queues the changed histories for the disk.
pub(crate) fn record(state: &StateHandle, changes: &[ReleaseChange]) {
    for change in changes.iter().filter(|change| change.is_other_history) {
        let name = document(&change.service);
        let history = change.release.as_ref().map(|release| &*release.history);
        match history
            .filter(|history| !history.is_trivial())
            .map(serde_json::to_vec)
        {
            Some(Ok(bytes)) => state.write(&name, bytes),
            Some(Err(error)) => tracing::error!(service = %change.service, "state: {error}"),
            None => state.remove(&name),
        }
    }
}

/// The name of the document of a service: neither a namespace nor a name has a dot.
fn document(service: &ServiceId) -> String {
    format!("{PREFIX}{}.{}", service.namespace(), service.name())
}

fn service(document: &str) -> Option<ServiceId> {
    let (namespace, name) = document.strip_prefix(PREFIX)?.split_once('.')?;
    ServiceId::parse(namespace, name).ok()
}
