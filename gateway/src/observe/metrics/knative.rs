//! Metrics under the names of Knative's own components, for dashboards that were made for these.
//!
//! Source: `pkg/activator/metrics.go`, `pkg/activator/handler/metrics.go`, `pkg/autoscaler/scaling/metrics.go` and
//! `pkg/metrics/key.go` of knative.dev/serving; a name of OpenTelemetry's becomes one of Prometheus's by underscores, the unit
//! `{request}` by nothing, a counter by `_total`. Only what the gateway does in a component's place is shown: in a
//! cluster Knative's autoscaler and queue-proxies export their own, and one value from two sources would be added up.

use std::collections::BTreeMap;

use super::LiveGauges;
use super::exposition::Exposition;
use super::families::{
    Family, KN_ACTIVE, KN_CONCURRENCY, KN_COUNT, KN_DESIRED, KN_QUEUED, KN_STATS_ERRORS, KN_STATS_REACHABLE,
};

/// The values of one revision of Knative's: several of ours may stand for it, one for each Ingress.
#[derive(Default)]
struct Values {
    active: u32,
    queued: u32,
    /// Wanted and ready, where the gateway scales it.
    pods: Option<(u32, u32)>,
}

/// Writes the gauges under Knative's names: of its revisions, and of those that the gateway scales.
pub(super) fn expose(out: &mut Exposition, gauges: &LiveGauges) {
    let mut revisions: BTreeMap<String, Values> = BTreeMap::new();
    for load in &gauges.loads {
        let desired = gauges.desired.get(&load.revision).copied();
        let own = load.service.name();
        let (service, configuration) = match &load.owner {
            Some(owner) => (owner.service.as_str(), owner.configuration.as_str()),
            None if desired.is_some() => (own, own),
            None => continue,
        };
        let name = load.revision.name();
        let labels = format!(
            "k8s_namespace_name=\"{}\",kn_service_name=\"{service}\",kn_configuration_name=\"{configuration}\",kn_revision_name=\"{}\"",
            load.revision.namespace(),
            name.split('~').next().unwrap_or(name),
        );
        let values = revisions.entry(labels).or_default();
        values.active += load.in_flight;
        values.queued += load.queued;
        values.pods = desired.map(|desired| (desired, load.ready)).or(values.pods);
    }
    let mut family = |family: &'static Family, value: fn(&Values) -> Option<u32>| {
        let mut samples = out.family(family);
        for (labels, values) in &revisions {
            if let Some(value) = value(values) {
                samples.sample(format_args!("{labels}"), value);
            }
        }
    };
    family(&KN_CONCURRENCY, |values| Some(values.active + values.queued));
    family(&KN_QUEUED, |values| Some(values.queued));
    family(&KN_ACTIVE, |values| Some(values.active));
    family(&KN_DESIRED, |values| values.pods.map(|(desired, _)| desired));
    family(&KN_COUNT, |values| values.pods.map(|(_, ready)| ready));
    if let Some(stats) = &gauges.stats {
        let peer = format_args!("peer=\"autoscaler\"");
        out.family(&KN_STATS_REACHABLE)
            .sample(peer, u8::from(stats.reachable));
        out.family(&KN_STATS_ERRORS).sample(peer, stats.errors);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_model::{RevisionId, RevisionOwner, ServiceId};

    use super::*;
    use crate::observe::{RevisionLoad, StatsConnection};

    #[test]
    fn what_an_activator_knows_has_the_activators_names() {
        let load = |service: &str, revision: &str, owner: Option<(&str, &str)>| RevisionLoad {
            service: ServiceId::of_object("d", service).expect("a name"),
            revision: RevisionId::of_object("d", revision).expect("a name"),
            in_flight: 2,
            queued: 1,
            ready: 4,
            leaving: false,
            owner: owner.map(|(service, configuration)| {
                let (service, configuration) = (service.to_owned(), configuration.to_owned());
                Arc::new(RevisionOwner {
                    service,
                    configuration,
                })
            }),
        };
        let knative = Some(("hello", "hello-config"));
        let gauges = LiveGauges {
            loads: vec![
                load("hello", "hello-00001", knative),
                load("mapped.example.com", "hello-00001~mapped.example.com", knative),
                load("plain", "plain:80", None),
                load("scaled", "scaled-v1", None),
            ],
            desired: BTreeMap::from([(RevisionId::parse("d", "scaled-v1").expect("a name"), 5)]),
            stats: Some(StatsConnection {
                reachable: false,
                errors: 7,
            }),
            ..LiveGauges::default()
        };
        let mut out = Exposition::default();
        expose(&mut out, &gauges);
        let text = out.into_text();
        let of = |service: &str, configuration: &str, revision: &str| {
            format!(
                "k8s_namespace_name=\"d\",kn_service_name=\"{service}\",kn_configuration_name=\"{configuration}\",kn_revision_name=\"{revision}\""
            )
        };
        let hello = of("hello", "hello-config", "hello-00001");
        let scaled = of("scaled", "scaled", "scaled-v1");
        for line in [
            // Two of ours, one of Knative's.
            format!("kn_revision_request_concurrency{{{hello}}} 6"),
            format!("kn_revision_request_queued{{{hello}}} 2"),
            format!("kn_revision_request_active{{{hello}}} 4"),
            format!("kn_revision_request_concurrency{{{scaled}}} 3"),
            format!("kn_revision_pods_desired{{{scaled}}} 5"),
            format!("kn_revision_pods_count{{{scaled}}} 4"),
            "kn_activator_stats_conn_reachable{peer=\"autoscaler\"} 0".to_owned(),
            "kn_activator_stats_conn_errors_total{peer=\"autoscaler\"} 7".to_owned(),
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        assert!(!text.contains("plain") && !text.contains('~'), "{text}");
        assert_eq!(
            text.matches("kn_revision_pods_").count(),
            6,
            "of what the gateway scales alone: {text}"
        );
    }
}
