//! A minimal HTTP/1.1 backend on one thread, which responds to every request head with the same 100 bytes. Reads only
//! GETs that arrive whole.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BODY: usize = 100;

/// Serves until the process ends; `delay` before each response.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn run(address: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(address, delay))
}

async fn serve(address: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(answer(stream, delay));
    }
}

async fn answer(mut stream: TcpStream, delay: Duration) {
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut buf = vec![0; 16 << 10];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut buf[filled..]).await {
        filled += read;
        if buf[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if stream.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
        if filled == buf.len() {
            return;
        }
    }
}
