//! From a Pod that listens to the requests that wait for it: with the gateway, and with the stub ingress and the activator.
//!
//! Knative's controllers are away: this program writes what they write when a Pod comes. A backend in this process stands
//! for the Pod with its queue-proxy: first it has an address and is not ready, then it listens, then the cluster calls it
//! ready.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::Path;
use super::api::{Api, until};
use super::backend::Backends;
use super::objects::{self, Set, path};
use super::place::{self, has_condition};
use crate::measure::report::{Report, Table};
use crate::measure::stats::{Samples, number};
use crate::measure::{Common, Failure, client};

/// The number of parts of a run whose percentiles are compared.
const BLOCKS: usize = 3;

/// From `listen()` to the cluster's word that the Pod is ready: a probe of the kubelet and a change of the endpoints, at
/// their fastest.
const UNTIL_READY: Duration = Duration::from_millis(150);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Starts at each level, on each path.
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// The levels: requests held at once.
    #[arg(long, value_delimiter = ',', default_value = "1,25,100,1000")]
    held: Vec<usize>,
}

/// A revision whose Pods this program writes.
struct Revision<'a> {
    api: &'a Api,
    set: Set,
    /// Where its requests go.
    to: SocketAddr,
}

impl<'a> Revision<'a> {
    async fn new(api: &'a Api, path: Path) -> Result<Self, Failure> {
        let set = Set::new(format!("release-{}", path.word()), path);
        api.create(vec![set.revision_object()]).await?;
        api.create(vec![set.public_service(), set.private_service()])
            .await?;
        let activator: Vec<(SocketAddr, bool)> = match path {
            // Its requests never take this way.
            Path::Gateway => Vec::new(),
            Path::Activator => {
                let replicas = place::replicas(api, "knative-serving", "activator").await?;
                replicas.iter().map(|r| (r.at(8012), true)).collect()
            }
        };
        let public = set.slice(&set.revision(), &activator, "Public");
        let private = set.slice(&set.private(), &[], "Private");
        api.create(vec![public, private, set.endpoints(&[]), set.ingress()])
            .await?;
        until("the Ingress is Ready", || async {
            Ok(has_condition(&api.get(&set.ingress_path()).await?, "Ready").then_some(()))
        })
        .await?;
        Ok(Self {
            api,
            to: path.address(api).await?,
            set,
        })
    }

    /// Writes the Pods of the revision, as the controllers of slices and of Endpoints do.
    async fn pods(&self, pods: &[(SocketAddr, bool)]) -> Result<(), Failure> {
        let private = self.set.private();
        let slice = format!("{}/{private}-abcde", path("endpointslices"));
        let endpoints = format!("{}/{private}", path("endpoints"));
        let of_slice: Vec<_> = pods.iter().map(objects::endpoint).collect();
        let (of_slice, subsets) = (
            json!({"endpoints": of_slice}),
            json!({"subsets": objects::subsets(pods)}),
        );
        let (slice, endpoints) = tokio::join!(
            self.api.send("PATCH", &slice, &of_slice),
            self.api.send("PATCH", &endpoints, &subsets),
        );
        slice.and(endpoints).map(|_| ())
    }

    /// One start with this many requests held: milliseconds from `listen()` to the first and to the last of them at the Pod.
    async fn start(&self, backends: &Backends, held: usize, pod: SocketAddr) -> Result<[f64; 2], Failure> {
        self.pods(&[]).await?;
        tokio::time::sleep(Duration::from_millis(120)).await;
        let head = client::head(&self.set.host(), "/");
        let mut connections = Vec::with_capacity(held);
        for _ in 0..held {
            connections.push(client::connect(self.to).await?);
        }
        for stream in &mut connections {
            let sent = stream.write_all(head.as_bytes()).await;
            sent.map_err(|e| Failure::io("sending a request", e))?;
        }
        // Until all are held: the activator does not tell how many it holds.
        tokio::time::sleep(Duration::from_millis(100) + Duration::from_micros(400) * held as u32).await;
        self.pods(&[(pod, false)]).await?;
        // A random pause, so that the phase of the probes is independent of this program's.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(40_000..290_000))).await;
        let mut backend = backends.listen(pod)?;
        let ready = async {
            tokio::time::sleep(UNTIL_READY).await;
            self.pods(&[(pod, true)]).await
        };
        let arrived = async {
            let mut times = Vec::with_capacity(held);
            while times.len() < held {
                match tokio::time::timeout(client::LONG, backend.received.recv()).await {
                    Ok(Some(time)) => times.push(time),
                    _ => {
                        return Err(Failure::Unexpected(format!(
                            "{} of {held} requests came",
                            times.len()
                        )));
                    }
                }
            }
            Ok(times)
        };
        let (ready, arrived) = tokio::join!(ready, arrived);
        ready?;
        let times = arrived?;
        for stream in &mut connections {
            let status = tokio::time::timeout(client::LONG, client::response(stream)).await;
            let status =
                status.map_err(|_| Failure::Unexpected("a held request got no answer".to_owned()))??;
            if status != 200 {
                return Err(Failure::Unexpected(format!("a held request got {status}")));
            }
        }
        let ms = |time: Option<&i64>| time.map_or(f64::NAN, |time| (time - backend.listened) as f64 / 1e6);
        Ok([ms(times.iter().min()), ms(times.iter().max())])
    }
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let begun = Instant::now();
    let limit = Duration::from_secs(options.common.limit).mul_f64(0.9);
    let most = options.held.iter().max().copied().unwrap_or(1);
    crate::measure::machine::raise_descriptors(4 * most as u64 + 500)?;
    place::own_addresses()?;
    let api = Api::new().await?;
    api.create(vec![objects::namespace()]).await?;
    let backends = Backends::new()?;
    let revisions = [
        Revision::new(&api, Path::Gateway).await?,
        Revision::new(&api, Path::Activator).await?,
    ];
    let mut seen: Vec<[Vec<[f64; 2]>; 2]> = vec![Default::default(); options.held.len()];
    let (mut rounds, mut pods) = (0, 0);
    for round in 0..options.rounds {
        let started = Instant::now();
        for nth in 0..options.held.len() {
            // The levels rotate, and each round begins with the other path.
            let level = (nth + round) % options.held.len();
            for path in Path::order(round) {
                pods += 1;
                let start =
                    revisions[path as usize].start(&backends, options.held[level], place::own_address(pods));
                seen[level][path as usize].push(start.await?);
            }
        }
        rounds += 1;
        if begun.elapsed() + started.elapsed().mul_f64(1.3) > limit {
            break;
        }
    }
    let mut report = Report {
        parameters: json!({
            "rounds": rounds, "asked": options.rounds, "held": options.held, "until_listening_ms": "40 to 290, random",
            "until_ready_ms": UNTIL_READY.as_millis() as u64,
        }),
        ..Report::default()
    };
    let mut table = Table::new(
        "Milliseconds from the Pod's listen() to the first and to the last of the held requests at the Pod: p50 / p99 [p99 of each third of \
         the run] / longest. The Pod has its address before it listens, and the cluster calls it ready 150 ms after.",
        &["held", "through", "starts", "first request", "last request"],
    );
    let mut raw = Vec::new();
    for (held, of) in options.held.iter().zip(&seen) {
        for path in Path::ALL {
            let [first, last] = [0, 1].map(|which| {
                let values: Vec<f64> = of[path as usize].iter().map(|start| start[which]).collect();
                Samples::blocks(&values, BLOCKS)
            });
            let cell = |samples: &Samples| {
                let [p50, p99, most] = [50.0, 99.0, 100.0].map(|p| number(samples.percentile(p), 1));
                let thirds = samples.spread(99.0);
                let thirds = thirds.map_or_else(String::new, |t| format!(" [{:.1}-{:.1}]", t.min, t.max));
                format!("{p50} / {p99}{thirds} / {most}")
            };
            let row = [
                held.to_string(),
                path.title().to_owned(),
                first.count().to_string(),
                cell(&first),
                cell(&last),
            ];
            table.row(row);
            raw.push(
                json!({"held": held, "through": path.word(), "first_ms": first.raw(), "last_ms": last.raw()}),
            );
        }
    }
    report.tables.push(table);
    report.rounds = raw.into();
    if rounds < 100 {
        report
            .notes
            .push(format!("p99 of {rounds} starts is the slowest of them"));
    }
    Ok(report)
}
