//! Wildcard patterns: `*` stands for any bytes, and the case of ASCII letters does not matter.

use std::fmt;

/// A wildcard pattern, matched in time linear in the text (Knuth–Morris–Pratt for each piece between two `*`): the
/// text is a client's, and backtracking would let a client choose the cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wildcard {
    /// The bytes before the first `*`, in lower case; all of them where the pattern has no `*`.
    start: Box<[u8]>,
    /// The pieces between two `*`, none of them empty.
    inner: Box<[Piece]>,
    /// The bytes after the last `*`, in lower case; `None` where the pattern has no `*`.
    end: Option<Box<[u8]>>,
}

/// A piece of a pattern, with the failure function of Knuth, Morris and Pratt: by length of the matched part, the length
/// of the longest proper prefix of that part that is its suffix, too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    bytes: Box<[u8]>,
    fallback: Box<[usize]>,
}

impl Wildcard {
    /// The pattern of a text. Every text is a pattern.
    pub fn new(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let Some((start, rest)) = lower.split_once('*') else {
            return Self {
                start: lower.as_bytes().into(),
                inner: Box::default(),
                end: None,
            };
        };
        let (inner, end) = rest.rsplit_once('*').unwrap_or(("", rest));
        let pieces = inner.split('*').filter(|piece| !piece.is_empty());
        Self {
            start: start.as_bytes().into(),
            inner: pieces.map(|piece| Piece::new(piece.as_bytes())).collect(),
            end: Some(end.as_bytes().into()),
        }
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        let Some(end) = &self.end else {
            return text.eq_ignore_ascii_case(&self.start);
        };
        let Some(between) = text.len().checked_sub(self.start.len() + end.len()) else {
            return false;
        };
        let (start, rest) = text.split_at(self.start.len());
        let (mut rest, last) = rest.split_at(between);
        // The leftmost place of each piece leaves the most text to the next pieces.
        start.eq_ignore_ascii_case(&self.start)
            && last.eq_ignore_ascii_case(end)
            && self.inner.iter().all(|piece| match piece.end_in(rest) {
                Some(end) => {
                    rest = &rest[end..];
                    true
                }
                None => false,
            })
    }
}

impl Piece {
    fn new(bytes: &[u8]) -> Self {
        let mut fallback = vec![0; bytes.len() + 1];
        let mut matched = 0;
        for (at, byte) in bytes.iter().enumerate().skip(1) {
            while matched > 0 && bytes[matched] != *byte {
                matched = fallback[matched];
            }
            matched += usize::from(bytes[matched] == *byte);
            fallback[at + 1] = matched;
        }
        Self {
            bytes: bytes.into(),
            fallback: fallback.into(),
        }
    }

    /// The end of the leftmost occurrence.
    fn end_in(&self, text: &[u8]) -> Option<usize> {
        let mut matched = 0;
        for (at, byte) in text.iter().enumerate() {
            let byte = byte.to_ascii_lowercase();
            while matched > 0 && self.bytes[matched] != byte {
                matched = self.fallback[matched];
            }
            matched += usize::from(self.bytes[matched] == byte);
            if matched == self.bytes.len() {
                return Some(at + 1);
            }
        }
        None
    }
}

/// The pattern in lower case; several `*` in a row become one.
impl fmt::Display for Wildcard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        f.write_str(&text(&self.start))?;
        for piece in &self.inner {
            write!(f, "*{}", text(&piece.bytes))?;
        }
        match &self.end {
            Some(end) => write!(f, "*{}", text(end)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: `*` takes no byte, or one byte and may go on.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                by_definition(rest, text) || !text.is_empty() && by_definition(pattern, &text[1..])
            }
            (Some((p, pattern)), Some((t, text))) => {
                p.eq_ignore_ascii_case(t) && by_definition(pattern, text)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_what_the_definition_matches(pattern in "[abA*]{0,8}", text in "[abB]{0,12}") {
            prop_assert_eq!(
                Wildcard::new(&pattern).matches(text.as_bytes()),
                by_definition(pattern.as_bytes(), text.as_bytes())
            );
        }

        #[test]
        fn shows_an_equal_pattern(pattern in "[ab*/]{0,8}") {
            let wildcard = Wildcard::new(&pattern);
            prop_assert_eq!(&Wildcard::new(&wildcard.to_string()), &wildcard);
        }

        #[test]
        fn takes_any_bytes(pattern in ".*", text in proptest::collection::vec(any::<u8>(), 0..64)) {
            Wildcard::new(&pattern).matches(&text);
        }
    }

    #[test]
    fn the_ends_are_anchored_and_do_not_overlap() {
        for (pattern, text, matches) in [
            ("kube-probe/*", "kube-probe/1.30", true),
            ("kube-probe/*", "x kube-probe/1.30", false),
            ("*bot*", "Mozilla (compatible; Googlebot/2.1)", true),
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(
                Wildcard::new(pattern).matches(text.as_bytes()),
                matches,
                "{pattern} {text}"
            );
        }
    }

    /// A text that costs a backtracking matcher quadratic time.
    #[test]
    fn repetitions_cost_linear_time() {
        let pattern = format!("*{}b*", "a".repeat(200));
        let text = "a".repeat(16 << 10);
        let wildcard = Wildcard::new(&pattern);
        for _ in 0..50 {
            assert!(!wildcard.matches(text.as_bytes()));
        }
    }
}
