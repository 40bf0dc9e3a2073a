//! Bytes both ways between two upgraded connections.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::websocket_frames::{CLOSE_TO_CLIENT, CLOSE_TO_SERVER, WebSocketFrameTracker};
use crate::edge::Drain;
use crate::throttle::EndpointState;

/// Bytes read at once in each direction.
const BUFFER: usize = 16 * 1024;

/// How long the other side may take to close once one side has, or a Close was sent.
const CLOSING: Duration = Duration::from_secs(5);

/// How long a tunnel may be silent once its client closed its sending side, where the revision bounds no
/// silence. The backend may still have something to say (`docker attach` with its input closed), but a
/// client that is gone for good looks the same.
const HALF_CLOSED: Duration = Duration::from_secs(300);

/// What ends a tunnel besides its two ends.
pub(crate) struct Bounds {
    /// Longest silence of both directions together.
    pub(crate) idle: Option<Duration>,
    /// Longest life.
    pub(crate) age: Option<Duration>,
    /// The gateway's own end.
    pub(crate) drain: watch::Receiver<Drain>,
    /// Where it leads; its end is the tunnel's.
    pub(crate) endpoint: Option<Arc<EndpointState>>,
    /// Whether the bytes are WebSocket frames, so that a Close can be said.
    pub(crate) websocket: bool,
}

/// Why a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client closed, or its connection broke.
    Client,
    /// The backend closed, or its connection broke.
    Backend,
    /// Nobody said anything for too long.
    Idle,
    /// It was asked to end, because it was too old.
    Aged,
    /// It was asked to end: the instance or the gateway goes away.
    Draining,
}

/// How much went through, in bytes.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) from_client: u64,
    pub(crate) from_backend: u64,
}

struct Direction<R, W> {
    from: R,
    to: W,
    frames: WebSocketFrameTracker,
    buffer: Box<[u8]>,
    /// What of the buffer was read and is not written yet.
    unwritten: Range<usize>,
    unflushed: bool,
    bytes: u64,
    input: Input,
}

/// How far what is read of one side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    /// It ended, and the other side is being told.
    Ending,
    Ended,
}

/// What one step of a direction came to.
enum Step {
    /// Bytes moved.
    Moved,
    /// The side that is written to was told that no more comes.
    Told,
    /// There is nothing more to read.
    End,
    /// The connection that is read from was reset: neither of its directions is there any more.
    Reset,
    /// They cannot be passed on.
    Broken,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Direction<R, W> {
    fn new(from: R, to: W) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self {
            from,
            to,
            frames: WebSocketFrameTracker::default(),
            buffer,
            unwritten: 0..0,
            unflushed: false,
            bytes: 0,
            input: Input::Open,
        }
    }

    /// Reads, or writes what was read before, or ends what is written: one of them, so that a peer that takes
    /// nothing stops neither the other direction nor a clock. Cancel-safe: dropped, it moved nothing.
    async fn step(&mut self) -> Step {
        if !self.unwritten.is_empty() {
            match self.to.write(&self.buffer[self.unwritten.clone()]).await {
                Ok(n) if n > 0 => self.unwritten.start += n,
                _ => return Step::Broken,
            }
            self.unflushed = true;
        } else if self.unflushed {
            if self.to.flush().await.is_err() {
                return Step::Broken;
            }
            self.unflushed = false;
        } else if self.input == Input::Ending {
            // Half-close; with TLS it is a record of its own, which a full socket does not take. How it ends
            // is for reads of the other direction to tell.
            let _ = self.to.shutdown().await;
            self.input = Input::Ended;
            return Step::Told;
        } else if self.input == Input::Open {
            let n = match self.from.read(&mut self.buffer).await {
                Ok(0) => return Step::End,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Step::Reset,
                Err(_) => return Step::End,
            };
            self.frames.advance(&self.buffer[..n]);
            self.bytes += n as u64;
            self.unwritten = 0..n;
        } else {
            return std::future::pending().await;
        }
        Step::Moved
    }

    /// Lets the frame under way finish and says Close after it; what the peer sends later is not
    /// passed on, for nothing may follow a Close.
    async fn close(&mut self, close: &[u8]) {
        let unwritten = std::mem::take(&mut self.unwritten);
        if self.to.write_all(&self.buffer[unwritten]).await.is_err() {
            return;
        }
        while !self.frames.at_boundary() {
            let n = self.from.read(&mut self.buffer).await.unwrap_or(0);
            let take = self.frames.rest_of_frame(&self.buffer[..n]);
            if take == 0 || self.to.write_all(&self.buffer[..take]).await.is_err() {
                return;
            }
            self.bytes += take as u64;
        }
        if !self.frames.closed() && self.to.write_all(close).await.is_ok() {
            let _ = self.to.flush().await;
        }
    }

    /// Reads on without passing anything until the peer closes.
    async fn drain(&mut self) {
        while self.from.read(&mut self.buffer).await.is_ok_and(|n| n > 0) {}
    }
}

/// Relays until an end closes or a bound is met. Dropping the future drops both connections.
pub(crate) async fn relay<C, B>(client: C, backend: B, mut bounds: Bounds) -> (Traffic, Ended)
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (client_read, client_write) = tokio::io::split(client);
    let (backend_read, backend_write) = tokio::io::split(backend);
    let mut up = Direction::new(client_read, backend_write);
    let mut down = Direction::new(backend_read, client_write);
    let started = Instant::now();
    let mut last_byte = started;
    // How long both may be silent once the client has closed its sending side.
    let mut closing: Option<Duration> = None;
    let mut reset = false;
    let ended = loop {
        let ends = [
            bounds.idle.map(|idle| (last_byte + idle, Ended::Idle)),
            bounds.age.map(|age| (started + age, Ended::Aged)),
            closing.map(|silence| (last_byte + silence, Ended::Client)),
        ];
        let next = ends.into_iter().flatten().min_by_key(|(at, _)| *at);
        let timer = async {
            match next {
                Some((at, why)) => {
                    tokio::time::sleep_until(at).await;
                    why
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            step = up.step() => match step {
                Step::Moved => last_byte = Instant::now(),
                Step::End => {
                    // The client is done; the backend may still have something to say.
                    up.input = Input::Ending;
                    last_byte = Instant::now();
                    // A WebSocket is closed by both sides or not at all (RFC 6455 5.5.1).
                    closing = Some(match bounds.idle {
                        _ if bounds.websocket => CLOSING,
                        Some(idle) => idle,
                        None => HALF_CLOSED,
                    });
                }
                Step::Told => {}
                Step::Reset => {
                    reset = true;
                    break Ended::Client;
                }
                Step::Broken => break Ended::Backend,
            },
            step = down.step() => match step {
                Step::Moved => last_byte = Instant::now(),
                Step::Told => {}
                Step::End => break if up.input == Input::Open { Ended::Backend } else { Ended::Client },
                Step::Reset => {
                    reset = true;
                    break Ended::Backend;
                }
                Step::Broken => break Ended::Client,
            },
            why = timer => break why,
            () = closing_time(&mut bounds.drain) => break Ended::Draining,
            () = ended(bounds.endpoint.as_deref()) => break Ended::Draining,
        }
    };
    if matches!(ended, Ended::Aged | Ended::Draining) && bounds.websocket {
        let _ = tokio::time::timeout(CLOSING, async {
            tokio::join!(down.close(&CLOSE_TO_CLIENT), up.close(&CLOSE_TO_SERVER));
            let _ = up.to.shutdown().await;
            let _ = down.to.shutdown().await;
            tokio::join!(up.drain(), down.drain());
        })
        .await;
    }
    if !reset {
        // After a reset an orderly end would be a lie, where the other side can tell them apart.
        let _ = tokio::time::timeout(CLOSING, async {
            tokio::join!(down.to.shutdown(), up.to.shutdown())
        })
        .await;
    }
    (
        Traffic {
            from_client: up.bytes,
            from_backend: down.bytes,
        },
        ended,
    )
}

async fn closing_time(drain: &mut watch::Receiver<Drain>) {
    if drain.wait_for(|phase| *phase == Drain::Closing).await.is_err() {
        std::future::pending().await
    }
}

async fn ended(endpoint: Option<&EndpointState>) {
    match endpoint {
        Some(endpoint) => endpoint.ended().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::*;

    fn bounds(idle: Option<u64>, age: Option<u64>) -> (Bounds, watch::Sender<Drain>) {
        let (sender, drain) = watch::channel(Drain::Serving);
        let seconds = |s: Option<u64>| s.map(Duration::from_secs);
        (
            Bounds {
                idle: seconds(idle),
                age: seconds(age),
                drain,
                endpoint: None,
                websocket: true,
            },
            sender,
        )
    }

    async fn rest(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
        let mut out = Vec::new();
        let _ = from.read_to_end(&mut out).await;
        out
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_bytes_do_not() {
        let (client, inner_client) = tokio::io::duplex(64);
        let (backend, inner_backend) = tokio::io::duplex(64);
        let (bounds, _drain) = bounds(Some(10), None);
        let tunnel = tokio::spawn(relay(inner_client, inner_backend, bounds));
        let (mut client, backend) = (client, backend);
        tokio::time::sleep(Duration::from_secs(8)).await;
        client.write_all(b"x").await.expect("open");
        let started = Instant::now();
        let (traffic, ended) = tunnel.await.expect("no panic");
        assert_eq!((traffic.from_client, ended), (1, Ended::Idle));
        assert_eq!(started.elapsed().as_secs(), 10);
        drop(backend);
    }

    #[tokio::test(start_paused = true)]
    async fn when_asked_to_end_the_frame_under_way_is_finished_and_a_close_follows() {
        let (mut client, inner_client) = tokio::io::duplex(1024);
        let (mut backend, inner_backend) = tokio::io::duplex(1024);
        let (bounds, drain) = bounds(None, None);
        let tunnel = tokio::spawn(relay(inner_client, inner_backend, bounds));
        backend.write_all(&[0x82, 4, 1, 2]).await.expect("open");
        let mut seen = [0; 4];
        client.read_exact(&mut seen).await.expect("passed on");
        drain.send_replace(Drain::Closing);
        tokio::task::yield_now().await;
        backend.write_all(&[3, 4, 0x82, 1, 9]).await.expect("open");
        let mut seen = [0; 6];
        client.read_exact(&mut seen).await.expect("a close");
        assert_eq!(seen[..2], [3, 4]);
        assert_eq!(seen[2..], CLOSE_TO_CLIENT);
        let mut to_backend = [0; 8];
        backend.read_exact(&mut to_backend).await.expect("a close");
        assert_eq!(to_backend, CLOSE_TO_SERVER);
        drop((client, backend));
        assert_eq!(tunnel.await.expect("no panic").1, Ended::Draining);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_backend_says_last_still_arrives() {
        let (client, inner_client) = tokio::io::duplex(64);
        let (mut backend, inner_backend) = tokio::io::duplex(64);
        let (bounds, _drain) = bounds(None, None);
        let tunnel = tokio::spawn(relay(inner_client, inner_backend, bounds));
        backend.write_all(b"bye").await.expect("open");
        drop(backend);
        assert_eq!(rest(client).await, b"bye");
        assert_eq!(tunnel.await.expect("no panic").1, Ended::Backend);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_goes_on_after_its_client_closed_its_sending_side() {
        let (mut client, inner_client) = tokio::io::duplex(64);
        let (mut backend, inner_backend) = tokio::io::duplex(64);
        let (bounds, _drain) = bounds(Some(10), None);
        let bounds = Bounds {
            websocket: false,
            ..bounds
        };
        let tunnel = tokio::spawn(relay(inner_client, inner_backend, bounds));
        client.shutdown().await.expect("open");
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(8)).await;
            backend.write_all(b"x").await.expect("open");
            let mut byte = [0];
            client.read_exact(&mut byte).await.expect("passed on");
        }
        let silent = Instant::now();
        assert_eq!(tunnel.await.expect("no panic").1, Ended::Idle);
        assert_eq!(silent.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_stops_no_clock() {
        for (idle, age, why) in [(Some(10), None, Ended::Idle), (None, Some(10), Ended::Aged)] {
            let (client, inner_client) = tokio::io::duplex(64);
            let (mut backend, inner_backend) = tokio::io::duplex(64);
            let (bounds, _drain) = bounds(idle, age);
            let tunnel = tokio::spawn(relay(inner_client, inner_backend, bounds));
            let flood = tokio::spawn(async move { while backend.write_all(&[0x82, 0]).await.is_ok() {} });
            let limit = Duration::from_secs(10) + 3 * CLOSING;
            let over = tokio::time::timeout(limit, tunnel).await.expect("in time");
            assert_eq!(over.expect("no panic").1, why);
            flood.await.expect("it ended");
            drop(client);
        }
    }

    /// Takes bytes but never its end, as TLS does whose socket is full.
    struct NeverEnds(tokio::io::DuplexStream);

    impl AsyncRead for NeverEnds {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, out)
        }
    }

    impl AsyncWrite for NeverEnds {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, data)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_is_not_taken_holds_up_nothing() {
        let (mut client, inner_client) = tokio::io::duplex(64);
        let (mut backend, inner_backend) = tokio::io::duplex(64);
        let (bounds, _drain) = bounds(Some(10), None);
        let bounds = Bounds {
            websocket: false,
            ..bounds
        };
        let tunnel = tokio::spawn(relay(inner_client, NeverEnds(inner_backend), bounds));
        client.shutdown().await.expect("open");
        for _ in 0..3 {
            let said = Instant::now();
            backend.write_all(b"x").await.expect("open");
            client.read_exact(&mut [0]).await.expect("passed on");
            assert_eq!(said.elapsed(), Duration::ZERO);
        }
        let silent = Instant::now();
        assert_eq!(tunnel.await.expect("no panic").1, Ended::Idle);
        assert_eq!(silent.elapsed(), Duration::from_secs(10) + CLOSING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_direction_that_is_stuck_does_not_stop_the_other() {
        let (mut client, inner_client) = tokio::io::duplex(64);
        let (backend, inner_backend) = tokio::io::duplex(64);
        let (bounds, _drain) = bounds(None, None);
        let tunnel = tokio::spawn(relay(inner_client, inner_backend, bounds));
        let (from, mut to) = tokio::io::split(backend);
        let heard = tokio::spawn(rest(from));
        let said = tokio::spawn(async move {
            // More than everything on the way holds.
            let _ = to.write_all(&[0; 4 * BUFFER]).await;
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!said.is_finished());
        let spoken = tokio::time::timeout(CLOSING, client.write_all(&[7; 4 * BUFFER])).await;
        spoken.expect("in time").expect("open");
        client.shutdown().await.expect("open");
        let taken = rest(client).await;
        assert_eq!(taken.len(), 4 * BUFFER);
        said.await.expect("no panic");
        assert_eq!(heard.await.expect("no panic").len(), 4 * BUFFER);
        drop(tunnel.await);
    }
}
