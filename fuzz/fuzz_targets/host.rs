//! Fuzzes host normalisation: any bytes as Host are refused, or give a valid normalised name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_model::{Host, HostPattern, normalize_host};

fuzz_target!(|data: &[u8]| {
    let mut buf = [0; 256];
    let normal = normalize_host(data, &mut buf).map(str::to_owned);
    if let Ok(normal) = &normal {
        assert!(!normal.is_empty() && normal.len() <= 253);
        assert!(
            !normal
                .bytes()
                .any(|b| b.is_ascii_uppercase() || b <= b' ' || b >= 0x7f)
        );
        // Normalisation is idempotent: a second run changes nothing, nor does a port or a trailing dot.
        let mut again = [0; 256];
        assert_eq!(normalize_host(normal.as_bytes(), &mut again), Ok(normal.as_str()));
        let with_port = format!("{normal}:8080");
        assert_eq!(
            normalize_host(with_port.as_bytes(), &mut again),
            Ok(normal.as_str())
        );
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // The errors differ: `Host` names a character where `normalize_host` has a byte.
    assert_eq!(Host::parse(text).map(|h| h.to_string()).ok(), normal.ok());
    let Ok(pattern) = HostPattern::parse(text) else {
        return;
    };
    assert_eq!(HostPattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern));
    match &pattern {
        HostPattern::Exact(host) => assert!(pattern.matches(host.as_str())),
        HostPattern::Wildcard(suffix) => {
            assert!(
                !pattern.matches(suffix.as_str()),
                "a wildcard wants one label or more"
            );
            assert!(pattern.matches(&format!("a.b.{suffix}")));
            assert!(!pattern.matches(&format!("a{suffix}")), "labels are whole");
        }
        HostPattern::Any => panic!("no text is every host"),
    }
});
