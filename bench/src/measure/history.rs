//! The benchmark `history`: what the dashboard's hour costs at 1,000 revisions with traffic, in time and memory.

use serde_json::json;
use sluice_gateway::observe::{MAX_SERIES, STEP, STEPS};

use super::machine::Memory;
use super::report::{Report, Table};
use super::stats::{Samples, Spread, number};
use super::{Common, Failure};
use crate::history::Sampled;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Rounds of 36 steps each, after an hour that fills the rings.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

const STEPS_OF_A_ROUND: usize = 36;

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let rounds = options.rounds;
    tokio::task::spawn_blocking(move || measure(rounds))
        .await
        .map_err(|e| Failure::Unexpected(e.to_string()))?
}

fn measure(rounds: usize) -> Result<Report, Failure> {
    let mut sampled = Sampled::new();
    let me = [std::process::id()];
    let before = Memory::of(&me)?.anonymous;
    for _ in 0..STEPS {
        sampled.sample();
    }
    let after = Memory::of(&me)?.anonymous;
    let (mut idle, mut busy) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        let mut took = |busy| {
            let one = |_| {
                if busy {
                    sampled.requests();
                }
                sampled.sample().as_secs_f64() * 1e3
            };
            (0..STEPS_OF_A_ROUND).map(one).collect()
        };
        idle.add_round(took(false));
        busy.add_round(took(true));
    }
    let mut report = Report {
        parameters: json!({"rounds": rounds, "steps": STEPS_OF_A_ROUND, "revisions": MAX_SERIES}),
        ..Report::default()
    };
    let mut table = Table::new(
        "One step of the history at 1,000 revisions, every 10 s on a thread that serves no request; `busy`: each had ten requests.",
        &[
            "step",
            "ms, fastest",
            "ms, median [of rounds]",
            "ms, p99",
            "% of a core, median",
        ],
    );
    for (name, samples) in [("idle", &idle), ("busy", &busy)] {
        let median = samples.percentile(50.0);
        table.row([
            name.to_owned(),
            number(samples.percentile(0.0), 2),
            Spread::text(samples.spread(50.0), 2),
            number(samples.percentile(99.0), 2),
            number(median.map(|ms| ms / 10.0 / STEP.as_secs_f64()), 3),
        ]);
    }
    report.tables.push(table);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let counted = mib(sampled.history.bytes() as u64);
    let mut memory = Table::new(
        "Memory of the hour. Resident: of this process, before the first step and after an hour of steps.",
        &["counted, MiB", "resident, MiB"],
    );
    let resident = mib(after.saturating_sub(before));
    memory.row([number(Some(counted), 2), number(Some(resident), 2)]);
    report.tables.push(memory);
    report.budget("memory of the hour, counted", Some(counted), 16.0, "MiB");
    report.rounds = json!({"idle_ms": idle.raw(), "busy_ms": busy.raw()});
    Ok(report)
}
