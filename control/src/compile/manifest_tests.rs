//! Knative's manifests as input: what they become, and what is told about them.

use std::time::Duration;

use sluice_model::{HttpOption, ProbeKind, Protocol, QueueLimits, Tag, Visibility};

use super::tests::{file, good, load_one};
use super::*;
use crate::plan::{ProcessSpec, ScalerSpec};

/// The entry of `images` for all tests, as a file of its own.
pub(super) const IMAGES: &str = "
images:
  - {match: 'quay.io/rhdevelopers/*:quarkus', command: [sluice, echo], env: {MESSAGE: Hi, PREFIX: Map}}
  - {match: 'open/*', command: [./run], allowCommand: true}
";

fn load_manifest(text: &str) -> Result<Compiled, Diagnostics> {
    load(
        &[
            file("/etc/sluice/images.yaml", IMAGES),
            file("/etc/sluice/service.yaml", text),
        ],
        &|_| None,
    )
}

pub(super) fn manifest(text: &str) -> Compiled {
    load_manifest(text).unwrap_or_else(|e| panic!("{e}"))
}

fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).expect("a name")
}

pub(super) fn spec<'c>(compiled: &'c Compiled, name: &str) -> &'c RevisionSpec {
    let (entry, slot) = compiled.snapshot.revision(&id(name)).expect("a revision");
    &entry.service.revisions[slot]
}

pub(super) fn process<'c>(compiled: &'c Compiled, name: &str) -> &'c ProcessSpec {
    match &compiled.plan.revisions[&id(name)].scaler {
        ScalerSpec::Process(process) => process,
        other => panic!("{other:?}"),
    }
}

/// A Service whose one container has these further lines.
pub(super) fn service(template: &str, container: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: greeter\nspec:\n  template:\n{template}\n    spec:\n      containers:\n        - image: quay.io/rhdevelopers/greeter:quarkus\n{container}\n"
    )
}

const TUTORIAL: &str = include_str!("../../../tests/tests/e2e/tutorial/service.yaml");
const TUTORIAL_ENV: &str = include_str!("../../../tests/tests/e2e/tutorial/service-env.yaml");

#[test]
fn the_tutorial_is_a_service_with_a_named_revision() {
    let compiled = manifest(TUTORIAL);
    let revision = spec(&compiled, "greeter-v1");
    assert_eq!(revision.service.to_string(), "default/greeter");
    let settings = &revision.settings;
    let probe = settings.readiness.as_ref().expect("a probe");
    assert_eq!(
        probe.kind,
        ProbeKind::Http {
            path: "/healthz".to_owned()
        }
    );
    assert_eq!(settings.timeouts.total, Some(Duration::from_secs(300)));
    assert_eq!(
        (settings.timeouts.response_start, settings.timeouts.idle),
        (None, None)
    );
    assert_eq!(
        settings.queue,
        QueueLimits {
            timeout: Duration::from_secs(300),
            depth: 10_000,
            bytes: 64 << 20
        }
    );
    assert_eq!(settings.start_timeout, Duration::from_secs(600));
    let process = process(&compiled, "greeter-v1");
    assert_eq!(process.command, ["sluice", "echo"]);
    assert_eq!(process.env["K_CONFIGURATION"], "greeter");
    assert_eq!(process.working_directory, std::path::Path::new("/etc/sluice"));
    let policy = &compiled.plan.revisions[&id("greeter-v1")].policy;
    assert_eq!((policy.initial_scale, policy.min_scale), (1, 0));
    let told = compiled.warnings.to_string();
    assert_eq!(compiled.warnings.warnings(), 1, "{told}");
    assert!(
        told.contains("do not apply here: spec.template.spec.containers[0].livenessProbe"),
        "{told}"
    );
    let hosts: Vec<String> = compiled
        .snapshot
        .table()
        .hosts()
        .map(|(host, ..)| host.to_string())
        .collect();
    assert_eq!(hosts, ["greeter.default.localhost"]);

    let compiled = manifest(TUTORIAL_ENV);
    let process = self::process(&compiled, "greeter-v2");
    assert_eq!(process.env["MESSAGE_PREFIX"], "Namaste");
    assert_eq!(process.env["MESSAGE"], "Hi", "of the entry of images");
}

#[test]
fn an_unnamed_template_is_numbered_and_a_dump_keeps_its_name() {
    let compiled = manifest(&service("", ""));
    assert_eq!(spec(&compiled, "greeter-00001").id, id("greeter-00001"));
    let dump = format!(
        "{}status:\n  latestCreatedRevisionName: greeter-00007\n  traffic: [{{percent: 100}}]\n",
        service("    metadata: {creationTimestamp: null}", "")
    );
    spec(&manifest(&dump), "greeter-00007");
    // Of a status that somebody else wrote nothing is taken.
    spec(
        &manifest(&dump.replace("greeter-00007", "other-00007")),
        "greeter-00001",
    );
}

#[test]
fn arguments_and_variables_are_those_of_the_manifest_over_those_of_images() {
    let compiled = manifest(&service(
        "",
        "          args: [--port=$(PORT), '$(B) $(LATE) $$(B)']
          env:
            - {name: PREFIX, value: Manifest}
            - {name: A, value: $(PREFIX)-$(LATE)}
            - {name: B, value: $(A)!}
            - {name: LATE, value: late}
            - {name: EMPTY}
            - {name: NUMBER, value: 1.50}",
    ));
    let process = process(&compiled, "greeter-00001");
    assert_eq!(
        process.command,
        ["sluice", "echo", "--port=$(PORT)", "Manifest-$(LATE)! late $$(B)"]
    );
    let env: Vec<(&str, &str)> = process
        .env
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        env,
        [
            ("A", "Manifest-$(LATE)"),
            ("B", "Manifest-$(LATE)!"),
            ("EMPTY", ""),
            ("K_CONFIGURATION", "greeter"),
            ("LATE", "late"),
            ("MESSAGE", "Hi"),
            ("NUMBER", "1.50"),
            ("PREFIX", "Manifest"),
        ]
    );
}

#[test]
fn a_command_counts_where_images_allow_it() {
    let text = service("", "          command: [/bin/app]\n          args: [x]");
    let compiled = manifest(&text);
    assert_eq!(
        process(&compiled, "greeter-00001").command,
        ["sluice", "echo", "x"]
    );
    let told = compiled.warnings.to_string();
    assert!(told.contains("the command is not used"), "{told}");
    let compiled = manifest(&text.replace("quay.io/rhdevelopers/greeter:quarkus", "open/app"));
    assert_eq!(process(&compiled, "greeter-00001").command, ["/bin/app", "x"]);
    let without = service("", "").replace("quay.io/rhdevelopers/greeter:quarkus", "open/app");
    assert_eq!(
        process(&manifest(&without), "greeter-00001").command,
        ["/etc/sluice/run"]
    );
}

#[test]
fn an_image_that_nothing_matches_is_told_at_its_place() {
    let text = service("", "").replace("rhdevelopers", "somebody");
    let told = load_manifest(&text).expect_err("no entry").to_string();
    let place = "/etc/sluice/service.yaml:10:18: error: no entry of images matches 'quay.io/somebody/greeter:quarkus'";
    assert!(told.contains(place), "{told}");
    assert_eq!(told.matches("error:").count(), 1, "{told}");
}

#[test]
fn manifests_stand_beside_native_documents() {
    let text = format!(
        "{}---\nservices:\n  - {{name: blog, endpoints: ['127.0.0.1:1']}}\n---\n{}",
        service("", ""),
        IMAGES
    );
    let compiled = good(&text);
    assert_eq!(compiled.summary().services, 2);
    let list = format!(
        "apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n- {}",
        service("", "").trim_end().replace('\n', "\n  ")
    );
    assert_eq!(manifest(&list).summary().services, 1);
}

#[test]
fn labels_and_annotations_say_who_may_reach_it_and_how() {
    let text = service("", "").replace(
        "  name: greeter\n",
        "  name: greeter\n  namespace: shop\n  labels: {networking.knative.dev/visibility: cluster-local}\n  annotations: {networking.knative.dev/http-protocol: Redirected, serving.knative.dev/creator: me}\n",
    );
    let compiled = manifest(&text);
    let service = compiled.snapshot.services()[0];
    assert_eq!(service.id.to_string(), "shop/greeter");
    assert_eq!(service.main.visibility, Visibility::Internal);
    assert_eq!(service.main.http_option, HttpOption::Redirected);
}

#[test]
fn a_rollout_of_a_manifest_needs_a_state_directory() {
    for (key, text) in [("rollout-duration", "2m"), ("rolloutDuration", "120s")] {
        let annotation = format!("  name: greeter\n  annotations: {{serving.knative.dev/{key}: {text}}}\n");
        let text = service("", "").replace("  name: greeter\n", &annotation);
        let told = load_manifest(&text).expect_err("no state").to_string();
        assert!(told.contains("/etc/sluice/service.yaml:5:"), "{told}");
        assert!(told.contains("no state directory keeps any"), "{told}");
        let compiled = manifest(&format!("{text}---\nstate: {{directory: /nowhere}}\n"));
        assert_eq!(compiled.summary().revisions, 1);
    }
    let off = "  name: greeter\n  annotations: {serving.knative.dev/rollout-duration: 0s}\n";
    manifest(&service("", "").replace("  name: greeter\n", off));
}

#[test]
fn every_annotation_of_autoscaling_in_both_spellings() {
    let kebab = "min-scale: '1', max-scale: '9', initial-scale: '2', activation-scale: '3', scale-down-delay: 2m, metric: rps, target: '50', target-utilization-percentage: '80', target-burst-capacity: '-1', window: 90s, panic-window-percentage: '20', panic-threshold-percentage: '150', scale-to-zero-pod-retention-period: 1m30s";
    let camel = "minScale: '1', maxScale: '9', initialScale: '2', activation-scale: '3', scaleDownDelay: 120s, metric: rps, target: '50.0', targetUtilizationPercentage: '80', targetBurstCapacity: '-1', window: 1m30s, panicWindowPercentage: '20', panicThresholdPercentage: '150', scaleToZeroPodRetentionPeriod: 90s";
    let of = |annotations: &str| {
        let annotations = annotations
            .split(", ")
            .map(|one| format!("autoscaling.knative.dev/{one}"));
        let annotations = annotations.collect::<Vec<_>>().join(", ");
        let compiled = manifest(&service(
            &format!("    metadata: {{annotations: {{{annotations}}}}}"),
            "",
        ));
        compiled.plan.revisions[&id("greeter-00001")].policy.clone()
    };
    let policy = of(kebab);
    assert_eq!(policy, of(camel));
    assert_eq!(
        (policy.min_scale, policy.max_scale, policy.initial_scale),
        (1, Some(9), 2)
    );
    assert_eq!((policy.target_value, policy.total_value), (40.0, 50.0));
    assert_eq!(policy.stable_window, Duration::from_secs(90));
    assert_eq!(policy.scale_down_delay, Duration::from_secs(120));
}

#[test]
fn a_reserve_of_alibabas_is_a_tier_that_is_always_there() {
    let of = |annotations: &str| {
        let metadata = format!(
            "    metadata: {{annotations: {{autoscaling.knative.dev/min-scale: '1', autoscaling.knative.dev/max-scale: '5', {annotations}}}}}"
        );
        manifest(&service(&metadata, ""))
    };
    let compiled =
        of("knative.aliyun.com/reserve-instance: enable, knative.aliyun.com/reserve-instance-type: eci");
    let plans = compiled.plan.revisions.iter().map(|(id, plan)| {
        let policy = &plan.policy;
        (
            id.to_string(),
            policy.min_scale,
            policy.max_scale,
            policy.initial_scale,
        )
    });
    assert_eq!(
        plans.collect::<Vec<_>>(),
        [
            ("default/greeter-00001@reserve".to_owned(), 1, Some(1), 0),
            ("default/greeter-00001@standard".to_owned(), 1, Some(5), 1),
        ]
    );
    assert!(
        compiled.warnings.to_string().contains("reserve-instance-type"),
        "{}",
        compiled.warnings
    );
    let compiled =
        of("knative.aliyun.com/reserve-instance: enable, knative.aliyun.com/reserve-instance-replicas: '3'");
    assert_eq!(
        compiled.plan.revisions[&id("greeter-00001").of_tier(&Tag::parse("reserve").expect("a tag"))]
            .policy
            .min_scale,
        3
    );
    let compiled = of("knative.aliyun.com/reserve-instance: disable");
    assert_eq!(compiled.plan.revisions.len(), 1);
}

#[test]
fn concurrency_protocol_and_timeouts() {
    let text = service("", "          ports: [{name: h2c, containerPort: 8080}]").replace(
        "    spec:\n      containers",
        "    spec:\n      containerConcurrency: 7\n      timeoutSeconds: 60\n      responseStartTimeoutSeconds: 30\n      idleTimeoutSeconds: 5\n      containers",
    );
    let compiled = manifest(&text);
    let settings = &spec(&compiled, "greeter-00001").settings;
    assert_eq!(settings.protocol, Protocol::H2c);
    assert_eq!(settings.container_concurrency, Some(7));
    let seconds = |s| Some(Duration::from_secs(s));
    let timeouts = &settings.timeouts;
    assert_eq!(
        (timeouts.total, timeouts.response_start, timeouts.idle),
        (seconds(60), seconds(30), seconds(5))
    );
}

#[test]
fn what_does_not_apply_is_one_warning_for_each_object() {
    let text = service(
        "    metadata: {annotations: {autoscaling.knative.dev/class: hpa.autoscaling.knative.dev, autoscaling.knative.dev/metric: cpu, autoscaling.knative.dev/target: '80'}}",
        "          env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]\n          volumeMounts: [{name: v, mountPath: /v}]\n          resources: {}\n          readinessProbe: {exec: {command: [x]}}",
    )
    .replace(
        "    spec:\n      containers",
        "    spec:\n      serviceAccountName: me\n      enableServiceLinks: false\n      nodeSelector: {a: b}\n      volumes: [{name: v, emptyDir: {}}]\n      containers",
    );
    let compiled = manifest(&format!(
        "{text}---\n{}",
        text.replace("greeter", "other")
            .replace("rhdevelopers/other", "rhdevelopers/greeter")
    ));
    let told = compiled.warnings.to_string();
    assert_eq!(compiled.warnings.warnings(), 2, "{told}");
    for field in [
        "spec.template.spec.serviceAccountName",
        "spec.template.spec.nodeSelector",
        "spec.template.spec.volumes",
        "spec.template.spec.containers[0].volumeMounts",
        "spec.template.spec.containers[0].env[0].valueFrom",
        "spec.template.spec.containers[0].readinessProbe.exec",
        "class",
        "metric",
    ] {
        assert_eq!(told.matches(field).count(), 2, "{field}: {told}");
    }
    assert!(
        !told.contains("resources") && !told.contains("enableServiceLinks"),
        "{told}"
    );
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_a_hint() {
    let plain = service("", "");
    let cases: [(String, &str); 31] = [
        (
            plain.replace("kind: Service", "kind: Servise"),
            "did you mean 'Service'?",
        ),
        (
            plain.replace("serving.knative.dev/v1", "serving.knative.dev/v2"),
            "is no version",
        ),
        (
            plain.replace("serving.knative.dev/v1", "serving.knative.dv/v1"),
            "did you mean 'serving.knative.dev/v1'?",
        ),
        (plain.replace("kind: Service\n", ""), "the key 'kind' is missing"),
        (
            plain.replace("  name: greeter", "  labels: {}"),
            "the key 'name' is missing",
        ),
        (
            plain.replace("  name: greeter", "  name: Greeter"),
            "is not a name",
        ),
        (
            plain.replace("  template:", "  tmplate:"),
            "did you mean 'template'?",
        ),
        (plain.replace("image:", "imag:"), "did you mean 'image'?"),
        (
            service("    metadata: {name: other-v1}", ""),
            "'other-v1' does not start with 'greeter-'",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/minscale: '1'}}",
                "",
            ),
            "did you mean 'autoscaling.knative.dev/min-scale'?",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/min-scale: '-1'}}",
                "",
            ),
            "is not a whole number from 0",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/activation-scale: '1'}}",
                "",
            ),
            "is not a whole number from 2",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/window: 5s}}",
                "",
            ),
            "is not a duration from 6s to 3600s",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/window: 6500ms}}",
                "",
            ),
            "whole number of seconds",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/metric: cpu}}",
                "",
            ),
            "is none of concurrency, rps",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/class: abc.knative.dev}}",
                "",
            ),
            "is no class",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/min-scale: '3', autoscaling.knative.dev/maxScale: '2'}}",
                "",
            ),
            "min-scale 3 is above max-scale 2",
        ),
        (
            service(
                "    metadata: {annotations: {autoscaling.knative.dev/panic-threshold-percentage: '100'}}",
                "",
            ),
            "is not a number from 110 to 1000",
        ),
        (
            service("", "          ports: [{name: grpc}]"),
            "write h2c or http1",
        ),
        (
            service("", "          ports: [{containerPort: 1}, {containerPort: 2}]"),
            "a container has one port",
        ),
        (
            service("", "          ports: [{containerPort: 8012}]"),
            "is Knative's own",
        ),
        (
            service("", "          env: [{name: PORT, value: '1'}]"),
            "is set for every container",
        ),
        (
            service("", "        - image: quay.io/rhdevelopers/b:quarkus"),
            "there are 2 containers",
        ),
        (
            plain.replace("    spec:\n", "    spec:\n      containerConcurrency: 1001\n"),
            "'1001' is not between 0 and 1000",
        ),
        (
            plain.replace("    spec:\n", "    spec:\n      timeoutSeconds: 601\n"),
            "601 is above 600",
        ),
        (
            plain.replace(
                "    spec:\n",
                "    spec:\n      timeoutSeconds: 10\n      idleTimeoutSeconds: 11\n",
            ),
            "11 is above timeoutSeconds",
        ),
        (
            format!("{plain}  traffic: [{{latestRevision: true, percent: 90}}]\n"),
            "percents add up to 90, not to 100",
        ),
        (
            format!("{plain}  traffic: [{{configurationName: greeter, percent: 100}}]\n"),
            "in place of configurationName",
        ),
        (
            format!(
                "{plain}  traffic: [{{revisionName: greeter-00001, latestRevision: true, percent: 100}}]\n"
            ),
            "exclude each other",
        ),
        (
            format!("{plain}  traffic: [{{revisionName: greeter-v0, percent: 100}}]\n"),
            "no revision of this service is named 'greeter-v0'",
        ),
        (
            plain.replace(
                "metadata:\n",
                "metadata:\n  labels: {networking.knative.dev/visibility: private}\n",
            ),
            "write cluster-local",
        ),
    ];
    for (text, expected) in cases {
        let told = match load_manifest(&text) {
            Ok(_) => panic!("accepted, in place of '{expected}': {text}"),
            Err(told) => told.to_string(),
        };
        assert!(told.contains(expected), "{expected}: {told}\n{text}");
        assert!(told.contains("/etc/sluice/service.yaml:"), "{told}");
    }
}

#[test]
fn objects_of_other_kinds_are_told_and_not_used() {
    let text = format!(
        "{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{A: b}}\n",
        service("", "")
    );
    let compiled = manifest(&text);
    assert_eq!(compiled.summary().services, 1);
    assert!(
        compiled
            .warnings
            .to_string()
            .contains("the object is not used: v1 ConfigMap")
    );
}

#[test]
fn variables_cannot_grow_without_bound() {
    let mut env = String::from("          env:\n            - {name: V0, value: 0123456789}\n");
    for nth in 1..60 {
        let before = nth - 1;
        env.push_str(&format!(
            "            - {{name: V{nth}, value: $(V{before})$(V{before})}}\n"
        ));
    }
    let told = load_manifest(&service("", &env))
        .expect_err("too long")
        .to_string();
    assert!(told.contains("longer than 1 MiB"), "{told}");
}

#[test]
fn images_are_checked() {
    for (text, expected) in [
        ("images: [{match: a}]", "the key 'command' is missing"),
        ("images: [{command: [a]}]", "the key 'match' is missing"),
        (
            "images: [{match: 'a b', command: [a]}]",
            "is not a pattern of images",
        ),
        ("images: [{match: a, command: []}]", "the command is empty"),
        (
            "images: [{match: a, command: [a], allowComand: true}]",
            "did you mean 'allowCommand'?",
        ),
    ] {
        let told = load_one(text).expect_err(text).to_string();
        assert!(told.contains(expected), "{expected}: {told}");
    }
}

pub(super) const CONFIGURATION: &str = "apiVersion: serving.knative.dev/v1\nkind: Configuration\nmetadata: {name: engine}\nspec:\n  template:\n    spec: {containers: [{image: 'open/a'}]}\n";
pub(super) const ROUTE: &str = "apiVersion: serving.knative.dev/v1\nkind: Route\nmetadata: {name: web}\nspec:\n  traffic: [{configurationName: engine, percent: 100, tag: now}]\n";

/// A List with every kind, in which most keys are.
const EVERYTHING: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: serving.knative.dev/v1, kind: Route, metadata: {name: web}, spec: {traffic: [{configurationName: engine, percent: 100, tag: now}]}}
- {apiVersion: serving.knative.dev/v1beta1, kind: Configuration, metadata: {name: engine}, spec: {template: {spec: {containers: [{image: open/a, command: [x]}]}}}}
- apiVersion: serving.knative.dev/v1
  kind: Service
  metadata: {name: greeter, namespace: shop, labels: {networking.knative.dev/visibility: cluster-local}, annotations: {serving.knative.dev/rollout-duration: 10s}}
  spec:
    template:
      metadata: {name: greeter-v1, annotations: {autoscaling.knative.dev/min-scale: '1', knative.aliyun.com/reserve-instance: enable}}
      spec:
        containerConcurrency: 5
        timeoutSeconds: 10
        volumes: [{name: v}]
        containers:
        - image: open/a
          args: [a, $(B), '${C:-d}']
          env: [{name: B, value: $(A)}, {name: D, valueFrom: {secretKeyRef: {name: x, key: y}}}]
          ports: [{name: h2c, containerPort: 80}]
          readinessProbe: {httpGet: {path: /, port: 0}, periodSeconds: 1, successThreshold: 1}
    traffic: [{latestRevision: true, percent: 50, tag: a}, {revisionName: greeter-v1, percent: 50}]
  status: {latestCreatedRevisionName: greeter-v1}
";

proptest::proptest! {
    /// A range is cut out, and something put in.
    #[test]
    fn mutated_manifests_never_panic(at in 0..EVERYTHING.len(), length in 0_usize..40, insert in "[a-z0-9:{}\\[\\]$('~ -]{0,12}") {
        let end = (at + length).min(EVERYTHING.len());
        let text = format!("{}{insert}{}", &EVERYTHING[..at], &EVERYTHING[end..]);
        let _ = load_manifest(&format!("{text}\n---\nstate: {{directory: /nowhere}}\n"));
    }
}

#[test]
fn everything_at_once_is_valid() {
    let compiled = manifest(&format!("{EVERYTHING}---\nstate: {{directory: /nowhere}}\n"));
    assert_eq!(
        (compiled.summary().services, compiled.summary().revisions),
        (2, 2)
    );
}
