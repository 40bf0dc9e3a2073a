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

macro_rules! families {
    ($($kind:ident $ident:ident $name:literal $help:literal)*) => {
        $(pub(super) static $ident: Family = Family { name: $name, kind: Kind::$kind, help: $help };)*
    };
}

// Counted by requests, by service and revision.
families! {
    Counter REQUESTS "sluice_requests_total" "Finished requests."
    Counter REJECTIONS "sluice_rejections_total"
        "Requests that did not simply get their backend's answer, by why."
    Histogram REQUEST_DURATION "sluice_request_duration_seconds"
        "From the complete request head to the last byte of the answer."
    Histogram QUEUE_WAIT "sluice_queue_wait_seconds"
        "How long requests waited that did not get a Permit at once."
    Counter ACTIVATIONS "sluice_activations_total" "Activations by how they ended."
    Histogram ACTIVATION_DURATION "sluice_activation_duration_seconds"
        "From the first waiter at zero to a ready endpoint or the failure."
    Histogram COLD_START_PHASE "sluice_cold_start_phase_seconds"
        "Where the time until the first byte went, for requests that waited for a start."
}

// Read from the live state at a scrape.
families! {
    Gauge IN_FLIGHT "sluice_requests_in_flight" "Requests and streams that hold a Permit."
    Gauge QUEUE_DEPTH "sluice_queue_depth" "Requests that wait."
    Gauge REPLICAS "sluice_revision_replicas" "Endpoints wanted and endpoints ready."
    Gauge SCALE_FLOOR "sluice_scale_floor"
        "The least number of instances, by what sets it; the greatest one wins."
    Counter INSTANCE_SECONDS "sluice_instance_seconds_total"
        "Time of instances that were ready or finishing requests, all instances together."
    Counter OBSERVED_INSTANCE_SECONDS "sluice_observed_instance_seconds_total"
        "Instance seconds that would have been, in observe mode."
    Counter OBSERVED_COLD_STARTS "sluice_observed_cold_starts_total"
        "Starts that requests would have waited for, in observe mode."
    Gauge ROLLOUT_STEP "sluice_rollout_step"
        "The newest revision's part of what follows the latest revision, in percent."
    Counter ROLLOUTS "sluice_rollouts_total" "Rollouts by how they ended."
    Gauge REPLICA_CONNECTED "sluice_replica_connected"
        "Whether another replica is connected, which slots are shared with: 1, or 0."
    Gauge REPLICA_HOLDS "sluice_replica_slots"
        "Slots of this replica's endpoints that another one holds. Of one that is not connected they are lost until it is back or gone."
    Gauge TABLES "sluice_tables_alive"
        "Tables not yet dropped: the one served, and those that requests still hold."
    Gauge CERTIFICATES "sluice_certificates" "Certificates that a listener serves."
    Gauge CERTIFICATE_ENDS "sluice_certificate_not_after_seconds"
        "When a certificate ends to be valid, in seconds since 1970; those that end first."
}

// Of the process, or of one of its listeners.
families! {
    Gauge GENERATION "sluice_config_generation" "The generation of the Snapshot that is served."
    Counter RELOADS "sluice_config_reloads_total" "Loads of the configuration by how they ended."
    Gauge CONNECTIONS "sluice_connections" "Open client connections."
    Counter CLOSED "sluice_connections_closed_total" "Client connections that were closed, by why."
    Counter PAUSES "sluice_accept_pauses_total"
        "Times that accepting paused because descriptors or memory ran out."
    Counter REFUSED "sluice_streams_refused_total"
        "HTTP/2 streams refused before they were a request, by why."
    Counter DROPPED "sluice_log_lines_dropped_total"
        "Lines of access log and log that were lost because nobody took them."
    Counter TRACES_DROPPED "sluice_traces_dropped_total"
        "Traces of requests that the collector did not take, or that found no room in the queue."
}

// Under the names that Knative's own components have for the same, in Prometheus's form.
families! {
    Gauge KN_CONCURRENCY "kn_revision_request_concurrency" "Requests of a revision that wait or are served."
    Gauge KN_QUEUED "kn_revision_request_queued" "Requests of a revision that wait."
    Gauge KN_ACTIVE "kn_revision_request_active" "Requests of a revision that are served."
    Gauge KN_DESIRED "kn_revision_pods_desired" "Instances wanted of a revision that the gateway scales."
    Gauge KN_COUNT "kn_revision_pods_count" "Ready instances of a revision that the gateway scales."
    Gauge KN_STATS_REACHABLE "kn_activator_stats_conn_reachable"
        "Whether the autoscaler can be told statistics: 1, or 0."
    Counter KN_STATS_ERRORS "kn_activator_stats_conn_errors_total"
        "Connections to the autoscaler that failed or broke."
}
