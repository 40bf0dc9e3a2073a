//! The smallest GET that tells a status.

use std::future::{pending, poll_fn};
use std::pin::Pin;

use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Sent as `User-Agent`, to be told apart in a backend's log.
const AGENT: &str = "sluice-probe";

/// GETs over HTTP/1.1 and reads no further than the status. Without a time limit of its own.
pub(super) async fn get_http1<S>(mut stream: S, host: &str, path: &str) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {AGENT}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let text = |e: std::io::Error| e.to_string();
    stream.write_all(request.as_bytes()).await.map_err(text)?;
    // "HTTP/1.1 200": all that matters.
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.map_err(text)?;
    status(&head).ok_or_else(|| "not HTTP/1".to_owned())
}

fn status(head: &[u8; 12]) -> Option<u16> {
    let digits = head
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// GETs over HTTP/2 with prior knowledge and drops the connection after the head. Without a time
/// limit of its own.
pub(super) async fn get_h2c<S>(stream: S, host: &str, path: &str) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let text = |e: h2::Error| e.to_string();
    let (mut client, mut connection) = h2::client::handshake(stream).await.map_err(text)?;
    let request = Request::get(format!("http://{host}{path}"))
        .header("user-agent", AGENT)
        .body(())
        .map_err(|e| e.to_string())?;
    let answer = async {
        poll_fn(|cx| client.poll_ready(cx)).await.map_err(text)?;
        let (response, _) = client.send_request(request, true).map_err(text)?;
        Ok(response.await.map_err(text)?.status().as_u16())
    };
    let drive = async {
        let ended = poll_fn(|cx| Pin::new(&mut connection).poll(cx)).await;
        // It ended well: the answer is there already or its future says why not.
        match ended {
            Ok(()) => pending().await,
            Err(e) => Err(e.to_string()),
        }
    };
    tokio::select! {
        biased;
        status = answer => status,
        failed = drive => failed,
    }
}
