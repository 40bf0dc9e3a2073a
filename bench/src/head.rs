//! The operations `head/`: scanning a request head for its end, and judging whether the request is served.

use std::hint::black_box;

use sluice_gateway::http1::{HeadLimits, Scan, judge, scan};

use super::{Operation, Weight, fixture, operation, repeat};

const CURL: &str = "GET / HTTP/1.1\r\nHost: greeter.default.localhost:8080\r\n\
    User-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n";

const BROWSER: &str = "GET /api/orders?page=2&size=50 HTTP/1.1\r\nHost: shop.example.com\r\n\
    Connection: keep-alive\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
    sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\n\
    Accept: application/json, text/plain, */*\r\n\
    X-Requested-With: XMLHttpRequest\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n\
    Referer: https://shop.example.com/orders\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=all\r\n\r\n";

pub(crate) fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    for (name, head) in [("curl", CURL), ("browser", BROWSER)] {
        let limits = HeadLimits::from(&fixture::settings().limits);
        all.push(operation(format!("head/scan/{name}"), Weight::Light, move || {
            repeat(move |_| scan(black_box(head.as_bytes()), &limits, 0))
        }));
        all.push(operation(
            format!("head/scan+judge/{name}"),
            Weight::Light,
            move || {
                repeat(move |_| match scan(black_box(head.as_bytes()), &limits, 0) {
                    Scan::Complete { len } => judge(&head.as_bytes()[..len], &limits).is_ok(),
                    other => panic!("no whole head: {other:?}"),
                })
            },
        ));
    }
    all
}
