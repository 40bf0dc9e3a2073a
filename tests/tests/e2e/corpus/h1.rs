//! The corpus of HTTP/1 requests that could be smuggled, or are malformed: `tests/corpus/h1.txt` says how it reads.

use std::io;

use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::recorder::Recorder;
use sluice_tests::wait::{SOON, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Upstream, unescape};
use crate::{WEB, web};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/h1.txt");

/// Fewer means that some were lost.
const AT_LEAST: usize = 120;

#[derive(Debug, Default)]
struct Case {
    name: String,
    /// Statuses with the gateway's reasons.
    answers: Vec<(u16, Option<String>)>,
    /// The connection ends after them.
    closes: bool,
    upstream: Upstream,
    fin: bool,
    bytes: Vec<u8>,
}

fn parse(corpus: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in corpus.lines().filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case {
                name: name.to_owned(),
                ..Case::default()
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            assert_eq!(line, "", "a line before the first case");
            continue;
        };
        if let Some(bytes) = line.strip_prefix('>') {
            case.bytes
                .extend(unescape(bytes.strip_prefix(' ').unwrap_or(bytes)));
            case.bytes.extend_from_slice(b"\r\n");
        } else if let Some(bytes) = line.strip_prefix("+ ") {
            case.bytes.extend(unescape(bytes));
        } else if let Some((key, value)) = line.split_once(": ") {
            case.set(key, value);
        } else {
            assert_eq!(line, "", "in {}", case.name);
        }
    }
    cases
}

impl Case {
    fn set(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("answer", value) => {
                for word in value.split(' ') {
                    match (word, word.parse()) {
                        (_, Ok(status)) => self.answers.push((status, None)),
                        ("close", _) => self.closes = true,
                        ("open", _) => self.closes = false,
                        (reason, _) => {
                            self.answers.last_mut().expect("a status before its reason").1 =
                                Some(reason.into());
                        }
                    }
                }
            }
            ("end", "fin") => self.fin = true,
            _ => assert!(self.upstream.set(key, value), "{key}: {value} in {}", self.name),
        }
    }

    async fn run(&self, gateway: &Gateway, backend: &Recorder) -> Result<(), String> {
        let what = &*self.name;
        let mut io = TcpStream::connect(gateway.addr())
            .await
            .expect("the gateway accepts");
        // The gateway may close before it has read everything: the answers count.
        let _ = io.write_all(&self.bytes).await;
        if self.fin {
            io.shutdown().await.map_err(|e| format!("cannot close: {e}"))?;
        }
        let mut conn = H1::over(io);
        let mut answers = Vec::new();
        for _ in &self.answers {
            match within(what, SOON, conn.response_to(b"POST ")).await {
                Ok(response) => answers.push((response.status, response.reason().map(str::to_owned))),
                Err(e) => return Err(format!("{e} after {answers:?}")),
            }
        }
        if answers != self.answers {
            return Err(format!("answered {answers:?}"));
        }
        if self.closes {
            let end = within(what, SOON, ended(conn)).await;
            end.map_err(|e| format!("not the connection's end: {e}"))?;
        } else {
            let more = within(what, SOON, conn.exchange(&h1::get(WEB, "/same"))).await;
            match more {
                Ok(response) if response.status == 200 => {}
                other => return Err(format!("the connection is of no more use: {other:?}")),
            }
        }
        let response = gateway.get(WEB, "/good").await;
        if response.status != 200 {
            return Err(format!("a good request gets {}", response.status));
        }
        let own = 1 + usize::from(!self.closes);
        self.upstream.judge(what, own, backend).await
    }
}

/// Waits for the connection's end, orderly or not; a byte before it is an error.
async fn ended(conn: H1) -> io::Result<()> {
    let (mut io, ahead) = conn.into_parts();
    let mut rest = ahead;
    // A reset is an end as well: there may have been bytes that nobody wanted to read.
    let _ = io.read_to_end(&mut rest).await;
    match rest.is_empty() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "more bytes: {:?}",
            String::from_utf8_lossy(&rest)
        ))),
    }
}

#[tokio::test]
async fn every_case_gets_its_answer_and_the_backend_only_what_it_should() {
    let cases = parse(&std::fs::read_to_string(CORPUS).expect("the corpus is there"));
    assert!(cases.len() >= AT_LEAST, "only {} cases", cases.len());
    let backend = Recorder::start().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(why) = case.run(&gateway, &backend).await {
            wrong.push(format!("{}: {why}", case.name));
            backend.take();
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert_eq!(
        gateway
            .metric("sluice_connections_closed_total", &[("reason", "panicked")])
            .await,
        0.0
    );
}
