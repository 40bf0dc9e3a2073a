//! Every metric family of the user contract: name, type and help text.

/// What a family's samples are, as Prometheus's `# TYPE` line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric family.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    let kind = Kind::Counter;
    Family { name, kind, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    let kind = Kind::Gauge;
    Family { name, kind, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    let kind = Kind::Histogram;
    Family { name, kind, help }
}

// By service and revision: counted by requests.

pub(super) static REQUESTS: Family = counter("sluice_requests_total", "Finished requests.");
pub(super) static REJECTIONS: Family = counter(
    "sluice_rejections_total",
    "Requests that did not simply get their backend's answer, by why.",
);
pub(super) static REQUEST_DURATION: Family = histogram(
    "sluice_request_duration_seconds",
    "From the complete request head to the last byte of the answer.",
);
pub(super) static QUEUE_WAIT: Family = histogram(
    "sluice_queue_wait_seconds",
    "How long requests waited that did not get a Permit at once.",
);
pub(super) static ACTIVATIONS: Family = counter("sluice_activations_total", "Activations by how they ended.");
pub(super) static ACTIVATION_DURATION: Family = histogram(
    "sluice_activation_duration_seconds",
    "From the first waiter at zero to a ready endpoint or the failure.",
);
pub(super) static COLD_START_PHASE: Family = histogram(
    "sluice_cold_start_phase_seconds",
    "Where the time until the first byte went, for requests that waited for a start.",
);

// Read from the live state at a scrape.

pub(super) static IN_FLIGHT: Family = gauge(
    "sluice_requests_in_flight",
    "Requests and streams that hold a Permit.",
);
pub(super) static QUEUE_DEPTH: Family = gauge("sluice_queue_depth", "Requests that wait.");
pub(super) static REPLICAS: Family = gauge(
    "sluice_revision_replicas",
    "Endpoints wanted and endpoints ready.",
);
pub(super) static TABLES: Family = gauge(
    "sluice_tables_alive",
    "Tables not yet dropped: the one served, and those that requests still hold.",
);
pub(super) static CERTIFICATES: Family = gauge("sluice_certificates", "Certificates that a listener serves.");
pub(super) static CERTIFICATE_ENDS: Family = gauge(
    "sluice_certificate_not_after_seconds",
    "When a certificate ends to be valid, in seconds since 1970; those that end first.",
);

// Of the process, or of one of its listeners.

pub(super) static GENERATION: Family = gauge(
    "sluice_config_generation",
    "The generation of the Snapshot that is served.",
);
pub(super) static RELOADS: Family = counter(
    "sluice_config_reloads_total",
    "Loads of the configuration by how they ended.",
);
pub(super) static CONNECTIONS: Family = gauge("sluice_connections", "Open client connections.");
pub(super) static CLOSED: Family = counter(
    "sluice_connections_closed_total",
    "Client connections that were closed, by why.",
);
pub(super) static PAUSES: Family = counter(
    "sluice_accept_pauses_total",
    "Times that accepting paused because descriptors or memory ran out.",
);
pub(super) static REFUSED: Family = counter(
    "sluice_streams_refused_total",
    "HTTP/2 streams refused before they were a request, by why.",
);
pub(super) static DROPPED: Family = counter(
    "sluice_log_lines_dropped_total",
    "Lines of access log and log that were lost because nobody took them.",
);
