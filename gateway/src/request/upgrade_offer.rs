//! Filter of upgrade offers: which protocols are offered to a backend.

use sluice_model::{Protocol, RevisionSpec};

/// The part of an `Upgrade` field that is forwarded, as one field value; `None` where nothing is left, and
/// the request is served as if nothing had been offered (RFC 9110 7.8 lets a server ignore any offer).
///
/// `offered` is the field's value, several fields joined by commas. A backend that speaks HTTP/2 cannot
/// switch. WebSocket always passes, another protocol if `upgrades` of the revision names it; without that key
/// any protocol passes but TLS, h2 and h2c, which clients offer on their own and no backend here accepts.
/// Spelling and order stay. Invalid elements of the list are dropped.
pub fn upgrade_to_forward(offered: &[u8], spec: &RevisionSpec) -> Option<Vec<u8>> {
    if spec.protocol != Protocol::Http1 {
        return None;
    }
    let kept: Vec<&[u8]> = offered
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|offer| forwards(offer, spec.upgrades.as_deref()))
        .collect();
    (!kept.is_empty()).then(|| kept.join(&b", "[..]))
}

fn forwards(offer: &[u8], allowed: Option<&[String]>) -> bool {
    let mut parts = offer.splitn(2, |&byte| byte == b'/');
    let name = parts.next().unwrap_or_default();
    let is_token = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(|&b| is_token_byte(b));
    if !is_token(name) || parts.next().is_some_and(|version| !is_token(version)) {
        return false;
    }
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    if is(b"tls") || is(b"h2") || is(b"h2c") {
        return false;
    }
    let Some(allowed) = allowed else { return true };
    // A name without version stands for all of its versions.
    let named = |one: &String| {
        let wanted = if one.contains('/') { offer } else { name };
        wanted.eq_ignore_ascii_case(one.as_bytes())
    };
    is(b"websocket") || allowed.iter().any(named)
}

/// Whether a byte is RFC 9110's `tchar` (5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::test_kit;

    fn spec(protocol: Protocol, upgrades: Option<&[&str]>) -> RevisionSpec {
        let mut spec = test_kit::spec("web-a", test_kit::fixed(&[1]));
        spec.protocol = protocol;
        spec.upgrades = upgrades.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        spec
    }

    #[test]
    fn only_what_a_backend_may_switch_to_is_forwarded() {
        for (offered, allowed, forwarded) in [
            // RFC 9110 7.8: any offer may be ignored; RFC 2817 and RFC 9113 3.1 are what clients offer unasked.
            ("TLS/1.2", None, None),
            ("tls/1.0, HTTP/1.1", None, Some("HTTP/1.1")),
            ("h2c", None, None),
            ("H2", None, None),
            ("websocket", None, Some("websocket")),
            ("WebSocket", Some(&["tcp"][..]), Some("WebSocket")),
            ("websocket", Some(&[]), Some("websocket")),
            ("h2c , websocket,TLS/1.2", None, Some("websocket")),
            ("tcp", None, Some("tcp")),
            ("tcp", Some(&["websocket"]), None),
            ("tcp, SPDY/3.1", Some(&["spdy/3.1"]), Some("SPDY/3.1")),
            ("SPDY/3", Some(&["spdy/3.1"]), None),
            ("SPDY/3", Some(&["spdy"]), Some("SPDY/3")),
            ("", None, None),
            (", ,", None, None),
            ("a b, /1, a/", None, None),
        ] {
            let kept = upgrade_to_forward(offered.as_bytes(), &spec(Protocol::Http1, allowed));
            assert_eq!(
                kept.as_deref(),
                forwarded.map(str::as_bytes),
                "{offered} {allowed:?}"
            );
        }
    }

    #[test]
    fn a_backend_that_speaks_http2_is_asked_for_nothing() {
        for offered in ["websocket", "tcp", "h2c"] {
            assert_eq!(
                upgrade_to_forward(offered.as_bytes(), &spec(Protocol::H2c, None)),
                None
            );
        }
    }
}
