//! The benchmark `changes`, one changed file among thousands of services: the time until the change is served, its
//! CPU time, the latency that it adds to requests, and the memory of the whole. Checks the budgets of "one change
//! costs one change".

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::child::{Child, free_addresses};
use super::machine::{self, Memory};
use super::report::{Report, Table};
use super::stats::{Spread, number, percentile, sorted};
use super::{Common, Failure, Run, client, two_cpus};
use crate::{measured, operations};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The numbers of services, each in a file of its own with one revision and one endpoint.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    services: Vec<usize>,
    /// The number of changes that are awaited, one after the other.
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// The number of all changes before the second look at memory.
    #[arg(long, default_value_t = 1_000)]
    memory_changes: usize,
    /// Seconds of requests, without changes and with ten changes a second.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The number of cold starts, each of another service, alone and while everything is applied again.
    #[arg(long, default_value_t = 12)]
    cold: usize,
}

/// The figures from before changes were incremental (2026-11-29, release build), and the budgets.
struct Budget {
    services: usize,
    p50: (f64, f64),
    p99: (f64, f64),
    cpu: (f64, f64),
    ready: (f64, f64),
}

const BUDGETS: [Budget; 2] = [
    Budget {
        services: 10_000,
        p50: (245.0, 10.0),
        p99: (265.0, 25.0),
        cpu: (239.0, 2.0),
        ready: (410.0, 400.0),
    },
    Budget {
        services: 100_000,
        p50: (2_000.0, 15.0),
        p99: (2_200.0, 40.0),
        cpu: (2_235.0, 3.0),
        ready: (2_360.0, 2_500.0),
    },
];

/// The number of passes in which all hosts are looked up.
const PASSES: usize = 30;

const MIB: f64 = 1024.0 * 1024.0;

/// The gateway under test, on a directory of files.
struct Gateway {
    child: Child,
    folder: PathBuf,
    plain: SocketAddr,
    admin: SocketAddr,
    backend: SocketAddr,
    cold: usize,
    turn: usize,
}

impl Gateway {
    /// Writes the files and starts the gateway; returns the time until it listens.
    async fn start(
        run: &Run,
        services: usize,
        cold: usize,
        backend: SocketAddr,
    ) -> Result<(Self, Duration), Failure> {
        let folder = run.inner(&format!("services-{services}"))?;
        let [plain, admin] = free_addresses()?;
        let mut gateway = Self {
            // A placeholder, replaced below.
            child: Child::start("true", Path::new("/bin/true"), &[], None, run.folder())?,
            folder,
            plain,
            admin,
            backend,
            cold,
            turn: 0,
        };
        gateway.settings("bench.example")?;
        for nth in 0..services {
            gateway.service(nth, "")?;
        }
        let arguments = ["run".to_owned(), gateway.folder.display().to_string()];
        let start = Instant::now();
        let name = format!("sluice-{services}");
        gateway.child = Child::start(&name, &run.sluice, &arguments, None, run.folder())?;
        gateway.child.listens(plain, Duration::from_secs(60)).await?;
        Ok((gateway, start.elapsed()))
    }

    fn put(&self, name: &str, text: &str) -> Result<(), Failure> {
        let failed = |e| Failure::io(name, e);
        let temporary = self.folder.join(format!(".{name}.new"));
        std::fs::write(&temporary, text).map_err(failed)?;
        std::fs::rename(&temporary, self.folder.join(name)).map_err(failed)
    }

    fn settings(&self, domain: &str) -> Result<(), Failure> {
        let (plain, admin) = (self.plain, self.admin);
        let mut text = format!(
            "listeners: [{{address: '{plain}'}}]\nadmin: {{address: '{admin}'}}\naccessLog: {{format: off}}\n\
             drain: {{timeout: 1s}}\ndomain: {domain}\nservices:\n"
        );
        for nth in 0..2 * self.cold {
            text += &format!(
                "- {{name: cold-{nth}, hosts: [cold-{nth}.example], process: {{command: [sluice, echo]}}}}\n"
            );
        }
        if self.cold == 0 {
            text += "- {name: nothing, endpoints: ['127.0.0.1:9']}\n";
        }
        self.put("gateway.yaml", &text)
    }

    /// Writes the file of one service as operators and renderers do: a temporary file beside, then a rename.
    fn service(&self, nth: usize, host: &str) -> Result<(), Failure> {
        let backend = self.backend;
        let text = format!("services:\n- name: s{nth:06}\n  hosts: [{host}]\n  endpoints: ['{backend}']\n");
        self.put(&format!("s{nth:06}.yaml"), &text)
    }

    /// Changes one service, and returns the host that leads to the service from now on.
    fn change(&mut self, services: usize) -> Result<String, Failure> {
        self.turn += 1;
        let host = format!("v{}.changed.example", self.turn);
        self.service(self.turn * 7_919 % services, &host)?;
        Ok(host)
    }

    fn memory(&self) -> Result<f64, Failure> {
        Ok(Memory::of(&[self.child.pid()])?.rss as f64 / MIB)
    }
}

/// Sends one request on a connection, and returns the status.
async fn get(stream: &mut TcpStream, host: &str) -> Result<u16, Failure> {
    let head = client::head(host, "/");
    let sent = stream.write_all(head.as_bytes()).await;
    sent.map_err(|e| Failure::io("sending a request", e))?;
    client::response(stream).await
}

/// The time from the rename to the first response of the backend, in milliseconds.
async fn served(gateway: &mut Gateway, stream: &mut TcpStream, services: usize) -> Result<f64, Failure> {
    let start = Instant::now();
    let host = gateway.change(services)?;
    while get(stream, &host).await? != 200 {
        if start.elapsed() > client::LONG {
            return Err(gateway.child.complaint(&format!("does not serve {host}")));
        }
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Latencies of sequential requests, in milliseconds; optionally with ten changes a second.
async fn latencies(
    gateway: &mut Gateway,
    services: usize,
    time: Duration,
    changing: bool,
) -> Result<Vec<f64>, Failure> {
    let mut stream = client::connect(gateway.plain).await?;
    let (start, mut next) = (Instant::now(), Instant::now());
    let mut all = Vec::new();
    while start.elapsed() < time {
        if changing && Instant::now() >= next {
            next += Duration::from_millis(100);
            gateway.change(services)?;
        }
        let host = format!("s{:06}.default.bench.example", all.len() * 31 % services);
        let sent = Instant::now();
        get(&mut stream, &host).await?;
        all.push(sent.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    Ok(sorted(all))
}

/// The time of one cold start, in milliseconds.
async fn cold(gateway: &Gateway, nth: usize) -> Result<f64, Failure> {
    let mut stream = client::connect(gateway.plain).await?;
    let start = Instant::now();
    let status = get(&mut stream, &format!("cold-{nth}.example")).await?;
    if status != 200 {
        return Err(Failure::Unexpected(format!("a cold start ended in {status}")));
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The moments of a reload, 250 ms apart, at which cold starts come in turn.
const COLD_MOMENTS: u64 = 12;

/// The figures of one size of directory, in milliseconds and MiB.
struct Round {
    services: usize,
    ready: f64,
    served: Vec<f64>,
    cpu: f64,
    quiet: Option<f64>,
    changing: Option<f64>,
    memory: (f64, f64),
    cold: (Option<Spread>, Option<Spread>),
}

impl Round {
    fn json(&self) -> Value {
        let spread = |s: Option<Spread>| s.map(|s| json!([s.min, s.median, s.max]));
        json!({
            "services": self.services, "ready_ms": self.ready, "served_ms": self.served, "cpu_ms": self.cpu,
            "p99_quiet_ms": self.quiet, "p99_changing_ms": self.changing,
            "rss_mib": [self.memory.0, self.memory.1],
            "cold_ms": [spread(self.cold.0), spread(self.cold.1)],
        })
    }
}

async fn round(run: &Run, services: usize, options: &Options, backend: SocketAddr) -> Result<Round, Failure> {
    let (mut gateway, ready) = Gateway::start(run, services, options.cold, backend).await?;
    let after_start = gateway.memory()?;
    let mut stream = client::connect(gateway.plain).await?;
    let mut latency = Vec::new();
    for _ in 0..options.changes {
        latency.push(served(&mut gateway, &mut stream, services).await?);
        // A pause, so that the next change is not part of this change's burst (debounce).
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let pid = [gateway.child.pid()];
    let pause = Duration::from_millis(40);
    let idle = machine::cpu_time(&pid);
    tokio::time::sleep(pause * 50).await;
    let idle = (machine::cpu_time(&pid) - idle) / 50;
    let before = machine::cpu_time(&pid);
    for _ in 0..100 {
        gateway.change(services)?;
        tokio::time::sleep(pause).await;
    }
    let cpu = (machine::cpu_time(&pid) - before).saturating_sub(idle * 100) / 100;
    while gateway.turn < options.memory_changes {
        served(&mut gateway, &mut stream, services).await?;
    }
    let after_changes = gateway.memory()?;
    let time = Duration::from_secs(options.seconds);
    let quiet = latencies(&mut gateway, services, time, false).await?;
    let changing = latencies(&mut gateway, services, time, true).await?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for nth in 0..options.cold {
        alone.push(cold(&gateway, nth).await?);
    }
    for nth in 0..options.cold {
        gateway.settings(&format!("d{nth}.example"))?;
        // At some time in the middle of the reload, which takes seconds where there are 100,000 services.
        let spread = nth as u64 % COLD_MOMENTS;
        tokio::time::sleep(Duration::from_millis(150 + 250 * spread)).await;
        beside.push(cold(&gateway, options.cold + nth).await?);
        // Waits until the reload is over.
        let mut stream = client::connect(gateway.plain).await?;
        let host = format!("s000000.default.d{nth}.example");
        while get(&mut stream, &host).await? != 200 {
            gateway.child.lives()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(Round {
        services,
        ready: ready.as_secs_f64() * 1e3,
        served: sorted(latency),
        cpu: cpu.as_secs_f64() * 1e3,
        quiet: percentile(&quiet, 99.0),
        changing: percentile(&changing, 99.0),
        memory: (after_start, after_changes),
        cold: (Spread::of(alone), Spread::of(beside)),
    })
}

/// The time of one `find` in a table of 100,000 hosts, each once in an order that no cache can predict, in
/// nanoseconds.
fn find_cold() -> Option<Spread> {
    const HOSTS: u32 = 100_000;
    let name = format!("find/exact/{HOSTS}");
    let operation = operations()
        .into_iter()
        .find(|operation| operation.name == name)?;
    let mut run = (operation.set_up)();
    let mut pass = || measured(&mut run, HOSTS.into()).as_secs_f64() * 1e9 / f64::from(HOSTS);
    // The first pass also touches the memory for the first time.
    pass();
    Spread::of((0..PASSES).map(|_| pass()))
}

/// The latency of a dependent load (pointer chasing), in nanoseconds: the cost of a cache miss on this machine during
/// the measurement. A cold lookup is a few of these loads and little else.
fn dependent_load() -> Option<Spread> {
    const LINES: usize = (64 << 20) / 64;
    const LOADS: u32 = 100_000;
    // One cycle through all lines in random order (Sattolo), so that each line is read once before any line is read
    // again.
    let mut order: Vec<u32> = (0..LINES as u32).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for last in (1..LINES).rev() {
        order.swap(last, random.usize(..last));
    }
    let lines: Vec<[u32; 16]> = order.into_iter().map(|next| [next; 16]).collect();
    let mut at = 0;
    let mut pass = || {
        let start = Instant::now();
        for _ in 0..LOADS {
            at = lines[at as usize][0];
        }
        std::hint::black_box(at);
        start.elapsed().as_secs_f64() * 1e9 / f64::from(LOADS)
    };
    Spread::of((0..PASSES).map(|_| pass()))
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    two_cpus()?;
    let run = Run::new(&options.common, true)?;
    let (_responder, backend) = run.responder(0, None).await?;
    let mut report = Report {
        parameters: json!({
            "services": options.services, "changes": options.changes, "memory_changes": options.memory_changes,
            "seconds": options.seconds, "cold": options.cold,
        }),
        ..Report::default()
    };
    let mut table = Table::new(
        "One changed file among many services, each in a file of its own.",
        &["", "services", "before", "budget", "measured"],
    );
    let mut rounds = Vec::new();
    for &services in &options.services {
        let round = round(&run, services, &options, backend).await?;
        let known = BUDGETS.iter().find(|budget| budget.services == services);
        let mut line = |what: &str, known: Option<(f64, f64)>, measured: Option<f64>, unit: &str| {
            let cell = |value: Option<f64>| format!("{} {unit}", number(value, 2));
            table.row([
                what.to_owned(),
                services.to_string(),
                cell(known.map(|k| k.0).filter(|before| before.is_finite())),
                cell(known.map(|k| k.1)),
                cell(measured),
            ]);
            if let Some((_, budget)) = known {
                report.budget(&format!("{what}, {services} services,"), measured, budget, unit);
            }
        };
        let large = |before: f64, budget: f64| (services == 100_000).then_some((before, budget));
        line(
            "ready after start",
            known.map(|k| k.ready),
            Some(round.ready),
            "ms",
        );
        line(
            "change to served, p50",
            known.map(|k| k.p50),
            percentile(&round.served, 50.0),
            "ms",
        );
        line(
            "change to served, p99",
            known.map(|k| k.p99),
            percentile(&round.served, 99.0),
            "ms",
        );
        line(
            "CPU of all threads per change",
            known.map(|k| k.cpu),
            Some(round.cpu),
            "ms",
        );
        let added = round
            .changing
            .zip(round.quiet)
            .map(|(with, without)| with - without);
        line(
            "added p99 of requests, ten changes a second",
            large(f64::NAN, 1.0),
            added,
            "ms",
        );
        line(
            "memory after start",
            large(605.0, 200.0),
            Some(round.memory.0),
            "MiB",
        );
        line(
            "memory after the changes",
            large(1_351.0, 220.0),
            Some(round.memory.1),
            "MiB",
        );
        let (alone, beside) = round.cold;
        line("cold start alone, median", None, alone.map(|s| s.median), "ms");
        let more = beside
            .zip(alone)
            .map(|(beside, alone)| beside.median - alone.median);
        line(
            "added to a cold start while all is applied, median",
            large(700.0, 2.0),
            more,
            "ms",
        );
        rounds.push(round.json());
    }
    let find = find_cold();
    let median = find.map(|find| find.median);
    table.row([
        "find, cold, median of all hosts".to_owned(),
        "100000".to_owned(),
        "240.00 ns".to_owned(),
        "150.00 ns".to_owned(),
        format!("{} ns", number(median, 2)),
    ]);
    report.budget("find, cold, 100000 hosts,", median, 150.0, "ns");
    let load = dependent_load();
    table.row([
        "one dependent load of 64 MiB, for comparison".to_owned(),
        "-".to_owned(),
        "- ns".to_owned(),
        "- ns".to_owned(),
        format!("{} ns", number(load.map(|load| load.median), 2)),
    ]);
    let spread = |spread: Option<Spread>| spread.map(|s| json!([s.min, s.median, s.max]));
    rounds.push(json!({ "find_ns": spread(find), "load_ns": spread(load) }));
    report.tables.push(table);
    report.rounds = Value::Array(rounds);
    Ok(report)
}
