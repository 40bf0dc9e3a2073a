//! HTTP/2 flood protection: token buckets for control frames and resets.

use std::time::{Duration, Instant};

use sluice_model::Limits;

use super::frames::{FrameHeader, FrameScanner};
use crate::token_bucket::TokenBucket;

const PREFACE_LEN: u8 = 24;

/// Time in which an empty token bucket refills, whatever its size.
const REFILL: Duration = Duration::from_secs(10);

/// SETTINGS_MAX_FRAME_SIZE, the default, which the gateway does not change.
const MAX_FRAME: usize = 16 * 1024;

/// A padded DATA frame of up to this size may be padding alone.
const MAX_PADDING: u32 = 256;

/// Control-frame credits per new request, for the frames around it: browsers send priorities and windows with
/// each.
const CREDITS_PER_REQUEST: u32 = 8;

/// Control-frame credits per DATA frame in either direction: WINDOW_UPDATE for stream and connection, a PING
/// to measure with.
const CREDITS_PER_DATA: u32 = 4;

/// Bytes of DATA per further credit, for clients that open their window in small steps.
const BYTES_PER_CREDIT: u32 = 1024;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
    /// RFC 9218; costs as little as PRIORITY, and is sent in its place.
    pub(super) const PRIORITY_UPDATE: u8 = 16;
}

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The kind of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flood {
    /// Resets of streams, by the client or because of what it sent.
    Resets,
    /// A head in more CONTINUATION frames than its largest size needs.
    Continuation,
    /// PING.
    Ping,
    /// SETTINGS.
    Settings,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// PRIORITY, and frames that mean nothing to the gateway.
    Priority,
    /// DATA or head fragments without content.
    Empty,
}

/// Why the `h2` crate refused a stream by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamRefusal {
    /// `limits.maxConcurrentStreams` were open.
    StreamLimit,
    /// A protocol error on the stream, a head over its size included.
    Protocol,
}

/// A decision of the `h2` crate, as recognised in the bytes it sends to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundEvent {
    /// A stream was refused.
    Refused(StreamRefusal),
    /// The connection ends because of a flood that the `h2` crate detected.
    Flood(Flood),
    /// The connection ends because a head unpacks to more than the `h2` crate keeps.
    HeaderBomb,
    /// The connection ends because of another protocol error of the client.
    Protocol,
}

/// Flood limits of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Control frames beyond those that work explains; `None`: no limit.
    pub max_control_frames: Option<u32>,
    /// Resets beyond the number of completed responses; `None`: no limit.
    pub max_stream_resets: Option<u32>,
    /// CONTINUATION frames of one head, the last one not counted.
    pub max_continuations: usize,
}

impl From<&Limits> for FrameLimits {
    fn from(limits: &Limits) -> Self {
        // As many as the largest head needs and a quarter more, five at least: the `h2` crate refuses more
        // than that, and the guard reports the flood one frame earlier.
        let needed = (limits.max_header_bytes / MAX_FRAME).max(1);
        Self {
            max_control_frames: limits.max_control_frames,
            max_stream_resets: limits.max_stream_resets,
            max_continuations: (needed + needed / 4).max(5),
        }
    }
}

/// The flood guard of one HTTP/2 connection. Has to see every byte once, in order, in both directions.
#[derive(Debug)]
pub struct FrameGuard {
    limits: FrameLimits,
    control: TokenBucket,
    resets: TokenBucket,
    inbound: FrameScanner,
    outbound: FrameScanner,
    /// Remaining bytes of the client's preface.
    preface: u8,
    /// Whether the frame being read belongs to a head, or is the first SETTINGS.
    of_head: bool,
    /// CONTINUATION frames so far of a head that is incomplete.
    open: Option<usize>,
    /// Whether the first frame, the client's SETTINGS, has begun.
    begun: bool,
    heads: u64,
    highest: u32,
    /// A flood detected while sending, returned with the next bytes received.
    pending_flood: Option<Flood>,
}

impl FrameGuard {
    /// A guard of a connection, from its first byte on.
    pub fn new(limits: FrameLimits, now: Instant) -> Self {
        Self {
            control: TokenBucket::new(tokens(limits.max_control_frames), REFILL, now),
            resets: TokenBucket::new(tokens(limits.max_stream_resets), REFILL, now),
            limits,
            inbound: FrameScanner::default(),
            outbound: FrameScanner::default(),
            preface: PREFACE_LEN,
            of_head: false,
            open: None,
            begun: false,
            heads: 0,
            highest: 0,
            pending_flood: None,
        }
    }

    /// Inspects bytes from the client. `now` is called only when a token bucket is empty.
    ///
    /// # Errors
    /// [`Flood`]: the connection has to end; the rest of the bytes is ignored.
    pub fn received(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
        if let Some(flood) = self.pending_flood {
            return Err(flood);
        }
        // The preface is validated by the `h2` crate.
        let preface = usize::from(self.preface).min(bytes.len());
        self.preface -= u8::try_from(preface).unwrap_or(self.preface);
        let mut scan = std::mem::take(&mut self.inbound);
        let seen = scan.advance(&bytes[preface..], |head, _| self.judge(head, &now));
        self.inbound = scan;
        seen
    }

    /// Inspects bytes that the `h2` crate sends to the client, and calls `emit` for each decision in them.
    pub fn sent(&mut self, bytes: &[u8], now: impl Fn() -> Instant, mut emit: impl FnMut(OutboundEvent)) {
        let mut scan = std::mem::take(&mut self.outbound);
        let _: Result<(), ()> = scan.advance(bytes, |head, payload| {
            self.note_sent(head, payload, &now, &mut emit);
            Ok(())
        });
        self.outbound = scan;
    }

    /// Whether the connection preface or a head has begun and is incomplete, so that the header timeout
    /// applies.
    pub fn awaits_head(&self) -> bool {
        self.preface > 0 || !self.begun || self.open.is_some() || (self.of_head && self.inbound.in_payload())
    }

    /// The number of heads that have begun: it tells whether two waits are for the same head.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// A GOAWAY frame of ENHANCE_YOUR_CALM. `None` in the middle of an outgoing frame.
    pub fn goaway(&self) -> Option<[u8; 17]> {
        if !self.outbound.between_frames() {
            return None;
        }
        let mut frame = [0; 17];
        (frame[2], frame[3], frame[16]) = (8, kind::GOAWAY, ENHANCE_YOUR_CALM);
        frame[9..13].copy_from_slice(&self.highest.to_be_bytes());
        Some(frame)
    }

    fn judge(&mut self, head: FrameHeader, now: &impl Fn() -> Instant) -> Result<(), Flood> {
        let first = !std::mem::replace(&mut self.begun, true);
        self.of_head = first || matches!(head.kind, kind::HEADERS | kind::CONTINUATION);
        let idle = match head.kind {
            kind::DATA if has_content(head) => {
                self.control
                    .deposit(u64::from(CREDITS_PER_DATA + head.len / BYTES_PER_CREDIT));
                return Ok(());
            }
            // An empty frame that ends a body is ordinary.
            kind::DATA if head.has(END_STREAM) => return Ok(()),
            kind::DATA => Flood::Empty,
            kind::HEADERS => {
                self.heads += 1;
                self.open = (!head.has(END_HEADERS)).then_some(0);
                if head.stream > self.highest {
                    self.highest = head.stream;
                    self.control.deposit(u64::from(CREDITS_PER_REQUEST));
                }
                if head.len > 0 {
                    return Ok(());
                }
                Flood::Empty
            }
            kind::CONTINUATION => {
                self.of_head = true;
                self.note_continuation(head)?;
                if head.len > 0 {
                    return Ok(());
                }
                Flood::Empty
            }
            kind::RST_STREAM => {
                return self.reset(now).map_or(Ok(()), Err);
            }
            kind::SETTINGS => Flood::Settings,
            kind::PING => Flood::Ping,
            kind::WINDOW_UPDATE => Flood::WindowUpdate,
            kind::PRIORITY | kind::PRIORITY_UPDATE => Flood::Priority,
            _ => Flood::Priority,
        };
        let allowed = self.limits.max_control_frames.is_none() || self.control.try_take(now);
        if allowed { Ok(()) } else { Err(idle) }
    }

    fn note_continuation(&mut self, head: FrameHeader) -> Result<(), Flood> {
        if head.has(END_HEADERS) {
            self.open = None;
            return Ok(());
        }
        // A CONTINUATION without HEADERS is refused by the `h2` crate.
        let Some(count) = &mut self.open else {
            return Ok(());
        };
        *count += 1;
        if *count > self.limits.max_continuations {
            return Err(Flood::Continuation);
        }
        Ok(())
    }

    fn reset(&mut self, now: impl Fn() -> Instant) -> Option<Flood> {
        let allowed = self.limits.max_stream_resets.is_none() || self.resets.try_take(now);
        (!allowed).then_some(Flood::Resets)
    }

    fn note_sent(
        &mut self,
        head: FrameHeader,
        payload: &[u8],
        now: &impl Fn() -> Instant,
        emit: &mut impl FnMut(OutboundEvent),
    ) {
        match head.kind {
            kind::DATA | kind::HEADERS => {
                if head.kind == kind::DATA && head.len > 0 {
                    self.control
                        .deposit(u64::from(CREDITS_PER_DATA + head.len / BYTES_PER_CREDIT));
                }
                if head.has(END_STREAM) {
                    self.resets.deposit(1);
                }
            }
            kind::RST_STREAM => {
                let refusal = match code(payload, 0) {
                    Some(REFUSED_STREAM) => StreamRefusal::StreamLimit,
                    Some(PROTOCOL_ERROR | FLOW_CONTROL_ERROR | STREAM_CLOSED | FRAME_SIZE_ERROR) => {
                        StreamRefusal::Protocol
                    }
                    // A reset by the gateway itself, which is in the access log.
                    _ => return,
                };
                emit(OutboundEvent::Refused(refusal));
                // Streams reset because of what the client sent cost as much as streams that the client
                // resets.
                if self.pending_flood.is_none() {
                    self.pending_flood = self.reset(now);
                }
            }
            kind::GOAWAY => {
                let why = match code(payload, 4) {
                    None | Some(0) => return,
                    Some(ENHANCE_YOUR_CALM) => calm_event(payload.get(8..).unwrap_or_default()),
                    Some(_) => OutboundEvent::Protocol,
                };
                emit(why);
            }
            _ => {}
        }
    }
}

const PROTOCOL_ERROR: u8 = 1;
const FLOW_CONTROL_ERROR: u8 = 3;
const STREAM_CLOSED: u8 = 5;
const FRAME_SIZE_ERROR: u8 = 6;
const REFUSED_STREAM: u8 = 7;
const ENHANCE_YOUR_CALM: u8 = 11;

/// The error code at an offset of a payload, where its four bytes are in one piece; all defined codes fit one
/// byte.
fn code(payload: &[u8], at: usize) -> Option<u8> {
    match payload.get(at..at + 4)? {
        [0, 0, 0, code] => Some(*code),
        _ => None,
    }
}

/// The event of a GOAWAY of ENHANCE_YOUR_CALM, by the `h2` crate's debug data.
fn calm_event(debug: &[u8]) -> OutboundEvent {
    match debug {
        b"too_many_resets" | b"too_many_internal_resets" => OutboundEvent::Flood(Flood::Resets),
        b"too_many_continuations" => OutboundEvent::Flood(Flood::Continuation),
        b"too_many_data_frames" => OutboundEvent::Flood(Flood::Empty),
        b"header_list_way_too_large" => OutboundEvent::HeaderBomb,
        _ => OutboundEvent::Protocol,
    }
}

/// The size of a token bucket; without a limit the bucket is never asked.
fn tokens(limit: Option<u32>) -> u64 {
    u64::from(limit.unwrap_or(u32::MAX))
}

fn has_content(data: FrameHeader) -> bool {
    data.len > if data.has(PADDED) { MAX_PADDING } else { 0 }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
