//! Cases that the storm does not have: replicas that are not listed, and leases that end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{Replica, ReplicaSink};

use super::Replicas;
use crate::registry::test_kit::{address, id};
use crate::throttle::{Admission, Arrival, Closing, Permit, RevisionThrottler, Supply, clock, test_kit};

type Queue = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// A replica with one endpoint and a limit.
struct One {
    name: &'static str,
    replicas: Arc<Replicas>,
    throttler: Arc<RevisionThrottler>,
    inbox: Queue,
}

impl One {
    fn new(name: &'static str, limit: u32) -> Self {
        let (throttler, _) = test_kit::throttler(Supply::Activated, Some(limit));
        let replicas = Replicas::new();
        replicas.join(&throttler);
        throttler.set_addresses(0, &[address(1)], true, clock());
        let found = Arc::clone(&throttler);
        replicas.find_by(Box::new(move |revision| {
            (*revision == id("r")).then(|| Arc::clone(&found))
        }));
        Self {
            name,
            replicas,
            throttler,
            inbox: Queue::default(),
        }
    }

    fn admit(&self) -> Admission {
        self.throttler.admit(Arrival::default(), clock())
    }

    fn admitted(&self) -> Option<Permit> {
        match self.admit() {
            Admission::Admitted(permit) => Some(permit),
            _ => None,
        }
    }

    /// Another throttler for the revision: that of before is gone.
    fn awake_again(&self) -> Arc<RevisionThrottler> {
        let (throttler, _) = test_kit::throttler(Supply::Activated, Some(1));
        self.replicas.join(&throttler);
        throttler.set_addresses(0, &[address(1)], true, clock());
        throttler
    }

    fn tick(&self) {
        self.replicas.tick();
        self.throttler.tick_now(clock());
        self.replicas.pump();
    }
}

fn list(names: &[&'static str]) -> Vec<Replica> {
    let replica = |name: &&str| Replica {
        name: (*name).into(),
        serves: true,
    };
    names.iter().map(replica).collect()
}

/// Two replicas that know and reach each other: the owner of the endpoint, and the other one.
fn pair(limit: u32) -> (One, One) {
    let (a, b) = (One::new("a", limit), One::new("b", limit));
    for (one, other) in [(&a, &b), (&b, &a)] {
        one.replicas.replicas(one.name, &list(&["a", "b"]));
        let inbox = Arc::clone(&other.inbox);
        let sender = Box::new(move |message| inbox.lock().push_back(message));
        one.replicas.connected(other.name, 7, sender);
    }
    deliver(&a, &b);
    if a.throttler.owns_any() { (a, b) } else { (b, a) }
}

/// Delivers all messages.
fn deliver(a: &One, b: &One) {
    for _ in 0..16 {
        for (one, other) in [(a, b), (b, a)] {
            one.replicas.pump();
            let messages = std::mem::take(&mut *other.inbox.lock());
            for message in messages {
                other
                    .replicas
                    .received(one.name, &message)
                    .expect("it is understood");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_owned_before_the_replicas_are_listed() {
    let one = One::new("a", 1);
    assert!(matches!(one.admit(), Admission::Waiting(_)));
    one.replicas.replicas("a", &list(&["a"]));
    assert!(one.admitted().is_some());
}

#[tokio::test(start_paused = true)]
async fn without_a_list_of_replicas_each_one_is_on_its_own() {
    let one = One::new("a", 1);
    one.replicas.replicas("a", &[]);
    assert!(one.admitted().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_not_listed_owns_nothing_beside_those_that_are() {
    let one = One::new("a", 1);
    one.replicas.replicas("a", &list(&["b"]));
    assert!(matches!(one.admit(), Admission::Waiting(_)));
}

#[tokio::test(start_paused = true)]
async fn a_free_slot_is_leased_to_whoever_asks_and_goes_back() {
    let (owner, other) = pair(1);
    let Admission::Waiting(waiter) = other.admit() else {
        panic!("it owns nothing");
    };
    deliver(&owner, &other);
    let permit = waiter.await.expect("the slot is free");
    assert!(matches!(owner.admit(), Admission::Waiting(_)), "it is in use");
    drop(permit);
    tokio::time::advance(Duration::from_millis(150)).await;
    other.tick();
    deliver(&owner, &other);
    assert!(owner.admitted().is_some());
    assert_eq!(owner.replicas.status()[0].holds, 0);
}

#[tokio::test(start_paused = true)]
async fn a_holder_sends_nothing_on_a_lease_that_has_ended_and_the_owner_frees_nothing() {
    let (owner, other) = pair(2);
    let Admission::Waiting(waiter) = other.admit() else {
        panic!("it owns nothing");
    };
    deliver(&owner, &other);
    let permit = waiter.await.expect("a slot is free");
    // The connection is silent for less than a lease, then for longer than a holder may go on.
    drop(permit);
    assert!(
        other.admitted().is_some(),
        "a free slot is kept for the next request"
    );
    tokio::time::advance(Duration::from_millis(4_001)).await;
    other.replicas.tick();
    assert!(other.admitted().is_none(), "the lease is nearly over");
    tokio::time::advance(Duration::from_secs(3_600)).await;
    owner.replicas.disconnected(other.name);
    owner.tick();
    let mine = owner.admitted();
    assert!(mine.is_some() && owner.admitted().is_none(), "one slot is lost");
    assert_eq!(owner.replicas.status()[0].holds, 1);
    // Its Pod is gone.
    owner.replicas.replicas(owner.name, &list(&[owner.name]));
    owner.tick();
    assert!(owner.admitted().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_held_is_free_at_once_when_it_says_that_it_ends() {
    let (owner, other) = pair(1);
    let Admission::Waiting(waiter) = other.admit() else {
        panic!("it owns nothing");
    };
    deliver(&owner, &other);
    let _permit = waiter.await.expect("the slot is free");
    assert!(other.replicas.leave());
    deliver(&owner, &other);
    assert!(owner.admitted().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_owner_probes_what_another_one_waits_for() {
    let (owner, other) = pair(1);
    for one in [&owner, &other] {
        let key = one.throttler.endpoints()[0].endpoint.key;
        one.throttler.endpoint_unproven(key, clock());
    }
    let Admission::Waiting(waiter) = other.admit() else {
        panic!("nothing is ready");
    };
    assert!(!owner.throttler.endpoints()[0].waiting);
    deliver(&owner, &other);
    assert!(owner.throttler.endpoints()[0].waiting, "it is probed");
    // What its owner found ready the other one need not probe.
    let key = owner.throttler.endpoints()[0].endpoint.key;
    owner.throttler.endpoint_ready(key, clock());
    deliver(&owner, &other);
    drop(waiter.await.expect("the slot is free"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_while_the_service_is_paused() {
    let (owner, other) = pair(1);
    other.throttler.pause(true, clock());
    let Admission::Waiting(waiter) = other.admit() else {
        panic!("it is paused");
    };
    deliver(&owner, &other);
    assert_eq!(owner.replicas.status()[0].holds, 0);
    other.throttler.pause(false, clock());
    deliver(&owner, &other);
    drop(waiter.await.expect("the slot is free"));
}

#[tokio::test(start_paused = true)]
async fn numbers_beyond_reason_overflow_nothing() {
    let (owner, other) = pair(1);
    let say = |words: String| {
        owner
            .replicas
            .received(other.name, words.as_bytes())
            .expect("it is understood");
    };
    let about =
        |said: &str| format!(r#"[{{"about": {{"namespace": "default", "revision": "r", "said": {said}}}}}]"#);
    let most = u32::MAX;
    let time = r#"{"secs": 18446744073709551615, "nanos": 999999999}"#;
    let ask = format!(
        r#"{{"ask": {{"waiting": {most}, "passive": {most}, "oldest": {time}, "youngest": {time}, "received": 0}}}}"#
    );
    say(about(&ask));
    let slot = |port: u16| format!(r#"[{{"tcp": "127.0.0.1:{port}"}}, {most}]"#);
    let held: Vec<String> = [1, 1, 2, 3].map(slot).into();
    say(about(&format!(
        r#"{{"holding": {{"received": 0, "slots": [{}]}}}}"#,
        held.join(",")
    )));
    let back = format!(
        r#"{{"return": {{"endpoint": {{"tcp": "127.0.0.1:1"}}, "slots": {most}, "received": {}}}}}"#,
        u64::MAX
    );
    say(about(&back));
    say(about(&back));
    say(about(&format!(
        r#"{{"lease": {{"endpoint": {{"tcp": "127.0.0.1:1"}}, "slots": {most}, "number": {most}}}}}"#
    )));
    owner.tick();
    // Without a limit nothing is leased, however much is asked for.
    let limits = test_kit::limits(Supply::Activated, None);
    owner.throttler.set_limits(limits, clock());
    say(about(&ask));
    owner.tick();
}

#[tokio::test(start_paused = true)]
async fn words_that_are_none_are_an_error() {
    let one = One::new("a", 1);
    one.replicas.connected("b", 1, Box::new(|_| {}));
    for message in ["", "{}", r#"["announced"]"#] {
        one.replicas.received("b", message.as_bytes()).expect_err(message);
    }
    one.replicas
        .received("b", br#"[{"pong": 18446744073709551615}]"#)
        .expect("a time, if far away");
}

#[tokio::test(start_paused = true)]
async fn words_of_a_later_version_are_passed_over_and_the_others_are_heard() {
    let (owner, other) = pair(1);
    let held = other.admit();
    assert!(matches!(held, Admission::Waiting(_)));
    other.replicas.pump();
    let asks = std::mem::take(&mut *owner.inbox.lock());
    assert!(!asks.is_empty());
    for ask in asks {
        let words: Vec<serde_json::Value> = serde_json::from_slice(&ask).expect("a list");
        let later = [serde_json::json!({"sing": {"loud": true}}), serde_json::json!(7)];
        let all: Vec<_> = later.into_iter().chain(words).collect();
        let message = serde_json::to_vec(&all).expect("JSON");
        owner.replicas.received(other.name, &message).expect("a list");
    }
    assert_eq!(owner.replicas.status()[0].holds, 1);
}

/// A process that was stopped for longer than its lease does not know so: its clock does.
#[tokio::test(start_paused = true)]
async fn a_slot_is_not_used_after_the_end_of_its_lease_though_nothing_has_looked_at_the_time() {
    let (owner, other) = pair(2);
    drop(leased(&owner, &other).await);
    // Free, and kept for the next request.
    tokio::time::advance(Duration::from_millis(50)).await;
    drop(other.admitted().expect("the slot is kept"));
    tokio::time::advance(Duration::from_secs(4)).await;
    assert!(other.admitted().is_none(), "the lease is over");
}

/// A request of the other replica on a slot of the owner.
async fn leased(owner: &One, other: &One) -> Permit {
    let Admission::Waiting(waiter) = other.admit() else {
        panic!("the slots are the owner's");
    };
    deliver(owner, other);
    waiter.await.expect("a slot is free")
}

/// Long enough for a free slot to go back.
async fn rest(holder: &One) {
    for _ in 0..3 {
        tokio::time::advance(Duration::from_millis(150)).await;
        holder.tick();
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_forgot_a_revision_and_wakes_again_leases_as_before() {
    let (mut owner, other) = pair(1);
    for _ in 0..3 {
        let permit = leased(&owner, &other).await;
        drop(permit);
        rest(&other).await;
        deliver(&owner, &other);
        assert_eq!(owner.replicas.status()[0].holds, 0);
        // Its throttler is gone, with the numbers of its leases, and another one joins.
        owner.throttler = owner.awake_again();
        deliver(&owner, &other);
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_forgot_a_revision_gets_slots_as_before() {
    let (owner, mut other) = pair(1);
    for _ in 0..3 {
        drop(leased(&owner, &other).await);
        other.throttler.close(Closing::Removed, clock());
        deliver(&owner, &other);
        assert!(other.throttler.is_spent(), "what it held went back at once");
        assert_eq!(owner.replicas.status()[0].holds, 0);
        other.throttler = other.awake_again();
        deliver(&owner, &other);
    }
}

#[tokio::test(start_paused = true)]
async fn slots_of_a_revision_that_its_owner_removed_come_back_to_it() {
    let (owner, other) = pair(1);
    let permit = leased(&owner, &other).await;
    owner.throttler.close(Closing::Removed, clock());
    assert!(!owner.throttler.is_spent());
    // It is not in the table any more.
    owner.replicas.find_by(Box::new(|_| None));
    drop(permit);
    rest(&other).await;
    deliver(&owner, &other);
    assert!(owner.throttler.is_spent());
}
