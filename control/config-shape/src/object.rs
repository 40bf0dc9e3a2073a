//! Mappings with known keys: [`Record`] is the shape, [`Object`] the decoder's cursor over one mapping.
//!
//! A record's decode function asks the [`Object`] for every key that it knows. Run on a mapping it decodes; run on none it
//! lists the keys, which makes the JSON Schema ([`describe`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::diagnostic::Diagnostic;
use crate::shape::{Context, Definitions, List, Shape};
use crate::tree::{Content, NodeRef};

/// A mapping with known keys. Unknown, missing and repeated keys are errors.
pub struct Record<T> {
    /// The name of the JSON Schema in `$defs`.
    pub name: &'static str,
    /// The description in the JSON Schema.
    pub doc: &'static str,
    /// Asks the object for every key that the mapping may have, on every path: otherwise the schema lacks keys, and known
    /// keys are reported as unknown.
    pub decode: fn(&mut Object<'_>) -> Option<T>,
}

impl<T> fmt::Debug for Record<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<T> Shape for Record<T> {
    type Out = T;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<T> {
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
            // Inserted first, so that a recursive shape ends here.
            definitions.insert(self.name, Value::Null);
            let schema = describe(self.doc, self.decode, definitions);
            definitions.insert(self.name, schema);
        }
        json!({"$ref": format!("#/$defs/{}", self.name)})
    }
}

/// The JSON Schema of a mapping: the keys that `decode` asks for, with their shapes, descriptions and defaults.
pub fn describe<T>(
    doc: &str,
    decode: fn(&mut Object<'_>) -> Option<T>,
    definitions: &mut Definitions,
) -> Value {
    let mut discarded = Context::default();
    let mut object = Object::new(NodeRef::empty(), &[], &mut discarded);
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

/// The diagnostic of a key that one mapping has twice.
pub(crate) fn repeated(key: &NodeRef, first: &NodeRef) -> Diagnostic {
    let name = key.scalar().map(|s| s.shown()).unwrap_or_default();
    let diagnostic = key.error(format!("the key {name} is repeated"));
    diagnostic
        .hint("keep one of them")
        .related(first.location(), "it is here first")
}

/// The number of keys of the largest mapping, about: a service that is its own revision.
const ASKED: usize = 32;

/// The keys asked for so far, while a schema is made.
#[derive(Debug)]
struct Listing<'c> {
    definitions: &'c mut Definitions,
    properties: Map<String, Value>,
    required: Vec<&'static str>,
}

#[derive(Debug)]
struct Entry {
    key: NodeRef,
    value: NodeRef,
    used: bool,
}

/// The decoder's cursor over one mapping, or over the roots of several files as if they were one mapping.
#[derive(Debug)]
pub struct Object<'c> {
    /// The position for diagnostics about the mapping as a whole, such as a missing key.
    pub at: NodeRef,
    /// The diagnostics so far.
    pub cx: &'c mut Context,
    entries: Vec<Entry>,
    asked: Vec<&'static str>,
    /// Keys that are present in other mappings; see [`present_elsewhere`](Self::present_elsewhere).
    elsewhere: Vec<&'static str>,
    missing: Vec<&'static str>,
    misspelt: Vec<&'static str>,
    closed: bool,
    listing: Option<Listing<'c>>,
}

/// The keys of one mapping so far. A few are searched linearly, which is less work than hashing.
enum KnownKeys {
    Few,
    Many(HashMap<Arc<str>, usize>),
}

impl KnownKeys {
    const FEW: usize = 16;

    fn new(count: usize) -> Self {
        match count {
            0..=Self::FEW => Self::Few,
            _ => Self::Many(HashMap::with_capacity(count)),
        }
    }

    /// The entry with the same key among `entries`; `None` for a new key, which is to be the next entry.
    fn first<'e>(&mut self, key: &NodeRef, entries: &'e [Entry]) -> Option<&'e Entry> {
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
    /// A cursor over the entries of `mappings`; nodes that are no mappings count as empty. Reports keys that one mapping
    /// repeats.
    pub fn new(at: NodeRef, mappings: &[NodeRef], cx: &'c mut Context) -> Self {
        let mut entries = Vec::new();
        for mapping in mappings {
            let Content::Mapping(pairs) = mapping.content() else {
                continue;
            };
            entries.reserve(pairs.len());
            let own = entries.len();
            let mut known = KnownKeys::new(pairs.len());
            for &(key, value) in pairs {
                let (key, value) = (mapping.child(key), mapping.child(value));
                if key.scalar().is_none() {
                    continue;
                }
                if let Some(first) = known.first(&key, &entries[own..]) {
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

    /// Takes the keys and values of this name: several where several files have it.
    fn take(&mut self, key: &str) -> Vec<(NodeRef, NodeRef)> {
        let mut taken = Vec::new();
        for entry in &mut self.entries {
            if entry.key.scalar().is_some_and(|s| &*s.text == key) {
                entry.used = true;
                taken.push((entry.key.clone(), entry.value.clone()));
            }
        }
        taken
    }

    /// Decodes the value of a key that may be absent.
    pub fn optional<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S) -> Option<S::Out> {
        self.ask(key, doc, &shape, None);
        self.one(key, &shape)
    }

    /// Decodes the value of a key that may be absent; `default` is its value then. Also returns `default` after an error: the
    /// result is not used then, only checked further.
    pub fn or<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S, default: S::Out) -> S::Out {
        self.ask(key, doc, &shape, Some(&default));
        self.one(key, &shape).unwrap_or(default)
    }

    /// Decodes the value of a key that must be present. A missing one is reported by [`close`](Self::close).
    pub fn required<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S) -> Option<S::Out> {
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
                    .related(first.0.location(), "it is set here first"),
            );
        }
        shape.decode(&first.1, self.cx)
    }

    /// Decodes a list that is the concatenation of the lists of all files; `None` when no file has the key.
    pub fn list<S: Shape>(&mut self, key: &'static str, doc: &str, shape: S) -> Option<Vec<S::Out>> {
        let shape = List(shape);
        self.ask(key, doc, &shape, None);
        let found = self.take(key);
        if found.is_empty() {
            return None;
        }
        let lists = found.iter().filter_map(|(_, value)| shape.decode(value, self.cx));
        Some(lists.flatten().collect())
    }

    /// Whether the mapping has any key besides this one.
    pub fn has_other_than(&self, key: &str) -> bool {
        let mut names = self.entries.iter().filter_map(|e| e.key.scalar());
        names.any(|name| &*name.text != key)
    }

    /// Removes a key's entries, which somebody else decodes, so that they are not reported as unknown.
    pub fn remove(&mut self, key: &str) {
        self.entries
            .retain(|e| e.key.scalar().is_none_or(|name| &*name.text != key));
    }

    /// Marks a key as present in a mapping that is decoded apart, so that no unknown key is taken for a misspelling of it.
    pub fn present_elsewhere(&mut self, key: &'static str) {
        self.elsewhere.push(key);
    }

    /// Whether the key is present, whatever its value.
    pub fn has(&self, key: &str) -> bool {
        self.key(key).is_some()
    }

    /// The node of the key.
    pub fn key(&self, key: &str) -> Option<NodeRef> {
        let mut keys = self.entries.iter().map(|e| &e.key);
        keys.find(|k| k.scalar().is_some_and(|s| &*s.text == key))
            .cloned()
    }

    /// The node of the key's value, undecoded.
    pub fn value(&self, key: &str) -> Option<NodeRef> {
        let mut entries = self.entries.iter();
        let found = entries.find(|e| e.key.scalar().is_some_and(|s| &*s.text == key));
        found.map(|e| e.value.clone())
    }

    /// Whether the key, or a probable misspelling of it, is present. Misspellings are known after [`close`](Self::close).
    pub fn has_or_meant(&self, key: &str) -> bool {
        self.has(key) || self.misspelt.contains(&key)
    }

    /// The number of keys asked for so far; see [`asked_since`](Self::asked_since).
    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    /// The keys asked for after the first `count` ones.
    pub fn asked_since(&self, count: usize) -> Vec<&'static str> {
        self.asked[count..].to_vec()
    }

    /// Of keys that exclude each other, the first that is present in the file. A second one is reported.
    pub fn only_one_of(&mut self, keys: &[&'static str]) -> Option<&'static str> {
        // In the order of the file, so that the second one is reported.
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
                diagnostic = diagnostic.related(first.location(), "the other one");
            }
            self.cx.report(diagnostic);
        }
        Some(first)
    }

    /// Closes the object, then reports an error unless one of these keys, or a probable misspelling of one, is present.
    pub fn want_one_of(&mut self, keys: &[&'static str], message: &str, hint: &str) {
        self.close();
        if !keys.iter().any(|key| self.has_or_meant(key)) {
            let diagnostic = self.at.whole().error(message).hint(hint);
            self.cx.report(diagnostic);
        }
    }

    /// Reports unknown and missing keys. To be called after every key was asked for; further calls do nothing.
    pub fn close(&mut self) {
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
            // Beyond the bound of kept diagnostics only their count matters.
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

/// The candidate that `given` is probably a misspelling of: equal but for case and separators, or within a small edit
/// distance.
pub fn did_you_mean<'k>(given: &str, candidates: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if given.is_empty() || given.len() > 64 {
        return None;
    }
    let fold = |s: &str| s.replace(['-', '_', ' '], "").to_lowercase();
    let folded = fold(given);
    let distance = |known: &str| {
        let known = fold(known);
        let distance = strsim::osa_distance(&folded, &known);
        let allowed = (folded.len().min(known.len()) / 3).max(1);
        // A long name that is a prefix of the other: a word left out or added. `certificate` for `certFile` is not.
        let part =
            known.len() > 4 && folded.len() > 4 && (known.starts_with(&folded) || folded.starts_with(&known));
        (distance <= allowed || part).then_some(distance)
    };
    let scored = candidates.into_iter().filter_map(|c| Some((distance(c)?, c)));
    scored.min_by_key(|(distance, _)| *distance).map(|(_, c)| c)
}
