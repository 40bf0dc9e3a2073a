//! Requests that come to a revision past any ingress, by the ClusterIP of its public Service: at zero the gateway holds
//! them in the activator's place (`fused`), or the stock activator does (`keep`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_tests::cluster::{Cluster, inside};
use sluice_tests::h1;
use sluice_tests::wait::{SOON, wait_until};
use tokio::task::JoinHandle;

use super::zero::{CLASS, HOST, IMAGE, at_zero, burst_to, deploy};

/// The host of the revision's public Service.
const REVISION: &str = "hello-00001.default.svc.cluster.local";

/// Requests that are sent at once, each way.
const BURST: usize = 30;

/// One request after the other to an address, until it is stopped; returns the number of answers, and what went wrong.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    fn start(address: SocketAddr, host: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut answers, mut failed) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                match h1::fetch(address, &h1::get(host, "/")).await {
                    Ok(answer) if answer.status == 200 => answers += 1,
                    other => failed.push(format!("{other:?}")),
                }
            }
            (answers, failed)
        });
        Self { stop, task }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let (answers, failed) = self.task.await.expect("no panic");
        assert!(failed.is_empty(), "of {answers}: {failed:?}");
        answers
    }
}

/// At zero, a burst by both ways at once is answered whole.
async fn both_ways_at_zero(cluster: &Cluster, gateway: SocketAddr, service: SocketAddr) {
    at_zero(cluster).await;
    let (public, inner) = tokio::join!(burst_to(gateway, HOST, BURST), burst_to(service, REVISION, BURST));
    let all = BTreeMap::from([(200, BURST)]);
    let logs = || cluster.logs("knative-serving") + &cluster.logs("sluice-system");
    assert_eq!((&public, &inner), (&all, &all), "{}", logs());
}

/// The requests in the log of the gateway's Pods that named the revision's own host.
fn held_by_us(cluster: &Cluster, namespace: &str) -> usize {
    let logs = cluster.logs(namespace);
    logs.lines()
        .filter(|line| line.contains(REVISION) && line.contains("/hello-00001"))
        .count()
}

#[tokio::test]
async fn fused_the_gateway_holds_what_comes_by_cluster_ip() {
    let Some(cluster) = inside() else { return };
    cluster.script("serving", &[CLASS]).await;
    cluster.script("sluice", &["2", "fused"]).await;
    deploy(&cluster, IMAGE, 0).await;
    let gateway = cluster.service("knative-serving", "sluice", 80).await;
    let service = cluster.service("default", "hello-00001", 80).await;
    both_ways_at_zero(&cluster, gateway, service).await;
    let ours = || held_by_us(&cluster, "knative-serving");
    wait_until("the gateway's log has the requests", SOON, || ours() >= BURST).await;

    // Serving's own manifests again, under traffic each way: the stock activator stays at zero.
    let loads = [Load::start(gateway, HOST), Load::start(service, REVISION)];
    cluster.script("serving", &[CLASS]).await;
    for load in loads {
        assert!(load.stop().await > 0);
    }
    let stock = [
        "get",
        "pods",
        "--selector=app=activator,role=activator",
        "--output=name",
    ];
    let stock = [&["--namespace=knative-serving"][..], &stock].concat();
    assert_eq!(cluster.kubectl(&stock).await, "");
    both_ways_at_zero(&cluster, gateway, service).await;

    // A revision that no Ingress names any more: it still has a Service, and who calls it is served.
    let patch = r#"{"spec":{"template":{"spec":{"containerConcurrency":7}}}}"#;
    cluster
        .kubectl(&["patch", "ksvc", "hello", "--type=merge", "--patch", patch])
        .await;
    let named = ["get", "kingress", "hello", "--output=jsonpath={.spec}"];
    sluice_tests::wait::wait_for("the Ingress names the new revision alone", SOON * 3, || async {
        let spec = cluster.kubectl(&named).await;
        (spec.contains("hello-00002") && !spec.contains("hello-00001")).then_some(())
    })
    .await;
    at_zero(&cluster).await;
    let old = burst_to(service, REVISION, BURST).await;
    assert_eq!(
        old,
        BTreeMap::from([(200, BURST)]),
        "{}",
        cluster.logs("knative-serving")
    );
}

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn keep_the_stock_activator_holds_what_comes_by_cluster_ip() {
    let Some(cluster) = inside() else { return };
    cluster.script("sluice", &["2"]).await;
    cluster.script("serving", &[CLASS]).await;
    deploy(&cluster, IMAGE, 0).await;
    let gateway = cluster.service("sluice-system", "sluice", 80).await;
    let service = cluster.service("default", "hello-00001", 80).await;
    both_ways_at_zero(&cluster, gateway, service).await;
    let loads = [Load::start(gateway, HOST), Load::start(service, REVISION)];
    cluster.script("serving", &[CLASS]).await;
    for load in loads {
        assert!(load.stop().await > 0);
    }
    both_ways_at_zero(&cluster, gateway, service).await;
    assert_eq!(held_by_us(&cluster, "sluice-system"), 0);
}
