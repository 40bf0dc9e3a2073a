//! The benchmark `held-memory`: the memory of held requests, step by step; the difference between two steps is the
//! cost of the later step.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::client::{self, H2, LONG};
use super::gateway::{Gateway, Place};
use super::hold::{all_queued, answered, config};
use super::instance::Instances;
use super::machine::{self, KernelMemory, Memory, cpu_time};
use super::report::{Report, Table};
use super::stats::Spread;
use super::{Common, Failure, Run};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Requests held.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) held: usize,
    /// Streams on one HTTP/2 connection.
    #[arg(long, default_value_t = 100)]
    pub(crate) streams: usize,
}

/// Requests that reach the backend at once when all are released: the memory of holding is measured, not of
/// forwarding.
const RELEASED_AT_ONCE: u32 = 100;

/// The protocol of the held requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// HTTP/1.1, one connection for each request.
    H1,
    /// HTTP/2, this number of streams on each connection.
    H2 { streams: usize },
}

impl Wire {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 { .. } => "h2",
        }
    }
}

/// Memory after one step.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) memory: Memory,
    pub(crate) kernel: KernelMemory,
}

/// Waits until the gateway is nearly idle, then reads its memory.
pub(crate) async fn step(name: &'static str, pids: &[u32]) -> Result<Step, Failure> {
    let end = Instant::now() + Duration::from_secs(10);
    let window = Duration::from_millis(200);
    let mut before = cpu_time(pids);
    loop {
        tokio::time::sleep(window).await;
        let now = cpu_time(pids);
        // The probes go on while requests wait: a few percent of a CPU.
        if now.saturating_sub(before) < window / 6 || Instant::now() > end {
            break;
        }
        before = now;
    }
    Ok(Step {
        name,
        memory: Memory::of(pids)?,
        kernel: KernelMemory::now()?,
    })
}

/// The steps of one gateway's life: idle, connected, (head begun,) held, answered, closed, and the same number held
/// again: the second hold uses memory that the allocator kept, and not memory that leaked.
pub(crate) async fn steps(
    sluice: &Path,
    folder: &Path,
    wire: Wire,
    held: usize,
) -> Result<Vec<Step>, Failure> {
    let instances = Instances::new(folder, "held")?;
    let services = ["first", "again"].map(str::to_owned);
    let config = config(&services, Some(instances.path()), RELEASED_AT_ONCE)?;
    let place = Place { folder, cpu: None };
    let gateway = Gateway::start(sluice, "sluice", &config, &place).await?;
    let mut steps = vec![step(NOTHING, &gateway.pids()).await?];
    let [first, again] = &services;
    steps.extend(hold(&gateway, &instances, first, wire, held).await?);
    // Connections to the backend, with their buffers, are closed after four idle seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    steps.push(step(CLOSED, &gateway.pids()).await?);
    let second = hold(&gateway, &instances, again, wire, held).await?;
    steps.extend(second.into_iter().filter(|s| s.name == HELD).map(|s| Step {
        name: HELD_AGAIN,
        ..s
    }));
    Ok(steps)
}

/// Connects, sends requests, waits until all are held, has all answered, and closes.
async fn hold(
    gateway: &Gateway,
    instances: &Instances,
    service: &str,
    wire: Wire,
    held: usize,
) -> Result<Vec<Step>, Failure> {
    let pids = gateway.pids();
    let host = format!("{service}.bench");
    let mut steps = Vec::new();
    match wire {
        Wire::H1 => {
            let mut connections = Vec::with_capacity(held);
            for _ in 0..held {
                connections.push(client::connect(gateway.plain).await?);
            }
            steps.push(step(CONNECTED, &pids).await?);
            let head = client::head(&host, "/");
            let (begin, end) = head.split_at(head.len() - 2);
            for (part, name) in [(begin, BEGUN), (end, HELD)] {
                for stream in &mut connections {
                    let sent = stream.write_all(part.as_bytes()).await;
                    sent.map_err(|e| Failure::io("sending a request", e))?;
                }
                if name == HELD {
                    all_queued(gateway, service, held).await?;
                }
                steps.push(step(name, &pids).await?);
            }
            let mut instance = instances.started(service).await?;
            instance.listen(held).await?;
            answered(&mut connections).await?;
            // An instance that cannot report ends, and the gateway starts it again.
            instance.report().await?;
            steps.push(step(ANSWERED, &pids).await?);
        }
        Wire::H2 { streams } => {
            let mut connections = Vec::new();
            for _ in 0..held.div_ceil(streams) {
                connections.push(H2::connect(gateway.plain).await?);
            }
            steps.push(step(CONNECTED, &pids).await?);
            let mut responses = Vec::with_capacity(held);
            for nth in 0..held {
                responses.push(connections[nth / streams].get(&host).await?);
            }
            all_queued(gateway, service, held).await?;
            steps.push(step(HELD, &pids).await?);
            let mut instance = instances.started(service).await?;
            instance.listen(held).await?;
            for response in responses {
                let status = tokio::time::timeout(LONG, client::h2_response(response))
                    .await
                    .map_err(|_| Failure::Unexpected("a held stream got no answer".to_owned()))??;
                if status != 200 {
                    return Err(Failure::Unexpected(format!("a held stream got {status}")));
                }
            }
            instance.report().await?;
            steps.push(step(ANSWERED, &pids).await?);
        }
    }
    Ok(steps)
}

pub(crate) const NOTHING: &str = "nothing";
pub(crate) const CONNECTED: &str = "connected, idle";
const BEGUN: &str = "head begun";
pub(crate) const HELD: &str = "held";
pub(crate) const ANSWERED: &str = "answered, still connected";
/// The name of the second hold in the same gateway.
pub(crate) const HELD_AGAIN: &str = "held again";
pub(crate) const CLOSED: &str = "closed, some seconds later";

/// The growth from the start to step `name`, in KB per request.
pub(crate) fn per_request(
    steps: &[Step],
    name: &str,
    held: usize,
    what: impl Fn(&Step) -> u64,
) -> Option<f64> {
    let base = what(steps.first()?);
    let step = steps.iter().find(|step| step.name == name)?;
    Some((what(step) as f64 - base as f64) / 1024.0 / held as f64)
}

pub(crate) fn json(steps: &[Step]) -> Value {
    steps
        .iter()
        .map(|s| json!({"step": s.name, "memory": s.memory.json(), "kernel": s.kernel.json()}))
        .collect()
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, true)?;
    machine::raise_descriptors(options.held as u64 + 1000)?;
    let wires = [
        Wire::H1,
        Wire::H2 {
            streams: options.streams,
        },
    ];
    let mut rounds: Vec<[Vec<Step>; 2]> = Vec::new();
    for round in 0..options.rounds {
        let start = Instant::now();
        let mut both: [Vec<Step>; 2] = Default::default();
        for nth in [round % 2, (round + 1) % 2] {
            let folder = run.inner(&format!("{}-{round}", wires[nth].name()))?;
            both[nth] = steps(&run.sluice, &folder, wires[nth], options.held).await?;
        }
        rounds.push(both);
        if !run.another(start.elapsed()) {
            break;
        }
    }
    let mut report = Report {
        parameters: json!({"rounds": rounds.len(), "held": options.held, "streams_per_h2_connection": options.streams}),
        ..Report::default()
    };
    for (nth, wire) in wires.into_iter().enumerate() {
        let mut table = Table::new(
            format!(
                "{}: KB per request above what the gateway has at its start, median [min-max] over rounds. The kernel's \
                 memory is that of the whole machine, both ends of every connection, and not part of RSS.",
                wire.name()
            ),
            &[
                "after",
                "RSS",
                "PSS",
                "anonymous",
                "RSS of this step alone",
                "kernel: TCP buffers",
                "kernel: slab",
            ],
        );
        let names: Vec<&str> = rounds[0][nth].iter().map(|s| s.name).collect();
        let mut previous = None;
        for name in names.into_iter().skip(1) {
            let over = |what: fn(&Step) -> u64| {
                Spread::of(
                    rounds
                        .iter()
                        .filter_map(|r| per_request(&r[nth], name, options.held, what)),
                )
            };
            let rss = over(|s| s.memory.rss);
            // The same hold once more adds no memory of its own.
            let alone = rss
                .filter(|_| name != HELD_AGAIN)
                .map(|s| s.median - previous.unwrap_or(0.0));
            previous = rss.map(|s| s.median);
            table.row([
                name.to_owned(),
                Spread::text(rss, 2),
                Spread::text(over(|s| s.memory.pss), 2),
                Spread::text(over(|s| s.memory.anonymous), 2),
                super::stats::number(alone, 2),
                Spread::text(over(|s| s.kernel.tcp), 2),
                Spread::text(over(|s| s.kernel.slab), 2),
            ]);
            if name == HELD {
                let limit = if wire == Wire::H1 { 16.0 } else { 10.0 };
                report.budget(
                    &format!("RSS of a request held over {}", wire.name()),
                    previous,
                    limit,
                    "KB",
                );
            }
        }
        report.tables.push(table);
    }
    report.rounds = rounds
        .iter()
        .map(|[h1, h2]| json!({"h1": json(h1), "h2": json(h2)}))
        .collect();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_costs_what_is_there_more_than_at_the_start() {
        let step = |name, kb: u64| Step {
            name,
            memory: Memory {
                rss: kb << 10,
                ..Memory::default()
            },
            kernel: KernelMemory::default(),
        };
        let steps = [step(NOTHING, 1000), step(HELD, 1500), step(CLOSED, 900)];
        assert_eq!(per_request(&steps, HELD, 50, |s| s.memory.rss), Some(10.0));
        assert_eq!(per_request(&steps, CLOSED, 50, |s| s.memory.rss), Some(-2.0));
        assert_eq!(per_request(&steps, ANSWERED, 50, |s| s.memory.rss), None);
    }
}
