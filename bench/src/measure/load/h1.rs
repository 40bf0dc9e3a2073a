//! Minimal HTTP/1.1 clients, with little CPU time for each request.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Load, Stream, Tally};
use crate::measure::{Failure, client};

/// A request: the head, and the body if there is one.
pub(super) fn request(host: &str, path: &str, send: usize, fields: &str) -> Vec<u8> {
    let (method, length) = match send {
        0 => ("GET", String::new()),
        n => ("POST", format!("Content-Length: {n}\r\n")),
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: measure\r\nAccept: */*\r\n{length}{fields}\r\n"
    );
    let mut request = head.into_bytes();
    request.resize(request.len() + send, b'x');
    request
}

/// A read buffer for responses, of the size of one read.
pub(super) fn buffer(receive: usize) -> Vec<u8> {
    vec![0; (receive + 4096).min(64 << 10)]
}

/// Sends sequential requests on one kept connection.
pub(super) async fn kept(mut stream: impl Stream, load: &Load, tally: &Tally) -> Result<(), Failure> {
    let request = request(&load.host, &load.path, load.send, "");
    let mut buf = buffer(load.receive);
    while !tally.over() {
        exchange(&mut stream, &request, load.receive, &mut buf).await?;
        tally.answered();
    }
    Ok(())
}

/// Sends one request on each connection, one connection after the other. The proxy closes the connection.
pub(super) async fn one_each(load: &Load, tally: &Tally) -> Result<(), Failure> {
    let request = request(&load.host, &load.path, load.send, "Connection: close\r\n");
    let mut buf = buffer(load.receive);
    while !tally.over() {
        let mut stream = client::connect(load.to).await?;
        exchange(&mut stream, &request, load.receive, &mut buf).await?;
        match stream.read(&mut buf).await {
            Ok(0) => tally.answered(),
            Ok(n) => return Err(Failure::Unexpected(format!("{n} bytes after the answer"))),
            Err(e) => return Err(Failure::io("the end of a connection", e)),
        }
    }
    Ok(())
}

/// Sends a request and reads its response.
///
/// # Errors
/// An error of the connection, or a response that is not 200 with a body of `receive` bytes.
pub(super) async fn exchange(
    stream: &mut impl Stream,
    request: &[u8],
    receive: usize,
    buf: &mut [u8],
) -> Result<(), Failure> {
    send(stream, request).await?;
    answer(stream, receive, buf).await
}

pub(super) async fn send(stream: &mut impl Stream, request: &[u8]) -> Result<(), Failure> {
    let failed = |e| Failure::io("sending a request", e);
    stream.write_all(request).await.map_err(failed)?;
    stream.flush().await.map_err(failed)
}

pub(super) async fn answer(stream: &mut impl Stream, receive: usize, buf: &mut [u8]) -> Result<(), Failure> {
    let mut filled = 0;
    let head = loop {
        filled += read(stream, &mut buf[filled..]).await?;
        if let Some(end) = head_end(&buf[..filled]) {
            break end;
        }
    };
    let length = content_length(&buf[..head]);
    let whole = head + receive;
    if !buf.starts_with(b"HTTP/1.1 200") || length != Some(receive) || filled > whole {
        let got = String::from_utf8_lossy(&buf[..head]);
        return Err(Failure::Unexpected(format!(
            "200 with {receive} bytes was expected, got '{got}'"
        )));
    }
    let mut left = whole - filled;
    while left > 0 {
        let most = left.min(buf.len());
        left -= read(stream, &mut buf[..most]).await?;
    }
    Ok(())
}

pub(super) async fn read(stream: &mut impl Stream, buf: &mut [u8]) -> Result<usize, Failure> {
    match stream.read(buf).await {
        Ok(0) => Err(Failure::Unexpected(
            "the connection ended before the answer did".to_owned(),
        )),
        Ok(n) => Ok(n),
        Err(e) => Err(Failure::io("reading an answer", e)),
    }
}

/// The index behind the empty line.
pub(super) fn head_end(buf: &[u8]) -> Option<usize> {
    // The fast path: a head without a body ends the buffer, the usual case of a backend.
    if buf.ends_with(b"\r\n\r\n") {
        return buf.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
    }
    let mut lines = 0;
    for line in buf.split_inclusive(|&b| b == b'\n') {
        lines += line.len();
        if line == b"\r\n" {
            return Some(lines);
        }
    }
    None
}

pub(super) fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let lines = head.split(|&b| b == b'\n');
    let value = lines
        .filter_map(|line| line.split_at_checked(NAME.len()))
        .find_map(|(name, value)| name.eq_ignore_ascii_case(NAME).then_some(value))?;
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line_and_says_how_long_the_body_is() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-LENGTH:  5\r\nServer: x\r\n\r\nabcde";
        let end = head_end(answer).expect("it is whole");
        assert_eq!(&answer[end..], b"abcde");
        assert_eq!(content_length(&answer[..end]), Some(5));
        assert_eq!(head_end(&answer[..end - 1]), None);
        assert_eq!(head_end(&answer[..end]), Some(end));
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    }

    #[test]
    fn a_request_with_a_body_is_a_post() {
        let post = request("a", "/b", 3, "X: y\r\n");
        assert!(post.starts_with(b"POST /b HTTP/1.1\r\nHost: a\r\n"));
        assert!(post.ends_with(b"Content-Length: 3\r\nX: y\r\n\r\nxxx"));
        assert!(request("a", "/b", 0, "").starts_with(b"GET /b "));
    }
}
