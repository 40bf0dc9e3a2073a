//! Cold answers of an exchange: the waiting page, and the stream to a held request's client.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use sluice_model::StreamFormat;

use super::Exchange;
use super::duplex::Progress;
use super::held_stream::{HeldStream, OwnFields};
use super::sides::{BodyLength, ClientHead, ClientSide, OutgoingResponse};
use super::timer::DeadlineTimer;
use crate::edge::ByteStream;
use crate::local_response::{LocalResponse, RenderedResponse};
use crate::observe::Reason;
use crate::request::{PollGone, RequestCtx, takes_page, takes_stream};
use crate::throttle::{Waiter, clock};

/// What a held request is polled for: its client's end, and a stream to the client, if it takes one. Polled only when
/// the request has to wait.
pub(super) fn hold<'e, C: ClientSide>(
    client: &'e mut C,
    timer: &'e mut DeadlineTimer,
    progress: &'e mut Progress,
    request: &RequestCtx,
) -> impl PollGone + use<'e, C> {
    let routed = request.routed.as_ref().filter(|_| progress.stream.is_some());
    let throttler = routed.map(|routed| Arc::clone(routed.live.throttler()));
    let mut rests = false;
    move |cx: &mut Context<'_>, waiter: Option<&Waiter>| {
        if !std::mem::replace(&mut rests, true) {
            client.release_memory();
        }
        if client.poll_gone(cx).is_ready() {
            return Poll::Ready(());
        }
        match (&mut progress.stream, &throttler) {
            (Some(stream), Some(throttler)) => {
                let sent = (&mut progress.status, &mut progress.bytes_out);
                stream.poll_held(cx, client, timer, (throttler, waiter), sent)
            }
            _ => Poll::Pending,
        }
    }
}

impl<C: ClientSide> Exchange<'_, C>
where
    C::Stream: ByteStream + 'static,
{
    /// Answers with a waiting page where the client takes one and nothing is ready; prepares a stream where the
    /// client takes one.
    pub(super) fn prepare_cold_answer(&mut self) -> Result<(), LocalResponse> {
        // A stream that was begun goes on, whatever another table says.
        if self.request.is_passive() || self.progress.is_held() {
            return Ok(());
        }
        self.progress.stream = None;
        let head = self.client.head();
        if self.request.page().is_some() {
            let bodiless = self.client.body_length().is_empty();
            if takes_page(head, bodiless)
                && !self.offers_switch()
                && let Some(page) = self.request.visit()
            {
                return Err(page);
            }
        } else if let Some(stream) = self.request.cold_stream() {
            let takes = takes_stream(head, &stream) && !head.must_switch() && !self.offers_switch();
            self.progress.stream = takes.then(|| {
                let request = &self.request;
                let timeout = request.limits().write_timeout;
                HeldStream::new(
                    &stream,
                    request.started,
                    timeout,
                    request.request_id.as_str(),
                    request.drain(),
                )
            });
        }
        Ok(())
    }
}

impl<C: ClientSide> Exchange<'_, C> {
    /// Ends a stream whose backend responded with something else.
    pub(super) async fn refuse_splice(&mut self) {
        let status = self.progress.final_status.unwrap_or(502);
        let text = format!("the backend answered {status}, and nothing that fits the stream");
        self.request.detail = Some(text.clone());
        self.fail_held_stream(status, None, &text).await;
    }

    /// Ends a stream that was begun while the request was held, without a response: by an event where the format has
    /// events, by a reset where it has none.
    pub(super) async fn fail_held_stream(&mut self, status: u16, reason: Option<Reason>, message: &str) {
        self.request.permit = None;
        self.progress.final_status = Some(status);
        let Some(mut stream) = self.progress.stream.take() else {
            return;
        };
        if stream.format() == StreamFormat::Json {
            self.client.abort();
            return;
        }
        stream.end_with_error(status, reason.map(Reason::as_str), message);
        let bytes_out = &mut self.progress.bytes_out;
        let (client, timer) = (&mut *self.client, &mut *self.timer);
        let until = clock() + self.request.limits().write_timeout;
        let mut ended = false;
        let written = poll_fn(|cx| {
            loop {
                match stream.poll_write(cx, client, bytes_out) {
                    Poll::Ready(Ok(())) if ended => return Poll::Ready(true),
                    Poll::Ready(Ok(())) => {
                        ended = true;
                        if client.finish(None).is_err() {
                            return Poll::Ready(false);
                        }
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return timer.poll_at(cx, until).map(|()| false),
                }
            }
        })
        .await;
        if !written {
            self.client.abort();
        } else if !self.client.body_length().is_empty() {
            self.drain_upload().await;
        }
    }

    /// Sends a waiting page, with back-pressure: the page may be larger than a client's window.
    pub(super) async fn send_page(&mut self, page: &RenderedResponse) {
        let write_timeout = self.request.limits().write_timeout;
        let fields = OwnFields(&page.headers);
        let begun = self.client.respond(&OutgoingResponse {
            status: page.status,
            phrase: b"",
            fields: &fields,
            length: BodyLength::Known(page.body.len() as u64),
            trailers: false,
            declared_length: None,
            reason: self.request.reason.map(Reason::as_str),
            timing: None,
            upgrade: None,
            last: self.request.draining(),
        });
        if begun.is_err() {
            self.request.reason = Some(Reason::ClientGone);
            return;
        }
        self.progress.status = Some(page.status);
        let (client, timer, bytes_out) = (&mut *self.client, &mut *self.timer, &mut self.progress.bytes_out);
        let (mut left, mut ended) = (&page.body[..], false);
        let written = poll_fn(|cx| {
            loop {
                let polled = if left.is_empty() {
                    if !std::mem::replace(&mut ended, true) && client.finish(None).is_err() {
                        return Poll::Ready(false);
                    }
                    client.poll_flush(cx)
                } else {
                    client.poll_send(cx, left).map_ok(|n| {
                        left = &left[n..];
                        *bytes_out += n as u64;
                    })
                };
                match polled {
                    Poll::Ready(Ok(())) if ended => return Poll::Ready(true),
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => {
                        let since = client.blocked_since().unwrap_or_else(clock);
                        return timer.poll_at(cx, since + write_timeout).map(|()| false);
                    }
                }
            }
        })
        .await;
        if !written {
            self.request.reason = Some(Reason::ClientGone);
            self.client.abort();
        }
    }
}
