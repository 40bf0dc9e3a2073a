//! The key `images`: which containers of manifests may run here, and as what.

use sluice_config_shape::{Flag, ParseError, Parsed, Record};

use super::process::{COMMAND, VARIABLES, command, of_command, working_directory};
use crate::plan::ProcessSpec;

/// One entry of `images`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageRule {
    pattern: String,
    /// What a container of such an image runs as: the entrypoint, with variables that those of a manifest override.
    pub(crate) process: ProcessSpec,
    /// A manifest's `command` replaces the entrypoint.
    pub(crate) allow_command: bool,
}

impl ImageRule {
    /// Whether the rule is for this image.
    pub(crate) fn matches(&self, image: &str) -> bool {
        glob(self.pattern.as_bytes(), image.as_bytes())
    }
}

pub(super) const IMAGE: Record<Option<ImageRule>> = Record {
    name: "Image",
    doc: "Containers of manifests that may run here, and as what.",
    decode: |o| {
        let pattern = o.required(
            "match",
            "The image as manifests write it; * is any text without '/'.",
            PATTERN,
        );
        let entrypoint = o.required(
            "command",
            "The entrypoint: program and arguments, to which a manifest's args are appended. As of a process.",
            COMMAND,
        );
        let env = o.optional("env", "Variables; those of a manifest go first.", VARIABLES);
        let working_directory = working_directory(o);
        let allow_command = o.or(
            "allowCommand",
            "true: a manifest's command replaces this one.",
            Flag,
            false,
        );
        let entrypoint = entrypoint.and_then(|entrypoint| command(entrypoint, o));
        Some(match (pattern, entrypoint) {
            (Some(pattern), Some(entrypoint)) => Some(ImageRule {
                pattern,
                process: ProcessSpec {
                    env: env.unwrap_or_default(),
                    ..of_command(entrypoint, working_directory)
                },
                allow_command,
            }),
            _ => None,
        })
    },
};

const PATTERN: Parsed<String> = Parsed {
    what: "a pattern of images",
    parse: |text, _| match text.chars().any(|c| c.is_whitespace() || c.is_control()) || text.is_empty() {
        true => Err(ParseError::with_hint(
            "it is empty or has blanks, as no image has",
            "write registry.example.com/team/*:1.2",
        )),
        false => Ok(text.to_owned()),
    },
};

/// Whether the pattern matches the whole text. `*` is any text without `/`. Linear in pattern × text: on a mismatch only
/// the last `*` takes one byte more.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut last: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match last {
                // What a `*` has taken may not reach beyond a `/`; an earlier `*` could not help either.
                Some((star, taken)) if text[taken] != b'/' => {
                    last = Some((star, taken + 1));
                    p = star + 1;
                    t = taken + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stops_at_a_slash() {
        for (pattern, image, expected) in [
            (
                "quay.io/rhdevelopers/*:quarkus",
                "quay.io/rhdevelopers/knative-tutorial-greeter:quarkus",
                true,
            ),
            (
                "quay.io/rhdevelopers/*:quarkus",
                "quay.io/rhdevelopers/a/b:quarkus",
                false,
            ),
            (
                "quay.io/rhdevelopers/*:quarkus",
                "quay.io/rhdevelopers/greeter:latest",
                false,
            ),
            ("quay.io/*/*", "quay.io/a/b:1@sha256:00", true),
            ("quay.io/*/*", "quay.io/a", false),
            ("*/b*c", "a/bxbc", true),
            ("*/b*c", "a/bxb/c", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*", "", true),
            ("*", "a/b", false),
            ("**a", "bca", true),
            ("a*/x", "ab/y/x", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), image.as_bytes()),
                expected,
                "{pattern} {image}"
            );
        }
    }

    #[test]
    fn a_match_takes_no_time_out_of_proportion() {
        let text = "a".repeat(100_000);
        assert!(!glob("*a*a*a*a*a*a*a*b".as_bytes(), text.as_bytes()));
    }
}
