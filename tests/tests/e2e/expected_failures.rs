//! Wire tests that the forwarding engine does not pass yet, by name.
//!
//! A test here runs like any other, and has to fail: one that passes is an error, so that the list only shrinks.
//! It has to be empty before the next forwarding engine lands.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use futures_util::FutureExt;

/// Module and test, and what is wrong.
const EXPECTED_FAILURES: &[(&str, &str)] = &[];

/// A test against the wire, which [`EXPECTED_FAILURES`] may name.
macro_rules! wire_test {
    ($(#[$attribute:meta])* async fn $name:ident() $body:block) => {
        $(#[$attribute])*
        #[tokio::test]
        async fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            $crate::expected_failures::run(name, async $body).await;
        }
    };
}

pub(crate) use wire_test;

/// Runs a test that may be expected to fail. `name` begins with the crate's.
pub(crate) async fn run(name: &str, test: impl Future<Output = ()>) {
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    let Some((_, why)) = EXPECTED_FAILURES.iter().find(|(listed, _)| *listed == name) else {
        return test.await;
    };
    let outcome = AssertUnwindSafe(test).catch_unwind().await;
    assert!(
        outcome.is_err(),
        "{name} passes: take it off the list of expected failures ({why})"
    );
}

#[test]
fn every_expected_failure_is_a_test() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    for (name, _) in EXPECTED_FAILURES {
        let (module, test) = name.rsplit_once("::").expect("module and test");
        let file = module.split("::").next().unwrap_or(module);
        let source = std::fs::read_to_string(here.join(format!("{file}.rs"))).expect(file);
        assert!(source.contains(test), "{name} is no test");
    }
}
