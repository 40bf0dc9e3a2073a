//! The metrics of certificates: how many, and when they expire.

use std::collections::BTreeMap;
use std::fmt;
use std::time::UNIX_EPOCH;

use super::ListenerCertificates;
use super::exposition::Exposition;
use super::families::{CERTIFICATE_ENDS, CERTIFICATES};

/// Series for each listener: the certificates that expire first. Bounds the series of a listener with thousands
/// of certificates; the certificate to look at is always among those shown.
const SHOWN: usize = 100;

/// Writes how many certificates there are, and when the first of them expire.
pub(super) fn expose(out: &mut Exposition, listeners: &[ListenerCertificates]) {
    let mut counts = out.family(&CERTIFICATES);
    for ListenerCertificates { listener, ends } in listeners {
        counts.sample(format_args!("listener=\"{listener}\""), ends.len());
    }
    let mut first_ends = out.family(&CERTIFICATE_ENDS);
    for ListenerCertificates { listener, ends } in listeners {
        // A certificate that is listed twice is one series: that of the version that ends first.
        let mut names = BTreeMap::new();
        for (name, end) in ends {
            let first = names.entry(name).or_insert(*end);
            *first = *end.min(first);
        }
        let mut first: Vec<_> = names.into_iter().map(|(name, end)| (end, name)).collect();
        first.sort_unstable();
        for (end, name) in first.into_iter().take(SHOWN) {
            let seconds = end.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let labels = format_args!("listener=\"{listener}\",certificate=\"{}\"", Escaped(name));
            first_ends.sample(labels, seconds);
        }
    }
}

/// A name as a label's value.
struct Escaped<'p>(&'p str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
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

    fn exposed(listeners: &[ListenerCertificates]) -> String {
        let mut out = Exposition::default();
        expose(&mut out, listeners);
        out.into_text()
    }

    #[test]
    fn those_that_end_first_and_how_many_there_are() {
        let end = |n: u64| UNIX_EPOCH + Duration::from_secs(1_000_000 - n);
        let ends = (0..5_000).map(|n| (format!("/tls/{n}.crt"), end(n)));
        let listener = ([127, 0, 0, 1], 8443).into();
        let ends = ends.collect();
        let out = exposed(&[ListenerCertificates { listener, ends }]);
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
        let ends = vec![odd.clone(), odd];
        let out = exposed(&[ListenerCertificates { listener, ends }]);
        let series: Vec<_> = out.lines().filter(|l| l.contains("certificate=")).collect();
        assert_eq!(series.len(), 1, "{out}");
        assert!(series[0].contains(r#"certificate="/a\"b\\c\nd.crt""#), "{out}");
        assert_eq!(exposed(&[]), "");
    }
}
