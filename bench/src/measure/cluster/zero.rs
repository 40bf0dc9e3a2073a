//! A Knative Service at zero, with all of Knative Serving at work: one request, and a hundred at once, through the gateway
//! and through the stub ingress and the activator, and what the time is made of.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::Path;
use super::api::{Api, until};
use super::place::{Replica, has_condition};
use crate::measure::machine::{busy_time, cpus, now_ns};
use crate::measure::report::{Report, Table};
use crate::measure::stats::{Samples, Spread, percentile, sorted};
use crate::measure::{Common, Failure, client};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Rounds; in each, every Service is asked once.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Requests at once in the second case.
    #[arg(long, default_value_t = 100)]
    burst: usize,
    /// `containerConcurrency` in the second case.
    #[arg(long, default_value_t = 20)]
    concurrency: u32,
    /// Milliseconds that the program works on each request in the third case, else as the second.
    #[arg(long, default_value_t = 500)]
    work: u64,
}

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";
const PODS: &str = "/api/v1/namespaces/default/pods?";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments?";
const LABEL: &str = "serving.knative.dev/service";

/// What happens between a request and its answer, in order.
const STAGES: [&str; 9] = [
    "Deployment scaled",
    "Pod created",
    "Pod has an address",
    "program started",
    "program listens",
    "queue-proxy listens",
    "first request at the program",
    "first answer",
    "Pod Ready",
];

/// A Service and the number of requests that it gets at once.
#[derive(Debug)]
struct Case {
    path: Path,
    requests: usize,
    /// Milliseconds that the program works on a request.
    work: u64,
    name: String,
}

impl Case {
    fn new(path: Path, requests: usize, work: u64) -> Self {
        let name = format!("zero-{requests}-{work}-{}", path.word());
        Self {
            path,
            requests,
            work,
            name,
        }
    }

    fn title(&self) -> String {
        match self.work {
            0 => self.requests.to_string(),
            work => format!("{} of {work} ms", self.requests),
        }
    }

    fn host(&self) -> String {
        format!("{}.default.example.com", self.name)
    }

    fn service(&self, concurrency: u32) -> Value {
        json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": self.name, "annotations": {"networking.knative.dev/ingress-class": self.path.class()}},
            "spec": {"template": {
                "metadata": {"annotations": {"autoscaling.knative.dev/window": "6s"}},
                "spec": {
                    "containerConcurrency": concurrency,
                    "containers": [{"image": "dev.local/measure", "args": ["pod", format!("--work-ms={}", self.work)]}],
                },
            }},
        })
    }
}

/// One answer: the latency in milliseconds, and the times of the program that gave it, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Answer {
    ms: f64,
    at: i64,
    started: i64,
    listened: i64,
    received: i64,
}

/// One start from zero.
#[derive(Debug, Default, Clone)]
struct Start {
    latencies: Vec<f64>,
    pods: usize,
    /// Milliseconds from the request to each of [`STAGES`], of the Pod that is first at each.
    stages: [Option<f64>; STAGES.len()],
}

async fn one(address: SocketAddr, head: String) -> Result<Answer, Failure> {
    let mut stream = client::connect(address).await?;
    let sent = now_ns();
    let written = stream.write_all(head.as_bytes()).await;
    written.map_err(|e| Failure::io("sending a request", e))?;
    let (status, bytes) = tokio::time::timeout(client::LONG, client::whole_response(&mut stream))
        .await
        .map_err(|_| Failure::Unexpected("a held request got no answer".to_owned()))??;
    let at = now_ns();
    let text = String::from_utf8_lossy(&bytes);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let times: Vec<i64> = body.split_whitespace().filter_map(|t| t.parse().ok()).collect();
    let ([started, listened, received], 200) = (times.as_slice(), status) else {
        return Err(Failure::Unexpected(format!("a request at zero got '{text}'")));
    };
    Ok(Answer {
        ms: (at - sent) as f64 / 1e6,
        at,
        started: *started,
        listened: *listened,
        received: *received,
    })
}

/// Objects with the times at which they were seen.
type Seen = Vec<(i64, Value)>;

fn drain(watch: &mut UnboundedReceiver<(i64, Value)>, into: &mut Seen) {
    while let Ok(seen) = watch.try_recv() {
        into.push(seen);
    }
}

/// The time at which queue-proxy listens in the first Pod that a watch shows to have an address.
async fn queue_listens(api: Api, name: String) -> Option<i64> {
    let mut pods = api
        .watch(&format!("{PODS}labelSelector={LABEL}%3D{name}"))
        .await
        .ok()?;
    let pod = loop {
        let (_, pod) = pods.recv().await?;
        if let Some(replica) = Replica::of(&pod) {
            break replica.at(8012);
        }
    };
    // A refused connection costs the Pod nothing.
    while TcpStream::connect(pod).await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Some(now_ns())
}

/// Waits until the machine has had little to do for a third of a second, ten seconds at most.
async fn calm() {
    for _ in 0..30 {
        let (begun, before) = (Instant::now(), busy_time());
        tokio::time::sleep(Duration::from_millis(330)).await;
        let busy = busy_time().saturating_sub(before);
        if busy < begun.elapsed().mul_f64(0.15 * cpus() as f64) {
            return;
        }
    }
}

async fn start(
    api: &Api,
    case: &Case,
    watches: &mut [UnboundedReceiver<(i64, Value)>; 2],
) -> Result<Start, Failure> {
    let selector = format!("labelSelector={LABEL}%3D{}", case.name);
    until(&format!("{} is at zero", case.name), || async {
        let pods = api.get(&format!("{PODS}{selector}")).await?;
        let is_empty = pods["items"].as_array().is_some_and(Vec::is_empty);
        // A poll as tight as the others would keep two cores busy.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(is_empty.then_some(()))
    })
    .await?;
    let address = case.path.address(api).await?;
    let (mut deployments, mut pods) = (Seen::new(), Seen::new());
    let [of_deployments, of_pods] = watches;
    drain(of_deployments, &mut deployments);
    drain(of_pods, &mut pods);
    deployments.clear();
    pods.clear();

    let head = client::head(&case.host(), "/");
    let listens = tokio::spawn(queue_listens(api.clone(), case.name.clone()));
    // Other Services' Pods end seconds after their start, always at the same time of a round.
    calm().await;
    let begun = now_ns();
    let mut requests = JoinSet::new();
    for _ in 0..case.requests {
        requests.spawn(one(address, head.clone()));
    }
    let mut answers = Vec::new();
    while let Some(answer) = requests.join_next().await {
        answers.push(answer.map_err(|e| Failure::Unexpected(e.to_string()))??);
    }
    // Readiness as the cluster sees it comes after the first answer.
    tokio::time::sleep(Duration::from_millis(700)).await;
    drain(of_deployments, &mut deployments);
    drain(of_pods, &mut pods);
    let own = |object: &&(i64, Value)| object.1["metadata"]["labels"][LABEL] == case.name;
    let first = |seen: &Seen, is: &dyn Fn(&Value) -> bool| {
        seen.iter()
            .filter(own)
            .find(|(_, object)| is(object))
            .map(|(at, _)| *at)
    };
    let least = |time: fn(&Answer) -> i64| answers.iter().map(time).min();
    let stages = [
        first(&deployments, &|d| d["spec"]["replicas"].as_u64() > Some(0)),
        first(&pods, &|_| true),
        first(&pods, &|p| p["status"]["podIP"].is_string()),
        least(|a| a.started),
        least(|a| a.listened),
        listens.await.ok().flatten(),
        least(|a| a.received),
        least(|a| a.at),
        first(&pods, &|p| has_condition(p, "Ready")),
    ];
    let mut started: Vec<i64> = answers.iter().map(|a| a.started).collect();
    started.sort_unstable();
    started.dedup();
    Ok(Start {
        latencies: sorted(answers.iter().map(|a| a.ms).collect()),
        pods: started.len(),
        stages: stages.map(|at| at.map(|at| (at - begun) as f64 / 1e6)),
    })
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let begun = Instant::now();
    let api = Api::new().await?;
    let cases: Vec<Case> = [(1, 0), (options.burst, 0), (options.burst, options.work)]
        .into_iter()
        .flat_map(|(requests, work)| Path::ALL.map(|path| Case::new(path, requests, work)))
        .collect();
    for case in &cases {
        let concurrency = if case.requests > 1 { options.concurrency } else { 0 };
        api.send("POST", SERVICES, &case.service(concurrency)).await?;
    }
    for case in &cases {
        let path = format!("{SERVICES}/{}", case.name);
        until(&format!("{} is Ready", case.name), || async {
            Ok(has_condition(&api.get(&path).await?, "Ready").then_some(()))
        })
        .await?;
    }
    let mut watches = [api.watch(DEPLOYMENTS).await?, api.watch(PODS).await?];
    let mut starts: Vec<Vec<Start>> = vec![Vec::new(); cases.len()];
    let mut rounds = 0;
    let limit = Duration::from_secs(options.common.limit).mul_f64(0.9);
    for round in 0..options.rounds {
        let started = Instant::now();
        for nth in 0..cases.len() {
            // Each round begins with the other path.
            let at = nth ^ (round % 2);
            starts[at].push(start(&api, &cases[at], &mut watches).await?);
        }
        rounds += 1;
        if begun.elapsed() + started.elapsed().mul_f64(1.3) > limit {
            break;
        }
    }
    Ok(report(&options, rounds, &cases, &starts))
}

fn report(options: &Options, rounds: usize, cases: &[Case], starts: &[Vec<Start>]) -> Report {
    let mut report = Report {
        parameters: json!({
            "rounds": rounds, "asked": options.rounds, "burst": options.burst,
            "containerConcurrency": [0, options.concurrency, options.concurrency], "work_ms": options.work, "window": "6s",
        }),
        ..Report::default()
    };
    let mut table = Table::new(
        "Requests at once to a Knative Service at zero, in milliseconds: the median of the rounds [their range].",
        &[
            "requests",
            "through",
            "rounds",
            "p50",
            "longest",
            "Pods that answered",
        ],
    );
    let mut medians = Vec::new();
    for (case, starts) in cases.iter().zip(starts) {
        let of = |percent: f64| Spread::of(starts.iter().filter_map(|s| percentile(&s.latencies, percent)));
        medians.push((case.title(), of(50.0), of(100.0)));
        table.row([
            case.title(),
            case.path.title().to_owned(),
            starts.len().to_string(),
            Spread::text(of(50.0), 0),
            Spread::text(of(100.0), 0),
            Spread::text(Spread::of(starts.iter().map(|s| s.pods as f64)), 0),
        ]);
    }
    report.tables.push(table);
    let mut columns = vec!["until"];
    let titles: Vec<String> = cases
        .iter()
        .map(|c| format!("{}, {}", c.title(), c.path.title()))
        .collect();
    columns.extend(titles.iter().map(String::as_str));
    let mut stages = Table::new(
        "What it is made of: milliseconds from the request until each of these was seen first, the median of the rounds [their range].",
        &columns,
    );
    for (nth, stage) in STAGES.iter().enumerate() {
        let cell =
            |starts: &Vec<Start>| Spread::text(Spread::of(starts.iter().filter_map(|s| s.stages[nth])), 0);
        stages.row([(*stage).to_owned()].into_iter().chain(starts.iter().map(cell)));
    }
    report.tables.push(stages);
    for pair in medians.chunks(2) {
        let [(title, gateway, longest), (_, activator, activator_longest)] = pair else {
            continue;
        };
        for (what, gateway, activator) in [
            ("p50", gateway, activator),
            ("longest", longest, activator_longest),
        ] {
            if let Some(activator) = activator {
                let what = format!("{title} at zero, {what}, half of the activator's,");
                report.budget(
                    &what,
                    gateway.map(|s| s.median),
                    (activator.median / 2.0).round(),
                    "ms",
                );
            }
        }
    }
    report.rounds = cases
        .iter()
        .zip(starts)
        .map(|(case, starts)| {
            let mut latencies = Samples::default();
            starts
                .iter()
                .for_each(|s| latencies.add_round(s.latencies.clone()));
            let stages: Vec<&[Option<f64>]> = starts.iter().map(|s| &s.stages[..]).collect();
            json!({"service": case.name, "ms": latencies.raw(), "stages": stages})
        })
        .collect();
    report
}
