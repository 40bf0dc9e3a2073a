//! Bounds of the parser, and the agreement of decoder and schema, on a small format.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[derive(Debug, Default, PartialEq)]
struct Item {
    name: String,
    timeout: Duration,
    bytes: u64,
    share: u32,
    labels: BTreeMap<String, String>,
    words: Vec<String>,
}

const WORD: Parsed<String> = Parsed {
    what: "a word",
    parse: |text, _| match text.contains([' ', ',']) {
        true => Err(ParseError::with_hint("it has blanks", "write one word")),
        false => Ok(text.to_owned()),
    },
};

const ITEM: Record<Item> = Record {
    name: "Item",
    doc: "One item.",
    decode: |o| {
        let name = o.required("name", "Its name.", WORD);
        let item = Item {
            name: String::new(),
            timeout: o.or(
                "timeout",
                "How long.",
                DurationRange::POSITIVE,
                Duration::from_secs(5),
            ),
            bytes: o.or("bytes", "How large.", Size { min: 0, max: 1 << 20 }, 1 << 10),
            share: o.optional("share", "How much.", Percentage).unwrap_or_default(),
            labels: o.optional("labels", "Free keys.", LABELS).unwrap_or_default(),
            words: o.optional("words", "Some words.", List(WORD)).unwrap_or_default(),
        };
        Some(Item { name: name?, ..item })
    },
};

const LABELS: Table<Verbatim> = Table {
    check: |key| match key.is_empty() {
        true => Err("a label has no name".to_owned()),
        false => Ok(key.to_lowercase()),
    },
    values: Verbatim,
};

fn root(o: &mut Object<'_>) -> Option<Vec<Item>> {
    o.list("items", "All items.", ITEM)
}

fn run_files(files: &[(&str, &str)]) -> (Vec<Item>, Diagnostics) {
    let mut cx = Context::default();
    let variables = Variables::new(&|name| (name == "SECRET").then(|| "12".to_owned()));
    let mut roots = Vec::new();
    for (path, text) in files {
        roots.extend(parse(Path::new(path), text, &variables, &mut cx.diagnostics));
    }
    let whole = roots.first().cloned().unwrap_or_else(NodeRef::empty);
    let mut object = Object::new(whole, &roots, &mut cx);
    let items = root(&mut object);
    object.close();
    (items.unwrap_or_default(), cx.diagnostics)
}

fn run(text: &str) -> (Vec<Item>, Diagnostics) {
    run_files(&[("f.yaml", text)])
}

fn messages(text: &str) -> Vec<String> {
    let diagnostics = run(text).1;
    diagnostics.into_iter().map(|d| d.message).collect()
}

#[test]
fn values_have_units_ranges_and_defaults() {
    let text = "items: [{name: a, timeout: 1m30s, bytes: 64KiB, share: 33.3, labels: {X: 5}, words: [b]}]";
    let (items, diagnostics) = run(text);
    assert!(diagnostics.is_empty(), "{diagnostics}");
    let want = Item {
        name: "a".to_owned(),
        timeout: Duration::from_secs(90),
        bytes: 64 << 10,
        share: 3_330,
        labels: BTreeMap::from([("x".to_owned(), "5".to_owned())]),
        words: vec!["b".to_owned()],
    };
    assert_eq!(items, [want]);
    let (items, _) = run("items: [{name: a}]");
    assert_eq!(
        (items[0].timeout, items[0].bytes),
        (Duration::from_secs(5), 1 << 10)
    );
}

#[test]
fn every_mistake_has_a_position_and_none_hides_another() {
    let text =
        "items:\n- nmae: a\n  timeout: 5\n- name: b\n  bytes: 2MiB\n  share: 101\n  name: c\nitmes: []\n";
    let (items, diagnostics) = run(text);
    assert_eq!(items.len(), 1, "the second item is decoded for further checks");
    let shown: Vec<_> = diagnostics
        .items()
        .iter()
        .map(|d| format!("{}:{} {}", d.location.line, d.location.column, d.message))
        .collect();
    assert_eq!(
        shown,
        [
            "3:12 expected a duration such as 250ms, 10s, 5m or 1h, found the number '5'",
            "2:3 unknown key 'nmae'",
            "7:3 the key 'name' is repeated",
            "5:10 '2MiB' is not between 0 and 1MiB",
            "6:10 '101' is not between 0 and 100",
            "8:1 unknown key 'itmes'",
        ]
    );
    assert_eq!(
        diagnostics.items()[1].hint.as_deref(),
        Some("did you mean 'name'?")
    );
}

#[test]
fn a_scalar_in_place_of_a_list_gets_the_list_to_write() {
    for (text, hint) in [
        ("items: [{name: a, words: b}]", "a list of one is written [b]"),
        ("items: [{name: a, words: 'b, c'}]", "a list is written [b, c]"),
        ("items: a", "write [{name: a}]"),
    ] {
        let diagnostics = run(text).1;
        assert_eq!(diagnostics.items()[0].hint.as_deref(), Some(hint), "{text}");
    }
}

#[test]
fn lists_of_several_files_add_up_and_other_keys_are_set_once() {
    let (items, diagnostics) =
        run_files(&[("a.yaml", "items: [{name: a}]"), ("b.yaml", "items: [{name: b}]")]);
    assert!(diagnostics.is_empty() && items.len() == 2, "{diagnostics}");
    let mut cx = Context::default();
    let roots: Vec<_> = ["name: a", "name: b"]
        .into_iter()
        .flat_map(|text| parse(Path::new("f"), text, &Variables::none(), &mut cx.diagnostics))
        .collect();
    let mut object = Object::new(roots[0].clone(), &roots, &mut cx);
    object.required("name", "", WORD);
    object.close();
    assert_eq!(
        cx.diagnostics.items()[0].message,
        "the key 'name' is set in two places"
    );
}

#[test]
fn variables_are_data_and_are_shown_by_name() {
    let (items, diagnostics) = run("items: [{name: '${X:-a}', share: '${SECRET}'}]");
    assert!(diagnostics.is_empty(), "{diagnostics}");
    assert_eq!((items[0].name.as_str(), items[0].share), ("a", 1_200));
    assert_eq!(
        messages("items: [{name: a, bytes: '${SECRET}kB'}]"),
        ["expected a size such as 64KiB, 1GiB or a number of bytes, found the text '${SECRET}kB'"]
    );
}

#[test]
fn anchors_aliases_and_merge_keys_are_resolved() {
    let (items, diagnostics) =
        run("items:\n- &base {name: a, words: &w [x]}\n- {<<: *base, name: b}\n- {name: c, words: *w}\n");
    assert!(diagnostics.is_empty(), "{diagnostics}");
    assert!(items.iter().all(|item| item.words == ["x"]));
    assert_eq!(
        messages("items: [{<<: 5, name: a}]"),
        ["only a mapping, or a list of mappings, can be merged"]
    );
}

#[test]
fn repeated_diagnostics_of_an_alias_become_one() {
    let (_, mut diagnostics) = run("items:\n- &base {name: a, timeout: 5}\n- {<<: *base, name: b}\n");
    assert_eq!(diagnostics.errors(), 2);
    diagnostics.sort_and_dedup(|_| 0);
    assert_eq!((diagnostics.errors(), diagnostics.items().len()), (1, 1));
}

#[test]
fn alias_bombs_are_refused() {
    let mut bomb = String::from("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..10 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("b{i}: &a{i} [{aliases}]\n"));
    }
    assert_eq!(messages(&bomb), ["aliases repeat more than 200000 values"]);
}

#[test]
fn depth_is_bounded() {
    let deep = "[".repeat(10_000);
    assert_eq!(run(&format!("a: {deep}")).1.errors(), 1);
    let mut chain = String::from("a0: &a0 [x]\n");
    for i in 1..200 {
        chain.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    assert_eq!(messages(&chain), ["aliases nest values more than 64 deep"]);
    assert_eq!(
        messages("a: &a [*a]"),
        ["this alias stands for a value that contains it"]
    );
}

#[test]
fn size_is_bounded() {
    let big = "#".repeat((32 << 20) + 1);
    assert_eq!(messages(&big), ["the file is larger than 32 MiB"]);
}

#[test]
fn kept_diagnostics_are_bounded_and_all_are_counted() {
    let many: String = (0..50_000).map(|i| format!("key{i}: x\n")).collect();
    let diagnostics = run(&many).1;
    assert_eq!((diagnostics.items().len(), diagnostics.errors()), (1_000, 50_000));
    assert!(diagnostics.to_string().ends_with("and 49000 errors more"));
}

#[test]
fn the_schema_has_the_keys_descriptions_and_defaults_of_the_decoder() {
    let mut definitions = Definitions::new();
    let schema = describe("Everything.", root, &mut definitions);
    assert_eq!(schema["properties"]["items"]["items"]["$ref"], "#/$defs/Item");
    let item = &definitions["Item"];
    assert_eq!(item["additionalProperties"], false);
    assert_eq!(item["required"], json!(["name"]));
    let properties = item["properties"].as_object().unwrap();
    let keys: Vec<_> = properties.keys().map(String::as_str).collect();
    assert_eq!(keys, ["bytes", "labels", "name", "share", "timeout", "words"]);
    assert_eq!(properties["timeout"]["default"], "5s");
    assert_eq!(properties["bytes"]["default"], "1KiB");
    assert_eq!(properties["timeout"]["description"], "How long.");
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let (_, diagnostics) = run(&text);
        prop_assert!(diagnostics.to_string().is_empty() == diagnostics.is_empty());
    }

    #[test]
    fn arbitrary_text_within_a_document_never_panics(text in "[\\[\\]{},:&*!<>|?'\"#a-c0-9$ \n-]{0,60}") {
        let (_, diagnostics) = run(&format!("items:\n- name: a\n  words: {text}\n  labels: {{{text}}}\n"));
        for item in diagnostics.items() {
            prop_assert!(!item.message.is_empty() && item.location.line > 0);
        }
    }
}
