//! Histories on disk: one document of the state directory for each.

use std::sync::Arc;

use sluice_model::ServiceId;

use super::history::{Histories, ServiceHistory};
use crate::index::ReleaseChange;
use crate::state::{Documents, StateError, StateHandle};

const PREFIX: &str = "revisions.";

/// Reads all histories. A document that cannot be understood is logged, kept aside and left out: its service begins anew. Blocks
/// on I/O.
///
/// # Errors
/// The directory or a document cannot be read: who began without it would give a revision that failed its traffic back.
pub fn restore(documents: &Documents) -> Result<Histories, StateError> {
    let mut histories = Histories::new();
    for name in documents.names()? {
        let Some(service) = service(&name) else { continue };
        // An older process may have removed it meanwhile.
        let Some(bytes) = documents.read(&name)? else {
            continue;
        };
        match serde_json::from_slice::<ServiceHistory>(&bytes) {
            Ok(history) => _ = histories.insert(service, Arc::new(history)),
            Err(error) => {
                documents.set_aside(&name)?;
                tracing::error!(
                    %service,
                    "state: {name} is damaged, and the service begins anew; what there was is kept as {name}.json.damaged: {error}"
                );
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
