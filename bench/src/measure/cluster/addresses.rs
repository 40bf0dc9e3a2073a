//! Hundreds of addresses of one revision appear one by one in its EndpointSlices, under load. One backend answers for all.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use super::Path;
use super::api::{Api, until};
use super::backend::Backends;
use super::objects::{self, Set, path};
use super::place::{self, has_condition};
use crate::measure::machine::cpu_time;
use crate::measure::report::{Report, Table};
use crate::measure::stats::{Spread, percentile, sorted};
use crate::measure::{Common, Failure, client};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Rounds: a calm time, then the addresses appear.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Addresses.
    #[arg(long, default_value_t = 500)]
    addresses: usize,
    /// Seconds in which they appear.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Connections of the load, each with a request every 20 ms.
    #[arg(long, default_value_t = 8)]
    connections: usize,
}

/// As the controller of EndpointSlices fills them.
const IN_A_SLICE: usize = 100;

/// The time of which each p99 is taken.
const WINDOW: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(20);

/// The load of one connection.
#[derive(Debug, Default)]
struct Load {
    /// The end of each request, and microseconds.
    latencies: Vec<(Instant, f64)>,
    failures: Vec<String>,
    /// The addresses that answered.
    answered: BTreeSet<String>,
}

async fn load(to: SocketAddr, host: String, stop: Arc<AtomicBool>) -> Result<Load, Failure> {
    let (mut load, mut stream, head) = (
        Load::default(),
        client::connect(to).await?,
        client::head(&host, "/"),
    );
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = async {
            let sent = stream.write_all(head.as_bytes()).await;
            sent.map_err(|e| Failure::io("sending a request", e))?;
            client::whole_response(&mut stream).await
        };
        match tokio::time::timeout(client::LONG, answer).await {
            Ok(Ok((200, bytes))) => {
                load.latencies
                    .push((Instant::now(), begun.elapsed().as_secs_f64() * 1e6));
                let text = String::from_utf8_lossy(&bytes);
                let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                if !load.answered.contains(body) {
                    load.answered.insert(body.to_owned());
                }
            }
            Ok(Ok((status, _))) => load.failures.push(status.to_string()),
            Ok(Err(e)) => {
                load.failures.push(e.to_string());
                stream = client::connect(to).await?;
            }
            Err(_) => return Err(Failure::Unexpected("a request got no answer".to_owned())),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(load)
}

fn slice_path(set: &Set, nth: usize) -> String {
    format!("{}/{}-{nth}", path("endpointslices"), set.private())
}

/// A ConfigMap that grows as a slice does, and that the gateway does not watch: what the API server and etcd cost on the
/// same cores.
fn control_path(set: &Set, nth: usize) -> String {
    format!("{}/{}-control-{nth}", path("configmaps"), set.revision())
}

async fn control(api: &Api, set: &Set, maps: usize) -> Result<(), Failure> {
    for nth in 0..maps {
        let name = format!("{}-control-{nth}", set.revision());
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {}});
        api.create(vec![(path("configmaps"), map)]).await?;
    }
    Ok(())
}

/// What is patched.
#[derive(Debug, Clone, Copy)]
enum Patched {
    Slices,
    Unwatched,
}

/// One change after the other, within the time.
async fn change(api: &Api, set: &Set, options: &Options, patched: Patched) -> Result<Phase, Failure> {
    let processes = place::processes(&["sluice"]);
    let step = Duration::from_secs(options.seconds) / (options.addresses as u32).max(1);
    let (begun, before) = (Instant::now(), cpu_time(&processes));
    for nth in 1..options.addresses {
        let due = begun + step * nth as u32;
        tokio::time::sleep_until(due.into()).await;
        let endpoint = objects::endpoint(&(place::own_address(nth), true));
        let (at, add) = match patched {
            // An empty list is none, which nothing can be appended to.
            Patched::Slices if nth % IN_A_SLICE == 0 => {
                let add = json!([{"op": "add", "path": "/endpoints", "value": [endpoint]}]);
                (slice_path(set, nth / IN_A_SLICE), add)
            }
            Patched::Slices => {
                let add = json!([{"op": "add", "path": "/endpoints/-", "value": endpoint}]);
                (slice_path(set, nth / IN_A_SLICE), add)
            }
            Patched::Unwatched => {
                let value = json!({format!("k{nth}"): endpoint.to_string()});
                let add = json!([{"op": "add", "path": "/data", "value": value}]);
                let more =
                    json!([{"op": "add", "path": format!("/data/k{nth}"), "value": endpoint.to_string()}]);
                let is_first = nth % IN_A_SLICE == 0 || nth == 1;
                (
                    control_path(set, nth / IN_A_SLICE),
                    if is_first { add } else { more },
                )
            }
        };
        api.send("PATCH", &at, &add).await?;
    }
    tokio::time::sleep_until((begun + Duration::from_secs(options.seconds)).into()).await;
    Ok(Phase {
        time: (begun, Instant::now()),
        cpu: cpu_time(&processes) - before,
    })
}

/// A time of the run, and the CPU time of all replicas in it.
#[derive(Debug, Clone, Copy)]
struct Phase {
    time: (Instant, Instant),
    cpu: Duration,
}

impl Phase {
    /// CPU milliseconds for each address, beyond those of another time.
    fn beyond(&self, other: &Self, addresses: usize) -> f64 {
        let length = |phase: &Self| phase.time.1.duration_since(phase.time.0).as_secs_f64();
        let idle = other.cpu.as_secs_f64() / length(other) * length(self);
        (self.cpu.as_secs_f64() - idle) * 1e3 / addresses as f64
    }
}

/// Leaves the first address alone.
async fn only_one(api: &Api, set: &Set, slices: usize) -> Result<(), Failure> {
    for nth in 0..slices {
        let first = [objects::endpoint(&(place::own_address(0), true))];
        let endpoints = if nth == 0 { &first[..] } else { &[] };
        api.send("PATCH", &slice_path(set, nth), &json!({"endpoints": endpoints}))
            .await?;
    }
    Ok(())
}

/// The p99 of each whole window of a time.
fn windows(latencies: &[(Instant, f64)], (from, to): (Instant, Instant)) -> Vec<f64> {
    let count = to.duration_since(from).as_millis() / WINDOW.as_millis();
    let of = |nth: u32| {
        let (from, to) = (from + WINDOW * nth, from + WINDOW * (nth + 1));
        let inside = latencies.iter().filter(|(at, _)| (from..to).contains(at));
        percentile(&sorted(inside.map(|(_, us)| *us).collect()), 99.0)
    };
    (0..count as u32).filter_map(of).collect()
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    place::own_addresses()?;
    let api = Api::new().await?;
    let backends = Backends::new()?;
    let _backend = backends.listen_everywhere(place::own_address(0).port())?;
    let set = Set::new("addresses".to_owned(), Path::Gateway);
    let slices = options.addresses.div_ceil(IN_A_SLICE);
    api.create(vec![objects::namespace()]).await?;
    api.create(vec![
        set.revision_object(),
        set.public_service(),
        set.private_service(),
    ])
    .await?;
    let mut created = vec![
        set.slice(&set.revision(), &[(place::own_address(0), true)], "Public"),
        set.ingress(),
    ];
    for nth in 0..slices {
        let (at, mut slice) = set.slice(&set.private(), &[], "Private");
        slice["metadata"]["name"] = format!("{}-{nth}", set.private()).into();
        created.push((at, slice));
    }
    api.create(created).await?;
    only_one(&api, &set, slices).await?;
    until("the Ingress is Ready", || async {
        Ok(has_condition(&api.get(&set.ingress_path()).await?, "Ready").then_some(()))
    })
    .await?;
    let to = Path::Gateway.address(&api).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut running = JoinSet::new();
    for _ in 0..options.connections {
        running.spawn(load(to, set.host(), Arc::clone(&stop)));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut calm, mut unwatched, mut appearing, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let processes = place::processes(&["sluice"]);
    for _ in 0..options.rounds {
        let (begun, before) = (Instant::now(), cpu_time(&processes));
        tokio::time::sleep(WINDOW * 3).await;
        let quiet = Phase {
            time: (begun, Instant::now()),
            cpu: cpu_time(&processes) - before,
        };
        control(&api, &set, slices).await?;
        unwatched.push(change(&api, &set, &options, Patched::Unwatched).await?.time);
        for nth in 0..slices {
            api.send("DELETE", &control_path(&set, nth), &json!({})).await?;
        }
        let busy = change(&api, &set, &options, Patched::Slices).await?;
        calm.push(quiet.time);
        appearing.push(busy.time);
        cpu.push(busy.beyond(&quiet, options.addresses));
        only_one(&api, &set, slices).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut latencies, mut failures, mut answered) = (Vec::new(), Vec::new(), BTreeSet::new());
    while let Some(done) = running.join_next().await {
        let done = done.map_err(|e| Failure::Unexpected(e.to_string()))??;
        latencies.extend(done.latencies);
        failures.extend(done.failures);
        answered.extend(done.answered);
    }
    let of = |times: &[(Instant, Instant)]| -> Vec<f64> {
        times.iter().flat_map(|&time| windows(&latencies, time)).collect()
    };
    let (calm, unwatched, appearing) = (of(&calm), of(&unwatched), of(&appearing));
    let (before, during) = (Spread::of(calm.clone()), Spread::of(appearing.clone()));
    let beside = Spread::of(unwatched.clone());
    let mut report = Report {
        parameters: json!({
            "rounds": options.rounds, "addresses": options.addresses, "seconds": options.seconds, "slices": slices,
            "connections": options.connections, "pause_ms": PAUSE.as_millis() as u64, "requests": latencies.len(),
        }),
        ..Report::default()
    };
    let mut table = Table::new(
        "A revision gets its addresses one by one, each by a change of an EndpointSlice, while it is asked all the time. p99 in \
         microseconds, of windows of 5 s: the median [the range].",
        &[
            "p99, one address",
            "p99, while ConfigMaps that nobody watches change as often",
            "p99, while they appear",
            "windows",
            "requests",
            "failed",
            "addresses that answered",
            "CPU for an address, ms",
        ],
    );
    table.row([
        Spread::text(before, 0),
        Spread::text(beside, 0),
        Spread::text(during, 0),
        format!("{}, {} and {}", calm.len(), unwatched.len(), appearing.len()),
        (latencies.len() + failures.len()).to_string(),
        failures.len().to_string(),
        format!("{} of {}", answered.len(), options.addresses),
        Spread::text(Spread::of(cpu), 1),
    ]);
    report.tables.push(table);
    if let Some(calm) = before {
        let limit = calm.median + (calm.max - calm.min);
        report.budget(
            "median p99 while they appear, the calm median and its spread together,",
            during.map(|d| d.median),
            limit,
            "µs",
        );
    }
    if let Some(beside) = beside {
        let limit = beside.median + (beside.max - beside.min);
        report.budget(
            "median p99 while they appear, the median and its spread together while ConfigMaps change as often,",
            during.map(|d| d.median),
            limit,
            "µs",
        );
    }
    for failure in failures.iter().take(5) {
        report.notes.push(format!("a failure: {failure}"));
    }
    report.rounds = Value::from(vec![
        json!({"calm_us": calm, "unwatched_us": unwatched, "appearing_us": appearing}),
    ]);
    Ok(report)
}
