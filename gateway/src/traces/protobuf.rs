//! A writer of protobuf's wire format, as far as OTLP's traces need it (<https://protobuf.dev/programming-guides/encoding/>).
//!
//! Fields go straight into a byte buffer: messages are not built as values first, so that a span costs no allocation. Fields of
//! proto3 that have their default may be left out, and are.

/// Appends a varint.
pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The length of a varint, in bytes.
pub(super) fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    varint(out, u64::from(field << 3 | wire_type));
}

/// A field of an integer or enum type.
pub(super) fn uint(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, 0);
    varint(out, value);
}

/// A field of type `fixed64`.
pub(super) fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A field of type `fixed32`.
pub(super) fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    tag(out, field, 5);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A field of type `bytes`, or `string` where the bytes are UTF-8.
pub(super) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    tag(out, field, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A field of a message type: what `write` appends is its content.
pub(super) fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, 2);
    let start = out.len();
    // Room for the length of short messages; longer ones are moved a little.
    out.push(0);
    write(out);
    let length = (out.len() - start - 1) as u64;
    let more = varint_length(length) - 1;
    if more > 0 {
        out.splice(start..start, std::iter::repeat_n(0, more));
    }
    let mut rest = length;
    for place in &mut out[start..=start + more] {
        *place = rest as u8 | 0x80;
        rest >>= 7;
    }
    out[start + more] &= 0x7f;
}

/// A field of type `string` whose text somebody else chose: bytes that are not UTF-8 are replaced, since a decoder refuses a whole
/// message because of one of them, and the text is cut off after `most` bytes.
pub(super) fn foreign_text(out: &mut Vec<u8>, field: u32, text: &[u8], most: usize) {
    message(out, field, |out| {
        let end = out.len() + most;
        for chunk in text.utf8_chunks() {
            let room = end - out.len();
            let valid = chunk.valid();
            let fits = valid.floor_char_boundary(room);
            out.extend_from_slice(&valid.as_bytes()[..fits]);
            let replacement = char::REPLACEMENT_CHARACTER.len_utf8();
            if fits < valid.len() || end - out.len() < replacement {
                return;
            }
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    });
}

/// The fields of a message, as far as they can be read.
pub(super) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u32, Value<'_>)> {
    std::iter::from_fn(move || {
        let key = read_varint(&mut message)?;
        let value = match key & 7 {
            0 => Value::Varint(read_varint(&mut message)?),
            1 => Value::Bytes(message.split_off(..8)?),
            2 => {
                let length = usize::try_from(read_varint(&mut message)?).ok()?;
                Value::Bytes(message.split_off(..length)?)
            }
            5 => Value::Bytes(message.split_off(..4)?),
            _ => return None,
        };
        Some((u32::try_from(key >> 3).ok()?, value))
    })
}

/// The value of a field that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// Of an integer type.
    Varint(u64),
    /// Of any other type.
    Bytes(&'a [u8]),
}

fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes, and returns the one field.
    fn text(value: &[u8], most: usize) -> String {
        let mut out = Vec::new();
        foreign_text(&mut out, 1, value, most);
        match fields(&out).next() {
            Some((1, Value::Bytes(text))) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn foreign_text_is_utf8_and_bounded() {
        assert_eq!(text(b"plain", 9), "plain");
        assert_eq!(text(b"plain", 3), "pla");
        assert_eq!(text("\u{e4}\u{e4}".as_bytes(), 3), "\u{e4}");
        assert_eq!(text(b"a\xff\xfeb", 99), "a\u{fffd}\u{fffd}b");
        assert_eq!(text(b"a\xff", 3), "a");
        assert_eq!(text(b"", 3), "");
    }

    proptest! {
        #[test]
        fn varints_have_their_length(value: u64) {
            let mut out = Vec::new();
            varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_length(value));
            prop_assert_eq!(read_varint(&mut &out[..]), Some(value));
        }

        #[test]
        fn messages_of_any_length_are_read_back(length in prop_oneof![0..300usize, 16_300..16_500usize], field in 1..1000u32) {
            let mut out = Vec::new();
            message(&mut out, field, |out| out.resize(out.len() + length, 7));
            uint(&mut out, 3, 5);
            let body = vec![7; length];
            let read: Vec<_> = fields(&out).collect();
            prop_assert_eq!(read, [(field, Value::Bytes(&body)), (3, Value::Varint(5))]);
        }

        #[test]
        fn foreign_text_of_any_bytes_fits(value in proptest::collection::vec(any::<u8>(), 0..40), most in 0..50usize) {
            prop_assert!(text(&value, most).len() <= most);
            prop_assert_eq!(text(&value, 200), String::from_utf8_lossy(&value));
        }

        #[test]
        fn reading_any_bytes_ends(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(fields(&value).count() <= value.len());
        }
    }
}
