use std::time::Duration;

use proptest::prelude::*;

use super::*;

const LIMITS: FrameLimits = FrameLimits {
    max_control_frames: Some(50),
    max_stream_resets: Some(20),
    max_continuations: 5,
};

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

struct GuardFixture {
    guard: FrameGuard,
    now: Instant,
    events: Vec<OutboundEvent>,
}

/// A connection whose preface and SETTINGS have come.
fn fixture(limits: FrameLimits) -> GuardFixture {
    let now = Instant::now();
    let mut guard = FrameGuard::new(limits, now);
    guard
        .received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || now)
        .unwrap();
    guard.received(&frame(kind::SETTINGS, 0, 0, b""), || now).unwrap();
    GuardFixture {
        guard,
        now,
        events: Vec::new(),
    }
}

impl GuardFixture {
    fn get(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let now = self.now;
        self.guard.received(bytes, || now)
    }

    fn send(&mut self, bytes: &[u8]) {
        let (now, events) = (self.now, &mut self.events);
        self.guard.sent(bytes, || now, |t| events.push(t));
    }

    /// How many of these pass before one is too many.
    fn until(&mut self, bytes: &[u8]) -> (usize, Option<Flood>) {
        for n in 0..10_000 {
            if let Err(flood) = self.get(bytes) {
                return (n, Some(flood));
            }
        }
        (10_000, None)
    }
}

#[test]
fn frames_without_work_are_bounded_each_by_its_name() {
    for (what, bytes, flood) in [
        ("ping", frame(kind::PING, 0, 0, &[0; 8]), Flood::Ping),
        ("settings", frame(kind::SETTINGS, 0, 0, b""), Flood::Settings),
        (
            "window",
            frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
            Flood::WindowUpdate,
        ),
        ("priority", frame(kind::PRIORITY, 0, 1, &[0; 5]), Flood::Priority),
        ("unknown", frame(0xbb, 0, 1, b"what"), Flood::Priority),
        ("empty data", frame(kind::DATA, 0, 1, b""), Flood::Empty),
        (
            "padding alone",
            frame(kind::DATA, PADDED, 1, &[255; 256]),
            Flood::Empty,
        ),
    ] {
        let mut fixture = fixture(LIMITS);
        // The first SETTINGS took one.
        assert_eq!(fixture.until(&bytes), (49, Some(flood)), "{what}");
        fixture.now += Duration::from_secs(1);
        assert_eq!(fixture.until(&bytes), (5, Some(flood)), "{what}: in a second");
    }
}

#[test]
fn work_pays_for_the_frames_around_it() {
    let ping = frame(kind::PING, 0, 0, &[0; 8]);
    let window = frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]);
    for (what, work, inbound) in [
        ("an upload", frame(kind::DATA, 0, 1, b"some"), true),
        ("a padded upload", frame(kind::DATA, PADDED, 1, &[5; 257]), true),
        ("a download", frame(kind::DATA, 0, 1, b"some"), false),
    ] {
        let mut fixture = fixture(LIMITS);
        for _ in 0..10_000 {
            if inbound {
                fixture.get(&work).unwrap();
            } else {
                fixture.send(&work);
            }
            for bytes in [&ping, &window, &window] {
                assert_eq!(fixture.get(bytes), Ok(()), "{what}");
            }
        }
    }
    let mut fixture = fixture(LIMITS);
    for stream in 0..10_000 {
        fixture
            .get(&frame(
                kind::HEADERS,
                END_HEADERS | END_STREAM,
                stream * 2 + 1,
                b"x",
            ))
            .unwrap();
        fixture.get(&window).unwrap();
        fixture
            .get(&frame(kind::PRIORITY, 0, stream * 2 + 1, &[0; 5]))
            .unwrap();
    }
}

#[test]
fn resets_are_bounded_and_answers_pay_for_them() {
    let reset = frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    let mut fixture = fixture(LIMITS);
    assert_eq!(fixture.until(&reset), (20, Some(Flood::Resets)));
    for end in [
        frame(kind::DATA, END_STREAM, 1, b""),
        frame(kind::HEADERS, END_STREAM | END_HEADERS, 3, b"x"),
    ] {
        fixture.send(&end);
        assert_eq!(fixture.until(&reset), (1, Some(Flood::Resets)));
    }
    fixture.now += Duration::from_secs(60);
    assert_eq!(fixture.until(&reset), (20, Some(Flood::Resets)));
}

#[test]
fn resets_that_the_client_provokes_count_as_its_own() {
    let mut fixture = fixture(LIMITS);
    for n in 0..21 {
        assert_eq!(fixture.get(&frame(kind::DATA, 0, 1, b"x")), Ok(()), "{n}");
        fixture.send(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, PROTOCOL_ERROR]));
        // The gateway's own, which nobody but the gateway is to blame for.
        fixture.send(&frame(kind::RST_STREAM, 0, 3, &[0, 0, 0, 2]));
    }
    assert_eq!(fixture.get(b""), Err(Flood::Resets));
    assert_eq!(
        fixture.events,
        vec![OutboundEvent::Refused(StreamRefusal::Protocol); 21]
    );
}

#[test]
fn a_head_in_many_pieces_is_bounded_and_awaited() {
    let mut fixture = fixture(LIMITS);
    assert!(!fixture.guard.awaits_head());
    let begin = frame(kind::HEADERS, 0, 1, b"x");
    let more = frame(kind::CONTINUATION, 0, 1, b"x");
    for n in 0..3 {
        let before = fixture.guard.heads();
        fixture.get(&begin).unwrap();
        for _ in 0..5 {
            fixture.get(&more).unwrap();
        }
        assert!(fixture.guard.awaits_head(), "{n}");
        assert_eq!(fixture.guard.heads(), before + 1);
        fixture
            .get(&frame(kind::CONTINUATION, END_HEADERS, 1, b"x"))
            .unwrap();
        assert!(!fixture.guard.awaits_head(), "{n}");
    }
    fixture.get(&begin).unwrap();
    assert_eq!(fixture.until(&more), (5, Some(Flood::Continuation)));
}

#[test]
fn the_beginning_and_a_head_frame_cut_short_are_awaited() {
    let now = Instant::now();
    let mut guard = FrameGuard::new(LIMITS, now);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]));
    for byte in &bytes {
        assert!(guard.awaits_head());
        guard.received(&[*byte], || now).unwrap();
    }
    assert!(!guard.awaits_head());
    let head = frame(kind::HEADERS, END_HEADERS, 1, b"xyz");
    let (first, last) = head.split_at(head.len() - 1);
    guard.received(first, || now).unwrap();
    assert!(guard.awaits_head());
    guard.received(last, || now).unwrap();
    assert!(!guard.awaits_head());
    // A body's pace is watched elsewhere.
    guard
        .received(&frame(kind::DATA, 0, 1, b"xyz")[..10], || now)
        .unwrap();
    assert!(!guard.awaits_head());
}

#[test]
fn what_the_layer_decides_is_read_off_its_frames() {
    let goaway = |code: u8, debug: &[u8]| {
        let mut payload = vec![0, 0, 0, 1, 0, 0, 0, code];
        payload.extend_from_slice(debug);
        frame(kind::GOAWAY, 0, 0, &payload)
    };
    let mut fixture = fixture(LIMITS);
    for bytes in [
        goaway(0, b""),
        goaway(1, b""),
        goaway(11, b"too_many_resets"),
        goaway(11, b"header_list_way_too_large"),
        goaway(11, b"something new"),
        frame(kind::RST_STREAM, 0, 9, &[0, 0, 0, REFUSED_STREAM]),
        frame(kind::RST_STREAM, 0, 9, &[0, 0, 0, 8]),
    ] {
        fixture.send(&bytes);
    }
    let expected = [
        OutboundEvent::Protocol,
        OutboundEvent::Flood(Flood::Resets),
        OutboundEvent::HeaderBomb,
        OutboundEvent::Protocol,
        OutboundEvent::Refused(StreamRefusal::StreamLimit),
    ];
    assert_eq!(fixture.events, expected);
}

#[test]
fn a_goaway_never_lands_in_the_middle_of_a_frame() {
    let mut fixture = fixture(LIMITS);
    fixture.get(&frame(kind::HEADERS, END_HEADERS, 7, b"x")).unwrap();
    let data = frame(kind::DATA, 0, 7, b"some");
    let (first, last) = data.split_at(5);
    fixture.send(first);
    assert_eq!(fixture.guard.goaway(), None);
    fixture.send(last);
    let frame = fixture.guard.goaway().unwrap();
    assert_eq!(frame, [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 11]);
}

#[test]
fn without_limits_nothing_is_too_much_but_an_endless_head() {
    let mut fixture = fixture(FrameLimits {
        max_control_frames: None,
        max_stream_resets: None,
        ..LIMITS
    });
    assert_eq!(fixture.until(&frame(kind::PING, 0, 0, &[0; 8])).1, None);
    assert_eq!(fixture.until(&frame(kind::RST_STREAM, 0, 1, &[0; 4])).1, None);
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_one_verdict(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        cut in 1..100_usize,
    ) {
        let now = Instant::now();
        let whole = {
            let mut guard = FrameGuard::new(LIMITS, now);
            guard.received(&bytes, || now)
        };
        let mut guard = FrameGuard::new(LIMITS, now);
        let mut cut_up = Ok(());
        for piece in bytes.chunks(cut) {
            cut_up = guard.received(piece, || now);
            if cut_up.is_err() {
                break;
            }
        }
        prop_assert_eq!(whole, cut_up);
    }
}
