//! The harness itself: a component that a test kills is gone, and comes back as it was when the test starts it again.

use sluice_tests::cluster::{Component, inside};
use sluice_tests::wait::{SOON, wait_for};

#[tokio::test]
async fn the_api_server_and_etcd_are_gone_and_come_back_with_their_objects() {
    let Some(cluster) = inside() else { return };
    let namespace = cluster.namespace("kept").await;
    let get = [
        "get",
        "namespace",
        &namespace,
        "--output=jsonpath={.metadata.uid}",
    ];
    let before = cluster.kubectl(&get).await;
    for component in [Component::ApiServer, Component::Etcd] {
        cluster.kill(component).await;
        // The API server looks at etcd not more than once in a while.
        wait_for("the API server is not ready", SOON, || async {
            cluster
                .try_kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"], "")
                .await
                .err()
        })
        .await;
        cluster.start(component);
        let after = wait_for("the API server answers", SOON, || async {
            cluster.try_kubectl(&get, "").await.ok()
        })
        .await;
        assert_eq!(after, before);
    }
}
