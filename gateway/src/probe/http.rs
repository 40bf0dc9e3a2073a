//! Minimal HTTP client for probes: a GET that reads the status.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Sent as `User-Agent`, so that a backend's log can tell probes apart.
pub(super) const AGENT: &str = "sluice-probe";

/// The longest response that is read to its end to keep the connection.
const WHOLE: usize = 16 * 1024;

/// How long the rest of a response may take once the status is known to be good.
const REST: Duration = Duration::from_millis(20);

/// GETs over HTTP/1.1 and reads no further than the status; with `keep` to the end of the response if that
/// comes at once. Returns the status, and whether the connection is as good as new. Without a timeout of its
/// own.
///
/// # Errors
/// A text for the log.
pub(super) async fn get_http1<S>(
    stream: &mut S,
    host: &str,
    path: &str,
    fields: &[(&str, &str)],
    keep: bool,
) -> Result<(u16, bool), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let close = if keep { "" } else { "Connection: close\r\n" };
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in fields {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("Accept: */*\r\n{close}\r\n"));
    let text = |e: std::io::Error| e.to_string();
    stream.write_all(request.as_bytes()).await.map_err(text)?;
    // "HTTP/1.1 200" is enough.
    let mut answer = Vec::with_capacity(1024);
    while answer.len() < STATUS {
        if stream.read_buf(&mut answer).await.map_err(text)? == 0 {
            return Err("the connection ended before a status".to_owned());
        }
    }
    let head: &[u8; STATUS] = answer.first_chunk().expect("just read");
    let status = status(head).ok_or_else(|| "not HTTP/1".to_owned())?;
    let rest = async {
        loop {
            match left(&answer) {
                Some(0) => return true,
                Some(_) if answer.len() < WHOLE => {}
                _ => return false,
            }
            if !matches!(stream.read_buf(&mut answer).await, Ok(n) if n > 0) {
                return false;
            }
        }
    };
    let reusable = keep && tokio::time::timeout(REST, rest).await.unwrap_or(false);
    Ok((status, reusable))
}

/// How many bytes of the response are missing at least; `None` when its connection cannot be reused, or that is
/// not certain.
fn left(answer: &[u8]) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(used) = head.parse(answer).ok()? else {
        return Some(1);
    };
    if head.version != Some(1) {
        return None;
    }
    let mut length = None;
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let said: usize = std::str::from_utf8(field.value).ok()?.trim().parse().ok()?;
            if length.replace(said).is_some() {
                return None;
            }
        }
        // Chunked responses are not worth a parser here, and any other `Connection` option may close the
        // connection.
        if field.name.eq_ignore_ascii_case("transfer-encoding")
            || (field.name.eq_ignore_ascii_case("connection")
                && !field.value.eq_ignore_ascii_case(b"keep-alive"))
        {
            return None;
        }
    }
    let body = match head.code {
        Some(204 | 304) => 0,
        _ => length?,
    };
    // Bytes beyond the whole response belong to no request.
    used.checked_add(body)?.checked_sub(answer.len())
}

/// Bytes of a status line up to and with the status.
const STATUS: usize = 12;

fn status(head: &[u8; STATUS]) -> Option<u16> {
    let digits = head
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// GETs over HTTP/2 with prior knowledge and drops the connection after the response head. Without a timeout of
/// its own.
///
/// # Errors
/// A text for the log.
pub(super) async fn get_h2c<S>(
    stream: S,
    host: &str,
    path: &str,
    fields: &[(&str, &str)],
) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let text = |e: h2::Error| e.to_string();
    let (mut client, mut connection) = h2::client::handshake(stream).await.map_err(text)?;
    let mut request = Request::get(format!("http://{host}{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(()).map_err(|e| e.to_string())?;
    let answer = async {
        poll_fn(|cx| client.poll_ready(cx)).await.map_err(text)?;
        let (response, _) = client.send_request(request, true).map_err(text)?;
        Ok(response.await.map_err(text)?.status().as_u16())
    };
    let drive = async {
        let ended = poll_fn(|cx| Pin::new(&mut connection).poll(cx)).await;
        // The connection ended well: the response is there already or its future returns the error.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_after_a_whole_answer_is_as_good_as_new() {
        let ok = "HTTP/1.1 200 OK\r\n";
        for (answer, want) in [
            (format!("{ok}Content-Length: 2\r\n\r\nok"), Some(0)),
            (
                format!("{ok}Content-Length: 2\r\nConnection: keep-alive\r\n\r\no"),
                Some(1),
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), Some(0)),
            (format!("{ok}Content-Length: 2\r\n"), Some(1)),
            (format!("{ok}Content-Length: 2\r\n\r\nok, and more"), None),
            (
                format!("{ok}Content-Length: 2\r\nConnection: close\r\n\r\nok"),
                None,
            ),
            (
                format!("{ok}Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
                None,
            ),
            (format!("{ok}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), None),
            (format!("{ok}\r\nuntil the end"), None),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), None),
            (format!("{ok}Content-Length: {}\r\n\r\n", usize::MAX), None),
        ] {
            assert_eq!(left(answer.as_bytes()), want, "{answer}");
        }
    }
}
