use proptest::prelude::*;

use super::super::FieldFault;
use super::*;

pub(super) const LIMITS: ResponseLimits = ResponseLimits {
    max_bytes: 4096,
    max_fields: 8,
};

fn judged(head: &str) -> Result<ResponseInfo, ResponseFault> {
    judge_response(head.as_bytes(), &LIMITS, ResponseTo::Other)
}

/// A 200 with these field lines.
fn ok(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n")
}

#[test]
fn reads_a_plain_response() {
    let head = b"HTTP/1.1 404 Not \xfcber Found\r\nDate: x\r\nContent-Length: 5 \r\nX-Empty:\r\n\r\nrest";
    let info = judge_response(head, &LIMITS, ResponseTo::Other).unwrap();
    assert_eq!(info.len, head.len() - 4);
    assert_eq!((info.version, info.status), (Version::Http11, 404));
    assert_eq!(info.framing, ResponseFraming::Length(5));
    assert_eq!((info.content_length, info.content_length_fields), (Some(5), 1));
    assert!(info.keep_alive && info.date && !info.grpc && !info.nominates_others && !info.is_interim());
    let view = ResponseHead::new(head, &info);
    assert_eq!(view.phrase(), b"Not \xfcber Found");
    assert_eq!(view.field("content-LENGTH"), Some(&b"5"[..]));
    let fields: Vec<_> = view.fields().collect();
    assert_eq!(
        fields,
        [
            (&b"Date"[..], &b"x"[..]),
            (b"Content-Length", b"5"),
            (b"X-Empty", b"")
        ]
    );
}

/// RFC 9112, 4: three digits; phrase, and by tolerance the space before it, may be missing.
#[test]
fn status_lines() {
    for (line, status, phrase) in [
        ("HTTP/1.1 200 OK", 200, "OK"),
        ("HTTP/1.1 200 ", 200, ""),
        ("HTTP/1.1 200", 200, ""),
        ("HTTP/1.0 999 a  b\t", 999, "a  b\t"),
        ("HTTP/1.1 600  ", 600, " "),
        ("HTTP/1.1 100 Continue", 100, "Continue"),
    ] {
        let head = format!("{line}\r\n\r\n");
        let info = judged(&head).unwrap();
        let view = ResponseHead::new(head.as_bytes(), &info);
        assert_eq!(
            (info.status, view.phrase()),
            (status, phrase.as_bytes()),
            "{line}"
        );
    }
    use ResponseFault::*;
    for (line, fault) in [
        ("HTTP/1.1 099 X", BadStatus),
        ("HTTP/1.1 000", BadStatus),
        ("HTTP/1.1 20", BadStatus),
        ("HTTP/1.1 ", BadStatus),
        ("HTTP/1.1 2000 OK", BadStatus),
        ("HTTP/1.1 200OK", BadStatus),
        ("HTTP/1.1 200\tOK", BadStatus),
        ("HTTP/1.1 2x0 OK", BadStatus),
        ("HTTP/1.1 -20 OK", BadStatus),
        ("HTTP/1.1  200 OK", BadStatus),
        ("HTTP/1.1\t200 OK", NotHttp1),
        ("HTTP/1.1", NotHttp1),
        ("HTTP/1.2 200 OK", NotHttp1),
        ("HTTP/1.10 200 OK", NotHttp1),
        ("HTTP/2 200", NotHttp1),
        ("http/1.1 200 OK", NotHttp1),
        ("ICY 200 OK", NotHttp1),
        (" HTTP/1.1 200 OK", NotHttp1),
        ("", NotHttp1),
        ("HTTP/1.1 200 O\0K", BadPhraseByte(0)),
        ("HTTP/1.1 200 O\x7fK", BadPhraseByte(0x7f)),
        ("HTTP/1.1 200 \x1b[1m", BadPhraseByte(0x1b)),
    ] {
        assert_eq!(judged(&format!("{line}\r\n\r\n")), Err(fault), "{line:?}");
    }
}

/// RFC 9112, 6.3, and what of it is refused.
#[test]
#[rustfmt::skip] // one line per head
fn refuses_what_could_be_read_two_ways() {
    use FieldFault::*;
    use ResponseFault::*;
    let many: String = (0..9).map(|n| format!("X-{n}: 1\r\n")).collect();
    let big = format!("X: {}\r\n", "a".repeat(4096));
    for (name, head, fault) in [
        ("lengths that differ", ok("Content-Length: 5\r\ncontent-length: 6\r\n"), ContentLengthDiffers),
        ("lengths that differ, equal ones between", ok("Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 6\r\n"), ContentLengthDiffers),
        ("length as equal list", ok("Content-Length: 5, 5\r\n"), ContentLengthList),
        ("length as differing list", ok("Content-Length: 5,6\r\n"), ContentLengthList),
        ("length with plus", ok("Content-Length: +5\r\n"), ContentLengthMalformed),
        ("length with minus", ok("Content-Length: -1\r\n"), ContentLengthMalformed),
        ("length empty", ok("Content-Length:\r\n"), ContentLengthMalformed),
        ("length hexadecimal", ok("Content-Length: 0x5\r\n"), ContentLengthMalformed),
        ("length with a fraction", ok("Content-Length: 5.0\r\n"), ContentLengthMalformed),
        ("length beyond 64 bits", ok("Content-Length: 18446744073709551616\r\n"), ContentLengthMalformed),
        ("malformed second length", ok("Content-Length: 5\r\nContent-Length: x\r\n"), ContentLengthMalformed),
        ("length and chunked", ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), ContentLengthWithTransferEncoding),
        ("chunked and length", ok("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), ContentLengthWithTransferEncoding),
        ("chunked in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(), TransferEncodingIn10),
        ("gzip", ok("Transfer-Encoding: gzip\r\n"), NotChunkedAlone),
        ("identity", ok("Transfer-Encoding: identity\r\n"), NotChunkedAlone),
        ("gzip, chunked", ok("Transfer-Encoding: gzip, chunked\r\n"), NotChunkedAlone),
        ("chunked, gzip", ok("Transfer-Encoding: chunked, gzip\r\n"), NotChunkedAlone),
        ("chunked twice", ok("Transfer-Encoding: chunked, chunked\r\n"), NotChunkedAlone),
        ("chunked in two fields", ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), NotChunkedAlone),
        ("chunked and nothing", ok("Transfer-Encoding: chunked,\r\n"), NotChunkedAlone),
        ("coding empty", ok("Transfer-Encoding:\r\n"), NotChunkedAlone),
        ("xchunked", ok("Transfer-Encoding: xchunked\r\n"), NotChunkedAlone),
        ("chunked with a parameter", ok("Transfer-Encoding: chunked;x\r\n"), NotChunkedAlone),
        ("103 with a length", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n".into(), InterimWithBody),
        ("100 with chunked", "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n".into(), InterimWithBody),
        ("101 with a length", "HTTP/1.1 101 S\r\nContent-Length: 5\r\n\r\n".into(), InterimWithBody),
        ("folded", ok("X: a\r\n b\r\n"), Field(Folding)),
        ("folded first field", ok(" X: a\r\n"), Field(Folding)),
        ("LF", ok("X: a\nY: b\r\n"), Field(BareLf)),
        ("LF after the status line", "HTTP/1.1 200 OK\n\r\n".into(), Field(BareLf)),
        ("CR", ok("X: a\rb\r\n"), Field(BareCr)),
        ("CR in the status line", "HTTP/1.1 200 O\rK\r\n\r\n".into(), Field(BareCr)),
        ("space before the colon", ok("Content-Length : 5\r\n"), Field(SpaceBeforeColon)),
        ("tab before the colon", ok("Content-Length\t: 5\r\n"), Field(SpaceBeforeColon)),
        ("no colon", ok("nonsense\r\n"), Field(NoColon)),
        ("no name", ok(": a\r\n"), Field(EmptyName)),
        ("space in a name", ok("X Y: a\r\n"), Field(BadNameByte(b' '))),
        ("NUL in a name", ok("X\0: a\r\n"), Field(BadNameByte(0))),
        ("NUL in a value", ok("X: a\0b\r\n"), Field(BadValueByte(0))),
        ("ESC in a value", ok("X: \x1b[31m\r\n"), Field(BadValueByte(0x1b))),
        ("DEL in a value", ok("X: a\x7f\r\n"), Field(BadValueByte(0x7f))),
        ("no empty line", "HTTP/1.1 200 OK\r\nX: y\r\n".into(), Field(Incomplete)),
        ("nothing", String::new(), Field(Incomplete)),
        ("too many fields", ok(&many), TooManyFields { limit: 8 }),
        ("too many bytes", ok(&big), HeadTooLarge { limit: 4096 }),
    ] {
        assert_eq!(judged(&head), Err(fault), "{name}");
    }
}

/// RFC 9112, 6.3.
#[test]
fn settles_framing() {
    use ResponseFraming::*;
    for (line, fields, to, framing, keeps) in [
        ("1.1 200", "", ResponseTo::Other, UntilClose, false),
        (
            "1.1 200",
            "Content-Length: 0\r\n",
            ResponseTo::Other,
            Length(0),
            true,
        ),
        (
            "1.1 200",
            "Content-Length: 007\r\n",
            ResponseTo::Other,
            Length(7),
            true,
        ),
        (
            "1.1 200",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            ResponseTo::Other,
            Length(5),
            true,
        ),
        (
            "1.1 200",
            "Content-Length: 5\r\nContent-Length: 05\r\n",
            ResponseTo::Other,
            Length(5),
            true,
        ),
        (
            "1.1 200",
            "Transfer-Encoding: Chunked\r\n",
            ResponseTo::Other,
            Chunked,
            true,
        ),
        ("1.1 200", "Content-Length: 5\r\n", ResponseTo::Head, None, true),
        (
            "1.1 200",
            "Transfer-Encoding: chunked\r\n",
            ResponseTo::Head,
            None,
            true,
        ),
        ("1.1 200", "", ResponseTo::Head, None, true),
        ("1.1 304", "Content-Length: 5\r\n", ResponseTo::Other, None, true),
        (
            "1.1 304",
            "Transfer-Encoding: chunked\r\n",
            ResponseTo::Other,
            None,
            true,
        ),
        ("1.1 204", "", ResponseTo::Other, None, true),
        ("1.1 204", "Content-Length: 0\r\n", ResponseTo::Other, None, true),
        // Sent although RFC 9110, 8.6 forbids it: what may follow must not be read as a response.
        ("1.1 204", "Content-Length: 5\r\n", ResponseTo::Other, None, false),
        (
            "1.1 204",
            "Transfer-Encoding: chunked\r\n",
            ResponseTo::Other,
            None,
            false,
        ),
        ("1.1 205", "", ResponseTo::Other, UntilClose, false),
        ("1.1 103", "", ResponseTo::Other, None, true),
        ("1.1 101", "Content-Length: 0\r\n", ResponseTo::Other, None, false),
        ("1.0 200", "", ResponseTo::Other, UntilClose, false),
        (
            "1.0 200",
            "Content-Length: 5\r\n",
            ResponseTo::Other,
            Length(5),
            false,
        ),
        (
            "1.0 200",
            "Content-Length: 5\r\nConnection: Keep-Alive\r\n",
            ResponseTo::Other,
            Length(5),
            true,
        ),
        (
            "1.0 200",
            "Connection: keep-alive\r\n",
            ResponseTo::Other,
            UntilClose,
            false,
        ),
        (
            "1.1 200",
            "Content-Length: 5\r\nConnection: close\r\n",
            ResponseTo::Other,
            Length(5),
            false,
        ),
        (
            "1.1 200",
            "Content-Length: 5\r\nConnection: x, Close\r\n",
            ResponseTo::Other,
            Length(5),
            false,
        ),
    ] {
        let head = format!("HTTP/{line} X\r\n{fields}\r\n");
        let info = judge_response(head.as_bytes(), &LIMITS, to).unwrap();
        assert_eq!((info.framing, info.keep_alive), (framing, keeps), "{head} {to:?}");
    }
}

#[test]
fn a_length_is_told_where_it_means_something() {
    let length = |status, to| {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n");
        let info = judge_response(head.as_bytes(), &LIMITS, to).unwrap();
        (info.content_length, info.content_length_fields)
    };
    assert_eq!(length(200, ResponseTo::Other), (Some(5), 2));
    assert_eq!(length(200, ResponseTo::Head), (Some(5), 2));
    assert_eq!(length(304, ResponseTo::Other), (Some(5), 2));
    assert_eq!(length(204, ResponseTo::Other), (None, 2));
}

/// RFC 9110, 7.8 and 15.2.2.
#[test]
fn a_switch_is_a_101_that_says_so() {
    let upgrade = |head: &str| judged(head).unwrap().upgrade.map(|span| span.range());
    let switch = "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(upgrade(switch).map(|range| &switch[range]), Some("websocket"));
    assert!(!judged(switch).unwrap().is_interim());
    for no in [
        "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 S\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: \"x\"\r\n\r\n",
    ] {
        assert_eq!(upgrade(no), None, "{no}");
    }
    assert!(judged("HTTP/1.1 103 E\r\n\r\n").unwrap().is_interim());
}

#[test]
fn what_forwarding_needs_is_noted() {
    let head = ok("Content-Type: application/grpc+proto\r\nConnection: X-One\r\n");
    let info = judged(&head).unwrap();
    assert!(info.grpc && info.nominates_others && !info.date);
    let options: Vec<_> = ResponseHead::new(head.as_bytes(), &info)
        .connection_options()
        .collect();
    assert_eq!(options, [b"X-One"]);
    assert_eq!(ResponseTo::method("HEAD"), ResponseTo::Head);
    assert_eq!(ResponseTo::method("head"), ResponseTo::Other);
}

#[test]
fn a_head_is_found_as_soon_as_it_is_whole() {
    let head = ok("X: 1\r\n").into_bytes();
    for end in 0..head.len() {
        let scan = scan_response(&head[..end], &LIMITS, 0);
        assert!(matches!(scan, Scan::NeedMore { .. }), "{end}");
    }
    let mut more = head.clone();
    more.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(
        scan_response(&more, &LIMITS, 0),
        Scan::Complete { len: head.len() }
    );
}

#[test]
fn what_is_no_response_is_refused_before_it_ends() {
    let fault = |bytes: &[u8]| match scan_response(bytes, &LIMITS, 0) {
        Scan::Bad(fault) => Some(fault),
        _ => None,
    };
    for noise in [
        &b"SSH-2.0-x"[..],
        b"220 smtp",
        b"\x15\x03\x01",
        b"\r\nHTTP/1.1",
        b"HTTP/2",
        b"<html>",
    ] {
        assert_eq!(
            fault(noise),
            Some(ResponseFault::NotHttp1),
            "{}",
            noise.escape_ascii()
        );
    }
    assert_eq!(fault(b"HTTP/1.1 200 OK\n"), Some(FieldFault::BareLf.into()));
    let mut head = ok("").into_bytes();
    head.truncate(head.len() - 2);
    head.resize(4096, b'a');
    assert_eq!(fault(&head), None);
    head.push(b'a');
    assert_eq!(fault(&head), Some(ResponseFault::HeadTooLarge { limit: 4096 }));
}

/// Bytes that are nearly a response head.
fn headish() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(&b"HTTP/1.1 200 OK\r\n"[..]),
        Just(&b"HTTP/1.0 204"[..]),
        Just(&b"HTTP/1.1 103 \r\n"[..]),
        Just(&b"\r\n"[..]),
        Just(&b"\r"[..]),
        Just(&b"\n"[..]),
        Just(&b" "[..]),
        Just(&b"Content-Length: 5\r\n"[..]),
        Just(&b"Content-Length: 6\r\n"[..]),
        Just(&b"Transfer-Encoding: chunked\r\n"[..]),
        Just(&b"Connection: close, x\r\n"[..]),
        Just(&b"X: \t y\t"[..]),
        Just(&b"\0\xff:"[..]),
        Just(&b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"[..]),
    ];
    prop_oneof![
        (0..3usize, proptest::collection::vec(piece, 0..12)).prop_map(|(line, pieces)| {
            let mut head = [&b"HTTP/1.1 200 OK\r\n"[..], b"HTTP/1.0 304\r\n", b""][line].to_vec();
            head.extend(pieces.concat());
            head.extend_from_slice(b"\r\n\r\n");
            head
        }),
        proptest::collection::vec(any::<u8>(), 0..256),
        (any::<u8>(), 0..400usize).prop_map(|(byte, at)| {
            let mut head = ok("Content-Length: 5\r\nConnection: close\r\n").into_bytes();
            let at = at % head.len();
            head[at] = byte;
            head
        }),
    ]
}

/// Whether httparse reads the same fields.
fn httparse_agrees(head: &[u8], info: &ResponseInfo) -> Result<(), TestCaseError> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(head);
    prop_assert_eq!(parsed, Ok(httparse::Status::Complete(info.len)));
    prop_assert_eq!(response.code, Some(info.status));
    let minor = u8::from(info.version == Version::Http11);
    prop_assert_eq!(response.version, Some(minor));
    let view = ResponseHead::new(head, info);
    // It drops a phrase with opaque bytes.
    if view.phrase().is_ascii() {
        prop_assert_eq!(response.reason.unwrap_or_default().as_bytes(), view.phrase());
    }
    let theirs: Vec<_> = response
        .headers
        .iter()
        .map(|h| (h.name.as_bytes(), h.value))
        .collect();
    prop_assert_eq!(view.fields().collect::<Vec<_>>(), theirs);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn scan_finds_the_same_in_any_pieces(bytes in headish(), cuts in proptest::collection::vec(0..400usize, 0..8)) {
        let limits = ResponseLimits { max_bytes: 160, max_fields: 4 };
        let whole = scan_response(&bytes, &limits, 0);
        let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut from = 0;
        let mut pieced = Scan::NeedMore { scanned: 0 };
        for end in ends {
            pieced = scan_response(&bytes[..end], &limits, from);
            match pieced {
                Scan::NeedMore { scanned } => from = scanned,
                Scan::Complete { .. } | Scan::Bad(_) => break,
            }
        }
        prop_assert_eq!(pieced, whole);
    }

    #[test]
    fn what_is_accepted_is_what_httparse_reads(bytes in headish()) {
        for to in [ResponseTo::Other, ResponseTo::Head] {
            if let Ok(info) = judge_response(&bytes, &LIMITS, to) {
                prop_assert_eq!(scan_response(&bytes, &LIMITS, 0), Scan::Complete { len: info.len });
                prop_assert_eq!(judge_response(&bytes[..info.len], &LIMITS, to), Ok(info));
                httparse_agrees(&bytes, &info)?;
            }
        }
    }
}
