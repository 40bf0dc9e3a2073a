//! The replica that writes statuses is killed.

use sluice_tests::cluster::inside;
use sluice_tests::h1::{self, H1};
use sluice_tests::wait::{SOON, wait_for, within};

use super::scene::{HOST, Replica, Scene, Traffic};

#[tokio::test]
async fn a_leader_that_is_killed_takes_its_own_connections_with_it_and_no_other() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster, 3).await;
    let killed = scene.leader().await;
    let (leader, others): (Vec<Replica>, Vec<Replica>) = scene
        .replicas()
        .await
        .into_iter()
        .partition(|replica| replica.name == killed);
    assert_eq!((leader.len(), others.len()), (1, 2));
    let mut traffic = Traffic::default();
    traffic.add_direct(&others);
    traffic.advance().await;
    let mut own = H1::connect(leader[0].public()).await.expect("the leader accepts");
    let get = h1::get(HOST, "/");
    assert_eq!(own.exchange(&get).await.expect("an answer").text(), "a v0");

    let kill = [
        "--namespace=sluice-system",
        "delete",
        "pod",
        &killed,
        "--grace-period=0",
        "--force",
    ];
    scene.cluster.kubectl(&kill).await;
    scene.change("v1").await;
    // What is asked of it meanwhile may still be answered; then its connection ends, and is all that does.
    within("the leader's connection ends", SOON * 2, async {
        while own.exchange(&get).await.is_ok() {}
    })
    .await;
    // One of the others, or the replica that came in its place.
    wait_for("another replica holds the Lease", SOON * 2, || async {
        (scene.leader().await != killed).then_some(())
    })
    .await;
    scene.until_ready("web").await;
    scene.is_answered(HOST, "a v1").await;
    traffic.advance().await;
    let answers = traffic.stop().await;
    assert!(answers.contains_key("a v1"), "{answers:?}");
}
