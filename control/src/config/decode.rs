//! Decoding a tree without stopping at the first mistake.
//!
//! A [`Shape`] is a description that does two things: it decodes a value, and it says in JSON
//! Schema what it would accept. A mapping's shape is a function over an [`Object`] which asks for
//! every key it knows. Run on real values it decodes, run on nothing it lists the keys: that is how
//! decoder and schema cannot drift apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::diagnostic::{Diagnostic, Diagnostics};
use super::tree::{At, Content, Scalar, Spot};
use super::written::{LONGEST, element, list, words};

/// What decoding goes along with.
#[derive(Debug, Default)]
pub(crate) struct Context {
    /// What was found so far.
    pub(crate) diagnostics: Diagnostics,
}

impl Context {
    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// How many errors so far: two equal readings mean that what was between them is sound.
    pub(crate) fn errors(&self) -> usize {
        self.diagnostics.errors()
    }

    /// `expected …, found …`; silent where something was said already.
    pub(super) fn mismatch(&mut self, at: &Spot, expected: &str, hint: Option<String>) {
        if matches!(at.content(), Content::Broken) {
            return;
        }
        let mut diagnostic = at.error(format!("expected {expected}, found {}", at.found()));
        diagnostic.hint = hint;
        self.report(diagnostic);
    }
}

/// Named schemas, each written once.
pub(super) type Definitions = BTreeMap<&'static str, Value>;

/// What a value may look like, and what it becomes.
pub(crate) trait Shape {
    /// What it becomes.
    type Out;

    /// Decodes; `None` after at least one error was reported.
    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<Self::Out>;

    /// Its JSON Schema.
    fn schema(&self, definitions: &mut Definitions) -> Value;

    /// A value as the file would have it, to show defaults.
    fn show(&self, _value: &Self::Out) -> Option<Value> {
        None
    }
}

/// A shape whose values know where they stand.
pub(super) struct Located<S>(pub(super) S);

impl<S: Shape> Shape for Located<S> {
    type Out = At<S::Out>;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<Self::Out> {
        let value = self.0.decode(at, cx)?;
        Some(At {
            value,
            spot: at.clone(),
        })
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        self.0.schema(definitions)
    }
}

/// A list; elements that cannot be decoded are left out.
pub(super) struct List<S>(pub(super) S);

impl<S: Shape> Shape for List<S> {
    type Out = Vec<S::Out>;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<Self::Out> {
        let Content::List(items) = at.content() else {
            let written = at.scalar().filter(|s| !s.is_null());
            let hint = written.and_then(|scalar| self.in_brackets(at, scalar));
            cx.mismatch(at, "a list", hint);
            return None;
        };
        Some(
            items
                .iter()
                .filter_map(|&item| self.0.decode(&at.child(item), cx))
                .collect(),
        )
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        json!({"type": "array", "items": self.0.schema(definitions)})
    }
}

impl<S: Shape> List<S> {
    /// What to write in place of one text, if that is known to be right.
    fn in_brackets(&self, at: &Spot, scalar: &Scalar) -> Option<String> {
        let text = Some(scalar.written()).filter(|text| text.len() <= LONGEST)?;
        let mut definitions = Definitions::new();
        let schema = self.0.schema(&mut definitions);
        let named = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next());
        if let Some(record) = named.and_then(|name| definitions.get(name)) {
            let key = only_key(record)?;
            let meant = !scalar.is_number() && scalar.as_bool().is_none();
            return meant.then(|| format!("write [{{{key}: {}}}]", element(text)));
        }
        let words = words(text);
        if words.len() > 1 {
            return Some(format!("a list is written {}", list(words)));
        }
        let mut unheard = Context::default();
        let right = self.0.decode(at, &mut unheard).is_some() && unheard.errors() == 0;
        right.then(|| format!("a list of one is written {}", list(words)))
    }
}

/// The one key that a mapping must have.
fn only_key(schema: &Value) -> Option<&str> {
    match schema["required"].as_array()?.as_slice() {
        [key] => key.as_str(),
        _ => None,
    }
}

/// A mapping with keys of the writer's choice. `check` judges a key and gives its final form.
pub(super) struct Table<S> {
    pub(super) check: fn(&str) -> Result<String, String>,
    pub(super) values: S,
}

impl<S: Shape> Shape for Table<S> {
    type Out = BTreeMap<String, S::Out>;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<Self::Out> {
        let Content::Mapping(entries) = at.content() else {
            cx.mismatch(at, "a mapping", None);
            return None;
        };
        let mut table = BTreeMap::new();
        let mut first: HashMap<String, Spot> = HashMap::new();
        for &(key, value) in entries {
            let key = at.child(key);
            let Some(name) = key.scalar() else { continue };
            let checked = match (self.check)(&name.text) {
                Ok(checked) => checked,
                Err(message) => {
                    cx.report(key.error(message));
                    continue;
                }
            };
            if let Some(first) = first.get(&checked) {
                cx.report(repeated(&key, first));
                continue;
            }
            if let Some(value) = self.values.decode(&at.child(value), cx) {
                table.insert(checked.clone(), value);
            }
            first.insert(checked, key);
        }
        Some(table)
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        json!({"type": "object", "additionalProperties": self.values.schema(definitions)})
    }
}

/// A mapping with known keys.
pub(super) struct Record<T> {
    /// The schema's name.
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    /// Asks the object for every key that the mapping may have, whatever it finds.
    pub(super) decode: fn(&mut Object<'_>) -> Option<T>,
}

impl<T> Shape for Record<T> {
    type Out = T;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<T> {
        if !matches!(at.content(), Content::Mapping(_)) {
            cx.mismatch(at, "a mapping", None);
            return None;
        }
        let mut object = Object::new(at.clone(), std::slice::from_ref(at), cx);
        let out = (self.decode)(&mut object);
        object.close();
        out
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        if !definitions.contains_key(self.name) {
            // Claimed first, so that a shape that contains itself ends here.
            definitions.insert(self.name, Value::Null);
            let schema = describe(self.doc, self.decode, definitions);
            definitions.insert(self.name, schema);
        }
        json!({"$ref": format!("#/$defs/{}", self.name)})
    }
}

/// The schema of what `decode` asks for.
pub(super) fn describe<T>(
    doc: &str,
    decode: fn(&mut Object<'_>) -> Option<T>,
    definitions: &mut Definitions,
) -> Value {
    let mut unheard = Context::default();
    let nothing = super::nothing();
    let mut object = Object::new(nothing, &[], &mut unheard);
    object.listing = Some(Listing {
        definitions,
        properties: Map::new(),
        required: Vec::new(),
    });
    decode(&mut object);
    let listing = object.listing.take();
    let (properties, required) = listing.map(|l| (l.properties, l.required)).unwrap_or_default();
    let mut schema = json!({
        "type": "object",
        "description": doc,
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn repeated(key: &Spot, first: &Spot) -> Diagnostic {
    let name = key.scalar().map(|s| s.shown()).unwrap_or_default();
    let diagnostic = key.error(format!("the key {name} is repeated"));
    diagnostic
        .hint("keep one of them")
        .related(first.place(), "it is here first")
}

/// Keys that the largest mapping may have, about: a service that is its own revision.
const ASKED: usize = 32;

/// What is asked for, while a schema is made.
struct Listing<'c> {
    definitions: &'c mut Definitions,
    properties: Map<String, Value>,
    required: Vec<&'static str>,
}

struct Entry {
    key: Spot,
    value: Spot,
    used: bool,
}

/// A mapping that is being decoded: one, or the roots of several files as if they were one.
pub(crate) struct Object<'c> {
    /// Where to complain about what is missing.
    pub(crate) at: Spot,
    pub(crate) cx: &'c mut Context,
    entries: Vec<Entry>,
    asked: Vec<&'static str>,
    /// Keys that other mappings have.
    elsewhere: Vec<&'static str>,
    missing: Vec<&'static str>,
    misspelt: Vec<&'static str>,
    closed: bool,
    listing: Option<Listing<'c>>,
}

/// Keys of a mapping that were there before. Few are looked through: that is less than hashing them.
enum FirstOf {
    Few,
    Many(HashMap<Arc<str>, usize>),
}

impl FirstOf {
    const FEW: usize = 16;

    fn new(count: usize) -> Self {
        match count {
            0..=Self::FEW => Self::Few,
            _ => Self::Many(HashMap::with_capacity(count)),
        }
    }

    /// The entry with the same key among those so far; else this one is the next of them.
    fn of<'e>(&mut self, key: &Spot, entries: &'e [Entry]) -> Option<&'e Entry> {
        let text = &key.scalar()?.text;
        match self {
            Self::Few => entries
                .iter()
                .find(|entry| entry.key.scalar().is_some_and(|known| known.text == *text)),
            Self::Many(known) => match known.entry(Arc::clone(text)) {
                std::collections::hash_map::Entry::Occupied(first) => entries.get(*first.get()),
                std::collections::hash_map::Entry::Vacant(new) => {
                    new.insert(entries.len());
                    None
                }
            },
        }
    }
}

impl<'c> Object<'c> {
    pub(super) fn new(at: Spot, mappings: &[Spot], cx: &'c mut Context) -> Self {
        let mut entries = Vec::new();
        for mapping in mappings {
            let Content::Mapping(pairs) = mapping.content() else {
                continue;
            };
            entries.reserve(pairs.len());
            let own = entries.len();
            let mut first = FirstOf::new(pairs.len());
            for &(key, value) in pairs {
                let (key, value) = (mapping.child(key), mapping.child(value));
                if key.scalar().is_none() {
                    continue;
                }
                if let Some(first) = first.of(&key, &entries[own..]) {
                    cx.report(repeated(&key, &first.key));
                    continue;
                }
                entries.push(Entry {
                    key,
                    value,
                    used: false,
                });
            }
        }
        Self {
            at,
            cx,
            entries,
            asked: Vec::with_capacity(ASKED),
            elsewhere: Vec::new(),
            missing: Vec::new(),
            misspelt: Vec::new(),
            closed: false,
            listing: None,
        }
    }

    fn ask<S: Shape>(&mut self, key: &'static str, doc: &str, shape: &S, default: Option<&S::Out>) {
        self.asked.push(key);
        let Some(listing) = &mut self.listing else { return };
        let mut schema = shape.schema(listing.definitions);
        schema["description"] = json!(doc);
        if let Some(default) = default.and_then(|d| shape.show(d)) {
            schema["default"] = default;
        }
        listing.properties.insert(key.to_owned(), schema);
    }

    /// The values under a key; several where several files have it.
    fn take(&mut self, key: &str) -> Vec<(Spot, Spot)> {
        let mut taken = Vec::new();
        for entry in &mut self.entries {
            if entry.key.scalar().is_some_and(|s| &*s.text == key) {
                entry.used = true;
                taken.push((entry.key.clone(), entry.value.clone()));
            }
        }
        taken
    }

    /// A key that may be absent.
    pub(super) fn optional<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S) -> Option<S::Out> {
        self.ask(key, doc, &shape, None);
        self.one(key, &shape)
    }

    /// A key that may be absent and then has this value. Also after a mistake: what is decoded is
    /// not used then, only checked further.
    pub(super) fn or<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S, default: S::Out) -> S::Out {
        self.ask(key, doc, &shape, Some(&default));
        self.one(key, &shape).unwrap_or(default)
    }

    /// A key that must be there.
    pub(super) fn required<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S) -> Option<S::Out> {
        self.ask(key, doc, &shape, None);
        if let Some(listing) = &mut self.listing {
            listing.required.push(key);
        }
        if !self.has(key) {
            self.missing.push(key);
        }
        self.one(key, &shape)
    }

    fn one<S: Shape>(&mut self, key: &'static str, shape: &S) -> Option<S::Out> {
        let found = self.take(key);
        let (first, others) = found.split_first()?;
        for (again, _) in others {
            let diagnostic = again.error(format!("the key '{key}' is set in two places"));
            self.cx.report(
                diagnostic
                    .hint("only lists of several files add up: keep one of them")
                    .related(first.0.place(), "it is set here first"),
            );
        }
        shape.decode(&first.1, self.cx)
    }

    /// A list to which every file adds.
    pub(super) fn list<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S) -> Option<Vec<S::Out>> {
        let shape = List(shape);
        self.ask(key, doc, &shape, None);
        let found = self.take(key);
        if found.is_empty() {
            return None;
        }
        let lists = found.iter().filter_map(|(_, value)| shape.decode(value, self.cx));
        Some(lists.flatten().collect())
    }

    /// Whether there is any other key.
    pub(super) fn has_other_than(&self, key: &str) -> bool {
        let mut names = self.entries.iter().filter_map(|e| e.key.scalar());
        names.any(|name| &*name.text != key)
    }

    /// Leaves a key out: something else reads it.
    pub(super) fn forget(&mut self, key: &str) {
        self.entries
            .retain(|e| e.key.scalar().is_none_or(|name| &*name.text != key));
    }

    /// Counts a key as there, with nothing of interest under it.
    pub(super) fn has_elsewhere(&mut self, key: &'static str) {
        self.elsewhere.push(key);
    }

    /// Whether the key is there, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.key(key).is_some()
    }

    /// Where the key stands.
    pub(super) fn key(&self, key: &str) -> Option<Spot> {
        let mut keys = self.entries.iter().map(|e| &e.key);
        keys.find(|k| k.scalar().is_some_and(|s| &*s.text == key))
            .cloned()
    }

    /// The value under a key, undecoded.
    pub(super) fn value(&self, key: &str) -> Option<Spot> {
        let mut entries = self.entries.iter();
        let found = entries.find(|e| e.key.scalar().is_some_and(|s| &*s.text == key));
        found.map(|e| e.value.clone())
    }

    /// Whether the key is there, or something that was probably meant to be it. Complete once
    /// [`close`](Self::close)d.
    pub(super) fn has_or_meant(&self, key: &str) -> bool {
        self.has(key) || self.misspelt.contains(&key)
    }

    /// How many keys were asked for; see [`asked_since`](Self::asked_since).
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// The keys asked for after that.
    pub(super) fn asked_since(&self, count: usize) -> Vec<&'static str> {
        self.asked[count..].to_vec()
    }

    /// The first of several keys, of which only one may be there. More than one is reported.
    pub(super) fn only_one_of(&mut self, keys: &[&'static str]) -> Option<&'static str> {
        // In the order of the file, so that the second one is complained about.
        let mut there = self.entries.iter().filter_map(|entry| {
            let name = &*entry.key.scalar()?.text;
            keys.iter().copied().find(|key| *key == name)
        });
        let first = there.next()?;
        let second = there.next();
        if let Some(second) = second {
            let at = self.key(second).unwrap_or_else(|| self.at.clone());
            let mut diagnostic = at
                .error(format!("'{first}' and '{second}' exclude each other"))
                .hint(format!("keep one of {}", keys.join(", ")));
            if let Some(first) = self.key(first) {
                diagnostic = diagnostic.related(first.place(), "the other one");
            }
            self.cx.report(diagnostic);
        }
        Some(first)
    }

    /// Reports one of several keys as missing, unless one was probably meant.
    pub(super) fn want_one_of(&mut self, keys: &[&'static str], message: &str, hint: &str) {
        self.close();
        if !keys.iter().any(|key| self.has_or_meant(key)) {
            let diagnostic = self.at.whole().error(message).hint(hint);
            self.cx.report(diagnostic);
        }
    }

    /// Reports unknown and missing keys. Called once everything was asked for; again it does
    /// nothing.
    pub(super) fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let there = |known: &&str| {
            let mut names = self.entries.iter().filter_map(|e| e.key.scalar());
            self.elsewhere.contains(known) || names.any(|name| &*name.text == *known)
        };
        let unknown = self.entries.iter().any(|e| !e.used);
        let asked = self
            .asked
            .iter()
            .copied()
            .filter(|known| unknown && !there(known));
        let free: Vec<&'static str> = asked.collect();
        for entry in self.entries.iter().filter(|e| !e.used) {
            let Some(name) = entry.key.scalar() else { continue };
            // Past what is kept only the count matters.
            let full = self.cx.diagnostics.is_full();
            let meant = did_you_mean(&name.text, free.iter().copied().filter(|_| !full));
            let hint = match meant {
                Some(known) => format!("did you mean '{known}'?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            self.misspelt.extend(meant);
            let message = format!("unknown key {}", name.shown());
            self.cx.report(entry.key.error(message).hint(hint));
        }
        for &key in &self.missing {
            if !self.misspelt.contains(&key) {
                let message = format!("the key '{key}' is missing");
                self.cx.report(self.at.whole().error(message));
            }
        }
    }
}

/// The candidate that was probably meant: the same but for case and separators, or a typo away.
pub(crate) fn did_you_mean<'k>(
    given: &str,
    candidates: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    if given.is_empty() || given.len() > 64 {
        return None;
    }
    let fold = |s: &str| s.replace(['-', '_', ' '], "").to_lowercase();
    let folded = fold(given);
    let distance = |known: &str| {
        let known = fold(known);
        let distance = strsim::osa_distance(&folded, &known);
        let allowed = (folded.len().min(known.len()) / 3).max(1);
        // A word left out or added in a long name: `certificate` for `certFile` is none.
        let part =
            known.len() > 4 && folded.len() > 4 && (known.starts_with(&folded) || folded.starts_with(&known));
        (distance <= allowed || part).then_some(distance)
    };
    let scored = candidates.into_iter().filter_map(|c| Some((distance(c)?, c)));
    scored.min_by_key(|(distance, _)| *distance).map(|(_, c)| c)
}
