//! Validation of the bytes of a request target.

use thiserror::Error;

/// Why a request target is rejected, with status 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TargetFault {
    /// The target is empty.
    #[error("the request target is empty")]
    Empty,
    /// A byte that is not allowed in a target.
    #[error("the request target has the byte {0:#04x}")]
    Byte(u8),
    /// A `#`, which begins a fragment.
    #[error("the request target has a fragment")]
    Fragment,
}

/// Validates the bytes of a request target of any form: one rule for HTTP/1 and HTTP/2, for path and query
/// alike.
///
/// Visible ASCII passes as it was sent, except `"`, `<`, `>`, `` ` `` and `#`. RFC 3986 (appendix A) allows
/// neither these nor `\`, `^`, `{`, `|`, `}`, `[` and `]` in path or query; the latter pass because browsers
/// send them as they are and every server reads them as themselves. Percent-encoding is not interpreted.
///
/// # Errors
/// The first byte that is not allowed.
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
}
