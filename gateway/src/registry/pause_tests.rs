//! A paused service: its revisions, those in use and those that are dormant.

use std::sync::Arc;

use futures_util::{FutureExt, poll};
use sluice_model::{Service, Snapshot, SnapshotBuilder};
use tokio::runtime::Handle;

use super::test_kit::{self, Demands, apply, fixed, id, snapshot, spec};
use super::{LiveRevision, Registry};
use crate::throttle::{Admission, Arrival, Waiter, clock};

fn paused(table: &Snapshot, paused: bool) -> Arc<Snapshot> {
    let mut builder = SnapshotBuilder::new((**table.settings()).clone());
    for service in table.services() {
        let service = Service {
            paused,
            ..Service::clone(service)
        };
        builder.service(service).expect("distinct names");
    }
    Arc::new(builder.build())
}

fn registry(first: &Snapshot) -> Registry {
    test_kit::registry(first, Arc::new(Demands::default()), Handle::current())
}

fn wait(live: &LiveRevision) -> Waiter {
    match live.throttler().admit(Arrival::default(), clock()) {
        Admission::Waiting(waiter) => waiter,
        other => panic!("does not wait: {other:?}"),
    }
}

#[tokio::test]
async fn a_pause_holds_requests_to_every_revision_and_a_resume_sends_them_on() {
    let table = snapshot(vec![spec("a", fixed(&[1])), spec("b", fixed(&[2]))]);
    let registry = registry(&table);
    let [a, b] = ["a", "b"].map(|name| registry.live(&id(name)).expect("is in it"));
    // One is in use, one is dormant.
    let permit = match a.throttler().admit(Arrival::default(), clock()) {
        Admission::Admitted(permit) => permit,
        other => panic!("{other:?}"),
    };
    apply(&registry, &paused(&table, true));
    assert!(b.awake().is_none(), "a pause initialises nothing");
    let mut waiters = [wait(&a), wait(&b)];
    drop(permit);
    for waiter in &mut waiters {
        assert!(poll!(waiter).is_pending());
    }
    apply(&registry, &table);
    for waiter in waiters {
        drop(waiter.now_or_never().expect("is resolved").expect("is admitted"));
    }
}

#[tokio::test]
async fn a_revision_that_comes_to_a_paused_service_is_paused() {
    let one = snapshot(vec![spec("a", fixed(&[1]))]);
    let registry = registry(&paused(&one, true));
    let two = snapshot(vec![spec("a", fixed(&[1])), spec("b", fixed(&[2]))]);
    apply(&registry, &paused(&two, true));
    let b = registry.live(&id("b")).expect("is in it");
    let waiter = wait(&b);
    // Removed and back, resumed.
    apply(&registry, &one);
    assert!(waiter.await.is_err(), "it is gone");
    apply(&registry, &two);
    let b = registry.live(&id("b")).expect("is back");
    assert!(matches!(
        b.throttler().admit(Arrival::default(), clock()),
        Admission::Admitted(_)
    ));
}
