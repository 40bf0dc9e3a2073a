//! Somebody else writes the status of an Ingress.

use serde_json::{Value, json};
use sluice_tests::cluster::inside;
use sluice_tests::wait::{SOON, wait_for};

use super::scene::{Scene, is_ready};

#[tokio::test]
async fn a_status_that_somebody_overwrites_is_written_again() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster, 1).await;
    let ingress = format!("{}/web", scene.ingresses());
    let wrong = json!({"status": {"observedGeneration": 1, "conditions": [
        {"type": "Ready", "status": "False", "reason": "Mistaken"},
    ]}});
    let written = scene
        .api
        .send("PATCH", &format!("{ingress}/status"), &wrong)
        .await
        .expect("the API server takes it");
    assert!(!is_ready(&written), "it was overwritten: {written}");
    wait_for("the status is right again", SOON, || async {
        let object: Value = scene.api.get(&ingress).await.ok()?;
        is_ready(&object).then_some(())
    })
    .await;
}
