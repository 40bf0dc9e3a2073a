//! The backend of `bench/compare`: answers every head it reads with the same 100 bytes, as cheaply
//! as one thread can. It reads GETs that arrive whole and nothing else.

use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BODY: usize = 100;

fn main() -> ExitCode {
    let address = std::env::args().nth(1).and_then(|a| a.parse::<SocketAddr>().ok());
    let Some(address) = address else {
        eprintln!("usage: responder ADDRESS:PORT");
        return ExitCode::from(2);
    };
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(serve(address)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("responder: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(address: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) {
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
            if stream.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
        if filled == buf.len() {
            return;
        }
    }
}
