//! Early responses: a response that begins before the request's end reaches a client that sends everything before it
//! reads (RFC 9112 9.6: a connection is not closed with unread bytes; RFC 9113 8.1: an early answer, then NO_ERROR).

use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::blocking::send_all_then_read;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::h2_frames::{self, END_STREAM, Frames, Outcome, frame, kind};
use sluice_tests::wait::{SOON, wait_until, within};
use sluice_tests::wire::{Protocol, WireBackend};

use crate::{WEB, web_with};

/// A body that fits into the sockets' buffers.
const SMALL: usize = 200 << 10;

/// A body that does not: the client's write ends only if somebody reads.
const LARGE: usize = 8 << 20;

/// A body that fits into the window of a stream (RFC 9113 6.9.2), which is all that an HTTP/2 client can send unread.
const WINDOW: usize = 60_000;

/// The cause of the early response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    /// `limits.maxBodyBytes` and Content-Length.
    TooLong,
    /// `limits.maxBodyBytes`, without Content-Length.
    TooMuch,
    /// `limits.bodyReadTimeout`.
    TooSlow,
    /// No such host.
    NoRoute,
    /// No place in the queue.
    QueueFull,
    /// No slot in time.
    QueueTimeout,
    /// The backend answers and reads on.
    Early(Protocol),
    /// The backend answers and ends its connection after the body.
    EarlyClose(Protocol),
    /// The backend answers and closes.
    EarlyGone(Protocol),
}

use Case::{Early, EarlyClose, EarlyGone, NoRoute, QueueFull, QueueTimeout, TooLong, TooMuch, TooSlow};

impl Case {
    fn limits(self) -> &'static str {
        match self {
            TooLong | TooMuch => "limits: {maxBodyBytes: 1000}\n",
            TooSlow => "limits: {bodyReadTimeout: 300ms}\n",
            _ => "",
        }
    }

    fn revision(self) -> String {
        match self {
            QueueFull => "containerConcurrency: 1\nqueue: {depth: 1}".to_owned(),
            QueueTimeout => "containerConcurrency: 1\nqueue: {timeout: 300ms}".to_owned(),
            Early(up) | EarlyClose(up) | EarlyGone(up) => format!("protocol: {}", up.key()),
            _ => String::new(),
        }
    }

    fn target(self) -> &'static str {
        match self {
            Early(_) => "/early",
            EarlyClose(_) => "/early-close",
            EarlyGone(_) => "/early-gone",
            _ => "/",
        }
    }

    fn status(self) -> u16 {
        match self {
            TooLong | TooMuch => 413,
            TooSlow => 408,
            NoRoute => 404,
            QueueFull | QueueTimeout => 503,
            Early(_) | EarlyClose(_) | EarlyGone(_) => 200,
        }
    }

    /// Whether the slot has to be taken before.
    fn waits(self) -> bool {
        matches!(self, QueueFull | QueueTimeout)
    }

    fn host(self) -> &'static str {
        if self == NoRoute {
            "nobody.example.com"
        } else {
            WEB
        }
    }
}

/// A gateway set up so that the case happens to the next request; the other values keep the set-up alive.
struct Stage {
    gateway: Gateway,
    _wire: Option<WireBackend>,
    _held: Option<HttpBackend>,
}

async fn stage(case: Case) -> Stage {
    let config = |addr| format!("{}{}", case.limits(), web_with(addr, &case.revision()));
    if !case.waits() {
        let up = match case {
            Early(up) | EarlyClose(up) | EarlyGone(up) => up,
            _ => Protocol::Http1,
        };
        let wire = WireBackend::start(up).await;
        return Stage {
            gateway: Gateway::start(&config(wire.addr())).await,
            _wire: Some(wire),
            _held: None,
        };
    }
    let backend = HttpBackend::start("a").await;
    backend.hold();
    let gateway = Gateway::start(&config(backend.addr())).await;
    let addr = gateway.addr();
    let ask = || {
        tokio::spawn(async move {
            // The request is never answered.
            let _ = h1::fetch(addr, &h1::get(WEB, "/")).await;
        })
    };
    ask();
    wait_until("the slot is taken", SOON, || backend.in_flight() == 1).await;
    if case == QueueFull {
        ask();
        gateway
            .wait_metric("sluice_queue_depth", &[], SOON, |depth| depth == 1.0)
            .await;
    }
    Stage {
        gateway,
        _wire: None,
        _held: Some(backend),
    }
}

async fn over_http1(case: Case, len: usize) {
    let stage = stage(case).await;
    let length = match case {
        TooMuch => "Transfer-Encoding: chunked".to_owned(),
        _ => format!("Content-Length: {len}"),
    };
    let (host, target) = (case.host(), case.target());
    let head = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n\r\n").into_bytes();
    let mut body = vec![b'x'; len];
    if case == TooMuch {
        let chunk = [&b"4000\r\n"[..], &[b'x'; 0x4000], b"\r\n"].concat();
        body = chunk.repeat(len / 0x4000);
        body.extend_from_slice(b"0\r\n\r\n");
    }
    let pieces = match case {
        TooSlow => vec![[&head[..], &body[..1000]].concat(), body.split_off(1000)],
        _ => vec![[head, body].concat()],
    };
    let pause = Duration::from_millis(700);
    let answer = send_all_then_read(stage.gateway.addr(), pieces, pause).await;
    match answer {
        Ok((status, text)) => assert_eq!(status, case.status(), "{case:?}: {text}"),
        Err(e) => panic!("{case:?}: {e}"),
    }
}

async fn over_http2(case: Case) {
    let stage = stage(case).await;
    let mut frames = Frames::connect(stage.gateway.addr())
        .await
        .expect("HTTP/2 is spoken");
    let length = WINDOW.to_string();
    let mut fields: Vec<(Vec<u8>, Vec<u8>)> = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", case.target()),
        (":authority", case.host()),
    ]
    .iter()
    .map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec()))
    .collect();
    if case != TooMuch {
        fields.push((b"content-length".to_vec(), length.into_bytes()));
    }
    let mut all = h2_frames::headers(1, &fields, false);
    let pieces = [b'x'; WINDOW];
    let mut pieces = pieces.chunks(10_000).peekable();
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        // A request whose client stalls never ends.
        let flags = if last && case != TooSlow { END_STREAM } else { 0 };
        if !(last && case == TooSlow) {
            all.extend(frame(kind::DATA, flags, 1, piece));
        }
    }
    frames.send(&all).await.expect("it reads");
    let outcome = within("an outcome", SOON, frames.outcome(1)).await;
    assert_eq!(outcome, Outcome::Status(case.status()), "{case:?}");
    let end = within("the answer's end", SOON, async {
        loop {
            let frame = frames.next().await.expect("the connection lives");
            if frame.stream == 1 && (frame.kind == kind::RST_STREAM || frame.flags & END_STREAM != 0) {
                return frame;
            }
        }
    })
    .await;
    assert_eq!(end.kind, kind::DATA, "{case:?}: the answer is whole: {end:?}");
    // RFC 9113 5.4: a stream error does not affect other streams.
    frames
        .send(&h2_frames::request(3, "GET", "nobody.example.com", &[], true))
        .await
        .expect("the connection lives");
    let other = within("another stream", SOON, frames.outcome(3)).await;
    assert_eq!(other, Outcome::Status(404), "{case:?}");
}

macro_rules! cases {
    ($($small:ident $large:ident $http2:ident: $case:expr;)*) => {$(
        #[tokio::test]
async fn $small() { over_http1($case, SMALL).await; }
        #[tokio::test]
async fn $large() { over_http1($case, LARGE).await; }
        #[tokio::test]
async fn $http2() { over_http2($case).await; }
    )*};
}

cases! {
    too_long_small too_long_large too_long_http2: TooLong;
    too_much_small too_much_large too_much_http2: TooMuch;
    too_slow_small too_slow_large too_slow_http2: TooSlow;
    no_route_small no_route_large no_route_http2: NoRoute;
    queue_full_small queue_full_large queue_full_http2: QueueFull;
    queue_timeout_small queue_timeout_large queue_timeout_http2: QueueTimeout;
    early_small_to_h1 early_large_to_h1 early_http2_to_h1: Early(Protocol::Http1);
    early_small_to_h2 early_large_to_h2 early_http2_to_h2: Early(Protocol::Http2);
    early_close_small_to_h1 early_close_large_to_h1 early_close_http2_to_h1: EarlyClose(Protocol::Http1);
    early_close_small_to_h2 early_close_large_to_h2 early_close_http2_to_h2: EarlyClose(Protocol::Http2);
    early_gone_small_to_h1 early_gone_large_to_h1 early_gone_http2_to_h1: EarlyGone(Protocol::Http1);
    early_gone_small_to_h2 early_gone_large_to_h2 early_gone_http2_to_h2: EarlyGone(Protocol::Http2);
}
