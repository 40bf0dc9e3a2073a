//! Robustness against any input, and the agreement of schema and decoder.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Map, Value};
use sluice_model::test_util;

use super::*;
use crate::compile::load;

const EXAMPLE: &str = include_str!("testdata/example.yaml");

fn run(text: &str) -> Result<(), Diagnostics> {
    let file = SourceFile {
        path: "f.yaml".into(),
        text: text.to_owned(),
    };
    let loaded = load(&[file], &|name| (name.len() < 4).then(|| "1".to_owned()));
    match loaded {
        Ok(_) => Ok(()),
        Err(diagnostics) => {
            // Rendering must not panic either.
            assert!(!diagnostics.to_string().is_empty());
            assert_eq!(diagnostics.to_json()["valid"], false);
            Err(diagnostics)
        }
    }
}

/// Text made of pieces of YAML, which parses more often than single characters do.
fn soup() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "services:",
        "traffic:",
        "revisions:",
        "name:",
        "percent:",
        "endpoints:",
        "hosts:",
        "- ",
        "  ",
        "\n",
        "\n  ",
        "\n    ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "&a ",
        "*a",
        "<<: ",
        "? ",
        "| ",
        "> ",
        "'",
        "\"",
        "#",
        "!!str ",
        "!x ",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "${A}",
        "${A:-",
        "$$",
        "a",
        "100",
        "0.5",
        "10s",
        "~",
        "true",
        "\t",
        "\r\n",
        "\u{feff}",
        "é",
        "\0",
        "0x1F",
        ".inf",
        "-.nan",
        "1e999",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = run(&text);
    }

    #[test]
    fn pieces_of_yaml_never_panic(text in soup()) {
        let _ = run(&text);
    }

    /// A valid file with a range cut out and something put in.
    #[test]
    fn mutated_configurations_never_panic(at in 0..EXAMPLE.len(), length in 0usize..40, insert in soup()) {
        let floor = |mut i: usize| {
            while !EXAMPLE.is_char_boundary(i) {
                i -= 1;
            }
            i
        };
        let end = floor((at + length).min(EXAMPLE.len()));
        let start = floor(at).min(end);
        let _ = run(&format!("{}{insert}{}", &EXAMPLE[..start], &EXAMPLE[end..]));
    }

    /// Any scalar anywhere may be anything.
    #[test]
    fn exchanged_scalars_never_panic(nth in 0usize..200, with in any::<String>()) {
        let with = serde_json::to_string(&with).expect("a string");
        let mut words = EXAMPLE.match_indices(": ");
        let total = EXAMPLE.matches(": ").count();
        if let Some((at, _)) = words.nth(nth % total) {
            let rest = &EXAMPLE[at + 2..];
            let end = rest.find(['\n', ',', '}', ' ']).unwrap_or(rest.len());
            let _ = run(&format!("{}{with}{}", &EXAMPLE[..at + 2], &rest[end..]));
        }
    }
}

fn one_message(text: &str) -> String {
    let diagnostics = run(text).expect_err("a mistake");
    assert_eq!(diagnostics.errors(), 1, "{diagnostics}");
    diagnostics.items()[0].message.clone()
}

#[test]
fn anchors_aliases_and_merge_keys() {
    let text = "services:\n- &base\n  name: a\n  endpoints: &e ['h:1']\n  timeoutSeconds: 5\n- <<: *base\n  name: b\n- name: c\n  endpoints: *e\n";
    run(text).unwrap_or_else(|e| panic!("{e}"));
    // A mistake in an anchored value is reported once, however often the value is repeated.
    let text = "services:\n- &base\n  name: a\n  endpoints: [h]\n- <<: *base\n  name: b\n";
    let diagnostics = run(text).expect_err("a mistake");
    assert_eq!(diagnostics.errors(), 1, "{diagnostics}");
    assert_eq!(
        (
            diagnostics.items()[0].location.line,
            diagnostics.items()[0].location.column
        ),
        (4, 15)
    );
    let text = "services:\n- <<: 5\n  name: b\n  endpoints: ['h:1']\n";
    assert_eq!(
        one_message(text),
        "only a mapping, or a list of mappings, can be merged"
    );
}

#[test]
fn a_syntax_error_hides_nothing_in_other_files() {
    let file = |path: &str, text: &str| SourceFile {
        path: path.into(),
        text: text.to_owned(),
    };
    let files = [file("a.yaml", "services: [\n"), file("b.yaml", "domian: x\n")];
    let diagnostics = load(&files, &|_| None).expect_err("mistakes");
    let places: Vec<String> = diagnostics
        .items()
        .iter()
        .map(|d| d.location.to_string())
        .collect();
    assert_eq!(places.len(), 2, "{diagnostics}");
    assert!(
        places[0].starts_with("a.yaml:") && places[1] == "b.yaml:1:1",
        "{diagnostics}"
    );
}

/// A value with every key of the schema, and one unknown key in each mapping.
fn everything(schema: &Value, root: &Value, objects: &mut Vec<BTreeSet<String>>) -> Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
        return everything(&root["$defs"][name], root, objects);
    }
    if let Some(properties) = schema["properties"].as_object() {
        assert_eq!(schema["additionalProperties"], false, "{schema}");
        objects.push(properties.keys().cloned().collect());
        let mut value = Map::new();
        for (key, property) in properties {
            assert!(property["description"].is_string(), "{key} has no description");
            value.insert(key.clone(), everything(property, root, objects));
        }
        value.insert("zzzzzzzzzz".into(), Value::Null);
        return Value::Object(value);
    }
    match schema["type"].as_str() {
        Some("array") => Value::Array(vec![everything(&schema["items"], root, objects)]),
        Some("object") => {
            let mut value = Map::new();
            value.insert(
                "x-a".into(),
                everything(&schema["additionalProperties"], root, objects),
            );
            Value::Object(value)
        }
        _ => Value::String("x".into()),
    }
}

#[test]
fn schema_and_decoder_know_the_same_keys() {
    let schema = schema();
    let mut objects = Vec::new();
    let value = everything(&schema, &schema, &mut objects);
    let diagnostics = run(&value.to_string()).expect_err("mistakes");
    let unknown: Vec<&Diagnostic> = diagnostics
        .items()
        .iter()
        .filter(|d| d.message.starts_with("unknown key"))
        .collect();
    for diagnostic in &unknown {
        assert_eq!(
            diagnostic.message, "unknown key 'zzzzzzzzzz'",
            "{}",
            diagnostic.path
        );
    }
    // The error of an unknown key lists the known ones.
    let mut known: Vec<BTreeSet<String>> = unknown
        .iter()
        .filter_map(|d| d.hint.as_ref()?.strip_prefix("known here: "))
        .map(|keys| {
            keys.split(", ")
                .filter(|k| !k.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .collect();
    known.sort();
    objects.sort();
    assert_eq!(known, objects);
}

#[test]
fn limits_of_http2_and_of_pace_are_checked() {
    for (key, wrong, hint) in [
        ("minBodyRate", "fast", "a size"),
        ("minBodyRate", "2TiB", "1TiB"),
        ("maxStreamResets", "-1", "maxStreamResets"),
        ("maxStreamResets", "1000001", "1000000"),
        ("maxControlFrames", "many", "maxControlFrames"),
        ("maxControlFrames", "1000001", "1000000"),
    ] {
        let text = format!("limits: {{{key}: {wrong}}}\nservices: []\n");
        let diagnostics = run(&text).expect_err(key).to_string();
        assert!(diagnostics.contains(hint), "{key}: {wrong}: {diagnostics}");
    }
    let none = "limits: {minBodyRate: 0, maxStreamResets: 0, maxControlFrames: 0}\nservices: []\n";
    let file = SourceFile {
        path: "f.yaml".into(),
        text: none.to_owned(),
    };
    let loaded = load(&[file], &|_| None).expect("0 is no limit");
    let limits = &loaded.snapshot.settings().limits;
    assert_eq!(
        (
            limits.min_body_rate,
            limits.max_stream_resets,
            limits.max_control_frames
        ),
        (None, None, None)
    );
}

#[test]
fn the_schema_says_which_draft_and_shows_defaults() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let limits = &schema["$defs"]["Limits"]["properties"];
    assert_eq!(limits["headerTimeout"]["default"], "10s");
    assert_eq!(limits["maxHeaderBytes"]["default"], "64KiB");
    assert_eq!(limits["maxConnections"]["default"], 50_000);
    let revision = &schema["$defs"]["Revision"];
    assert_eq!(revision["required"], serde_json::json!(["name"]));
    assert_eq!(revision["properties"]["protocol"]["default"], "http1");
    assert_eq!(
        revision["properties"]["responseStartTimeoutSeconds"]["default"],
        300
    );
}

#[test]
fn settings_of_tests_are_the_documented_defaults() {
    let file = SourceFile {
        path: "f.yaml".into(),
        text: "services: [{name: a, revisions: [{name: a-1, endpoints: ['127.0.0.1:1']}]}]\n".to_owned(),
    };
    let loaded = load(&[file], &|_| None).expect("is sound");
    let (settings, same) = (loaded.snapshot.settings(), test_util::settings());
    assert_eq!(settings.limits, same.limits);
    assert_eq!(
        (settings.queue, settings.drain, settings.dns_refresh),
        (same.queue, same.drain, same.dns_refresh)
    );
    let id = sluice_model::RevisionId::parse("default", "a-1").expect("a name");
    let (entry, slot) = loaded.snapshot.revision(&id).expect("is in it");
    let revision = &entry.service.revisions[slot].settings;
    let same = sluice_model::RevisionSettings {
        timeouts: revision.timeouts,
        ..test_util::revision_settings()
    };
    assert_eq!(**revision, same);
}
