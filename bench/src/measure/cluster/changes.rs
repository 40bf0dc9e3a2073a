//! One changed Ingress among many: the time until every replica serves it and until it is Ready, and what that costs the
//! API server; start and memory of a gateway that finds them all.
//!
//! Knative's controllers are away: this program writes, for each Knative Service, the objects that a gateway sees of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Path;
use super::api::{Api, until};
use super::backend::Backends;
use super::objects::{self, Set};
use super::place::{self, Replica, has_condition};
use crate::measure::machine::{Memory, now_ns};
use crate::measure::report::{Report, Table};
use crate::measure::stats::{Samples, Spread, number};
use crate::measure::{Common, Failure, client};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The numbers of Knative Services, in order.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,5000,10000")]
    services: Vec<usize>,
    /// Of these, those at which changes are measured.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    changed: Vec<usize>,
    /// Changes, one after the other.
    #[arg(long, default_value_t = 150)]
    changes: usize,
    /// Starts of the gateway at each number of Services.
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Replicas that serve the changes.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
}

const SYSTEM: &str = "sluice-system";

/// The pause between two requests of a poll.
const POLL: Duration = Duration::from_millis(1);

/// What was measured at one number of Services.
#[derive(Debug, Default)]
struct Level {
    services: usize,
    /// Milliseconds from the start of the process to ready, first while no status is written, then each time.
    first: f64,
    starts: Vec<f64>,
    /// Seconds from that first start until every Ingress is Ready.
    all_ready: f64,
    /// The resident memory after each start, in bytes.
    memory: Vec<f64>,
    changes: Option<Changes>,
}

/// In milliseconds.
#[derive(Debug, Default)]
struct Changes {
    /// From the API server's answer until each replica had served it.
    served: Vec<f64>,
    /// The same from the sending of the change.
    from_sent: Vec<f64>,
    /// From the API server's answer until the change of the status arrived at a watch.
    ready: Vec<f64>,
    /// Requests of all but this program by what they are, for each change.
    requests: Vec<(String, f64)>,
}

fn set(nth: usize) -> Set {
    Set::new(format!("service-{nth:05}"), Path::Gateway)
}

/// Scales the gateway; Pods that are too many end at once, without their drain.
async fn scale(api: &Api, replicas: usize) -> Result<(), Failure> {
    let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments/sluice");
    api.send("PATCH", &path, &json!({"spec": {"replicas": replicas}}))
        .await?;
    if replicas == 0 {
        kill(api).await?;
        // The next leader need not wait until the Lease of the one that was killed is over.
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/sluice-status");
        api.send("DELETE", &lease, &Value::Null).await?;
    }
    Ok(())
}

/// Ends all Pods of the gateway at once.
async fn kill(api: &Api) -> Result<(), Failure> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app%3Dsluice");
    let at_once = json!({"gracePeriodSeconds": 0});
    let processes = place::processes(&["sluice"]);
    api.send("DELETE", &path, &at_once).await?;
    until("the gateway has ended", || async {
        let left = place::processes(&["sluice"]);
        Ok(left.iter().all(|pid| !processes.contains(pid)).then_some(()))
    })
    .await
}

/// Waits until the one replica is ready; returns its process and the milliseconds since its start.
async fn started(api: &Api) -> Result<(u32, f64), Failure> {
    let address = until("the gateway has an address", || async {
        let pods = place::pods(api, SYSTEM, "sluice").await?;
        Ok(pods.iter().find_map(Replica::of).map(|replica| replica.at(9901)))
    })
    .await?;
    let end = Instant::now() + Duration::from_secs(120);
    while client::get(address, "health", "/readyz").await.is_err() {
        if Instant::now() > end {
            return Err(Failure::Unexpected(
                "the gateway is not ready within two minutes".to_owned(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ready = now_ns();
    let processes = place::processes(&["sluice"]);
    let [pid] = processes[..] else {
        return Err(Failure::Unexpected(format!(
            "one process was expected: {processes:?}"
        )));
    };
    let began = place::began(pid).ok_or_else(|| Failure::Unexpected("the gateway ended".to_owned()))?;
    Ok((pid, (ready - began) as f64 / 1e6))
}

/// How many Ingresses are Ready at their generation, in pages.
async fn ready(api: &Api) -> Result<usize, Failure> {
    let (mut count, mut next) = (0, String::new());
    loop {
        let list = api
            .get(&format!("{}?limit=500{next}", objects::path("ingresses")))
            .await?;
        let items = list["items"].as_array().into_iter().flatten();
        count += items.filter(|ingress| is_ready(ingress)).count();
        match list["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => next = format!("&continue={token}"),
            _ => return Ok(count),
        }
    }
}

fn is_ready(ingress: &Value) -> bool {
    ingress["metadata"]["generation"] == ingress["status"]["observedGeneration"]
        && has_condition(ingress, "Ready")
}

/// Waits until every Ingress is Ready.
async fn all_ready(api: &Api, services: usize) -> Result<(), Failure> {
    let end = Instant::now() + Duration::from_secs(300);
    while ready(api).await? < services {
        if Instant::now() > end {
            return Err(Failure::Unexpected(
                "not all Ingresses are Ready within five minutes".to_owned(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(500 + services as u64 / 5)).await;
    }
    Ok(())
}

/// Asks a replica until it answers with this version; returns the time.
async fn served(stream: &mut TcpStream, host: &str, version: &str) -> Result<i64, Failure> {
    let head = client::head(host, "/");
    let ask = async {
        loop {
            let sent = tokio::io::AsyncWriteExt::write_all(stream, head.as_bytes()).await;
            sent.map_err(|e| Failure::io("sending a request", e))?;
            let (status, bytes) = client::whole_response(stream).await?;
            if status != 200 {
                return Err(Failure::Unexpected(format!("{host} got {status}")));
            }
            if bytes.ends_with(format!("\r\n\r\n{version}").as_bytes()) {
                return Ok(now_ns());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let answer = tokio::time::timeout(client::LONG, ask).await;
    answer.unwrap_or_else(|_| Err(Failure::Unexpected(format!("{host} is not served as {version}"))))
}

/// The requests that the API server has answered so far, by what they are.
async fn requests(api: &Api) -> Result<BTreeMap<String, f64>, Failure> {
    let mut counts = BTreeMap::new();
    for line in api.text("/metrics").await?.lines() {
        let Some((labels, count)) = line
            .strip_prefix("apiserver_request_total{")
            .and_then(|l| l.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let rest = labels.split_once(&format!("{name}=\""))?.1;
            rest.split_once('"').map(|(value, _)| value)
        };
        let [verb, resource, subresource] =
            ["verb", "resource", "subresource"].map(|name| label(name).unwrap_or_default());
        let what = format!(
            "{verb} {resource}{}{subresource}",
            if subresource.is_empty() { "" } else { "/" }
        );
        *counts.entry(what).or_default() += count.parse::<f64>().unwrap_or(0.0);
    }
    Ok(counts)
}

/// Waits until a watch has shown the Ingress Ready at this generation; returns the time.
async fn shown(
    watch: &mut UnboundedReceiver<(i64, Value)>,
    name: &str,
    generation: &Value,
) -> Result<i64, Failure> {
    let seen = async {
        while let Some((at, ingress)) = watch.recv().await {
            if ingress["metadata"]["name"] == name
                && ingress["metadata"]["generation"] == *generation
                && is_ready(&ingress)
            {
                return Ok(at);
            }
        }
        Err(Failure::Unexpected("the watch has ended".to_owned()))
    };
    let seen = tokio::time::timeout(client::LONG, seen).await;
    seen.unwrap_or_else(|_| Err(Failure::Unexpected(format!("{name} is not Ready"))))
}

async fn change(api: &Api, services: usize, options: &Options) -> Result<Changes, Failure> {
    let replicas = until("all replicas are ready", || async {
        let replicas = place::replicas(api, SYSTEM, "sluice").await?;
        Ok((replicas.len() == options.replicas).then_some(replicas))
    })
    .await?;
    all_ready(api, services).await?;
    let mut streams = Vec::new();
    for replica in &replicas {
        streams.push(client::connect(replica.at(8080)).await?);
    }
    let mut watch = api.watch(&format!("{}?", objects::path("ingresses"))).await?;
    let mut changes = Changes::default();
    let pause = || tokio::time::sleep(Duration::from_millis(fastrand::u64(20..80)));
    // Leader and connections between the replicas are settled after some changes.
    let warm = 5;
    let (mut before, mut begun) = (BTreeMap::new(), Instant::now());
    for nth in 0..warm + options.changes {
        if nth == warm {
            (before, begun) = (requests(api).await?, Instant::now());
        }
        let (set, version) = (set(fastrand::usize(0..services)), format!("v{services}-{nth}"));
        let (host, path, patch) = (set.host(), set.ingress_path(), Set::version(&version));
        let sent = now_ns();
        let accept = async {
            let object = api.send("PATCH", &path, &patch).await?;
            Ok((now_ns(), object["metadata"]["generation"].clone()))
        };
        let serve = try_join_all(streams.iter_mut().map(|stream| served(stream, &host, &version)));
        let ((accepted, generation), times) = tokio::try_join!(accept, serve)?;
        let shown = shown(&mut watch, &set.name, &generation).await?;
        if nth >= warm {
            let last = times.into_iter().max().unwrap_or(accepted);
            let ms = |from: i64, to: i64| (to - from).max(0) as f64 / 1e6;
            changes.served.push(ms(accepted, last));
            changes.from_sent.push(ms(sent, last));
            changes.ready.push(ms(accepted, shown));
        }
        pause().await;
    }
    let took = begun.elapsed();
    let between = requests(api).await?;
    tokio::time::sleep(took).await;
    let after = requests(api).await?;
    for (what, count) in &between {
        let during = count - before.get(what).unwrap_or(&0.0);
        let idle = after.get(what).unwrap_or(count) - count;
        let each = (during - idle) / options.changes as f64;
        // This program's own: the changes, and the counts.
        if each.abs() >= 0.02 && what != "PATCH ingresses" && what.trim() != "GET" {
            changes.requests.push((what.clone(), each));
        }
    }
    Ok(changes)
}

async fn level(api: &Api, services: usize, options: &Options) -> Result<Level, Failure> {
    scale(api, 1).await?;
    let begun = Instant::now();
    let (_, first) = started(api).await?;
    all_ready(api, services).await?;
    let mut level = Level {
        services,
        first,
        all_ready: begun.elapsed().as_secs_f64(),
        ..Level::default()
    };
    for _ in 0..options.starts {
        kill(api).await?;
        let (pid, ms) = started(api).await?;
        level.starts.push(ms);
        tokio::time::sleep(Duration::from_secs(2)).await;
        level.memory.push(Memory::of(&[pid])?.rss as f64);
    }
    if options.changed.contains(&services) {
        scale(api, options.replicas).await?;
        level.changes = Some(change(api, services, options).await?);
    }
    scale(api, 0).await?;
    Ok(level)
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    place::own_addresses()?;
    let api = Api::new().await?;
    let backends = Backends::new()?;
    let pod = place::own_address(0);
    let _backend = backends.listen(pod)?;
    api.create(vec![objects::namespace()]).await?;
    let (mut levels, mut filled, mut notes) = (Vec::new(), 0, Vec::new());
    for &services in &options.services {
        let begun = Instant::now();
        let objects: Vec<_> = (filled..services).flat_map(|nth| set(nth).all(pod)).collect();
        let count = objects.len();
        api.create(objects).await?;
        notes.push(format!(
            "{count} objects were created in {:.0} s",
            begun.elapsed().as_secs_f64()
        ));
        filled = services;
        let measured = level(&api, services, &options).await?;
        eprintln!("{services}: {measured:?}");
        levels.push(measured);
    }
    let mut report = report(&options, &levels);
    report.notes.extend(notes);
    Ok(report)
}

fn report(options: &Options, levels: &[Level]) -> Report {
    let mut report = Report {
        parameters: json!({
            "services": options.services, "objects": "of each: Ingress, Revision, 3 Services, 2 EndpointSlices",
            "changes": options.changes, "starts": options.starts, "replicas": options.replicas, "poll_ms": "1 to 2",
        }),
        ..Report::default()
    };
    let mut starts = Table::new(
        "One replica that finds that many Knative Services: milliseconds from the start of its process until /readyz says so; resident \
         memory 2 s later. At the first start no status is written yet.",
        &[
            "Services",
            "ready, first start",
            "all Ingresses Ready, s",
            "ready, later starts",
            "memory, MiB",
        ],
    );
    for level in levels {
        starts.row([
            level.services.to_string(),
            number(Some(level.first), 0),
            number(Some(level.all_ready), 1),
            Spread::text(Spread::of(level.starts.iter().copied()), 0),
            Spread::text(Spread::of(level.memory.iter().map(|m| m / f64::from(1 << 20))), 1),
        ]);
    }
    report.tables.push(starts);
    let mut changes = Table::new(
        format!(
            "A change of one Ingress, in milliseconds, p50 / p99 / longest: from the API server's answer until all {} replicas had \
             served it, the same from the sending, and from the answer until the status was written and seen by a watch.",
            options.replicas
        ),
        &[
            "Ingresses",
            "changes",
            "served by all",
            "served, from sending",
            "Ready",
        ],
    );
    for (level, of) in levels
        .iter()
        .filter_map(|level| Some((level, level.changes.as_ref()?)))
    {
        let all = |values: &Vec<f64>| Samples::blocks(values, 3);
        let cell = |values: &Vec<f64>| {
            [50.0, 99.0, 100.0]
                .map(|p| number(all(values).percentile(p), 1))
                .join(" / ")
        };
        changes.row([
            level.services.to_string(),
            of.served.len().to_string(),
            cell(&of.served),
            cell(&of.from_sent),
            cell(&of.ready),
        ]);
        let limit = if level.services > 1000 { 100.0 } else { 50.0 };
        let served = all(&of.served).percentile(99.0);
        report.budget(
            &format!("served by all p99 with {} Ingresses", level.services),
            served,
            limit,
            "ms",
        );
        let ready = all(&of.ready).percentile(99.0);
        report.budget(
            &format!("Ready p99 with {} Ingresses", level.services),
            ready,
            200.0,
            "ms",
        );
        let requests: Vec<String> = of
            .requests
            .iter()
            .map(|(what, each)| format!("{what} {each:.2}"))
            .collect();
        report.notes.push(format!(
            "API requests for a change with {} Ingresses, beyond those without changes: {}",
            level.services,
            requests.join(", ")
        ));
    }
    report.tables.push(changes);
    if let Some(most) = levels.iter().find(|level| level.services == 10_000) {
        let slowest = most.starts.iter().copied().fold(most.first, f64::max);
        report.budget(
            "start to ready with 10000 Ingresses, the slowest",
            Some(slowest),
            5000.0,
            "ms",
        );
    }
    let median = |level: &Level| Some((level.services, Spread::of(level.memory.iter().copied())?.median));
    let memory: Vec<(usize, f64)> = levels
        .iter()
        .filter_map(median)
        .filter(|(services, _)| *services >= 1000)
        .collect();
    for pair in memory.windows(2) {
        let [(few, less), (many, more)] = pair else {
            continue;
        };
        let each = (more - less) / (many - few) as f64 / 1024.0;
        report.budget(
            &format!("memory for each Service, from {few} to {many},"),
            Some(each),
            16.0,
            "KiB",
        );
    }
    report.rounds = levels
        .iter()
        .map(|level| {
            let changes = level.changes.as_ref().map(|of| {
                let [served, sent, ready] = [&of.served, &of.from_sent, &of.ready].map(|v| Samples::blocks(v, 3).raw());
                json!({"served_ms": served, "from_sent_ms": sent, "ready_ms": ready, "requests": of.requests})
            });
            json!({
                "services": level.services, "first_ms": level.first, "starts_ms": level.starts, "all_ready_s": level.all_ready,
                "memory": level.memory, "changes": changes,
            })
        })
        .collect();
    report
}
