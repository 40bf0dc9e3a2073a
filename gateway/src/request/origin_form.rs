//! Path and query of a request target, as a URI for redirects.

use std::fmt::Write as _;

/// The path and query of a request target that identifies a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginForm<'t> {
    /// Empty or beginning with a slash.
    path: &'t str,
    /// Without its `?`.
    query: Option<&'t str>,
}

impl<'t> OriginForm<'t> {
    /// Parses an origin-form or absolute-form target (RFC 9112 3.2); `None` for any other, such as `*`.
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

    /// Path and query of a URI: bytes that RFC 3986 does not allow are percent-encoded, an empty path is `/`.
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

/// Percent-encodes by RFC 3986 3.3 and 3.4: `pchar`, `/` and `?` stay.
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
    fn targets_become_uris() {
        let uri = |target| OriginForm::of(target).map(OriginForm::to_uri);
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
