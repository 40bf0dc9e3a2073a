//! Fuzzes the PROXY header parser: the result for a complete header does not depend on the bytes after the header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_gateway::edge::proxy_protocol::{Header, parse};

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    if let Header::Parsed { used, .. } = whole {
        assert!(used <= data.len());
        assert_eq!(parse(&data[..used]), whole, "it needs no byte after its end");
    }
    for end in 0..data.len() {
        let prefix = parse(&data[..end]);
        assert!(
            prefix == Header::NeedMore || prefix == whole,
            "after {end} bytes: {prefix:?}, then {whole:?}"
        );
        if prefix != Header::NeedMore {
            break;
        }
    }
});
