//! The corpus of hostile backend responses; `tests/corpus/responses.txt` describes its format.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{Framing, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::{RawBackend, read_head};
use sluice_tests::wait::SOON;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Case, read, take_bytes, unescape, verify};
use crate::{WEB, web};

/// What the backend answers to a good request.
const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";

/// The timeout of a case, so that a hanging case hides no other.
const LIMIT: Duration = SOON;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum End {
    #[default]
    Close,
    Keep,
    Reset,
}

#[derive(Debug, Default, Clone)]
enum Wanted {
    #[default]
    Broken,
    Refused,
    Whole(u16, Vec<u8>),
}

#[derive(Debug, Default)]
struct ResponseCase {
    name: String,
    wanted: Wanted,
    method: Option<String>,
    seen: Vec<String>,
    unseen: Vec<String>,
    end: End,
    bytes: Vec<u8>,
}

/// What a client got.
#[derive(Debug)]
enum Got {
    Whole {
        status: u16,
        reason: Option<String>,
        body: Vec<u8>,
    },
    Broken(String),
}

impl Case for ResponseCase {
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

impl ResponseCase {
    fn set(&mut self, key: &str, value: &str) -> bool {
        match (key, value) {
            ("client", "502") => self.wanted = Wanted::Refused,
            ("client", "broken") => self.wanted = Wanted::Broken,
            ("client", whole) => {
                let (status, body) = whole.split_once(' ').unwrap_or((whole, ""));
                self.wanted = Wanted::Whole(status.parse().expect("a status"), unescape(body));
            }
            ("request", method) => self.method = Some(method.to_owned()),
            ("seen", bytes) => self.seen.push(bytes.to_owned()),
            ("unseen", bytes) => self.unseen.push(bytes.to_owned()),
            ("end", "keep") => self.end = End::Keep,
            ("end", "reset") => self.end = End::Reset,
            _ => return false,
        }
        true
    }

    fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("GET")
    }

    /// Compares the response with the expected one.
    fn judge(&self, got: &Got) -> Result<(), String> {
        let refused =
            matches!(got, Got::Whole { status: 502, reason: Some(reason), .. } if reason == "upstream_error");
        let good = match (&self.wanted, got) {
            (Wanted::Refused, _) => refused,
            (Wanted::Broken, got) => refused || matches!(got, Got::Broken(_)),
            (Wanted::Whole(status, body), got) => {
                matches!(got, Got::Whole { status: s, body: b, reason: None } if s == status && b == body)
            }
        };
        match got {
            _ if good => Ok(()),
            Got::Broken(why) => Err(format!("broken: {why}")),
            got => Err(format!("got {got:?}")),
        }
    }

    async fn over_http1(&self, nth: usize, gateway: &Gateway) -> Result<(), String> {
        let request = format!(
            "{} /case/{nth} HTTP/1.1\r\nHost: {WEB}\r\nConnection: close\r\n\r\n",
            self.method()
        );
        let mut io = TcpStream::connect(gateway.addr())
            .await
            .expect("the gateway accepts");
        io.write_all(request.as_bytes())
            .await
            .map_err(|e| e.to_string())?;
        let mut raw = Vec::new();
        let end = timeout(LIMIT, io.read_to_end(&mut raw))
            .await
            .map_err(|_| format!("no end after {:?}", beginning(&raw)))?;
        let mut unseen = self.unseen.iter().map(String::as_str).chain(["smuggled"]);
        if let Some(leaked) = unseen.find(|s| contains(&raw, s)) {
            return Err(format!("the client got {leaked:?}: {:?}", beginning(&raw)));
        }
        if let Some(missing) = self.seen.iter().find(|s| !contains(&raw, s)) {
            return Err(format!(
                "the client did not get {missing:?}: {:?}",
                beginning(&raw)
            ));
        }
        let mut conn = H1::over(tokio::io::join(&*raw, tokio::io::sink()));
        let got = match (conn.response_to(request.as_bytes()).await, end) {
            // A body that a reset ends is not whole; behind one that is, a reset is of no matter.
            (Ok(response), Err(reset)) if response.framing == Framing::Close => {
                Got::Broken(reset.to_string())
            }
            (Ok(response), _) => {
                conn.closed()
                    .await
                    .map_err(|e| format!("more than a response: {e}"))?;
                Got::Whole {
                    status: response.status,
                    reason: response.reason().map(str::to_owned),
                    body: response.body,
                }
            }
            (Err(broken), _) => Got::Broken(broken.to_string()),
        };
        self.judge(&got)
    }

    async fn over_http2(&self, nth: usize, h2: &H2) -> Result<(), String> {
        let request = h2_client::with_method(self.method(), "http", WEB, &format!("/case/{nth}"));
        let answer = timeout(LIMIT, h2.exchange(request, Bytes::new())).await;
        let got = match answer.map_err(|_| "no end".to_owned())? {
            Ok(response) => Got::Whole {
                status: response.status,
                reason: response.header("x-sluice-reason").map(str::to_owned),
                body: response.body.to_vec(),
            },
            Err(broken) => Got::Broken(broken.to_string()),
        };
        self.judge(&got)
    }

    async fn run(&self, nth: usize, gateway: &Gateway, h2: &H2) -> Result<(), String> {
        let good = async || {
            let response = gateway.get(WEB, "/good").await;
            match (response.status, response.text().as_str()) {
                (200, "good") => Ok(()),
                other => Err(format!("a good request gets {other:?}")),
            }
        };
        self.over_http1(nth, gateway).await?;
        good().await?;
        self.over_http2(nth, h2)
            .await
            .map_err(|e| format!("HTTP/2: {e}"))?;
        good().await.map_err(|e| format!("after HTTP/2: {e}"))
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn beginning(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned()
}

/// Answers requests for `/case/N` with that case's bytes, all others well.
async fn backend(cases: Arc<Vec<ResponseCase>>) -> RawBackend {
    RawBackend::start(move |_, mut io: TcpStream| {
        let cases = Arc::clone(&cases);
        async move {
            loop {
                let (head, _) = read_head(&mut io).await?;
                let Some(case) = asked_for(&head, &cases) else {
                    io.write_all(GOOD).await?;
                    continue;
                };
                io.write_all(&case.bytes).await?;
                match case.end {
                    End::Keep => {}
                    End::Reset => return io.set_zero_linger(),
                    End::Close => return close(io).await,
                }
            }
        }
    })
    .await
}

/// Closes in order, without a reset: reads until the gateway closes, too.
async fn close(mut io: TcpStream) -> io::Result<()> {
    io.shutdown().await?;
    let _ = timeout(LIMIT, io.read_to_end(&mut Vec::new())).await;
    Ok(())
}

fn asked_for<'c>(head: &str, cases: &'c [ResponseCase]) -> Option<&'c ResponseCase> {
    let path = head.split(' ').nth(1)?;
    cases.get(path.strip_prefix("/case/")?.parse::<usize>().ok()?)
}

#[tokio::test]
async fn every_client_gets_what_the_case_says_and_nothing_of_another_response() {
    let cases = Arc::new(read("responses.txt", 120));
    let backend = backend(Arc::clone(&cases)).await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let h2 = H2::connect(gateway.addr()).await;
    verify(&cases, &gateway, async |nth, case: &ResponseCase| {
        case.run(nth, &gateway, &h2).await
    })
    .await;
}
