//! The gateway as a Pod with its config in a ConfigMap: the cluster is only where it runs.

use std::net::SocketAddr;

use sluice_tests::backend::HttpBackend;
use sluice_tests::cluster::{NODE, inside};
use sluice_tests::h1;
use sluice_tests::wait::{SOON, wait_for};

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: sluice, labels: {app: sluice}}
spec:
  containers:
  - name: sluice
    image: dev.local/sluice
    args: [run, /config/sluice.yaml]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {tcpSocket: {port: http}}
    volumeMounts: [{name: config, mountPath: /config}]
  volumes: [{name: config, configMap: {name: sluice}}]
";

#[tokio::test]
async fn a_service_leads_through_it_to_a_backend_outside() {
    let Some(cluster) = inside() else { return };
    let backend = HttpBackend::builder("a")
        .at(SocketAddr::new(NODE, 0))
        .start()
        .await;
    let namespace = cluster.namespace("pod").await;
    let (n, config) = (
        ["--namespace", &namespace],
        format!(
            "--from-literal=sluice.yaml={{listeners: [{{address: \"0.0.0.0:8080\"}}], services: [{{name: web, hosts: [web.example.com], endpoints: [\"{}\"]}}]}}",
            backend.addr()
        ),
    );
    cluster
        .kubectl(&[n[0], n[1], "create", "configmap", "sluice", &config])
        .await;
    cluster
        .kubectl(&[
            n[0],
            n[1],
            "create",
            "service",
            "clusterip",
            "sluice",
            "--tcp=80:8080",
        ])
        .await;
    cluster.apply(&namespace, POD).await;
    let ready = ["wait", "--for=condition=Ready", "--timeout=30s", "pod/sluice"];
    if let Err(e) = cluster.try_kubectl(&[&n[..], &ready[..]].concat(), "").await {
        panic!("{e}{}", cluster.logs(&namespace));
    }
    let service = cluster.service(&namespace, "sluice", 80).await;
    // kube-proxy writes its rules after the Pod is ready, and refuses connections until then.
    let answer = wait_for("an answer through the Service", SOON, || async {
        h1::fetch(service, &h1::get("web.example.com", "/hello"))
            .await
            .ok()
    })
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = backend.last();
    assert_eq!(
        (seen.target.as_str(), seen.host.as_str()),
        ("/hello", "web.example.com")
    );
    // SIGTERM ends it before its grace is over.
    cluster
        .kubectl(&[n[0], n[1], "delete", "pod", "sluice", "--timeout=25s"])
        .await;
}
