//! Upgrades: WebSocket and its like leave pingora-proxy for a tunnel of ours.
//!
//! pingora-proxy closes a tunnel whose backend answers 101 before the empty request body was
//! seen to end (its issue 946), and has no timers for what follows the 101. Here the request goes
//! through the same routing, admission and header rules, and what follows is bytes both ways.

mod exchange;
mod frames;
mod relay;

use std::sync::Arc;
use std::time::Instant;

use sluice_model::Protocol;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, watch};

pub use self::frames::FrameTracker;

use self::exchange::{Broke, Fields, Opened};
use self::relay::{Bounds, Ended, Traffic, relay};
use super::h1::linger;
use super::retry::{MAX_ATTEMPTS, is_out_of_descriptors};
use super::{Proxy, current_timers, upstream};
use crate::answer::Answer;
use crate::edge::{ByteStream, ConnectionInfo, Drain};
use crate::h1::{ChunkLimits, GuardedStream, Head};
use crate::observe::{Reason, RequestProtocol, Timer};
use crate::request::{Attempt, Breakable, Ending, Incoming, Refusal, RequestCtx};
use crate::throttle::{Outcome, Permit};

/// How a tunnel request ended.
struct Finished {
    status: Option<u16>,
    protocol: RequestProtocol,
    traffic: Traffic,
}

/// Serves an upgrade request and all that follows on its connection.
pub(super) async fn serve(proxy: &Proxy, stream: GuardedStream, head: &Head, drain: watch::Receiver<Drain>) {
    let info = &Arc::clone(stream.info());
    let fields = Fields::of(head);
    let mut request = RequestCtx::new(&proxy.engine, current_timers(), Instant::now());
    let (io, leftover) = stream.into_parts();
    let finished = run(&mut request, io, leftover, head, &fields, info, drain).await;
    let ending = Ending {
        method: head.method().as_bytes(),
        host: fields.value("host").unwrap_or_default(),
        target: head.target().as_bytes(),
        user_agent: fields.value("user-agent"),
        protocol: finished.protocol,
        status: finished.status,
        bytes_in: finished.traffic.from_client,
        bytes_out: finished.traffic.from_backend,
    };
    request.finish(&ending, Instant::now());
}

async fn run(
    request: &mut RequestCtx,
    mut io: Box<dyn ByteStream>,
    leftover: Vec<u8>,
    head: &Head,
    fields: &Fields,
    info: &Arc<ConnectionInfo>,
    drain: watch::Receiver<Drain>,
) -> Finished {
    let opened = match open(request, head, fields, info).await {
        Ok(opened) => opened,
        Err(refusal) => {
            let gone = matches!(&refusal, Refusal::Answer(a) if a.reason == Reason::ClientGone);
            let rendered = request.refuse(&refusal);
            let status = if !gone && io.write_all(&rendered.to_h1()).await.is_ok() {
                linger(io).await;
                Some(rendered.status)
            } else {
                None
            };
            return Finished {
                status,
                protocol: RequestProtocol::Http11,
                traffic: Traffic::default(),
            };
        }
    };
    let Opened {
        mut backend,
        response,
        early,
    } = opened;
    let status = response.status;
    if io
        .write_all(&response.to_client(head.offer().as_ref().map(|u| &*u.token)))
        .await
        .is_err()
    {
        request.reason = Some(Reason::ClientGone);
        return Finished {
            status: None,
            protocol: RequestProtocol::Http11,
            traffic: Traffic::default(),
        };
    }
    if status != 101 {
        let (bytes, broken) = refused(request, &mut io, &mut backend, &response, early, head, info).await;
        request.reason = broken;
        request.timers.stop();
        // What broke off must not end like something whole.
        if broken.is_none() {
            linger(io).await;
        } else if response.ends_with_connection(head.method()) {
            info.close_watch.reset_on_close();
        }
        let traffic = Traffic {
            from_client: 0,
            from_backend: bytes,
        };
        return Finished {
            status: Some(status),
            protocol: RequestProtocol::Http11,
            traffic,
        };
    }
    // After a 101 only the tunnel's own bounds count.
    request.timers.stop();
    let timeouts = request.routed.as_ref().map(|r| r.spec.timeouts);
    let bounds = Bounds {
        idle: timeouts.and_then(|t| t.idle),
        age: timeouts.and_then(|t| t.max_stream_age),
        drain,
        endpoint: request
            .permit
            .as_ref()
            .map(|permit| Arc::clone(permit.endpoint())),
        websocket: head.offer().is_some_and(|u| u.websocket),
    };
    let websocket = bounds.websocket;
    let client = exchange::Replay::new(leftover, io);
    let backend = exchange::Replay::new(early, backend);
    let (traffic, ended) = relay(client, backend, bounds).await;
    match ended {
        Ended::Idle => {
            request.reason = Some(Reason::Timeout);
            request.timers.fire(Timer::Idle);
        }
        Ended::Client | Ended::Backend => {}
        // A WebSocket was closed in order; others have no words for it and broke off.
        Ended::Aged | Ended::Draining if websocket => {}
        Ended::Aged => {
            request.reason = Some(Reason::Timeout);
            request.timers.fire(Timer::Age);
        }
        Ended::Draining => request.reason = Some(Reason::Draining),
    }
    Finished {
        status: Some(status),
        protocol: RequestProtocol::Upgraded,
        traffic,
    }
}

/// Tells the task that relays a body that a clock rang.
#[derive(Default)]
struct Rung(Notify);

impl Breakable for Rung {
    fn break_now(&self) {
        self.0.notify_one();
    }

    fn is_blocked(&self) -> bool {
        false
    }
}

/// Passes on the body of an answer that is no upgrade, under the clocks of every request. Returns
/// its bytes, and why it broke off if it did.
async fn refused(
    request: &RequestCtx,
    io: &mut Box<dyn ByteStream>,
    backend: &mut Box<dyn ByteStream>,
    response: &exchange::Response,
    early: Vec<u8>,
    head: &Head,
    info: &ConnectionInfo,
) -> (u64, Option<Reason>) {
    let rung = Arc::new(Rung::default());
    let now = Instant::now();
    let endpoint = request.permit.as_ref().map(Permit::endpoint);
    request
        .timers
        .upstream(Some(Arc::clone(&rung) as _), endpoint, now);
    let mut bytes = 0;
    let passed = |n| {
        bytes += n;
        request.timers.touch(Instant::now());
    };
    let limits = ChunkLimits::from(request.limits());
    let broken = tokio::select! {
        relayed = exchange::relay_body(io, backend, response, early, head.method(), limits, passed) => {
            match relayed {
                Ok(()) => None,
                Err(Broke::Client) => Some(Reason::ClientGone),
                Err(Broke::Backend) => Some(Reason::UpstreamReset),
            }
        }
        () = rung.0.notified() => {
            let timers = &request.timers;
            let going = timers.was_cut() || timers.was_evicted();
            Some(if going { Reason::Draining } else { Reason::Timeout })
        }
        () = info.close_watch.closed() => Some(Reason::ClientGone),
    };
    (bytes, broken)
}

/// Routes, admits, connects and sends the request until a backend answers.
async fn open(
    request: &mut RequestCtx,
    head: &Head,
    fields: &Fields,
    info: &Arc<ConnectionInfo>,
) -> Result<Opened, Refusal> {
    let view = fields.view(head);
    let host = fields.value("host");
    let incoming = Incoming {
        info,
        view: &view,
        host,
        target: head.target(),
        head_bytes: head.len,
    };
    loop {
        request.route(&incoming)?;
        let Err(answer) = request.admit(info.close_watch.closed()).await else {
            break;
        };
        if !request.reread() {
            return Err(answer.into());
        }
    }
    let too_late = || Answer::new(Reason::Timeout, "the backend took too long");
    for _ in 0..MAX_ATTEMPTS {
        if request.next != Attempt::First {
            request.fail_over(info.close_watch.closed()).await?;
        }
        request.next = Attempt::OtherEndpoint;
        request.attempts += 1;
        let started = Instant::now();
        request.attempt_started = Some(started);
        let (Some(routed), Some(permit)) = (&request.routed, &request.permit) else {
            break;
        };
        if routed.spec.protocol == Protocol::H2c {
            return Err(Answer::new(
                Reason::UpstreamError,
                "this backend speaks HTTP/2, which has no upgrades",
            )
            .into());
        }
        let limits = &request.settings().limits;
        let address = permit.endpoint().address.clone();
        let dialled = tokio::select! {
            dialled = upstream::dial(&routed.spec, permit.endpoint(), limits.connect_timeout) => dialled,
            () = info.close_watch.closed() => return Err(Answer::new(Reason::ClientGone, "the client left").into()),
        };
        let mut backend = match dialled {
            Ok(backend) => backend,
            Err(e) if is_out_of_descriptors(&e) => {
                request.fail_attempt(Reason::Overloaded, format!("connecting to {address}: {e}"));
                break;
            }
            Err(e) => {
                permit.report(Outcome::ConnectFailed, Instant::now());
                request.fail_attempt(Reason::ConnectFailed, format!("connecting to {address}: {e}"));
                continue;
            }
        };
        let forwarding = request.forwarding(info, host.unwrap_or_default());
        let bytes = fields.to_backend(head, routed, forwarding);
        let deadline = request.timers.deadline().map(tokio::time::Instant::from_std);
        let exchange = exchange::ask(&mut backend, &bytes, limits.max_header_bytes);
        let answered = tokio::select! {
            answered = exchange => answered,
            () = sleep_until(deadline) => {
                permit.report(Outcome::ResponseTimeout, Instant::now());
                request.timers.fire(request.timers.missed(Instant::now()));
                return Err(too_late().into());
            }
            () = info.close_watch.closed() => return Err(Answer::new(Reason::ClientGone, "the client left").into()),
        };
        match answered {
            Ok((mut response, early)) => {
                let now = Instant::now();
                permit.report(
                    Outcome::Responded {
                        status: response.status,
                    },
                    now,
                );
                request.head_received = true;
                request.timers.head_received(now);
                request.answers(now);
                request.upstream = Some(now.saturating_duration_since(started));
                if let Some(timing) = request.server_timing() {
                    response.add("server-timing", timing.into_bytes());
                }
                return Ok(Opened {
                    backend,
                    response,
                    early,
                });
            }
            Err(e) => {
                permit.report(Outcome::Broke, Instant::now());
                request.fail_attempt(Reason::UpstreamError, format!("{address}: {e}"));
                // A WebSocket handshake is a GET: it may be sent again.
                if head.method() != "GET" {
                    break;
                }
            }
        }
    }
    let failure = request.failure.take();
    Err(failure
        .unwrap_or_else(|| Answer::new(Reason::UpstreamError, "the backend broke off before it answered"))
        .into())
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
