//! The connection for statistics to Knative's autoscaler is cut, and nothing else.

use std::time::Duration;

use sluice_tests::cluster::{Cluster, inside};
use sluice_tests::h1;
use sluice_tests::metrics::Metrics;
use sluice_tests::wait::{SOON, wait_for};

use super::scene::{Replica, replicas};
use crate::alone::acknowledgements::nft;
use crate::alone::zero::{HOST, IMAGE, start};

/// Requests of a load, one after the other: those of two windows of the autoscaler, which is 6 s for this service.
const TWO_WINDOWS: usize = 240;

const PACE: Duration = Duration::from_millis(50);

/// The gateway's Pod without a way to the autoscaler, until this is dropped.
struct Cut;

impl Cut {
    /// `verdict` is what becomes of the packets.
    fn new(replica: &Replica, verdict: &str) -> Self {
        let pod = replica.health().ip();
        nft(&format!(
            "table ip statistics {{
                chain to {{ type filter hook forward priority filter; ip saddr {pod} tcp dport 8080 {verdict}; }}
            }}"
        ));
        Self
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        nft("delete table ip statistics");
    }
}

/// The unique ids of the service's Pods.
async fn pods(cluster: &Cluster) -> Vec<String> {
    let uids = ["get", "pods", "--output=jsonpath={.items[*].metadata.uid}"];
    let uids = cluster.kubectl(&uids).await;
    uids.split_whitespace().map(str::to_owned).collect()
}

/// Waits until the gateway says that the autoscaler can be told, or that it cannot.
async fn until_reachable(replica: &Replica, wanted: f64) {
    let what = format!("the autoscaler is reachable: {wanted}");
    wait_for(&what, SOON * 2, async || {
        let metrics = h1::fetch(replica.health(), &h1::get("metrics", "/metrics"))
            .await
            .ok()?;
        let told = Metrics::parse(&metrics.text()).sum("kn_activator_stats_conn_reachable", &[]);
        (told == wanted).then_some(())
    })
    .await;
}

/// A revision that is never idle keeps its Pod, though the autoscaler hears nothing of the gateway for two windows.
async fn pods_in_use_stay(verdict: &str) {
    let Some(cluster) = inside() else { return };
    let gateway = start(&cluster, "1", IMAGE, 0).await;
    let request = async || h1::fetch(gateway, &h1::get(HOST, "/")).await;
    let load = async || {
        for _ in 0..TWO_WINDOWS {
            let answer = request().await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", cluster.logs("sluice-system"));
            tokio::time::sleep(PACE).await;
        }
    };
    wait_for("an answer", SOON, async || request().await.ok()).await;
    let before = pods(&cluster).await;
    let first = before.first().expect("a Pod");
    let replicas = replicas(&cluster.api()).await;
    let [replica] = &replicas[..] else {
        panic!("one replica: {replicas:?}")
    };
    let logs = || cluster.logs("sluice-system") + &cluster.logs("knative-serving");
    until_reachable(replica, 1.0).await;

    let cut = Cut::new(replica, verdict);
    load().await;
    until_reachable(replica, 0.0).await;
    let during = pods(&cluster).await;
    assert!(during.contains(first), "{before:?} became {during:?}: {}", logs());

    drop(cut);
    until_reachable(replica, 1.0).await;
    load().await;
    let after = pods(&cluster).await;
    assert!(after.contains(first), "{before:?} became {after:?}: {}", logs());
}

#[tokio::test]
async fn a_connection_for_statistics_that_is_refused_for_two_windows_takes_no_pod_in_use_away() {
    pods_in_use_stay("reject with tcp reset").await;
}

#[tokio::test]
async fn a_connection_for_statistics_that_is_a_black_hole_for_two_windows_takes_no_pod_in_use_away() {
    pods_in_use_stay("drop").await;
}
