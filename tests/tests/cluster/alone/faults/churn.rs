//! A thousand Ingresses appear at once, and nine hundred of them go at once.

use std::collections::BTreeMap;

use serde_json::Value;
use sluice_tests::cluster::inside;
use sluice_tests::h1::{self, H1};
use sluice_tests::load::Load;
use sluice_tests::wait::{SOON, wait_for, within};
use tokio::task::JoinSet;

use super::scene::{Replica, Scene, ingress, is_ready};

const CREATED: usize = 1_000;

/// Of these, those that stay.
const KEPT: usize = 100;

/// Requests at once, to the API server and to a replica.
const AT_ONCE: usize = 50;

fn host(nth: usize) -> String {
    format!("n{nth}.example.com")
}

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn a_thousand_ingresses_are_served_and_nine_hundred_go() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster, 2).await;
    let replicas = scene.replicas().await;
    let mut traffic = scene.traffic(&replicas).await;

    create_all(&scene).await;
    let ingresses = scene.ingresses();
    // One at a time: a list of all, again and again, would keep the API server from the rest.
    within("all are Ready", SOON * 3, async {
        let mut connection = scene.api.connect().await.expect("the API server accepts");
        for nth in 0..CREATED {
            let path = format!("{ingresses}/n{nth}");
            let mut get = async || {
                let object = connection.send("GET", &path, &Value::Null).await;
                is_ready(&object.expect("it was created"))
            };
            while !get().await {}
        }
    })
    .await;
    for replica in &replicas {
        let served = statuses(replica, 0..CREATED).await;
        assert_eq!(served, BTreeMap::from([(200, CREATED)]), "{}", replica.name);
    }

    let service = scene.cluster.service("sluice-system", "sluice", 80).await;
    for nth in 0..4 {
        traffic.add(host(nth), Load::get(service, 1, &host(nth)));
    }
    traffic.advance().await;
    let gone = format!("{ingresses}?labelSelector=batch%3Dgo");
    scene.must("DELETE", &gone, Value::Null).await;
    let left = scene.must("GET", &ingresses, Value::Null).await;
    assert_eq!(left["items"].as_array().map(Vec::len), Some(KEPT + 1));
    for replica in &replicas {
        wait_for("what was deleted is unknown", SOON, || async {
            let served = statuses(replica, KEPT..CREATED).await;
            (served == BTreeMap::from([(404, CREATED - KEPT)])).then_some(())
        })
        .await;
        let kept = statuses(replica, 0..KEPT).await;
        assert_eq!(kept, BTreeMap::from([(200, KEPT)]), "{}", replica.name);
    }
    assert_eq!(scene.replicas().await, replicas, "none has ended");
    traffic.advance().await;
    traffic.stop().await;
}

async fn create_all(scene: &Scene) {
    let mut creating = JoinSet::new();
    for first in 0..AT_ONCE {
        let (api, path, namespace) = (scene.api.clone(), scene.ingresses(), scene.namespace.clone());
        creating.spawn(async move {
            let mut connection = api.connect().await.expect("the API server accepts");
            for nth in (first..CREATED).step_by(AT_ONCE) {
                let mut object = ingress(&namespace, &format!("n{nth}"), &host(nth));
                let batch = if nth < KEPT { "keep" } else { "go" };
                object["metadata"]["labels"]["batch"] = batch.into();
                let created = connection.send("POST", &path, &object).await;
                created.unwrap_or_else(|e| panic!("{e}"));
            }
        });
    }
    while let Some(done) = creating.join_next().await {
        done.expect("all are created");
    }
}

/// How many of these hosts a replica answers with each status; 0 is no answer.
async fn statuses(replica: &Replica, hosts: std::ops::Range<usize>) -> BTreeMap<u16, usize> {
    let mut asking = JoinSet::new();
    for first in 0..AT_ONCE {
        let (address, hosts) = (replica.public(), hosts.clone());
        asking.spawn(async move {
            let mut statuses = Vec::new();
            let mut connection = H1::connect(address).await.expect("the gateway accepts");
            for nth in hosts.skip(first).step_by(AT_ONCE) {
                match connection.exchange(&h1::get(&host(nth), "/")).await {
                    Ok(answer) => statuses.push(answer.status),
                    Err(_) => {
                        statuses.push(0);
                        break;
                    }
                }
            }
            statuses
        });
    }
    let mut counts = BTreeMap::new();
    while let Some(statuses) = asking.join_next().await {
        for status in statuses.expect("no panic") {
            *counts.entry(status).or_default() += 1;
        }
    }
    counts
}
