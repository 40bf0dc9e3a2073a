//! Needs, by the controller: asked for before a start, held while an instance is there, and failed with.

use sluice_model::Expectation;

use super::*;

fn database() -> RevisionId {
    RevisionId::parse("default", "database").unwrap()
}

fn needing(directory: &Path) -> RevisionPlan {
    RevisionPlan {
        needs: vec![database()],
        ..server(directory)
    }
}

fn failure() -> Arc<ActivationFailure> {
    Arc::new(ActivationFailure {
        failure: Failure::Failed,
        detail: "exit status 5".to_owned(),
        retry_after: Duration::from_secs(30),
    })
}

impl Bench {
    fn database_is(&self, state: Expectation) {
        self.plane.expected.lock().insert(database(), state);
    }
}

#[tokio::test]
async fn nothing_is_started_before_what_it_needs_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.database_is(Expectation::Starting);
    bench.apply(&[(&revision(), needing(dir.path()))]);
    bench.activate();
    assert_eq!(bench.call().await, Call::Expect(database()));
    assert_eq!(bench.call().await, Call::Hold(database(), true));
    assert_eq!(bench.status().waits_for, [database()]);
    // Another waiter asks for nothing more, and something else that became ready changes nothing.
    bench.activate();
    bench.handle.demand(Demand::Activated(revision()));
    bench.database_is(Expectation::Ready);
    bench.handle.demand(Demand::Activated(database()));
    assert_eq!(bench.call().await, Call::Expect(database()));
    let instance = bench.added().await;
    assert!(bench.status().waits_for.is_empty());
    bench.until("it is up", || marks(dir.path(), "starts") == 1).await;
    bench.ready(instance);
    // The hold ends with the last instance.
    bench.handle.set_desired(&revision(), 0, "idle".to_owned());
    assert_eq!(bench.call().await, Call::Retire(vec![instance]));
    bench.drained(instance);
    assert_eq!(bench.call().await, Call::Remove(instance));
    assert_eq!(bench.call().await, Call::Hold(database(), false));
    assert_eq!(marks(dir.path(), "starts"), 1);
}

#[tokio::test]
async fn a_need_that_cannot_start_is_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.database_is(Expectation::Failed(failure()));
    bench.apply(&[(&revision(), needing(dir.path()))]);
    bench.activate();
    assert_eq!(bench.call().await, Call::Expect(database()));
    let cause = "default/database, which it needs: exit status 5";
    assert_eq!(bench.call().await, Call::Fail(Failure::Failed, cause.to_owned()));
    bench.activate();
    // Within the back-off the next waiter is answered alike.
    assert_eq!(bench.call().await, Call::Fail(Failure::Failed, cause.to_owned()));
    assert_eq!(marks(dir.path(), "starts"), 0);
}
