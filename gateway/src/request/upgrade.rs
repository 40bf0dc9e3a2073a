//! Which offers to switch to another protocol are passed on.

use sluice_model::RevisionSpec;

/// The offer that is passed on to a backend of this revision; `None` ignores the offer, as RFC 9110 7.8 allows.
///
/// TLS and HTTP/2 are between a client and its next hop, so they are never passed on.
pub fn upgrade_to_forward<'o>(offered: &'o [u8], _: &RevisionSpec) -> Option<&'o [u8]> {
    let mut tokens = offered.split(|&b| b == b',').map(<[u8]>::trim_ascii);
    let never = |token: &[u8]| {
        token.eq_ignore_ascii_case(b"h2c")
            || token.eq_ignore_ascii_case(b"h2")
            || token.len() >= 4 && token[..4].eq_ignore_ascii_case(b"TLS/")
    };
    (!tokens.any(|token| token.is_empty() || never(token))).then_some(offered)
}
