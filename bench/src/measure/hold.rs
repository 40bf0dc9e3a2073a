//! The benchmark `hold`: the time from the backend's own `listen()` to the held requests, split into detection by the
//! gateway and release of the requests.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{self, LONG};
use super::gateway::{Gateway, Place};
use super::instance::{self, Instances, Timeline};
use super::machine::now_ns;
use super::report::{Report, Table};
use super::stats::{Samples, number};
use super::{Common, Failure, Run};

/// The number of parts of a run whose percentiles are compared.
const BLOCKS: usize = 3;

/// The number of figures of one cold start.
const FIGURES: usize = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Cold starts at each level.
    #[arg(long, default_value_t = 150)]
    rounds: usize,
    /// The levels: requests held at once.
    #[arg(long, value_delimiter = ',', default_value = "1,25,100,1000")]
    held: Vec<usize>,
}

/// The times of one cold start.
#[derive(Debug, Clone)]
pub(crate) struct ColdStart {
    timeline: Timeline,
    /// The time at which the gateway considered the instance ready, in nanoseconds of the common clock.
    ready: i64,
}

impl ColdStart {
    /// The time from listening to the gateway's first connection.
    fn connection_ms(&self) -> f64 {
        ms(self.timeline.connected - self.timeline.listened)
    }

    /// The time from listening until the gateway considered the instance ready: the phase `booting` ends there, after
    /// the time for which a connection has to stay open as proof.
    fn detection_ms(&self) -> f64 {
        ms(self.ready - self.timeline.listened)
    }

    /// The time from readiness until the first held request was at the backend.
    fn release_ms(&self) -> f64 {
        ms(self.timeline.first_byte - self.ready)
    }

    /// The time from listening until the first held request was at the backend.
    fn to_first_ms(&self) -> f64 {
        ms(self.timeline.first_byte - self.timeline.listened)
    }

    /// The time from listening until the last held request was at the backend.
    pub(crate) fn to_last_ms(&self) -> f64 {
        ms(self.timeline.last() - self.timeline.listened)
    }
}

fn ms(ns: i64) -> f64 {
    ns as f64 / 1e6
}

/// The sum of a request's phases until the gateway considered its instance ready, from `Server-Timing`, in
/// nanoseconds.
fn until_ready(head: &str) -> Option<i64> {
    let field = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("server-timing").then_some(value)
    })?;
    let phases = ["sluice_queued", "sluice_starting", "sluice_booting"];
    let lengths = phases.map(|phase| {
        field.split(',').find_map(|one| {
            let (name, took) = one.trim().split_once(";dur=")?;
            (name == phase).then(|| took.parse::<f64>().ok())?
        })
    });
    let all: Option<f64> = lengths.into_iter().sum();
    all.map(|ms| (ms * 1e6) as i64)
}

/// Starts one backend cold, with this number of requests held.
pub(crate) async fn cold_start(
    gateway: &Gateway,
    instances: &Instances,
    service: &str,
    held: usize,
) -> Result<ColdStart, Failure> {
    let mut connections = Vec::with_capacity(held);
    for _ in 0..held {
        connections.push(client::connect(gateway.plain).await?);
    }
    let head = client::head(&format!("{service}.bench"), "/");
    let head = head.replace("\r\n\r\n", "\r\nX-Sluice-Timing: 1\r\n\r\n");
    let mut begun = Vec::with_capacity(held);
    for stream in &mut connections {
        begun.push(now_ns());
        let sent = stream.write_all(head.as_bytes()).await;
        sent.map_err(|e| Failure::io("sending a request", e))?;
    }
    let mut instance = instances.started(service).await?;
    all_queued(gateway, service, held).await?;
    // A random delay, so that the phase of the gateway's probes is independent of the benchmark's.
    tokio::time::sleep(Duration::from_micros(fastrand::u64(5_000..40_000))).await;
    instance.listen(held).await?;
    // Nothing is read before the last request was received: the client takes no CPU from the measured processes.
    let timeline = instance.report().await?;
    // Each response gives the time relative to the arrival of its request at the gateway, which is a little after the
    // request was sent: the latest time is the most exact.
    let mut ready = None;
    for (stream, begun) in connections.iter_mut().zip(begun) {
        let head = answer(stream).await?;
        ready = ready.max(until_ready(&head).map(|phases| begun + phases));
    }
    let ready = ready.ok_or_else(|| Failure::Unexpected("no response tells its phases".to_owned()))?;
    Ok(ColdStart { timeline, ready })
}

/// Waits until this number of requests waits at the gateway.
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

/// Reads the 200 of every connection.
pub(crate) async fn answered(connections: &mut [TcpStream]) -> Result<(), Failure> {
    for stream in connections {
        answer(stream).await?;
    }
    Ok(())
}

/// The 200 of one held request, as text.
async fn answer(stream: &mut TcpStream) -> Result<String, Failure> {
    let (status, bytes) = tokio::time::timeout(LONG, client::whole_response(stream))
        .await
        .map_err(|_| Failure::Unexpected("a held request got no answer".to_owned()))??;
    if status != 200 {
        return Err(Failure::Unexpected(format!("a held request got {status}")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The configuration of a gateway with queues that hold all requests.
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
    // Each cold start has a service of its own: no start waits for another service to be at zero again.
    let services: Vec<String> = (0..options.rounds)
        .flat_map(|round| options.held.iter().map(move |&held| name(held, round)))
        .collect();
    let place = Place {
        folder: run.folder(),
        cpu: None,
    };
    let config = config(&services, Some(instances.path()), 0)?;
    let gateway = Gateway::start(&run.sluice, "sluice", &config, &place).await?;

    let mut seen: Vec<[Vec<f64>; FIGURES]> = options.held.iter().map(|_| Default::default()).collect();
    let mut done = 0;
    for round in 0..options.rounds {
        let start = Instant::now();
        for nth in 0..options.held.len() {
            // The levels rotate: each round begins with another level.
            let level = (nth + round) % options.held.len();
            let held = options.held[level];
            let start = cold_start(&gateway, &instances, &name(held, round), held).await?;
            let figures = [
                start.connection_ms(),
                start.detection_ms(),
                start.release_ms(),
                start.to_first_ms(),
                start.to_last_ms(),
            ];
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
    let seen: Vec<[Samples; FIGURES]> = seen
        .into_iter()
        .map(|all| all.map(|v| Samples::blocks(&v, BLOCKS)))
        .collect();

    let mut report = Report {
        parameters: json!({"rounds": done, "asked": options.rounds, "held": options.held, "delay_ms": "5 to 40, random"}),
        ..Report::default()
    };
    let mut table = Table::new(
        "Milliseconds, p50 / p99 [of each third of the run] / max over all cold starts, from the backend's listen(). Connection: to the \
         first one that it accepts. Detection: until the gateway takes it for ready, which is the end of the phase `booting`: \
         a TCP connection has to stay open for 3 ms before. Release: from then to the first held request at the backend.",
        &[
            "held",
            "cold starts",
            "connection",
            "detection",
            "release",
            "first request",
            "last request",
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
                samples[1].percentile(99.0),
                10.0,
                "ms",
            );
            report.budget(
                &format!("release p99 with {held} held"),
                samples[2].percentile(99.0),
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
            let [connection, detection, release, first, last] = s.each_ref().map(|s| s.raw());
            json!({"held": held, "connection_ms": connection, "detection_ms": detection, "release_ms": release,
                   "first_ms": first, "last_ms": last})
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detection_ends_where_the_phase_of_booting_does() {
        let head = "HTTP/1.1 200 OK\r\nServer-Timing: sluice_queued;dur=0.250, sluice_starting;dur=1.000, \
                    sluice_booting;dur=6.750, sluice_admitting;dur=0.100, sluice_first_byte;dur=0.400\r\n\r\n";
        let ready = until_ready(head).expect("phases");
        assert_eq!(ready, 8_000_000);
        let warm =
            "HTTP/1.1 200 OK\r\nServer-Timing: sluice_queued;dur=0.250, sluice_first_byte;dur=0.400\r\n\r\n";
        assert_eq!(until_ready(warm), None);
        let start = ColdStart {
            timeline: Timeline {
                listened: 3_000_000,
                connected: 4_500_000,
                first_byte: 8_500_000,
                received: vec![8_600_000, 9_000_000],
            },
            ready,
        };
        let figures = [start.connection_ms(), start.detection_ms(), start.release_ms()];
        assert_eq!(figures, [1.5, 5.0, 0.5]);
        assert_eq!((start.to_first_ms(), start.to_last_ms()), (5.5, 6.0));
    }
}
