//! Connection metrics of listeners.

use std::net::SocketAddr;
use std::sync::Arc;

use metrics::{Counter, Gauge};

use super::Metrics;
use super::families::{CLOSED, CONNECTIONS, PAUSES};
use crate::edge::{CloseReason, ConnectionProtocol, EdgeMetrics, ListenerMetrics};

/// The handles of one listener, resolved when it is bound.
struct Connections {
    open: [Gauge; ConnectionProtocol::ALL.len()],
    closed: [Counter; CloseReason::ALL.len()],
    pauses: Counter,
}

impl EdgeMetrics for Metrics {
    fn listener(&self, bound: SocketAddr) -> Arc<dyn ListenerMetrics> {
        let registry = &self.inner.registry;
        let labels = |name, value| format!("listener=\"{bound}\",{name}=\"{value}\"");
        Arc::new(Connections {
            open: ConnectionProtocol::ALL
                .map(|p| registry.gauge(&CONNECTIONS, labels("protocol", p.as_str()))),
            closed: CloseReason::ALL.map(|r| registry.counter(&CLOSED, labels("reason", r.as_str()))),
            pauses: registry.counter(&PAUSES, format!("listener=\"{bound}\"")),
        })
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
