//! Warm requests to Knative Services with a Pod each: CPU of the processes on the path, and latency.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Path;
use super::api::{Api, until};
use super::place::{self, has_condition};
use crate::measure::machine::cpu_time;
use crate::measure::report::{Report, Table};
use crate::measure::stats::{Spread, percentile, sorted};
use crate::measure::{Common, Failure, client};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Rounds, each with both paths.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// The numbers of connections, each with one request after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    connections: Vec<usize>,
}

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

fn name(path: Path) -> String {
    format!("warm-{}", path.word())
}

/// A Service with one Pod always, and with the activator on the path of whoever comes by its ClusterIP.
fn service(path: Path) -> Value {
    let annotations = json!({
        "autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1",
        "autoscaling.knative.dev/target-burst-capacity": "-1",
    });
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": name(path), "annotations": {"networking.knative.dev/ingress-class": path.class()}},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {"containers": [{"image": "dev.local/measure", "args": ["pod"]}]},
        }},
    })
}

/// One measurement.
#[derive(Debug)]
struct Measured {
    /// Microseconds of CPU for a request: of the path's processes, and of queue-proxy.
    cpu: f64,
    queue: f64,
    per_second: f64,
    /// Microseconds, sorted.
    latencies: Vec<f64>,
}

async fn one_by_one(to: SocketAddr, host: String, until: Instant) -> Result<Vec<f64>, Failure> {
    let head = client::head(&host, "/");
    let mut stream = client::connect(to).await?;
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let status = client::exchange(&mut stream, &head).await?;
        if status != 200 {
            return Err(Failure::Unexpected(format!("a warm request got {status}")));
        }
        latencies.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(latencies)
}

async fn load(to: SocketAddr, host: &str, connections: usize, time: Duration) -> Result<Vec<f64>, Failure> {
    let end = Instant::now() + time;
    let mut running = JoinSet::new();
    for _ in 0..connections {
        running.spawn(one_by_one(to, host.to_owned(), end));
    }
    let mut latencies = Vec::new();
    while let Some(done) = running.join_next().await {
        latencies.extend(done.map_err(|e| Failure::Unexpected(e.to_string()))??);
    }
    Ok(latencies)
}

async fn measure(to: SocketAddr, path: Path, connections: usize, seconds: f64) -> Result<Measured, Failure> {
    let host = format!("{}.default.example.com", name(path));
    load(to, &host, connections, Duration::from_millis(500)).await?;
    let (own, queue) = (place::processes(path.programs()), place::processes(&["queue"]));
    let (before, queue_before, begun) = (cpu_time(&own), cpu_time(&queue), Instant::now());
    let latencies = load(to, &host, connections, Duration::from_secs_f64(seconds)).await?;
    let took = begun.elapsed().as_secs_f64();
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / latencies.len() as f64;
    Ok(Measured {
        cpu: each(cpu_time(&own).saturating_sub(before)),
        queue: each(cpu_time(&queue).saturating_sub(queue_before)),
        per_second: latencies.len() as f64 / took,
        latencies: sorted(latencies),
    })
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let api = Api::new().await?;
    for path in Path::ALL {
        api.send("POST", SERVICES, &service(path)).await?;
    }
    for path in Path::ALL {
        let at = format!("{SERVICES}/{}", name(path));
        until(&format!("{} is Ready", name(path)), || async {
            Ok(has_condition(&api.get(&at).await?, "Ready").then_some(()))
        })
        .await?;
    }
    let addresses = [
        Path::Gateway.address(&api).await?,
        Path::Activator.address(&api).await?,
    ];
    let mut seen: Vec<(usize, Path, Vec<Measured>)> = Vec::new();
    for &connections in &options.connections {
        seen.extend(Path::ALL.map(|path| (connections, path, Vec::new())));
    }
    for round in 0..options.rounds {
        for (nth, &connections) in options.connections.iter().enumerate() {
            for path in Path::order(round) {
                let measured = measure(addresses[path as usize], path, connections, options.seconds).await?;
                seen[2 * nth + path as usize].2.push(measured);
            }
        }
    }
    let mut report = Report {
        parameters: json!({
            "rounds": options.rounds, "seconds": options.seconds, "connections": options.connections,
            "target-burst-capacity": -1, "body": super::backend::BODY,
        }),
        ..Report::default()
    };
    let mut table = Table::new(
        "Warm requests over HTTP/1.1 on kept connections, one after the other on each: the median of the rounds [their range]. CPU: \
         user and system, of the gateway's process; of those of the stub ingress and the activator. queue-proxy and the program are \
         those of either path. Client, cluster and Pods share the two CPUs.",
        &[
            "connections",
            "through",
            "CPU, µs a request",
            "queue-proxy besides, µs",
            "p50, µs",
            "p99, µs",
            "requests a second",
        ],
    );
    for (connections, path, rounds) in &seen {
        let cell = |of: &dyn Fn(&Measured) -> Option<f64>, digits| {
            Spread::text(Spread::of(rounds.iter().filter_map(of)), digits)
        };
        table.row([
            connections.to_string(),
            path.title().to_owned(),
            cell(&|m| Some(m.cpu), 0),
            cell(&|m| Some(m.queue), 0),
            cell(&|m| percentile(&m.latencies, 50.0), 0),
            cell(&|m| percentile(&m.latencies, 99.0), 0),
            cell(&|m| Some(m.per_second), 0),
        ]);
    }
    report.tables.push(table);
    for pair in seen.chunks(2) {
        let [(connections, _, gateway), (_, _, activator)] = pair else {
            continue;
        };
        let ratio = |of: &dyn Fn(&Measured) -> Option<f64>| {
            let ratios = gateway
                .iter()
                .zip(activator)
                .filter_map(|(g, a)| Some(of(g)? / of(a)?));
            Spread::text(Spread::of(ratios), 2)
        };
        report.notes.push(format!(
            "{connections} connections, the gateway's part of the other path's within a round: CPU {}, p50 {}, p99 {}",
            ratio(&|m| Some(m.cpu)),
            ratio(&|m| percentile(&m.latencies, 50.0)),
            ratio(&|m| percentile(&m.latencies, 99.0)),
        ));
    }
    report.rounds = seen
        .iter()
        .map(|(connections, path, rounds)| {
            let rounds: Vec<Value> = rounds
                .iter()
                .map(|m| {
                    let [p50, p99] = [50.0, 99.0].map(|p| percentile(&m.latencies, p));
                    json!({"cpu_us": m.cpu, "queue_us": m.queue, "per_second": m.per_second, "p50_us": p50, "p99_us": p99})
                })
                .collect();
            json!({"connections": connections, "through": path.word(), "rounds": rounds})
        })
        .collect();
    Ok(report)
}
