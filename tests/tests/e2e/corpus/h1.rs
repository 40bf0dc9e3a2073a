//! The corpus of smuggled and malformed HTTP/1 requests; `tests/corpus/h1.txt` describes its format.

use std::io;

use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::recorder::Recorder;
use sluice_tests::wait::{SOON, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Case, Upstream, good_request, read, take_bytes, verify};
use crate::{WEB, web};

#[derive(Debug, Default)]
struct Http1Case {
    name: String,
    /// Statuses with the gateway's reasons.
    answers: Vec<(u16, Option<String>)>,
    /// The connection ends after the answers.
    closes: bool,
    upstream: Upstream,
    fin: bool,
    bytes: Vec<u8>,
}

impl Case for Http1Case {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn line(&mut self, line: &str) -> bool {
        take_bytes(line, &mut self.bytes)
            || line
                .split_once(": ")
                .is_some_and(|(key, value)| self.set(key, value))
    }
}

impl Http1Case {
    fn set(&mut self, key: &str, value: &str) -> bool {
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
            _ => return self.upstream.set(key, value),
        }
        true
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
        good_request(gateway).await?;
        let own = 1 + usize::from(!self.closes);
        self.upstream.judge(what, own, backend).await
    }
}

/// Waits for the connection's end, orderly or not; a byte before it is an error.
async fn ended(conn: H1) -> io::Result<()> {
    let (mut io, ahead) = conn.into_parts();
    let mut rest = ahead;
    // A reset is an end as well: the gateway may have closed with unread bytes.
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
    let cases = read::<Http1Case>("h1.txt", 120);
    let backend = Recorder::start().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    verify(&cases, &gateway, async |_, case| {
        // Leftovers of a failed case must not count for the next one.
        case.run(&gateway, &backend)
            .await
            .inspect_err(|_| _ = backend.take())
    })
    .await;
}
