use proptest::prelude::*;

use super::super::{RequestHead, Scan, scan};
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
fn reads_a_plain_get() {
    let head = b"GET /a/b?c=d&e HTTP/1.1\r\nHost: A.Example:8080\r\nX-One: 1 \r\nX-Two:\t2\r\n\r\nrest";
    let info = judged(head).unwrap();
    assert_eq!(info.len, head.len() - 4);
    assert_eq!(info.version, Version::Http11);
    let view = RequestHead::new(head, &info);
    assert_eq!(view.method(), "GET");
    assert_eq!(view.target(), "/a/b?c=d&e");
    assert_eq!(view.path(), "/a/b");
    assert_eq!(view.query(), Some("c=d&e"));
    assert_eq!(view.path_and_query(), Some("/a/b?c=d&e"));
    assert_eq!(view.host(), Some(&b"A.Example:8080"[..]));
    assert_eq!(view.host_name(&mut [0; 256]), Some("a.example"));
    assert_eq!(view.field("x-two"), Some(&b"2"[..]));
    assert_eq!(info.framing, RequestFraming::None);
    assert!(info.keep_alive && !info.expect_continue && !info.absolute_form && !info.grpc);
    assert_eq!(info.upgrade, None);
    let fields: Vec<_> = view.fields().collect();
    assert_eq!(
        fields,
        [
            (&b"Host"[..], &b"A.Example:8080"[..]),
            (b"X-One", b"1"),
            (b"X-Two", b"2")
        ]
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
    assert_eq!(framing(""), RequestFraming::None);
    assert_eq!(framing("Content-Length: 0\r\n"), RequestFraming::Length(0));
    assert_eq!(framing("content-LENGTH:\t42 \r\n"), RequestFraming::Length(42));
    assert_eq!(framing("Transfer-Encoding: chunked\r\n"), RequestFraming::Chunked);
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
fn an_upgrade_must_be_nominated() {
    let upgrade = |head: &[u8]| judged(head).unwrap().upgrade;
    let websocket = get("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n");
    let found = upgrade(&websocket).unwrap();
    assert!(found.websocket);
    assert_eq!(found.token.of(&websocket), b"WebSocket");
    let two = get("Connection: upgrade\r\nUpgrade: h2c, x/1\r\nUpgrade: websocket\r\n");
    let found = upgrade(&two).unwrap();
    assert!(!found.websocket);
    assert_eq!(found.token.of(&two), b"h2c, x/1");
    for ignored in [
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
        "Connection: upgrade\r\nUpgrade:\r\n",
        "Connection: upgrade\r\nUpgrade: \"websocket\"\r\n",
        "Connection: upgrade\r\nUpgrade: web\u{fc}\r\n",
    ] {
        assert_eq!(upgrade(&get(ignored)), None, "{ignored}");
    }
    assert_eq!(
        upgrade(b"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        None
    );
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(!upgrade(post).unwrap().websocket);
}

#[test]
fn an_upgrade_with_a_body_is_told_with_the_body() {
    let fields = "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n";
    let info = judged(&get(fields)).unwrap();
    assert!(info.upgrade.is_some());
    assert_eq!(info.framing, RequestFraming::Length(1));
}

#[test]
fn a_host_that_is_normal_is_found_without_being_copied() {
    for (host, name, plain) in [
        ("a.example", "a.example", 9),
        ("a.example:80", "a.example", 9),
        ("a.example.", "a.example", 9),
        ("[::1]:80", "[::1]", 5),
        ("A.example", "a.example", 0),
    ] {
        let head = target("/", host);
        let info = judged(&head).unwrap();
        assert_eq!(info.plain_host, plain, "{host}");
        let view = RequestHead::new(&head, &info);
        assert_eq!(view.host_name(&mut [0; 256]), Some(name));
    }
    let head = target("http://b.example:81/", "B.example:81");
    let info = judged(&head).unwrap();
    let view = RequestHead::new(&head, &info);
    assert_eq!(view.authority(), Some(&b"b.example:81"[..]));
    assert_eq!(view.host_name(&mut [0; 256]), Some("b.example"));
}

#[test]
fn a_urls_path_is_a_path() {
    for (target, path, query, both) in [
        ("GET http://a/x?y=1", "/x", Some("y=1"), Some("/x?y=1")),
        ("GET http://a?q", "/", Some("q"), None),
        ("GET http://a", "/", None, None),
        ("GET http://a/?", "/", Some(""), Some("/?")),
        ("OPTIONS http://a", "*", None, None),
        ("OPTIONS http://a?", "/", Some(""), None),
        ("OPTIONS *", "*", None, Some("*")),
    ] {
        let head = format!("{target} HTTP/1.0\r\n\r\n").into_bytes();
        let info = judged(&head).unwrap();
        let view = RequestHead::new(&head, &info);
        assert_eq!(
            (view.path(), view.query(), view.path_and_query()),
            (path, query, both),
            "{target}"
        );
    }
}

#[test]
fn what_forwarding_needs_is_noted() {
    let head = get(
        "User-Agent: me\r\nuser-agent: you\r\nAccept: */*\r\nX-Request-ID: r1\r\nContent-Type: text/plain\r\n\
         Cookie: a\r\ncookie: b\r\nTE: gzip;q=0.5, Trailers\r\nConnection: TE, X-One,\r\n",
    );
    let info = judged(&head).unwrap();
    let text = |span: Option<Span>| span.map(|span| std::str::from_utf8(span.of(&head)).unwrap());
    assert_eq!(text(info.user_agent), Some("me"));
    assert_eq!(text(info.accept), Some("*/*"));
    assert_eq!(text(info.x_request_id), Some("r1"));
    assert_eq!(text(info.content_type), Some("text/plain"));
    assert_eq!(info.cookie_fields, 2);
    assert!(info.te_trailers && info.nominates_others);
    let options: Vec<_> = RequestHead::new(&head, &info).connection_options().collect();
    assert_eq!(options, [&b"TE"[..], b"X-One"]);

    let info = judged(&get("Connection: close, keep-alive, upgrade, te\r\nTE: gzip\r\n")).unwrap();
    assert!(!info.te_trailers && !info.nominates_others);
    assert!(
        !judged(b"GET / HTTP/1.0\r\nTE: trailers\r\n\r\n")
            .unwrap()
            .te_trailers
    );
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
    assert_eq!(fault(b"GET / HTTP/1.1\n"), Some(FieldFault::BareLf.into()));
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
    fn judge_agrees_with_scan_and_httparse(bytes in headish()) {
        let info = judged(&bytes);
        if let Ok(info) = info {
            prop_assert_eq!(scan(&bytes, &LIMITS, 0), Scan::Complete { len: info.len });
            let head = RequestHead::new(&bytes, &info);
            prop_assert!(head.path() == "*" || head.path().starts_with('/'));
            let host = head.host().map(|raw| normalize_host(raw, &mut [0; 256]).unwrap().to_owned());
            let mut buf = [0; 256];
            prop_assert_eq!(head.host_name(&mut buf), host.as_deref());
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut fields);
            let parsed = request.parse(&bytes);
            prop_assert_eq!(parsed, Ok(httparse::Status::Complete(info.len)));
            prop_assert_eq!((request.method, request.path), (Some(head.method()), Some(head.target())));
            let theirs: Vec<_> = request.headers.iter().map(|h| (h.name.as_bytes(), h.value)).collect();
            prop_assert_eq!(head.fields().collect::<Vec<_>>(), theirs);
        }
    }
}
