//! WebSocket clients: each message is sent after the echo of the previous one.

use super::h1;
use super::{Load, Stream, Tally};
use crate::measure::Failure;

/// The key of RFC 6455, section 1.3, with its accept value.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(super) const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The length of every message in bytes; a length of seven bits.
pub(super) const MESSAGE: u8 = 100;

/// A whole binary message; a client's message is masked.
pub(super) fn message(masked: bool) -> Vec<u8> {
    let mut frame = vec![0x82, MESSAGE | if masked { 128 } else { 0 }];
    if masked {
        frame.extend_from_slice(&[0; 4]);
    }
    frame.resize(frame.len() + usize::from(MESSAGE), b'x');
    frame
}

pub(super) async fn echo(mut stream: impl Stream, load: &Load, tally: &Tally) -> Result<(), Failure> {
    if load.send != usize::from(MESSAGE) || load.receive != load.send {
        return Err(Failure::Unexpected(format!("messages have {MESSAGE} bytes")));
    }
    let fields = format!(
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    h1::send(&mut stream, &h1::request(&load.host, &load.path, 0, &fields)).await?;
    let mut buf = [0; 4096];
    let mut filled = 0;
    while h1::head_end(&buf[..filled]).is_none() {
        filled += h1::read(&mut stream, &mut buf[filled..]).await?;
    }
    if !buf.starts_with(b"HTTP/1.1 101") {
        let got = String::from_utf8_lossy(&buf[..filled]);
        return Err(Failure::Unexpected(format!("101 was expected, got '{got}'")));
    }
    let (sent, expected) = (message(true), message(false));
    while !tally.over() {
        h1::send(&mut stream, &sent).await?;
        let mut filled = 0;
        while filled < expected.len() {
            filled += h1::read(&mut stream, &mut buf[filled..expected.len()]).await?;
        }
        if buf[..filled] != expected {
            return Err(Failure::Unexpected("a message came back changed".to_owned()));
        }
        tally.answered();
    }
    Ok(())
}
