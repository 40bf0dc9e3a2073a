//! A parsed file as a tree in which every value knows where it stands.
//!
//! serde's derive stops at the first mistake and forgets positions; people want all mistakes at
//! once. So decoding walks this tree instead.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diagnostic::{Diagnostic, Place, Severity};

/// A node's index in its [`Tree`].
pub(super) type NodeId = u32;

/// How a node is reached from its parent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Segment {
    /// It is a document's root.
    Root,
    /// Under this key; a key node names itself.
    Key(NodeId),
    /// At this place of a list.
    Index(u32),
}

/// A scalar, with variables expanded.
#[derive(Debug, Clone)]
pub(super) struct Scalar {
    /// The text after expansion. Shared, so that an alias copies a pointer.
    pub(super) text: Arc<str>,
    /// Whether the text may be a number, a boolean or null: it was not quoted, or a variable was
    /// expanded in it.
    pub(super) plain: bool,
    /// The text before expansion where that differs: what diagnostics show, because variables
    /// hold secrets.
    pub(super) raw: Option<Arc<str>>,
    /// What of it matters where it is expanded again, for each instance.
    pub(super) again: Option<Arc<super::expand::Again>>,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A scalar.
    Scalar(Scalar),
    /// A list.
    List(Vec<NodeId>),
    /// Keys and values.
    Mapping(Vec<(NodeId, NodeId)>),
    /// Something about which a diagnostic was given already.
    Broken,
}

/// One node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) parent: NodeId,
    pub(super) segment: Segment,
    pub(super) content: Content,
}

/// A parsed file.
#[derive(Debug)]
pub(super) struct Tree {
    /// As it was named.
    pub(super) file: PathBuf,
    pub(super) nodes: Vec<Node>,
    /// One for each document in the file.
    pub(super) roots: Vec<NodeId>,
}

/// A node in its tree. Cheap to clone: everything decoded keeps one for later checks.
#[derive(Clone)]
pub(crate) struct Spot {
    tree: Arc<Tree>,
    node: NodeId,
}

impl Spot {
    pub(super) fn new(tree: &Arc<Tree>, node: NodeId) -> Self {
        Self {
            tree: Arc::clone(tree),
            node,
        }
    }

    fn get(&self) -> &Node {
        &self.tree.nodes[self.node as usize]
    }

    pub(super) fn content(&self) -> &Content {
        &self.get().content
    }

    pub(super) fn scalar(&self) -> Option<&Scalar> {
        match self.content() {
            Content::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub(super) fn child(&self, node: NodeId) -> Self {
        Self::new(&self.tree, node)
    }

    /// What relative paths are relative to. Absolute, so that what is started later does not depend on where
    /// the gateway was started.
    pub(super) fn directory(&self) -> PathBuf {
        let file = &self.tree.file;
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        absolute.parent().unwrap_or_else(|| Path::new("/")).to_owned()
    }

    /// Where it stands.
    pub(crate) fn place(&self) -> Place {
        let node = self.get();
        Place {
            file: self.tree.file.clone(),
            line: node.line,
            column: node.column,
        }
    }

    /// The key it stands under, or itself: where a list or mapping is complained about as a whole.
    pub(crate) fn whole(&self) -> Self {
        match self.get().segment {
            Segment::Key(key) => self.child(key),
            _ => self.clone(),
        }
    }

    /// The place in terms of the configuration.
    pub(crate) fn path(&self) -> String {
        let mut segments = Vec::new();
        let mut at = self.node;
        loop {
            let node = &self.tree.nodes[at as usize];
            match node.segment {
                Segment::Root => break,
                segment => segments.push(segment),
            }
            at = node.parent;
        }
        let mut path = String::new();
        for segment in segments.into_iter().rev() {
            match segment {
                Segment::Index(i) => path.push_str(&format!("[{i}]")),
                Segment::Key(key) => {
                    let key = match &self.tree.nodes[key as usize].content {
                        Content::Scalar(key) => &*key.text,
                        _ => "?",
                    };
                    push_key(&mut path, key);
                }
                Segment::Root => {}
            }
        }
        path
    }

    /// An error here.
    pub(crate) fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            place: self.place(),
            path: self.path(),
            message: message.into(),
            hint: None,
            related: Vec::new(),
        }
    }

    /// What is here, for `expected …, found …`.
    pub(super) fn found(&self) -> String {
        match self.content() {
            Content::List(_) => "a list".to_owned(),
            Content::Mapping(_) => "a mapping".to_owned(),
            Content::Broken => "something unreadable".to_owned(),
            Content::Scalar(s) if s.is_null() => "nothing".to_owned(),
            Content::Scalar(s) => {
                let what = if s.raw.is_some() || !s.plain {
                    "the text"
                } else if s.as_bool().is_some() {
                    "the boolean"
                } else if s.is_number() {
                    "the number"
                } else {
                    "the text"
                };
                format!("{what} {}", s.shown())
            }
        }
    }
}

impl fmt::Debug for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place())
    }
}

/// Keys that are no words are quoted, so that a path reads unambiguously.
fn push_key(path: &mut String, key: &str) {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.len() <= 64 && key.chars().all(word) {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    } else {
        path.push_str(&format!("[{}]", quoted(key)));
    }
}

/// A text in quotes, cut short when long, without control characters.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    // escape_debug escapes the quotes of both kinds; only ours would confuse.
    format!("'{}'", shown.replace("\\\"", "\""))
}

impl Scalar {
    pub(super) fn is_null(&self) -> bool {
        self.plain && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL") && self.raw.is_none()
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match &*self.text {
            "true" | "True" | "TRUE" if self.plain => Some(true),
            "false" | "False" | "FALSE" if self.plain => Some(false),
            _ => None,
        }
    }

    /// Whether YAML's core schema reads it as a number.
    pub(super) fn is_number(&self) -> bool {
        let text = self.text.trim_start_matches(['+', '-']);
        let digit = text
            .trim_start_matches('.')
            .starts_with(|c: char| c.is_ascii_digit());
        self.plain && digit && text.parse::<f64>().is_ok()
    }

    /// The text as it is in the file, variables by name; for hints.
    pub(super) fn written(&self) -> &str {
        self.raw.as_deref().unwrap_or(&self.text)
    }

    /// The text as diagnostics show it: quoted, and with variables by name.
    pub(super) fn shown(&self) -> String {
        quoted(self.written())
    }
}

/// A decoded value that knows where it stands.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) spot: Spot,
}
