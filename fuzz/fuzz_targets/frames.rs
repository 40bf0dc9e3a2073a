//! Fuzzes the WebSocket frame scanner: the cuts of the input make no difference, and a frame's rest ends where the
//! frame ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_fuzz::{choice, ends};
use sluice_gateway::downstream::WebSocketFrameTracker;

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let (step, cut) = (choice(&mut data), usize::from(choice(&mut data)));
    let mut whole = WebSocketFrameTracker::default();
    whole.advance(data);

    let mut pieces = WebSocketFrameTracker::default();
    let mut at = 0;
    for end in ends(data.len(), step) {
        pieces.advance(&data[at..end]);
        at = end;
    }
    assert_eq!(
        (pieces.at_boundary(), pieces.closed()),
        (whole.at_boundary(), whole.closed())
    );

    // From any position inside a frame, the rest of the frame leads to the frame's boundary, and not one byte
    // further.
    let cut = cut.min(data.len());
    let mut tracker = WebSocketFrameTracker::default();
    tracker.advance(&data[..cut]);
    let inside = !tracker.at_boundary();
    let rest = tracker.rest_of_frame(&data[cut..]);
    assert!(rest <= data.len() - cut);
    assert!(inside || rest == 0);
    let mut plain = WebSocketFrameTracker::default();
    plain.advance(&data[..cut]);
    for (n, byte) in data[cut..cut + rest].iter().enumerate() {
        assert!(!plain.at_boundary(), "the frame ended after {n} of {rest} bytes");
        plain.advance(std::slice::from_ref(byte));
    }
    assert_eq!(plain.at_boundary(), tracker.at_boundary());
    assert!(tracker.at_boundary() || rest == data.len() - cut);
});
