//! Parses and formats durations, sizes and percentages.

use std::time::Duration;

/// The pattern of [`parse_duration`], for the schema.
pub(crate) const DURATION_PATTERN: &str = "^(0|([0-9]+(\\.[0-9]+)?(ms|s|m|h))+)$";
/// The pattern of [`parse_size`], for the schema.
pub(crate) const SIZE_PATTERN: &str = "^[0-9]+(B|KiB|MiB|GiB|TiB)?$";

/// Parses `250ms`, `10s`, `1.5h`, `1m30s`; a bare `0` needs no unit. `None` for anything else.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    // The bound keeps the arithmetic below exact.
    if text.is_empty() || text.len() > 32 {
        return None;
    }
    let mut total = 0u128;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let nanos: u128 = match unit {
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || whole.len() > 18 || fraction.len() > 9 {
            return None;
        }
        let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        total += whole.parse::<u128>().ok()? * nanos + fraction.parse::<u128>().ok()? * nanos / scale;
        rest = after;
    }
    let seconds = u64::try_from(total / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, u32::try_from(total % 1_000_000_000).ok()?))
}

/// Formats a duration in one unit, as short as possible.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        // 60s, not 1m: nobody thinks of 90 s as 1.5 minutes.
        _ if millis.is_multiple_of(60_000) && millis > 300_000 => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

const SIZES: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Parses `64KiB`, `1GiB`, or a number of bytes, into bytes. `None` for anything else, and on overflow.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = SIZES
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
        .unwrap_or((text, 0));
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Formats a size in bytes exactly, as short as possible.
pub(crate) fn show_size(bytes: u64) -> String {
    let unit = SIZES
        .iter()
        .find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    match unit {
        Some((unit, shift)) if *shift > 0 => format!("{}{unit}", bytes >> shift),
        _ => bytes.to_string(),
    }
}

/// The reason why a number has no value in hundredths.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HundredthsError {
    Negative,
    TooFine,
}

/// Parses a number of up to two decimals as hundredths, exactly: a float would round. The text is a number; one beyond
/// `u32` is `u32::MAX`.
pub(crate) fn parse_hundredths(text: &str) -> Result<u32, HundredthsError> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text.starts_with('-') && text.parse::<f64>().is_ok_and(|v| v < 0.0) {
        return Err(HundredthsError::Negative);
    }
    let text = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 2 {
        return Err(HundredthsError::TooFine);
    }
    let whole: u32 = if whole.is_empty() {
        0
    } else {
        whole.parse().unwrap_or(u32::MAX)
    };
    let fraction: u32 = format!("{fraction:0<2}").parse().unwrap_or(0);
    Ok(whole.saturating_mul(100).saturating_add(fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1.5s", 1_500),
            ("1m30s", 90_000),
            ("0s", 0),
            ("0", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "", "10", "s", "10 s", "-1s", "1d", "1.s", ".5s", "1..5s", "soon", "1s2", "١s", "1é",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(parse_duration(&"9".repeat(40)), None);
        assert_eq!(parse_duration("999999999999999999h"), None);
    }

    #[test]
    fn durations_are_shown_as_written() {
        for text in ["250ms", "10s", "60s", "300s", "10m", "1h", "0s"] {
            let parsed = parse_duration(text).expect("a duration");
            assert_eq!(show_duration(parsed), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("64KiB", 65_536),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "KiB", "1KB", "1 KiB", "-1", "1.5KiB", "99999999999TiB", "+1"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(show_size(65_536), "64KiB");
        assert_eq!(show_size(1_000), "1000");
    }

    #[test]
    fn shares_are_exact() {
        for (text, want) in [
            ("50", Ok(5_000)),
            ("99.99", Ok(9_999)),
            ("0.1", Ok(10)),
            ("33.300", Ok(3_330)),
            (".5", Ok(50)),
            ("100.01", Ok(10_001)),
            ("99999999999", Ok(u32::MAX)),
            ("-0", Ok(0)),
            ("-1", Err(HundredthsError::Negative)),
            ("33.333", Err(HundredthsError::TooFine)),
            ("5e1", Err(HundredthsError::TooFine)),
        ] {
            assert_eq!(parse_hundredths(text), want, "{text}");
        }
    }
}
