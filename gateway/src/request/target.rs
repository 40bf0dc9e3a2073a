//! The request target: which bytes it may have, and the URI that it stands for.

use std::fmt::Write as _;

use thiserror::Error;

/// Why a request target is refused; answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TargetFault {
    /// There is none.
    #[error("the request target is empty")]
    Empty,
    /// A byte that no target may have.
    #[error("the request target has the byte {0:#04x}")]
    Byte(u8),
    /// A `#`.
    #[error("the request target has a fragment")]
    Fragment,
}

/// Judges the bytes of a request target in whatever form: one rule for HTTP/1 and HTTP/2, path and query alike.
///
/// Visible ASCII passes as it was sent, but for `"`, `<`, `>`, `` ` `` and `#`. RFC 3986 (appendix A) has neither
/// these nor `\`, `^`, `{`, `|`, `}`, `[` and `]` in path or query; the latter pass because browsers send them
/// as they are and every reader behind us takes them for themselves. Percent-encoding is not looked at.
///
/// # Errors
/// The first byte that may not pass.
pub fn judge_target(target: &[u8]) -> Result<(), TargetFault> {
    if target.is_empty() {
        return Err(TargetFault::Empty);
    }
    match target.iter().find(|&&byte| !passes(byte)) {
        None => Ok(()),
        Some(b'#') => Err(TargetFault::Fragment),
        Some(&byte) => Err(TargetFault::Byte(byte)),
    }
}

fn passes(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'`' | b'#')
}

/// The path and query of a request target that stands for a resource of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'t> {
    /// Empty or beginning with a slash.
    path: &'t str,
    /// Without its `?`.
    query: Option<&'t str>,
}

impl<'t> Target<'t> {
    /// Takes an origin-form or absolute-form target (RFC 9112 3.2) apart; `None` for any other, such as `*`.
    pub fn of(target: &'t str) -> Option<Self> {
        let rest = if target.starts_with('/') {
            target
        } else {
            let (scheme, rest) = target.split_once("://")?;
            if !["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s)) {
                return None;
            }
            &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
        };
        let (path, query) = rest.split_once('?').map_or((rest, None), |(p, q)| (p, Some(q)));
        Some(Self { path, query })
    }

    /// Path and query as a URI has them: what RFC 3986 does not allow is percent-encoded, an empty path is `/`.
    pub fn to_uri(self) -> String {
        let mut out = String::with_capacity(self.path.len() + self.query.map_or(0, str::len) + 1);
        encode(&mut out, if self.path.is_empty() { "/" } else { self.path });
        if let Some(query) = self.query {
            out.push('?');
            encode(&mut out, query);
        }
        out
    }
}

/// RFC 3986 3.3 and 3.4: `pchar`, `/` and `?` stay.
fn encode(out: &mut String, text: &str) {
    let bytes = text.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        let encoded = byte == b'%'
            && bytes
                .get(at + 1..at + 3)
                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        if encoded || byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_passes_or_not_wherever_it_stands() {
        let refused = b"\"<>`#";
        for byte in 0..=u8::MAX {
            let expected = (0x21..=0x7e).contains(&byte) && !refused.contains(&byte);
            for before in ["/", "/?", "/a?b=", "http://a/", "http://a?"] {
                let target = [before.as_bytes(), &[byte], b"x"].concat();
                assert_eq!(judge_target(&target).is_ok(), expected, "{before} {byte:#04x}");
            }
        }
        assert_eq!(judge_target(b""), Err(TargetFault::Empty));
        assert_eq!(judge_target(b"/a#b"), Err(TargetFault::Fragment));
        assert_eq!(judge_target(b"/a b"), Err(TargetFault::Byte(b' ')));
        assert_eq!(judge_target(b"*"), Ok(()));
    }

    #[test]
    fn what_passes_can_be_parsed_by_what_forwards_it() {
        for byte in (0..=u8::MAX).filter(|&byte| passes(byte)) {
            for before in ["/", "/?"] {
                let target = [before.as_bytes(), &[byte]].concat();
                assert!(
                    http::uri::PathAndQuery::try_from(&target[..]).is_ok(),
                    "{before} {byte:#04x}"
                );
            }
        }
    }

    #[test]
    fn targets_become_uris() {
        let uri = |target| Target::of(target).map(Target::to_uri);
        for (target, expected) in [
            ("/", "/"),
            ("/x?y=1?z", "/x?y=1?z"),
            ("/?", "/?"),
            ("http://other:81/x", "/x"),
            ("HTTPS://other", "/"),
            ("http://other?q", "/?q"),
            ("//evil.example/x", "//evil.example/x"),
            ("/a|b?c=[{d}]^\\", "/a%7Cb?c=%5B%7Bd%7D%5D%5E%5C"),
            ("/%41%zz%4", "/%41%25zz%254"),
        ] {
            assert_eq!(uri(target).as_deref(), Some(expected), "{target}");
        }
        for target in ["*", "", "x", "ftp://a/", "a:80"] {
            assert_eq!(uri(target), None, "{target}");
        }
    }
}
