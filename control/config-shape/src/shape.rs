//! [`Shape`]: one description that decodes a value and gives its JSON Schema; lists and tables of shapes.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::flow::{MAX_QUOTED_BYTES, element, flow_list, words};
use crate::object::repeated;
use crate::tree::{Content, Located, NodeRef, Scalar};

/// The state of one decoding: the diagnostics so far.
#[derive(Debug, Default)]
pub struct Context {
    /// Diagnostics so far, in the order of decoding.
    pub diagnostics: Diagnostics,
}

impl Context {
    /// Adds a diagnostic.
    pub fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// The number of errors so far. Two equal readings mean that everything decoded between them is sound.
    pub fn errors(&self) -> usize {
        self.diagnostics.errors()
    }

    /// Reports a type error, `expected …, found …`. Reports nothing where the parser reported the node already.
    pub fn mismatch(&mut self, at: &NodeRef, expected: &str, hint: Option<String>) {
        if matches!(at.content(), Content::Broken) {
            return;
        }
        let mut diagnostic = at.error(format!("expected {expected}, found {}", at.found()));
        diagnostic.hint = hint;
        self.report(diagnostic);
    }
}

/// JSON Schemas by name, for `$defs`; each is written once.
pub type Definitions = BTreeMap<&'static str, Value>;

/// A description of a value: a decoder and a JSON Schema in one, so that neither can drift from the other.
pub trait Shape {
    /// The decoded value.
    type Out;

    /// Decodes a node. Returns `None` only after at least one error was reported.
    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out>;

    /// The JSON Schema of the accepted values. Named schemas go into `definitions`.
    fn schema(&self, definitions: &mut Definitions) -> Value;

    /// Renders a value as a file would have it, to show a default in the schema. `None`: no default is shown.
    fn show(&self, _value: &Self::Out) -> Option<Value> {
        None
    }
}

/// A shape whose values keep their position.
#[derive(Debug, Clone, Copy)]
pub struct WithLocation<S>(pub S);

impl<S: Shape> Shape for WithLocation<S> {
    type Out = Located<S::Out>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
        let value = self.0.decode(at, cx)?;
        Some(Located {
            value,
            node: at.clone(),
        })
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        self.0.schema(definitions)
    }
}

/// Anything at all: the value of a key that is known and not used.
#[derive(Debug, Clone, Copy)]
pub struct Anything;

impl Shape for Anything {
    type Out = ();

    fn decode(&self, _: &NodeRef, _: &mut Context) -> Option<()> {
        Some(())
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({})
    }
}

/// A shape in whose place null may stand, as in Kubernetes' objects.
#[derive(Debug, Clone, Copy)]
pub struct OrNull<S>(pub S);

impl<S: Shape> Shape for OrNull<S> {
    type Out = Option<S::Out>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
        match at.scalar().is_some_and(Scalar::is_null) {
            true => Some(None),
            false => self.0.decode(at, cx).map(Some),
        }
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        self.0.schema(definitions)
    }
}

/// A list. Elements that cannot be decoded are left out of the result.
#[derive(Debug, Clone, Copy)]
pub struct List<S>(pub S);

impl<S: Shape> Shape for List<S> {
    type Out = Vec<S::Out>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
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
    /// The hint for a scalar in place of a list: the list to write, if that is known to decode.
    fn in_brackets(&self, at: &NodeRef, scalar: &Scalar) -> Option<String> {
        let text = Some(scalar.written()).filter(|text| text.len() <= MAX_QUOTED_BYTES)?;
        let mut definitions = Definitions::new();
        let schema = self.0.schema(&mut definitions);
        let named = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next());
        if let Some(record) = named.and_then(|name| definitions.get(name)) {
            let key = only_key(record)?;
            let meant = !scalar.is_number() && scalar.as_bool().is_none();
            return meant.then(|| format!("write [{{{key}: {}}}]", element(text)));
        }
        let is_sound = |words: &[&str]| {
            let mut discarded = Context::default();
            let decoded = self.0.decode(at, &mut discarded);
            words.len() == 1 && decoded.is_some() && discarded.errors() == 0
        };
        // Before the text is split: a sound element may hold blanks or commas.
        let one = [text.trim()];
        let words = if is_sound(&one) { one.to_vec() } else { words(text) };
        if words.len() > 1 {
            return Some(format!("a list is written {}", flow_list(words)));
        }
        is_sound(&words).then(|| format!("a list of one is written {}", flow_list(words)))
    }
}

/// The required key of a mapping, where there is exactly one.
fn only_key(schema: &Value) -> Option<&str> {
    match schema["required"].as_array()?.as_slice() {
        [key] => key.as_str(),
        _ => None,
    }
}

/// A mapping with free keys, such as headers.
#[derive(Debug, Clone, Copy)]
pub struct Table<S> {
    /// Checks a key and returns its final form, or the error message.
    pub check: fn(&str) -> Result<String, String>,
    /// The shape of each value.
    pub values: S,
}

impl<S: Shape> Shape for Table<S> {
    type Out = BTreeMap<String, S::Out>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
        let Content::Mapping(entries) = at.content() else {
            cx.mismatch(at, "a mapping", None);
            return None;
        };
        let mut table = BTreeMap::new();
        let mut first: HashMap<String, NodeRef> = HashMap::new();
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
