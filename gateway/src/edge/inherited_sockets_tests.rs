use sluice_model::ListenerSettings;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::testing::*;
use super::*;

fn std_listeners(sockets: Vec<(SocketAddr, OwnedFd)>) -> Vec<(SocketAddr, StdListener)> {
    sockets
        .into_iter()
        .map(|(address, socket)| (address, StdListener::from(socket)))
        .collect()
}

#[tokio::test]
async fn sockets_go_over_by_configured_address_and_in_order() {
    let old = EdgeFixture::start(settings(vec![plain(), plain()])).await;
    let held = old.edge.freeze_listeners().await;
    let new = EdgeFixture::unbound(settings(vec![plain(), plain(), plain()]));
    new.edge.inherit(std_listeners(held.sockets().unwrap())).unwrap();
    assert!(new.edge.apply(&new.settings).await.is_empty());
    new.edge.close_inherited();
    assert_eq!(new.address(0), old.address(0));
    assert_eq!(new.address(1), old.address(1));
    assert!(![old.address(0), old.address(1)].contains(&new.address(2)));
}

#[tokio::test]
async fn what_is_not_wanted_is_closed_with_the_last_owner() {
    let fixed = ListenerSettings {
        address: {
            let free = StdListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap()
        },
        ..plain()
    };
    let mut old = EdgeFixture::start(settings(vec![plain(), fixed.clone()])).await;
    let held = old.edge.freeze_listeners().await;
    let mut new = EdgeFixture::unbound(settings(vec![plain()]));
    new.edge.inherit(std_listeners(held.sockets().unwrap())).unwrap();
    assert!(new.edge.apply(&new.settings).await.is_empty());
    new.edge.close_inherited();
    // The old process still serves it, and the new one may not have it.
    echo(&mut TcpStream::connect(fixed.address).await.unwrap(), b"GET").await;
    old.served().await;
    held.stop_accepting().await;
    assert!(TcpStream::connect(fixed.address).await.is_err());
    echo(&mut new.connect().await, b"GET").await;
    new.served().await;
    // It can be had again by a reload, as any other.
    new.settings.listeners.push(fixed.clone());
    assert!(new.reload().await.is_empty());
    echo(&mut TcpStream::connect(fixed.address).await.unwrap(), b"GET").await;
}

/// Nobody is refused or reset at any moment, whichever of the two accepts.
#[tokio::test]
async fn the_queue_of_connections_is_never_lost() {
    let mut old = EdgeFixture::start(settings(vec![plain()])).await;
    let mut new = EdgeFixture::unbound(settings(vec![plain()]));
    new.edge.pause_accepting();
    let held = old.edge.freeze_listeners().await;
    new.edge.inherit(std_listeners(held.sockets().unwrap())).unwrap();
    assert!(new.edge.apply(&new.settings).await.is_empty());
    new.edge.close_inherited();

    // Both listen, only the old one accepts.
    let mut first = old.connect().await;
    echo(&mut first, b"one").await;
    old.served().await;
    held.stop_accepting().await;
    // Nobody accepts: these wait in the kernel.
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(new.connect().await);
    }
    new.edge.start_accepting();
    for client in &mut waiting {
        echo(client, b"two").await;
        new.served().await;
    }
    echo(&mut first, b"three").await;
    assert!(old.edge.apply(&old.settings).await.is_empty());
    assert!(old.edge.listeners().is_empty(), "it listens no more");
}

/// A reload while sockets are on their way would bind what the other process wants to bind.
#[tokio::test]
async fn listeners_do_not_change_while_they_are_held() {
    let mut old = EdgeFixture::start(settings(vec![plain()])).await;
    let held = old.edge.freeze_listeners().await;
    old.settings.listeners.push(plain());
    {
        let reload = old.edge.apply(&old.settings);
        tokio::pin!(reload);
        assert!(futures_util::poll!(reload.as_mut()).is_pending());
        assert_eq!(old.edge.listeners().len(), 1);
        drop(held);
        assert!(timeout(PATIENCE, reload).await.unwrap().is_empty());
    }
    assert_eq!(old.edge.listeners().len(), 2);
}

#[tokio::test]
async fn an_edge_that_never_opened_leaves_the_queue_alone() {
    let mut old = EdgeFixture::start(settings(vec![plain()])).await;
    let new = EdgeFixture::unbound(settings(vec![plain()]));
    new.edge.pause_accepting();
    let held = old.edge.freeze_listeners().await;
    new.edge.inherit(std_listeners(held.sockets().unwrap())).unwrap();
    assert!(new.edge.apply(&new.settings).await.is_empty());
    drop(held);
    new.edge.stop_accepting().await;
    for _ in 0..5 {
        echo(&mut old.connect().await, b"GET").await;
        old.served().await;
    }
}
