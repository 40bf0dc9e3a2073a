//! A minimal HTTP/2 client with several concurrent streams and precomputed requests. Decodes only as much as is
//! needed to check that each stream ended with a 200 and its whole body.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::{self, Frame, string};
use super::{Load, Stream, Tally, Wire};
use crate::measure::Failure;

/// A request without its response yet.
struct Open {
    stream: u32,
    began: bool,
    received: usize,
}

/// Header blocks as written by clients with a dynamic table: the first request adds its fields to the table, later
/// requests refer to them.
struct Blocks {
    first: Vec<u8>,
    others: Vec<u8>,
}

impl Blocks {
    fn new(load: &Load) -> Self {
        let (method, scheme) = match load.wire {
            Wire::Grpc => (0x83, 0x86),
            _ => (0x82, 0x87),
        };
        // Indices of the static table: :path, :authority, user-agent, accept, content-type.
        let mut fields = vec![(4, load.path.as_str()), (1, load.host.as_str()), (58, "measure")];
        let mut named = Vec::new();
        if load.wire == Wire::Grpc {
            fields.push((31, "application/grpc"));
            named.push(("te", "trailers"));
        } else {
            fields.push((19, "*/*"));
        }
        let (mut first, mut others) = (vec![method, scheme], vec![method, scheme]);
        for (index, value) in &fields {
            first.push(0x40 | index);
            string(&mut first, value);
        }
        for (name, value) in &named {
            first.push(0x40);
            string(&mut first, name);
            string(&mut first, value);
        }
        // The newest entry of the dynamic table has index 62.
        let entries = (fields.len() + named.len()) as u8;
        others.extend((0..entries).rev().map(|age| 0x80 | (62 + age)));
        Self { first, others }
    }
}

struct Client<'a> {
    load: &'a Load,
    blocks: Blocks,
    message: Vec<u8>,
    /// The proxy's flow-control window for this connection.
    window: i64,
    next: u32,
    open: Vec<Open>,
    /// The number of requests still to begin.
    wanted: usize,
    out: Vec<u8>,
    /// Read bytes that are not yet returned to the window.
    read: usize,
}

/// Keeps a fixed number of streams busy on one connection.
pub(super) async fn streams(mut stream: impl Stream, load: &Load, tally: &Tally) -> Result<(), Failure> {
    let mut client = Client::new(load);
    let (mut buf, mut filled) = (vec![0; 64 << 10], 0);
    loop {
        client.begin();
        if !client.out.is_empty() {
            let failed = |e| Failure::io("sending requests", e);
            stream.write_all(&client.out).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
            client.out.clear();
        }
        if client.open.is_empty() && tally.over() {
            return Ok(());
        }
        filled += match stream.read(&mut buf[filled..]).await {
            Ok(0) => return Err(Failure::Unexpected("the proxy closed a connection".to_owned())),
            Ok(n) => n,
            Err(e) => return Err(Failure::io("reading answers", e)),
        };
        let mut at = 0;
        while let Some(frame) = Frame::parse(&buf[at..filled]) {
            at += frame.size();
            client.take(frame, tally)?;
        }
        buf.copy_within(at..filled, 0);
        filled -= at;
    }
}

impl<'a> Client<'a> {
    fn new(load: &'a Load) -> Self {
        let mut out = frames::PREFACE.to_vec();
        // No pushes, a window of a megabyte for a stream; a gigabyte for the connection.
        let settings = [0, 2, 0, 0, 0, 0, 0, 4, 0, 16, 0, 0];
        frames::frame(&mut out, frames::SETTINGS, 0, 0, &settings);
        frames::frame(
            &mut out,
            frames::WINDOW_UPDATE,
            0,
            0,
            &(1_u32 << 30).to_be_bytes(),
        );
        let mut message = vec![b'x'; load.send];
        if let (Wire::Grpc, Some(prefix)) = (load.wire, message.first_chunk_mut()) {
            *prefix = super::backend::prefix(load.send);
        }
        Self {
            load,
            blocks: Blocks::new(load),
            message,
            window: frames::INITIAL_WINDOW,
            next: 1,
            open: Vec::with_capacity(load.streams),
            wanted: load.streams,
            out,
            read: 0,
        }
    }

    /// Begins as many of the wanted requests as fit into the window.
    fn begin(&mut self) {
        while self.wanted > 0 && self.window >= self.message.len() as i64 {
            let block = match self.next {
                1 => &self.blocks.first,
                _ => &self.blocks.others,
            };
            if self.message.is_empty() {
                frames::headers(&mut self.out, frames::END_STREAM, self.next, block);
            } else {
                frames::headers(&mut self.out, 0, self.next, block);
                let last = frames::END_STREAM;
                frames::frame(&mut self.out, frames::DATA, last, self.next, &self.message);
                self.window -= self.message.len() as i64;
            }
            self.open.push(Open {
                stream: self.next,
                began: false,
                received: 0,
            });
            self.next += 2;
            self.wanted -= 1;
        }
    }

    fn take(&mut self, frame: Frame<'_>, tally: &Tally) -> Result<(), Failure> {
        match frame.kind {
            frames::WINDOW_UPDATE => self.window += frame.window(),
            frames::RST_STREAM | frames::GOAWAY => return Err(wrong("a reset", frame)),
            frames::DATA | frames::HEADERS => return self.answer(frame, tally),
            _ => frame.acknowledge(&mut self.out),
        }
        Ok(())
    }

    fn answer(&mut self, frame: Frame<'_>, tally: &Tally) -> Result<(), Failure> {
        let at = self.open.iter().position(|open| open.stream == frame.stream);
        let Some(at) = at else {
            return Err(wrong("a frame of no stream of ours", frame));
        };
        let open = &mut self.open[at];
        if frame.kind == frames::DATA {
            open.received += frame.payload.len();
            self.read += frame.payload.len();
            frames::credit(&mut self.out, &mut self.read);
        } else if !open.began {
            if !frame.is_200() {
                return Err(wrong("no 200", frame));
            }
            open.began = true;
        }
        if frame.ends_stream() {
            // A gRPC call that succeeds ends with trailers.
            let trailers = frame.kind == frames::HEADERS && open.received > 0;
            if open.received != self.load.receive || (self.load.wire == Wire::Grpc && !trailers) {
                return Err(wrong(&format!("{} bytes", open.received), frame));
            }
            self.open.swap_remove(at);
            tally.answered();
            if !tally.over() {
                self.wanted += 1;
            }
        }
        Ok(())
    }
}

fn wrong(what: &str, frame: Frame<'_>) -> Failure {
    Failure::Unexpected(format!("{what} on HTTP/2: {frame:?}"))
}
