//! Continuous load that forgives nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::h1::{self, H1, H1Response};
use crate::h2_client::{self, H2};

/// Failures kept with their description; all are counted.
const KEPT_FAILURES: usize = 50;

/// What came of a load.
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
    /// Unless everything succeeded, and there was something.
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
    pub fn start(addr: SocketAddr, connections: usize, request: Vec<u8>) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn(run(addr, request.clone(), Arc::clone(&shared)));
        }
        Self {
            shared,
            connections: tasks,
        }
    }

    /// A GET of `/`.
    pub fn get(addr: SocketAddr, connections: usize, host: &str) -> Self {
        Self::start(addr, connections, h1::get(host, "/"))
    }

    /// A GET of `/`, each on a connection of its own.
    pub fn connecting(addr: SocketAddr, clients: usize, host: &str) -> Self {
        let request = h1::request("GET", host, "/", &[("Connection", "close")], b"");
        Self::start(addr, clients, request)
    }

    /// A GET of `/` over HTTP/2 by prior knowledge, `connections` connections with one stream after another.
    /// A GOAWAY that comes before a request is sent is obeyed; an error after that is a failure.
    pub fn h2(addr: SocketAddr, connections: usize, host: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn(run_h2(addr, host.to_owned(), Arc::clone(&shared)));
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

    fn count(&self, result: io::Result<H1Response>) {
        self.judge(match result {
            Ok(response) if response.status == 200 => Ok(response.text()),
            Ok(response) => Err(format!(
                "{} {:?} {}",
                response.status,
                response.reason(),
                response.text()
            )),
            Err(e) => Err(format!("{:?}: {e}", e.kind())),
        });
    }

    fn judge(&self, result: Result<String, String>) {
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
}

async fn run(addr: SocketAddr, request: Vec<u8>, shared: Arc<Shared>) {
    let mut conn = None;
    while !shared.stop.load(Ordering::SeqCst) {
        let mut open = match conn.take() {
            Some(open) => open,
            None => match H1::connect(addr).await {
                Ok(open) => open,
                Err(e) => {
                    shared.count(Err(e));
                    // Refusals come at once: let the others run.
                    tokio::task::yield_now().await;
                    continue;
                }
            },
        };
        let result = open.exchange(&request).await;
        conn = result.as_ref().is_ok_and(|r| !r.closes()).then_some(open);
        shared.count(result);
    }
}

async fn run_h2(addr: SocketAddr, host: String, shared: Arc<Shared>) {
    let mut conn: Option<H2> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        let open = match conn.take() {
            Some(open) => open,
            None => match TcpStream::connect(addr).await {
                Ok(io) => H2::over(io).await,
                Err(e) => {
                    shared.count(Err(e));
                    tokio::task::yield_now().await;
                    continue;
                }
            },
        };
        // Nothing is sent yet: the server has said that this connection takes no more.
        let Ok(mut send) = open.send.clone().ready().await else {
            continue;
        };
        let Ok((response, _)) = send.send_request(h2_client::get("http", &host, "/"), true) else {
            continue;
        };
        let result = async { h2_client::collect(response.await?).await };
        let result: Result<_, h2::Error> = result.await;
        shared.judge(match &result {
            Ok(response) if response.status == 200 => Ok(response.text()),
            Ok(response) => Err(format!("{} {}", response.status, response.text())),
            Err(e) => Err(format!("h2: {e}")),
        });
        conn = result.is_ok().then_some(open);
    }
}
