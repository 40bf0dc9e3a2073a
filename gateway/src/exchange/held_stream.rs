//! The stream to a client whose request is held for a start: signs of life until the backend's response is spliced in.
//!
//! The status 200 is sent when the request has waited for a set time, and with it the stream is committed: a response
//! of another kind becomes an `error` event, or a reset where the format has none. At most one sign is pending, so a
//! client that reads slowly costs no memory, and one that reads nothing for the write timeout counts as gone.

use std::fmt::Write as _;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use sluice_model::{ColdStream, StreamFormat};
use tokio::sync::watch;

use super::sides::{BodyLength, ClientFault, ClientSide, OutgoingResponse};
use super::timer::DeadlineTimer;
use crate::edge::Drain;
use crate::observe::Reason;
use crate::request::{Fields, phase_name, seconds};
use crate::throttle::{RevisionThrottler, Waiter, clock};

/// Places in the queue are counted up to here: counting takes the lock that admits requests.
const MAX_PLACE: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was sent.
    Silent,
    /// The head was sent, and nothing of a backend's response.
    Open,
    /// The rest is the backend's.
    Spliced,
}

/// The stream of one held request.
#[derive(Debug)]
pub(super) struct HeldStream {
    format: StreamFormat,
    every: Duration,
    write_timeout: Duration,
    fields: Vec<(&'static str, String)>,
    drain: watch::Receiver<Drain>,
    /// When the head, or the next sign of life, is due.
    due: Instant,
    state: State,
    /// The sign that is being sent.
    text: String,
    sent: usize,
}

/// Fields of the gateway's own, to be sent as a response's.
pub(super) struct OwnFields<'f>(pub(super) &'f [(&'static str, String)]);

impl Fields for OwnFields<'_> {
    fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
        for (name, value) in self.0 {
            each(name.as_bytes(), value.as_bytes());
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_bytes())
    }
}

impl HeldStream {
    /// The stream of a request that arrived at `started`. Nothing is sent before it is polled.
    pub(super) fn new(
        settings: &ColdStream,
        started: Instant,
        write_timeout: Duration,
        request_id: &str,
        drain: watch::Receiver<Drain>,
    ) -> Box<Self> {
        Box::new(Self {
            format: settings.format,
            every: settings.every,
            write_timeout,
            fields: vec![
                ("content-type", settings.format.media_type().to_owned()),
                ("cache-control", "no-store".to_owned()),
                // Buffering proxies would keep the signs of life to themselves.
                ("x-accel-buffering", "no".to_owned()),
                ("x-request-id", request_id.to_owned()),
            ],
            drain,
            due: started + settings.after,
            state: State::Silent,
            text: String::new(),
            sent: 0,
        })
    }

    /// Whether the status was sent, and nothing of a backend's response.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(super) fn format(&self) -> StreamFormat {
        self.format
    }

    /// When the next sign of life is due; `None` while one is being sent.
    pub(super) fn due(&self) -> Option<Instant> {
        self.is_sent().then_some(self.due)
    }

    fn is_sent(&self) -> bool {
        self.sent == self.text.len()
    }

    /// From now on the body is the backend's, after what is left of a sign.
    pub(super) fn splice(&mut self) {
        self.state = State::Spliced;
    }

    /// Sends what is due, for as long as the request is held. Resolves when the client is gone.
    pub(super) fn poll_held<C: ClientSide>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        timer: &mut DeadlineTimer,
        (throttler, waiter): (&RevisionThrottler, Option<&Waiter>),
        (status, bytes_out): (&mut Option<u16>, &mut u64),
    ) -> Poll<()> {
        loop {
            if self.is_open() && matches!(self.poll_write(cx, client, bytes_out), Poll::Ready(Err(_))) {
                return Poll::Ready(());
            }
            let stalled = client.blocked_since().map(|since| since + self.write_timeout);
            let Some(at) = [stalled, self.due()].into_iter().flatten().min() else {
                return Poll::Pending;
            };
            if timer.poll_at(cx, at).is_pending() {
                return Poll::Pending;
            }
            let now = clock();
            if stalled.is_some_and(|at| at <= now) {
                client.write_timed_out();
                return Poll::Ready(());
            }
            let Some(state) = throttler.cold_state(now) else {
                // An instance is ready: the request waits for a slot, which is another matter.
                self.due = now + self.every;
                continue;
            };
            if self.state == State::Silent {
                if self.begin(client).is_err() {
                    return Poll::Ready(());
                }
                *status = Some(200);
            }
            self.beat(now, |text| {
                let _ = write!(
                    text,
                    "{}, {} so far",
                    phase_name(&state.phase),
                    seconds(state.elapsed)
                );
                if let Some(expected) = state.expected {
                    let _ = write!(text, ", usually {}", seconds(expected));
                }
                match waiter.map(|waiter| waiter.ahead(MAX_PLACE)) {
                    Some(MAX_PLACE) => _ = write!(text, ", behind {MAX_PLACE} or more in the queue"),
                    Some(ahead) => _ = write!(text, ", place {} in the queue", ahead + 1),
                    None => {}
                }
            });
        }
    }

    fn begin<C: ClientSide>(&mut self, client: &mut C) -> Result<(), ClientFault> {
        let last = *self.drain.borrow() != Drain::Serving;
        client.respond(&OutgoingResponse {
            status: 200,
            phrase: b"",
            fields: &OwnFields(&self.fields),
            length: BodyLength::Unknown,
            trailers: true,
            declared_length: None,
            reason: Some(Reason::Starting.as_str()),
            timing: None,
            upgrade: None,
            last,
        })?;
        self.state = State::Open;
        Ok(())
    }

    /// Makes the next sign of life; the previous one was sent. `tell` writes one line.
    pub(super) fn beat(&mut self, now: Instant, tell: impl FnOnce(&mut String)) {
        debug_assert!(self.is_sent());
        self.due = now + self.every;
        self.text.clear();
        self.sent = 0;
        match self.format {
            StreamFormat::ServerSentEvents => {
                self.text.push_str(": ");
                tell(&mut self.text);
                self.text.push_str("\n\n");
            }
            // Whitespace before a JSON text (RFC 8259 2); it can tell nothing.
            StreamFormat::Json => self.text.push('\n'),
        }
    }

    /// Appends an event that says how the stream ends.
    pub(super) fn end_with_error(&mut self, status: u16, reason: Option<&str>, message: &str) {
        let data = match reason {
            Some(reason) => serde_json::json!({"status": status, "reason": reason, "message": message}),
            None => serde_json::json!({"status": status, "message": message}),
        };
        // JSON escapes line breaks, so that the data is one line.
        let _ = write!(self.text, "event: error\ndata: {data}\n\n");
    }

    /// Writes what is left of a sign. Resolves once the client has all of it.
    pub(super) fn poll_write<C: ClientSide>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        bytes_out: &mut u64,
    ) -> Poll<Result<(), ClientFault>> {
        while !self.is_sent() {
            match client.poll_send(cx, &self.text.as_bytes()[self.sent..]) {
                Poll::Ready(Ok(n)) => {
                    self.sent += n;
                    *bytes_out += n as u64;
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Pending => return Poll::Pending,
            }
        }
        client.poll_flush(cx)
    }
}

/// Whether a response can follow the head that was sent: the same media type, whole, and without a coding.
pub(super) fn can_splice(format: StreamFormat, status: u16, fields: &impl Fields) -> bool {
    let kind = fields.first("content-type").unwrap_or_default();
    let kind = kind.split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
    let coding = fields.first("content-encoding").unwrap_or_default().trim_ascii();
    matches!(status, 200..=299)
        && status != 206
        && kind.eq_ignore_ascii_case(format.media_type().as_bytes())
        && (coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_plain_response_of_the_type_is_spliced() {
        let sse = StreamFormat::ServerSentEvents;
        for (status, kind, coding, fits) in [
            (200, "text/event-stream", "", true),
            (201, "Text/Event-Stream; charset=utf-8", "identity", true),
            (206, "text/event-stream", "", false),
            (204, "text/event-stream", "gzip", false),
            (200, "text/event-stream", "gzip", false),
            (200, "text/html", "", false),
            (200, "", "", false),
            (302, "text/event-stream", "", false),
            (500, "text/event-stream", "", false),
        ] {
            let fields = [
                ("content-type", kind.to_owned()),
                ("content-encoding", coding.to_owned()),
            ];
            assert_eq!(
                can_splice(sse, status, &OwnFields(&fields)),
                fits,
                "{status} {kind} {coding}"
            );
        }
        let json = [("content-type", "application/json".to_owned())];
        let json = OwnFields(&json);
        assert!(can_splice(StreamFormat::Json, 200, &json) && !can_splice(sse, 200, &json));
    }

    #[test]
    fn an_error_is_one_event_whatever_it_says() {
        let settings = ColdStream {
            after: Duration::ZERO,
            every: Duration::from_secs(1),
            format: StreamFormat::ServerSentEvents,
        };
        let (_, drain) = watch::channel(Drain::Serving);
        let mut stream = HeldStream::new(&settings, Instant::now(), Duration::from_secs(1), "id", drain);
        stream.beat(Instant::now(), |text| text.push_str("booting"));
        stream.end_with_error(503, Some("activation_failed"), "it said:\n\ndata: x");
        assert_eq!(
            stream.text,
            ": booting\n\nevent: error\ndata: {\"message\":\"it said:\\n\\ndata: x\",\"reason\":\"activation_failed\",\"status\":503}\n\n"
        );
    }
}
