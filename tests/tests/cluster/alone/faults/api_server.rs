//! The API server is killed and started again.

use std::time::Duration;

use sluice_tests::cluster::{Component, inside};
use sluice_tests::wait::{SOON, quiet, wait_for};

use super::scene::{HOST, Scene};

/// Longer than the Lease of the replica that leads holds: it leads no more.
const AWAY: Duration = Duration::from_secs(11);

#[tokio::test]
async fn traffic_goes_on_while_the_api_server_is_away_and_follows_it_when_it_is_back() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster, 2).await;
    let replicas = scene.replicas().await;
    let traffic = scene.traffic(&replicas).await;
    let killed = scene.cluster.pid(Component::ApiServer);
    scene.cluster.kill(Component::ApiServer).await;
    assert!(scene.api.get("/readyz").await.is_err());
    quiet(AWAY).await;
    traffic.advance().await;
    for replica in &replicas {
        assert!(replica.is_ready().await, "{replica:?}");
        assert_eq!(replica.answer(HOST).await, "a v0");
    }

    scene.cluster.start(Component::ApiServer);
    let path = format!("{}/web", scene.ingresses());
    wait_for("the API server answers", SOON * 4, || async {
        scene.api.get(&path).await.ok()
    })
    .await;
    assert_ne!(scene.cluster.pid(Component::ApiServer), killed);
    scene.change("v1").await;
    scene.until_ready("web").await;
    assert_eq!(scene.replicas().await, replicas, "none has ended");
    scene.is_answered(HOST, "a v1").await;
    traffic.advance().await;
    let answers = traffic.stop().await;
    assert!(answers.contains_key("a v1"), "{answers:?}");
}
