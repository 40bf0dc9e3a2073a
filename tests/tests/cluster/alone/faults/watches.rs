//! Connections to the API server, most of which are watches, are cut at random.

use std::time::Duration;

use sluice_tests::api_server;
use sluice_tests::cluster::{NODE, inside};
use sluice_tests::relay::Relay;

use super::scene::{HOST, Scene};

/// Connections that are cut, one after the other.
const CUTS: usize = 150;

/// The pause after each.
const PAUSE: Duration = Duration::from_millis(50);

#[tokio::test]
#[ignore = "minutes: .ci/long runs it"]
async fn watches_that_are_cut_at_random_are_resumed_and_miss_nothing() {
    let Some(cluster) = inside() else { return };
    let relay = Relay::start((NODE, 0).into(), api_server::ADDRESS).await;
    let scene = Scene::by_way_of(cluster, 3, relay.addr()).await;
    let traffic = scene.traffic(&scene.replicas().await).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (before, mut cut) = (relay.accepted(), 0);
    let mut clock = tokio::time::interval(PAUSE);
    for nth in 1..=CUTS {
        clock.tick().await;
        cut += usize::from(relay.cut(random.usize(..)));
        // Both backends answer all the time, whatever the cluster says of them: no request may meet neither.
        match nth % 6 {
            1 => scene.set_ready("b", true).await,
            2 => scene.set_ready("a", false).await,
            3 => scene.change(&format!("v{nth}")).await,
            4 => scene.set_ready("a", true).await,
            5 => scene.set_ready("b", false).await,
            _ => {}
        }
    }
    assert!(cut > CUTS / 2, "only {cut} of {CUTS} were there to be cut");
    scene.set_ready("b", true).await;
    scene.set_ready("a", false).await;
    scene.change("last").await;
    scene.until_ready("web").await;
    scene.until_answered(HOST, "b last").await;
    let again = relay.accepted() - before;
    assert!(again > CUTS as u64 / 2, "{again} connections after {cut} cuts");
    traffic.advance().await;
    let answers = traffic.stop().await;
    assert!(answers.contains_key("b last"), "{answers:?}");
}
