//! The syntax tree of a parsed file: every node has a position.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::expand::DeferredText;

/// A node's index in its [`Tree`].
pub(crate) type NodeId = u32;

/// One step of a path: how a node is reached from its parent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Segment {
    /// The root of a document.
    Root,
    /// The value of this key; a key node names itself.
    Key(NodeId),
    /// The element of a list with this index.
    Index(u32),
}

/// A scalar with its variables expanded.
#[derive(Debug, Clone)]
pub struct Scalar {
    /// The text after expansion. Shared, so that an alias copies a pointer.
    pub(crate) text: Arc<str>,
    /// Whether the text may be a number, a boolean or null: it was not quoted, or a variable was expanded in it.
    pub(crate) plain: bool,
    /// The text before expansion where expansion changed it. Diagnostics show this one, because variables hold secrets.
    pub(crate) raw: Option<Arc<str>>,
    /// The text for a later, second expansion; `None` when the scalar has no `${`.
    pub(crate) deferred: Option<Arc<DeferredText>>,
}

/// The content of a node.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<NodeId>),
    Mapping(Vec<(NodeId, NodeId)>),
    /// Unreadable; the parser reported it already.
    Broken,
}

/// A node of the tree.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) parent: NodeId,
    pub(crate) segment: Segment,
    pub(crate) content: Content,
}

/// A parsed file.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The path as given by the caller.
    pub(crate) file: PathBuf,
    pub(crate) nodes: Vec<Node>,
    /// The root of each document in the file.
    pub(crate) roots: Vec<NodeId>,
}

/// A node in its tree. Cheap to clone: decoded values keep one for later checks.
#[derive(Clone)]
pub struct NodeRef {
    tree: Arc<Tree>,
    node: NodeId,
}

impl NodeRef {
    pub(crate) fn new(tree: &Arc<Tree>, node: NodeId) -> Self {
        Self {
            tree: Arc::clone(tree),
            node,
        }
    }

    /// An empty mapping without a position, in place of an absent document.
    pub fn empty() -> Self {
        let tree = Tree {
            file: PathBuf::new(),
            nodes: vec![Node {
                line: 0,
                column: 0,
                parent: 0,
                segment: Segment::Root,
                content: Content::Mapping(Vec::new()),
            }],
            roots: vec![0],
        };
        Self::new(&Arc::new(tree), 0)
    }

    fn raw(&self) -> &Node {
        &self.tree.nodes[self.node as usize]
    }

    pub(crate) fn content(&self) -> &Content {
        &self.raw().content
    }

    /// Whether the node is a mapping.
    pub fn is_mapping(&self) -> bool {
        matches!(self.content(), Content::Mapping(_))
    }

    /// The number of elements, if the node is a list.
    pub fn list_len(&self) -> Option<usize> {
        match self.content() {
            Content::List(items) => Some(items.len()),
            _ => None,
        }
    }

    /// The scalar, if the node is one.
    pub fn scalar(&self) -> Option<&Scalar> {
        match self.content() {
            Content::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// A digest of the node's content, with the values of variables, the same in every process: FNV-1a. Comments, positions
    /// and quotes do not count; the order of keys does.
    pub fn digest(&self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325;
        self.digest_into(&mut digest);
        digest
    }

    fn digest_into(&self, digest: &mut u64) {
        let mut add = |bytes: &[u8]| {
            // A byte that UTF-8 has not ends a text.
            for byte in bytes.iter().chain(&[0xff]) {
                *digest = (*digest ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        match self.content() {
            Content::Scalar(scalar) => add(scalar.text.as_bytes()),
            Content::Broken => add(b"?"),
            Content::List(items) => {
                add(b"[");
                items
                    .iter()
                    .for_each(|item| self.child(*item).digest_into(digest));
            }
            Content::Mapping(entries) => {
                add(b"{");
                for (key, value) in entries {
                    self.child(*key).digest_into(digest);
                    self.child(*value).digest_into(digest);
                }
            }
        }
    }

    /// The elements, if the node is a list.
    pub fn items(&self) -> impl Iterator<Item = Self> {
        let items: &[NodeId] = match self.content() {
            Content::List(items) => items,
            _ => &[],
        };
        items.iter().map(|item| self.child(*item))
    }

    /// The keys and values, if the node is a mapping; a repeated key more than once.
    pub fn entries(&self) -> impl Iterator<Item = (Self, Self)> {
        let entries: &[(NodeId, NodeId)] = match self.content() {
            Content::Mapping(entries) => entries,
            _ => &[],
        };
        entries
            .iter()
            .map(|(key, value)| (self.child(*key), self.child(*value)))
    }

    /// The value of this key, if the node is a mapping that has it: the first one where the key is repeated.
    pub fn get(&self, key: &str) -> Option<Self> {
        let has_name = |node: &Self| node.scalar().is_some_and(|name| &*name.text == key);
        self.entries()
            .find(|(name, _)| has_name(name))
            .map(|(_, value)| value)
    }

    pub(crate) fn child(&self, node: NodeId) -> Self {
        Self::new(&self.tree, node)
    }

    /// The directory of the node's file: the base of relative paths. Absolute, so that later uses do not depend on the
    /// working directory.
    pub fn directory(&self) -> PathBuf {
        let file = &self.tree.file;
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        absolute.parent().unwrap_or_else(|| Path::new("/")).to_owned()
    }

    /// The node's position.
    pub fn location(&self) -> Location {
        let node = self.raw();
        Location {
            file: self.tree.file.clone(),
            line: node.line,
            column: node.column,
        }
    }

    /// The node's key, or the node itself when it has none: the position for a diagnostic about a whole list or mapping.
    pub fn whole(&self) -> Self {
        match self.raw().segment {
            Segment::Key(key) => self.child(key),
            _ => self.clone(),
        }
    }

    /// The path of keys and indices from the document's root: `services[0].name`.
    pub fn path(&self) -> String {
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

    /// An error at this node.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            location: self.location(),
            path: self.path(),
            message: message.into(),
            hint: None,
            related: Vec::new(),
        }
    }

    /// The node's content, for `expected …, found …`.
    pub(crate) fn found(&self) -> String {
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

impl fmt::Debug for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.location())
    }
}

/// Appends a key to a path, quoted unless it is a word, so that paths are unambiguous.
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

/// A text in single quotes for a message: cut after 60 characters, control characters escaped.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    // escape_debug escapes the quotes of both kinds; only ours would confuse.
    format!("'{}'", shown.replace("\\\"", "\""))
}

impl Scalar {
    /// The text after expansion of variables.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether expansion of variables changed the text.
    pub fn is_expanded(&self) -> bool {
        self.raw.is_some()
    }

    /// The text for a later, second expansion; `None` when the scalar has no `${`.
    pub fn deferred(&self) -> Option<&DeferredText> {
        self.deferred.as_deref()
    }

    /// Whether the scalar may be a number, a boolean or null: it was not quoted, or a variable was expanded in it.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Whether YAML's core schema reads the scalar as null. The empty value of a variable is none.
    pub fn is_null(&self) -> bool {
        self.plain && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL") && self.raw.is_none()
    }

    /// The boolean that YAML's core schema reads the scalar as.
    pub fn as_bool(&self) -> Option<bool> {
        match &*self.text {
            "true" | "True" | "TRUE" if self.plain => Some(true),
            "false" | "False" | "FALSE" if self.plain => Some(false),
            _ => None,
        }
    }

    /// Whether YAML's core schema reads the scalar as a number.
    pub fn is_number(&self) -> bool {
        let text = self.text.trim_start_matches(['+', '-']);
        let digit = text
            .trim_start_matches('.')
            .starts_with(|c: char| c.is_ascii_digit());
        self.plain && digit && text.parse::<f64>().is_ok()
    }

    /// The text as in the file, variables by name; for hints.
    pub fn written(&self) -> &str {
        self.raw.as_deref().unwrap_or(&self.text)
    }

    /// The text for messages: as in the file, variables by name, and [`quoted`].
    pub fn shown(&self) -> String {
        quoted(self.written())
    }
}

/// A decoded value with its position.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// The node that the value was decoded from.
    pub node: NodeRef,
}
