//! Any bytes as HTTP/2 frames, either way: however they are cut, the same frames and the same verdict.
#![no_main]

use std::convert::Infallible;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use sluice_fuzz::{choice, ends};
use sluice_gateway::h2::{Flood, FrameGuard, FrameLimits, FrameScanner};

/// Met by inputs of the size that a fuzzer makes.
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
