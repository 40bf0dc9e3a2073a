//! The HTTP/1 side: a strict parser of RFC 9112 that accepts no variation.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{End, Framing, Record, Request, SLOW, Script};

/// Serves a connection until either side ends it.
pub(super) async fn serve(io: TcpStream, record: Record) {
    let mut reader = Reader { io, buf: Vec::new() };
    // How a connection ended is in the record.
    let _ = run(&mut reader, &record).await;
}

async fn run(reader: &mut Reader, record: &Record) -> io::Result<()> {
    loop {
        let head = match reader.head().await {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(e) => {
                record.stray(format!("{e}: {:?}", String::from_utf8_lossy(&reader.buf)));
                return Err(e);
            }
        };
        let script = Script::of(&head.target);
        let framing = head.framing;
        let request = record.begin(head);
        if matches!(script, Script::HangUp | Script::Reset | Script::EarlyGone) {
            record.change(request, |r| r.end = End::Cut);
        }
        match &script {
            Script::HangUp => return Ok(()),
            Script::Reset => return reader.io.set_zero_linger(),
            Script::Early => reader.answer(record, 200, "", "early").await?,
            Script::EarlyClose => {
                reader
                    .answer(record, 200, "Connection: close\r\n", "early")
                    .await?
            }
            Script::EarlyGone => return reader.answer(record, 200, "Connection: close\r\n", "early").await,
            Script::Refuse => reader.answer(record, 417, "Connection: close\r\n", "no").await?,
            Script::Interim(codes) => {
                for code in codes {
                    let line = format!("HTTP/1.1 {code} Interim\r\nLink: </{code}>\r\n\r\n");
                    reader.io.write_all(line.as_bytes()).await?;
                }
            }
            Script::After => {}
        }
        let read = reader.body(framing, record, request).await;
        record.change(request, |r| {
            r.end = if read.is_ok() { End::Whole } else { End::Cut };
        });
        if let Err(e) = read {
            if e.kind() == io::ErrorKind::InvalidData {
                record.stray(format!("{e}: {:?}", String::from_utf8_lossy(&reader.buf)));
            }
            return Err(e);
        }
        match script {
            Script::After | Script::Interim(_) => {
                tokio::time::sleep(SLOW).await;
                let len = record.with(|c| c.requests[request].body.len());
                reader.answer(record, 200, "", &format!("got {len}")).await?;
            }
            Script::EarlyClose | Script::Refuse => return Ok(()),
            _ => {}
        }
    }
}

struct Reader {
    io: TcpStream,
    buf: Vec<u8>,
}

impl Reader {
    async fn answer(&mut self, record: &Record, status: u16, fields: &str, body: &str) -> io::Result<()> {
        let len = body.len();
        let extra = record.extra.iter();
        let extra: String = extra
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let answer = format!("HTTP/1.1 {status} So\r\n{fields}{extra}Content-Length: {len}\r\n\r\n{body}");
        self.io.write_all(answer.as_bytes()).await
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.io.read_buf(&mut self.buf).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line =
                    String::from_utf8(self.buf[..at].to_vec()).map_err(|_| bad("a line is no text"))?;
                if line.contains(['\r', '\n']) {
                    return Err(bad("a bare CR or LF"));
                }
                self.buf.drain(..at + 2);
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    /// `None` when the connection ended before a request.
    async fn head(&mut self) -> io::Result<Option<Request>> {
        while self.buf.is_empty() {
            // A reset of an idle connection is an end, too.
            if self.fill().await.is_err() {
                return Ok(None);
            }
        }
        let line = self.line().await?;
        let words: Vec<_> = line.split(' ').collect();
        let [method, target, "HTTP/1.1"] = words[..] else {
            return Err(bad(&format!("no request line: {line:?}")));
        };
        let mut fields = Vec::new();
        while let Some(field) = self.field().await? {
            fields.push(field);
        }
        let framing = framing(&fields)?;
        Ok(Some(Request {
            method: method.to_owned(),
            target: target.to_owned(),
            fields,
            framing,
            body: Vec::new(),
            trailers: Vec::new(),
            end: End::Open,
        }))
    }

    async fn field(&mut self) -> io::Result<Option<(String, String)>> {
        let line = self.line().await?;
        if line.is_empty() {
            return Ok(None);
        }
        let Some((name, value)) = line.split_once(':') else {
            return Err(bad(&format!("no field: {line:?}")));
        };
        if name.is_empty() || name.contains([' ', '\t']) {
            return Err(bad(&format!("no field: {line:?}")));
        }
        Ok(Some((name.to_owned(), value.trim().to_owned())))
    }

    async fn body(&mut self, framing: Framing, record: &Record, request: usize) -> io::Result<()> {
        let mut left = match framing {
            Framing::None => return Ok(()),
            Framing::Length(length) => length,
            Framing::Open => return self.chunks(record, request).await,
        };
        while left > 0 {
            left -= self.some(left, record, request).await?;
        }
        Ok(())
    }

    /// Moves up to `most` bytes of a body to the record.
    async fn some(&mut self, most: u64, record: &Record, request: usize) -> io::Result<u64> {
        if self.buf.is_empty() {
            self.fill().await?;
        }
        let take = self.buf.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        record.change(request, |r| r.body.extend(self.buf.drain(..take)));
        Ok(take as u64)
    }

    async fn chunks(&mut self, record: &Record, request: usize) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            if line.is_empty() || !line.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad(&format!("no chunk size: {line:?}")));
            }
            let mut left = u64::from_str_radix(&line, 16).map_err(|_| bad("a chunk size"))?;
            if left == 0 {
                break;
            }
            while left > 0 {
                left -= self.some(left, record, request).await?;
            }
            if !self.line().await?.is_empty() {
                return Err(bad("a chunk is longer than it says"));
            }
        }
        while let Some(field) = self.field().await? {
            record.change(request, |r| r.trailers.push(field));
        }
        Ok(())
    }
}

fn framing(fields: &[(String, String)]) -> io::Result<Framing> {
    let values = |name: &str| -> Vec<&str> {
        let named = fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, v)| v.as_str()).collect()
    };
    match (&values("content-length")[..], &values("transfer-encoding")[..]) {
        ([], []) => Ok(Framing::None),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            let length = length.parse().map_err(|_| bad("a length"))?;
            Ok(Framing::Length(length))
        }
        ([], ["chunked"]) => Ok(Framing::Open),
        (lengths, codings) => Err(bad(&format!("framing {lengths:?} {codings:?}"))),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
