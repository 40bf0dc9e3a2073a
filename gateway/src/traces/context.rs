//! W3C Trace Context: identifiers of traces and spans, and the `traceparent` field (<https://www.w3.org/TR/trace-context/>).

use std::num::{NonZeroU64, NonZeroU128};

/// The request field that names the caller's span.
pub const TRACEPARENT: &str = "traceparent";

/// The request field with what tracing systems note for themselves; it belongs to a `traceparent`.
pub const TRACESTATE: &str = "tracestate";

/// Length of a `traceparent` of version 00, in bytes; no later version is shorter.
const LENGTH: usize = 55;

/// The flag of `traceparent` by which a caller says that it may have recorded the trace.
const SAMPLED: u8 = 1;

/// The identifier of a trace; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(NonZeroU128);

impl TraceId {
    /// The first identifier of `draw` that is not zero.
    pub fn random(mut draw: impl FnMut() -> u128) -> Self {
        loop {
            if let Some(id) = NonZeroU128::new(draw()) {
                return Self(id);
            }
        }
    }

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

/// The identifier of a span; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(NonZeroU64);

impl SpanId {
    /// The first identifier of `draw` that is not zero.
    pub fn random(mut draw: impl FnMut() -> u64) -> Self {
        loop {
            if let Some(id) = NonZeroU64::new(draw()) {
                return Self(id);
            }
        }
    }

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

/// One span of one trace, and whether the trace is recorded: the content of a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// Parses the value of a `traceparent`: exactly 55 bytes of version 00, at least as many of later versions.
    /// `None` for every other value; the receiver then starts a trace of its own.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, more) = value.split_at_checked(LENGTH)?;
        let version = hex(&known[..2])?;
        let complete = match version {
            0xff => false,
            0 => more.is_empty(),
            // Later versions append fields and change none (section 3.2.4).
            _ => more.first().is_none_or(|&next| next == b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|&at| known[at] == b'-');
        if !complete || !dashes {
            return None;
        }
        let span = u64::try_from(hex(&known[36..52])?).ok()?;
        Some(Self {
            trace: TraceId(NonZeroU128::new(hex(&known[3..35])?)?),
            span: SpanId(NonZeroU64::new(span)?),
            sampled: hex(&known[53..])? & u128::from(SAMPLED) != 0,
        })
    }

    /// The value of a `traceparent` of version 00. Of the flags only `sampled` is set: version 00 knows no other.
    pub fn traceparent(&self) -> [u8; LENGTH] {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut out[3..35], self.trace.0.get());
        write_hex(&mut out[36..52], self.span.0.get().into());
        write_hex(&mut out[53..], u8::from(self.sampled).into());
        out
    }
}

/// A number in lower-case hexadecimal digits, 32 at most. Upper case is malformed in a `traceparent`.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn write_hex(out: &mut [u8], mut number: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Option<TraceContext> {
        TraceContext::parse(text.as_bytes())
    }

    #[test]
    fn the_example_of_the_specification_is_read_and_written() {
        let context = parse(EXAMPLE).unwrap();
        assert_eq!(context.trace.to_bytes()[..2], [0x4b, 0xf9]);
        assert_eq!(context.span.to_bytes()[6..], [0x02, 0xb7]);
        assert!(context.sampled);
        assert_eq!(context.traceparent(), EXAMPLE.as_bytes());
    }

    #[test]
    fn malformed_values_are_refused() {
        for value in [
            "",
            "00",
            // Version ff, which is forbidden, and versions in other digits.
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0A-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            // All zeroes.
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            // Upper case.
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0A",
            // Too short, too long, other separators, other characters.
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
        ] {
            assert_eq!(parse(value), None, "{value}");
        }
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        let known = parse(EXAMPLE).unwrap();
        for value in [
            EXAMPLE.replacen("00", "01", 1),
            EXAMPLE.replacen("00", "fe", 1),
            format!("{}-what-the-future-brings", EXAMPLE.replacen("00", "cc", 1)),
            format!("{}-", EXAMPLE.replacen("00", "01", 1)),
            // Other flags are for others.
            format!("{}ff", &EXAMPLE[..53]),
        ] {
            assert_eq!(parse(&value), Some(known), "{value}");
        }
        let not_sampled = parse(&format!("{}fe", &EXAMPLE[..53])).unwrap();
        assert!(!not_sampled.sampled);
        assert!(not_sampled.traceparent().ends_with(b"-00"));
    }

    #[test]
    fn identifiers_are_drawn_until_one_is_not_zero() {
        let mut draws = [0, 0, 7].into_iter();
        assert_eq!(SpanId::random(|| draws.next().unwrap()).to_bytes()[7], 7);
        let mut draws = [0, 9].into_iter();
        assert_eq!(TraceId::random(|| draws.next().unwrap()).to_bytes()[15], 9);
    }

    /// A second reading, by the grammar of the specification.
    fn by_grammar(value: &str) -> bool {
        let parts: Vec<&str> = value.split('-').collect();
        let lower = |text: &str, length: usize| {
            text.len() == length && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
        };
        let &[version, trace, span, flags, ..] = parts.as_slice() else {
            return false;
        };
        lower(version, 2)
            && version != "ff"
            && lower(trace, 32)
            && trace.contains(|c| c != '0')
            && lower(span, 16)
            && span.contains(|c| c != '0')
            && lower(flags, 2)
            && (version != "00" || parts.len() == 4)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1..=u128::MAX, span in 1..=u64::MAX, sampled: bool) {
            let context = TraceContext {
                trace: TraceId::random(|| trace),
                span: SpanId::random(|| span),
                sampled,
            };
            prop_assert_eq!(TraceContext::parse(&context.traceparent()), Some(context));
        }

        #[test]
        fn parsing_agrees_with_the_grammar(
            value in "(00|01|cc|ff|0F|fe)-(0{32}|[0-9a-f]{32}|[0-9a-fA-F]{31,33})-(0{16}|[0-9a-f]{16}|[0-9a-g]{15,17})-([0-9a-f]{2}|[0-9a-fA-F]{1,3})(-[a-z]{0,3}|[.]x)?"
        ) {
            prop_assert_eq!(parse(&value).is_some(), by_grammar(&value), "{}", value);
        }

        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..80), at in 0..60usize, byte: u8) {
            TraceContext::parse(&value);
            let mut near = EXAMPLE.as_bytes().to_vec();
            if let Some(place) = near.get_mut(at) {
                *place = byte;
            }
            let parsed = TraceContext::parse(&near);
            let grammar = std::str::from_utf8(&near).is_ok_and(by_grammar);
            prop_assert_eq!(parsed.is_some(), grammar);
        }
    }
}
