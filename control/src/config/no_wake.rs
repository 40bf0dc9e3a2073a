//! `noWake`: which requests start nothing.

use ipnet::IpNet;
use serde_json::Value;
use sluice_config_shape::{Context, Definitions, List, NodeRef, ParseError, Parsed, Record, Shape};
use sluice_model::{NoWake, NoWakeRule, Wildcard};

use super::names::{METHOD, NETWORK};

/// The bound of entries, and of the patterns in one list: every request of the service is compared with all of them.
const MAX: usize = 100;

/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 256;

/// The keys of an entry.
const KEYS: [&str; 4] = ["userAgents", "paths", "methods", "clients"];

/// A list with at least one and at most [`MAX`] elements.
struct Bounded<S>(List<S>);

impl<S: Shape> Shape for Bounded<S> {
    type Out = Vec<S::Out>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
        match at.list_len() {
            Some(0) => {
                let diagnostic = at.whole().error("the list is empty: it matches nothing");
                cx.report(diagnostic.hint("leave the key out, or list what has to match"));
                return None;
            }
            Some(many) if many > MAX => {
                cx.report(at.whole().error(format!("{many} elements are more than {MAX}")));
                return None;
            }
            _ => {}
        }
        self.0.decode(at, cx)
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        let mut schema = self.0.schema(definitions);
        schema["minItems"] = 1.into();
        schema["maxItems"] = MAX.into();
        schema
    }
}

/// The `noWake` list.
pub(super) struct NoWakeShape;

pub(super) const NO_WAKE: NoWakeShape = NoWakeShape;

impl Shape for NoWakeShape {
    type Out = NoWake;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<NoWake> {
        let rules = Bounded(List(RULE)).decode(at, cx)?;
        Some(NoWake { rules })
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        Bounded(List(RULE)).schema(definitions)
    }
}

const RULE: Record<NoWakeRule> = Record {
    name: "NoWake",
    doc: "Requests that start nothing: every key of the entry has to match, and any element of its list.",
    decode: |o| {
        let user_agents = o.optional(
            "userAgents",
            "The User-Agent; * stands for anything, letters' case does not matter.",
            Bounded(List(PATTERN)),
        );
        let paths = o.optional(
            "paths",
            "The path without query; * stands for anything, letters' case does not matter.",
            Bounded(List(PATH_PATTERN)),
        );
        let methods = o.optional("methods", "The method.", Bounded(List(METHOD)));
        let clients: Option<Vec<IpNet>> = o.optional(
            "clients",
            "The client's network; behind a trusted proxy the address in X-Forwarded-For.",
            Bounded(List(NETWORK)),
        );
        o.want_one_of(
            &KEYS,
            "the entry has no condition: it would match every request",
            "give it userAgents, paths, methods or clients",
        );
        Some(NoWakeRule {
            user_agents: user_agents.unwrap_or_default(),
            paths: paths.unwrap_or_default(),
            methods: methods.unwrap_or_default(),
            clients: clients.unwrap_or_default(),
        })
    },
};

const PATTERN: Parsed<Wildcard> = Parsed {
    what: "a pattern",
    parse: |text, _| pattern(text),
};

const PATH_PATTERN: Parsed<Wildcard> = Parsed {
    what: "a pattern of a path",
    parse: |text, _| {
        if !text.starts_with(['/', '*']) {
            let hint = format!("write /{text} or *{text}");
            return Err(ParseError::with_hint(
                "it starts neither with '/' nor with '*'",
                hint,
            ));
        }
        if text.contains('?') {
            return Err(ParseError::new(
                "a path here has no query, and only * is a wildcard",
            ));
        }
        pattern(text)
    },
};

fn pattern(text: &str) -> Result<Wildcard, ParseError> {
    match text {
        "" => Err(ParseError::with_hint("it is empty", "* stands for anything")),
        _ if text.len() > MAX_PATTERN => {
            Err(ParseError::new(format!("it is longer than {MAX_PATTERN} bytes")))
        }
        _ if text.chars().any(char::is_control) => Err(ParseError::new("it holds a control character")),
        _ => Ok(Wildcard::new(text)),
    }
}
