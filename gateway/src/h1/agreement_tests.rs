//! What passes here, Pingora reads and reads the same way.

use std::io::Cursor;

use bytes::Bytes;
use pingora_core::protocols::http::ServerSession;
use proptest::prelude::*;
use proptest::sample::select;

use super::tests::LIMITS;
use crate::h1::{Framing, Head};

/// Field lines of which most combinations are served and some are not.
const FIELDS: &[&str] = &[
    "Content-Length: 3",
    "content-length:\t3  ",
    "Transfer-Encoding: chunked",
    "transfer-encoding:Chunked",
    "Connection: close",
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "Content-Type: application/grpc",
    "X-Empty:",
    "X-Opaque: \u{fc}\t\"x\" ",
    "!#$%&'*+-.^_`|~09azAZ: 1",
    "Host: b.example",
    "Proxy-Connection: x",
    "TE: trailers",
];

const TARGETS: &[&str] = &[
    "/",
    "/a/b?c=d",
    "/?",
    "/??",
    "//x/../y",
    "/%00%zz",
    "/[]{}|^;:@!$&'()*+,=~?[]{}|^;:@!$&'()*+,=~/?",
    "/\\x",
    "//\\x",
    "/\\\\x",
    "/http://b/",
    "/a?http://b@c/\\",
    "/:80",
    "*",
    "http://a.example",
    "http://a.example/x?y",
    "http://A.EXAMPLE:80?q=/",
    "https://a.example:443/",
];

fn head() -> impl Strategy<Value = String> {
    let host = select(vec![
        "Host: a.example",
        "host:A.example:80 ",
        "Host: a.example.",
        "HOST: a.example:443",
    ]);
    (
        select(vec![
            "GET",
            "POST",
            "HEAD",
            "OPTIONS",
            "get",
            "M-SEARCH",
            "X!#$%&'*+-.^_`|~",
        ]),
        select(TARGETS),
        select(vec!["1.1", "1.1", "1.0"]),
        proptest::option::weighted(0.9, host),
        proptest::collection::vec(select(FIELDS), 0..4),
        0..3usize,
    )
        .prop_map(|(method, target, version, host, fields, empty)| {
            let mut head = "\r\n".repeat(empty);
            head.push_str(&format!("{method} {target} HTTP/{version}\r\n"));
            for field in host.into_iter().chain(fields) {
                head.push_str(field);
                head.push_str("\r\n");
            }
            head.push_str("\r\n");
            head
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn pingora_reads_what_was_judged(head in head()) {
        let Ok(head) = Head::judge(Bytes::from(head), &LIMITS) else {
            return Ok(());
        };
        let body: &[u8] = match head.framing {
            Framing::None | Framing::Length(0) => b"",
            Framing::Length(_) => b"abc",
            Framing::Chunked => b"3\r\nabc\r\n0\r\n\r\n",
        };
        let mut bytes = head.replay().to_vec();
        bytes.extend_from_slice(body);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut session = ServerSession::new_http1(Box::new(Cursor::new(bytes)));
            let read = session.read_request().await;
            prop_assert!(matches!(read, Ok(true)), "{:?}", read);
            let request = session.req_header();
            prop_assert_eq!(request.method.as_str(), head.method());
            let mut target = head.path().to_owned();
            if let Some(query) = head.query() {
                target = format!("{target}?{query}");
            }
            prop_assert_eq!(request.raw_path(), target.as_bytes());
            for (name, value) in head.fields() {
                let same = request.headers.get_all(name).iter().any(|v| v.as_bytes() == value);
                prop_assert!(same, "{}", name);
            }
            let added = usize::from(head.absolute_form && head.field("host").is_none());
            prop_assert_eq!(request.headers.len(), head.fields().count() + added);
            let mut read = Vec::new();
            while let Some(part) = session.read_request_body().await.unwrap() {
                read.extend_from_slice(&part);
            }
            prop_assert_eq!(read, if head.framing.is_empty() { &b""[..] } else { b"abc" });
            Ok(())
        })?;
    }
}
