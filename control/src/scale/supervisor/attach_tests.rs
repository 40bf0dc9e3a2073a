//! Several gateways at one supervisor.

use super::tests::{Gateway, lives, sh, until};
use super::*;

fn attach(gateway: &mut Gateway) -> Gateway {
    let (ours, theirs) = UnixStream::pair().unwrap();
    gateway.0.push_with(&Command::Attach, theirs.into()).unwrap();
    Gateway(Link::new(ours).unwrap())
}

#[tokio::test]
async fn the_newest_gives_the_orders_and_hears_of_everything() {
    let mut old = Gateway::beside();
    let first = old.start(sh(1, "sleep 1000")).await;
    let mut new = attach(&mut old);
    // Written with the next turn of the link; the answer says that it was attached before.
    old.say(&Command::Start(Box::new(sh(2, "sleep 1000"))));
    assert_eq!(old.hear().await, Event::Outranked);
    new.say(&Command::List);
    match new.hear().await {
        Event::Listing { instances } => {
            assert_eq!(instances.iter().map(|i| i.pid).collect::<Vec<_>>(), [first]);
        }
        other => panic!("{other:?}"),
    }
    let second = new.start(sh(2, "sleep 1000")).await;
    drop(old);
    new.say(&Command::Stop {
        instance: 1,
        grace_ms: 0,
    });
    assert!(matches!(new.hear().await, Event::Exited { instance: 1, .. }));
    assert!(lives(second), "the older one is gone, and nothing ends with it");
    drop(new);
    until("the last one is gone", || !lives(second)).await;
}

#[tokio::test]
async fn the_older_one_is_a_life_line_and_takes_back_what_the_newer_one_had() {
    let mut old = Gateway::beside();
    let first = old.start(sh(1, "sleep 1000")).await;
    let mut new = attach(&mut old);
    old.say(&Command::Hello { version: VERSION });
    assert!(matches!(old.hear().await, Event::Hello { .. }));
    let second = new.start(sh(2, "sleep 1000")).await;
    old.say(&Command::Reclaim);
    match old.hear().await {
        Event::Listing { instances } => assert_eq!(instances.len(), 2),
        other => panic!("{other:?}"),
    }
    // Whether it is alive or not, its socket is closed.
    let turn = tokio::time::timeout(Duration::from_secs(20), new.0.next())
        .await
        .unwrap();
    assert!(matches!(turn, Ok(LinkEvent::Closed) | Err(_)), "{turn:?}");
    assert!(lives(first) && lives(second));
    old.start(sh(3, "sleep 1000")).await;
}

#[tokio::test]
async fn without_a_socket_nobody_is_attached_and_too_many_are_refused() {
    let mut gateway = Gateway::beside();
    gateway.say(&Command::Attach);
    assert!(matches!(gateway.hear().await, Event::Refused { .. }));
    let mut gateways = vec![gateway];
    for _ in 1..GATEWAYS {
        let newest = gateways.last_mut().unwrap();
        let next = attach(newest);
        newest.say(&Command::List);
        assert_eq!(newest.hear().await, Event::Outranked);
        gateways.push(next);
    }
    let newest = gateways.last_mut().unwrap();
    let _refused = attach(newest);
    assert!(matches!(newest.hear().await, Event::Refused { .. }));
}
