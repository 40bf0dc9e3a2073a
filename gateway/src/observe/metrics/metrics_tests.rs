use crate::edge::{CloseReason, ConnectionProtocol, EdgeMetrics};
use crate::replicas::ReplicaStatus;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_model::Failure;

use super::super::Reason;
use super::super::record::RequestRecord;
use super::super::record::tests::plain;
use super::*;

fn service() -> ServiceId {
    ServiceId::parse("default", "greeter").unwrap()
}

fn revision(name: &str) -> RevisionId {
    RevisionId::parse("default", name).unwrap()
}

/// Reads the text format back as strictly as Prometheus does: families in one piece, HELP and
/// TYPE first, no series twice, histograms cumulative and complete.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut current = "";
    for line in text.lines().filter(|l| !l.is_empty()) {
        if let Some(rest) = line.strip_prefix("# ") {
            let (kind, rest) = rest.split_once(' ').unwrap();
            let (name, rest) = rest.split_once(' ').unwrap();
            if kind == "TYPE" {
                types.insert(name, rest);
            } else {
                assert_eq!(kind, "HELP");
                assert!(seen.insert(name), "{name} comes twice");
                current = name;
            }
            continue;
        }
        let (left, value) = line.rsplit_once(' ').unwrap();
        let name = left.split('{').next().unwrap();
        let suffixes = ["_bucket", "_sum", "_count"].iter();
        let histogram = suffixes.filter_map(|s| name.strip_suffix(s)).next();
        let family = histogram
            .filter(|f| types.get(f) == Some(&"histogram"))
            .unwrap_or(name);
        assert_eq!(family, current, "a family is in one piece: {line}");
        assert!(types.contains_key(family), "{line}");
        let value: f64 = value.parse().unwrap();
        assert!(
            series.insert(left.to_owned(), value).is_none(),
            "{left} comes twice"
        );
    }
    let buckets: Vec<_> = series.iter().filter(|(k, _)| k.contains("_bucket{")).collect();
    let mut by_series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (key, value) in buckets {
        let (labels, le) = key.split_once(",le=\"").unwrap();
        let le = le.trim_end_matches("\"}").parse().unwrap_or(f64::INFINITY);
        by_series.entry(labels.to_owned()).or_default().push((le, *value));
    }
    for (labels, mut buckets) in by_series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{labels}: {buckets:?}");
        let count = series[&format!("{}}}", labels.replace("_bucket{", "_count{"))];
        assert_eq!(buckets.last().unwrap().0, f64::INFINITY);
        assert_eq!(buckets.last().unwrap().1, count);
        assert!(series.contains_key(&format!("{}}}", labels.replace("_bucket{", "_sum{"))));
    }
    series
}

const V1: &str = "namespace=\"default\",service=\"greeter\",revision=\"greeter-v1\"";

fn scaling() -> ScalingStatus {
    ScalingStatus {
        wants: sluice_model::ScaleWants {
            schedule: Some(4),
            min_scale: 1,
            ..Default::default()
        },
        instance_seconds: 12.5,
        observed: Some(sluice_model::ObservedScaling {
            cold_starts: 2,
            instance_seconds: 7.25,
            ..Default::default()
        }),
        ..ScalingStatus::default()
    }
}

#[test]
fn everything_of_the_contract_is_rendered_well_formed() {
    let metrics = Metrics::new();
    let v1 = metrics.revision(&service(), &revision("greeter-v1"));
    let _v2 = metrics.revision(&service(), &revision("greeter-v2"));
    v1.finish(&plain());
    v1.finish(&RequestRecord {
        status: Some(503),
        reason: Some(Reason::QueueFull),
        queue: Some(Duration::from_millis(70)),
        ..plain()
    });
    v1.activated(ActivationResult::Ready, Duration::from_millis(400));
    v1.activated(Failure::TimedOut.into(), Duration::from_secs(61));
    metrics.unrouted().finish(&RequestRecord {
        status: Some(404),
        reason: Some(Reason::NoRoute),
        ..plain()
    });
    metrics.set_generation(Generation(7));
    metrics.reloaded(ReloadResult::Applied);
    metrics.reloaded(ReloadResult::Rejected);
    metrics.reloaded(ReloadResult::Rejected);
    metrics.log_lines_dropped().increment(5);
    metrics.traces_dropped().increment(3);
    let connections = metrics.listener(([127, 0, 0, 1], 8080).into());
    connections.entered(ConnectionProtocol::Http1);
    connections.entered(ConnectionProtocol::Http2);
    connections.left(ConnectionProtocol::Http2);
    connections.closed(CloseReason::TlsFailed);

    let load = |name| RevisionLoad {
        service: service(),
        revision: revision(name),
        in_flight: 2,
        queued: 1,
        ready: 1,
        leaving: false,
        owner: None,
    };
    let text = metrics.expose(&LiveGauges {
        loads: vec![load("greeter-v1"), load("greeter-v2")],
        desired: BTreeMap::from([(revision("greeter-v1"), 3)]),
        scaling: BTreeMap::from([(revision("greeter-v1"), scaling())]),
        tables: 2,
        certificates: Vec::new(),
        rollouts: RolloutGauges {
            steps: vec![(service(), 20.0)],
            ended: vec![("failed", 3)],
        },
        stats: None,
        replicas: vec![ReplicaStatus {
            name: "sluice-b".into(),
            serves: true,
            is_connected: false,
            since: Duration::from_secs(7),
            agrees: false,
            holds: 3,
        }],
    });
    let series = parse(&text);
    let want = [
        (
            "sluice_rollout_step{namespace=\"default\",service=\"greeter\"}".into(),
            20.0,
        ),
        ("sluice_rollouts_total{result=\"failed\"}".into(), 3.0),
        ("sluice_replica_connected{replica=\"sluice-b\"}".into(), 0.0),
        ("sluice_replica_slots{replica=\"sluice-b\"}".into(), 3.0),
        (format!("sluice_scale_floor{{{V1},source=\"schedule\"}}"), 4.0),
        (format!("sluice_scale_floor{{{V1},source=\"minScale\"}}"), 1.0),
        (format!("sluice_instance_seconds_total{{{V1}}}"), 12.5),
        (format!("sluice_observed_instance_seconds_total{{{V1}}}"), 7.25),
        (format!("sluice_observed_cold_starts_total{{{V1}}}"), 2.0),
        (format!("sluice_requests_total{{{V1},code=\"200\"}}"), 1.0),
        (format!("sluice_requests_total{{{V1},code=\"503\"}}"), 1.0),
        (
            "sluice_requests_total{namespace=\"\",service=\"\",revision=\"\",code=\"404\"}".into(),
            1.0,
        ),
        (
            "sluice_rejections_total{namespace=\"\",service=\"\",reason=\"no_route\"}".into(),
            1.0,
        ),
        (
            "sluice_rejections_total{namespace=\"default\",service=\"greeter\",reason=\"queue_full\"}".into(),
            1.0,
        ),
        (
            format!("sluice_request_duration_seconds_bucket{{{V1},le=\"0.001\"}}"),
            0.0,
        ),
        (
            format!("sluice_request_duration_seconds_bucket{{{V1},le=\"0.0025\"}}"),
            2.0,
        ),
        (format!("sluice_request_duration_seconds_sum{{{V1}}}"), 0.002_468),
        (format!("sluice_queue_wait_seconds_count{{{V1}}}"), 1.0),
        (format!("sluice_activations_total{{{V1},result=\"ready\"}}"), 1.0),
        (
            format!("sluice_activations_total{{{V1},result=\"timeout\"}}"),
            1.0,
        ),
        (
            format!("sluice_activation_duration_seconds_bucket{{{V1},le=\"60\"}}"),
            1.0,
        ),
        (
            format!("sluice_activation_duration_seconds_bucket{{{V1},le=\"+Inf\"}}"),
            2.0,
        ),
        (format!("sluice_requests_in_flight{{{V1}}}"), 2.0),
        (format!("sluice_queue_depth{{{V1}}}"), 1.0),
        (format!("sluice_revision_replicas{{{V1},state=\"desired\"}}"), 3.0),
        (format!("sluice_revision_replicas{{{V1},state=\"ready\"}}"), 1.0),
        ("sluice_config_generation".into(), 7.0),
        ("sluice_config_reloads_total{result=\"rejected\"}".into(), 2.0),
        ("sluice_config_reloads_total{result=\"unchanged\"}".into(), 0.0),
        (
            "sluice_connections{listener=\"127.0.0.1:8080\",protocol=\"http1\"}".into(),
            1.0,
        ),
        (
            "sluice_connections{listener=\"127.0.0.1:8080\",protocol=\"http2\"}".into(),
            0.0,
        ),
        (
            "sluice_connections_closed_total{listener=\"127.0.0.1:8080\",reason=\"tls_failed\"}".into(),
            1.0,
        ),
        ("sluice_log_lines_dropped_total".into(), 5.0),
        ("sluice_traces_dropped_total".into(), 3.0),
        ("sluice_tables_alive".into(), 2.0),
    ];
    for (name, value) in want {
        assert_eq!(series.get(&name), Some(&value), "{name} in\n{text}");
    }
    let scaled = |key: &&String| key.contains("greeter-v2") && key.contains("desired");
    assert_eq!(series.keys().find(scaled), None, "nothing scales it");
}

#[test]
fn series_vanish_with_their_last_holder_and_survive_a_return() {
    let metrics = Metrics::new();
    let none = LiveGauges::default();
    let first = metrics.revision(&service(), &revision("greeter-v1"));
    first.finish(&plain());
    let again = metrics.revision(&service(), &revision("greeter-v1"));
    drop(first);
    again.finish(&plain());
    let key = format!("sluice_requests_total{{{V1},code=\"200\"}}");
    assert_eq!(parse(&metrics.expose(&none)).get(&key), Some(&2.0));
    drop(again);
    let text = metrics.expose(&none);
    parse(&text);
    assert!(!text.contains("greeter"), "{text}");
}

#[test]
fn churn_without_scrapes_does_not_pile_up() {
    let metrics = Metrics::new();
    let kept = metrics.service(&service());
    for i in 0..10_000 {
        let name = format!("r{i}");
        metrics.revision(&ServiceId::parse("default", &name).unwrap(), &revision(&name));
        // A service that stays while its revisions come and go.
        metrics.revision(&service(), &revision(&name));
    }
    let live = metrics.inner.registry.weak.lock();
    assert!(live.revisions.len() < 200, "{}", live.revisions.len());
    assert!(live.services.len() < 200, "{}", live.services.len());
    drop(live);
    assert!(Arc::ptr_eq(&kept, &metrics.service(&service())));
}

#[test]
fn a_finished_request_moves_what_its_routing_reached() {
    use super::super::{AccessLog, LogSink, MetricsScope, Observer};
    let observer = Observer {
        access_log: AccessLog::new(LogSink::none()),
        metrics: Metrics::new(),
    };
    let service_handle = observer.metrics.service(&service());
    let handle = observer.metrics.revision(&service(), &revision("greeter-v1"));
    let off = sluice_model::AccessLogFormat::Off;
    let rejected = RequestRecord {
        status: Some(503),
        reason: Some(Reason::Overloaded),
        ..plain()
    };
    observer.finish(off, &rejected, MetricsScope::Unrouted);
    observer.finish(off, &rejected, MetricsScope::Service(&service_handle));
    observer.finish(off, &rejected, MetricsScope::Revision(&handle));
    let none = LiveGauges::default();
    let series = parse(&observer.metrics.expose(&none));
    let key = "sluice_rejections_total{namespace=\"default\",service=\"greeter\",reason=\"overloaded\"}";
    assert_eq!(series.get(key), Some(&2.0));
    let without = "namespace=\"default\",service=\"greeter\",revision=\"\"";
    for labels in [V1, without, "namespace=\"\",service=\"\",revision=\"\""] {
        let key = format!("sluice_requests_total{{{labels},code=\"503\"}}");
        assert_eq!(series.get(&key), Some(&1.0), "{key}");
    }
}

#[test]
fn a_step_of_the_history_asks_for_the_requests_of_revisions_in_use_alone() {
    let metrics = Metrics::new();
    let handle = metrics.revision(&service(), &revision("greeter-v1"));
    drop(metrics.revision(&service(), &revision("greeter-v0")));
    handle.finish(&plain());
    let mut history = History::default();
    let present = |revisions: &[RevisionId]| {
        assert_eq!(revisions, [revision("greeter-v1")]);
        vec![PresentRequests {
            in_flight: 3,
            queued: 2,
        }]
    };
    metrics.record(&mut history, 1, present);
    let last = *history.total().last().expect("a step");
    assert_eq!((last.requests, last.in_flight, last.queued), (1, 3, 2));
}
