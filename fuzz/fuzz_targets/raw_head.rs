//! Fuzzes the HTTP/1 request head: however the input is cut, the verdict is the same; and a head that passes is what
//! another parser (httparse) reads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_fuzz::{choice, ends};
use sluice_gateway::http1::{HeadLimits, RequestHead, Scan, judge, scan};

const ROOMY: HeadLimits = HeadLimits {
    max_bytes: 64 << 10,
    max_headers: 128,
    max_uri_bytes: 16 << 10,
};

/// Limits that inputs of a fuzzer's size reach.
const TIGHT: HeadLimits = HeadLimits {
    max_bytes: 256,
    max_headers: 4,
    max_uri_bytes: 32,
};

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let choices = choice(&mut data);
    let limits = if choices & 1 == 0 { &ROOMY } else { &TIGHT };
    let whole = scan(data, limits, 0);
    let mut pieces = Scan::NeedMore { scanned: 0 };
    for end in ends(data.len(), choices >> 1) {
        let Scan::NeedMore { scanned } = pieces else {
            break;
        };
        assert!(scanned <= end);
        pieces = scan(&data[..end], limits, scanned);
    }
    match (whole, pieces) {
        (Scan::NeedMore { .. }, Scan::NeedMore { .. }) => {}
        (whole, pieces) => assert_eq!(whole, pieces),
    }
    // Judging bytes that were never scanned must not panic either.
    let judged = judge(data, limits);
    let Scan::Complete { len } = whole else {
        return;
    };
    assert!(len <= data.len() && len <= limits.max_bytes);
    assert_eq!(judge(&data[..len], limits), judged, "bytes after the head count");
    let Ok(info) = judged else {
        return;
    };
    assert_eq!(info.len, len);
    agrees_with_httparse(RequestHead::new(&data[..len], &info));
});

/// The differential check against httparse, which many parsers of backends are built on.
fn agrees_with_httparse(head: RequestHead<'_>) {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(head.bytes);
    assert_eq!(parsed, Ok(httparse::Status::Complete(head.info.len)));
    assert_eq!(request.method, Some(head.method()));
    assert_eq!(request.path, Some(head.target()));
    assert!(head.path() == "*" || head.path().starts_with('/'));
    let ours: Vec<_> = head.fields().collect();
    let theirs: Vec<_> = request
        .headers
        .iter()
        .map(|h| (h.name.as_bytes(), h.value))
        .collect();
    assert_eq!(ours, theirs);
}
