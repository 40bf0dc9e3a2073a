//! Knative Serving with the gateway as its ingress: revisions at zero, in waves, and an autoscaler that restarts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use sluice_tests::cluster::{Cluster, inside};
use sluice_tests::h1;
use sluice_tests::wait::{SOON, wait_for, wait_until};
use tokio::task::JoinSet;

pub(super) const CLASS: &str = "sluice.ingress.networking.knative.dev";

pub(super) const HOST: &str = "hello.default.example.com";

pub(super) const IMAGE: &str = "serving/helloworld";

/// Requests that are sent at once to a revision at zero.
const BURST: usize = 100;

/// A service that goes to zero seconds after its last request.
fn service(image: &str, concurrency: u32) -> String {
    format!(
        r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: hello, namespace: default}}
spec:
  template:
    metadata: {{annotations: {{autoscaling.knative.dev/window: "6s"}}}}
    spec:
      containerConcurrency: {concurrency}
      containers: [{{image: dev.local/{image}}}]
"#
    )
}

/// The gateway, Serving, and the service; returns the gateway's address.
pub(super) async fn start(cluster: &Cluster, replicas: &str, image: &str, concurrency: u32) -> SocketAddr {
    cluster.script("sluice", &[replicas]).await;
    cluster.script("serving", &[CLASS]).await;
    deploy(cluster, image, concurrency).await;
    cluster.service("sluice-system", "sluice", 80).await
}

/// The service, when it is ready; it goes to zero soon.
pub(super) async fn deploy(cluster: &Cluster, image: &str, concurrency: u32) {
    let scale = r#"{"data":{"scale-to-zero-grace-period":"6s"}}"#;
    cluster
        .kubectl(&[
            "--namespace=knative-serving",
            "patch",
            "configmap",
            "config-autoscaler",
            "--type=merge",
            "--patch",
            scale,
        ])
        .await;
    cluster.apply("default", &service(image, concurrency)).await;
    let ready = ["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"];
    if let Err(e) = cluster.try_kubectl(&ready, "").await {
        panic!(
            "{e}{}{}",
            cluster.logs("sluice-system"),
            cluster.logs("knative-serving")
        );
    }
}

/// Waits until the service has no Pods.
pub(super) async fn at_zero(cluster: &Cluster) {
    // Of the six seconds' window, the grace period and the Pod's own end.
    for _ in 0..4 {
        let gone = ["wait", "--for=delete", "pods", "--all", "--timeout=25s"];
        if cluster.try_kubectl(&gone, "").await.is_ok()
            && cluster
                .kubectl(&["get", "pods", "--output=name"])
                .await
                .is_empty()
        {
            return;
        }
    }
    panic!(
        "not at zero: {}{}",
        cluster.logs("sluice-system"),
        cluster.logs("knative-serving")
    );
}

/// Sends this many requests at once; returns the number of answers by status.
async fn burst(gateway: SocketAddr, count: usize) -> BTreeMap<u16, usize> {
    burst_to(gateway, HOST, count).await
}

/// [`burst`] to another host.
pub(super) async fn burst_to(address: SocketAddr, host: &'static str, count: usize) -> BTreeMap<u16, usize> {
    let mut requests = JoinSet::new();
    for _ in 0..count {
        requests.spawn(async move {
            h1::fetch(address, &h1::get(host, "/"))
                .await
                .map(|answer| answer.status)
        });
    }
    let mut statuses = BTreeMap::new();
    while let Some(answer) = requests.join_next().await {
        let status = answer.expect("no panic").unwrap_or(0);
        *statuses.entry(status).or_default() += 1;
    }
    statuses
}

/// The number of Pods of the service that have ever run: each one leaves its directory.
fn pods_ever(cluster: &Cluster) -> usize {
    let all = std::fs::read_dir(cluster.dir().join("pods")).expect("the node's directory");
    let names = all.map(|entry| entry.expect("is readable").file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("default_hello"))
        .count()
}

/// The most Pods that Knative's autoscaler starts for so much at once: by 70 % of the concurrency that a Pod is to have.
fn pods_wanted(concurrency: usize, target: usize) -> usize {
    (concurrency * 10).div_ceil(target * 7)
}

#[tokio::test]
async fn a_burst_at_zero_is_held_and_answered_and_so_is_the_next_one() {
    let Some(cluster) = inside() else { return };
    let gateway = start(&cluster, "1", IMAGE, 0).await;
    for wave in 0..2 {
        at_zero(&cluster).await;
        let before = pods_ever(&cluster);
        let statuses = burst(gateway, BURST).await;
        let logs = || cluster.logs("sluice-system");
        assert_eq!(
            statuses,
            BTreeMap::from([(200, BURST)]),
            "wave {wave}: {}",
            logs()
        );
        // Straight to the Pods: the log, which is written behind the answers, names the revision.
        let sent = || logs().lines().filter(|line| line.contains("hello-00001")).count();
        wait_until("every request is logged", SOON, || sent() >= BURST * (wave + 1)).await;
        at_zero(&cluster).await;
        let started = pods_ever(&cluster) - before;
        // Without a limit the target is 100, Serving's default.
        assert!(
            (1..=pods_wanted(BURST, 100)).contains(&started),
            "wave {wave}: {started} Pods"
        );
    }
}

#[tokio::test]
async fn with_a_limit_a_burst_at_zero_is_answered_by_as_many_pods_as_it_needs() {
    let Some(cluster) = inside() else { return };
    let gateway = start(&cluster, "2", IMAGE, 20).await;
    at_zero(&cluster).await;
    let before = pods_ever(&cluster);
    let statuses = burst(gateway, BURST).await;
    assert_eq!(
        statuses,
        BTreeMap::from([(200, BURST)]),
        "{}",
        cluster.logs("sluice-system")
    );
    at_zero(&cluster).await;
    let started = pods_ever(&cluster) - before;
    assert!((1..=pods_wanted(BURST, 20)).contains(&started), "{started} Pods");
}

#[tokio::test]
async fn an_autoscaler_that_restarts_under_load_takes_no_pod_in_use_away() {
    let Some(cluster) = inside() else { return };
    let gateway = start(&cluster, "1", IMAGE, 0).await;
    let answer = wait_for("an answer", SOON, || async {
        h1::fetch(gateway, &h1::get(HOST, "/")).await.ok()
    })
    .await;
    assert_eq!(answer.status, 200);
    let pods = ["get", "pods", "--output=jsonpath={.items[*].metadata.uid}"];
    let before = cluster.kubectl(&pods).await;
    // One request after the other, all the time: the revision is never idle for a window.
    let load = tokio::spawn(async move {
        let mut failed = Vec::new();
        for _ in 0..600 {
            match h1::fetch(gateway, &h1::get(HOST, "/")).await {
                Ok(answer) if answer.status == 200 => {}
                other => failed.push(format!("{other:?}")),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        failed
    });
    cluster
        .kubectl(&[
            "--namespace=knative-serving",
            "delete",
            "pod",
            "--selector=app=autoscaler",
            "--grace-period=0",
            "--force",
        ])
        .await;
    let failed = load.await.expect("no panic");
    assert!(failed.is_empty(), "{failed:?}");
    let after = cluster.kubectl(&pods).await;
    let first = before.split(' ').next().unwrap_or_default();
    assert!(
        !first.is_empty() && after.contains(first),
        "{before} became {after}"
    );
}

#[tokio::test]
async fn a_waiter_fails_when_its_image_cannot_be_pulled_any_more() {
    let Some(cluster) = inside() else { return };
    let images = cluster.dir().join("images");
    let (image, gone) = (images.join(IMAGE), images.join("gone"));
    std::os::unix::fs::symlink(&image, &gone).expect("a link");
    let gateway = start(&cluster, "1", "gone", 0).await;
    at_zero(&cluster).await;
    std::fs::remove_file(&gone).expect("is there");
    let answer = h1::fetch(gateway, &h1::get(HOST, "/")).await.expect("an answer");
    let logs = cluster.logs("sluice-system");
    assert_eq!(answer.status, 503, "{}: {logs}", answer.text());
    assert_eq!(
        answer.header("x-sluice-reason"),
        Some("activation_failed"),
        "{logs}"
    );
    let named = || cluster.logs("sluice-system").contains("ErrImagePull");
    wait_until("the log names the cause", SOON, named).await;
}

#[tokio::test]
async fn a_waiter_fails_when_a_quota_refuses_its_pod_and_others_wait_again_once_it_does_not() {
    let Some(cluster) = inside() else { return };
    let gateway = start(&cluster, "1", IMAGE, 0).await;
    at_zero(&cluster).await;
    let quota = ["create", "quota", "none", "--hard=pods=0"];
    cluster.kubectl(&quota).await;
    let hard = ["get", "quota", "none", "--output=jsonpath={.status.hard.pods}"];
    wait_for("the quota counts", SOON, || async {
        (cluster.kubectl(&hard).await == "0").then_some(())
    })
    .await;
    let answer = h1::fetch(gateway, &h1::get(HOST, "/")).await.expect("an answer");
    let logs = cluster.logs("sluice-system");
    assert_eq!(
        (answer.status, answer.header("x-sluice-reason")),
        (503, Some("activation_failed")),
        "{}: {logs}",
        answer.text()
    );
    let named = || cluster.logs("sluice-system").contains("exceeded quota");
    wait_until("the log names the cause", SOON, named).await;
    cluster.kubectl(&["delete", "quota", "none"]).await;
    let healed = wait_for("an answer", SOON * 6, || async {
        let answer = h1::fetch(gateway, &h1::get(HOST, "/")).await.ok()?;
        (answer.status == 200).then_some(())
    });
    healed.await;
}
