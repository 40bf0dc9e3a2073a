//! Escaping of untrusted bytes for one line of text or JSON.

use std::io::Write;

/// The longest logged part of a field that a client chose, in bytes before escaping.
const MAX_FIELD: usize = 2048;

/// Appends `bytes` as the inside of a JSON string. Invalid UTF-8 becomes U+FFFD; a character that is
/// [`is_unsafe`] becomes `\uXXXX`, so that a line stays one line in every viewer.
pub(super) fn json(out: &mut Vec<u8>, bytes: &[u8]) {
    let (bytes, cut) = shorten(bytes);
    // The common case: nothing to do.
    if bytes
        .iter()
        .all(|b| matches!(b, 0x20..=0x7e) && *b != b'"' && *b != b'\\')
    {
        out.extend_from_slice(bytes);
    } else {
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                json_char(out, c);
            }
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    if cut {
        out.extend_from_slice("…".as_bytes());
    }
}

fn json_char(out: &mut Vec<u8>, c: char) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        // All unsafe characters are in the basic plane.
        c if is_unsafe(c) => push(out, format_args!("\\u{:04x}", u32::from(c))),
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Appends `bytes` as one word for a terminal: no space, no control character, no direction
/// override; such characters and invalid bytes become `\xNN` or `\u{NNNN}`. An empty field becomes `-`.
pub(super) fn word(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        out.push(b'-');
        return;
    }
    let (bytes, cut) = shorten(bytes);
    if bytes.iter().all(|b| matches!(b, 0x21..=0x7e) && *b != b'\\') {
        out.extend_from_slice(bytes);
    } else {
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => out.extend_from_slice(b"\\\\"),
                    '\0'..=' ' | '\x7f' => push(out, format_args!("\\x{:02x}", u32::from(c))),
                    c if is_unsafe(c) || c.is_whitespace() => {
                        push(out, format_args!("\\u{{{:x}}}", u32::from(c)));
                    }
                    c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
            for b in chunk.invalid() {
                push(out, format_args!("\\x{b:02x}"));
            }
        }
    }
    if cut {
        out.extend_from_slice("…".as_bytes());
    }
}

/// Appends formatted text.
pub(super) fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A Vec never fails.
    let _ = out.write_fmt(text);
}

fn shorten(bytes: &[u8]) -> (&[u8], bool) {
    if bytes.len() <= MAX_FIELD {
        return (bytes, false);
    }
    // Not in the middle of a character, where there is one.
    let mut end = MAX_FIELD;
    while end > MAX_FIELD - 4 && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    (&bytes[..end], true)
}

/// Whether a character must not reach a terminal or a line-based reader raw: controls (C1 controls drive
/// terminals, too), the two Unicode line ends, and direction overrides, which make a line read as another one.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn as_json(bytes: &[u8]) -> String {
        let mut out = vec![b'"'];
        json(&mut out, bytes);
        out.push(b'"');
        String::from_utf8(out).unwrap()
    }

    fn as_word(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        word(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn json_reads_back_as_what_it_was(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = as_json(&bytes);
            let back: String = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(back, String::from_utf8_lossy(&bytes).into_owned());
            prop_assert!(!text.chars().any(is_unsafe));
        }

        #[test]
        fn a_word_is_one_word(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let text = as_word(&bytes);
            prop_assert!(!text.chars().any(|c| is_unsafe(c) || c.is_whitespace()));
        }
    }

    #[test]
    fn terminals_are_left_in_peace() {
        assert_eq!(as_word(b"a\x1b[31m\xff \\"), r"a\x1b[31m\xff\x20\\");
        assert_eq!(as_word("\u{9b}\u{202e}é".as_bytes()), r"\u{9b}\u{202e}é");
        assert_eq!(as_word(b""), "-");
    }

    #[test]
    fn fields_are_bounded_and_cut_between_characters() {
        let long = "é".repeat(MAX_FIELD);
        for text in [as_word(long.as_bytes()), as_json(long.as_bytes())] {
            assert!(text.len() <= MAX_FIELD + 5);
            assert!(text.trim_matches('"').ends_with("é…"));
        }
        assert!(as_json(&[0x80; 5000]).len() < 4 * MAX_FIELD);
    }
}
