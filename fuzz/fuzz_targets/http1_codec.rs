//! Fuzzes the HTTP/1 codec of both sides: response heads get the same verdict however the input is cut; a head of a
//! request or a response that passes is what httparse reads, and can be sent over HTTP/2; the payload and trailers of
//! a chunked body are those of a simple decoder by RFC 9112, 7.1.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_fuzz::{choice, ends};
use sluice_gateway::http1::{
    ChunkDecoder, ChunkFault, ChunkLimits, HeadLimits, RequestHead, ResponseFraming, ResponseHead,
    ResponseLimits, ResponseTo, Scan, Version, judge, judge_response, scan_response,
};

const REQUEST: HeadLimits = HeadLimits {
    max_bytes: 64 << 10,
    max_headers: 128,
    max_uri_bytes: 16 << 10,
};

const RESPONSE: ResponseLimits = ResponseLimits {
    max_bytes: 64 << 10,
    max_fields: 128,
};

/// Limits that inputs of a fuzzer's size reach.
const TIGHT: ResponseLimits = ResponseLimits {
    max_bytes: 256,
    max_fields: 4,
};

const CHUNKS: ChunkLimits = ChunkLimits {
    max_extension_bytes: 16 << 10,
    max_trailer_bytes: 16 << 10,
    max_trailers: 128,
};

type Field = (Vec<u8>, Vec<u8>);

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let choices = choice(&mut data);
    match choices & 3 {
        0 => request(data),
        1 => response(data, &RESPONSE, choices >> 2),
        2 => response(data, &TIGHT, choices >> 2),
        _ => chunks(data, choices >> 2),
    }
});

fn request(data: &[u8]) {
    let Ok(info) = judge(data, &REQUEST) else {
        return;
    };
    let head = RequestHead::new(data, &info);
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(request.parse(data), Ok(httparse::Status::Complete(info.len)));
    assert_eq!(request.method, Some(head.method()));
    assert_eq!(request.path, Some(head.target()));
    let theirs: Vec<_> = request
        .headers
        .iter()
        .map(|h| (h.name.as_bytes(), h.value))
        .collect();
    assert_eq!(head.fields().collect::<Vec<_>>(), theirs);
    assert!(http::Method::from_bytes(head.method().as_bytes()).is_ok());
    fits_http2(head.fields());
    for (name, span) in [
        ("user-agent", info.user_agent),
        ("accept", info.accept),
        ("content-type", info.content_type),
        ("x-request-id", info.x_request_id),
    ] {
        assert_eq!(span.map(|span| head.slice(span)), head.field(name));
    }
    let host = head.host_name(&mut [0; 256]).map(str::to_owned);
    let mut buf = [0; 256];
    let normal = head
        .host()
        .map(|raw| sluice_model::normalize_host(raw, &mut buf).expect("was judged good"));
    assert_eq!(host.as_deref(), normal);
}

fn response(data: &[u8], limits: &ResponseLimits, step: u8) {
    let whole = scan_response(data, limits, 0);
    let mut pieces = Scan::NeedMore { scanned: 0 };
    for end in ends(data.len(), step) {
        let Scan::NeedMore { scanned } = pieces else {
            break;
        };
        assert!(scanned <= end);
        pieces = scan_response(&data[..end], limits, scanned);
    }
    match (whole, pieces) {
        (Scan::NeedMore { .. }, Scan::NeedMore { .. }) => {}
        (whole, pieces) => assert_eq!(whole, pieces),
    }
    for to in [ResponseTo::Head, ResponseTo::Other] {
        // Judging bytes that were never scanned must not panic either.
        let judged = judge_response(data, limits, to);
        let Scan::Complete { len } = whole else {
            continue;
        };
        assert_eq!(
            judge_response(&data[..len], limits, to),
            judged,
            "bytes after the head count"
        );
        let Ok(info) = judged else {
            continue;
        };
        assert_eq!(info.len, len);
        assert!(to == ResponseTo::Other || info.framing == ResponseFraming::None);
        let head = ResponseHead::new(data, &info);
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut fields);
        assert_eq!(response.parse(data), Ok(httparse::Status::Complete(len)));
        assert_eq!(response.code, Some(info.status));
        assert_eq!(response.version, Some(u8::from(info.version == Version::Http11)));
        let theirs: Vec<_> = response
            .headers
            .iter()
            .map(|h| (h.name.as_bytes(), h.value))
            .collect();
        assert_eq!(head.fields().collect::<Vec<_>>(), theirs);
        fits_http2(head.fields());
    }
}

/// The `h2` crate stores fields in maps whose types check them again: a field that these types refuse would be lost.
fn fits_http2<'h>(fields: impl Iterator<Item = (&'h [u8], &'h [u8])>) {
    for (name, value) in fields {
        let theirs = http::HeaderName::from_bytes(name).expect("a name");
        assert!(name.eq_ignore_ascii_case(theirs.as_str().as_bytes()));
        let theirs = http::HeaderValue::from_bytes(value).expect("a value");
        assert_eq!(theirs.as_bytes(), value);
    }
}

fn chunks(data: &[u8], step: u8) {
    let whole = decode(data, 0);
    assert_eq!(whole, decode(data, step));
    if let Ok((payload, used, Some(trailers))) = whole {
        assert_eq!(plainly(data), Some((payload, used, trailers)));
    }
}

/// The payload, the bytes of the body, and the trailers of a complete body.
fn decode(data: &[u8], step: u8) -> Result<(Vec<u8>, usize, Option<Vec<Field>>), ChunkFault> {
    let mut decoder = ChunkDecoder::keeping_trailers(CHUNKS);
    let (mut at, mut payload) = (0, Vec::new());
    for end in ends(data.len(), step) {
        while at < end && !decoder.complete() {
            let piece = decoder.decode(&data[at..end])?;
            assert!(piece.skip + piece.data > 0, "no progress");
            payload.extend_from_slice(&data[at + piece.skip..][..piece.data]);
            at += piece.skip + piece.data;
        }
    }
    assert_eq!(decoder.payload(), payload.len() as u64);
    let trailers = decoder
        .trailers()
        .map(|(name, value)| (name.to_vec(), value.to_vec()));
    let trailers = trailers.collect();
    Ok((payload, at, decoder.complete().then_some(trailers)))
}

/// The reference decoder: decodes the whole body at once, by splitting it.
fn plainly(data: &[u8]) -> Option<(Vec<u8>, usize, Vec<Field>)> {
    let (mut at, mut payload, mut trailers) = (0, Vec::new(), Vec::new());
    loop {
        let line = line(data, at)?;
        at += line.len() + 2;
        let digits = line.split(|&b| b == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        payload.extend_from_slice(data.get(at..at.checked_add(size)?)?);
        at += size;
        if data.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let line = line(data, at)?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((payload, at, trailers));
        }
        let colon = line.iter().position(|&b| b == b':')?;
        let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
        let value = &line[colon + 1..];
        let from = value.iter().position(|b| !is_blank(b)).unwrap_or(value.len());
        let to = value
            .iter()
            .rposition(|b| !is_blank(b))
            .map_or(from, |last| last + 1);
        trailers.push((line[..colon].to_vec(), value[from..to].to_vec()));
    }
}

fn line(data: &[u8], at: usize) -> Option<&[u8]> {
    let rest = data.get(at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some(&rest[..end])
}
