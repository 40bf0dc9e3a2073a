//! Memory of connections that made one request and are kept, plain and TLS, nginx and HAProxy beside.

use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use super::handshakes::start_all;
use super::held_memory::{self, CLOSED, CONNECTED, NOTHING, Step, per_request, step};
use super::proxies::{HOST, Kind, Proxy};
use super::report::{Report, Table};
use super::stats::{Spread, number};
use super::{Common, Failure, OTHER_CPU, Run, client, installed, machine, two_cpus};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Connections.
    #[arg(long, default_value_t = 5000)]
    connections: usize,
    #[arg(long, value_delimiter = ',', default_value = "sluice,nginx,haproxy")]
    proxies: Vec<Kind>,
}

const SHAKEN: &str = "handshake made";
const ASKED: &str = "one request answered";
const WIRES: [&str; 2] = ["plain", "TLS 1.3"];

/// Clients at once: so many that a busy machine does not take minutes, so few that what they need in the
/// proxy at the same time is nothing beside all connections.
const AT_ONCE: usize = 16;

/// Does the same with each, some at once.
async fn each<T, U, F>(all: Vec<T>, one: impl Fn(T) -> F) -> Result<Vec<U>, Failure>
where
    U: Send + 'static,
    F: Future<Output = Result<U, Failure>> + Send + 'static,
{
    let (mut running, mut done) = (JoinSet::new(), Vec::with_capacity(all.len()));
    for item in all {
        if running.len() == AT_ONCE
            && let Some(ended) = running.join_next().await
        {
            done.push(ended.map_err(|e| Failure::Unexpected(e.to_string()))??);
        }
        running.spawn(one(item));
    }
    while let Some(ended) = running.join_next().await {
        done.push(ended.map_err(|e| Failure::Unexpected(e.to_string()))??);
    }
    Ok(done)
}

/// One request, whose connection is kept.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<S, Failure> {
    match client::exchange(&mut stream, &client::head(HOST, "/")).await? {
        200 => Ok(stream),
        status => Err(Failure::Unexpected(format!("a request got {status}"))),
    }
}

async fn steps(proxy: &Proxy, tls: bool, connections: usize) -> Result<Vec<Step>, Failure> {
    // The connection to the backend and whatever is made once are there before the first step.
    drop(ask(client::connect(proxy.plain).await?).await?);
    let pids = proxy.pids();
    let mut steps = vec![step(NOTHING, &pids).await?];
    let to = if tls { proxy.tls } else { proxy.plain };
    let mut plain = Vec::with_capacity(connections);
    for _ in 0..connections {
        plain.push(client::connect(to).await?);
    }
    steps.push(step(CONNECTED, &pids).await?);
    let open: (Vec<TcpStream>, Vec<TlsStream<TcpStream>>) = if tls {
        let connector = client::tls(&rustls::version::TLS13, false);
        let shaken = each(plain, |stream| {
            let connector = connector.clone();
            async move { client::handshake(&connector, HOST, stream).await }
        });
        let shaken = shaken.await?;
        steps.push(step(SHAKEN, &pids).await?);
        (Vec::new(), each(shaken, ask).await?)
    } else {
        (each(plain, ask).await?, Vec::new())
    };
    steps.push(step(ASKED, &pids).await?);
    drop(open);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    steps.push(step(CLOSED, &pids).await?);
    Ok(steps)
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, true)?;
    installed(&options.proxies)?;
    two_cpus()?;
    machine::raise_descriptors(options.connections as u64 * 2 + 1000)?;
    let (_responder, backend) = run.responder(0, Some(OTHER_CPU)).await?;
    // By round, by wire, by proxy.
    let mut rounds: Vec<[Vec<Vec<Step>>; 2]> = Vec::new();
    for round in 0..options.rounds {
        let start = Instant::now();
        let mut wires: [Vec<Vec<Step>>; 2] = Default::default();
        for (w, steps_of) in wires.iter_mut().enumerate() {
            let mut each = vec![Vec::new(); options.proxies.len()];
            for nth in 0..options.proxies.len() {
                let turn = (nth + round) % options.proxies.len();
                let kind = options.proxies[turn];
                // Started anew: what an allocator keeps would hide what the next connections take.
                let folder = run.inner(&format!("{round}-{w}-{kind}"))?;
                let proxies = start_all(&run, &[kind], backend, &folder).await?;
                each[turn] = steps(&proxies[0].1, w == 1, options.connections).await?;
            }
            *steps_of = each;
        }
        rounds.push(wires);
        if !run.another(start.elapsed()) {
            break;
        }
    }
    Ok(report(&options, &rounds))
}

fn report(options: &Options, rounds: &[[Vec<Vec<Step>>; 2]]) -> Report {
    let mut report = Report {
        parameters: json!({"rounds": rounds.len(), "connections": options.connections, "proxies": options.proxies.iter().map(ToString::to_string).collect::<Vec<_>>()}),
        ..Report::default()
    };
    for (w, wire) in WIRES.iter().enumerate() {
        let mut table = Table::new(
            format!(
                "{wire}: KB per connection above what the proxy has before the first, median [min-max] over rounds. Kernel \
                 memory is that of the whole machine, both ends of every connection, and not part of RSS."
            ),
            &[
                "proxy",
                "after",
                "RSS",
                "PSS",
                "RSS of this step alone",
                "kernel: TCP buffers",
                "kernel: slab",
            ],
        );
        for (p, kind) in options.proxies.iter().enumerate() {
            let mut previous = 0.0;
            for name in rounds[0][w][p].iter().map(|s| s.name).skip(1) {
                let over = |what: fn(&Step) -> u64| {
                    let each = rounds.iter();
                    Spread::of(each.filter_map(|r| per_request(&r[w][p], name, options.connections, what)))
                };
                let rss = over(|s| s.memory.rss);
                table.row([
                    kind.to_string(),
                    name.to_owned(),
                    Spread::text(rss, 2),
                    Spread::text(over(|s| s.memory.pss), 2),
                    number(rss.map(|s| s.median - previous), 2),
                    Spread::text(over(|s| s.kernel.tcp), 2),
                    Spread::text(over(|s| s.kernel.slab), 2),
                ]);
                previous = rss.map_or(previous, |s| s.median);
            }
        }
        report.tables.push(table);
    }
    report.rounds = rounds
        .iter()
        .map(|wires| {
            let wires = WIRES.iter().zip(wires).map(|(wire, each)| {
                let each = options.proxies.iter().zip(each);
                let each =
                    each.map(|(kind, s)| json!({"proxy": kind.to_string(), "steps": held_memory::json(s)}));
                json!({"wire": wire, "proxies": each.collect::<Vec<Value>>()})
            });
            Value::from(wires.collect::<Vec<Value>>())
        })
        .collect();
    report
}
