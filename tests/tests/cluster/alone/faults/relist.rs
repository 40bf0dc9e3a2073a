//! etcd forgets what the watches would go on from, and all is listed again.

use std::net::SocketAddr;

use serde_json::Value;
use sluice_tests::api_server;
use sluice_tests::cluster::{Component, NODE, inside};
use sluice_tests::h1;
use sluice_tests::relay::Relay;
use sluice_tests::wait::{SOON, wait_for};

use super::scene::{HOST, Scene};

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn a_compaction_makes_it_list_again_and_what_was_missed_is_served() {
    let Some(cluster) = inside() else { return };
    let relay = Relay::start((NODE, 0).into(), api_server::ADDRESS).await;
    let scene = Scene::by_way_of(cluster, 2, relay.addr()).await;
    scene.create("old", "old.example.com").await;
    scene.until_ready("old").await;
    scene.is_answered("old.example.com", "a v0").await;
    let replicas = scene.replicas().await;
    let traffic = scene.traffic(&replicas).await;

    let ingresses = scene.ingresses();
    let known = revision(&scene.must("GET", &ingresses, Value::Null).await);
    relay.shut();
    scene.change("v1").await;
    scene.set_ready("b", true).await;
    scene.set_ready("a", false).await;
    let old = format!("{ingresses}/old");
    scene.must("DELETE", &old, Value::Null).await;
    scene.create("new", "new.example.com").await;
    let newest = revision(&scene.must("GET", &ingresses, Value::Null).await);
    compact(newest).await;
    scene.cluster.kill(Component::ApiServer).await;
    scene.cluster.start(Component::ApiServer);
    // The watch cache of the new process begins now, so a watch from before is for etcd, which has forgotten.
    let watch = format!("{ingresses}?watch=1&timeoutSeconds=1&resourceVersion={known}");
    wait_for("a watch is refused as expired", SOON * 4, || async {
        let event = scene.api.get(&watch).await.ok()?;
        (event["type"] == "ERROR" && event["object"]["code"] == 410).then_some(())
    })
    .await;
    traffic.advance().await;
    for replica in &replicas {
        assert_eq!(replica.answer(HOST).await, "a v0", "it has seen nothing of it");
        assert_eq!(replica.answer("old.example.com").await, "a v0");
    }

    relay.reopen();
    scene.until_ready("new").await;
    scene.until_ready("web").await;
    scene.until_answered(HOST, "b v1").await;
    scene.until_answered("new.example.com", "b v0").await;
    scene
        .until_answered("old.example.com", "404 Some(\"no_route\")")
        .await;
    assert_eq!(scene.replicas().await, replicas, "none has ended");
    traffic.advance().await;
    let answers = traffic.stop().await;
    assert!(answers.contains_key("b v1"), "{answers:?}");
}

/// The revision of etcd that a list was read at.
fn revision(list: &Value) -> u64 {
    let text = list["metadata"]["resourceVersion"].as_str().expect("a list");
    text.parse().expect("a number")
}

/// Makes etcd forget what was before this revision.
async fn compact(revision: u64) {
    let body = format!(r#"{{"revision":{revision},"physical":true}}"#);
    let request = h1::request("POST", "etcd", "/v3/kv/compaction", &[], body.as_bytes());
    let etcd = SocketAddr::from(([127, 0, 0, 1], 2379));
    let answer = h1::fetch(etcd, &request).await.expect("etcd answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
}
