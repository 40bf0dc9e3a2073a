//! The manifest for a cluster, `configs/kubernetes/sluice.yaml`, read as it is. That the chart renders it is for
//! `configs/helm/render --check`; that an API server takes it, for the tests on a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::cli::sluice_in;

/// What the gateway still does after its drain: streams that are told to end get 6 s, the last answers 1 s.
const AFTER_DRAIN: Duration = Duration::from_secs(7);

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace").to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The objects by kind and name, those of another namespace than the gateway's with it.
fn manifest() -> BTreeMap<String, Value> {
    objects("configs/kubernetes/sluice.yaml", "sluice-system")
}

fn objects(file: &str, namespace: &str) -> BTreeMap<String, Value> {
    let text = read(file);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let mut objects = BTreeMap::new();
    for object in documents {
        let of = |pointer| object.pointer(pointer).and_then(Value::as_str);
        let kind = of("/kind").expect("a kind");
        let name = of("/metadata/name").expect("a name");
        let key = match of("/metadata/namespace") {
            None => format!("{kind} {name}"),
            Some(own) if own == namespace => format!("{kind} {name}"),
            Some(other) => format!("{kind} {other}/{name}"),
        };
        let twice = objects.insert(key, object.clone());
        assert_eq!(twice, None);
    }
    objects
}

/// The value at a pointer, `Null` where there is none.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

fn strings(value: &Value) -> Vec<&str> {
    list(value).into_iter().filter_map(Value::as_str).collect()
}

#[test]
fn its_objects_are_those_of_the_design() {
    let found: Vec<String> = manifest().into_keys().collect();
    assert_eq!(
        found,
        [
            "ClusterRole sluice",
            "ClusterRoleBinding sluice",
            "ConfigMap sluice",
            "Deployment sluice",
            "Namespace sluice-system",
            "PodDisruptionBudget sluice",
            "Role knative-serving/sluice",
            "Role sluice",
            "RoleBinding knative-serving/sluice",
            "RoleBinding sluice",
            "Service sluice",
            "Service sluice-internal",
            "Service sluice-peers",
            "ServiceAccount sluice",
        ]
    );
}

#[test]
fn fused_its_pods_are_the_activators_and_nothing_else_differs() {
    let mut fused = objects("configs/kubernetes/sluice-fused.yaml", "knative-serving");
    let kept = manifest();
    // Knative's own budget selects these Pods; a Pod of two cannot be evicted. Both Roles are in one namespace, and are one.
    let left_out = |name: &String| !fused.contains_key(name);
    assert_eq!(
        kept.keys().filter(|name| left_out(name)).collect::<Vec<_>>(),
        [
            "Namespace sluice-system",
            "PodDisruptionBudget sluice",
            "Role knative-serving/sluice",
            "RoleBinding knative-serving/sluice",
        ]
    );
    let both: BTreeSet<Permission> = [&kept["Role sluice"], &kept["Role knative-serving/sluice"]]
        .into_iter()
        .flat_map(permissions)
        .collect();
    assert_eq!(permissions(&fused["Role sluice"]), both);
    assert_eq!(
        permissions(&fused["ClusterRole sluice"]),
        permissions(&kept["ClusterRole sluice"])
    );
    let deployment = fused.get_mut("Deployment sluice").expect("a Deployment");
    let labels = at(deployment, "/spec/template/metadata/labels");
    assert_eq!(labels["app"], "activator", "what activator-service selects");
    assert!(
        labels.get("role").is_none(),
        "what the stock Deployment selects besides"
    );
    let container = at(deployment, "/spec/template/spec/containers/0");
    let ports: Vec<_> = list(at(container, "/ports"))
        .iter()
        .filter_map(|port| port["containerPort"].as_u64())
        .collect();
    assert!(
        [8012, 8013, 8112].iter().all(|port| ports.contains(port)),
        "{ports:?}"
    );
    let told = list(at(container, "/env"))
        .into_iter()
        .any(|variable| *variable == json!({"name": "SLUICE_ACTIVATOR", "value": "fused"}));
    assert!(told);
}

#[test]
fn services_lead_to_the_ports_of_the_design() {
    let objects = manifest();
    let container = at(&objects["Deployment sluice"], "/spec/template/spec/containers/0");
    let number_of = |name: &Value| {
        let named = list(at(container, "/ports"))
            .into_iter()
            .find(|port| port["name"] == *name);
        named.map(|port| port["containerPort"].clone())
    };
    let ports = |service: &str| -> Value {
        let ports = list(at(&objects[service], "/spec/ports"))
            .into_iter()
            .map(|port| {
                json!([
                    port["name"],
                    port["port"],
                    number_of(&port["targetPort"]),
                    port["appProtocol"]
                ])
            });
        ports.collect()
    };
    assert_eq!(
        ports("Service sluice"),
        json!([["http", 80, 8080, null], ["https", 443, 8443, null]])
    );
    assert_eq!(
        ports("Service sluice-internal"),
        json!([
            ["http2", 80, 8081, "kubernetes.io/h2c"],
            ["https", 443, 8444, null]
        ])
    );
    assert_eq!(
        ports("Service sluice-peers"),
        json!([["peers", 9902, 9902, null]])
    );
    let peers = &objects["Service sluice-peers"]["spec"];
    assert_eq!(
        (&peers["clusterIP"], &peers["publishNotReadyAddresses"]),
        (&json!("None"), &json!(true))
    );
    assert_eq!(objects["Service sluice"]["spec"]["type"], "LoadBalancer");
    assert_eq!(number_of(&json!("health")), Some(json!(9901)));
}

#[test]
fn everything_selects_the_pods_of_the_deployment() {
    let objects = manifest();
    let deployment = &objects["Deployment sluice"]["spec"];
    let labels = &deployment["template"]["metadata"]["labels"];
    let mut selectors = vec![
        &deployment["selector"]["matchLabels"],
        &objects["PodDisruptionBudget sluice"]["spec"]["selector"]["matchLabels"],
    ];
    for service in [
        "Service sluice",
        "Service sluice-internal",
        "Service sluice-peers",
    ] {
        selectors.push(&objects[service]["spec"]["selector"]);
    }
    let spread = list(at(deployment, "/template/spec/topologySpreadConstraints"));
    assert_eq!(spread.len(), 2, "zones and nodes");
    selectors.extend(spread.iter().map(|one| &one["labelSelector"]["matchLabels"]));
    for selector in selectors {
        let wanted = selector.as_object().expect("a selector");
        assert!(!wanted.is_empty());
        assert!(
            wanted.iter().all(|(label, value)| labels[label] == *value),
            "{selector} does not select {labels}"
        );
    }
    // One Pod alone may still be moved off its node.
    assert_eq!(objects["PodDisruptionBudget sluice"]["spec"]["maxUnavailable"], 1);
    assert_eq!(deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
}

/// Verb, API group, resource, and name where the rule has one.
type Permission = (String, String, String, String);

fn permissions(role: &Value) -> BTreeSet<Permission> {
    let mut all = BTreeSet::new();
    for rule in list(&role["rules"]) {
        let keys: Vec<_> = rule.as_object().expect("a rule").keys().cloned().collect();
        let known = ["apiGroups", "resourceNames", "resources", "verbs"];
        assert!(keys.iter().all(|key| known.contains(&key.as_str())), "{rule}");
        let names = match rule.get("resourceNames") {
            // An empty list is every name, as no list is.
            Some(names) if !strings(names).is_empty() => strings(names),
            _ => vec![""],
        };
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for name in &names {
                    for verb in strings(&rule["verbs"]) {
                        all.insert((verb.into(), group.into(), resource.into(), (*name).into()));
                    }
                }
            }
        }
    }
    all
}

fn allowed(list: &[(&str, &str, &str, &[&str])]) -> BTreeSet<Permission> {
    let each = list.iter().flat_map(|(group, resource, name, verbs)| {
        let owned = |text: &str| text.to_owned();
        verbs
            .iter()
            .map(move |verb| (owned(verb), owned(group), owned(resource), owned(name)))
    });
    each.collect()
}

#[test]
fn it_may_read_what_it_routes_by_and_write_statuses_its_lease_and_its_secret() {
    const READ: &[&str] = &["get", "list", "watch"];
    const KNATIVE: &str = "networking.internal.knative.dev";
    let objects = manifest();
    assert_eq!(
        permissions(&objects["ClusterRole sluice"]),
        allowed(&[
            (KNATIVE, "ingresses", "", READ),
            (KNATIVE, "ingresses/status", "", &["patch"]),
            (KNATIVE, "serverlessservices", "", READ),
            ("serving.knative.dev", "revisions", "", READ),
            ("discovery.k8s.io", "endpointslices", "", READ),
            ("", "services", "", READ),
            ("", "pods", "", READ),
            ("", "secrets", "", READ),
        ])
    );
    assert_eq!(
        permissions(&objects["Role knative-serving/sluice"]),
        allowed(&[
            ("", "configmaps", "config-network", READ),
            ("", "configmaps", "config-sluice", READ),
        ])
    );
    assert_eq!(
        permissions(&objects["Role sluice"]),
        allowed(&[
            ("coordination.k8s.io", "leases", "", &["create"]),
            (
                "coordination.k8s.io",
                "leases",
                "sluice-status",
                &["get", "update"]
            ),
            ("", "secrets", "", &["create"]),
            ("", "secrets", "sluice-peer", &["get", "list", "watch", "patch"]),
        ])
    );
    let account = json!([{"kind": "ServiceAccount", "name": "sluice", "namespace": "sluice-system"}]);
    for (binding, kind) in [
        ("ClusterRoleBinding sluice", "ClusterRole"),
        ("RoleBinding knative-serving/sluice", "Role"),
        ("RoleBinding sluice", "Role"),
    ] {
        let binding = &objects[binding];
        assert_eq!(binding["subjects"], account);
        assert_eq!(
            (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]),
            (&json!(kind), &json!("sluice"))
        );
    }
    assert_eq!(
        at(
            &objects["Deployment sluice"],
            "/spec/template/spec/serviceAccountName"
        ),
        "sluice"
    );
}

#[test]
fn the_pod_fits_the_restricted_profile_with_any_user() {
    let objects = manifest();
    let pod = at(&objects["Deployment sluice"], "/spec/template/spec");
    // No user, group or fsGroup: OpenShift takes them from the namespace's range.
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    let containers = list(&pod["containers"]);
    assert_eq!(containers.len(), 1);
    assert_eq!(
        containers[0]["securityContext"],
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true})
    );
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(pod.get(key).is_none(), "{key}");
    }
    for port in list(&containers[0]["ports"]) {
        assert!(port.get("hostPort").is_none(), "{port}");
        assert!(
            port["containerPort"].as_u64() >= Some(1024),
            "needs a capability: {port}"
        );
    }
    let volumes = list(&pod["volumes"]);
    assert!(
        volumes.iter().all(|volume| volume.get("hostPath").is_none()),
        "{volumes:?}"
    );
    let namespace = &objects["Namespace sluice-system"]["metadata"]["labels"];
    assert_eq!(namespace["pod-security.kubernetes.io/enforce"], "restricted");
    assert!(at(containers[0], "/resources/requests/memory").is_string());
    assert!(at(containers[0], "/resources/limits/memory").is_string());
    assert!(at(containers[0], "/resources/limits/cpu").is_null());
}

#[test]
fn probes_ask_the_health_address() {
    let objects = manifest();
    let container = at(&objects["Deployment sluice"], "/spec/template/spec/containers/0");
    for (probe, path) in [
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ] {
        assert_eq!(
            container[probe]["httpGet"],
            json!({"path": path, "port": "health"}),
            "{probe}"
        );
    }
}

#[tokio::test]
async fn its_config_is_valid_and_its_drain_ends_before_the_grace_period() {
    let objects = manifest();
    let text = at(&objects["ConfigMap sluice"], "/data/sluice.yaml");
    let text = text.as_str().expect("a file");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sluice.yaml"), text).unwrap();
    let checked = sluice_in(dir.path(), &["check", "sluice.yaml"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");

    let config: Value = serde_saphyr::from_str(text).expect("YAML");
    let seconds = |key: &str| {
        let text = config["drain"][key].as_str().expect("a duration");
        let seconds = text.strip_suffix('s').and_then(|number| number.parse().ok());
        Duration::from_secs(seconds.unwrap_or_else(|| panic!("{key}: {text}")))
    };
    let pod = at(&objects["Deployment sluice"], "/spec/template/spec");
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    assert!(
        seconds("delay") >= Duration::from_secs(5),
        "kube-proxy and balancers see a Pod go late"
    );
    assert!(seconds("delay") + seconds("timeout") + AFTER_DRAIN < Duration::from_secs(grace));

    // The file is where the arguments say.
    let container = at(pod, "/containers/0");
    let path = strings(&container["args"]).pop().expect("arguments").to_owned();
    let mount = list(&container["volumeMounts"]).into_iter().find(|mount| {
        Some(path.as_str())
            == mount["mountPath"]
                .as_str()
                .map(|dir| format!("{dir}/sluice.yaml"))
                .as_deref()
    });
    let volume = &mount.unwrap_or_else(|| panic!("{path} is not mounted"))["name"];
    let volume = list(&pod["volumes"])
        .into_iter()
        .find(|one| one["name"] == *volume);
    assert_eq!(at(volume.expect("the volume"), "/configMap/name"), "sluice");
}

#[test]
fn every_value_of_the_chart_is_in_its_schema_and_in_the_docs() {
    let values: Value = serde_saphyr::from_str(&read("configs/helm/sluice/values.yaml")).expect("YAML");
    let schema: Value = serde_json::from_str(&read("configs/helm/sluice/values.schema.json")).expect("JSON");
    let docs = read("docs/kubernetes.md");
    let (values, known) = (
        values.as_object().unwrap(),
        schema["properties"].as_object().unwrap(),
    );
    let (given, described): (BTreeSet<_>, BTreeSet<_>) = (
        values.keys().collect(),
        known.keys().filter(|key| *key != "global").collect(),
    );
    assert_eq!(given, described);
    assert_eq!(schema["additionalProperties"], false);
    let rows: Vec<&str> = docs.lines().filter(|line| line.starts_with("| `")).collect();
    for key in given {
        let named = format!("`{key}");
        assert!(
            rows.iter().any(|row| row.contains(&named)),
            "no row of docs/kubernetes.md has {key}"
        );
    }
}

#[test]
fn the_version_is_the_workspaces() {
    let chart: Value = serde_saphyr::from_str(&read("configs/helm/sluice/Chart.yaml")).expect("YAML");
    for key in ["version", "appVersion"] {
        assert_eq!(chart[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
    let objects = manifest();
    let image = at(
        &objects["Deployment sluice"],
        "/spec/template/spec/containers/0/image",
    );
    assert_eq!(
        *image,
        concat!("ghcr.io/sluice-gateway/sluice:", env!("CARGO_PKG_VERSION"))
    );
}
