//! Minimal backends on one thread: two over HTTP/1.1 and two over HTTP/2 by prior knowledge, so that there are two
//! targets of a split.
//!
//! Over HTTP/1.1 `/b/N` gets a response of N bytes, and `/ws` a WebSocket that echoes every message. Over HTTP/2
//! every request is a gRPC call that succeeds with a message of 100 bytes.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::frames::{self, Frame, string};
use super::{h1, websocket};
use crate::measure::Failure;

/// A gRPC message of 100 bytes with its prefix.
const MESSAGE: usize = 105;

/// The backlog of the listeners: thousands of connections come at once.
const BACKLOG: i32 = 8192;

#[derive(Debug)]
pub(super) struct Backends {
    pub(super) h1: [SocketAddr; 2],
    pub(super) h2: [SocketAddr; 2],
}

/// The prefix of a gRPC message that has `size` bytes with its prefix.
pub(super) fn prefix(size: usize) -> [u8; 5] {
    let [a, b, c, d] = (size.saturating_sub(5) as u32).to_be_bytes();
    [0, a, b, c, d]
}

/// Starts the backends on free ports; they serve as long as the runtime runs.
pub(super) fn start() -> Result<Backends, Failure> {
    let h1 = [listen()?, listen()?].map(|(listener, address)| {
        tokio::spawn(accept(listener, |stream| async move {
            // The proxy may close its connections at any time.
            let _ = serve_h1(stream).await;
        }));
        address
    });
    let h2 = [listen()?, listen()?].map(|(listener, address)| {
        tokio::spawn(accept(listener, |stream| async move {
            let _ = serve_h2(stream).await;
        }));
        address
    });
    Ok(Backends { h1, h2 })
}

fn listen() -> Result<(TcpListener, SocketAddr), Failure> {
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    open().map_err(|e: std::io::Error| Failure::io("a backend's listener", e))
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
            // Out of descriptors: the client reports the failure, and descriptors become free again.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn answer(body: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {body}\r\n\r\n");
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + body, b'x');
    answer
}

async fn serve_h1(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut ready, mut size) = (answer(100), 100);
    let (mut buf, mut filled) = (vec![0; 16 << 10], 0);
    loop {
        let Some(end) = h1::head_end(&buf[..filled]) else {
            match stream.read(&mut buf[filled..]).await? {
                0 => return Ok(()),
                n => filled += n,
            }
            continue;
        };
        let head = &buf[..end];
        if head.starts_with(b"GET /ws") {
            return echo(stream).await;
        }
        let wanted = wanted(head);
        let mut left = match head.first() {
            Some(b'P') => h1::content_length(head).ok_or(std::io::ErrorKind::InvalidData)?,
            _ => 0,
        };
        let here = left.min(filled - end);
        left -= here;
        buf.copy_within(end + here..filled, 0);
        filled -= end + here;
        while left > 0 {
            let most = left.min(buf.len());
            match stream.read(&mut buf[..most]).await? {
                0 => return Ok(()),
                n => left -= n,
            }
        }
        if wanted != size {
            (ready, size) = (answer(wanted), wanted);
        }
        stream.write_all(&ready).await?;
    }
}

/// The length in `/b/N`; 100 for any other path.
fn wanted(head: &[u8]) -> usize {
    let path = head.split(|&b| b == b' ').nth(1).unwrap_or_default();
    let number = path
        .strip_prefix(b"/b/")
        .and_then(|n| std::str::from_utf8(n).ok());
    let number: Option<usize> = number.and_then(|n| n.parse().ok());
    number.map_or(100, |n| n.min(1 << 20))
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(websocket::SWITCHED).await?;
    let (mut message, answer) = (websocket::message(true), websocket::message(false));
    loop {
        stream.read_exact(&mut message).await?;
        stream.write_all(&answer).await?;
    }
}

async fn serve_h2(mut stream: TcpStream) -> std::io::Result<()> {
    let mut preface = [0; frames::PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    // Literals without indexing: some proxies allow no entries in the dynamic table.
    let mut begin = vec![0x88, 0x0f, 16];
    string(&mut begin, "application/grpc");
    let mut end = vec![0];
    string(&mut end, "grpc-status");
    string(&mut end, "0");
    let mut message = vec![b'x'; MESSAGE];
    message[..5].copy_from_slice(&prefix(MESSAGE));

    let mut out = Vec::with_capacity(64 << 10);
    // SETTINGS with a thousand concurrent streams.
    frames::frame(&mut out, frames::SETTINGS, 0, 0, &[0, 3, 0, 0, 3, 232]);
    let (mut window, mut read) = (frames::INITIAL_WINDOW, 0);
    let mut whole: VecDeque<u32> = VecDeque::new();
    let (mut buf, mut filled) = (vec![0; 64 << 10], 0);
    loop {
        while window >= MESSAGE as i64
            && let Some(id) = whole.pop_front()
        {
            frames::headers(&mut out, 0, id, &begin);
            frames::frame(&mut out, frames::DATA, 0, id, &message);
            frames::headers(&mut out, frames::END_STREAM, id, &end);
            window -= MESSAGE as i64;
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
            out.clear();
        }
        match stream.read(&mut buf[filled..]).await? {
            0 => return Ok(()),
            n => filled += n,
        }
        let mut at = 0;
        while let Some(frame) = Frame::parse(&buf[at..filled]) {
            at += frame.size();
            match frame.kind {
                frames::WINDOW_UPDATE => window += frame.window(),
                frames::DATA => {
                    read += frame.payload.len();
                    frames::credit(&mut out, &mut read);
                }
                _ => frame.acknowledge(&mut out),
            }
            if frame.ends_stream() {
                whole.push_back(frame.stream);
            }
        }
        buf.copy_within(at..filled, 0);
        filled -= at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_asks_for_a_size() {
        assert_eq!(wanted(b"GET /b/10240 HTTP/1.1\r\n"), 10_240);
        assert_eq!(wanted(b"GET /b/99999999999 HTTP/1.1\r\n"), 1 << 20);
        assert_eq!(wanted(b"GET / HTTP/1.1\r\n"), 100);
        assert_eq!(prefix(105), [0, 0, 0, 0, 100]);
    }
}
