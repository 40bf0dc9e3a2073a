//! Fuzzes hand-written parsers: values of header fields, and queries of the admin listener.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_fuzz::choice;
use sluice_gateway::admin::ExplainQuery;
use sluice_gateway::local_response::ResponseFormat;
use sluice_gateway::request::{RequestId, cookie, grpc_timeout};

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    match choice(&mut data) % 5 {
        0 => {
            if grpc_timeout(data).is_some() {
                let (unit, digits) = data.split_last().expect("what is taken is not empty");
                assert!(b"HMSmun".contains(unit));
                assert!((1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit));
            }
        }
        1 => {
            if let Some(value) = cookie(data, "user") {
                assert!(!value.contains(&b';'));
                assert!(
                    data.windows(5 + value.len())
                        .any(|w| w.starts_with(b"user=") && w.ends_with(value))
                );
            }
        }
        2 => {
            let id = RequestId::of(Some(data), || 0);
            let id = id.as_str();
            assert!((1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()));
        }
        3 => {
            let (accept, content_type) = data.split_at(data.len() / 2);
            let _ = ResponseFormat::of(Some(accept), Some(content_type));
        }
        _ => {
            let Ok(text) = std::str::from_utf8(data) else {
                return;
            };
            if let Ok(query) = ExplainQuery::parse(text) {
                assert_eq!(ExplainQuery::parse(&query.encode()).as_ref(), Ok(&query));
            }
        }
    }
});
