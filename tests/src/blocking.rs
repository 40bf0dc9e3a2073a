//! A blocking client, as simple programs are: the whole request is sent before the first byte of the response is read.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A bound on every single read and write.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends these pieces, with a pause before each but the first, and reads one whole response of known length. Returns
/// status and bytes of the response.
///
/// # Errors
/// When a write fails; nothing is read after that.
pub async fn send_all_then_read(
    addr: SocketAddr,
    pieces: Vec<Vec<u8>>,
    pause: Duration,
) -> io::Result<(u16, String)> {
    let blocking = tokio::task::spawn_blocking(move || exchange(addr, &pieces, pause));
    blocking.await.map_err(io::Error::other)?
}

fn exchange(addr: SocketAddr, pieces: &[Vec<u8>], pause: Duration) -> io::Result<(u16, String)> {
    let mut io = TcpStream::connect(addr)?;
    io.set_read_timeout(Some(LIMIT))?;
    io.set_write_timeout(Some(LIMIT))?;
    for (nth, piece) in pieces.iter().enumerate() {
        if nth > 0 {
            std::thread::sleep(pause);
        }
        io.write_all(piece)
            .map_err(|e| io::Error::new(e.kind(), format!("while it sends: {e}")))?;
    }
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some((status, whole)) = measure(&answer)
            && answer.len() >= whole
        {
            return Ok((status, String::from_utf8_lossy(&answer).into_owned()));
        }
        match io.read(&mut chunk)? {
            0 => {
                let got = String::from_utf8_lossy(&answer).into_owned();
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("end after {got:?}"),
                ));
            }
            n => answer.extend_from_slice(&chunk[..n]),
        }
    }
}

/// The status of the final answer at the beginning and how long everything up to its end is, once its head is there.
fn measure(bytes: &[u8]) -> Option<(u16, usize)> {
    let mut start = 0;
    loop {
        let head = start + bytes[start..].windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let text = String::from_utf8_lossy(&bytes[start..head]).to_ascii_lowercase();
        let status = text.get(9..12)?.parse().ok()?;
        if status >= 200 {
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            return Some((status, head + length?.trim().parse::<usize>().ok()?));
        }
        start = head;
    }
}
