//! Fuzzes the HTTP/2 frame scanner in both directions: however the input is cut, the frames and the verdict are the
//! same; and every frame that the `h2` crate reads was counted by the scanner.
#![no_main]

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use futures_core::Stream;
use h2::Codec;
use h2::frame::Frame;
use libfuzzer_sys::fuzz_target;
use sluice_fuzz::{choice, ends};
use sluice_gateway::h2::{Flood, FrameGuard, FrameHeader, FrameLimits, FrameScanner};

/// Limits that inputs of a fuzzer's size reach.
const TIGHT: FrameLimits = FrameLimits {
    max_control_frames: Some(4),
    max_stream_resets: Some(2),
    max_continuations: 2,
};

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let step = choice(&mut data);
    let heads = |step| {
        let (mut scan, mut heads, mut from) = (FrameScanner::default(), Vec::new(), 0);
        for end in ends(data.len(), step) {
            let done: Result<(), Infallible> = scan.advance(&data[from..end], |head, payload| {
                assert!(payload.len() <= head.len as usize);
                heads.push(head);
                Ok(())
            });
            let Ok(()) = done;
            from = end;
        }
        (heads, scan.between_frames(), scan.in_payload())
    };
    assert_eq!(heads(0), heads(step));
    agrees_with_h2(&heads(0).0, data);

    let now = Instant::now();
    let received = |step| {
        let (mut guard, mut from) = (FrameGuard::new(TIGHT, now), 0);
        for end in ends(data.len(), step) {
            guard.received(&data[from..end], || now)?;
            from = end;
        }
        Ok::<_, Flood>((guard.awaits_head(), guard.heads()))
    };
    assert_eq!(received(0), received(step));

    let mut guard = FrameGuard::new(TIGHT, now);
    guard.sent(data, || now, |_| {});
    let _ = (guard.goaway(), guard.received(data, || now));
});

/// RFC 9113 6.10: the rest of a head, which the crate returns as one frame.
const CONTINUATION: u8 = 9;

/// The differential check: the crate reads the same bytes, and a frame that the crate reads and the scanner misses
/// would be a flood that nothing counts. The crate skips frame types that it does not know (RFC 9113 5.5), and stops
/// at the first error.
fn agrees_with_h2(heads: &[FrameHeader], data: &[u8]) {
    let mut codec: Codec<_, Bytes> = Codec::new(tokio::io::join(data, tokio::io::sink()));
    let mut cx = Context::from_waker(Waker::noop());
    let mut heads = heads.iter();
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut codec).poll_next(&mut cx) {
        let (kind, stream) = of_h2(&frame);
        loop {
            let head = heads.next().expect("a frame that was not seen");
            if head.kind == kind {
                assert!(stream.is_none_or(|stream| stream == head.stream));
                break;
            }
            assert!(head.kind >= CONTINUATION, "{head:?} before {frame:?}");
        }
    }
}

/// The type and the stream of a frame, where the crate gives the stream.
fn of_h2(frame: &Frame) -> (u8, Option<u32>) {
    match frame {
        Frame::Data(data) => (0, Some(data.stream_id().into())),
        Frame::Headers(headers) => (1, Some(headers.stream_id().into())),
        Frame::Priority(_) => (2, None),
        Frame::Reset(reset) => (3, Some(reset.stream_id().into())),
        Frame::Settings(_) => (4, Some(0)),
        Frame::PushPromise(promise) => (5, Some(promise.stream_id().into())),
        Frame::Ping(_) => (6, Some(0)),
        Frame::GoAway(_) => (7, Some(0)),
        Frame::WindowUpdate(update) => (8, Some(update.stream_id().into())),
    }
}
