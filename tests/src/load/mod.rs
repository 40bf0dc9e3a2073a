//! A load generator that counts every failure: HTTP/1, HTTP/2 and WebSockets.

mod h2;
mod websocket;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

use crate::dial::Dial;
use crate::h1::{self, H1};

/// Failures kept with their description; all are counted.
const KEPT_FAILURES: usize = 50;

/// The result of a load.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Answers with status 200.
    pub ok: u64,
    /// Every refusal, end of file, reset and other status.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<String>,
    /// Answers by the first line of their body; what follows may differ from answer to answer.
    pub bodies: BTreeMap<String, u64>,
}

impl Report {
    /// # Panics
    /// When a request failed, or when there was none.
    pub fn assert_clean(&self) {
        assert!(
            self.failed == 0 && self.ok > 0,
            "{} failed of {}: {:#?}",
            self.failed,
            self.ok + self.failed,
            self.failures
        );
    }
}

/// Running load; see [`Load::start`].
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    connections: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    report: Mutex<Report>,
}

impl Load {
    /// Sends `request` over and over on `connections` keep-alive connections. A connection that
    /// breaks is a failure and is opened anew; one that the server announced to close is not.
    pub fn start(dial: impl Into<Dial>, connections: usize, request: Vec<u8>) -> Self {
        let dial = dial.into();
        Self::spawn(connections, |shared| run(dial.clone(), request.clone(), shared))
    }

    /// A GET of `/`.
    pub fn get(dial: impl Into<Dial>, connections: usize, host: &str) -> Self {
        Self::start(dial, connections, h1::get(host, "/"))
    }

    /// GETs of `/`, a connection for each.
    pub fn get_anew(dial: impl Into<Dial>, connections: usize, host: &str) -> Self {
        let get = h1::request("GET", host, "/", &[("Connection", "close")], b"");
        Self::start(dial, connections, get)
    }

    /// GETs of `/` over HTTP/2, one stream after the other on each connection. Where GOAWAY without
    /// an error was received before a stream is opened, it is opened on a new connection.
    pub fn get_h2(dial: impl Into<Dial>, connections: usize, host: &str) -> Self {
        let dial = dial.into();
        Self::spawn(connections, |shared| {
            h2::run(dial.clone(), host.to_owned(), shared)
        })
    }

    /// WebSockets to `/`, each sending one message after the other and awaiting its echo. One that
    /// is closed in order, with a code, is opened anew.
    pub fn websockets(dial: impl Into<Dial>, connections: usize, host: &str) -> Self {
        let dial = dial.into();
        Self::spawn(connections, |shared| {
            websocket::run(dial.clone(), host.to_owned(), shared)
        })
    }

    fn spawn<F>(connections: usize, run: impl Fn(Arc<Shared>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn(run(Arc::clone(&shared)));
        }
        Self {
            shared,
            connections: tasks,
        }
    }

    /// Requests finished so far, in either way.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// Requests that failed so far.
    pub fn failed(&self) -> u64 {
        self.shared.lock().failed
    }

    /// Waits until `more` further requests are finished.
    pub async fn advance(&self, more: u64) {
        let target = self.done() + more;
        crate::wait::wait_until("the load goes on", crate::wait::SOON, || self.done() >= target).await;
    }

    /// Lets every connection finish its request, and reports.
    pub async fn stop(mut self) -> Report {
        self.shared.stop.store(true, Ordering::SeqCst);
        while self.connections.join_next().await.is_some() {}
        self.shared.lock().clone()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Counts what came of a request: the body of a 200, or what it was instead.
    fn count(&self, result: Result<String, String>) {
        let mut report = self.lock();
        match result {
            Ok(body) => {
                report.ok += 1;
                let first = body.lines().next().unwrap_or_default().to_owned();
                *report.bodies.entry(first).or_default() += 1;
            }
            Err(failure) => {
                report.failed += 1;
                if report.failures.len() < KEPT_FAILURES {
                    report.failures.push(failure);
                }
            }
        }
        drop(report);
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a connection that could not be had. Refusals come at once: the others run first.
    async fn count_refused(&self, e: &io::Error) {
        self.count(Err(broken("connecting", e)));
        tokio::task::yield_now().await;
    }
}

fn broken(doing: &str, e: &io::Error) -> String {
    format!("{doing}: {:?}: {e}", e.kind())
}

async fn run(dial: Dial, request: Vec<u8>, shared: Arc<Shared>) {
    let mut conn = None;
    while !shared.stopped() {
        let mut open = match conn.take() {
            Some(open) => open,
            None => match dial.connect().await {
                Ok(io) => H1::over(io),
                Err(e) => {
                    shared.count_refused(&e).await;
                    continue;
                }
            },
        };
        let result = open.exchange(&request).await;
        conn = result.as_ref().is_ok_and(|r| !r.closes()).then_some(open);
        shared.count(match result {
            Ok(response) if response.status == 200 => Ok(response.text()),
            Ok(response) => Err(format!(
                "{} {:?} {}",
                response.status,
                response.reason(),
                response.text()
            )),
            Err(e) => Err(broken("HTTP/1", &e)),
        });
    }
}
