//! `Accept`: whether a client names a media type (RFC 9110 12.5.1).

use super::headers::Fields;

/// Whether the `Accept` fields of a head name exactly this media type with a weight above zero. Ranges (`*/*`, `text/*`)
/// name no type: nearly every client sends one. A range with parameters of its own counts only where the type is not
/// named without. A weight that is no weight counts as zero.
pub fn names_media_type(head: &impl Fields, media_type: &str) -> bool {
    let (mut plain, mut with_parameters) = (None, None);
    head.each(|name, value| {
        if !name.eq_ignore_ascii_case(b"accept") {
            return;
        }
        for range in Split::new(value, b',') {
            let mut parts = Split::new(range, b';');
            let named = parts.next().unwrap_or_default();
            if !named.trim_ascii().eq_ignore_ascii_case(media_type.as_bytes()) {
                continue;
            }
            let (mut weight, mut parameters) = (1000, false);
            for parameter in parts {
                match weight_of(parameter.trim_ascii()) {
                    Some(given) => {
                        weight = given;
                        // What follows the weight is no parameter of the type.
                        break;
                    }
                    None => parameters |= !parameter.trim_ascii().is_empty(),
                }
            }
            let kept = if parameters {
                &mut with_parameters
            } else {
                &mut plain
            };
            *kept = Some(kept.map_or(weight, |other: u16| other.max(weight)));
        }
    });
    plain.or(with_parameters).is_some_and(|weight| weight > 0)
}

/// The weight of a parameter in thousandths; `None` for another parameter.
fn weight_of(parameter: &[u8]) -> Option<u16> {
    let at = parameter.iter().position(|&b| b == b'=')?;
    let (name, value) = (&parameter[..at], &parameter[at + 1..]);
    name.trim_ascii()
        .eq_ignore_ascii_case(b"q")
        .then(|| thousandths(value.trim_ascii()).unwrap_or(0))
}

/// `0`, `0.`, `0.5`, `1.000`: up to three decimals, and at most 1.
fn thousandths(text: &[u8]) -> Option<u16> {
    let (whole, rest) = text.split_first()?;
    let decimals = match rest.split_first() {
        None => &[][..],
        Some((b'.', decimals)) if decimals.len() <= 3 => decimals,
        Some(_) => return None,
    };
    let mut value = match whole {
        b'0' => 0,
        b'1' => 1,
        _ => return None,
    };
    for place in 0..3 {
        let digit = decimals.get(place).copied().unwrap_or(b'0');
        value = value * 10 + u16::from(digit.checked_sub(b'0').filter(|digit| *digit <= 9)?);
    }
    (value <= 1000).then_some(value)
}

/// Splits at a separator outside of quoted strings.
struct Split<'v> {
    rest: Option<&'v [u8]>,
    separator: u8,
}

impl<'v> Split<'v> {
    fn new(value: &'v [u8], separator: u8) -> Self {
        Self {
            rest: Some(value),
            separator,
        }
    }
}

impl<'v> Iterator for Split<'v> {
    type Item = &'v [u8];

    fn next(&mut self) -> Option<&'v [u8]> {
        let rest = self.rest?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, &byte) in rest.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if byte == self.separator && !quoted => {
                    self.rest = Some(&rest[at + 1..]);
                    return Some(&rest[..at]);
                }
                _ => {}
            }
        }
        self.rest = None;
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Head<'h>(&'h [&'h [u8]]);

    impl Fields for Head<'_> {
        fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
            for value in self.0 {
                each(b"Accept", value);
            }
        }

        fn first(&self, _: &str) -> Option<&[u8]> {
            self.0.first().copied()
        }
    }

    fn names(values: &[&str], media_type: &str) -> bool {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        names_media_type(&Head(&values), media_type)
    }

    #[test]
    fn a_type_is_named_by_its_name_alone() {
        const CHROME: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, named) in [
            (&[CHROME][..], true),
            (&["TEXT/HTML"], true),
            (&["text/html;q=0.1"], true),
            (&["application/json", "text/html"], true),
            (&["text/html; charset=utf-8 ; q=0.5"], true),
            (&["text/html;level=1;q=0.5, text/html;q=0"], false),
            (&["text/html;q=0"], false),
            (&["text/html;q=0.000"], false),
            (&["text/html ; Q=0"], false),
            (&["text/html;q=0.0001"], false),
            (&["text/html;q=2"], false),
            (&["text/html;q="], false),
            (&["text/html;q=-1"], false),
            (&["*/*"], false),
            (&["text/*"], false),
            (&[], false),
            (&["", ",,"], false),
            (&["text/htmlx, xtext/html"], false),
            (&["a/b;c=\"text/html, text/html\""], false),
            (&["a/b;c=\"\\\", text/html\", x/y"], false),
            (&["a/b;c=\"x\", text/html"], true),
        ] {
            assert_eq!(names(accept, "text/html"), named, "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn a_named_type_goes_by_its_weight(
            before in "([a-z]{1,4}/[a-z*]{1,4}(;q=0\\.[0-9])?,){0,3}",
            weight in prop::option::of(0u16..=1000),
            after in "(,[a-z]{1,4}/[a-z*]{1,4}(;q=0\\.[0-9])?){0,3}",
        ) {
            let q = weight.map_or_else(String::new, |w| format!(";q={}.{:03}", w / 1000, w % 1000));
            let accept = format!("{before}text/event-stream{q}{after}");
            prop_assert_eq!(names(&[&accept], "text/event-stream"), weight != Some(0));
            let other = format!("{before}x/y{after}");
            prop_assert!(!names(&[&other], "text/event-stream"));
        }

        #[test]
        fn any_bytes_are_read(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            names_media_type(&Head(&[&value]), "text/html");
        }
    }
}
