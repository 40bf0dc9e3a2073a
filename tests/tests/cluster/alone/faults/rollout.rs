//! A rolling update of the gateway itself.

use serde_json::Value;
use sluice_tests::cluster::inside;
use sluice_tests::wait::{SOON, wait_for};

use super::scene::{HOST, PODS, Scene};

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn a_rolling_update_fails_no_request() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster, 2).await;
    let before = scene.replicas().await;
    let traffic = scene.traffic(&[]).await;
    let rollout = [
        "--namespace=sluice-system",
        "rollout",
        "restart",
        "deployment/sluice",
    ];
    scene.cluster.kubectl(&rollout).await;
    let new = wait_for("all are replaced, and have drained", SOON * 5, || async {
        let list = scene.api.get(PODS).await.ok()?;
        let mut pods = list["items"].as_array()?.iter();
        let is_old = |pod: &Value| before.iter().any(|replica| pod["metadata"]["uid"] == replica.uid);
        let has_old = pods.any(is_old);
        let ready = scene.replicas().await;
        (!has_old && ready.len() == before.len()).then_some(ready)
    })
    .await;
    assert!(new.iter().all(|replica| !before.contains(replica)));
    scene.change("v1").await;
    scene.until_ready("web").await;
    scene.is_answered(HOST, "a v1").await;
    traffic.advance().await;
    let answers = traffic.stop().await;
    assert!(answers.contains_key("a v1"), "{answers:?}");
}
