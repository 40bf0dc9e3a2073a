//! A backend that parses HTTP/1 strictly and records every byte.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw_backend::RawBackend;

/// The bytes that came on the backend's connections, in order.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Whole requests, head and body as they were sent.
    pub requests: Vec<Vec<u8>>,
    /// Incomplete requests, and bytes that are no request.
    pub cut: Vec<Vec<u8>>,
}

impl Record {
    /// Whether these bytes came, in whatever case; among cut requests, too.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let mut all = self.requests.iter().chain(&self.cut);
        all.any(|one| one.windows(bytes.len()).any(|w| w.eq_ignore_ascii_case(bytes)))
    }
}

/// A running one; dropping it closes everything.
#[derive(Debug)]
pub struct Recorder {
    backend: RawBackend,
    record: Arc<Mutex<Record>>,
}

impl Recorder {
    /// Answers every whole request with an empty 200 and keeps the connection; closes it after what is none.
    pub async fn start() -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let shared = Arc::clone(&record);
        let backend = RawBackend::start(move |_, io: TcpStream| {
            let record = Arc::clone(&shared);
            async move { serve(io, &record).await }
        })
        .await;
        Self { backend, record }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.backend.addr()
    }

    /// Everything since the last time.
    pub fn take(&self) -> Record {
        std::mem::take(&mut *self.lock())
    }

    /// Everything since the last time, left where it is.
    pub fn peek(&self) -> Record {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(mut io: TcpStream, record: &Mutex<Record>) -> io::Result<()> {
    let lock = || record.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buf = Vec::new();
    loop {
        let whole = loop {
            match length(&buf) {
                Ok(Some(whole)) => break Some(whole),
                Ok(None) => {}
                Err(NoRequest) => break None,
            }
            match io.read_buf(&mut buf).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break None,
            }
        };
        let Some(whole) = whole else {
            if !buf.is_empty() {
                lock().cut.push(buf);
            }
            return Ok(());
        };
        let rest = buf.split_off(whole);
        lock().requests.push(std::mem::replace(&mut buf, rest));
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await?;
    }
}

/// Bytes that are no request under the strictest reading.
struct NoRequest;

/// How long the request at the beginning is; `None` while it is not complete.
fn length(buf: &[u8]) -> Result<Option<usize>, NoRequest> {
    let Some(end) = find(buf, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&buf[..end]).map_err(|_| NoRequest)?;
    let mut lines = head.split("\r\n");
    let line: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    if line.len() != 3 || line[2] != "HTTP/1.1" {
        return Err(NoRequest);
    }
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or(NoRequest)?;
        if name.is_empty() || name.contains([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
            return Err(NoRequest);
        }
        match &*name.to_ascii_lowercase() {
            "content-length" if length.is_none() => {
                length = Some(value.parse::<usize>().map_err(|_| NoRequest)?);
            }
            "transfer-encoding" if !chunked && value == "chunked" => chunked = true,
            "content-length" | "transfer-encoding" => return Err(NoRequest),
            _ => {}
        }
    }
    let body = end + 4;
    match (length, chunked) {
        (Some(_), true) => Err(NoRequest),
        (length, false) => {
            let whole = body + length.unwrap_or(0);
            Ok((buf.len() >= whole).then_some(whole))
        }
        (None, true) => chunks(buf, body),
    }
}

fn chunks(buf: &[u8], mut at: usize) -> Result<Option<usize>, NoRequest> {
    loop {
        let Some(end) = find(&buf[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&buf[at..at + end]).map_err(|_| NoRequest)?;
        let size = usize::from_str_radix(size, 16).map_err(|_| NoRequest)?;
        at += end + 2;
        let after = at + size;
        let Some(crlf) = buf.get(after..after + 2) else {
            return Ok(None);
        };
        if crlf != b"\r\n" {
            return Err(NoRequest);
        }
        at = after + 2;
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

fn find(buf: &[u8], what: &[u8]) -> Option<usize> {
    buf.windows(what.len()).position(|w| w == what)
}
