//! The queries of `/api/explain` and `/api/history`: parsing them from a URL and encoding them into one.

use sluice_model::{RevisionId, ServiceId};
use thiserror::Error;

use super::commands::parse_service;

/// The request that `/api/explain` explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainQuery {
    /// The URL as a client would use it.
    pub url: String,
    /// The method, upper case.
    pub method: String,
    /// Header fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
}

/// Why a query is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The parameter `url` is missing.
    #[error("the parameter `url` is missing: /api/explain?url=http://hello.example.com/path")]
    MissingUrl,
    /// An unknown parameter.
    #[error("unknown parameter `{0}`: url, method and header are known")]
    UnknownParameter(String),
    /// A `url` or `method` given twice.
    #[error("the parameter `{0}` is given twice")]
    Repeated(&'static str),
    /// A header that is not `Name: value`.
    #[error("`{0}` is not a header: write it as `Name: value`")]
    Header(String),
    /// A percent sign without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("`{0}` is not percent-encoded UTF-8")]
    Encoding(String),
}

impl ExplainQuery {
    /// Normalizes a query.
    ///
    /// # Errors
    /// [`QueryError::Header`].
    pub fn new(url: &str, method: &str, headers: &[String]) -> Result<Self, QueryError> {
        let headers = headers
            .iter()
            .map(|header| split_header(header))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            url: url.to_owned(),
            method: method.to_ascii_uppercase(),
            headers,
        })
    }

    /// Reads the query part of a request target.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        let (mut url, mut method, mut headers) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match key {
                "url" if url.is_some() => return Err(QueryError::Repeated("url")),
                "url" => url = Some(value),
                "method" if method.is_some() => return Err(QueryError::Repeated("method")),
                "method" => method = Some(value),
                "header" => headers.push(value),
                other => return Err(QueryError::UnknownParameter(other.to_owned())),
            }
        }
        let url = url.filter(|u| !u.is_empty()).ok_or(QueryError::MissingUrl)?;
        Self::new(&url, method.as_deref().unwrap_or("GET"), &headers)
    }

    /// The query part of a request target that [`parse`](Self::parse) reads back.
    pub fn encode(&self) -> String {
        let mut out = String::from("url=");
        encode(&mut out, &self.url);
        out.push_str("&method=");
        encode(&mut out, &self.method);
        for (name, value) in &self.headers {
            out.push_str("&header=");
            encode(&mut out, name);
            out.push_str(":%20");
            encode(&mut out, value);
        }
        out
    }
}

/// The service that `/api/revisions` is asked for; `None` for all.
///
/// # Errors
/// What to write, in one line.
pub(super) fn revisions_query(query: &str) -> Result<Option<ServiceId>, String> {
    match (query, query.strip_prefix("service=")) {
        ("", _) => Ok(None),
        (_, Some(given)) => {
            let name = decode(given).map_err(|error| error.to_string())?;
            parse_service(&name).map(Some)
        }
        (_, None) => Err(format!("unknown: {query}; there is only service=NAMESPACE/NAME")),
    }
}

/// The revision that `/api/history` is asked for; `None` for the whole gateway.
///
/// # Errors
/// What to write, in one line.
pub(super) fn history_query(query: &str) -> Result<Option<RevisionId>, String> {
    let Some(given) = query.strip_prefix("revision=") else {
        return match query {
            "" => Ok(None),
            _ => Err(format!("unknown: {query}; there is only revision=NAMESPACE/NAME")),
        };
    };
    let name = decode(given).map_err(|error| error.to_string())?;
    let id = name
        .split_once('/')
        .and_then(|(namespace, name)| RevisionId::parse(namespace, name).ok());
    match id {
        Some(id) => Ok(Some(id)),
        None => Err(format!("`{name}` is no revision: write revision=NAMESPACE/NAME")),
    }
}

fn split_header(header: &str) -> Result<(String, String), QueryError> {
    let (name, value) = header
        .split_once(':')
        .filter(|(name, _)| !name.trim().is_empty())
        .ok_or_else(|| QueryError::Header(header.to_owned()))?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

pub(super) fn decode(text: &str) -> Result<String, QueryError> {
    let bad = || QueryError::Encoding(text.to_owned());
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next()), digit(bytes.next()));
                let value = high.zip(low).map(|(high, low)| high * 16 + low);
                value.and_then(|v| u8::try_from(v).ok()).ok_or_else(bad)?
            }
            b => b,
        });
    }
    String::from_utf8(out).map_err(|_| bad())
}

pub(super) fn encode(out: &mut String, text: &str) {
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(char::from(b));
            }
            _ => {
                out.push('%');
                for digit in [b >> 4, b & 15] {
                    out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(url in "\\PC{1,40}", method in "[A-Z]{1,8}", value in "[^\\pZ\\pC]{0,20}") {
            let query = ExplainQuery { url, method, headers: vec![("x-a".into(), value.clone()), ("x-b".into(), value)] };
            let encoded = query.encode();
            prop_assert!(encoded.is_ascii() && !encoded.contains(' '));
            prop_assert_eq!(ExplainQuery::parse(&encoded), Ok(query));
        }

        #[test]
        fn nothing_panics(query in "\\PC*") {
            let _ = ExplainQuery::parse(&query);
        }
    }

    #[test]
    fn a_history_is_of_a_revision_or_of_all() {
        let id = RevisionId::parse("default", "a-v1").unwrap();
        assert_eq!(history_query(""), Ok(None));
        assert_eq!(history_query("revision=default/a-v1"), Ok(Some(id.clone())));
        assert_eq!(history_query("revision=default%2Fa-v1"), Ok(Some(id)));
        for wrong in [
            "revision=",
            "revision=a",
            "revision=a/b/c",
            "revision=A/b",
            "revision=%2",
            "service=a/b",
        ] {
            assert!(history_query(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn questions_by_hand_are_understood_or_explained() {
        let query = ExplainQuery::parse("url=http://a.b/c?d&header=X-Beta:%201&header=A:b+c").unwrap();
        assert_eq!(
            (query.url.as_str(), query.method.as_str()),
            ("http://a.b/c?d", "GET")
        );
        assert_eq!(
            query.headers,
            [("x-beta".into(), "1".into()), ("a".into(), "b c".into())]
        );
        let error = |query| ExplainQuery::parse(query).unwrap_err();
        assert_eq!(error("method=GET"), QueryError::MissingUrl);
        assert_eq!(error("url=a&url=b"), QueryError::Repeated("url"));
        assert_eq!(error("url=a&verb=b"), QueryError::UnknownParameter("verb".into()));
        assert_eq!(error("url=a&header=b"), QueryError::Header("b".into()));
        assert_eq!(error("url=%4"), QueryError::Encoding("%4".into()));
        assert_eq!(error("url=%ff"), QueryError::Encoding("%ff".into()));
    }
}
