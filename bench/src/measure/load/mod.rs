//! The load generator and the backends of `bench/compare`, in one process on one thread: without context switches
//! between client and backend, which would add to the latency of the proxy's client.
//!
//! The protocol is lines of JSON: each [`Order`] on standard input gets one line in return, `{"error": "..."}` if not
//! every request had its expected response. The process ends at the end of its input.

mod backend;
mod certificate;
mod frames;
mod h1;
mod h2;
mod hold;
mod pace;
mod websocket;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::{Failure, client, machine};
use certificate::Certificate;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The directory for the certificate of the proxies.
    #[arg(long)]
    certificate: PathBuf,
}

/// One line of the standard input.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Order {
    /// A closed-loop load: as many requests as the connections carry, for a time.
    Load(Load),
    /// An open-loop load: requests at a fixed rate.
    Pace(pace::Pace),
    /// Connections that send one request each, all at once, and stay open.
    Hold(hold::Hold),
    /// Closes the held connections.
    Release,
}

/// The protocol of the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wire {
    /// HTTP/1.1, connections kept alive.
    H1,
    /// HTTP/1.1, a connection for each request.
    Close,
    /// HTTP/1.1 over TLS 1.3, connections kept alive.
    Tls1,
    /// HTTP/2 over TLS 1.3.
    Tls2,
    /// gRPC unary calls over HTTP/2 by prior knowledge.
    Grpc,
    /// Messages over a WebSocket, each echoed before the next.
    WebSocket,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    to: SocketAddr,
    wire: Wire,
    host: String,
    path: String,
    /// The length of each request's body; 0 for a GET without a body.
    #[serde(default)]
    send: usize,
    /// The length that each response's body must have.
    receive: usize,
    connections: usize,
    /// Concurrent streams on each connection, for HTTP/2.
    #[serde(default)]
    streams: usize,
    /// Seconds of the measurement.
    seconds: f64,
    /// Seconds of warm-up before the measurement.
    warm: f64,
    /// The proxy's processes, whose CPU time is read at both ends of the measurement.
    pids: Vec<u32>,
}

/// The shared counters of all connections of one load.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether no further request is to begin.
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Runs the load generator until its input ends.
pub(crate) async fn run(options: Options) -> Result<(), Failure> {
    machine::raise_descriptors(1024)?;
    let backends = backend::start()?;
    let certificate = Certificate::generate(&options.certificate)?;
    let about = json!({
        "h1": backends.h1.map(|a| a.to_string()),
        "h2": backends.h2.map(|a| a.to_string()),
        "cert": certificate.cert, "key": certificate.key, "both": certificate.both,
    });
    let mut out = tokio::io::stdout();
    say(&mut out, &about).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut held = hold::Held::default();
    let failed = |e| Failure::io("the standard input", e);
    while let Some(line) = lines.next_line().await.map_err(failed)? {
        let answer = match serde_json::from_str(&line) {
            Ok(order) => obey(order, &mut held).await,
            Err(e) => Err(Failure::Unexpected(format!("'{line}' is no order: {e}"))),
        };
        let answer = answer.unwrap_or_else(|failure| json!({"error": failure.to_string()}));
        say(&mut out, &answer).await?;
    }
    Ok(())
}

async fn say(out: &mut tokio::io::Stdout, what: &Value) -> Result<(), Failure> {
    let failed = |e| Failure::io("the standard output", e);
    out.write_all(format!("{what}\n").as_bytes())
        .await
        .map_err(failed)?;
    out.flush().await.map_err(failed)
}

async fn obey(order: Order, held: &mut hold::Held) -> Result<Value, Failure> {
    match order {
        Order::Load(load) => saturate(load).await,
        Order::Pace(order) => pace::pace(&order).await,
        Order::Hold(order) => held.hold(&order).await,
        Order::Release => Ok(held.release()),
    }
}

/// A connection to the proxy, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// One TLS client configuration for all proxies, so that all negotiate the same cipher.
fn tls(alpn: &[u8]) -> TlsConnector {
    client::tls_one_cipher(alpn)
}

async fn saturate(load: Load) -> Result<Value, Failure> {
    let load = Arc::new(load);
    let tally = Arc::new(Tally::default());
    let mut running = JoinSet::new();
    for _ in 0..load.connections {
        connection(&mut running, &load, &tally).await?;
    }
    let measured = async {
        tokio::time::sleep(Duration::from_secs_f64(load.warm)).await;
        let (start, cpu, before) = (Instant::now(), machine::cpu_time(&load.pids), tally.count());
        tokio::time::sleep(Duration::from_secs_f64(load.seconds)).await;
        let answered = tally.count() - before;
        let cpu = machine::cpu_time(&load.pids).saturating_sub(cpu);
        (answered, cpu, start.elapsed())
    };
    tokio::pin!(measured);
    // A connection ends before its stop signal only after an error.
    let (answered, cpu, took) = loop {
        tokio::select! {
            measured = &mut measured => break measured,
            Some(ended) = running.join_next() => ended_well(ended)?,
        }
    };
    tally.stop.store(true, Ordering::Relaxed);
    let ends = async {
        while let Some(ended) = running.join_next().await {
            ended_well(ended)?;
        }
        Ok(())
    };
    limited(ends).await?;
    if answered == 0 {
        return Err(Failure::Unexpected("nothing was answered in time".to_owned()));
    }
    Ok(json!({
        "answered": answered,
        "all": tally.count(),
        "cpu_us": cpu.as_secs_f64() * 1e6 / answered as f64,
        "utilisation": cpu.as_secs_f64() / took.as_secs_f64(),
        "per_second": answered as f64 / took.as_secs_f64(),
    }))
}

fn ended_well(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    ended.map_err(|e| Failure::Unexpected(e.to_string()))?
}

/// The timeout of one request, longer than any request takes on a machine that is worth measuring on.
async fn limited<T>(what: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, what)
        .await
        .unwrap_or(Err(Failure::TooLong(limit)))
}

/// Opens one connection and runs its client.
async fn connection(
    running: &mut JoinSet<Result<(), Failure>>,
    load: &Arc<Load>,
    tally: &Arc<Tally>,
) -> Result<(), Failure> {
    let (load, tally) = (Arc::clone(load), Arc::clone(tally));
    if load.wire == Wire::Close {
        running.spawn(async move { h1::one_each(&load, &tally).await });
        return Ok(());
    }
    let stream: TcpStream = client::connect(load.to).await?;
    match load.wire {
        Wire::H1 | Wire::Close => {
            running.spawn(async move { h1::kept(stream, &load, &tally).await });
        }
        Wire::WebSocket => {
            running.spawn(async move { websocket::echo(stream, &load, &tally).await });
        }
        Wire::Grpc => {
            running.spawn(async move { h2::streams(stream, &load, &tally).await });
        }
        Wire::Tls1 => {
            let stream = client::handshake(&tls(b"http/1.1"), &load.host, stream).await?;
            running.spawn(async move { h1::kept(stream, &load, &tally).await });
        }
        Wire::Tls2 => {
            let stream = client::handshake(&tls(b"h2"), &load.host, stream).await?;
            running.spawn(async move { h2::streams(stream, &load, &tally).await });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(to: SocketAddr, wire: &str, rest: &str) -> Order {
        let text = format!(
            r#"{{"do": "load", "to": "{to}", "wire": "{wire}", "host": "bench.example.com", "seconds": 0.05,
                "warm": 0.01, "connections": 3, "pids": [{}], {rest}}}"#,
            std::process::id()
        );
        serde_json::from_str(&text).expect("an order")
    }

    #[tokio::test]
    async fn the_backends_answer_every_kind_of_client_that_needs_no_proxy_and_a_wrong_answer_is_an_error() {
        let backends = backend::start().expect("ports");
        let (h1, h2) = (backends.h1[0], backends.h2[1]);
        let mut held = hold::Held::default();
        for (to, wire, rest) in [
            (h1, "h1", r#""path": "/b/100", "receive": 100"#),
            (h1, "h1", r#""path": "/b/1048576", "receive": 1048576"#),
            (h1, "h1", r#""path": "/b/100", "receive": 100, "send": 10240"#),
            (h1, "websocket", r#""path": "/ws", "receive": 100, "send": 100"#),
            (
                h2,
                "grpc",
                r#""path": "/a.B/C", "receive": 105, "send": 105, "streams": 10"#,
            ),
        ] {
            let answer = obey(order(to, wire, rest), &mut held).await;
            let answer = answer.unwrap_or_else(|e| panic!("{wire} {rest}: {e}"));
            assert!(answer["answered"].as_u64() > Some(0), "{wire}: {answer}");
            assert!(answer["cpu_us"].is_number(), "{wire}: {answer}");
        }
        let wrong = order(h1, "h1", r#""path": "/b/100", "receive": 101"#);
        let error = obey(wrong, &mut held).await.expect_err("it has 100").to_string();
        assert!(error.contains("101"), "{error}");
    }

    #[tokio::test]
    async fn a_pace_is_measured_and_connections_are_held_and_released() {
        let to = backend::start().expect("ports").h1[1];
        let mut held = hold::Held::default();
        let text = format!(
            r#"{{"do": "pace", "to": "{to}", "host": "bench.example.com", "path": "/b/100", "receive": 100,
                "rate": 500, "connections": 4, "seconds": 0.2, "warm": 0.1}}"#
        );
        let answer = obey(serde_json::from_str(&text).expect("an order"), &mut held).await;
        let answer = answer.expect("answered");
        assert_eq!(answer["answered"], json!(100), "{answer}");
        assert!(answer["p99_us"].as_f64() >= answer["p50_us"].as_f64());
        let text = format!(
            r#"{{"do": "hold", "to": "{to}", "host": "bench.example.com", "path": "/b/100", "receive": 100,
                "connections": 20, "tls": false}}"#
        );
        for _ in 0..2 {
            let order = serde_json::from_str(&text).expect("an order");
            obey(order, &mut held).await.expect("held");
        }
        let released = obey(Order::Release, &mut held).await.expect("released");
        assert_eq!(released, json!({"released": 40}));
    }
}
