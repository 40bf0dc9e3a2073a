//! The benchmark `flood`: isolation, the latency of a quiet service beside an overloaded service of the same gateway.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::child::{Child, program};
use super::gateway::{Gateway, Place};
use super::instance;
use super::machine::cpu_time;
use super::report::{Report, Table};
use super::stats::{Samples, Spread, number};
use super::{Common, Failure, OTHER_CPU, PROXY_CPU, Run, client, two_cpus};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each variant in a round.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Requests a second to the quiet service.
    #[arg(long, default_value_t = 100)]
    quiet: u32,
    /// Requests a second to the flooded service, whose capacity is 200.
    #[arg(long, default_value_t = 4000)]
    flood: u32,
}

/// Options of a load generator in its own process.
#[derive(Debug, clap::Args)]
pub(crate) struct Offer {
    address: SocketAddr,
    host: String,
    rate: u32,
    seconds: u64,
    connections: usize,
}

/// Connections of the flood: enough for its full queue and for some refused requests.
const FLOOD_CONNECTIONS: usize = 400;
/// Connections of the quiet client, each with an equal part of the rate.
const QUIET_CONNECTIONS: u32 = 8;

const VARIANTS: [(&str, &str); 4] = [
    ("alone", "nothing else"),
    (
        "elsewhere",
        "the flood goes through another gateway on the same CPU: what the machine takes",
    ),
    ("full", "beside a service whose slots and queue are full"),
    (
        "cold",
        "beside a service that never becomes ready, its queue full",
    ),
];

/// An open-loop load generator: sends requests at a fixed rate whatever the responses are, and prints counts of them.
pub(crate) async fn offer(offer: Offer) -> Result<(), Failure> {
    let (free, mut idle) = mpsc::unbounded_channel();
    for _ in 0..offer.connections {
        let _ = free.send(client::connect(offer.address).await?);
    }
    let (saw, mut seen) = mpsc::unbounded_channel();
    let head = client::head(&offer.host, "/");
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let start = Instant::now();
    let end = Duration::from_secs(offer.seconds);
    let (mut sent, mut late) = (0_u64, 0_u64);
    while start.elapsed() < end {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * f64::from(offer.rate)) as u64;
        while sent + late < due {
            let Ok(mut stream) = idle.try_recv() else {
                late += 1;
                continue;
            };
            sent += 1;
            let (free, saw, head, to) = (free.clone(), saw.clone(), head.clone(), offer.address);
            tokio::spawn(async move {
                let status = client::exchange(&mut stream, &head).await.unwrap_or(0);
                let _ = saw.send(status);
                if status == 0 {
                    let Ok(again) = client::connect(to).await else {
                        return;
                    };
                    stream = again;
                }
                let _ = free.send(stream);
            });
        }
    }
    let mut statuses: BTreeMap<String, u64> = BTreeMap::new();
    while let Ok(status) = seen.try_recv() {
        *statuses.entry(status.to_string()).or_default() += 1;
    }
    println!(
        "{}",
        json!({"sent": sent, "no_connection_free": late, "statuses": statuses})
    );
    Ok(())
}

/// The start of a request's latency: the scheduled time if the previous response came later than that, else the time
/// of sending. A late wake-up of the client is not the gateway's latency; a client that could not send is.
fn counts_from(turn: Instant, previous: Option<Instant>, sent: Instant) -> Instant {
    match previous {
        Some(previous) if previous > turn => turn,
        _ => sent,
    }
}

/// Latencies of the requests on one connection, in milliseconds, at a fixed rate from `start` on.
fn quiet(to: SocketAddr, start: Instant, pace: Duration, requests: u32) -> Result<Vec<f64>, Failure> {
    let failed = |e| Failure::io("the quiet client", e);
    let mut stream = TcpStream::connect(to).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .map_err(failed)?;
    let head = client::head("quiet.bench", "/");
    let (mut latencies, mut previous) = (Vec::with_capacity(requests as usize), None);
    for nth in 0..requests {
        let turn = start + pace * nth;
        std::thread::sleep(turn.saturating_duration_since(Instant::now()));
        let from = counts_from(turn, previous, Instant::now());
        stream.write_all(head.as_bytes()).map_err(failed)?;
        let mut answer = Vec::new();
        let mut piece = [0; 1024];
        // The responder's body is the end of a response.
        while !answer.ends_with(b"xxxx") {
            match stream.read(&mut piece).map_err(failed)? {
                0 => break,
                n => answer.extend_from_slice(&piece[..n]),
            }
        }
        let now = Instant::now();
        if !answer.starts_with(b"HTTP/1.1 200") {
            let text = String::from_utf8_lossy(&answer).into_owned();
            return Err(Failure::Unexpected(format!(
                "the quiet service answered '{text}'"
            )));
        }
        latencies.push((now - from).as_secs_f64() * 1e3);
        previous = Some(now);
    }
    Ok(latencies)
}

async fn quiet_load(to: SocketAddr, rate: u32, seconds: u64) -> Result<Vec<f64>, Failure> {
    let pace = Duration::from_secs(1) * QUIET_CONNECTIONS / rate;
    let requests = rate * u32::try_from(seconds).unwrap_or(60) / QUIET_CONNECTIONS;
    let start = Instant::now() + Duration::from_millis(50);
    let clients: Vec<_> = (0..QUIET_CONNECTIONS)
        .map(|nth| {
            let start = start + pace * nth / QUIET_CONNECTIONS;
            tokio::task::spawn_blocking(move || quiet(to, start, pace, requests))
        })
        .collect();
    let mut all = Vec::new();
    for client in clients {
        let latencies = client.await.map_err(|e| Failure::Unexpected(e.to_string()))?;
        all.extend(latencies?);
    }
    Ok(all)
}

async fn gateway(run: &Run, name: &str, quiet: SocketAddr, full: SocketAddr) -> Result<Gateway, Failure> {
    let queue = "  queue: {depth: 100, timeout: 600s}\n";
    let never = instance::service("cold", None, 1, queue)?;
    let lines = format!(
        "services:\n- {{name: quiet, hosts: [quiet.bench], endpoints: [{quiet}]}}\n- name: full\n  hosts: [full.bench]\n  \
         endpoints: [{full}]\n  containerConcurrency: 10\n{queue}{never}"
    );
    let place = Place {
        folder: &run.inner(name)?,
        cpu: Some(PROXY_CPU),
    };
    Gateway::start(&run.sluice, "sluice", &lines, &place).await
}

/// A flooding process, with a lower scheduling priority than the measuring process.
fn flooder(
    options: &Options,
    to: SocketAddr,
    host: &str,
    folder: &Path,
    name: &str,
) -> Result<Child, Failure> {
    let me = std::env::current_exe().map_err(|e| Failure::io("this executable", e))?;
    let words = [
        "-n".to_owned(),
        "10".to_owned(),
        me.display().to_string(),
        "offer".to_owned(),
        to.to_string(),
        host.to_owned(),
        options.flood.to_string(),
        // The queue is full before the quiet client begins, and until the quiet client ends.
        (options.seconds + 2).to_string(),
        FLOOD_CONNECTIONS.to_string(),
    ];
    Child::start(name, &program("nice")?, &words, Some(OTHER_CPU), folder)
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, true)?;
    two_cpus()?;
    let (_quiet, quiet) = run.responder(0, Some(OTHER_CPU)).await?;
    let (_slow, slow) = run.responder(50, Some(OTHER_CPU)).await?;
    // Each variant has a gateway of its own, so that state of one variant does not affect the next.
    let mut gateways = Vec::new();
    for name in ["alone", "full", "cold"] {
        gateways.push(gateway(&run, name, quiet, slow).await?);
    }
    let [alone, full, cold] = gateways.as_mut_slice() else {
        return Err(Failure::Unexpected("three gateways were started".to_owned()));
    };
    let mut samples: [Samples; VARIANTS.len()] = Default::default();
    let mut floods: Vec<Value> = Vec::new();
    let mut rounds = 0;
    for round in 0..options.rounds {
        let start = Instant::now();
        for nth in 0..VARIANTS.len() {
            let variant = (nth + round) % VARIANTS.len();
            let (name, _) = VARIANTS[variant];
            let (asked, flooded) = match name {
                "alone" => (&*alone, None),
                "elsewhere" => (&*alone, Some((&*full, "full.bench"))),
                "full" => (&*full, Some((&*full, "full.bench"))),
                _ => (&*cold, Some((&*cold, "cold.bench"))),
            };
            let label = format!("flood-{name}-{round}");
            let mut flood = match flooded {
                Some((gateway, host)) => Some(flooder(&options, gateway.plain, host, run.folder(), &label)?),
                None => None,
            };
            if flood.is_some() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let pids = asked.pids();
            let (before, began) = (cpu_time(&pids), Instant::now());
            samples[variant].add_round(quiet_load(asked.plain, options.quiet, options.seconds).await?);
            let busy = (cpu_time(&pids) - before).as_secs_f64() / began.elapsed().as_secs_f64();
            if let Some(flood) = &mut flood {
                flood.ended(Duration::from_secs(10)).await?;
                let text = std::fs::read_to_string(run.folder().join(format!("{label}.log")));
                let said: Value = serde_json::from_str(&text.unwrap_or_default())
                    .map_err(|e| Failure::Unexpected(format!("the flood said nothing to use: {e}")))?;
                check(name, &said)?;
                floods.push(json!({"variant": name, "round": round, "flood": said, "gateway_cpu": busy}));
            } else {
                floods.push(json!({"variant": name, "round": round, "gateway_cpu": busy}));
            }
        }
        rounds += 1;
        if !run.another(start.elapsed()) {
            break;
        }
    }
    Ok(report(&options, rounds, &samples, floods))
}

/// # Errors
/// When nothing was flooded: then nothing was measured either.
fn check(variant: &str, said: &Value) -> Result<(), Failure> {
    let refused = said["statuses"]["503"].as_u64().unwrap_or(0);
    let sent = said["sent"].as_u64().unwrap_or(0);
    if refused * 2 < sent || sent == 0 {
        return Err(Failure::Unexpected(format!(
            "the flood of '{variant}' was none: {said}"
        )));
    }
    Ok(())
}

fn report(options: &Options, rounds: usize, samples: &[Samples], floods: Vec<Value>) -> Report {
    let mut report = Report {
        parameters: json!({"rounds": rounds, "seconds": options.seconds, "quiet_rps": options.quiet, "flood_rps": options.flood, "flood_capacity_rps": 200, "queue_depth": 100}),
        ..Report::default()
    };
    let mut table = Table::new(
        "Milliseconds of the quiet service's requests, over all rounds [of each round]. The flood: what it really sent and \
         how many of those were refused; the CPU: of the gateway that the quiet service is asked through, median of rounds.",
        &[
            "variant",
            "requests",
            "p50",
            "p99",
            "p99.9",
            "max",
            "flood, requests/s",
            "of which refused, %",
            "gateway's CPU",
            "what else happens",
        ],
    );
    for ((name, what), samples) in VARIANTS.iter().zip(samples) {
        let flooded = |what: &dyn Fn(&Value) -> Option<f64>| {
            Spread::of(floods.iter().filter(|f| f["variant"] == *name).filter_map(what))
        };
        let with_spread = |p: f64| {
            let spread = samples.spread(p);
            let spread = spread.map_or_else(String::new, |s: Spread| format!(" [{:.2}-{:.2}]", s.min, s.max));
            format!("{}{spread}", number(samples.percentile(p), 2))
        };
        table.row([
            (*name).to_owned(),
            samples.count().to_string(),
            with_spread(50.0),
            with_spread(99.0),
            number(samples.percentile(99.9), 2),
            number(samples.percentile(100.0), 2),
            Spread::text(
                flooded(&|f| Some(f["flood"]["sent"].as_f64()? / (options.seconds + 2) as f64)),
                0,
            ),
            Spread::text(
                flooded(&|f| {
                    Some(100.0 * f["flood"]["statuses"]["503"].as_f64()? / f["flood"]["sent"].as_f64()?)
                }),
                0,
            ),
            number(flooded(&|f| f["gateway_cpu"].as_f64()).map(|s| s.median), 2),
            (*what).to_owned(),
        ]);
    }
    report.tables.push(table);
    report
        .notes
        .push("isolation is `full` and `cold` against `elsewhere`, not against `alone`".to_owned());
    let raw: Vec<Value> = VARIANTS
        .iter()
        .zip(samples)
        .map(|((name, _), samples)| json!({"variant": name, "ms": samples.raw()}))
        .collect();
    report.rounds = json!({"latencies": raw, "floods": floods});
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_had_to_wait_for_the_one_before_counts_from_its_turn() {
        let turn = Instant::now();
        let ms = Duration::from_millis;
        let sent = turn + ms(3);
        assert_eq!(counts_from(turn, None, sent), sent);
        assert_eq!(counts_from(turn, Some(turn - ms(1)), sent), sent);
        assert_eq!(counts_from(turn, Some(turn + ms(2)), sent), turn);
    }

    #[test]
    fn a_flood_without_refusals_is_none() {
        assert!(check("full", &json!({"sent": 10, "statuses": {"503": 9}})).is_ok());
        assert!(check("full", &json!({"sent": 10, "statuses": {"200": 10}})).is_err());
        assert!(check("full", &json!({"sent": 0, "statuses": {}})).is_err());
    }
}
