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
use super::machine::now_ns;
use super::report::{Report, Table};
use super::stats::{Samples, number};
use super::{Common, Failure, Run};

/// Parts of a run whose percentiles are compared.
const BLOCKS: usize = 3;

/// Of one cold start.
const FIGURES: usize = 5;

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

/// What one cold start took.
#[derive(Debug, Clone)]
pub(crate) struct ColdStart {
    timeline: Timeline,
    /// When the gateway took the instance for ready, in nanoseconds of the common clock.
    ready: i64,
}

impl ColdStart {
    /// From listening to the gateway's first connection.
    fn connection_ms(&self) -> f64 {
        ms(self.timeline.connected - self.timeline.listened)
    }

    /// From listening until the gateway took the instance for ready: its phase `booting` ends there, after what a
    /// connection has to hold to prove anything.
    fn detection_ms(&self) -> f64 {
        ms(self.ready - self.timeline.listened)
    }

    /// From then until the first held request was at the backend.
    fn release_ms(&self) -> f64 {
        ms(self.timeline.first_byte - self.ready)
    }

    /// From listening until the first held request was at the backend.
    fn to_first_ms(&self) -> f64 {
        ms(self.timeline.first_byte - self.timeline.listened)
    }

    /// From listening until the last held request was at the backend.
    pub(crate) fn to_last_ms(&self) -> f64 {
        ms(self.timeline.last() - self.timeline.listened)
    }
}

fn ms(ns: i64) -> f64 {
    ns as f64 / 1e6
}

/// The phases of a request until the gateway took its instance for ready, as `Server-Timing` tells them, in
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

/// One backend starts cold, with so many requests held.
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
    // The phase of the gateway's probes is not the bench's.
    tokio::time::sleep(Duration::from_micros(fastrand::u64(5_000..40_000))).await;
    instance.listen(held).await?;
    // Nothing is read before the last was received: the client takes no CPU from those it times.
    let timeline = instance.report().await?;
    // Each request tells it by the time at which it came to the gateway, which is a little after it was sent: the
    // latest is the nearest.
    let mut ready = None;
    for (stream, begun) in connections.iter_mut().zip(begun) {
        let head = answer(stream).await?;
        ready = ready.max(until_ready(&head).map(|phases| begun + phases));
    }
    let ready = ready.ok_or_else(|| Failure::Unexpected("no response tells its phases".to_owned()))?;
    Ok(ColdStart { timeline, ready })
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

    let mut seen: Vec<[Vec<f64>; FIGURES]> = options.held.iter().map(|_| Default::default()).collect();
    let mut done = 0;
    for round in 0..options.rounds {
        let start = Instant::now();
        for nth in 0..options.held.len() {
            // Another one first each time.
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
