//! The same gateway on different allocators: CPU per request, memory of held requests, what is given
//! back, a cold burst.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde_json::{Value, json};

use super::held_memory::{ANSWERED, CLOSED, HELD, HELD_AGAIN, NOTHING, Step, Wire, per_request, steps};
use super::hold::{cold_start, config};
use super::instance::Instances;
use super::machine::cpu_time;
use super::proxies::{HOST, Place, Proxy};
use super::report::{Report, Table};
use super::stats::Spread;
use super::{Common, Failure, OTHER_CPU, PROXY_CPU, Run, child, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// NAME=BINARY; give each that is compared. The first is what ratios are of.
    #[arg(long = "variant", required = true)]
    variants: Vec<Variant>,
    /// Kept with the results: how it was built.
    #[arg(long = "note")]
    notes: Vec<String>,
    /// Rounds of load.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Seconds of load in a round.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Rounds of held requests and of cold bursts.
    #[arg(long, default_value_t = 2)]
    memory_rounds: usize,
    /// Requests held.
    #[arg(long, default_value_t = 10_000)]
    held: usize,
    /// Requests of a cold burst.
    #[arg(long, default_value_t = 1000)]
    burst: usize,
    /// Cold bursts in a round.
    #[arg(long, default_value_t = 5)]
    bursts: usize,
}

/// A gateway built with one allocator.
#[derive(Debug, Clone)]
struct Variant {
    name: String,
    binary: PathBuf,
}

impl std::str::FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("want NAME=BINARY")?;
        let binary = PathBuf::from(path)
            .canonicalize()
            .map_err(|e| format!("{path}: {e}"))?;
        Ok(Self {
            name: name.to_owned(),
            binary,
        })
    }
}

/// One round of load with wrk: microseconds of the gateway's CPU per request.
async fn load(gateway: &Proxy, seconds: u64) -> Result<(f64, f64), Failure> {
    let pids = gateway.pids();
    let (before, start) = (cpu_time(&pids), Instant::now());
    let output = tokio::process::Command::new("taskset")
        .args(["-c", &OTHER_CPU.to_string(), "wrk", "-t1", "-c64"])
        .arg(format!("-d{seconds}s"))
        .args([
            "-H",
            &format!("Host: {HOST}"),
            &format!("http://{}/", gateway.plain),
        ])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| Failure::io("wrk", e))?;
    let (cpu, took) = (cpu_time(&pids) - before, start.elapsed());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let requests = requests(&said).ok_or_else(|| Failure::Unexpected(format!("wrk said: {said}")))?;
    Ok((
        cpu.as_secs_f64() * 1e6 / requests as f64,
        cpu.as_secs_f64() / took.as_secs_f64(),
    ))
}

/// What wrk counted; nothing when not every request was answered well: a refusal costs less.
fn requests(said: &str) -> Option<u64> {
    if said.contains("Socket errors") || said.contains("Non-2xx") {
        return None;
    }
    let line = said.lines().find(|line| line.contains(" requests in "))?;
    line.split_whitespace().next()?.parse().ok().filter(|n| *n > 0)
}

/// Everything that was measured of one variant.
#[derive(Debug, Default)]
struct Figures {
    cpu_us: Vec<f64>,
    util: Vec<f64>,
    h1: Vec<Vec<Step>>,
    h2: Vec<Vec<Step>>,
    /// From the backend's listen() to the last request of a burst.
    burst_ms: Vec<f64>,
}

async fn bursts(run: &Run, binary: &Path, folder: &Path, options: &Options) -> Result<Vec<f64>, Failure> {
    let instances = Instances::new(folder, "burst")?;
    let services: Vec<String> = (0..options.bursts).map(|n| format!("b{n}")).collect();
    let place = Place { folder, cpu: None };
    let config = config(&services, Some(instances.path()), 0)?;
    let gateway = Proxy::sluice(binary, "sluice", &config, &place).await?;
    let mut all = Vec::new();
    for service in &services {
        let start = cold_start(&gateway, &instances, service, options.burst).await?;
        all.push(start.to_last_ms());
        if run.started.elapsed() > run.limit {
            break;
        }
    }
    Ok(all)
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, false)?;
    child::program("wrk")?;
    if machine::cpus() < 2 {
        return Err(Failure::Missing("two CPUs are needed".to_owned()));
    }
    machine::raise_descriptors(options.held as u64 + 1000)?;
    let variants = &options.variants;
    let mut figures: Vec<Figures> = variants.iter().map(|_| Figures::default()).collect();

    {
        let (_responder, backend) = run.responder(0, Some(OTHER_CPU)).await?;
        let mut gateways = Vec::new();
        for variant in variants {
            let lines = format!("services:\n- {{name: a, hosts: [{HOST}], endpoints: [{backend}]}}\n");
            let place = Place {
                folder: &run.inner(&format!("load-{}", variant.name))?,
                cpu: Some(PROXY_CPU),
            };
            gateways.push(Proxy::sluice(&variant.binary, "sluice", &lines, &place).await?);
        }
        for gateway in &gateways {
            load(gateway, 1).await?;
        }
        for round in 0..options.rounds {
            for nth in 0..variants.len() {
                let turn = (nth + round) % variants.len();
                let (cpu, util) = load(&gateways[turn], options.seconds).await?;
                figures[turn].cpu_us.push(cpu);
                figures[turn].util.push(util);
            }
        }
    }
    let mut memory_rounds = 0;
    for round in 0..options.memory_rounds {
        let start = Instant::now();
        for nth in 0..variants.len() {
            let turn = (nth + round) % variants.len();
            let Variant { name, binary } = &variants[turn];
            let folder = |what: &str| run.inner(&format!("{what}-{name}-{round}"));
            let held = options.held;
            figures[turn]
                .h1
                .push(steps(binary, &folder("h1")?, Wire::H1, held).await?);
            let wire = Wire::H2 { streams: 100 };
            figures[turn]
                .h2
                .push(steps(binary, &folder("h2")?, wire, held).await?);
            let burst = bursts(&run, binary, &folder("burst")?, &options).await?;
            figures[turn].burst_ms.extend(burst);
        }
        memory_rounds += 1;
        if !run.another(start.elapsed()) {
            break;
        }
    }
    Ok(report(&options, memory_rounds, &figures))
}

fn report(options: &Options, memory_rounds: usize, figures: &[Figures]) -> Report {
    let mut report = Report {
        parameters: json!({"rounds": options.rounds, "seconds": options.seconds, "memory_rounds": memory_rounds, "held": options.held, "burst": options.burst}),
        ..Report::default()
    };
    let mut table = Table::new(
        "Median [min-max]. Load: HTTP/1.1 keep-alive, 64 connections, 100 bytes. Held and kept: KB per request above \
         what the gateway has at its start. Burst: from the backend's listen() to the last request.",
        &[
            "allocator",
            "CPU µs/request",
            "of the first",
            "util",
            "RSS at start, MB",
            "held h1, KB",
            "h1 answered, KB",
            "h1 closed, KB",
            "h1 held again, KB",
            "held h2, KB",
            "h2 answered, KB",
            "h2 closed, KB",
            "burst, ms",
        ],
    );
    for (variant, f) in options.variants.iter().zip(figures) {
        let ratios = f.cpu_us.iter().zip(&figures[0].cpu_us).map(|(a, b)| a / b);
        let each = |steps: &[Vec<Step>], name: &str| {
            let kb = |s: &Vec<Step>| per_request(s, name, options.held, |s| s.memory.rss);
            Spread::text(Spread::of(steps.iter().filter_map(kb)), 2)
        };
        let base =
            f.h1.iter()
                .chain(&f.h2)
                .filter_map(|s| s.iter().find(|s| s.name == NOTHING));
        let base = Spread::of(base.map(|s| s.memory.rss as f64 / f64::from(1 << 20)));
        table.row([
            variant.name.clone(),
            Spread::text(Spread::of(f.cpu_us.iter().copied()), 1),
            Spread::text(Spread::of(ratios), 3),
            super::stats::utilisation(Spread::of(f.util.iter().copied()).map(|s| s.median)),
            Spread::text(base, 1),
            each(&f.h1, HELD),
            each(&f.h1, ANSWERED),
            each(&f.h1, CLOSED),
            each(&f.h1, HELD_AGAIN),
            each(&f.h2, HELD),
            each(&f.h2, ANSWERED),
            each(&f.h2, CLOSED),
            Spread::text(Spread::of(f.burst_ms.iter().copied()), 1),
        ]);
    }
    report.tables.push(table);
    report.notes.extend(options.notes.iter().cloned());
    report
        .notes
        .push("CPU per request is only comparable where util is not marked `low`".to_owned());
    let raw: Vec<Value> = options
        .variants
        .iter()
        .zip(figures)
        .map(|(variant, f)| {
            let steps = |all: &[Vec<Step>]| all.iter().map(|s| super::held_memory::json(s)).collect::<Vec<_>>();
            json!({"allocator": variant.name, "cpu_us": f.cpu_us, "util": f.util, "h1": steps(&f.h1), "h2": steps(&f.h2), "burst_ms": f.burst_ms})
        })
        .collect();
    report.rounds = json!(raw);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_run_of_wrk_counts() {
        let good = "Running 2s test\n  64466 requests in 2.00s, 12.42MB read\nRequests/sec:  32160.81\n";
        assert_eq!(requests(good), Some(64_466));
        assert_eq!(requests(&format!("{good}  Non-2xx or 3xx responses: 3\n")), None);
        assert_eq!(requests(&format!("{good}  Socket errors: connect 1\n")), None);
        assert_eq!(requests("0 requests in 2.00s\n"), None);
    }

    #[test]
    fn a_variant_is_a_name_and_a_binary_that_exists() {
        assert!(
            "system=/bin/sh"
                .parse::<Variant>()
                .is_ok_and(|v| v.name == "system")
        );
        assert!("system".parse::<Variant>().is_err());
        assert!("system=/no/such/binary".parse::<Variant>().is_err());
    }
}
