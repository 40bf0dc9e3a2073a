//! The YAML parser: events of `granit-parser` into a [`Tree`]. Aliases, merge keys and variables are resolved here, and size,
//! depth and the number of values are bounded.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::diagnostic::{Diagnostic, Diagnostics, Location, Severity};
use crate::expand::{DeferredText, Variables, expand};
use crate::tree::{Content, Node, NodeId, NodeRef, Scalar, Segment, Tree, quoted};

/// The bound of one file's text, in bytes.
const MAX_BYTES: usize = 32 << 20;
/// The bound of nesting, in levels. Formats need about ten.
const MAX_DEPTH: usize = 64;
/// The bound of nodes in one file, copies made for aliases included.
const MAX_NODES: usize = 2_000_000;
/// The size of a file for each node, about, in bytes: for the initial capacity of the tree.
const BYTES_PER_NODE: usize = 8;
/// The bound of nodes copied for aliases in one file: stops an alias bomb.
const MAX_ALIASED: usize = 200_000;

/// Parses the documents of one YAML or JSON file and returns the root of each. `path` is the one that diagnostics show.
///
/// Mistakes go to `diagnostics`. A file with a syntax error, or beyond a bound (32 MiB, 64 levels, 2,000,000 values), has no
/// documents: what was read of it would only be reported as incomplete.
pub fn parse(
    path: &Path,
    text: &str,
    variables: &Variables<'_>,
    diagnostics: &mut Diagnostics,
) -> Vec<NodeRef> {
    let mut builder = Builder {
        tree: Tree {
            file: path.to_owned(),
            // A key and its value have a line of their own, mostly.
            nodes: Vec::with_capacity((text.len() / BYTES_PER_NODE).clamp(4, 1_024)),
            roots: Vec::new(),
        },
        frames: Vec::new(),
        anchors: HashMap::new(),
        aliased: 0,
        variables,
        found: Vec::new(),
    };
    if let Err(fatal) = builder.run(text) {
        diagnostics.push(*fatal);
        builder.tree.roots.clear();
        builder.found.clear();
    }
    let tree = Arc::new(builder.tree);
    for (node, message, hint) in builder.found {
        let mut diagnostic = NodeRef::new(&tree, node).error(message);
        diagnostic.hint = hint;
        diagnostics.push(diagnostic);
    }
    tree.roots.iter().map(|&root| NodeRef::new(&tree, root)).collect()
}

/// A mistake that makes the whole file unusable.
type Fatal = Box<Diagnostic>;

/// A list or mapping that is still open.
struct Frame {
    node: NodeId,
    anchor: usize,
    /// The key whose value comes next.
    key: Option<NodeId>,
    /// Whether the list or mapping is itself a key, which is a mistake.
    is_key: bool,
}

struct Builder<'a> {
    tree: Tree,
    frames: Vec<Frame>,
    anchors: HashMap<usize, NodeId>,
    aliased: usize,
    variables: &'a Variables<'a>,
    /// Mistakes that do not end the parsing: node, message and hint. Paths are known once the tree is complete.
    found: Vec<(NodeId, String, Option<String>)>,
}

impl Builder<'_> {
    fn run(&mut self, text: &str) -> Result<(), Fatal> {
        if text.len() > MAX_BYTES {
            let message = format!("the file is larger than {} MiB", MAX_BYTES >> 20);
            let diagnostic = Diagnostic::about_file(&self.tree.file, message);
            return Err(Box::new(diagnostic.hint("split it into several files")));
        }
        let mut options = granit_parser::options! {
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH,
        };
        options.set_emit_comments(false);
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|e| self.syntax(&e))?;
            self.event(event, span)?;
        }
        Ok(())
    }

    fn syntax(&self, error: &ScanError) -> Fatal {
        let marker = error.marker();
        let mut diagnostic = self.fatal(
            number(marker.line()),
            number(marker.col()) + 1,
            format!("not valid YAML: {}", error.info()),
        );
        diagnostic.hint = Some("check indentation, quotes and brackets at and before this place".to_owned());
        diagnostic
    }

    fn fatal(&self, line: u32, column: u32, message: String) -> Fatal {
        Box::new(Diagnostic {
            severity: Severity::Error,
            location: Location {
                file: self.tree.file.clone(),
                line,
                column,
            },
            path: String::new(),
            message,
            hint: None,
            related: Vec::new(),
        })
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Fatal> {
        match event {
            Event::DocumentEnd => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let node = self.add(&span, Content::Broken)?;
                let is_key = self.is_key(node);
                self.place_empty(node, &span);
                self.tree.nodes[node as usize].content =
                    self.scalar(node, &text, style, tag.as_deref(), is_key);
                self.finish(node, anchor);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.open(&span, Content::List(Vec::new()), anchor, tag.as_deref())?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.open(&span, Content::Mapping(Vec::new()), anchor, tag.as_deref())?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(frame) = self.frames.pop() {
                    self.merge(frame.node);
                    if frame.is_key {
                        self.report(frame.node, "a list or mapping cannot be a key", None);
                    }
                    self.finish(frame.node, frame.anchor);
                }
            }
            Event::Alias(anchor) => self.alias(anchor, &span)?,
            _ => {}
        }
        Ok(())
    }

    /// Adds a node to the innermost open list or mapping.
    fn add(&mut self, span: &Span, content: Content) -> Result<NodeId, Fatal> {
        let (line, column) = (number(span.start.line()), number(span.start.col()) + 1);
        if self.tree.nodes.len() >= MAX_NODES {
            return Err(self.fatal(line, column, format!("the file has more than {MAX_NODES} values")));
        }
        let id = number(self.tree.nodes.len());
        let (parent, segment) = match self.frames.last() {
            None => (id, Segment::Root),
            Some(frame) => match &self.tree.nodes[frame.node as usize].content {
                Content::List(items) => (frame.node, Segment::Index(number(items.len()))),
                _ => (frame.node, Segment::Key(frame.key.unwrap_or(id))),
            },
        };
        self.tree.nodes.push(Node {
            line,
            column,
            parent,
            segment,
            content,
        });
        Ok(id)
    }

    /// Gives an empty value (`key:`) the position of its key, because it has no text of its own.
    fn place_empty(&mut self, node: NodeId, span: &Span) {
        if let Segment::Key(key) = self.tree.nodes[node as usize].segment
            && span.start.index() == span.end.index()
        {
            let (line, column) = (
                self.tree.nodes[key as usize].line,
                self.tree.nodes[key as usize].column,
            );
            let node = &mut self.tree.nodes[node as usize];
            (node.line, node.column) = (line, column);
        }
    }

    fn is_key(&self, node: NodeId) -> bool {
        matches!(self.tree.nodes[node as usize].segment, Segment::Key(key) if key == node)
    }

    fn open(&mut self, span: &Span, content: Content, anchor: usize, tag: Option<&Tag>) -> Result<(), Fatal> {
        let node = self.add(span, content)?;
        if self.frames.len() >= MAX_DEPTH {
            let (line, column) = (number(span.start.line()), number(span.start.col()) + 1);
            return Err(self.fatal(line, column, format!("nested more than {MAX_DEPTH} deep")));
        }
        self.check_tag(node, tag);
        let is_key = self.is_key(node);
        self.frames.push(Frame {
            node,
            anchor,
            key: None,
            is_key,
        });
        Ok(())
    }

    /// Attaches a complete node to its list or mapping.
    fn finish(&mut self, node: NodeId, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node);
        }
        let Some(frame) = self.frames.last_mut() else {
            self.tree.roots.push(node);
            return;
        };
        let key = frame.key.take();
        match &mut self.tree.nodes[frame.node as usize].content {
            Content::List(items) => items.push(node),
            Content::Mapping(entries) => match key {
                None => frame.key = Some(node),
                Some(key) => entries.push((key, node)),
            },
            Content::Scalar(_) | Content::Broken => {}
        }
    }

    fn scalar(
        &mut self,
        node: NodeId,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        is_key: bool,
    ) -> Content {
        self.check_tag(node, tag);
        let is_text = tag.is_some_and(|t| t.core_suffix() == Some("str"));
        let plain = style == ScalarStyle::Plain && !is_text;
        if is_key || !text.contains('$') {
            return Content::Scalar(Scalar {
                text: text.into(),
                plain,
                raw: None,
                deferred: None,
            });
        }
        match expand(text, self.variables) {
            Ok(expanded) => {
                let changed = expanded != text;
                let deferred = || Arc::new(DeferredText::of(text, self.variables));
                Content::Scalar(Scalar {
                    plain: plain || (changed && text.contains("${") && !is_text),
                    raw: changed.then(|| text.into()),
                    deferred: text.contains("${").then(deferred),
                    text: expanded.into(),
                })
            }
            Err((message, hint)) => {
                self.report(node, message, hint);
                Content::Broken
            }
        }
    }

    fn check_tag(&mut self, node: NodeId, tag: Option<&Tag>) {
        let core = ["str", "int", "float", "bool", "null", "seq", "map"];
        if let Some(tag) = tag
            && !tag.core_suffix().is_some_and(|suffix| core.contains(&suffix))
            && tag.original() != "!"
        {
            let shown = quoted(&tag.original());
            let hint = "leave the tag out";
            self.report(
                node,
                format!("the tag {shown} means nothing here"),
                Some(hint.into()),
            );
        }
    }

    fn report(&mut self, node: NodeId, message: impl Into<String>, hint: Option<String>) {
        self.found.push((node, message.into(), hint));
    }

    /// Resolves an alias by a copy of the anchored node, because each copy has its own path.
    fn alias(&mut self, anchor: usize, span: &Span) -> Result<(), Fatal> {
        let (line, column) = (number(span.start.line()), number(span.start.col()) + 1);
        let Some(&from) = self.anchors.get(&anchor) else {
            return Err(self.fatal(
                line,
                column,
                "this alias stands for a value that contains it".into(),
            ));
        };
        let to = self.add(span, Content::Broken)?;
        self.copy(from, to, self.frames.len())
            .map_err(|message| self.fatal(line, column, message))?;
        // Diagnostics point at the anchored text.
        let origin = &self.tree.nodes[from as usize];
        let (line, column) = (origin.line, origin.column);
        let node = &mut self.tree.nodes[to as usize];
        (node.line, node.column) = (line, column);
        self.finish(to, 0);
        Ok(())
    }

    fn copy(&mut self, from: NodeId, to: NodeId, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("aliases nest values more than {MAX_DEPTH} deep"));
        }
        let content = match self.tree.nodes[from as usize].content.clone() {
            Content::List(items) => {
                let mut copies = Vec::with_capacity(items.len());
                for (i, item) in items.into_iter().enumerate() {
                    let copy = self.blank(item, to, Segment::Index(number(i)))?;
                    self.copy(item, copy, depth + 1)?;
                    copies.push(copy);
                }
                Content::List(copies)
            }
            Content::Mapping(entries) => {
                let mut copies = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let new_key = self.blank(key, to, Segment::Root)?;
                    self.tree.nodes[new_key as usize].segment = Segment::Key(new_key);
                    self.copy(key, new_key, depth + 1)?;
                    let new_value = self.blank(value, to, Segment::Key(new_key))?;
                    self.copy(value, new_value, depth + 1)?;
                    copies.push((new_key, new_value));
                }
                Content::Mapping(copies)
            }
            other => other,
        };
        self.tree.nodes[to as usize].content = content;
        Ok(())
    }

    fn blank(&mut self, like: NodeId, parent: NodeId, segment: Segment) -> Result<NodeId, String> {
        self.aliased += 1;
        if self.aliased > MAX_ALIASED || self.tree.nodes.len() >= MAX_NODES {
            return Err(format!("aliases repeat more than {MAX_ALIASED} values"));
        }
        let id = number(self.tree.nodes.len());
        let node = Node {
            parent,
            segment,
            content: Content::Broken,
            ..self.tree.nodes[like as usize]
        };
        self.tree.nodes.push(node);
        Ok(id)
    }

    /// Resolves merge keys: replaces `<<` by the entries of its mappings. A key written out wins over a merged one, an
    /// earlier mapping over a later one.
    fn merge(&mut self, mapping: NodeId) {
        let Content::Mapping(entries) = &self.tree.nodes[mapping as usize].content else {
            return;
        };
        if !entries.iter().any(|(key, _)| self.is_merge(*key)) {
            return;
        }
        let (merges, mut kept): (Vec<_>, Vec<_>) =
            entries.iter().copied().partition(|(key, _)| self.is_merge(*key));
        let mut names: HashSet<Arc<str>> = kept.iter().filter_map(|(key, _)| self.text(*key)).collect();
        for (key, value) in merges {
            let sources = match &self.tree.nodes[value as usize].content {
                Content::List(items) => items.clone(),
                _ => vec![value],
            };
            for source in sources {
                let Content::Mapping(entries) = self.tree.nodes[source as usize].content.clone() else {
                    self.report(key, "only a mapping, or a list of mappings, can be merged", None);
                    continue;
                };
                for (key, value) in entries {
                    if self.text(key).is_some_and(|name| names.insert(name)) {
                        self.tree.nodes[key as usize].parent = mapping;
                        self.tree.nodes[value as usize].parent = mapping;
                        kept.push((key, value));
                    }
                }
            }
        }
        self.tree.nodes[mapping as usize].content = Content::Mapping(kept);
    }

    fn text(&self, node: NodeId) -> Option<Arc<str>> {
        match &self.tree.nodes[node as usize].content {
            Content::Scalar(scalar) => Some(Arc::clone(&scalar.text)),
            _ => None,
        }
    }

    fn is_merge(&self, key: NodeId) -> bool {
        matches!(&self.tree.nodes[key as usize].content, Content::Scalar(s) if s.plain && &*s.text == "<<")
    }
}

/// Bounded by [`MAX_BYTES`] and [`MAX_NODES`].
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
