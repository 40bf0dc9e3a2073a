use crate::observe::Reason;
use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Head, Scan, scan};
use super::*;

pub(super) const LIMITS: HeadLimits = HeadLimits {
    max_bytes: 4096,
    max_headers: 16,
    max_uri_bytes: 256,
};

pub(super) fn judged(head: &[u8]) -> Result<HeadInfo, HeadFault> {
    judge(head, &LIMITS)
}

/// A GET with Host and these field lines.
pub(super) fn get(fields: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n").into_bytes()
}

/// A GET of this target, of this Host.
pub(super) fn target(target: &str, host: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

pub(super) fn raw(head: &str) -> Vec<u8> {
    head.as_bytes().to_vec()
}

#[test]
fn faults_carry_the_contracts_reason_and_status() {
    let of = |fault: HeadFault| (fault.reason(), fault.status());
    assert_eq!(of(HeadFault::ContentLengthRepeated), (Reason::BadRequest, 400));
    assert_eq!(of(HeadFault::UnsupportedVersion), (Reason::BadRequest, 400));
    assert_eq!(of(HeadFault::ConnectRefused), (Reason::BadRequest, 405));
    assert_eq!(
        of(HeadFault::TooManyFields { limit: 1 }),
        (Reason::HeadersTooLarge, 431)
    );
    assert_eq!(
        of(HeadFault::HeadTooLarge { limit: 1 }),
        (Reason::HeadersTooLarge, 431)
    );
    assert_eq!(of(HeadFault::UriTooLong { limit: 1 }), (Reason::UriTooLong, 414));
    assert_eq!(
        HeadFault::ContentLengthRepeated.to_string(),
        "two Content-Length fields"
    );
}

#[test]
fn reads_a_plain_get() {
    let head = b"GET /a/b?c=d&e HTTP/1.1\r\nHost: A.Example:8080\r\nX-One: 1 \r\nX-Two:\t2\r\n\r\nrest";
    let info = judged(head).unwrap();
    assert_eq!(info.len, head.len() - 4);
    assert_eq!(info.version, Version::Http11);
    assert_eq!(info.method(head), "GET");
    assert_eq!(info.target(head), "/a/b?c=d&e");
    assert_eq!(info.path(head), "/a/b");
    assert_eq!(info.query(head), Some("c=d&e"));
    assert_eq!(info.host.as_deref(), Some("a.example"));
    assert_eq!(info.framing, Framing::None);
    assert!(info.keep_alive && !info.expect_continue && !info.absolute_form && !info.grpc);
    assert_eq!(info.upgrade, None);
    let fields: Vec<_> = info.fields(head).collect();
    assert_eq!(
        fields,
        [("Host", &b"A.Example:8080"[..]), ("X-One", b"1"), ("X-Two", b"2")]
    );
}

#[test]
fn accepts_what_is_unusual_but_unambiguous() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("lower-case method", raw("get / HTTP/1.1\r\nHost: a\r\n\r\n")),
        ("unknown method", raw("PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n")),
        (
            "empty lines before",
            raw("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ),
        ("1.0 without Host", raw("GET / HTTP/1.0\r\n\r\n")),
        ("OPTIONS asterisk", raw("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")),
        ("tab in a value", get("X: a\tb\r\n")),
        ("opaque bytes in a value", get("X: \u{fc}\r\n")),
        ("empty value", get("X:\r\n")),
        ("no space after the colon", get("X:a\r\n")),
        ("odd token in a name", get("!#$%&'*+-.^_`|~: a\r\n")),
        (
            "length of all 64 bits",
            get("Content-Length: 18446744073709551615\r\n"),
        ),
        ("chunked in capitals", get("Transfer-Encoding: CHUNKED\r\n")),
        (
            "percent and brackets in the target",
            target("/%zz/[]{}|\\^?a=[1]{}|\\^", "a"),
        ),
        ("two slashes", target("//a/b", "a")),
        ("Host with an empty port", target("/", "a:")),
        ("IPv6 Host", target("/", "[::1]:8080")),
        ("URL", target("http://a.example/x", "a.example")),
        ("URL in capitals", target("HTTP://A.Example/x", "a.example")),
        (
            "URL with the scheme's port",
            target("http://a.example:80/", "a.example"),
        ),
        (
            "https URL, Host with its port",
            target("https://a.example/", "a.example:443"),
        ),
        (
            "URL and Host with a dot",
            target("http://a.example./", "a.example"),
        ),
        ("IPv6 URL", target("http://[::1]:80/", "[::1]")),
        ("URL in 1.0 without Host", raw("GET http://a/ HTTP/1.0\r\n\r\n")),
    ];
    for (name, head) in cases {
        assert_eq!(judged(&head).err(), None, "{name}");
    }
}

#[test]
fn settles_framing() {
    let framing = |fields| judged(&get(fields)).unwrap().framing;
    assert_eq!(framing(""), Framing::None);
    assert_eq!(framing("Content-Length: 0\r\n"), Framing::Length(0));
    assert_eq!(framing("content-LENGTH:\t42 \r\n"), Framing::Length(42));
    assert_eq!(framing("Transfer-Encoding: chunked\r\n"), Framing::Chunked);
}

#[test]
fn settles_keep_alive() {
    let keeps = |version, fields: &str| {
        judged(format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n").as_bytes())
            .unwrap()
            .keep_alive
    };
    assert!(keeps("1.1", ""));
    assert!(!keeps("1.1", "Connection: close\r\n"));
    assert!(!keeps("1.1", "Connection: keep-alive, Close\r\n"));
    assert!(!keeps("1.1", "Connection: x\r\nConnection: close\r\n"));
    assert!(!keeps("1.0", ""));
    assert!(keeps("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!keeps("1.0", "Connection: keep-alive, close\r\n"));
}

#[test]
fn an_upgrade_must_be_nominated_and_have_no_body() {
    let upgrade = |head: &[u8]| judged(head).unwrap().upgrade;
    let websocket = get("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n");
    let found = upgrade(&websocket).unwrap();
    assert!(found.websocket);
    assert_eq!(&*found.token, "WebSocket");
    assert!(
        !upgrade(&get("Connection: upgrade\r\nUpgrade: h2c\r\n"))
            .unwrap()
            .websocket
    );
    assert_eq!(upgrade(&get("Upgrade: websocket\r\n")), None);
    assert_eq!(upgrade(&get("Connection: upgrade\r\n")), None);
    assert_eq!(
        upgrade(&get(
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n"
        )),
        None
    );
    assert_eq!(
        upgrade(b"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        None
    );
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(!upgrade(post).unwrap().websocket);
}

#[test]
fn knows_continue_and_grpc() {
    let info = |fields| judged(&get(fields)).unwrap();
    assert!(info("Expect: 100-Continue\r\n").expect_continue);
    assert!(!info("Expect: something\r\n").expect_continue);
    assert!(
        !judged(b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")
            .unwrap()
            .expect_continue
    );
    assert!(info("Content-Type: application/grpc\r\n").grpc);
    assert!(info("Content-Type: application/grpc+proto\r\n").grpc);
    assert!(!info("Content-Type: application/grpc-web\r\n").grpc);
}

#[test]
fn a_url_is_replayed_as_a_path() {
    let replayed = |head: &str| {
        let head = Head::judge(Bytes::copy_from_slice(head.as_bytes()), &LIMITS).unwrap();
        String::from_utf8(head.replay().to_vec()).unwrap()
    };
    assert_eq!(
        replayed("\r\nGET http://A.example:80/x?y=1 HTTP/1.1\r\nHost: a.example\r\nX: 1\r\n\r\n"),
        "GET /x?y=1 HTTP/1.1\r\nHost: a.example\r\nX: 1\r\n\r\n"
    );
    assert_eq!(
        replayed("GET http://a.example?q HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        "GET /?q HTTP/1.1\r\nHost: a.example\r\n\r\n"
    );
    assert_eq!(
        replayed("OPTIONS http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n"
    );
    assert_eq!(
        replayed("GET http://a.example:81 HTTP/1.0\r\n\r\n"),
        "GET / HTTP/1.0\r\nHost: a.example:81\r\n\r\n"
    );
    assert_eq!(
        replayed("\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n"),
        "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    );
}

#[test]
fn a_head_is_found_as_soon_as_it_is_whole() {
    let head = get("X: 1\r\n");
    for end in 0..head.len() {
        assert!(
            matches!(scan(&head[..end], &LIMITS, 0), Scan::NeedMore { .. }),
            "{end}"
        );
    }
    let mut more = head.clone();
    more.extend_from_slice(b"GET /next");
    assert_eq!(scan(&more, &LIMITS, 0), Scan::Complete { len: head.len() });
}

#[test]
fn a_head_that_cannot_end_well_is_refused_before_it_ends() {
    let fault = |bytes: &[u8]| match scan(bytes, &LIMITS, 0) {
        Scan::Bad(fault) => Some(fault),
        _ => None,
    };
    assert_eq!(fault(b"\x16\x03\x01"), Some(HeadFault::BadMethod));
    assert_eq!(fault(b"GET / HTTP/1.1\n"), Some(HeadFault::BareLf));
    assert_eq!(fault(b"\r\n\r\n\r\n\r\n\r\n"), Some(HeadFault::EmptyLines));
    let mut line = b"GET /".to_vec();
    line.resize(256 + 65, b'a');
    assert_eq!(fault(&line), Some(HeadFault::UriTooLong { limit: 256 }));
    let mut head = get("");
    head.truncate(head.len() - 2);
    head.resize(4096, b'a');
    assert_eq!(fault(&head), None);
    head.push(b'a');
    assert_eq!(fault(&head), Some(HeadFault::HeadTooLarge { limit: 4096 }));
}

/// Bytes that are nearly a head: random ones would never get past the method.
fn headish() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(&b"GET / HTTP/1.1\r\n"[..]),
        Just(&b"Host: a\r\n"[..]),
        Just(&b"\r\n"[..]),
        Just(&b"\r"[..]),
        Just(&b"\n"[..]),
        Just(&b" "[..]),
        Just(&b"http://a:80/?#"[..]),
        Just(&b"Content-Length: 5\r\n"[..]),
        Just(&b"Transfer-Encoding: chunked\r\n"[..]),
        Just(&b"X: y"[..]),
        Just(&b"\0\xff:"[..]),
        Just(&b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"[..]),
    ];
    prop_oneof![
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat()),
        proptest::collection::vec(any::<u8>(), 0..256),
        (any::<u8>(), 0..400usize).prop_map(|(byte, at)| {
            let mut head = get("Content-Length: 5\r\nConnection: close\r\n");
            let at = at % head.len();
            head[at] = byte;
            head
        }),
    ]
}

proptest! {
    #[test]
    fn scan_finds_the_same_in_any_pieces(bytes in headish(), cuts in proptest::collection::vec(0..400usize, 0..8)) {
        let limits = HeadLimits { max_bytes: 160, max_headers: 4, max_uri_bytes: 16 };
        let whole = scan(&bytes, &limits, 0);
        let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut from = 0;
        let mut pieced = Scan::NeedMore { scanned: 0 };
        for end in ends {
            pieced = scan(&bytes[..end], &limits, from);
            match pieced {
                Scan::NeedMore { scanned } => from = scanned,
                Scan::Complete { .. } | Scan::Bad(_) => break,
            }
        }
        prop_assert_eq!(pieced, whole);
    }

    #[test]
    fn judge_and_scan_agree_on_where_a_head_ends(bytes in headish()) {
        let info = judged(&bytes);
        if let Ok(info) = info {
            prop_assert_eq!(scan(&bytes, &LIMITS, 0), Scan::Complete { len: info.len });
            let head = Head::judge(Bytes::from(bytes), &LIMITS).unwrap();
            // What is replayed is judged the same, but for the target's form.
            let replay = head.replay();
            let again = judge(&replay, &LIMITS).unwrap();
            prop_assert_eq!(&again.host, &head.host);
            prop_assert_eq!(again.framing, head.framing);
            prop_assert_eq!(again.path(&replay), head.path());
            prop_assert_eq!(head.fields().count() + usize::from(!head.host_field && head.absolute_form), again.fields(&replay).count());
        }
    }
}
