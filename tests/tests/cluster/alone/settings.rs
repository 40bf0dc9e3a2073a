//! What the gateway reads in the cluster besides Ingresses: Secrets without Knative's label, and the ConfigMap `config-sluice`.

use std::net::SocketAddr;

use sluice_tests::backend::HttpBackend;
use sluice_tests::cluster::{Cluster, NODE, inside};
use sluice_tests::h1;
use sluice_tests::tls::{Ca, Pair, peer_certificate};
use sluice_tests::wait::{SOON, wait_for, wait_until};

const HOST: &str = "web.example.com";

/// A backend outside, an Ingress of ours that leads to it by way of a Service without a selector, and the gateway.
async fn start(cluster: &Cluster, namespace: &str, tls: &str) -> (HttpBackend, SocketAddr) {
    let backend = HttpBackend::builder("web")
        .at(SocketAddr::new(NODE, 0))
        .start()
        .await;
    cluster.script("sluice", &["1"]).await;
    let (ip, port) = (NODE, backend.addr().port());
    let objects = format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: ["{ip}"], conditions: {{ready: true}}}}]
---
apiVersion: networking.internal.knative.dev/v1alpha1
kind: Ingress
metadata:
  name: web
  annotations: {{networking.knative.dev/ingress.class: sluice.ingress.networking.knative.dev}}
spec:
  {tls}
  rules:
  - hosts: [{HOST}]
    visibility: ExternalIP
    http: {{paths: [{{splits: [{{serviceNamespace: {namespace}, serviceName: web, servicePort: 80, percent: 100}}]}}]}}
"#
    );
    cluster.apply(namespace, &objects).await;
    let gateway = cluster.service("sluice-system", "sluice", 80).await;
    wait_for("the Ingress is served", SOON, || async {
        let answer = h1::fetch(gateway, &h1::get(HOST, "/")).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    (backend, gateway)
}

async fn put_secret(cluster: &Cluster, namespace: &str, pair: &Pair) {
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "web"},
        "type": "kubernetes.io/tls", "stringData": {"tls.crt": pair.cert, "tls.key": pair.key},
    });
    cluster.apply(namespace, &json.to_string()).await;
}

#[tokio::test]
async fn a_secret_without_the_label_is_served_rotates_and_may_come_late() {
    let Some(cluster) = inside() else { return };
    let namespace = cluster.namespace("secret").await;
    let ca = Ca::new();
    let tls = format!("tls: [{{hosts: [{HOST}], secretName: web, secretNamespace: {namespace}}}]");
    let pairs = [(); 3].map(|()| ca.issue(&[HOST]));
    put_secret(&cluster, &namespace, &pairs[0]).await;
    let (_backend, gateway) = start(&cluster, &namespace, &tls).await;
    let secure = SocketAddr::new(gateway.ip(), 443);
    let shown = || async {
        let stream = ca.connect(secure, HOST, &["http/1.1"]).await.ok()?;
        Some(peer_certificate(&stream).to_vec())
    };
    let first = wait_for("a certificate", SOON, shown).await;
    put_secret(&cluster, &namespace, &pairs[1]).await;
    let second = wait_for("the rotated certificate", SOON, || async {
        shown().await.filter(|shown| *shown != first)
    })
    .await;
    // Gone, the last good one goes on; back, another one is served.
    cluster
        .kubectl(&["--namespace", &namespace, "delete", "secret", "web"])
        .await;
    let said = [
        "--namespace",
        &namespace,
        "get",
        "kingress",
        "web",
        "--output=jsonpath={.status}",
    ];
    wait_for("the status names the Secret", SOON, || async {
        let status = cluster.kubectl(&said).await;
        status
            .contains(&format!("Secret {namespace}/web is not there"))
            .then_some(())
    })
    .await;
    assert_eq!(shown().await.as_ref(), Some(&second));
    put_secret(&cluster, &namespace, &pairs[2]).await;
    wait_for("the third certificate", SOON, || async {
        shown().await.filter(|shown| *shown != first && *shown != second)
    })
    .await;
    // With the label it comes by the other watch, without a gap.
    let label = [
        "label",
        "secret",
        "web",
        "networking.internal.knative.dev/certificate-uid=1",
    ];
    cluster
        .kubectl(&[&["--namespace", namespace.as_str()][..], &label].concat())
        .await;
    put_secret(&cluster, &namespace, &pairs[0]).await;
    wait_for("the first certificate again", SOON, || async {
        shown().await.filter(|shown| *shown == first)
    })
    .await;
}

async fn put_settings(cluster: &Cluster, text: &str) {
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "config-sluice"}, "data": {"sluice.yaml": text},
    });
    cluster.apply("knative-serving", &json.to_string()).await;
}

#[tokio::test]
async fn settings_of_the_cluster_hold_where_no_file_has_the_key_and_a_mistake_changes_nothing() {
    let Some(cluster) = inside() else { return };
    let namespace = cluster.namespace("settings").await;
    let (_backend, gateway) = start(&cluster, &namespace, "httpOption: Enabled").await;
    let long = format!("/{}", "x".repeat(3_000));
    let status = || async {
        let answer = h1::fetch(gateway, &h1::get(HOST, &long)).await.ok()?;
        Some(answer.status)
    };
    let becomes = |what: &'static str, wanted: u16| {
        wait_for(what, SOON, move || async move {
            status().await.filter(|status| *status == wanted)
        })
    };
    becomes("a long path is served", 200).await;
    // The chart's own file has `drain`.
    put_settings(&cluster, "limits: {maxUriBytes: 1KiB}\ndrain: {delay: 1s}\n").await;
    becomes("a long path is refused", 414).await;
    let log = |text: &'static str| {
        let logs = cluster.logs("sluice-system");
        logs.lines()
            .any(|line| line.contains("config-sluice") && line.contains(text))
    };
    wait_until("the log has a warning", SOON, || log("'drain' has no effect")).await;

    put_settings(&cluster, "limits: {maxUriBytes: 8KiB}\nlisteners: []\n").await;
    wait_until("the log has the mistake", SOON, || log("listeners")).await;
    assert_eq!(status().await, Some(414), "the last good ones go on");
    put_settings(&cluster, "limits: {maxUriBytes: 8KiB}\n").await;
    becomes("a long path is served again", 200).await;
    put_settings(&cluster, "limits: {maxUriBytes: 1KiB}\n").await;
    becomes("a long path is refused again", 414).await;
    let delete = [
        "--namespace=knative-serving",
        "delete",
        "configmap",
        "config-sluice",
    ];
    cluster.kubectl(&delete).await;
    becomes("the defaults are back", 200).await;

    // Knative's own settings, as far as the gateway cannot follow them.
    let patch = r#"{"data":{"system-internal-tls":"Enabled"}}"#;
    let patched = [
        "--namespace=knative-serving",
        "patch",
        "configmap",
        "config-network",
        "--type=merge",
        "--patch",
        patch,
    ];
    cluster.kubectl(&patched).await;
    let warned = || {
        cluster
            .logs("sluice-system")
            .contains("system-internal-tls is enabled")
    };
    wait_until("the log has a warning", SOON, warned).await;
}
