//! ASCII forms of international host names, for hints: IDNA without its tables.

/// The ASCII form of an international host name (RFC 5890, RFC 3492), lower case; `None` where it takes more than
/// lower case to find it: characters that combine, or that are written in several ways.
pub(super) fn ascii_host(host: &str) -> Option<String> {
    let labels: Option<Vec<String>> = host.split('.').map(ascii_label).collect();
    labels.map(|labels| labels.join("."))
}

fn ascii_label(label: &str) -> Option<String> {
    let label: Vec<char> = label.chars().flat_map(char::to_lowercase).collect();
    if label
        .iter()
        .all(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_')
    {
        return Some(label.into_iter().collect());
    }
    // Composed letters of the Latin, Greek and Cyrillic blocks, kana and ideographs need no normalisation.
    let settled = |c: &char| {
        c.is_ascii_alphanumeric()
            || *c == '-'
            || (c.is_alphabetic()
                && matches!(c, '\u{df}'..='\u{24f}' | '\u{3ac}'..='\u{3ce}' | '\u{430}'..='\u{45f}'
                    | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{30fc}' | '\u{4e00}'..='\u{9fff}'))
    };
    let short = |ascii: &String| ascii.len() <= 59;
    let encoded = label.iter().all(settled).then(|| punycode(&label)).flatten();
    encoded.filter(short).map(|ascii| format!("xn--{ascii}"))
}

/// RFC 3492 6.3. `None` on overflow.
fn punycode(label: &[char]) -> Option<String> {
    const BASE: u32 = 36;
    const T_MIN: u32 = 1;
    const T_MAX: u32 = 26;
    let digit = |value: u32| {
        char::from_digit(value, BASE).map(|c| match c {
            // Its digits are a to z, then 0 to 9; those of `from_digit` begin with the numbers.
            '0'..='9' => char::from(b'a' + (c as u8 - b'0')),
            c if c < 'q' => char::from(c as u8 + 10),
            c => char::from(b'0' + (c as u8 - b'q')),
        })
    };
    let mut out: String = label.iter().filter(|c| c.is_ascii()).collect();
    let basic = u32::try_from(out.len()).ok()?;
    if basic > 0 {
        out.push('-');
    }
    let (mut next, mut delta, mut bias, mut handled) = (128u32, 0u32, 72u32, basic);
    let total = u32::try_from(label.len()).ok()?;
    while handled < total {
        let least = label.iter().map(|c| u32::from(*c)).filter(|c| *c >= next).min()?;
        delta = delta.checked_add((least - next).checked_mul(handled + 1)?)?;
        next = least;
        for c in label.iter().map(|c| u32::from(*c)) {
            if c < next {
                delta = delta.checked_add(1)?;
            }
            if c != next {
                continue;
            }
            let mut rest = delta;
            for k in (BASE..).step_by(BASE as usize) {
                let t = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
                if rest < t {
                    break;
                }
                out.push(digit(t + (rest - t) % (BASE - t))?);
                rest = (rest - t) / (BASE - t);
            }
            out.push(digit(rest)?);
            let first = handled == basic;
            handled += 1;
            let mut scaled = delta / if first { 700 } else { 2 };
            scaled += scaled / handled;
            let mut k = 0;
            while scaled > ((BASE - T_MIN) * T_MAX) / 2 {
                scaled /= BASE - T_MIN;
                k += BASE;
            }
            bias = k + (BASE - T_MIN + 1) * scaled / (scaled + 38);
            delta = 0;
        }
        delta += 1;
        next += 1;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3492 7.1 that need no more than lower case, and some names.
    #[test]
    fn names_have_an_ascii_form() {
        for (host, want) in [
            ("müller.example", "xn--mller-kva.example"),
            ("MÜLLER.example", "xn--mller-kva.example"),
            ("bücher.de", "xn--bcher-kva.de"),
            ("faß.de", "xn--fa-hia.de"),
            ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
            ("他们为什么不说中文", "xn--ihqwcrb4cv8a8dqg056pqjye"),
            (
                "почемужеонинеговорятпорусски",
                "xn--b1abfaaepdrnnbgefbadotcwatmq2g4l",
            ),
            ("3年b組金八先生", "xn--3b-ww4c5e180e575a65lsy2b"),
            ("plain.example", "plain.example"),
        ] {
            assert_eq!(ascii_host(host).as_deref(), Some(want));
        }
        for host in ["mu\u{308}ller.example", "a b", "مثال", "ｆｕｌｌ"] {
            assert_eq!(ascii_host(host), None, "{host}");
        }
    }
}
