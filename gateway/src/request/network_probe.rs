//! Probes by which Knative finds out which version of an Ingress a gateway serves (`K-Network-Probe: probe`).
//!
//! A probe of a plain service is forwarded, as any request. The revisions of Knative's are started by requests and
//! count them, and their own proxies would answer a probe without asking the container: so the gateway answers for
//! them, from the table that it serves.

use sluice_model::{IngressExtras, RequestView};

use crate::local_response::{ErrorResponse, LocalResponse, RenderedResponse};
use crate::observe::Reason;

/// The field that makes a request a probe.
pub(super) const NETWORK_PROBE: &str = "k-network-probe";

/// The field of the version, in request and response.
pub(super) const NETWORK_HASH: &str = "k-network-hash";

/// The value by which a probe asks for the version; any other one it gets back.
pub(super) const HASH_OVERRIDE: &[u8] = b"override";

/// Whether a request is such a probe. Reads the request's fields: only for services of an Ingress.
pub(super) fn is_network_probe(request: &impl RequestView) -> bool {
    request.header(NETWORK_PROBE) == Some(b"probe")
}

/// The answer to a probe: 200 with the version of the Ingress, or with the probe's own value; 400 without a value.
pub(super) fn answer(request: &impl RequestView, ingress: &IngressExtras) -> LocalResponse {
    match request.header(NETWORK_HASH) {
        Some(HASH_OVERRIDE) => versioned(Some(ingress.network_hash.clone())),
        _ => echo(request),
    }
}

/// The answer to a probe that another gateway has put the version into, or asks for none of ours: 200 with its own
/// value; 400 without a value.
pub(super) fn echo(request: &impl RequestView) -> LocalResponse {
    versioned(match request.header(NETWORK_HASH) {
        // What goes into a response is text that either protocol can carry.
        Some(sent) if sent.iter().all(|byte| matches!(byte, b' '..=b'~')) => String::from_utf8(sent.to_vec())
            .ok()
            .filter(|sent| !sent.is_empty()),
        _ => None,
    })
}

fn versioned(hash: Option<String>) -> LocalResponse {
    match hash {
        Some(hash) => LocalResponse::Answer(RenderedResponse {
            status: 200,
            headers: vec![(NETWORK_HASH, hash)],
            body: bytes::Bytes::new(),
        }),
        None => ErrorResponse::new(Reason::BadRequest, "a probe has to name a K-Network-Hash").into(),
    }
}
