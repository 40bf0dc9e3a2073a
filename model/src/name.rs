//! Validated names: strings are parsed here once, and every other module holds a checked name.

use std::cmp::Ordering;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

/// The longest host name DNS allows, in bytes.
const MAX_HOST: usize = 253;

/// The reason why a string is not a valid name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// The name is empty without port and trailing dot.
    Empty,
    /// The name is longer than DNS allows (253 bytes for a host, 63 for a label).
    TooLong,
    /// The name has a byte that is not allowed in its kind of name.
    BadByte(u8),
    /// The name has a character that is not allowed in its kind of name; for a name that was given as text.
    BadChar(char),
    /// The port after the colon is not a number up to 65535.
    BadPort,
    /// An empty label, or a hyphen at a label's end.
    BadLabel,
    /// The brackets contain no IPv6 address.
    BadLiteral,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong => f.write_str("it is too long"),
            Self::BadByte(b) if b.is_ascii() => {
                write!(f, "the character {:?} is not allowed", char::from(*b))
            }
            // A byte of a multi-byte or invalid character: shown as a character, the byte would be another character.
            Self::BadByte(b) => write!(f, "the byte 0x{b:02X} is not allowed"),
            Self::BadChar(c) => write!(f, "the character {c:?} is not allowed"),
            Self::BadPort => f.write_str("its port is not a number up to 65535"),
            Self::BadLiteral => f.write_str("there is no IPv6 address between its brackets"),
            Self::BadLabel => f.write_str("it has an empty label, or one that starts or ends with '-'"),
        }
    }
}

impl std::error::Error for NameError {}

impl NameError {
    /// The error with the character in place of its first byte: names are ASCII, so the first byte that is not ASCII
    /// begins the first character that is not ASCII.
    fn of_text(self, raw: &str) -> Self {
        match (self, raw.chars().find(|c| !c.is_ascii())) {
            (Self::BadByte(b), Some(c)) if !b.is_ascii() => Self::BadChar(c),
            _ => self,
        }
    }
}

/// Normalises a client's Host or `:authority` into `buf`: lower case, without port and trailing dot. An IPv6 literal
/// keeps its brackets. Allocates nothing.
///
/// # Errors
/// [`NameError`] when it is not a host at all; the caller answers 400.
pub fn normalize_host<'b>(raw: &[u8], buf: &'b mut [u8; 256]) -> Result<&'b str, NameError> {
    let host = strip_port(raw)?;
    let host = match host {
        [rest @ .., b'.'] => rest,
        whole => whole,
    };
    if host.is_empty() {
        return Err(NameError::Empty);
    }
    if host.len() > MAX_HOST {
        return Err(NameError::TooLong);
    }
    let literal = host[0] == b'[';
    if literal && !is_ipv6_literal(host) {
        return Err(NameError::BadLiteral);
    }
    for (to, &from) in buf.iter_mut().zip(host) {
        *to = match from {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => from,
            b'A'..=b'Z' => from.to_ascii_lowercase(),
            b'[' | b']' | b':' if literal => from,
            other => return Err(NameError::BadByte(other)),
        };
    }
    let out = &buf[..host.len()];
    let empty_label = out.starts_with(b".") || out.ends_with(b".") || out.windows(2).any(|w| w == b"..");
    if !literal && empty_label {
        return Err(NameError::BadLabel);
    }
    // Only ASCII was copied, so that this conversion cannot fail.
    std::str::from_utf8(out).map_err(|_| NameError::BadByte(0xff))
}

/// Whether a host is an `IP-literal` of RFC 3986, without zones and without `IPvFuture`, which no client uses.
fn is_ipv6_literal(host: &[u8]) -> bool {
    let inner = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    inner
        .and_then(|inner| std::str::from_utf8(inner).ok())
        .is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

fn strip_port(raw: &[u8]) -> Result<&[u8], NameError> {
    let (host, rest) = if raw.first() == Some(&b'[') {
        let end = raw
            .iter()
            .position(|&b| b == b']')
            .ok_or(NameError::BadByte(b'['))?;
        raw.split_at(end + 1)
    } else {
        let end = raw.iter().position(|&b| b == b':').unwrap_or(raw.len());
        raw.split_at(end)
    };
    match rest {
        [] => Ok(host),
        // RFC 3986 allows an empty port.
        [b':', port @ ..] if port.len() <= 5 && port.iter().all(u8::is_ascii_digit) => {
            let number = port.iter().fold(0u32, |n, d| n * 10 + u32::from(d - b'0'));
            if number <= 65_535 {
                Ok(host)
            } else {
                Err(NameError::BadPort)
            }
        }
        _ => Err(NameError::BadPort),
    }
}

/// A normalised host name: lower case, no port, no trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Box<str>);

impl Host {
    /// Normalises and checks a host.
    ///
    /// # Errors
    /// [`NameError`] when it is not a host.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        let mut buf = [0; 256];
        match normalize_host(raw.as_bytes(), &mut buf) {
            Ok(host) => Ok(Self(host.into())),
            Err(error) => Err(error.of_text(raw)),
        }
    }

    /// The host as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A host from text that was a checked host before.
    pub(crate) fn of_checked(text: &[u8]) -> Self {
        Self(String::from_utf8_lossy(text).into())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_label(raw: &str) -> Result<(), NameError> {
    if raw.is_empty() {
        return Err(NameError::Empty);
    }
    if raw.len() > 63 {
        return Err(NameError::TooLong);
    }
    if let Some(b) = raw
        .bytes()
        .find(|b| !matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    {
        return Err(NameError::BadByte(b).of_text(raw));
    }
    if raw.starts_with('-') || raw.ends_with('-') {
        return Err(NameError::BadLabel);
    }
    Ok(())
}

fn check_object_name(raw: &str) -> Result<(), NameError> {
    let (name, qualifier) = raw.split_at(raw.find([':', '~']).unwrap_or(raw.len()));
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_HOST || qualifier.len() > MAX_HOST + 1 {
        return Err(NameError::TooLong);
    }
    let is_bad = |b: &u8| !matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b':' | b'~');
    match raw.bytes().find(is_bad) {
        Some(b) => Err(NameError::BadByte(b).of_text(raw)),
        None => Ok(()),
    }
}

/// The tag of a traffic target: a DNS label, because it becomes part of a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// Checks a tag.
    ///
    /// # Errors
    /// [`NameError`] when it is not a lower-case DNS label.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        check_label(raw).map(|()| Self(raw.into()))
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! namespaced_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// One shared text for all copies: a large table has several copies of each name.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name {
            /// `namespace/name`
            text: Arc<str>,
            slash: usize,
        }

        impl $name {
            /// Checks both parts: lower-case DNS labels of at most 63 bytes.
            ///
            /// # Errors
            /// [`NameError`] for the first part that is not a label.
            pub fn parse(namespace: &str, name: &str) -> Result<Self, NameError> {
                check_label(namespace)?;
                check_label(name)?;
                Ok(Self { text: format!("{namespace}/{name}").into(), slash: namespace.len() })
            }

            /// Checks the parts of the name of a cluster object: a label, and a DNS subdomain of at most 253 bytes
            /// (RFC 1123, as Kubernetes has it), which may be followed by `:` or `~` and a qualifier of such
            /// characters.
            ///
            /// # Errors
            /// [`NameError`] for the first part that is no such name.
            pub fn of_object(namespace: &str, name: &str) -> Result<Self, NameError> {
                check_label(namespace)?;
                check_object_name(name)?;
                Ok(Self { text: format!("{namespace}/{name}").into(), slash: namespace.len() })
            }

            /// The namespace.
            pub fn namespace(&self) -> &str {
                &self.text[..self.slash]
            }

            /// The name within the namespace.
            pub fn name(&self) -> &str {
                &self.text[self.slash + 1..]
            }
        }

        // Ordered by parts: as one text, namespace `a-b` would come before `a`.
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                (self.namespace(), self.name()).cmp(&(other.namespace(), other.name()))
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }
    };
}

namespaced_id! {
    /// The id of a revision; unique in its namespace, across services.
    RevisionId
}
namespaced_id! {
    /// The id of a service.
    ServiceId
}

/// Between a revision's name and its tier's: a byte that is in no name.
const TIER: char = '@';

/// The ids by which tiers are scaled.
impl RevisionId {
    /// The id by which a tier of this revision is scaled: `namespace/name@tier`.
    #[must_use]
    pub fn of_tier(&self, tier: &Tag) -> Self {
        let text = format!("{self}{TIER}{tier}").into();
        let slash = self.slash;
        Self { text, slash }
    }

    /// As [`parse`](Self::parse), of a revision or of a tier as [`of_tier`](Self::of_tier) names it.
    ///
    /// # Errors
    /// [`NameError`] for the first part that is not a label.
    pub fn parse_scaled(namespace: &str, name: &str) -> Result<Self, NameError> {
        match name.split_once(TIER) {
            Some((name, tier)) => Ok(Self::parse(namespace, name)?.of_tier(&Tag::parse(tier)?)),
            None => Self::parse(namespace, name),
        }
    }

    /// The name of the tier, in the id of one.
    pub fn tier(&self) -> Option<&str> {
        self.name().split_once(TIER).map(|(_, tier)| tier)
    }

    /// The revision, in the id of a tier; else this id.
    #[must_use]
    pub fn revision(&self) -> Self {
        match self.tier() {
            Some(tier) => Self {
                text: self.text[..self.text.len() - tier.len() - TIER.len_utf8()].into(),
                slash: self.slash,
            },
            None => self.clone(),
        }
    }

    /// The name of the revision, without that of a tier.
    pub fn revision_name(&self) -> &str {
        self.name()
            .split_once(TIER)
            .map_or_else(|| self.name(), |(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(raw: &str) -> Result<String, NameError> {
        Host::parse(raw).map(|h| h.to_string())
    }

    #[test]
    fn host_is_compared_without_case_port_and_trailing_dot() {
        for raw in [
            "Example.COM",
            "example.com:8080",
            "example.com.",
            "EXAMPLE.com.:80",
            "example.com:",
        ] {
            assert_eq!(host(raw).as_deref(), Ok("example.com"), "{raw}");
        }
        assert_eq!(host("[::1]:8080").as_deref(), Ok("[::1]"));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        assert_eq!(host(""), Err(NameError::Empty));
        assert_eq!(host(":80"), Err(NameError::Empty));
        assert_eq!(host("a:b"), Err(NameError::BadPort));
        assert_eq!(host("a:99999"), Err(NameError::BadPort));
        assert_eq!(host("a b"), Err(NameError::BadByte(b' ')));
        assert_eq!(host("a@b"), Err(NameError::BadByte(b'@')));
        assert_eq!(host("m\u{fc}ller.example"), Err(NameError::BadChar('\u{fc}')));
        let said = host("m\u{fc}ller.example").unwrap_err().to_string();
        assert_eq!(said, "the character '\u{fc}' is not allowed");
        let wire = normalize_host("\u{fc}".as_bytes(), &mut [0; 256]).unwrap_err();
        assert_eq!(wire.to_string(), "the byte 0xC3 is not allowed");
        for raw in ["a..b", ".a", "a..", "a..:80", ".."] {
            assert_eq!(host(raw), Err(NameError::BadLabel), "{raw}");
        }
        assert_eq!(host(&"a".repeat(254)), Err(NameError::TooLong));
        for raw in [
            "[foo]",
            "[]",
            "[.]",
            "[::1",
            "[1.2.3.4]",
            "[::1%eth0]",
            "[::]x",
            "[[::1]]",
            "[v1.a]",
        ] {
            assert!(host(raw).is_err(), "{raw}");
        }
        assert_eq!(host("[foo]:80"), Err(NameError::BadLiteral));
    }

    #[test]
    fn ids_are_dns_labels() {
        assert!(RevisionId::parse("default", "greeter-v1").is_ok());
        assert_eq!(
            RevisionId::parse("default", "Greeter"),
            Err(NameError::BadByte(b'G'))
        );
        assert_eq!(ServiceId::parse("", "a"), Err(NameError::Empty));
        let of_object = |name| ServiceId::of_object("default", name).map(|id| id.to_string());
        for name in [
            "a",
            "www.example.com",
            "greeter:8080",
            "greeter:http~www.example.com",
        ] {
            assert_eq!(of_object(name), Ok(format!("default/{name}")));
        }
        assert_eq!(of_object(""), Err(NameError::Empty));
        assert_eq!(of_object(":80"), Err(NameError::Empty));
        assert_eq!(of_object("a/b"), Err(NameError::BadByte(b'/')));
        assert_eq!(of_object(&"a".repeat(254)), Err(NameError::TooLong));
        assert_eq!(Tag::parse("-a"), Err(NameError::BadLabel));
    }

    #[test]
    fn ids_are_ordered_by_namespace_then_by_name() {
        let id = |namespace, name| ServiceId::parse(namespace, name).expect("names");
        let (first, second) = (id("a", "z"), id("a-b", "a"));
        assert!(first < second && id("a", "a") < first);
        assert_eq!((first.namespace(), first.name()), ("a", "z"));
        assert_eq!(second.to_string(), "a-b/a");
    }

    #[test]
    fn a_tier_is_scaled_by_an_id_of_its_own() {
        let revision = RevisionId::parse("default", "greeter-v1").expect("a name");
        let tier = revision.of_tier(&Tag::parse("standard").expect("a label"));
        assert_eq!(tier.to_string(), "default/greeter-v1@standard");
        assert_eq!((tier.tier(), revision.tier()), (Some("standard"), None));
        assert_eq!(
            (tier.revision(), revision.revision()),
            (revision.clone(), revision)
        );
        assert_eq!(tier.revision_name(), "greeter-v1");
        assert_eq!(RevisionId::parse_scaled("default", tier.name()), Ok(tier.clone()));
        assert!(
            RevisionId::parse("default", tier.name()).is_err()
                && RevisionId::parse_scaled("a", "b@").is_err()
        );
    }
}
