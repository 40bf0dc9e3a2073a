use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn read(variables: &[(&str, &str)]) -> TraceEnvironment {
    let variables: BTreeMap<_, _> = variables.iter().copied().collect();
    TraceEnvironment::read(|name| variables.get(name).map(|&value| value.to_owned()))
}

const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

/// Settings without a warning.
fn settings(variables: &[(&str, &str)]) -> TraceSettings {
    let read = read(&[&[COLLECTOR], variables].concat());
    assert_eq!(read.warnings, [""; 0], "{variables:?}");
    read.settings.unwrap()
}

/// Settings and the one warning.
fn warned(variable: (&str, &str)) -> (TraceSettings, String) {
    let read = read(&[COLLECTOR, variable]);
    let [warning] = &read.warnings[..] else {
        panic!("{variable:?}: {:?}", read.warnings);
    };
    assert!(warning.starts_with(variable.0), "{warning}");
    (read.settings.unwrap(), warning.clone())
}

#[test]
fn nothing_set_is_no_traces() {
    for variables in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
        &[("OTEL_SERVICE_NAME", "edge")],
        &[("OTEL_RESOURCE_ATTRIBUTES", "a=b")],
        &[COLLECTOR, ("OTEL_SDK_DISABLED", "True")],
        &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")],
    ] {
        let read = read(variables);
        assert!(read.settings.is_none(), "{variables:?}");
        assert_eq!(read.warnings, [""; 0], "{variables:?}");
    }
}

#[test]
fn what_was_meant_to_make_traces_and_does_not_is_told() {
    for (variables, about) in [
        (
            &[("OTEL_TRACES_SAMPLER", "always_on")][..],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (&[COLLECTOR, ("OTEL_TRACES_EXPORTER", "zipkin")], "zipkin"),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://a")],
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:secret@a")],
            "without user",
        ),
    ] {
        let read = read(variables);
        assert!(read.settings.is_none(), "{variables:?}");
        let [warning] = &read.warnings[..] else {
            panic!("{variables:?}: {:?}", read.warnings);
        };
        assert!(
            warning.contains(about) && !warning.contains("secret"),
            "{warning}"
        );
    }
}

#[test]
fn defaults_are_those_of_the_specification() {
    let settings = settings(&[("OTEL_SDK_DISABLED", "false")]);
    assert_eq!(settings.endpoint, "http://collector:4318/v1/traces");
    assert!(settings.headers.is_empty() && !settings.gzip);
    assert_eq!(settings.timeout, Duration::from_secs(10));
    assert_eq!(settings.sampler, Sampler::default());
    assert_eq!(
        settings.resource,
        [("service.name".to_owned(), "sluice".to_owned())]
    );
    assert_eq!(settings.schedule_delay, Duration::from_secs(5));
    assert_eq!(settings.export_timeout, Duration::from_secs(30));
    assert_eq!((settings.max_queue_size, settings.max_batch_size), (2048, 512));
}

#[test]
fn an_endpoint_for_traces_is_used_as_it_is_and_another_one_is_a_base() {
    let endpoint = |variables: &[_]| read(variables).settings.unwrap().endpoint.to_string();
    let base = |url| endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]);
    assert_eq!(base("http://a:1/"), "http://a:1/v1/traces");
    assert_eq!(base("https://a/otlp"), "https://a/otlp/v1/traces");
    assert_eq!(base("http://[::1]:4318"), "http://[::1]:4318/v1/traces");
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:2");
    assert_eq!(endpoint(&[COLLECTOR, own]), "http://b:2/");
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:2/x?y");
    assert_eq!(endpoint(&[COLLECTOR, own]), "http://b:2/x?y");
    assert_eq!(
        endpoint(&[("OTEL_TRACES_EXPORTER", "console, otlp")]),
        "http://localhost:4318/v1/traces"
    );
}

#[test]
fn what_is_for_traces_wins_over_what_is_for_all_signals() {
    let settings = settings(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "Authorization=Bearer%20x%3D, b = 2 ,",
        ),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/client.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/client.key"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
    ]);
    let fields: Vec<_> = settings
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
        .collect();
    assert_eq!(fields, [("authorization", "Bearer x="), ("b", "2")]);
    assert!(settings.headers.values().all(HeaderValue::is_sensitive));
    assert_eq!(settings.timeout, Duration::from_millis(250));
    assert!(settings.gzip);
    assert_eq!(settings.certificate.unwrap().to_str(), Some("/ca.pem"));
    assert_eq!(
        settings.client_certificate.unwrap().key_file.to_str(),
        Some("/client.key")
    );
}

#[test]
fn the_resource_has_a_service_name_in_the_specified_order() {
    let resource = |variables: &[_]| settings(variables).resource;
    let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "a=1, service.name = edge%2Cown ,a=2");
    assert_eq!(
        resource(&[attributes]),
        [own("service.name", "edge,own"), own("a", "2")]
    );
    assert_eq!(
        resource(&[attributes, ("OTEL_SERVICE_NAME", "wins")]),
        [own("a", "2"), own("service.name", "wins")]
    );
}

#[test]
fn samplers_and_batches_are_set() {
    let set = settings(&[
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "40"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "9"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
    ]);
    assert_eq!(
        set.sampler,
        Sampler {
            parent_based: false,
            ratio: 0.25
        }
    );
    assert_eq!(set.schedule_delay, Duration::from_millis(20));
    assert_eq!(set.export_timeout, Duration::from_millis(40));
    assert_eq!((set.max_queue_size, set.max_batch_size), (9, 9));
    // The other samplers take no argument.
    let on = settings(&[
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("OTEL_TRACES_SAMPLER_ARG", "endpoint=x"),
    ]);
    assert_eq!(on.sampler.ratio, 1.0);
}

#[test]
fn a_mistake_counts_as_not_set_and_is_told() {
    let (settings, warning) = warned(("OTEL_TRACES_SAMPLER", "parentbased_alway_on"));
    assert_eq!(settings.sampler, Sampler::default());
    assert!(
        warning.contains("did you mean 'parentbased_always_on'"),
        "{warning}"
    );
    assert!(warned(("OTEL_TRACES_SAMPLER", "xray")).1.contains("traceidratio"));
    for zero in ["0", "-1", "many", "1.5", "99999999999"] {
        let (settings, _) = warned(("OTEL_BSP_MAX_QUEUE_SIZE", zero));
        assert_eq!(settings.max_queue_size, 2048);
        let (settings, _) = warned(("OTEL_EXPORTER_OTLP_TIMEOUT", zero));
        assert_eq!(settings.timeout, Duration::from_secs(10));
    }
    let (settings, warning) = warned(("OTEL_EXPORTER_OTLP_HEADERS", "a=1,api-key secret"));
    assert!(settings.headers.contains_key("a"));
    assert!(
        warning.contains("part 2") && !warning.contains("secret"),
        "{warning}"
    );
    warned(("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz"));
    warned(("OTEL_RESOURCE_ATTRIBUTES", "alone"));
    warned(("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"));
    warned(("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"));
    warned(("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"));
    warned(("OTEL_PROPAGATORS", "b3"));
    warned(("OTEL_SDK_DISABLED", "yes"));
    let read = read(&[
        COLLECTOR,
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "50%"),
    ]);
    assert_eq!(
        (read.warnings.len(), read.settings.unwrap().sampler.ratio),
        (1, 1.0)
    );
}

proptest! {
    #[test]
    fn no_value_panics(name in 0..20usize, value in "\\PC{0,40}") {
        const NAMES: [&str; 10] = [
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "OTEL_TRACES_SAMPLER",
            "OTEL_TRACES_EXPORTER",
            "OTEL_RESOURCE_ATTRIBUTES",
            "OTEL_SERVICE_NAME",
            "OTEL_BSP_MAX_QUEUE_SIZE",
            "OTEL_SDK_DISABLED",
        ];
        let name = NAMES[name % NAMES.len()];
        read(&[COLLECTOR, (name, &value)]);
    }

    #[test]
    fn percent_encoding_is_undone(text in "\\PC{0,20}") {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        prop_assert_eq!(percent_decoded(&encoded), Some(text));
    }
}
