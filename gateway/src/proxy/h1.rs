//! The HTTP/1 keep-alive loop.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::{Shutdown, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::{KeepAlive, Proxy, current_timers, tunnel, with_timers};
use crate::answer::Answer;
use crate::edge::{ByteStream, CloseReason, Connection, Drain};
use crate::h1::{ConnectionContext, GuardedStream, HeadError, HeadLimits};
use crate::observe::RequestProtocol;
use crate::request::{Ending, RequestCtx, request_id};

/// How long and how much is read from a client after its connection was refused, so that the
/// answer arrives before the reset that unread bytes would cause.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// How long what was on its way to the client when a clock rang may take.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// The seconds Pingora may announce; the real idle timeout is ours.
const KEEPALIVE_SECONDS: u64 = 60;

/// What one turn of the loop needs, copied so that an idle connection holds no Snapshot.
struct Turn {
    limits: HeadLimits,
    header_timeout: Duration,
    idle_timeout: Duration,
    max_age: Option<Duration>,
}

impl Turn {
    fn of(proxy: &Proxy, stream: &mut GuardedStream) -> Self {
        let table = proxy.engine.table.peek();
        let limits = &table.settings().limits;
        stream.set_limits(limits);
        Self {
            limits: HeadLimits::from(limits),
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            max_age: limits.max_connection_age,
        }
    }
}

/// Serves one connection to its end, and tells why it ended.
pub(super) async fn serve(
    proxy: &Proxy,
    connection: Connection,
    drain: watch::Receiver<Drain>,
) -> CloseReason {
    let stream = {
        let table = proxy.engine.table.peek();
        let limits = &table.settings().limits;
        Box::new(GuardedStream::new(connection, limits, drain.clone()))
    };
    let context = Arc::clone(stream.context());
    keep_alive(proxy, stream, drain).await;
    context.close_reason()
}

/// One request after another.
async fn keep_alive(proxy: &Proxy, mut stream: Box<GuardedStream>, drain: watch::Receiver<Drain>) {
    let born = Instant::now();
    loop {
        let turn = Turn::of(proxy, &mut stream);
        let head = match stream
            .next_head(&turn.limits, turn.header_timeout, turn.idle_timeout)
            .await
        {
            Ok(Some(head)) => head,
            Ok(None) => return Shutdown::shutdown(&mut *stream).await,
            Err(error) => return refuse(proxy, *stream, &error).await,
        };
        if head
            .upgrade
            .as_ref()
            .is_some_and(|upgrade| !is_http2_offer(&upgrade.token))
        {
            let tunnel = tunnel::serve(proxy, *stream, &head, drain.clone());
            with_timers(tunnel, Duration::ZERO, &drain).await;
            return;
        }
        let last = turn.max_age.is_some_and(|max| born.elapsed() >= max);
        if last {
            stream.context().ends_for(CloseReason::MaxAge);
        }
        stream
            .context()
            .put(Box::new(KeepAlive(head.keep_alive && !last)));
        let context = Arc::clone(stream.context());
        let mut session = ServerSession::new_http1(stream as Stream);
        session.set_keepalive(Some(KEEPALIVE_SECONDS));
        let shutdown = proxy.shutdown.subscribe();
        let request = give_up_in_time(proxy.http.process_new_http(session, &shutdown), &context);
        let Some(reused) = with_timers(request, Duration::ZERO, &drain).await.flatten() else {
            return;
        };
        let (io, _) = reused.consume();
        let Ok(guard) = io.into_any().downcast::<GuardedStream>() else {
            return;
        };
        stream = guard;
        if last {
            return Shutdown::shutdown(&mut *stream).await;
        }
    }
}

/// A clock that rang has ended the upstream, but what is on its way to a client that does not read would
/// hold the request, and its slot, until the write timeout.
async fn give_up_in_time<F: Future>(request: F, context: &ConnectionContext) -> F::Output {
    let timers = current_timers();
    let mut request = pin!(request);
    tokio::select! {
        biased;
        output = &mut request => return output,
        () = timers.rang() => {}
    }
    loop {
        match tokio::time::timeout(LAST_WRITES, &mut request).await {
            Ok(output) => return output,
            // Something else may keep it, such as the rest of an upload, which has bounds of its own.
            Err(_) if context.is_writing() => context.give_up(),
            Err(_) => {}
        }
    }
}

/// Offers of HTTP/2 over plain HTTP/1 that some clients make with every request; HTTP/2 comes by
/// prior knowledge or ALPN, so they are passed over, as RFC 9113 3.1 says.
fn is_http2_offer(token: &str) -> bool {
    token
        .split(',')
        .all(|t| matches!(t.trim().to_ascii_lowercase().as_str(), "h2c" | "h2"))
}

/// Answers a head that must not be served, logs it and closes.
async fn refuse(proxy: &Proxy, stream: GuardedStream, error: &HeadError) {
    let now = Instant::now();
    let mut request = RequestCtx::new(&proxy.engine, Arc::default(), now);
    request.client = Some(stream.info().client_ip());
    request.request_id = request_id(None, || fastrand::u128(..));
    request.reason = Some(error.reason());
    let status = error.status();
    let seen = stream.glimpse();
    let mut bytes_out = 0;
    if let Some(code) = status {
        let mut rendered = request.refuse(&Answer::new(error.reason(), error.to_string()).into());
        rendered.status = code;
        bytes_out = rendered.body.len() as u64;
        stream.refuse(&rendered.to_h1()).await;
    }
    let ending = Ending {
        method: &seen.method,
        host: &seen.host,
        target: &seen.target,
        user_agent: seen.user_agent.as_deref(),
        protocol: RequestProtocol::Http11,
        status,
        bytes_in: 0,
        bytes_out,
    };
    request.finish(&ending, Instant::now());
}

/// Closes after reading what the client still sends, for a while.
pub(super) async fn linger(mut io: Box<dyn ByteStream>) {
    let _ = tokio::time::timeout(LINGER, async {
        if io.shutdown().await.is_err() {
            return;
        }
        let mut buf = [0; 4096];
        let mut left = LINGER_BYTES;
        while let Ok(n) = io.read(&mut buf).await {
            if n == 0 || n > left {
                return;
            }
            left -= n;
        }
    })
    .await;
}
