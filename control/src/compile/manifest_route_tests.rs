//! Routes and Configurations in files of their own, and what a Service of a cluster made.

use super::manifest_tests::{CONFIGURATION, IMAGES, ROUTE, manifest, process, service, spec};
use super::tests::file;
use super::*;

#[test]
fn a_route_leads_to_a_configuration_of_another_file() {
    let load = |texts: &[&str]| {
        let files = texts.iter().enumerate();
        let files = files.map(|(nth, text)| file(&format!("/etc/sluice/{nth}.yaml"), text));
        load(&files.collect::<Vec<_>>(), &|_| None)
    };
    let named = CONFIGURATION.replace(
        "    spec: {con",
        "    metadata: {name: engine-v1}\n    spec: {con",
    );
    let by_name = ROUTE.replace("configurationName: engine", "revisionName: engine-v1");
    let by_number = ROUTE.replace("configurationName: engine", "revisionName: engine-00001");
    for (configuration, route, revision) in [
        (CONFIGURATION, ROUTE, "engine-00001"),
        (&named, ROUTE, "engine-v1"),
        (&named, &by_name, "engine-v1"),
        (CONFIGURATION, &by_number, "engine-00001"),
    ] {
        for texts in [[IMAGES, configuration, route], [route, configuration, IMAGES]] {
            let compiled = load(&texts).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(spec(&compiled, revision).service.to_string(), "default/web");
            assert_eq!(process(&compiled, revision).env["K_CONFIGURATION"], "engine");
            let hosts = compiled
                .snapshot
                .table()
                .hosts()
                .map(|(host, ..)| host.to_string());
            let mut hosts: Vec<String> = hosts.collect();
            hosts.sort();
            assert_eq!(hosts, ["now-web.default.localhost", "web.default.localhost"]);
            assert!(compiled.warnings.is_empty(), "{}", compiled.warnings);
        }
    }
    let alone = load(&[IMAGES, CONFIGURATION]).unwrap_or_else(|e| panic!("{e}"));
    assert!(
        alone
            .warnings
            .to_string()
            .contains("no Route leads to Configuration 'engine'")
    );
    let second = ROUTE.replace("name: web", "name: also");
    let two = CONFIGURATION.replace("name: engine", "name: other");
    let both = ROUTE.replace(
        "percent: 100, tag: now}",
        "percent: 50}, {configurationName: other, percent: 50}",
    );
    for (texts, expected) in [
        (vec![IMAGES, ROUTE], "there is no Configuration 'engine'"),
        (
            vec![IMAGES, CONFIGURATION, ROUTE, &second],
            "another Route leads to Configuration 'engine'",
        ),
        (
            vec![IMAGES, CONFIGURATION, CONFIGURATION, ROUTE],
            "Configuration 'engine' is there already",
        ),
        (
            vec![IMAGES, CONFIGURATION, &two, &both],
            "the Route has two Configurations",
        ),
    ] {
        let told = load(&texts).expect_err(expected).to_string();
        assert_eq!(told.matches("error:").count(), 1, "{told}");
        assert!(told.contains(expected), "{expected}: {told}");
    }
}

#[test]
fn what_a_service_made_in_a_cluster_is_left_to_it() {
    let owned = ROUTE.replace(
        "metadata: {name: web}",
        "metadata: {name: greeter, ownerReferences: [{apiVersion: serving.knative.dev/v1, kind: Service, name: greeter}]}",
    );
    let compiled = manifest(&format!("{}---\n{owned}", service("", "")));
    assert_eq!(compiled.summary().services, 1);
    assert!(
        compiled
            .warnings
            .to_string()
            .contains("Route of the Service 'greeter'")
    );
}
