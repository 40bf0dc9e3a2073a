//! Reads the output of an instance from its pipes, as lines: bounded in length, and dropped under back-pressure.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::wire::{Event, Stream};

/// The bound of one line, in bytes; longer lines are split.
const MAX_LINE: usize = 8 << 10;

/// The time that a line waits for room in the queue before lines are dropped: enough for a burst, too short for an instance
/// to be slowed down by an unread log.
const ENQUEUE_TIMEOUT: Duration = Duration::from_millis(100);

/// The time that the pipes are still read after the instance is gone: the group's last output is in them already, and only a
/// process that left the group can hold them open.
const LINGER: Duration = Duration::from_millis(250);

/// Reads both pipes until they end or the instance is gone, then reports the exit. `exit` yields the status once the whole
/// group is gone.
pub(crate) async fn watch(
    instance: u64,
    stdout: impl AsyncRead + Unpin,
    stderr: impl AsyncRead + Unpin,
    mut exit: oneshot::Receiver<String>,
    events: mpsc::Sender<Event>,
) {
    let mut out = Tail::default();
    let mut err = Tail::default();
    let status = {
        let pumps = async {
            tokio::join!(
                pump(instance, Stream::Stdout, stdout, &events, &mut out),
                pump(instance, Stream::Stderr, stderr, &events, &mut err),
            )
        };
        tokio::pin!(pumps);
        let early = tokio::select! {
            status = &mut exit => Some(status),
            _ = &mut pumps => None,
        };
        match early {
            Some(status) => {
                // A timeout only means that a process outside the group still holds a pipe.
                let _ = tokio::time::timeout(LINGER, &mut pumps).await;
                status
            }
            None => exit.await,
        }
    };
    // The sender is dropped only when the whole supervisor ends.
    let Ok(status) = status else { return };
    let _ = events
        .send(Event::Exited {
            instance,
            status,
            last_stderr: err.last,
            dropped: out.dropped + err.dropped,
        })
        .await;
}

/// The state of one stream.
#[derive(Default)]
struct Tail {
    last: Option<String>,
    /// Lines lost since the last one that was sent.
    dropped: u64,
}

async fn pump(
    instance: u64,
    stream: Stream,
    mut pipe: impl AsyncRead + Unpin,
    events: &mpsc::Sender<Event>,
    tail: &mut Tail,
) {
    let mut lines = Lines::default();
    let mut sender = LineSender {
        events,
        tail,
        congested: false,
    };
    let mut chunk = [0; 4 << 10];
    loop {
        let n = pipe.read(&mut chunk).await.unwrap_or(0);
        if n == 0 {
            break;
        }
        lines.push(&chunk[..n]);
        while let Some(line) = lines.take() {
            sender.send(instance, stream, line).await;
        }
    }
    if let Some(line) = lines.finish() {
        sender.send(instance, stream, line).await;
    }
}

/// Sends lines into the bounded queue. Waits a short time for room; after a timeout, drops lines without waiting until there
/// is room again.
struct LineSender<'e> {
    events: &'e mpsc::Sender<Event>,
    tail: &'e mut Tail,
    congested: bool,
}

impl LineSender<'_> {
    async fn send(&mut self, instance: u64, stream: Stream, line: String) {
        // Failures show the last line on stderr only.
        if stream == Stream::Stderr {
            self.tail.last = Some(line.clone());
        }
        let event = Event::Output {
            instance,
            stream,
            line,
            dropped: self.tail.dropped,
        };
        match self.events.try_send(event) {
            Ok(()) => {
                self.tail.dropped = 0;
                self.congested = false;
            }
            Err(TrySendError::Full(event)) if !self.congested => {
                if let Ok(Ok(place)) = tokio::time::timeout(ENQUEUE_TIMEOUT, self.events.reserve()).await {
                    place.send(event);
                    self.tail.dropped = 0;
                } else {
                    self.tail.dropped += 1;
                    self.congested = true;
                }
            }
            Err(_) => self.tail.dropped += 1,
        }
    }
}

/// Cuts bytes into lines of at most [`MAX_LINE`]; empty ones are left out.
#[derive(Default)]
struct Lines {
    held: Vec<u8>,
    /// Up to here there is no newline.
    searched: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    fn take(&mut self) -> Option<String> {
        loop {
            let newline = self.held[self.searched..].iter().position(|&b| b == b'\n');
            let (end, next) = match newline.map(|at| self.searched + at) {
                Some(at) if at <= MAX_LINE => (at, at + 1),
                _ if self.held.len() > MAX_LINE => (MAX_LINE, MAX_LINE),
                _ => {
                    self.searched = self.held.len();
                    return None;
                }
            };
            self.searched = 0;
            let line = text(&self.held[..end]);
            self.held.drain(..next);
            if line.is_some() {
                return line;
            }
        }
    }

    /// The rest without a newline at its end; at most one line.
    fn finish(&mut self) -> Option<String> {
        text(&std::mem::take(&mut self.held))
    }
}

/// A line without terminal control sequences: a line of log must not move the cursor, colour what follows, or pass for
/// another line.
fn text(bytes: &[u8]) -> Option<String> {
    let raw = String::from_utf8_lossy(bytes);
    let mut line = String::with_capacity(raw.len());
    let mut chars = raw.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.next_if_eq(&'[').is_some() {
            // A control sequence ends with its first byte of this range.
            let _ = chars.find(|end| matches!(end, '@'..='~'));
        } else if c == '\t' || !c.is_control() {
            line.push(c);
        }
    }
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk);
            while let Some(line) = lines.take() {
                out.push(line);
            }
        }
        out.extend(lines.finish());
        out
    }

    #[test]
    fn lines_are_found_across_chunks() {
        assert_eq!(
            cut(&[b"a\nb", b"c\r\n\n", b"\xff!\nrest"]),
            ["a", "bc", "\u{fffd}!", "rest"]
        );
    }

    #[test]
    fn colours_and_cursor_movements_are_left_out() {
        assert_eq!(
            cut(&[b"\x1b[31mERROR\x1b[0m a\tb\rc\x07 \x1b[2J\n\x1b[0m\nend\x1b["]),
            ["ERROR a\tbc ", "end"]
        );
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_is_never_held_whole() {
        let long = vec![b'x'; 3 * MAX_LINE + 5];
        let lengths: Vec<usize> = cut(&[&long, b"\nend\n"]).iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_LINE, MAX_LINE, MAX_LINE, 5, 3]);
        let exact = vec![b'x'; MAX_LINE];
        assert_eq!(cut(&[&exact, b"\n"]).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_nobody_reads_is_dropped_and_counted() {
        let (tx, mut rx) = mpsc::channel(2);
        let (exited, exit) = oneshot::channel();
        let text: Vec<u8> = (0..100)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect();
        let watching = tokio::spawn(async move { watch(7, &text[..], &b"oops\n"[..], exit, tx).await });
        exited.send("exit status 1".to_owned()).unwrap();
        // Time is paused: it advances only when everything else waits, so the lines are dropped
        // before the first of them is read.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut seen = 0;
        let mut end = None;
        while let Some(event) = rx.recv().await {
            match event {
                Event::Output { .. } => seen += 1,
                other => end = Some(other),
            }
        }
        watching.await.unwrap();
        assert!(seen <= 4, "{seen} lines were kept");
        assert_eq!(
            end,
            Some(Event::Exited {
                instance: 7,
                status: "exit status 1".to_owned(),
                last_stderr: Some("oops".to_owned()),
                dropped: 101 - seen,
            })
        );
    }
}
