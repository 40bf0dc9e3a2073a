//! The benchmark `admissions`: the operations of `cargo bench -- admit/`, as rates per second and core.

use std::time::{Duration, Instant};

use serde_json::json;

use super::report::{Report, Table};
use super::stats::{Samples, Spread, number};
use super::{Common, Failure};
use crate::{measured, operations};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Samples of each operation in a round.
    #[arg(long, default_value_t = 50)]
    samples: usize,
}

/// Long enough for the clock's resolution, short enough that most samples are not disturbed by other processes.
const SAMPLE: Duration = Duration::from_millis(2);

/// The time of each operation, in nanoseconds.
fn sampled(rounds: usize, in_a_round: usize) -> Vec<(String, Samples)> {
    let mut all: Vec<_> = operations()
        .into_iter()
        .filter(|o| o.name.starts_with("admit/"))
        .map(|o| ((o.set_up)(), o.name, Samples::default(), 0))
        .collect();
    for (operation, _, _, times) in &mut all {
        let start = Instant::now();
        let mut done = 0;
        while start.elapsed() < 20 * SAMPLE {
            measured(operation, 1000);
            done += 1000;
        }
        *times = (f64::from(done) * SAMPLE.as_secs_f64() / start.elapsed().as_secs_f64()).max(100.0) as u64;
    }
    for _ in 0..rounds {
        for (operation, _, samples, times) in &mut all {
            let one = |_| measured(operation, *times).as_nanos() as f64 / *times as f64;
            samples.add_round((0..in_a_round).map(one).collect());
        }
    }
    all.into_iter()
        .map(|(_, name, samples, _)| (name, samples))
        .collect()
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let (rounds, samples) = (options.rounds, options.samples);
    // The operations have runtimes of their own, which must not be dropped inside of another runtime.
    let all = tokio::task::spawn_blocking(move || sampled(rounds, samples))
        .await
        .map_err(|e| Failure::Unexpected(e.to_string()))?;
    let mut report = Report {
        parameters: json!({"rounds": options.rounds, "samples": options.samples, "sample_ms": SAMPLE.as_millis() as u64}),
        ..Report::default()
    };
    let mut table = Table::new(
        "One admission and its release on one core; `clock` is the two readings of the clock that the others include.",
        &[
            "operation",
            "ns, fastest",
            "ns, median [of rounds]",
            "ns, p99",
            "per second and core",
        ],
    );
    for (name, samples) in &all {
        let median = samples.percentile(50.0);
        table.row([
            format!("`{name}`"),
            number(samples.percentile(0.0), 1),
            Spread::text(samples.spread(50.0), 1),
            number(samples.percentile(99.0), 1),
            number(median.map(|ns| 1e9 / ns), 0),
        ]);
        if matches!(
            name.as_str(),
            "admit/unlimited/10" | "admit/containerConcurrency/10"
        ) {
            report.budget(&format!("{name}, clock included"), median, 100.0, "ns");
        }
    }
    report.tables.push(table);
    report.rounds = all
        .iter()
        .map(|(name, samples)| json!({"operation": name, "ns": samples.raw()}))
        .collect();
    Ok(report)
}
