//! From the backend's own `listen()` to the held requests: how soon the gateway notices, and how soon
//! it lets go.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{self, LONG};
use super::gateway::{Gateway, Place};
use super::instance::{self, Instances, Timeline};
use super::report::{Report, Table};
use super::stats::{Samples, number};
use super::{Common, Failure, Run};

/// Parts of a run whose percentiles are compared.
const BLOCKS: usize = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Cold starts at each level.
    #[arg(long, default_value_t = 150)]
    rounds: usize,
    /// Requests held at once.
    #[arg(long, value_delimiter = ',', default_value = "1,25,100,1000")]
    held: Vec<usize>,
}

/// One backend starts cold, with so many requests held.
pub(crate) async fn cold_start(
    gateway: &Gateway,
    instances: &Instances,
    service: &str,
    held: usize,
) -> Result<Timeline, Failure> {
    let mut connections = Vec::with_capacity(held);
    for _ in 0..held {
        connections.push(client::connect(gateway.plain).await?);
    }
    let head = client::head(&format!("{service}.bench"), "/");
    for stream in &mut connections {
        let sent = stream.write_all(head.as_bytes()).await;
        sent.map_err(|e| Failure::io("sending a request", e))?;
    }
    let mut instance = instances.started(service).await?;
    all_queued(gateway, service, held).await?;
    // The phase of the gateway's probes is not the bench's.
    tokio::time::sleep(Duration::from_micros(fastrand::u64(5_000..40_000))).await;
    instance.listen(held).await?;
    // Nothing is read before the last was received: the client takes no CPU from those it times.
    let timeline = instance.report().await?;
    answered(&mut connections).await?;
    Ok(timeline)
}

/// Waits until as many wait at the gateway.
pub(crate) async fn all_queued(gateway: &Gateway, service: &str, held: usize) -> Result<(), Failure> {
    let end = Instant::now() + LONG;
    let revision = format!("{service}-00001");
    loop {
        let queued = gateway.queued(&revision).await?;
        if queued == held as u64 {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(gateway
                .child
                .complaint(&format!("holds {queued} requests of {held}")));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every one gets its 200.
pub(crate) async fn answered(connections: &mut [TcpStream]) -> Result<(), Failure> {
    for stream in connections {
        let status = tokio::time::timeout(LONG, client::response(stream))
            .await
            .map_err(|_| Failure::Unexpected("a held request got no answer".to_owned()))??;
        if status != 200 {
            return Err(Failure::Unexpected(format!("a held request got {status}")));
        }
    }
    Ok(())
}

/// The configuration of a gateway that holds as much as it is sent.
pub(crate) fn config(
    services: &[String],
    socket: Option<&Path>,
    concurrency: u32,
) -> Result<String, Failure> {
    let mut lines = String::from(
        "limits: {headerTimeout: 300s, idleTimeout: 300s, maxConcurrentStreams: 1000}\nqueue: {depth: 100000}\nprocesses: {max: 2000}\nservices:\n",
    );
    for service in services {
        let queue = "  queue: {depth: 20000, bytes: 1GiB, timeout: 600s}\n";
        lines += &instance::service(service, socket, concurrency, queue)?;
    }
    Ok(lines)
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, true)?;
    let most = options.held.iter().max().copied().unwrap_or(1);
    super::machine::raise_descriptors(2 * most as u64 + 500)?;
    let instances = Instances::new(run.folder(), "hold")?;
    let name = |held: usize, round: usize| format!("h{held}-{round}");
    // Each cold start has a service of its own: none waits for another to be at zero again.
    let services: Vec<String> = (0..options.rounds)
        .flat_map(|round| options.held.iter().map(move |&held| name(held, round)))
        .collect();
    let place = Place {
        folder: run.folder(),
        cpu: None,
    };
    let config = config(&services, Some(instances.path()), 0)?;
    let gateway = Gateway::start(&run.sluice, "sluice", &config, &place).await?;

    let mut seen: Vec<[Vec<f64>; 4]> = options.held.iter().map(|_| Default::default()).collect();
    let mut done = 0;
    for round in 0..options.rounds {
        let start = Instant::now();
        for nth in 0..options.held.len() {
            // Another one first each time.
            let level = (nth + round) % options.held.len();
            let held = options.held[level];
            let timeline = cold_start(&gateway, &instances, &name(held, round), held).await?;
            let (detection, release) = (timeline.detection_ms(), timeline.release_ms());
            let figures = [detection, release, detection + release, timeline.last_ms()];
            for (samples, figure) in seen[level].iter_mut().zip(figures) {
                samples.push(figure);
            }
        }
        done += 1;
        if !run.another(start.elapsed()) {
            break;
        }
    }
    drop(gateway);
    let seen: Vec<[Samples; 4]> = seen
        .into_iter()
        .map(|four| four.map(|v| Samples::blocks(&v, BLOCKS)))
        .collect();

    let mut report = Report {
        parameters: json!({"rounds": done, "asked": options.rounds, "held": options.held, "delay_ms": "5 to 40, random"}),
        ..Report::default()
    };
    let mut table = Table::new(
        "Milliseconds, p50 / p99 [of each third of the run] / max over all cold starts. Detection: from the backend's listen() to the \
         first connection that it accepts. Release: from then to the first held request; last: to the last.",
        &[
            "held",
            "cold starts",
            "detection",
            "release",
            "listen to first request",
            "last",
        ],
    );
    for (held, samples) in options.held.iter().zip(&seen) {
        let cell = |s: &Samples| {
            let [p50, p99, max] = [50.0, 99.0, 100.0].map(|p| number(s.percentile(p), 2));
            let thirds = s
                .spread(99.0)
                .map_or_else(String::new, |t| format!(" [{:.2}-{:.2}]", t.min, t.max));
            format!("{p50} / {p99}{thirds} / {max}")
        };
        let mut row = vec![held.to_string(), samples[0].count().to_string()];
        row.extend(samples.iter().map(cell));
        table.row(row);
        if *held <= 100 {
            report.budget(
                &format!("detection p99 with {held} held"),
                samples[0].percentile(99.0),
                10.0,
                "ms",
            );
            report.budget(
                &format!("release p99 with {held} held"),
                samples[1].percentile(99.0),
                5.0,
                "ms",
            );
        }
    }
    report.tables.push(table);
    report.rounds = options
        .held
        .iter()
        .zip(&seen)
        .map(|(held, s)| {
            let [detection, release, first, last] = s.each_ref().map(|s| s.raw());
            json!({"held": held, "detection_ms": detection, "release_ms": release, "first_ms": first, "last_ms": last})
        })
        .collect();
    if done < 100 {
        report
            .notes
            .push(format!("p99 of {done} cold starts is the slowest of them"));
    }
    if done < options.rounds {
        report.notes.push(format!(
            "{done} of {} rounds fitted into the time",
            options.rounds
        ));
    }
    Ok(report)
}
