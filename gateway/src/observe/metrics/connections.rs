//! What the edge counts.

use std::net::SocketAddr;
use std::sync::Arc;

use metrics::{Counter, Gauge, Key, Label, Recorder};

use super::{CLOSED, CONNECTIONS, METADATA, Metrics, PAUSES};
use crate::edge::{CloseReason, ConnectionProtocol, EdgeMetrics, ListenerMetrics};

/// The handles of one listener, resolved when it is bound.
struct Connections {
    open: [Gauge; ConnectionProtocol::ALL.len()],
    closed: [Counter; CloseReason::ALL.len()],
    pauses: Counter,
}

impl EdgeMetrics for Metrics {
    fn listener(&self, bound: SocketAddr) -> Arc<dyn ListenerMetrics> {
        let listener = Label::new("listener", bound.to_string());
        let recorder = &self.inner.recorder;
        let open = ConnectionProtocol::ALL.map(|protocol| {
            let labels = vec![
                listener.clone(),
                Label::from_static_parts("protocol", protocol.as_str()),
            ];
            recorder.register_gauge(&Key::from_parts(CONNECTIONS, labels), &METADATA)
        });
        let closed = CloseReason::ALL.map(|reason| {
            let labels = vec![
                listener.clone(),
                Label::from_static_parts("reason", reason.as_str()),
            ];
            recorder.register_counter(&Key::from_parts(CLOSED, labels), &METADATA)
        });
        let pauses = recorder.register_counter(&Key::from_parts(PAUSES, vec![listener]), &METADATA);
        Arc::new(Connections { open, closed, pauses })
    }
}

impl ListenerMetrics for Connections {
    fn entered(&self, protocol: ConnectionProtocol) {
        self.open[protocol as usize].increment(1.0);
    }

    fn left(&self, protocol: ConnectionProtocol) {
        self.open[protocol as usize].decrement(1.0);
    }

    fn closed(&self, reason: CloseReason) {
        self.closed[reason as usize].increment(1);
    }

    fn exhausted(&self) {
        self.pauses.increment(1);
    }
}
