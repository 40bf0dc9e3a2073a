//! Wire tests that the forwarding engine does not pass yet, by name.
//!
//! A test here runs like any other, and has to fail: one that passes is an error, so that the list only shrinks.
//! It has to be empty before the next forwarding engine lands.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use futures_util::FutureExt;

/// Module and test, and what is wrong.
const EXPECTED_FAILURES: &[(&str, &str)] = &[
    (
        "faults_fields::every_response_field_passes_h1_to_h1",
        "the backend's Date is replaced",
    ),
    (
        "faults_fields::every_response_field_passes_h1_to_h2",
        "the backend's Date is replaced",
    ),
    (
        "faults_fields::every_response_field_passes_h2_to_h1",
        "the backend's Date is replaced",
    ),
    (
        "faults_fields::every_response_field_passes_h2_to_h2",
        "the backend's Date is replaced",
    ),
    (
        "faults_fields::the_date_is_the_backends_h1_to_h1",
        "the backend's Date is replaced",
    ),
    (
        "faults_fields::the_date_is_the_backends_h1_to_h2",
        "the backend's Date is replaced",
    ),
    (
        "faults_fields::the_date_is_the_backends_h2_to_h1",
        "the backend's Date is replaced",
    ),
    (
        "faults_fields::the_date_is_the_backends_h2_to_h2",
        "the backend's Date is replaced",
    ),
    (
        "faults_interim::hints_pass_h1_to_h2",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::hints_pass_h2_to_h1",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::hints_pass_h2_to_h2",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::hints_are_bounded_h1_to_h2",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::hints_are_bounded_h2_to_h1",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::hints_are_bounded_h2_to_h2",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::a_100_arrives_at_once_h1_to_h2",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::a_100_arrives_at_once_h2_to_h1",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::a_100_arrives_at_once_h2_to_h2",
        "interim answers pass between HTTP/1 and HTTP/1 only",
    ),
    (
        "faults_interim::a_client_of_http_1_0_gets_no_interim_answer",
        "it gets them",
    ),
    (
        "faults_midway::too_much_large",
        "closed while the client still sends",
    ),
    (
        "faults_midway::too_slow_large",
        "closed while the client still sends",
    ),
    (
        "faults_midway::no_route_large",
        "closed while the client still sends",
    ),
    (
        "faults_midway::queue_full_large",
        "closed while the client still sends",
    ),
    (
        "faults_midway::queue_timeout_large",
        "closed while the client still sends",
    ),
    (
        "faults_midway::early_gone_large_to_h1",
        "closed while the client still sends",
    ),
    (
        "faults_midway::early_gone_large_to_h2",
        "closed while the client still sends",
    ),
    (
        "faults_upgrades::an_offer_that_nobody_takes_is_ignored_h2",
        "502 from a backend that speaks h2c",
    ),
    (
        "faults_upgrades::a_refused_upgrade_keeps_the_connection",
        "it is closed",
    ),
    (
        "faults_upgrades::only_what_the_revision_names_is_forwarded",
        "the offer is forwarded as it is",
    ),
    (
        "faults_upgrades::names_stay_as_they_were_sent",
        "the tunnel lower-cases them",
    ),
    (
        "faults_upgrades::answers_have_the_same_limits_with_an_upgrade_and_without",
        "the tunnel has limits of its own",
    ),
];

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
