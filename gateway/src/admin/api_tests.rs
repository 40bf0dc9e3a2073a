use std::time::Duration;

use serde_json::json;
use sluice_model::{CertificateFiles, TlsSettings};

use super::super::fixture::{FakeGateway, SECRET, ingress, snapshot};
use super::*;

#[test]
fn routes_show_hosts_and_splits() {
    let value = routes(&snapshot());
    assert_eq!(
        value["hosts"],
        json!([
            {"host": "current-greeter.default.localhost", "service": "default/greeter", "rule": null, "tag": "current"},
            {"host": "greeter.default.localhost", "service": "default/greeter", "rule": null, "tag": null},
        ])
    );
    let service = &value["services"][0];
    assert_eq!(
        service["traffic"],
        json!([
            {"revisionName": "greeter-v1", "percent": 66.67, "tag": "current"},
            {"revisionName": "greeter-v2", "percent": 33.33, "tag": null},
        ])
    );
    assert_eq!(service["routes"][0]["match"]["path"], json!({"prefix": "/v2"}));
    assert_eq!(
        service["routes"][0]["traffic"][0]["percent"],
        json!(100),
        "whole percents are whole"
    );
}

#[test]
fn an_ingress_shows_the_rule_of_each_host_and_no_secret() {
    let value = routes(&ingress());
    let rules: Vec<_> = value["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| &host["rule"])
        .collect();
    assert_eq!(rules, [&json!(0), &json!(0), &json!(1)]);
    let service = &value["services"][0];
    assert_eq!(
        (&service["visibility"], &service["httpOption"]),
        (&json!("external"), &json!("enabled"))
    );
    let further = service["furtherRules"].as_array().unwrap();
    assert_eq!(further.len(), 1);
    assert_eq!(
        (&further[0]["visibility"], &further[0]["httpOption"]),
        (&json!("internal"), &json!("redirected"))
    );
    assert_eq!(further[0]["traffic"], json!([]), "only by its routes");
    assert_eq!(further[0]["routes"][0]["match"]["path"], json!({"prefix": "/v2"}));
    assert!(!value.to_string().contains(SECRET), "{value:#}");
}

#[test]
fn revisions_join_configuration_load_and_status() {
    let value = revisions(&FakeGateway::new(), None);
    assert_eq!(value["generation"], 3);
    let rows = value["revisions"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|r| r["revision"].as_str().unwrap()).collect();
    assert_eq!(names, ["greeter-v0", "greeter-v1", "greeter-v2"]);
    assert_eq!(
        (&rows[0]["percent"], &rows[0]["in_flight"], &rows[0]["state"]),
        (&Value::Null, &json!(1), &json!("leaving")),
        "a removed revision is shown while it drains"
    );
    let mut row = rows[1].clone();
    let fields = row.as_object_mut().unwrap();
    let scaling = fields.remove("scaling");
    // Of the service: every revision has them.
    let (rollout, over) = (
        fields.remove("rollout").unwrap(),
        fields.remove("override").unwrap(),
    );
    assert_eq!(
        (&rollout["state"], &rollout["percent"]),
        (&json!("running"), &json!(33.33))
    );
    assert_eq!((&over["paused"], &over["pinned"]), (&json!(true), &Value::Null));
    assert_eq!((&rows[0]["rollout"], &rows[2]["rollout"]), (&rollout, &rollout));
    // Of revisions that were made from templates.
    assert_eq!(rows[2]["created"], "2026-11-30T20:00:00Z");
    assert_eq!(rows[2]["difference"], json!(["timeoutSeconds: 300 → 10"]));
    assert_eq!(fields.get("created"), None);
    assert!(scaling.is_some_and(|scaling| scaling.is_object()));
    assert_eq!(
        row,
        json!({
            "namespace": "default", "service": "greeter", "revision": "greeter-v1", "percent": 66.67,
            "tags": ["current"], "state": "serving", "ready": 2, "desired": 2, "in_flight": 7, "queued": 0,
            "last_decision": "1 → 2: 12 in flight / target 10", "last_failure": null, "starts": 4,
            "endpoints": [
                {"address": "127.0.0.1:20001", "state": "ready", "in_flight": 4},
                {"address": "127.0.0.1:20002", "state": "ejected", "in_flight": 3},
            ],
        })
    );
    assert!(rows[2]["last_failure"].as_str().unwrap().contains("127"));
    let of = |name: &str| {
        let id = ServiceId::parse("default", name).unwrap();
        revisions(&FakeGateway::new(), Some(&id))["revisions"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((of("greeter"), of("other")), (3, 0));
}

#[test]
fn a_revision_names_the_signal_that_won_and_what_the_others_wanted() {
    let value = revisions(&FakeGateway::new(), None);
    let scaling = |n: usize| value["revisions"][n]["scaling"].clone();
    assert_eq!(scaling(0), Value::Null, "nothing scales it");
    assert_eq!(
        scaling(1),
        json!({
            "source": "schedule",
            "wanted": {"reactive": 1, "panic": null, "schedule": 2, "forecast": null, "rollout": null, "need": null, "minScale": 0, "maxScale": 10},
            "observed": null,
            "forecast": null,
        })
    );
    let all = ScalingStatus {
        observed: Some(sluice_model::ObservedScaling {
            desired: 3,
            last_decision: Some("0 → 3: panic".into()),
            cold_starts: 7,
            instance_seconds: 5_000.0,
        }),
        forecast: Some(sluice_model::ForecastStatus {
            seasons: 2,
            trusted: true,
            floor: Some(4),
            cold_starts: Some(20),
            cold_starts_with_forecast: Some(8),
            extra_instance_seconds: Some(-1_000.0),
        }),
        ..ScalingStatus::default()
    };
    let shown = super::scaling(&all);
    assert_eq!(
        (
            &shown["observed"]["instance_hours"],
            &shown["forecast"]["extra_instance_hours"]
        ),
        (&json!(1.39), &json!(-0.28))
    );
    assert_eq!(shown["forecast"]["cold_starts_with_forecast"], 8);
}

#[test]
fn config_shows_what_is_bound() {
    let value = config(&FakeGateway::new());
    assert_eq!(
        value["bound"],
        json!({"listeners": ["127.0.0.1:8080"], "admin": "127.0.0.1:9900", "health": null})
    );
    assert_eq!(
        value["certificates"],
        json!([{"listener": "127.0.0.1:8443", "name": "default/tls", "notAfter": "1970-01-01T00:00:00Z"}])
    );
    assert_eq!(value["revisions"][0]["containerConcurrency"], 5);
    assert_eq!(value["revisions"][0]["responseStartTimeout"], "5m");
    assert_eq!(
        value["scaling"]["revisions"]["default/greeter-v1"]["env"],
        json!({"TOKEN": "***"})
    );
}

#[test]
fn no_secret_leaves() {
    let gateway = FakeGateway::new();
    for value in [
        routes(&gateway.table()),
        revisions(&gateway, None),
        config(&gateway),
    ] {
        assert!(!value.to_string().contains(SECRET), "{value:#}");
    }
    let mut with_tls = Settings::clone(snapshot().settings());
    with_tls.listeners[0].tls = Some(TlsSettings::new(vec![CertificateFiles {
        cert_file: "a.crt".into(),
        key_file: SECRET.into(),
    }]));
    with_tls.limits.max_connection_age = Some(Duration::from_millis(90_500));
    let value = settings(&with_tls);
    assert!(!value.to_string().contains(SECRET), "{value:#}");
    assert_eq!(value["limits"]["maxConnectionAge"], "1m 30s 500ms");
    assert_eq!(value["listeners"][0]["tls"]["minVersion"], "1.2");
}
