//! What the template of a revision has otherwise than that of the one before, for people.
//!
//! Values are told of the few fields that cannot hold a secret; of all others only that they changed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::history::KeptRevision;

/// The differences that are told of a revision.
const MOST: usize = 20;

/// The longest value that is told, in characters.
const LONGEST: usize = 120;

/// The fields whose values are told.
const PLAIN: [&str; 4] = ["image", "containerConcurrency", "timeoutSeconds", "containerPort"];

/// The prefix of annotations whose values are told.
const PLAIN_ANNOTATIONS: &str = "autoscaling.knative.dev/";

/// By the name of each revision but the first, what its template has otherwise than that of the one before.
pub fn differences(revisions: &[KeptRevision]) -> BTreeMap<String, Vec<String>> {
    let pairs = revisions.iter().zip(revisions.iter().skip(1));
    pairs
        .map(|(before, after)| (after.name.clone(), between(&before.template, &after.template)))
        .collect()
}

fn between(before: &Value, after: &Value) -> Vec<String> {
    let mut all = Vec::new();
    compare("", before, after, &mut all);
    // Every revision has a name of its own.
    all.retain(|one| !one.starts_with("metadata.name:") && !one.starts_with("metadata.name "));
    if all.len() > MOST {
        let more = all.len() - MOST;
        all.truncate(MOST);
        all.push(format!("{more} more"));
    }
    all
}

fn compare(path: &str, before: &Value, after: &Value, out: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(before), Value::Object(after)) => {
            let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let path = match path {
                    // What a template is about.
                    "" if key == "spec" => String::new(),
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                compare(&path, at(before.get(key)), at(after.get(key)), out);
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            if let (Some(old), Some(new)) = (named(before), named(after)) {
                let names: BTreeSet<&str> = old.iter().chain(&new).copied().collect();
                for name in names {
                    let of = |list: &[&str], items: &'_ [Value]| {
                        list.iter()
                            .position(|one| *one == name)
                            .map(|at| items[at].clone())
                    };
                    let (old, new) = (of(&old, before), of(&new, after));
                    compare(
                        &format!("{path}[{name}]"),
                        at(old.as_ref()),
                        at(new.as_ref()),
                        out,
                    );
                }
                return;
            }
            for index in 0..before.len().max(after.len()) {
                compare(
                    &format!("{path}[{index}]"),
                    at(before.get(index)),
                    at(after.get(index)),
                    out,
                );
            }
        }
        (before, after) => out.push(tell(path, before, after)),
    }
}

/// The names of a list's items, if each has one of its own.
fn named(list: &[Value]) -> Option<Vec<&str>> {
    let names: Vec<&str> = list
        .iter()
        .map(|item| item["name"].as_str())
        .collect::<Option<_>>()?;
    let different: BTreeSet<&&str> = names.iter().collect();
    (different.len() == names.len()).then_some(names)
}

static ABSENT: Value = Value::Null;

fn at(value: Option<&Value>) -> &Value {
    value.unwrap_or(&ABSENT)
}

fn tell(path: &str, before: &Value, after: &Value) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    let is_plain = PLAIN.contains(&last) || path.contains(&format!(".{PLAIN_ANNOTATIONS}"));
    if is_plain
        && [before, after]
            .iter()
            .all(|value| !value.is_object() && !value.is_array())
    {
        return format!("{path}: {} → {}", short(before), short(after));
    }
    let what = match (before, after) {
        (Value::Null, _) => "added",
        (_, Value::Null) => "removed",
        _ => "changed",
    };
    format!("{path} {what}")
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(name: &str, template: Value) -> KeptRevision {
        KeptRevision {
            name: name.to_owned(),
            generation: 1,
            template,
            created: 0,
            last_active: 0,
            active: false,
        }
    }

    fn container(image: &str, env: &Value) -> Value {
        json!({
            "metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1", "other": image}},
            "spec": {"containers": [{"name": "user", "image": image, "env": env}], "timeoutSeconds": 300},
        })
    }

    #[test]
    fn what_changed_is_named_and_no_value_that_may_be_secret_is_told() {
        let mut second = container(
            "b:2",
            &json!([{"name": "KEY", "value": "hunter3"}, {"name": "NEW", "value": "hunter2"}]),
        );
        second["metadata"]["name"] = json!("greeter-v2");
        second["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] = json!("3");
        second["spec"]["containers"][0]["args"] = json!(["--token", "hunter2"]);
        second["spec"].as_object_mut().unwrap().remove("timeoutSeconds");
        let first = container("a:1", &json!([{"name": "KEY", "value": "hunter2"}]));
        let all = differences(&[kept("v1", first), kept("v2", second)]);
        assert_eq!(
            all["v2"],
            [
                "metadata.annotations.autoscaling.knative.dev/min-scale: 1 → 3",
                "metadata.annotations.other changed",
                "containers[user].args added",
                "containers[user].env[KEY].value changed",
                "containers[user].env[NEW] added",
                "containers[user].image: a:1 → b:2",
                "timeoutSeconds: 300 → none",
            ]
        );
        assert!(!all.contains_key("v1"));
    }

    #[test]
    fn lists_without_names_are_compared_by_place_and_long_ones_are_cut() {
        let list = |n: usize| json!({"spec": {"args": (0..n).map(|i| i * n).collect::<Vec<_>>()}});
        assert_eq!(between(&list(1), &list(2)), ["args[1] added"]);
        let many = between(&list(0), &list(30));
        assert_eq!((many.len(), many[MOST].as_str()), (MOST + 1, "10 more"));
        let long = |c: &str| json!({"spec": {"image": c.repeat(500)}});
        assert!(between(&long("ä"), &long("b"))[0].chars().count() < 300);
        assert!(between(&long("a"), &long("a")).is_empty());
        let twice = |v: u8| json!({"spec": {"env": [{"name": "A", "value": 1}, {"name": "A", "value": v}]}});
        assert_eq!(between(&twice(1), &twice(2)), ["env[1].value changed"]);
    }
}
