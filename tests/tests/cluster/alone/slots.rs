//! A revision with a concurrency limit behind several replicas: its limit is that of all of them together.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::backend::{HttpBackend, full, ok};
use sluice_tests::cluster::{Cluster, NODE, inside};
use sluice_tests::h1;
use sluice_tests::load::Load;
use sluice_tests::wait::{SOON, wait_for};
use tokio::task::JoinSet;

use super::faults::scene::{PODS, Replica, is_ready, replicas};

const HOST: &str = "limited.example.com";

/// Requests that one endpoint may hold.
const LIMIT: usize = 3;

const REPLICAS: usize = 3;

/// What a backend takes for an answer.
const WORK: Duration = Duration::from_millis(20);

async fn backend(name: &'static str) -> HttpBackend {
    HttpBackend::builder(name)
        .at(SocketAddr::new(NODE, 0))
        .stream(move |_| async move {
            tokio::time::sleep(WORK).await;
            ok(full(name))
        })
        .start()
        .await
}

/// The objects that Serving makes for a revision, with two endpoints, and an Ingress to it.
async fn deploy(cluster: &Cluster, namespace: &str, backends: &[HttpBackend; 2]) {
    let api = cluster.api();
    let must = async |path: &str, object: Value| {
        let answer = api.send("POST", path, &object).await;
        answer.unwrap_or_else(|e| panic!("{path}: {e}"));
    };
    let core = format!("/api/v1/namespaces/{namespace}/services");
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let labels = |kind: &str| {
        json!({
            "networking.internal.knative.dev/serverlessservice": "limited-00001",
            "networking.internal.knative.dev/serviceType": kind,
            "serving.knative.dev/revision": "limited-00001",
            "serving.knative.dev/configuration": "limited", "serving.knative.dev/service": "limited",
        })
    };
    let revision = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": "limited-00001", "labels": {"serving.knative.dev/configuration": "limited"}},
        "spec": {"containerConcurrency": LIMIT, "timeoutSeconds": 300,
            "containers": [{"name": "user-container", "image": "dev.local/none"}]},
    });
    must(
        &format!("/apis/serving.knative.dev/v1/namespaces/{namespace}/revisions"),
        revision,
    )
    .await;
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8012}]);
    for (name, kind) in [("limited-00001", "Public"), ("limited-00001-private", "Private")] {
        let service = json!({"metadata": {"name": name, "labels": labels(kind)}, "spec": {"ports": ports}});
        must(&core, service).await;
        for (backend, letter) in backends.iter().zip(["a", "b"]) {
            let mut labels = labels(kind);
            labels["kubernetes.io/service-name"] = name.into();
            let slice = json!({
                "metadata": {"name": format!("{name}-{letter}"), "labels": labels}, "addressType": "IPv4",
                "ports": [{"name": "http", "port": backend.addr().port()}],
                "endpoints": [{"addresses": [NODE], "conditions": {"ready": true, "serving": true}}],
            });
            must(&slices, slice).await;
        }
    }
    let split = json!({
        "serviceName": "limited-00001", "serviceNamespace": namespace, "servicePort": 80, "percent": 100,
        "appendHeaders": {"Knative-Serving-Namespace": namespace, "Knative-Serving-Revision": "limited-00001"},
    });
    let ingress = json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {
            "name": "limited",
            "annotations": {"networking.knative.dev/ingress.class": "sluice.ingress.networking.knative.dev"},
        },
        "spec": {"rules": [{
            "hosts": [HOST], "visibility": "ExternalIP", "http": {"paths": [{"splits": [split]}]},
        }]},
    });
    let ingresses =
        format!("/apis/networking.internal.knative.dev/v1alpha1/namespaces/{namespace}/ingresses");
    must(&ingresses, ingress).await;
    wait_for("the Ingress is Ready", SOON * 3, || async {
        is_ready(&api.get(&format!("{ingresses}/limited")).await.ok()?).then_some(())
    })
    .await;
}

/// Sends this many requests to each replica at once; all of them are answered.
async fn burst(replicas: &[Replica], each: usize) {
    let mut requests = JoinSet::new();
    for replica in replicas {
        let address = replica.public();
        for _ in 0..each {
            requests.spawn(async move {
                let answer = h1::fetch(address, &h1::get(HOST, "/")).await;
                answer.map(|answer| (answer.status, answer.text()))
            });
        }
    }
    while let Some(answer) = requests.join_next().await {
        let (status, text) = answer.expect("no panic").expect("an answer");
        assert_eq!(status, 200, "{text}");
    }
}

fn within_limit(backends: &[HttpBackend; 2]) {
    for backend in backends {
        assert!(
            backend.peak_in_flight() <= LIMIT,
            "{} at once",
            backend.peak_in_flight()
        );
    }
}

#[tokio::test]
async fn replicas_keep_a_limit_together_whatever_becomes_of_one() {
    let Some(cluster) = inside() else { return };
    cluster.script("sluice", &[&REPLICAS.to_string()]).await;
    cluster.script("definitions", &[]).await;
    let namespace = cluster.namespace("slots").await;
    let backends = [backend("a").await, backend("b").await];
    deploy(&cluster, &namespace, &backends).await;
    let api = cluster.api();
    let all = replicas(&api).await;
    assert_eq!(all.len(), REPLICAS);

    // Whoever owns an endpoint, every replica gets its share, and no slot is left over.
    burst(&all, 40).await;
    within_limit(&backends);
    for backend in &backends {
        assert_eq!(backend.peak_in_flight(), LIMIT, "slots are left over");
    }
    // One replica alone gets all of them, whoever owns them.
    for replica in &all {
        burst(std::slice::from_ref(replica), 40).await;
    }
    within_limit(&backends);

    // A replica is killed that holds slots, and owns some or none: the others' requests wait, and none fails.
    let (killed, staying) = all.split_first().expect("there are three");
    let doomed = Load::get(killed.public(), 8, HOST);
    let mut loads = Vec::new();
    for replica in staying {
        loads.push(Load::get(replica.public(), 8, HOST));
    }
    doomed.advance(20).await;
    let kill = [
        "--namespace=sluice-system",
        "delete",
        "pod",
        &killed.name,
        "--grace-period=0",
        "--force",
    ];
    cluster.kubectl(&kill).await;
    wait_for("the Pod is gone", SOON * 2, || async {
        api.get(&format!("{PODS}/{}", killed.name))
            .await
            .is_err()
            .then_some(())
    })
    .await;
    _ = doomed.stop().await;
    wait_for("another replica in its place", SOON * 6, || async {
        (replicas(&api).await.len() == REPLICAS).then_some(())
    })
    .await;
    // The slots of the one that is gone are free in the end, and the new one has its share.
    for load in &loads {
        load.advance(100).await;
    }
    let now = replicas(&api).await;
    let new = now
        .iter()
        .filter(|replica| !all.contains(replica))
        .cloned()
        .collect::<Vec<_>>();
    burst(&new, 40).await;
    for load in loads {
        let report = load.stop().await;
        assert_eq!(report.failed, 0, "{:#?}", report.failures);
    }
    within_limit(&backends);
}
