//! A judged head with its bytes, as the engine behind Pingora reads it.

use std::ops::Deref;

use bytes::{BufMut, Bytes, BytesMut};

use crate::http1::{HeadFault, HeadInfo, HeadLimits, RequestHead, judge};

/// A judged head with its bytes. Reads like a [`HeadInfo`].
#[derive(Debug, Clone)]
pub struct Head {
    bytes: Bytes,
    info: HeadInfo,
}

/// Another protocol that a request without a body asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Whether it is a WebSocket handshake: GET and `websocket` alone.
    pub websocket: bool,
    /// What the Upgrade field says.
    pub token: Box<str>,
}

impl Head {
    /// Judges a whole head.
    ///
    /// # Errors
    /// [`HeadFault`] when it is refused.
    pub fn judge(bytes: Bytes, limits: &HeadLimits) -> Result<Self, HeadFault> {
        let info = judge(&bytes, limits)?;
        Ok(Self { bytes, info })
    }

    /// The bytes that were judged.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn view(&self) -> RequestHead<'_> {
        RequestHead::new(&self.bytes, &self.info)
    }

    /// The method, as it was sent.
    pub fn method(&self) -> &str {
        self.view().method()
    }

    /// The request target, as it was sent.
    pub fn target(&self) -> &str {
        self.view().target()
    }

    /// The path without the query: `*` for OPTIONS of the whole server, else it begins with `/`.
    pub fn path(&self) -> &str {
        self.view().path()
    }

    /// What follows the `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        self.view().query()
    }

    /// All fields in their order, names as they were sent, values without surrounding whitespace.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let fields = self.view().fields();
        fields.filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    /// The first value of a field; `name` in any case.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.view().field(name)
    }

    /// The protocol asked for; `None` as well when a body follows.
    pub fn offer(&self) -> Option<Offer> {
        let upgrade = self.info.upgrade.filter(|_| self.info.framing.is_empty())?;
        Some(Offer {
            websocket: upgrade.websocket,
            token: String::from_utf8_lossy(upgrade.token.of(&self.bytes)).into(),
        })
    }

    /// What the next parser reads: the same head without empty lines before it, in origin-form.
    ///
    /// A URL as target is turned into its path here because the next parser compares authorities
    /// byte by byte, and because an origin server expects a path. Nothing is lost: it was judged
    /// equal to Host, and becomes Host where an HTTP/1.0 client sent none.
    pub(super) fn replay(&self) -> Bytes {
        let view = self.view();
        let from = self.bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'));
        let from = from.unwrap_or_default();
        if !self.info.absolute_form {
            return self.bytes.slice(from..self.info.len);
        }
        let line_end = from + view.method().len() + 1 + view.target().len();
        let fields = line_end + b" HTTP/1.1\r\n".len();
        let mut out = BytesMut::with_capacity(self.info.len);
        out.put_slice(view.method().as_bytes());
        out.put_u8(b' ');
        out.put_slice(view.path().as_bytes());
        if let Some(query) = view.query() {
            out.put_u8(b'?');
            out.put_slice(query.as_bytes());
        }
        out.put_slice(&self.bytes[line_end..fields]);
        if let (false, Some(authority)) = (view.has_host_field(), view.authority()) {
            out.put_slice(b"Host: ");
            out.put_slice(authority);
            out.put_slice(b"\r\n");
        }
        out.put_slice(&self.bytes[fields..self.info.len]);
        out.freeze()
    }
}

impl Deref for Head {
    type Target = HeadInfo;

    fn deref(&self) -> &HeadInfo {
        &self.info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        max_bytes: 4096,
        max_headers: 16,
        max_uri_bytes: 256,
    };

    fn judged(head: &str) -> Head {
        Head::judge(Bytes::copy_from_slice(head.as_bytes()), &LIMITS).unwrap()
    }

    #[test]
    fn a_url_is_replayed_as_a_path() {
        let replayed = |head: &str| String::from_utf8(judged(head).replay().to_vec()).unwrap();
        assert_eq!(
            replayed("\r\nGET http://A.example:80/x?y=1 HTTP/1.1\r\nHost: a.example\r\nX: 1\r\n\r\n"),
            "GET /x?y=1 HTTP/1.1\r\nHost: a.example\r\nX: 1\r\n\r\n"
        );
        assert_eq!(
            replayed("GET http://a.example?q HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            "GET /?q HTTP/1.1\r\nHost: a.example\r\n\r\n"
        );
        assert_eq!(
            replayed("OPTIONS http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n"),
            "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n"
        );
        assert_eq!(
            replayed("GET http://a.example:81 HTTP/1.0\r\n\r\n"),
            "GET / HTTP/1.0\r\nHost: a.example:81\r\n\r\n"
        );
        assert_eq!(
            replayed("\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n"),
            "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
        );
    }

    #[test]
    fn an_upgrade_with_a_body_is_no_offer() {
        let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
        assert!(judged(&format!("{upgrade}\r\n")).offer().unwrap().websocket);
        assert_eq!(
            judged(&format!("{upgrade}Content-Length: 1\r\n\r\n")).offer(),
            None
        );
    }
}
