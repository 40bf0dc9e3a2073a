//! Table-driven tests from corpora: what a client sends, what the client must get, and what the backend must
//! and must not have got.

mod h1;
mod h2;
mod responses;

use std::time::Duration;

use sluice_tests::gateway::Gateway;
use sluice_tests::recorder::Recorder;
use sluice_tests::wait::{SOON, wait_until};
use tokio::time::timeout;

use crate::WEB;

/// One case of a corpus.
trait Case: Sized {
    fn named(name: &str) -> Self;

    fn name(&self) -> &str;

    /// Parses one non-empty line of the case. Returns false for an invalid line.
    fn line(&mut self, line: &str) -> bool;
}

/// Reads `tests/corpus/{file}`: `== name` begins a case, `#` a comment. `at_least`: fewer cases mean that some
/// were lost.
fn read<C: Case>(file: &str, at_least: usize) -> Vec<C> {
    let path = format!("{}/corpus/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the corpus is there");
    let mut cases: Vec<C> = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(C::named(name));
        } else if !line.is_empty() {
            let case = cases.last_mut().expect("a case before its lines");
            assert!(case.line(line), "{line} in {}", case.name());
        }
    }
    assert!(cases.len() >= at_least, "only {} cases", cases.len());
    cases
}

/// Runs all cases, so that one failure hides no other; panics with the list of failures.
async fn verify<C: Case>(cases: &[C], gateway: &Gateway, run: impl AsyncFn(usize, &C) -> Result<(), String>) {
    let mut wrong = Vec::new();
    for (nth, case) in cases.iter().enumerate() {
        if let Err(why) = run(nth, case).await {
            wrong.push(format!("{}: {why}", case.name()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    let panics = [("reason", "panicked")];
    let panicked = gateway.metric("sluice_connections_closed_total", &panics).await;
    assert_eq!(panicked, 0.0);
}

/// Parses a line of bytes of an HTTP/1 message: `> ` with CRLF behind, `+ ` as they are. Returns false for other lines.
fn take_bytes(line: &str, bytes: &mut Vec<u8>) -> bool {
    if let Some(text) = line.strip_prefix('>') {
        bytes.extend(unescape(text.strip_prefix(' ').unwrap_or(text)));
        bytes.extend_from_slice(b"\r\n");
    } else if let Some(text) = line.strip_prefix("+ ") {
        bytes.extend(unescape(text));
    } else {
        return false;
    }
    true
}

/// Whether the gateway still serves others.
async fn good_request(gateway: &Gateway) -> Result<(), String> {
    match gateway.get(WEB, "/good").await.status {
        200 => Ok(()),
        status => Err(format!("a good request gets {status}")),
    }
}

/// How long a cut-off request may take to arrive at the backend.
const CUT_SHOWS: Duration = Duration::from_millis(300);

/// The expectations of a case for the backend.
#[derive(Debug, Default)]
struct Upstream {
    requests: usize,
    /// `requests` is an upper bound.
    at_most: bool,
    cut: bool,
    seen: Vec<String>,
    unseen: Vec<String>,
}

impl Upstream {
    /// Parses a key and value of a case; returns false for keys that do not concern the backend.
    fn set(&mut self, key: &str, value: &str) -> bool {
        match key {
            "upstream" => {
                let (count, cut) = value.split_once(' ').unwrap_or((value, ""));
                let at_most = count.strip_suffix('?');
                self.at_most = at_most.is_some();
                self.requests = at_most.unwrap_or(count).parse().expect("a number");
                self.cut = cut == "cut";
            }
            "seen" => self.seen.push(value.to_owned()),
            "unseen" => self.unseen.push(value.to_owned()),
            _ => return false,
        }
        true
    }

    /// Compares the requests at the backend with the expected ones: those of the case and `own` good ones.
    async fn judge(&self, what: &str, own: usize, backend: &Recorder) -> Result<(), String> {
        let cut = || !backend.peek().cut.is_empty();
        // Whether the beginning of the request arrives depends on how early the gateway sees the fault; a whole request
        // must not arrive. Waited for, so that a beginning is not counted for the next case.
        if self.cut {
            let _ = timeout(CUT_SHOWS, wait_until(what, SOON, cut)).await;
        }
        let record = backend.take();
        let text = |all: &[Vec<u8>]| -> Vec<String> {
            let begins = all.iter().map(|r| &r[..r.len().min(400)]);
            begins.map(|r| String::from_utf8_lossy(r).into_owned()).collect()
        };
        let got = || format!("{:?}, cut {:?}", text(&record.requests), text(&record.cut));
        let (least, most) = match self.at_most {
            true => (own, self.requests + own),
            false => (self.requests + own, self.requests + own),
        };
        if !(least..=most).contains(&record.requests.len()) || record.cut.len() > usize::from(self.cut) {
            return Err(format!("the backend got {}", got()));
        }
        if let Some(missing) = self.seen.iter().find(|s| !record.contains(s.as_bytes())) {
            return Err(format!("the backend did not get {missing:?}: {}", got()));
        }
        let mut unseen = self.unseen.iter().map(String::as_str).chain(["smuggled"]);
        match unseen.find(|s| record.contains(s.as_bytes())) {
            Some(leaked) => Err(format!("the backend got {leaked:?}: {}", got())),
            None => Ok(()),
        }
    }
}

/// `\r`, `\n`, `\t`, `\s`, `\0`, `\\`, `\xHH`, `{H}` and `{bytes*count}`.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '{']) {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        if let Some(escape) = rest.strip_prefix('\\') {
            let (byte, len) = match escape.as_bytes()[0] {
                b'r' => (b'\r', 1),
                b'n' => (b'\n', 1),
                b't' => (b'\t', 1),
                b's' => (b' ', 1),
                b'0' => (0, 1),
                b'\\' => (b'\\', 1),
                b'x' => (u8::from_str_radix(&escape[1..3], 16).expect("two digits"), 3),
                other => panic!("\\{} in {text}", char::from(other)),
            };
            out.push(byte);
            rest = &escape[len..];
            continue;
        }
        let (inner, after) = rest[1..].split_once('}').expect("a closing brace");
        match inner.rsplit_once('*') {
            _ if inner == "H" => out.extend_from_slice(format!("Host: {WEB}").as_bytes()),
            Some((bytes, count)) => out.extend(unescape(bytes).repeat(count.parse().expect("a number"))),
            None => panic!("{{{inner}}} in {text}"),
        }
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    out
}
