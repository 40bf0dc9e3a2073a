use proptest::prelude::*;

use super::*;

const LIMITS: ChunkLimits = ChunkLimits {
    max_extension_bytes: 32,
    max_trailer_bytes: 64,
    max_trailers: 2,
};

/// Feeds a body whole: consumed bytes, whether it ended, payload.
fn feed(body: &[u8]) -> Result<(usize, bool, u64), ChunkFault> {
    let mut decoder = ChunkDecoder::new(LIMITS);
    let taken = decoder.advance(body)?;
    Ok((taken, decoder.complete(), decoder.payload()))
}

#[test]
fn ends_where_the_body_ends() {
    for (body, payload) in [
        (&b"0\r\n\r\n"[..], 0),
        (b"000\r\n\r\n", 0),
        (b"5\r\nhello\r\n0\r\n\r\n", 5),
        (b"A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", 11),
        (b"1;a=b;c=\"d\"\r\nx\r\n0;z\r\n\r\n", 1),
        (b"1\r\n\r\r\n0\r\nX: y\r\nZ:\r\n\r\n", 1),
        (b"0000000000000001\r\nx\r\n0\r\n\r\n", 1),
    ] {
        let mut more = body.to_vec();
        more.extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(
            feed(&more),
            Ok((body.len(), true, payload)),
            "{}",
            body.escape_ascii()
        );
        assert_eq!(
            feed(&body[..body.len() - 1]),
            Ok((body.len() - 1, false, payload))
        );
    }
}

#[test]
fn refuses_what_others_read_differently() {
    use ChunkFault::*;
    for (name, body, fault) in [
        ("no size", &b"\r\n"[..], BadSize(b'\r')),
        ("no hex", b"g\r\n", BadSize(b'g')),
        ("0x", b"0x5\r\n", BadSize(b'x')),
        ("sign", b"+5\r\n", BadSize(b'+')),
        ("minus", b"-1\r\n", BadSize(b'-')),
        ("space before", b" 5\r\n", BadSize(b' ')),
        ("space after", b"5 \r\n", BadSize(b' ')),
        ("extension alone", b";a\r\n", BadSize(b';')),
        ("LF after size", b"5\nhello", BadSize(b'\n')),
        ("17 digits", b"00000000000000005\r\n", SizeTooLong),
        ("overflow", b"10000000000000000\r\n", SizeTooLong),
        ("CR alone after size", b"5\rhello", MissingCrlf),
        ("LF in extension", b"5;a\nhello", BadExtension(b'\n')),
        ("NUL in extension", b"5;\0\r\n", BadExtension(0)),
        ("CR in extension", b"5;\rx", MissingCrlf),
        ("data too long", b"1\r\nxx\r\n", MissingCrlf),
        ("LF after data", b"1\r\nx\n0\r\n\r\n", MissingCrlf),
        ("CR alone after data", b"1\r\nx\r0", MissingCrlf),
        ("folded trailer", b"0\r\nA: b\r\n c\r\n\r\n", BadTrailer(b' ')),
        ("trailer without name", b"0\r\n: b\r\n\r\n", BadTrailer(b':')),
        ("trailer without colon", b"0\r\nabc\r\n\r\n", BadTrailer(b'\r')),
        ("space before the colon", b"0\r\nA : b\r\n\r\n", BadTrailer(b' ')),
        ("LF after a trailer", b"0\r\nA: b\n\r\n", BadTrailer(b'\n')),
        ("CR in a trailer", b"0\r\nA: b\rc\r\n\r\n", BadTrailer(b'c')),
        ("LF for the end", b"0\r\n\n", BadTrailer(b'\n')),
        ("CR alone for the end", b"0\r\n\rG", BadTrailer(b'G')),
        ("three trailers", b"0\r\nA:\r\nB:\r\nC:\r\n\r\n", TrailersTooLarge),
    ] {
        assert_eq!(feed(body), Err(fault), "{name}");
    }
}

#[test]
fn bounds_what_carries_no_payload() {
    let mut body = Vec::new();
    for _ in 0..8 {
        body.extend_from_slice(b"1;abcd\r\nx\r\n");
    }
    assert_eq!(feed(&body), Err(ChunkFault::ExtensionsTooLong));
    let trailers = format!("0\r\nA: {}\r\n\r\n", "x".repeat(64));
    assert_eq!(feed(trailers.as_bytes()), Err(ChunkFault::TrailersTooLarge));
}

#[test]
fn takes_the_largest_size_without_overflow() {
    let mut decoder = ChunkDecoder::new(LIMITS);
    assert_eq!(decoder.advance(b"ffffffffffffffff\r\nxyz"), Ok(21));
    assert_eq!(decoder.payload(), 3);
    assert!(!decoder.complete());
}

#[test]
fn payload_comes_out_in_runs() {
    let body = b"5\r\nhello\r\n3;x\r\nabc\r\n0\r\n\r\nnext";
    let mut decoder = ChunkDecoder::new(LIMITS);
    assert_eq!(decoder.decode(&body[..5]), Ok(ChunkRun { skip: 3, data: 2 }));
    assert_eq!(decoder.decode(&body[5..]), Ok(ChunkRun { skip: 0, data: 3 }));
    assert_eq!(decoder.decode(&body[8..]), Ok(ChunkRun { skip: 7, data: 3 }));
    assert_eq!(decoder.decode(&body[18..]), Ok(ChunkRun { skip: 7, data: 0 }));
    assert!(decoder.complete());
    assert_eq!(decoder.decode(b"next"), Ok(ChunkRun::default()));
    assert_eq!(decoder.payload(), 8);
}

#[test]
fn trailers_are_kept_where_asked_for() {
    let body = b"0\r\nGrpc-Status: 0 \r\nX:\r\n\r\n";
    let mut decoder = ChunkDecoder::keeping_trailers(LIMITS);
    decoder.advance(&body[..body.len() - 1]).unwrap();
    assert_eq!(decoder.trailers().count(), 0, "not over yet");
    decoder.advance(b"\n").unwrap();
    let trailers: Vec<_> = decoder.trailers().collect();
    assert_eq!(trailers, [(&b"Grpc-Status"[..], &b"0"[..]), (b"X", b"")]);
    let mut decoder = ChunkDecoder::new(LIMITS);
    decoder.advance(body).unwrap();
    assert!(decoder.complete());
    assert_eq!(decoder.trailers().count(), 0);
}

proptest! {
    #[test]
    fn any_pieces_end_at_the_same_byte(
        chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 1..40), any::<bool>(), any::<bool>()), 0..8),
        trailers in 0..3usize,
        next in proptest::collection::vec(any::<u8>(), 0..20),
        pieces in proptest::collection::vec(1..30usize, 1..12),
    ) {
        let mut body = Vec::new();
        let mut payload = 0;
        for (data, upper, extension) in chunks {
            let size = if upper { format!("{:X}", data.len()) } else { format!("{:x}", data.len()) };
            body.extend_from_slice(size.as_bytes());
            if extension {
                body.extend_from_slice(b";a=\"b\"");
            }
            body.extend_from_slice(b"\r\n");
            body.extend_from_slice(&data);
            body.extend_from_slice(b"\r\n");
            payload += data.len() as u64;
        }
        body.extend_from_slice(b"0\r\n");
        for n in 0..trailers {
            body.extend_from_slice(format!("T{n}: v\r\n").as_bytes());
        }
        body.extend_from_slice(b"\r\n");
        let end = body.len();
        body.extend_from_slice(&next);

        let limits = ChunkLimits { max_extension_bytes: 1024, ..LIMITS };
        let mut decoder = ChunkDecoder::new(limits);
        let (mut at, mut piece) = (0, pieces.iter().cycle());
        while at < body.len() && !decoder.complete() {
            let to = (at + piece.next().copied().unwrap_or(1)).min(body.len());
            let taken = decoder.advance(&body[at..to]).unwrap();
            prop_assert!(taken == to - at || decoder.complete());
            at += taken;
        }
        prop_assert!(decoder.complete());
        prop_assert_eq!(at, end);
        prop_assert_eq!(decoder.payload(), payload);
        prop_assert_eq!(decoder.advance(b"more"), Ok(0));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_pieces_never_matter(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), Just(b';'), any::<u8>()], 0..64),
        cut in 0..64usize,
    ) {
        let cut = cut.min(bytes.len());
        let whole = feed(&bytes);
        let mut decoder = ChunkDecoder::new(LIMITS);
        let pieced = decoder.advance(&bytes[..cut]).and_then(|first| {
            decoder.advance(&bytes[cut..]).map(|second| (first + second, decoder.complete(), decoder.payload()))
        });
        prop_assert_eq!(pieced, whole);
    }
}
