//! Whole configurations: what loads, what it becomes, and what is told about what does not.

use std::path::Path;

use super::*;
use std::time::Duration;

use sluice_model::{Backend, EndpointAddr, EndpointTarget, Percent, Protocol, Scheme, Tag};

fn env(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("secret-token".to_owned()),
        "FC_KEY" => Some("secret-key".to_owned()),
        "FIFTY" => Some("50".to_owned()),
        "YES" => Some("true".to_owned()),
        "NAME" => Some("greeter".to_owned()),
        _ => None,
    }
}

pub(super) fn file(path: &str, text: &str) -> SourceFile {
    SourceFile {
        path: path.into(),
        text: text.to_owned(),
    }
}

pub(super) fn load_one(text: &str) -> Result<Compiled, Diagnostics> {
    load(&[file("/etc/sluice/sluice.yaml", text)], &env)
}

pub(super) fn good(text: &str) -> Compiled {
    load_one(text).unwrap_or_else(|e| panic!("{e}"))
}

const EXAMPLE: &str = include_str!("../config/testdata/example.yaml");

fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).expect("a name")
}

fn revision<'c>(compiled: &'c Compiled, name: &str) -> &'c RevisionSpec {
    let (entry, slot) = compiled.snapshot.revision(&id(name)).expect("a revision");
    &entry.service.revisions[slot]
}

fn hosts(compiled: &Compiled) -> Vec<String> {
    let mut hosts: Vec<String> = compiled
        .snapshot
        .table()
        .hosts()
        .map(|(host, service, tag)| match tag {
            Some(tag) => format!("{host} -> {}#{tag}", service.id.name()),
            None => format!("{host} -> {}", service.id.name()),
        })
        .collect();
    hosts.sort();
    hosts
}

#[test]
fn twelve_mistakes_of_six_kinds() {
    let text = include_str!("../config/testdata/mistakes.yaml");
    let diagnostics = load_one(text).expect_err("mistakes");
    let told: Vec<(u32, u32, &str, &str)> = diagnostics
        .items()
        .iter()
        .map(|d| {
            (
                d.location.line,
                d.location.column,
                d.path.as_str(),
                d.message.as_str(),
            )
        })
        .collect();
    let v1 = "services[0].revisions[0]";
    let v2 = "services[0].revisions[1]";
    let want = [
        (1, 1, "domian".to_owned(), "unknown key 'domian'"),
        (
            4,
            17,
            "listeners[0].visibility".into(),
            "expected one of external, internal, found the text 'extern'",
        ),
        (
            5,
            25,
            "limits.headerTimeout".into(),
            "expected a duration such as 250ms, 10s, 5m or 1h, found the text '10 seconds'",
        ),
        (
            8,
            12,
            "services[0].hosts".into(),
            "expected a list, found the text 'hello.example.com'",
        ),
        (
            9,
            5,
            "services[0].traffic".into(),
            "percents add up to 99.99, not to 100",
        ),
        (
            11,
            24,
            "services[0].traffic[1].revisionName".into(),
            "no revision of this service is named 'greeter-v3'",
        ),
        (
            11,
            57,
            "services[0].traffic[1].tag".into(),
            "tag 'current' is used twice",
        ),
        (
            14,
            37,
            format!("{v1}.endpoints[1]"),
            "'127.0.0.1' is not an endpoint: the port is missing",
        ),
        (
            15,
            25,
            format!("{v1}.timeoutSeconds"),
            "expected a number of seconds, found the text 'soon'",
        ),
        (18, 9, format!("{v2}.process"), "the key 'process' is repeated"),
        (
            19,
            33,
            format!("{v2}.autoscaling.minScale"),
            "minScale 3 is above maxScale 2",
        ),
        (
            20,
            24,
            format!("{v2}.queue.depth"),
            "the variable DEPTH is not set",
        ),
    ];
    let want: Vec<_> = want.iter().map(|(l, c, p, m)| (*l, *c, p.as_str(), *m)).collect();
    assert_eq!(told, want, "{diagnostics}");
    assert_eq!(diagnostics.errors(), 12);
}

#[test]
fn the_example_of_the_user_contract_loads() {
    let compiled = good(EXAMPLE);
    assert!(compiled.warnings.is_empty(), "{}", compiled.warnings);
    assert_eq!(
        compiled.summary().to_string(),
        "2 services, 5 revisions, 11 hosts, 2 listeners"
    );
    assert_eq!(
        hosts(&compiled),
        [
            "*.hello.example.com -> greeter",
            "blog.default.localhost -> blog",
            "blog.example.com -> blog",
            "current-greeter.default.localhost -> greeter#current",
            "current-hello.example.com -> greeter#current",
            "greeter.default.localhost -> greeter",
            "hello.example.com -> greeter",
            "latest-greeter.default.localhost -> greeter#latest",
            "latest-hello.example.com -> greeter#latest",
            "prev-greeter.default.localhost -> greeter#prev",
            "prev-hello.example.com -> greeter#prev",
        ]
    );
    let spec = |name| revision(&compiled, name);
    let v1 = Backend::Static {
        targets: vec![
            EndpointTarget::Address(EndpointAddr::Tcp("127.0.0.1:9001".parse().expect("an address"))),
            EndpointTarget::Dns {
                host: "backend.internal".into(),
                port: 9002,
            },
            EndpointTarget::Address(EndpointAddr::Unix("/run/app.sock".into())),
        ],
        activated: false,
    };
    assert_eq!(spec("greeter-v1").backend, v1);
    assert_eq!(spec("greeter-v2").backend, Backend::Managed);
    assert!(matches!(
        spec("greeter-elsewhere").backend,
        Backend::Static { activated: true, .. }
    ));
    let Backend::Url(url) = &spec("on-a-function-platform").backend else {
        panic!("a url");
    };
    assert_eq!(
        (url.scheme, url.port, url.path_prefix.as_str()),
        (Scheme::Https, 443, "")
    );
    assert_eq!(
        spec("on-a-function-platform").request_headers["x-api-key"],
        "secret-key"
    );

    assert_eq!(spec("greeter-v1").upgrades, None);
    let named = ["websocket".to_owned(), "tcp/1".to_owned()];
    assert_eq!(spec("greeter-v2").upgrades.as_deref(), Some(&named[..]));

    let plan = &compiled.plan.revisions[&id("greeter-v2")];
    let crate::plan::ScalerSpec::Process(process) = &plan.scaler else {
        panic!("a process");
    };
    assert_eq!(process.command, ["sluice", "echo", "--message", "Namaste"]);
    assert_eq!(process.working_directory, Path::new("/etc/sluice"));
    assert!(plan.reachable && plan.policy.max_scale == Some(10));
    let elsewhere = &compiled.plan.revisions[&id("greeter-elsewhere")];
    assert!(!elsewhere.reachable);
    let crate::plan::ScalerSpec::Webhook(webhook) = &elsewhere.scaler else {
        panic!("a webhook");
    };
    assert_eq!(webhook.headers["authorization"], "Bearer secret-token");
    let files: Vec<_> = compiled.files.iter().map(|f| f.file.clone()).collect();
    assert_eq!(
        files,
        [
            Path::new("/etc/sluice/tls/a.crt"),
            Path::new("/etc/sluice/tls/a.key"),
            Path::new("/etc/sluice/ca.crt"),
            Path::new("/etc/sluice/me.crt"),
            Path::new("/etc/sluice/me.key"),
            Path::new("/etc/sluice/wait.html")
        ]
    );
    assert!(
        compiled.files[0]
            .error("gone")
            .to_string()
            .starts_with("/etc/sluice/sluice.yaml:5:")
    );
}

/// What the example spells out as defaults is what an empty configuration gets.
#[test]
fn defaults() {
    let compiled = good("");
    let settings = compiled.snapshot.settings();
    let example = good(EXAMPLE);
    let spelled = example.snapshot.settings();
    assert_eq!(settings.domain, "localhost");
    assert_eq!(settings.listeners, spelled.listeners[..1]);
    assert_eq!(settings.limits, spelled.limits);
    assert_eq!(settings.queue, spelled.queue);
    assert_eq!(settings.drain, spelled.drain);
    assert_eq!(
        (&settings.admin, settings.tag_header),
        (&spelled.admin, spelled.tag_header)
    );
    assert_eq!(
        (settings.access_log, settings.error_detail),
        (spelled.access_log, spelled.error_detail)
    );
    assert_eq!(
        (settings.health, settings.dns_refresh),
        (None, Duration::from_secs(5))
    );
    assert!(settings.trusted_proxies.is_empty());
    assert_eq!(compiled.plan.processes, example.plan.processes);
    assert_eq!(
        compiled.summary().to_string(),
        "0 services, 0 revisions, 0 hosts, 1 listener"
    );

    let text = "services: [{name: a, process: {command: [x]}}]";
    let compiled = good(text);
    let spec = &compiled.snapshot.revisions()[0];
    let spelled = revision(&example, "greeter-v2");
    assert_eq!(spec.id, id("a-00001"));
    assert_eq!(spec.timeouts, spelled.timeouts);
    assert_eq!(spec.queue, spelled.queue);
    assert_eq!(
        (spec.start_timeout, spec.protocol),
        (spelled.start_timeout, Protocol::Http1)
    );
    assert_eq!((spec.container_concurrency, &spec.readiness), (None, &None));
    let plan = &compiled.plan.revisions[&spec.id];
    let policy = &plan.policy;
    assert_eq!(policy.stable_window, Duration::from_secs(60));
    assert_eq!(policy.panic_window, Duration::from_secs(6));
    assert_eq!((policy.min_scale, policy.max_scale), (0, None));
    assert_eq!((policy.initial_scale, policy.activation_scale), (0, 1));
    assert_eq!(policy.scale_to_zero_grace, Duration::ZERO);
    assert!((policy.target_value - 70.0).abs() < 1e-9 && (policy.total_value - 100.0).abs() < 1e-9);
    assert!(policy.scale_to_zero && plan.reachable);
}

#[test]
fn upgrades_are_names_of_protocols_that_a_backend_can_switch_to() {
    let load = |upgrades: &str| {
        load_one(&format!(
            "services:\n- {{name: web, endpoints: ['h:1'], upgrades: {upgrades}}}\n"
        ))
    };
    let compiled = load("[WebSocket, SPDY/3.1]").unwrap_or_else(|e| panic!("{e}"));
    let named = ["websocket".to_owned(), "spdy/3.1".to_owned()];
    assert_eq!(
        compiled.snapshot.revisions()[0].upgrades.as_deref(),
        Some(&named[..])
    );
    for (upgrades, message) in [
        ("[TLS/1.2]", "TLS is not begun by an upgrade here"),
        ("[h2c]", "HTTP/2 is not begun by an upgrade here"),
        ("['a b']", "it is no protocol's name"),
        ("[tcp/]", "it is no protocol's name"),
    ] {
        let diagnostics = load(upgrades).expect_err("a mistake").to_string();
        assert!(diagnostics.contains(message), "{upgrades}: {diagnostics}");
    }
}

#[test]
fn a_pasted_knative_dump_loads_with_warnings() {
    let compiled = good(include_str!("../config/testdata/knative-dump.yaml"));
    assert_eq!(compiled.warnings.warnings(), 2);
    assert!(
        compiled
            .warnings
            .to_string()
            .contains(":12:7: warning: 'url' is ignored")
    );
    let split = &compiled.snapshot.services()[0].main.split;
    let shares: Vec<_> = split
        .targets()
        .iter()
        .map(|t| {
            (
                t.revision.name(),
                t.percent.hundredths(),
                t.tag.as_ref().map(Tag::as_str),
            )
        })
        .collect();
    assert_eq!(
        shares,
        [
            ("greeter-00001", 9_000, Some("stable")),
            ("greeter-00002", 1_000, None),
            ("greeter-00002", 0, Some("latest")),
        ]
    );
}

#[test]
fn json_is_yaml() {
    let text = r#"{"services": [{"name": "a", "endpoints": ["h:1"], "hosts": ["x.example.com"],
        "sticky": {"clientIp": true, "scope": "endpoint"}, "timeoutSeconds": 1.5}], "tagHeader": true}"#;
    let compiled = good(text);
    assert!(compiled.snapshot.settings().tag_header);
    let total = compiled.snapshot.revisions()[0].timeouts.total;
    assert_eq!(total, Some(Duration::from_millis(1500)));
}

#[test]
fn variables_are_expanded_and_typed_afterwards() {
    let compiled = good(
        r#"
tagHeader: ${YES}
domain: ${DOMAIN:-example.com}
services:
  - name: ${NAME}
    revisions:
      - {name: a, process: {command: [run, $(PORT), "$$HOME", "${NAME}-$(OTHER)"]}}
      - {name: b, endpoints: ["h:80"]}
    traffic:
      - {revisionName: a, percent: "${FIFTY}"}
      - {revisionName: b, percent: 50}
"#,
    );
    assert!(compiled.snapshot.settings().tag_header);
    assert_eq!(hosts(&compiled), ["greeter.default.example.com -> greeter"]);
    let crate::plan::ScalerSpec::Process(process) = &compiled.plan.revisions[&id("a")].scaler else {
        panic!("a process");
    };
    assert_eq!(process.command, ["run", "$(PORT)", "$$HOME", "greeter-$(OTHER)"]);
}

#[test]
fn several_files_are_one_configuration() {
    let a = file(
        "/etc/conf/a.yaml",
        "domain: a.test\nlisteners: [{address: '127.0.0.1:1'}]\nservices:\n- {name: a, endpoints: ['h:1']}\n",
    );
    let b = file(
        "/etc/conf/sub/b.yaml",
        "listeners: [{address: '127.0.0.1:2'}]\nservices:\n- {name: b, endpoints: ['unix:b.sock']}\n---\nservices:\n- {name: c, endpoints: ['h:3']}\n",
    );
    let compiled = load(&[a.clone(), b], &env).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        compiled.summary().to_string(),
        "3 services, 3 revisions, 3 hosts, 2 listeners"
    );
    let socket = EndpointTarget::Address(EndpointAddr::Unix("/etc/conf/sub/b.sock".into()));
    assert_eq!(
        revision(&compiled, "b-00001").backend,
        Backend::Static {
            targets: vec![socket],
            activated: false
        }
    );

    let c = file(
        "/etc/conf/c.yaml",
        "domain: c.test\nlisteners: [{address: '127.0.0.1:1'}]\nservices:\n- {name: a, endpoints: ['h:2']}\n- {name: d, hosts: [a.default.a.test], endpoints: ['h:2']}\n",
    );
    let rejected = load(&[a, c], &env).expect_err("claimed twice");
    let told: Vec<String> = rejected
        .items()
        .iter()
        .map(|d| {
            let related: Vec<String> = d.related.iter().map(|r| r.location.to_string()).collect();
            format!("{}: {} ({})", d.location, d.message, related.join(", "))
        })
        .collect();
    assert_eq!(
        told,
        [
            "/etc/conf/c.yaml:1:1: the key 'domain' is set in two places (/etc/conf/a.yaml:1:1)",
            "/etc/conf/c.yaml:2:23: 127.0.0.1:1 is taken twice: a listener is there too (/etc/conf/a.yaml:2:23)",
            "/etc/conf/c.yaml:4:10: service 'a' is there already, in namespace 'default' (/etc/conf/a.yaml:4:10)",
            "/etc/conf/c.yaml:5:21: the host 'a.default.a.test' is already claimed by service default/a (/etc/conf/a.yaml:4:10)",
        ]
    );
}

#[test]
fn equal_input_gives_equal_output() {
    let (a, b) = (good(EXAMPLE), good(EXAMPLE));
    assert!(a.is_same_as(&b.snapshot, &b.plan));
    for (from, to) in [
        ("percent: 50, tag: current", "percent: 50, tag: other"),
        ("blog.example.com", "blog2.example.com"),
        ("maxScale: 10", "maxScale: 11"),
        ("127.0.0.1:4000", "127.0.0.1:4001"),
        ("errorDetail: false", "errorDetail: true"),
    ] {
        let other = good(&EXAMPLE.replace(from, to));
        assert!(!a.is_same_as(&other.snapshot, &other.plan), "{from}");
    }
}

#[test]
fn a_revision_listed_twice_gets_the_sum_and_keeps_its_tags() {
    let compiled = good(
        "services:\n- name: s\n  revisions: [{name: a, endpoints: ['h:1']}, {name: b, endpoints: ['h:2']}]\n  traffic:\n  - {revisionName: a, percent: 30, tag: x}\n  - {revisionName: b, percent: 40}\n  - {revisionName: a, percent: 20, tag: y}\n  - {revisionName: a, percent: 10}\n",
    );
    let split = &compiled.snapshot.services()[0].main.split;
    let shares: Vec<_> = split
        .targets()
        .iter()
        .map(|t| {
            (
                t.revision.name(),
                t.percent.hundredths(),
                t.tag.as_ref().map(Tag::as_str),
            )
        })
        .collect();
    assert_eq!(
        shares,
        [("a", 6_000, Some("x")), ("b", 4_000, None), ("a", 0, Some("y"))]
    );
}

#[test]
fn a_route_without_traffic_has_the_services_own_without_tags() {
    let compiled = good(
        "services:\n- name: s\n  revisions: [{name: a, endpoints: ['h:1']}]\n  traffic: [{latestRevision: true, percent: 100, tag: x}]\n  routes: [{match: {path: {exact: /x}}, rewritePath: {full: /y}}]\n",
    );
    let route = &compiled.snapshot.services()[0].main.routes[0];
    let target = route.split.only().expect("one target");
    assert_eq!(
        (target.percent.hundredths(), &target.tag),
        (Percent::WHOLE, &None)
    );
}

#[test]
fn diagnostics_as_text_and_json() {
    let diagnostics =
        load_one("services: [{name: a, endpoint: ['h:1']}]\nlisteners: 5\n").expect_err("mistakes");
    assert_eq!(
        diagnostics.to_string(),
        "/etc/sluice/sluice.yaml:1:22: error: unknown key 'endpoint'\n  at services[0].endpoint\n  hint: did you mean 'endpoints'?\n\
         /etc/sluice/sluice.yaml:2:12: error: expected a list, found the number '5'\n  at listeners"
    );
    assert_eq!(
        diagnostics.to_json(),
        serde_json::json!({
            "valid": false, "errors": 2, "warnings": 0,
            "diagnostics": [
                {"severity": "error", "file": "/etc/sluice/sluice.yaml", "line": 1, "column": 22,
                 "path": "services[0].endpoint", "message": "unknown key 'endpoint'",
                 "hint": "did you mean 'endpoints'?"},
                {"severity": "error", "file": "/etc/sluice/sluice.yaml", "line": 2, "column": 12,
                 "path": "listeners", "message": "expected a list, found the number '5'"},
            ],
        })
    );
}

#[test]
fn secrets_are_not_shown() {
    let text = "services:\n- name: a\n  endpoints: ['h:1']\n  timeoutSeconds: ${TOKEN}\n  protocol: ${TOKEN}\n  requestHeaders: {set: {x: \"${TOKEN}\\n\"}}\n";
    let diagnostics = load_one(text).expect_err("mistakes");
    assert_eq!(diagnostics.errors(), 3);
    assert!(!diagnostics.to_string().contains("secret"), "{diagnostics}");
}
