//! When certificates end.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::ListenerCertificates;
use super::text::Family;

/// Series for each listener: those that end first. Thousands of certificates are no thousands of series, and
/// the one to look at is always among them.
const SHOWN: usize = 100;

/// Appends how many there are and when the first of them end.
pub(super) fn render(out: &mut String, listeners: Vec<ListenerCertificates>) {
    let help = "Certificates that a listener serves.";
    let mut counts = Family::new(out, "sluice_certificates", "gauge", help);
    for ListenerCertificates { listener, ends } in &listeners {
        counts.line("", format_args!("listener=\"{listener}\""), ends.len());
    }
    let name = "sluice_certificate_not_after_seconds";
    let help = "When a certificate ends to be valid, in seconds since 1970; those that end first.";
    let mut family = Family::new(out, name, "gauge", help);
    for ListenerCertificates { listener, ends } in &listeners {
        // A file listed twice is one series.
        let files: BTreeMap<_, _> = ends.iter().map(|(file, end)| (file, *end)).collect();
        let mut first: Vec<_> = files.into_iter().map(|(file, end)| (end, file)).collect();
        first.sort_unstable();
        for (end, file) in first.into_iter().take(SHOWN) {
            let seconds = end.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let labels = format_args!("listener=\"{listener}\",certificate=\"{}\"", Escaped(file));
            family.line("", labels, seconds);
        }
    }
}

/// A path as a label's value.
struct Escaped<'p>(&'p Path);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.to_string_lossy().chars() {
            match char {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn those_that_end_first_and_how_many_there_are() {
        let end = |n: u64| UNIX_EPOCH + Duration::from_secs(1_000_000 - n);
        let ends = (0..5_000).map(|n| (format!("/tls/{n}.crt").into(), end(n)));
        let listener = ([127, 0, 0, 1], 8443).into();
        let mut out = String::new();
        let all = ListenerCertificates {
            listener,
            ends: ends.collect(),
        };
        render(&mut out, vec![all]);
        assert!(
            out.contains("sluice_certificates{listener=\"127.0.0.1:8443\"} 5000\n"),
            "{out}"
        );
        let series = |n: u64| {
            let file = format!("certificate=\"/tls/{n}.crt\"}} {}\n", 1_000_000 - n);
            out.contains(&format!(
                "sluice_certificate_not_after_seconds{{listener=\"127.0.0.1:8443\",{file}"
            ))
        };
        assert!(series(4_999) && series(4_900) && !series(4_899), "{out}");
    }

    #[test]
    fn a_file_is_one_series_and_its_name_breaks_no_line() {
        let listener = ([127, 0, 0, 1], 8443).into();
        let odd = ("/a\"b\\c\nd.crt".into(), UNIX_EPOCH);
        let mut out = String::new();
        let all = ListenerCertificates {
            listener,
            ends: vec![odd.clone(), odd],
        };
        render(&mut out, vec![all]);
        let series: Vec<_> = out.lines().filter(|l| l.contains("certificate=")).collect();
        assert_eq!(series.len(), 1, "{out}");
        assert!(series[0].contains(r#"certificate="/a\"b\\c\nd.crt""#), "{out}");
        let mut none = String::new();
        render(&mut none, Vec::new());
        assert_eq!(none, "");
    }
}
