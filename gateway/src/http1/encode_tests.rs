use proptest::prelude::*;

use super::super::{
    ChunkDecoder, ChunkLimits, HeadLimits, RequestFraming, RequestHead, ResponseFraming, ResponseHead,
    ResponseLimits, ResponseTo, judge, judge_response,
};
use super::*;

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn lines_and_fields() {
    assert_eq!(
        written(|out| request_line(out, "GET", "/x?y")),
        "GET /x?y HTTP/1.1\r\n"
    );
    assert_eq!(
        written(|out| request_line_of(out, "POST", &["/a", "?", "b"])),
        "POST /a?b HTTP/1.1\r\n"
    );
    for (version, status, phrase, line) in [
        (Version::Http11, 200, None, "HTTP/1.1 200 OK\r\n"),
        (Version::Http10, 200, None, "HTTP/1.0 200 OK\r\n"),
        (Version::Http11, 200, Some(&b"Fine"[..]), "HTTP/1.1 200 Fine\r\n"),
        (Version::Http11, 404, None, "HTTP/1.1 404 Not Found\r\n"),
        (Version::Http11, 799, None, "HTTP/1.1 799 \r\n"),
        (Version::Http11, 404, Some(b""), "HTTP/1.1 404 \r\n"),
    ] {
        assert_eq!(written(|out| status_line(out, version, status, phrase)), line);
    }
    assert_eq!(written(|out| field(out, b"X-One", b"1")), "X-One: 1\r\n");
    assert_eq!(written(|out| content_length(out, 0)), "content-length: 0\r\n");
    assert_eq!(
        written(|out| content_length(out, u64::MAX)),
        "content-length: 18446744073709551615\r\n"
    );
    assert_eq!(
        written(transfer_encoding_chunked),
        "transfer-encoding: chunked\r\n"
    );
    assert_eq!(written(|out| chunk_size(out, 1)), "1\r\n");
    assert_eq!(written(|out| chunk_size(out, 0xabcd0)), "abcd0\r\n");
    assert_eq!(written(|out| chunk_size(out, usize::MAX)), "ffffffffffffffff\r\n");
    assert_eq!(
        written(|out| last_chunk(out, [(&b"A"[..], &b"b"[..])])),
        "0\r\nA: b\r\n\r\n"
    );
    assert_eq!(written(|out| last_chunk(out, [])).as_bytes(), LAST_CHUNK);
}

#[test]
#[cfg(debug_assertions)]
fn a_line_end_in_a_value_is_our_own_mistake() {
    let smuggled = std::panic::catch_unwind(|| field(&mut Vec::new(), b"X", b"a\r\nY: b"));
    assert!(smuggled.is_err());
}

const HEAD: HeadLimits = HeadLimits {
    max_bytes: 64 << 10,
    max_headers: 64,
    max_uri_bytes: 4096,
};

const CHUNKS: ChunkLimits = ChunkLimits {
    max_extension_bytes: 64,
    max_trailer_bytes: 4096,
    max_trailers: 8,
};

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    // No name that framing or routing knows begins with these.
    proptest::collection::vec(
        (
            "[xX]-[a-zA-Z0-9!#$%&'*+.^_`|~-]{0,12}",
            "([!-~\u{fc}]([ !-~\t]{0,16}[!-~])?)?",
        ),
        0..6,
    )
}

proptest! {
    #[test]
    fn a_request_is_judged_as_it_was_written(
        method in "[A-Z]{1,8}", path in "/[a-z0-9./%]{0,20}", query in proptest::option::of("[a-z=&]{0,10}"),
        fields in fields(), length in proptest::option::of(any::<u64>()),
    ) {
        prop_assume!(method != "CONNECT");
        let mut out = Vec::new();
        match &query {
            Some(query) => request_line_of(&mut out, &method, &[&path, "?", query]),
            None => request_line(&mut out, &method, &path),
        }
        field(&mut out, b"host", b"a.example");
        for (name, value) in &fields {
            field(&mut out, name.as_bytes(), value.as_bytes());
        }
        match length {
            Some(length) => content_length(&mut out, length),
            None => transfer_encoding_chunked(&mut out),
        }
        end_of_head(&mut out);
        let info = judge(&out, &HEAD).unwrap();
        prop_assert_eq!(info.len, out.len());
        prop_assert_eq!(info.framing, length.map_or(RequestFraming::Chunked, RequestFraming::Length));
        let head = RequestHead::new(&out, &info);
        prop_assert_eq!((head.method(), head.path(), head.query()), (&*method, &*path, query.as_deref()));
        let read: Vec<_> = head.fields().filter(|(name, _)| name[0].eq_ignore_ascii_case(&b'x')).collect();
        let wrote: Vec<_> = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        prop_assert_eq!(read, wrote);
    }

    #[test]
    fn a_response_is_judged_as_it_was_written(status in 200..=999u16, fields in fields(), length in any::<u64>()) {
        let mut out = Vec::new();
        status_line(&mut out, Version::Http11, status, None);
        for (name, value) in &fields {
            field(&mut out, name.as_bytes(), value.as_bytes());
        }
        content_length(&mut out, length);
        end_of_head(&mut out);
        let info = judge_response(&out, &ResponseLimits::default(), ResponseTo::Other).unwrap();
        prop_assert_eq!((info.len, info.status), (out.len(), status));
        if !matches!(status, 204 | 304) {
            prop_assert_eq!(info.framing, ResponseFraming::Length(length));
        }
        let head = ResponseHead::new(&out, &info);
        let read: Vec<_> = head.fields().take(fields.len()).collect();
        let wrote: Vec<_> = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        prop_assert_eq!(read, wrote);
    }

    #[test]
    fn a_body_is_decoded_as_it_was_chunked(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..80), 0..8),
        trailers in fields(),
        pieces in proptest::collection::vec(1..40usize, 1..8),
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            chunk_size(&mut wire, chunk.len());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(CHUNK_END);
        }
        last_chunk(&mut wire, trailers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
        let end = wire.len();
        wire.extend_from_slice(b"HTTP/1.1 200 OK\r\n");

        let mut decoder = ChunkDecoder::keeping_trailers(CHUNKS);
        let (mut at, mut payload, mut piece) = (0, Vec::new(), pieces.iter().cycle());
        while !decoder.complete() {
            let to = (at + piece.next().copied().unwrap_or(1)).min(wire.len());
            while at < to && !decoder.complete() {
                let piece = decoder.decode(&wire[at..to]).unwrap();
                prop_assert!(piece.skip + piece.data > 0);
                payload.extend_from_slice(&wire[at + piece.skip..at + piece.skip + piece.data]);
                at += piece.skip + piece.data;
            }
        }
        prop_assert_eq!(at, end);
        prop_assert_eq!(decoder.payload(), payload.len() as u64);
        prop_assert_eq!(payload, chunks.concat());
        let read: Vec<_> = decoder.trailers().collect();
        let wrote: Vec<_> = trailers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        prop_assert_eq!(read, wrote);
    }
}
