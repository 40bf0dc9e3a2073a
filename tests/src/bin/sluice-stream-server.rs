//! A backend for the tests of streams, run by the gateway as an instance: all of its responses can be held open, and
//! its events are written to a file.
//!
//! `sluice-stream-server PORT FILE`. Every line of the file ends with the process's id: `start`,
//! `term` for SIGTERM, on which it exits at once, and `close CODE` for a WebSocket's Close.
//!
//! HTTP/1: `/ws` is a WebSocket that echoes, `/sse` are events that never end, `/chunked` is the
//! same as plain chunks, anything else answers the process's id. HTTP/2: the gRPC service of the
//! tests, the id for anything else.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluice_tests::grpc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

/// Between two events.
const BEAT: Duration = Duration::from_millis(50);

struct Diary(PathBuf);

impl Diary {
    fn note(&self, what: &str) {
        let line = format!("{what} {}\n", std::process::id());
        let file = OpenOptions::new().create(true).append(true).open(&self.0);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the diary can be written");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(port), Some(file)) = (args.next(), args.next()) else {
        panic!("usage: sluice-stream-server PORT FILE");
    };
    let port: u16 = port.parse().expect("a port");
    let diary = Arc::new(Diary(file.into()));
    let mut term = signal(SignalKind::terminate()).expect("a signal handler");
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
    diary.note("start");
    loop {
        tokio::select! {
            _ = term.recv() => return diary.note("term"),
            accepted = listener.accept() => {
                if let Ok((io, _)) = accepted {
                    // How a connection ends is for the test to judge.
                    tokio::spawn(serve(io, Arc::clone(&diary)));
                }
            }
        }
    }
}

async fn serve(mut io: TcpStream, diary: Arc<Diary>) -> std::io::Result<()> {
    io.set_nodelay(true)?;
    let mut head = [0; 8];
    loop {
        match io.peek(&mut head).await? {
            0 => return Ok(()),
            n if n < head.len() => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => break,
        }
    }
    match &head {
        b"PRI * HT" => h2(io).await,
        b"GET /ws " => websocket(io, &diary).await?,
        _ => while request(&mut io).await? {},
    }
    Ok(())
}

async fn h2(io: TcpStream) {
    let service = service_fn(async |request: http::Request<hyper::body::Incoming>| {
        let response = if request.uri().path().starts_with("/test.Echo/") {
            grpc::respond(request).await.map(BodyExt::boxed_unsync)
        } else {
            let id = Full::new(Bytes::from(std::process::id().to_string()));
            Response::new(id.map_err(|never| match never {}).boxed_unsync())
        };
        Ok::<_, std::convert::Infallible>(response)
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

async fn websocket(io: TcpStream, diary: &Diary) -> std::io::Result<()> {
    let mut ws = accept_async(io).await.map_err(std::io::Error::other)?;
    while let Some(Ok(message)) = ws.next().await {
        match message {
            Message::Close(frame) => {
                let code = frame.map_or(0, |frame| u16::from(frame.code));
                diary.note(&format!("close {code}"));
            }
            message => {
                if ws.send(message).await.is_err() {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Answers one request; false at the end of the connection.
async fn request(io: &mut TcpStream) -> std::io::Result<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if io.read(&mut byte).await? == 0 {
            return Ok(false);
        }
        head.push(byte[0]);
    }
    let kind = match &head {
        head if head.starts_with(b"GET /sse ") => "text/event-stream",
        head if head.starts_with(b"GET /chunked ") => "application/octet-stream",
        _ => {
            let id = std::process::id().to_string();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{id}", id.len());
            io.write_all(answer.as_bytes()).await?;
            return Ok(true);
        }
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
    io.write_all(head.as_bytes()).await?;
    loop {
        let event = format!("data: {}\n\n", std::process::id());
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        // Events go on until the connection ends.
        io.write_all(chunk.as_bytes()).await?;
        tokio::time::sleep(BEAT).await;
    }
}
