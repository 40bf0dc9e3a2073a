//! A revision at zero and back, in waves, and the end of a replica that holds requests for it.

use std::collections::BTreeMap;

use sluice_tests::cluster::{Cluster, Component, inside};
use sluice_tests::h1;
use sluice_tests::metrics::Metrics;
use sluice_tests::wait::{SOON, wait_for};
use tokio::task::JoinSet;

use super::scene::{Replica, replicas};
use crate::alone::zero::{HOST, IMAGE, at_zero, burst_to, start};

/// Requests of a wave: with the limit below they need several Pods.
const WAVE: usize = 60;

/// A service that goes to zero 6 s after its last request. With Pods its path leads to them, at zero to the activator:
/// its ServerlessService flips twice a wave.
const SERVICE: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello, namespace: default}
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/window: "6s"
        autoscaling.knative.dev/target-burst-capacity: "0"
    spec:
      containerConcurrency: 20
      containers: [{image: dev.local/serving/helloworld}]
"#;

/// Requests that wait in each replica when one of them is killed.
const WAITING: usize = 40;

const BURST: usize = 1_000;

/// The mode of the ServerlessService: `Serve` leads to the Pods, `Proxy` to the activator.
async fn mode(cluster: &Cluster) -> Option<String> {
    let path =
        "/apis/networking.internal.knative.dev/v1alpha1/namespaces/default/serverlessservices/hello-00002";
    let object = cluster.api().get(path).await.ok()?;
    object["spec"]["mode"].as_str().map(str::to_owned)
}

async fn until_mode(cluster: &Cluster, wanted: &str) {
    wait_for(&format!("the mode is {wanted}"), SOON * 2, || async {
        (mode(cluster).await? == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn waves_from_zero_and_back_get_no_5xx_while_the_serverless_service_flips() {
    let Some(cluster) = inside() else { return };
    let gateway = start(&cluster, "2", IMAGE, 0).await;
    cluster.apply("default", SERVICE).await;
    let second = [
        "wait",
        "--for=jsonpath={.status.latestReadyRevisionName}=hello-00002",
        "ksvc/hello",
        "--timeout=50s",
    ];
    cluster.kubectl(&second).await;
    let wave = async |when: &str| {
        let statuses = burst_to(gateway, HOST, WAVE).await;
        assert_eq!(statuses, BTreeMap::from([(200, WAVE)]), "{when}");
        until_mode(&cluster, "Serve").await;
    };
    for round in 0..3 {
        at_zero(&cluster).await;
        wave(&format!("round {round}, at zero")).await;
        // The window is over. Pods are still there, and the next wave comes with the flip.
        until_mode(&cluster, "Proxy").await;
        wave(&format!("round {round}, as the mode flips")).await;
    }
}

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn a_burst_of_a_thousand_at_zero_is_held_and_answered() {
    let Some(cluster) = inside() else { return };
    let gateway = start(&cluster, "2", IMAGE, 0).await;
    at_zero(&cluster).await;
    let statuses = burst_to(gateway, HOST, BURST).await;
    assert_eq!(statuses, BTreeMap::from([(200, BURST)]));
}

/// Requests to a replica, which wait until they are answered or broken.
fn ask(replica: &Replica) -> JoinSet<Result<u16, String>> {
    let mut asking = JoinSet::new();
    for _ in 0..WAITING {
        let address = replica.public();
        asking.spawn(async move {
            let answer = h1::fetch(address, &h1::get(HOST, "/")).await;
            answer.map(|answer| answer.status).map_err(|e| e.to_string())
        });
    }
    asking
}

/// Requests that wait in a replica.
async fn depth(replica: &Replica) -> f64 {
    let metrics = h1::fetch(replica.health(), &h1::get("metrics", "/metrics")).await;
    let metrics = Metrics::parse(&metrics.expect("metrics").text());
    metrics.sum("sluice_queue_depth", &[])
}

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn a_replica_that_is_killed_while_it_holds_takes_its_own_waiters_with_it_and_no_other() {
    let Some(cluster) = inside() else { return };
    start(&cluster, "2", IMAGE, 0).await;
    at_zero(&cluster).await;
    let replicas = replicas(&cluster.api()).await;
    let [killed, other] = &replicas[..] else {
        panic!("two replicas: {replicas:?}")
    };
    // No Pod is made without it, so that all wait.
    cluster.kill(Component::ControllerManager).await;
    let (lost, kept) = (ask(killed), ask(other));
    for replica in [killed, other] {
        wait_for("all wait", SOON, || async {
            (depth(replica).await == WAITING as f64).then_some(())
        })
        .await;
    }
    let kill = [
        "--namespace=sluice-system",
        "delete",
        "pod",
        &killed.name,
        "--grace-period=0",
        "--force",
    ];
    cluster.kubectl(&kill).await;
    assert_eq!(depth(other).await, WAITING as f64);
    cluster.start(Component::ControllerManager);
    let kept = kept.join_all().await;
    assert_eq!(kept, vec![Ok(200); WAITING]);
    for answer in lost.join_all().await {
        assert!(answer.is_err(), "by a process that was killed: {answer:?}");
    }
}
