//! HTTP/2 floods: frames that cost the client little and an unguarded server much.

use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h2_frames::{END_HEADERS, Frame, Frames, Onslaught, frame, head, kind, request};
use sluice_tests::load::Load;
use sluice_tests::process::{cpu_time, resident_kib};
use sluice_tests::wait::{SOON, within};

use crate::{WEB, web};

/// The most bytes of a flood. An unguarded gateway would read all of them.
const MOST: usize = 16 << 20;

/// The CPU time that a flood of [`MOST`] may cost. An unguarded HTTP/2 stack takes more than two seconds for a million
/// frames, a guarded one some milliseconds.
const CPU: Duration = Duration::from_millis(1_000);

/// The memory that floods may leave behind: buffers of a few connections, and free memory in the allocator.
const MEMORY_KIB: u64 = 48 << 10;

const ENHANCE_YOUR_CALM: u32 = 11;

/// One flood by itself, so that its cost is known, then several while good clients are served.
async fn withstand(
    reason: &str,
    begin: impl Fn() -> Vec<u8>,
    next: impl Fn(usize) -> Vec<u8> + Copy,
    judge: impl Fn(&Onslaught),
) {
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {maxControlFrames: 1000, maxStreamResets: 100}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    gateway.get(WEB, "/").await;
    let memory = resident_kib(gateway.pid());

    let flood = async || {
        let mut frames = Frames::connect(gateway.addr())
            .await
            .expect("the gateway accepts");
        // A flood may be over before its beginning was taken.
        let _ = frames.send(&begin()).await;
        within("the flood ends", 2 * SOON, frames.onslaught(MOST, next)).await
    };
    let before = cpu_time(gateway.pid());
    let outcome = flood().await;
    let cost = cpu_time(gateway.pid()) - before;
    assert!(outcome.ended, "{reason}: all {} bytes were taken", outcome.sent);
    assert!(cost < CPU, "{reason}: {cost:?} for {} bytes", outcome.sent);
    judge(&outcome);
    for goaway in outcome.received.iter().filter(|f| f.kind == kind::GOAWAY) {
        assert_eq!(goaway.code(), Some(ENHANCE_YOUR_CALM), "{reason}");
    }

    let (h1, h2) = (
        Load::get(gateway.addr(), 2, WEB),
        Load::get_h2(gateway.addr(), 2, WEB),
    );
    h1.advance(10).await;
    for _ in 0..4 {
        assert!(flood().await.ended, "{reason}");
        h1.advance(10).await;
        h2.advance(10).await;
    }
    h1.stop().await.assert_clean();
    h2.stop().await.assert_clean();
    let closed = [("reason", reason)];
    gateway
        .wait_metric("sluice_connections_closed_total", &closed, SOON, |n| n == 5.0)
        .await;
    let grown = resident_kib(gateway.pid()).saturating_sub(memory);
    assert!(grown < MEMORY_KIB, "{reason}: {grown} KiB");
}

fn nothing() -> Vec<u8> {
    Vec::new()
}

/// The token bucket's size, its refill meanwhile, and frames in transit.
fn few(outcome: &Onslaught, kind: u8) {
    let count = outcome.count(kind);
    assert!(count < 5_000, "{count} frames of type {kind} in answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings() {
    let ping = |_| frame(kind::PING, 0, 0, b"floodfld");
    withstand("ping_flood", nothing, ping, |o| few(o, kind::PING)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings() {
    let settings = |_| frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
    withstand("settings_flood", nothing, settings, |o| few(o, kind::SETTINGS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn window_updates() {
    let update = |_| frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    withstand("window_update_flood", nothing, update, |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priorities() {
    let priority = |n: usize| {
        let stream = u32::try_from(n % 1_000_000).unwrap() * 2 + 1;
        frame(kind::PRIORITY, 0, stream, &[0, 0, 0, 0, 7])
    };
    withstand("priority_flood", nothing, priority, |_| ()).await;
}

/// A request whose body is to come.
fn upload() -> Vec<u8> {
    request(1, "POST", WEB, &[], false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data() {
    let empty = |_| frame(kind::DATA, 0, 1, b"");
    withstand("empty_frame_flood", upload, empty, |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_padding_alone() {
    let padding = |_| frame(kind::DATA, 0x8, 1, &[7, 0, 0, 0, 0, 0, 0, 0]);
    withstand("empty_frame_flood", upload, padding, |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_without_end() {
    let begin = || frame(kind::HEADERS, 0, 1, &head("GET", WEB, &[]));
    let more = |_| frame(kind::CONTINUATION, 0, 1, &head("GET", WEB, &[])[..0]);
    withstand("continuation_flood", begin, more, |_| ()).await;
    // With content, each of which the table has to remember.
    let begin = || frame(kind::HEADERS, 0, 1, &head("GET", WEB, &[]));
    let more = |_| frame(kind::CONTINUATION, 0, 1, b"\x40\x03x-a\x01b");
    withstand("continuation_flood", begin, more, |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_unpacks_to_many_times_its_size() {
    let bomb = |round: usize| {
        let stream = u32::try_from(round % 1_000_000).unwrap() * 2 + 1;
        let mut block = head("GET", WEB, &[]);
        // A field of 4000 bytes goes to the table; each further byte references the field once more.
        block.extend_from_slice(b"\x40\x03x-a\x7f\xa1\x1e");
        block.extend(std::iter::repeat_n(b'b', 4_000));
        block.extend(std::iter::repeat_n(0xbe, 12_000));
        frame(kind::HEADERS, END_HEADERS | 1, stream, &block)
    };
    withstand("header_bomb", nothing, bomb, |_| ()).await;
}

/// Streams opened and reset at once, faster than they could be answered.
fn open_and_reset(round: usize) -> Vec<u8> {
    let stream = u32::try_from(round % 1_000_000).expect("a small number") * 2 + 1;
    let mut out = request(stream, "GET", WEB, &[], true);
    out.extend(frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset() {
    withstand("reset_flood", nothing, open_and_reset, |_| ()).await;
}

/// Sends `each` for stream after stream, a few at a time, and waits until the gateway has processed them, so that every
/// stream became a request; until the connection ends or `most` bytes went.
async fn paced(gateway: &Gateway, most: u32, each: impl Fn(u32) -> Vec<u8>) -> (u32, Vec<Frame>) {
    let mut frames = Frames::connect(gateway.addr())
        .await
        .expect("the gateway accepts");
    for n in 0..most {
        let mut bytes = request(n * 2 + 1, "GET", WEB, &[], true);
        bytes.extend(frame(kind::PING, 0, 0, b"seen yet"));
        let opened = frames.send(&bytes).await.is_ok()
            // The first ACK is of SETTINGS, which has no such payload.
            && within("the ping's answer", SOON, frames.next_of(kind::PING)).await.is_ok();
        if !opened || frames.send(&each(n * 2 + 1)).await.is_err() {
            return (n, within("the end", SOON, frames.until_end()).await);
        }
    }
    (most, Vec::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_reset_once_they_are_under_way_are_bounded_too() {
    for (what, reset) in [
        ("by the client", frame(kind::RST_STREAM, 0, 0, &[0, 0, 0, 8])),
        // A window beyond all bounds: the gateway has to reset the stream itself.
        (
            "provoked",
            frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        ),
    ] {
        let backend = HttpBackend::start("a").await;
        backend.hold();
        let limits = "limits: {maxStreamResets: 50}";
        let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
        let (opened, _) = paced(&gateway, 5_000, |stream| {
            let mut bytes = reset.clone();
            bytes[5..9].copy_from_slice(&stream.to_be_bytes());
            bytes
        })
        .await;
        // 50, and 5 more for each second that it takes.
        assert!((50..1_000).contains(&opened), "{what}: {opened} streams");
        let closed = [("reason", "reset_flood")];
        gateway
            .wait_metric("sluice_connections_closed_total", &closed, SOON, |n| n == 1.0)
            .await;
        gateway
            .wait_metric("sluice_requests_in_flight", &[], SOON, |n| n == 0.0)
            .await;
        backend.release();
        assert_eq!(gateway.get(WEB, "/").await.status, 200, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_cancels_much_but_lets_most_be_answered_is_served() {
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {maxStreamResets: 20}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let mut frames = Frames::connect(gateway.addr()).await.unwrap();
    for n in 0..200 {
        let (answered, cancelled) = (n * 4 + 1, n * 4 + 3);
        let mut bytes = request(answered, "GET", WEB, &[], true);
        bytes.extend(request(cancelled, "GET", WEB, &[], true));
        bytes.extend(frame(kind::RST_STREAM, 0, cancelled, &[0, 0, 0, 8]));
        frames.send(&bytes).await.unwrap();
        loop {
            let seen = within("an answer", SOON, frames.next()).await.unwrap();
            assert_ne!(seen.kind, kind::GOAWAY, "round {n}");
            if seen.stream == answered && seen.flags & 1 != 0 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn streams_over_the_limit_are_refused_and_counted() {
    let backend = HttpBackend::start("a").await;
    backend.hold();
    let limits = "limits: {maxConcurrentStreams: 3}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let mut frames = Frames::connect(gateway.addr()).await.unwrap();
    // The limit counts once its SETTINGS is acknowledged.
    within("SETTINGS", SOON, frames.next_of(kind::SETTINGS))
        .await
        .unwrap();
    frames.send(&frame(kind::SETTINGS, 1, 0, b"")).await.unwrap();
    for stream in [1, 3, 5, 7] {
        frames
            .send(&request(stream, "GET", WEB, &[], true))
            .await
            .unwrap();
    }
    let refused = within("a refusal", SOON, frames.next_of(kind::RST_STREAM))
        .await
        .unwrap();
    assert_eq!((refused.stream, refused.code()), (7, Some(7)));
    let labels = [("reason", "stream_limit")];
    gateway
        .wait_metric("sluice_streams_refused_total", &labels, SOON, |n| n == 1.0)
        .await;
    backend.release();
    let answer = within("the others are answered", SOON, frames.next_of(kind::HEADERS)).await;
    assert!([1, 3, 5].contains(&answer.unwrap().stream));
}

#[tokio::test]
async fn a_head_that_the_http2_layer_answers_is_counted() {
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {maxHeaderBytes: 8KiB, maxHeaders: 20}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let mut frames = Frames::connect(gateway.addr()).await.unwrap();
    let value = "v".repeat(100);
    let block = head("POST", WEB, &[("x-large", value.as_str()); 250]);
    let (first, rest) = block.split_at(16_000);
    // With an incomplete body: the HTTP/2 layer resets the stream after the response.
    let mut bytes = frame(kind::HEADERS, 0, 1, first);
    bytes.extend(frame(kind::CONTINUATION, END_HEADERS, 1, rest));
    frames.send(&bytes).await.unwrap();
    let answer = within("an answer", SOON, frames.next_of(kind::HEADERS))
        .await
        .unwrap();
    assert_eq!(answer.stream, 1);
    let labels = [("reason", "protocol_error")];
    gateway
        .wait_metric("sluice_streams_refused_total", &labels, SOON, |n| n == 1.0)
        .await;
    // The connection is as good as before.
    frames.send(&request(3, "GET", WEB, &[], true)).await.unwrap();
    let answer = within("an answer", SOON, frames.next_of(kind::HEADERS))
        .await
        .unwrap();
    assert_eq!(answer.stream, 3);
}
