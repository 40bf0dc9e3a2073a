//! Templates as canonical JSON: what a history keeps of a revision, and what says whether a template has changed.
//!
//! Keys are sorted, what says nothing is left out (null, `{}`, `[]`), and so are the defaults that an API server writes into
//! a dump: a manifest and its dump are the same template. Texts are as written: the values of variables (`${NAME}`) are
//! secrets, and do not go to the disk.

use serde_json::Value;
use sluice_config_shape::NodeRef;

/// Defaults of an API server, by the end of their path. Of `None` any value is left out.
const DEFAULTS: [(&[&str], Option<&[&str]>); 12] = [
    (&["metadata", "creationTimestamp"], None),
    (&["spec", "containerConcurrency"], Some(&["0"])),
    (&["spec", "timeoutSeconds"], Some(&["300", "0"])),
    (&["spec", "responseStartTimeoutSeconds"], Some(&["300", "0"])),
    (&["spec", "idleTimeoutSeconds"], Some(&["0"])),
    (&["spec", "enableServiceLinks"], None),
    (&["containers", "name"], None),
    (&["httpGet", "port"], None),
    (&["httpGet", "scheme"], Some(&["HTTP"])),
    (&["tcpSocket", "port"], None),
    (&["readinessProbe", "successThreshold"], Some(&["1"])),
    (&["ports", "protocol"], Some(&["TCP"])),
];

/// Keys whose values are texts, whatever YAML makes of them.
const TEXTS: [&str; 5] = ["args", "command", "env", "annotations", "labels"];

/// The template as canonical JSON.
pub(super) fn canonical(template: &NodeRef) -> Value {
    value(template, &mut Vec::new()).unwrap_or_default()
}

/// `None` for what says nothing.
fn value(node: &NodeRef, path: &mut Vec<String>) -> Option<Value> {
    if let Some(scalar) = node.scalar() {
        let text = scalar.written();
        if scalar.is_null() || is_default(path, text) {
            return None;
        }
        let is_text = !scalar.is_plain() || scalar.is_expanded();
        if is_text || path.iter().any(|key| TEXTS.contains(&key.as_str())) {
            return Some(text.into());
        }
        let number = || Some(Value::Number(serde_json::from_str(text).ok()?));
        return Some(
            scalar
                .as_bool()
                .map(Value::Bool)
                .or_else(number)
                .unwrap_or_else(|| text.into()),
        );
    }
    if node.list_len().is_some() {
        // Elements keep their places: an empty text in args is an argument.
        let items = node.items().map(|item| value(&item, path).unwrap_or_default());
        let items: Vec<Value> = items.collect();
        return (!items.is_empty()).then_some(Value::Array(items));
    }
    let mut entries = serde_json::Map::new();
    for (key, of_key) in node.entries() {
        let Some(name) = key.scalar().map(|key| key.text().to_owned()) else {
            continue;
        };
        path.push(name.clone());
        if let Some(of_key) = value(&of_key, path) {
            entries.insert(name, of_key);
        }
        path.pop();
    }
    (!entries.is_empty()).then_some(Value::Object(entries))
}

fn is_default(path: &[String], text: &str) -> bool {
    // Of free keys none is a default: below `env` and annotations nothing is looked at.
    let is_free = path.iter().any(|key| key == "annotations" || key == "labels");
    let ends = |keys: &[&str]| {
        let start = path.len().checked_sub(keys.len());
        start.is_some_and(|start| path[start..].iter().map(String::as_str).eq(keys.iter().copied()))
    };
    let mut defaults = DEFAULTS.iter();
    !is_free
        && defaults.any(|(keys, values)| ends(keys) && values.is_none_or(|values| values.contains(&text)))
}

/// What of two templates has to be equal, so that one name may stand for both: the spec, and the annotations that say how
/// the revision runs. As in Knative, the rest is for people and tools.
pub(super) fn is_same_revision(one: &Value, other: &Value) -> bool {
    one == other || one["spec"] == other["spec"] && meaningful(one) == meaningful(other)
}

/// The annotations that say how a revision runs.
fn meaningful(template: &Value) -> Vec<(&String, &Value)> {
    let annotations = template["metadata"]["annotations"].as_object();
    let meaningful = annotations.into_iter().flatten().filter(|(key, _)| {
        let group = key.split('/').next().unwrap_or_default();
        matches!(
            group,
            "autoscaling.knative.dev" | "serving.knative.dev" | "knative.aliyun.com"
        )
    });
    meaningful.collect()
}

#[cfg(test)]
mod tests {
    use sluice_config_shape::{Context, Variables, parse};

    use super::*;

    fn of(text: &str) -> Value {
        let mut cx = Context::default();
        let env = |_: &str| Some("secret".to_owned());
        let roots = parse(
            "t.yaml".as_ref(),
            text,
            &Variables::new(&env),
            &mut cx.diagnostics,
        );
        canonical(&roots[0])
    }

    const WRITTEN: &str = "
metadata: {name: a-v1}
spec:
  containers:
    - image: a:1
      env: [{name: A, value: '1'}, {name: B, value: true}, {name: C}]
      args: ['', x]
      readinessProbe: {httpGet: {path: /healthz}}
";

    #[test]
    fn a_dump_is_the_template_that_was_written() {
        let dumped = "
metadata: {creationTimestamp: null, name: a-v1, annotations: {}}
spec:
  timeoutSeconds: 300
  enableServiceLinks: false
  containers:
    - name: user-container
      readinessProbe: {successThreshold: 1, httpGet: {port: 0, path: /healthz}}
      resources: {}
      args: ['', x]
      image: a:1
      env: [{name: A, value: \"1\"}, {value: true, name: B}, {name: C}]
  containerConcurrency: 0
";
        assert_eq!(of(WRITTEN), of(dumped));
        assert_eq!(
            of(WRITTEN).to_string(),
            "{\"metadata\":{\"name\":\"a-v1\"},\"spec\":{\"containers\":[{\"args\":[\"\",\"x\"],\
             \"env\":[{\"name\":\"A\",\"value\":\"1\"},{\"name\":\"B\",\"value\":\"true\"},{\"name\":\"C\"}],\
             \"image\":\"a:1\",\"readinessProbe\":{\"httpGet\":{\"path\":\"/healthz\"}}}]}}"
        );
        let no_probe =
            "spec: {containers: [{image: a, readinessProbe: {tcpSocket: {port: 0}, successThreshold: 1}}]}";
        assert_eq!(of(no_probe), of("spec: {containers: [{image: a}]}"));
    }

    #[test]
    fn it_is_read_as_what_it_was_written_from() {
        for text in [
            WRITTEN,
            "a: ['\\n', \"\\t\\u0001\", 'é\"', 0x10, 1.5, .5, 012, ~, 'null', 'true', '7', '${X}', $$]",
        ] {
            let once = of(text);
            assert_eq!(of(&once.to_string()), once, "{text}");
        }
        assert_eq!(of("a: '${TOKEN}'"), serde_json::json!({"a": "${TOKEN}"}));
        assert_eq!(
            of("env: [1.50, 0x10, True]"),
            serde_json::json!({"env": ["1.50", "0x10", "True"]})
        );
        assert_eq!(of("n: [1, 1.5, True]"), serde_json::json!({"n": [1, 1.5, true]}));
    }

    #[test]
    fn a_name_stands_for_the_spec_and_for_how_it_runs() {
        let same = |one: &str, other: &str| is_same_revision(&of(one), &of(other));
        let base = "{metadata: {name: a}, spec: {containers: [{image: a}]}}";
        assert!(same(
            base,
            "{metadata: {name: a, labels: {x: y}}, spec: {containers: [{image: a}]}}"
        ));
        let foreign =
            "{metadata: {annotations: {sidecar.istio.io/inject: 'false'}}, spec: {containers: [{image: a}]}}";
        assert!(same(base, foreign));
        let scaled = "{metadata: {annotations: {autoscaling.knative.dev/min-scale: '1'}}, spec: {containers: [{image: a}]}}";
        assert!(!same(base, scaled));
        assert!(!same(base, "{spec: {containers: [{image: b}]}}"));
    }
}
