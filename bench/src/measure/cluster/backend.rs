//! Backends: the program of a Pod behind queue-proxy, and in this process one that stands for queue-proxy and program.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::measure::Failure;
use crate::measure::machine::now_ns;

const BACKLOG: i32 = 8192;

/// The body that the program of a Pod answers with, in bytes.
pub(super) const BODY: usize = 100;

/// What a backend answers with.
#[derive(Debug)]
enum Body {
    /// The times at which the process started, listened, and received the request.
    Times {
        started: i64,
        listened: i64,
        work: Duration,
    },
    /// The version that the gateway appended to the request, as `x-version`; of a probe the word `queue`, as queue-proxy.
    Version,
    /// The address that the request came to; of a probe as above.
    Address,
}

/// Runs as the program of a Pod until the process is ended; `work` before each answer.
pub(crate) async fn pod(work: Duration) -> Result<(), Failure> {
    let started = now_ns();
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| Failure::Missing("PORT is not set".to_owned()))?;
    let (listener, listened) = listen((Ipv4Addr::UNSPECIFIED, port).into())?;
    // The first process of a container: without a handler the kernel would ignore the signal.
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Failure::io("signals", e))?;
    let body = Body::Times {
        started,
        listened,
        work,
    };
    tokio::select! {
        () = accept(listener, body, mpsc::unbounded_channel().0) => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Binds and listens; the time is that of `listen()`.
fn listen(address: SocketAddr) -> Result<(TcpListener, i64), Failure> {
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listened = now_ns();
        Ok((TcpListener::from_std(socket.into())?, listened))
    };
    open().map_err(|e: std::io::Error| Failure::io(&format!("listening on {address}"), e))
}

async fn accept(listener: TcpListener, body: Body, seen: mpsc::UnboundedSender<i64>) {
    let (body, mut connections) = (Arc::new(body), JoinSet::new());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(answer(stream, Arc::clone(&body), seen.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, body: Arc<Body>, seen: mpsc::UnboundedSender<i64>) {
    let _ = stream.set_nodelay(true);
    let (mut buf, mut filled) = (vec![0; 8192], 0);
    while let Ok(read @ 1..) = stream.read(&mut buf[filled..]).await {
        let received = now_ns();
        filled += read;
        if buf[..filled].ends_with(b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buf[..filled]);
            let text = match &*body {
                Body::Times {
                    started, listened, ..
                } => format!("{started} {listened} {received}"),
                _ if field(&head, "k-network-probe").is_some() => "queue".to_owned(),
                Body::Address => stream
                    .local_addr()
                    .map_or_else(|_| String::new(), |own| own.ip().to_string()),
                Body::Version => {
                    // The receiver is gone where nobody asks.
                    let _ = seen.send(received);
                    field(&head, "x-version").unwrap_or_default().to_owned()
                }
            };
            let width = if matches!(*body, Body::Times { .. }) {
                BODY
            } else {
                text.len()
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {width}\r\n\r\n{text:width$}"
            );
            filled = 0;
            if let Body::Times { work, .. } = *body
                && !work.is_zero()
            {
                tokio::time::sleep(work).await;
            }
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        if filled == buf.len() {
            return;
        }
    }
}

fn field<'h>(head: &'h str, wanted: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

/// A thread for backends in this process.
pub(super) struct Backends(Option<tokio::runtime::Runtime>);

impl Backends {
    pub(super) fn new() -> Result<Self, Failure> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build();
        runtime
            .map(|r| Self(Some(r)))
            .map_err(|e| Failure::io("a runtime", e))
    }

    /// Starts one that answers with versions.
    pub(super) fn listen(&self, address: SocketAddr) -> Result<Backend, Failure> {
        self.start(address, Body::Version)
    }

    /// Starts one for this port of all addresses, which answers with the address.
    pub(super) fn listen_everywhere(&self, port: u16) -> Result<Backend, Failure> {
        self.start((Ipv4Addr::UNSPECIFIED, port).into(), Body::Address)
    }

    fn start(&self, address: SocketAddr, body: Body) -> Result<Backend, Failure> {
        let (send, received) = mpsc::unbounded_channel();
        let runtime = self
            .0
            .as_ref()
            .ok_or_else(|| Failure::Missing("the runtime".to_owned()))?;
        let _inside = runtime.enter();
        let (listener, listened) = listen(address)?;
        let task = runtime.spawn(accept(listener, body, send));
        Ok(Backend {
            listened,
            received,
            task: task.abort_handle(),
        })
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A backend; it and its connections end when it is dropped.
pub(super) struct Backend {
    /// The time of its `listen()`.
    pub(super) listened: i64,
    /// The time at which each request was received whole, probes excluded.
    pub(super) received: mpsc::UnboundedReceiver<i64>,
    task: AbortHandle,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_whatever_its_case() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Version:  v7 \r\n\r\n";
        assert_eq!(field(head, "x-version"), Some("v7"));
        assert_eq!(field(head, "k-network-probe"), None);
    }
}
