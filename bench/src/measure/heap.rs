//! The benchmark `heap`, heap profiles by valgrind's dhat: the blocks alive at the heap's peak, by their allocation
//! site, with some requests held, and the growth with twice as many, which excludes memory without requests. In the
//! same way, the allocations of a warm request from its first byte to its last. Counts, not times, so that load does
//! not disturb them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::child::{Child, free_addresses, program};
use super::client::{self, H2};
use super::gateway::write;
use super::held_memory::Wire;
use super::report::{Report, Table};
use super::{Common, Failure, Run};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Requests held, and sent one after the other; then twice as many.
    #[arg(long, default_value_t = 300)]
    held: usize,
    /// Streams on one HTTP/2 connection.
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// The number of listed allocation sites.
    #[arg(long, default_value_t = 25)]
    places: usize,
}

/// Options of `warm`, which `bench/guard` runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Warm {
    /// The gateway's binary.
    #[arg(long)]
    sluice: PathBuf,
    /// Sequential requests; then twice as many.
    #[arg(long, default_value_t = 500)]
    requests: usize,
}

/// The growth of one allocation site.
#[derive(Debug, Clone, PartialEq)]
struct Holding {
    place: String,
    bytes: i64,
    blocks: i64,
}

/// The time limit until a gateway under valgrind listens: five seconds of a CPU, which take long on a busy machine.
const VALGRIND: Duration = Duration::from_secs(300);

/// Frames that allocate on behalf of their callers.
const PLUMBING: [&str; 20] = [
    "malloc",
    "calloc",
    "realloc",
    "memalign",
    "alloc::",
    "<alloc::",
    "core::",
    "<core::",
    "std::",
    "<std::",
    "__rust",
    "__rdl",
    "hashbrown::",
    "<hashbrown::",
    "bytes::",
    "<bytes::",
    "(below main)",
    "posix_memalign",
    "tokio::runtime::task::core",
    "hashbrown",
];

/// The counted blocks: dhat's field names for their bytes and their number.
#[derive(Debug, Clone, Copy)]
struct Counted {
    bytes: &'static str,
    blocks: &'static str,
}

/// Blocks alive at the heap's peak.
const HIGHEST: Counted = Counted {
    bytes: "gb",
    blocks: "gbk",
};
/// All blocks that were ever allocated.
const EVER: Counted = Counted {
    bytes: "tb",
    blocks: "tbk",
};

/// Sums of bytes and blocks by allocation site.
fn by_place(dhat: &Value, counted: Counted) -> BTreeMap<String, (i64, i64)> {
    let frames = dhat["ftbl"].as_array().into_iter().flatten();
    let frames: Vec<&str> = frames.map(|f| f.as_str().unwrap_or("?")).collect();
    let mut places: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for point in dhat["pps"].as_array().into_iter().flatten() {
        let stack = point["fs"].as_array().into_iter().flatten();
        let names: Vec<&str> = stack
            .filter_map(|f| frames.get(usize::try_from(f.as_u64()?).ok()?).copied())
            .map(function)
            .collect();
        let place = names
            .iter()
            .find(|name| !PLUMBING.iter().any(|p| name.starts_with(p)))
            .or_else(|| names.last())
            .copied()
            .unwrap_or("?");
        let (bytes, blocks) = places.entry(place.to_owned()).or_default();
        *bytes += point[counted.bytes].as_i64().unwrap_or(0);
        *blocks += point[counted.blocks].as_i64().unwrap_or(0);
    }
    places
}

/// The growth of each allocation site from the first profile to the second, the largest first. Growth of less than 8
/// bytes for each of `requests` is left out.
fn growth(first: &Value, second: &Value, requests: usize, counted: Counted) -> Vec<Holding> {
    let before = by_place(first, counted);
    let mut grown: Vec<Holding> = by_place(second, counted)
        .into_iter()
        .map(|(place, (bytes, blocks))| {
            let (old_bytes, old_blocks) = before.get(&place).copied().unwrap_or_default();
            Holding {
                place,
                bytes: bytes - old_bytes,
                blocks: blocks - old_blocks,
            }
        })
        .filter(|h| h.bytes >= 8 * requests as i64)
        .collect();
    grown.sort_by_key(|h| std::cmp::Reverse(h.bytes));
    grown
}

/// The function name of a frame of the form `0x12AB: name (file:line)`.
fn function(frame: &str) -> &str {
    let name = frame.split_once(": ").map_or(frame, |(_, name)| name);
    // Generic names contain parentheses: only the last pair is the place in the source.
    name.rsplit_once(" (").map_or(name, |(name, _)| name)
}

/// A gateway under dhat.
struct Profiled {
    child: Child,
    plain: SocketAddr,
    admin: SocketAddr,
    out: PathBuf,
}

impl Profiled {
    /// Starts a gateway that sends `held.bench` to `backend`, with this number of concurrent requests.
    async fn start(run: &Run, name: &str, backend: SocketAddr, concurrency: u32) -> Result<Self, Failure> {
        let folder = run.inner(name)?;
        let [plain, admin] = free_addresses()?;
        let config = format!(
            "listeners: [{{address: {plain}}}]\nadmin: {{address: {admin}}}\naccessLog: {{format: off}}\n\
             drain: {{timeout: 0s}}\nlimits: {{headerTimeout: 300s, idleTimeout: 300s, maxConcurrentStreams: 1000}}\n\
             services:\n- name: held\n  hosts: [held.bench]\n  endpoints: [{backend}]\n  \
             containerConcurrency: {concurrency}\n  queue: {{timeout: 600s}}\n"
        );
        let file = write(&folder, "sluice.yaml", &config)?;
        let out = folder.join("dhat.json");
        let arguments = [
            "--tool=dhat".to_owned(),
            format!("--dhat-out-file={}", out.display()),
            run.sluice.display().to_string(),
            "run".to_owned(),
            file.display().to_string(),
        ];
        let mut child = Child::start(
            "sluice-in-valgrind",
            &program("valgrind")?,
            &arguments,
            None,
            &folder,
        )?;
        child.listens(plain, VALGRIND).await?;
        Ok(Self {
            child,
            plain,
            admin,
            out,
        })
    }

    /// Stops the gateway, which writes the profile at its end.
    fn finish(mut self) -> Result<Value, Failure> {
        self.child.stop();
        let text = std::fs::read_to_string(&self.out).map_err(|_| self.child.complaint("left no profile"))?;
        serde_json::from_str(&text).map_err(|e| Failure::Unexpected(format!("dhat's output: {e}")))
    }
}

/// The profile with this number of requests held.
async fn held_profile(run: &Run, wire: Wire, held: usize) -> Result<Value, Failure> {
    // One request is at a backend whose response takes longer than the run; the other requests wait for its slot.
    let (_backend, backend) = run.responder(900_000, None).await?;
    let gateway = Profiled::start(run, &format!("{}-{held}", wire.name()), backend, 1).await?;
    let host = "held.bench";
    let (mut h1, mut h2, mut responses) = (Vec::new(), Vec::new(), Vec::new());
    match wire {
        Wire::H1 => {
            for _ in 0..held {
                let mut stream = client::connect(gateway.plain).await?;
                let sent = stream.write_all(client::head(host, "/").as_bytes()).await;
                sent.map_err(|e| Failure::io("sending a request", e))?;
                h1.push(stream);
            }
        }
        Wire::H2 { streams } => {
            for nth in 0..held {
                if nth % streams == 0 {
                    h2.push(H2::connect(gateway.plain).await?);
                }
                responses.push(h2[nth / streams].get(host).await?);
            }
        }
    }
    let end = Instant::now() + client::LONG;
    loop {
        let body = client::get(gateway.admin, "localhost", "/api/revisions").await?;
        let read: Value = serde_json::from_str(&body).map_err(|e| Failure::Unexpected(e.to_string()))?;
        if read["revisions"][0]["queued"] == json!(held - 1) {
            break;
        }
        if Instant::now() > end {
            return Err(gateway.child.complaint("does not hold them all"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gateway.finish()
}

/// The profile after this number of sequential requests on one connection.
async fn warm_profile(run: &Run, wire: Wire, requests: usize) -> Result<Value, Failure> {
    let (_backend, backend) = run.responder(0, None).await?;
    let gateway = Profiled::start(run, &format!("warm-{}-{requests}", wire.name()), backend, 10).await?;
    let host = "held.bench";
    match wire {
        Wire::H1 => {
            let mut stream = client::connect(gateway.plain).await?;
            let head = client::head(host, "/");
            for _ in 0..requests {
                client::exchange(&mut stream, &head).await?;
            }
        }
        Wire::H2 { .. } => {
            let connection = H2::connect(gateway.plain).await?;
            for _ in 0..requests {
                client::h2_response(connection.get(host).await?).await?;
            }
        }
    }
    gateway.finish()
}

fn table(title: String, found: &[Holding], requests: usize, places: usize) -> Table {
    let mut table = Table::new(title, &["allocated in", "bytes", "blocks"]);
    let per = |n: i64| n as f64 / requests as f64;
    for holding in found.iter().take(places) {
        table.row([
            format!("`{}`", holding.place),
            format!("{:.0}", per(holding.bytes)),
            format!("{:.2}", per(holding.blocks)),
        ]);
    }
    table.row([
        "all such places".to_owned(),
        format!("{:.0}", per(found.iter().map(|h| h.bytes).sum())),
        format!("{:.2}", per(found.iter().map(|h| h.blocks).sum())),
    ]);
    table
}

fn json(found: &[Holding]) -> Value {
    let each = found
        .iter()
        .map(|h| json!({"place": h.place, "bytes": h.bytes, "blocks": h.blocks}));
    each.collect()
}

/// Prints the blocks and bytes that a warm request allocates, by protocol, as one line of JSON. Counts of the real
/// gateway, with a permit of `containerConcurrency` and metrics: load does not disturb them.
pub(crate) async fn warm(options: Warm) -> Result<(), Failure> {
    let run = Run::new(&Common::of(options.sluice), true)?;
    program("valgrind")?;
    let mut found = serde_json::Map::new();
    for wire in [Wire::H1, Wire::H2 { streams: 1 }] {
        let once = warm_profile(&run, wire, options.requests).await?;
        let twice = warm_profile(&run, wire, 2 * options.requests).await?;
        // Sites with less than one allocation for every other request belong to periodic tasks of the gateway, not to
        // requests: such tasks run more often, the slower the machine is.
        let mut places = growth(&once, &twice, options.requests, EVER);
        places.retain(|place| 2 * place.blocks >= options.requests as i64);
        let per =
            |what: fn(&Holding) -> i64| places.iter().map(what).sum::<i64>() as f64 / options.requests as f64;
        let value = json!({"bytes": per(|p| p.bytes), "blocks": per(|p| p.blocks), "places": json(&places)});
        found.insert(wire.name().to_owned(), value);
    }
    println!("{}", Value::Object(found));
    Ok(())
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, true)?;
    program("valgrind")?;
    let mut report = Report {
        parameters: json!({"held": [options.held, 2 * options.held], "streams_per_h2_connection": options.streams, "warm": [options.held, 2 * options.held]}),
        ..Report::default()
    };
    let mut raw = serde_json::Map::new();
    for wire in [
        Wire::H1,
        Wire::H2 {
            streams: options.streams,
        },
    ] {
        let name = wire.name();
        let once = held_profile(&run, wire, options.held).await?;
        let twice = held_profile(&run, wire, 2 * options.held).await?;
        let held = growth(&once, &twice, options.held, HIGHEST);
        let title = format!(
            "{name}: heap per held request, by the place that allocated; without the allocator's overhead"
        );
        report
            .tables
            .push(table(title, &held, options.held, options.places));
        let once = warm_profile(&run, wire, options.held).await?;
        let twice = warm_profile(&run, wire, 2 * options.held).await?;
        let warm = growth(&once, &twice, options.held, EVER);
        let title =
            format!("{name}: allocated per warm request on a kept connection, by the place that allocated");
        report
            .tables
            .push(table(title, &warm, options.held, options.places));
        raw.insert(name.to_owned(), json!({"held": json(&held), "warm": json(&warm)}));
    }
    report.rounds = Value::Object(raw);
    report
        .notes
        .push("places whose code was inlined appear under their caller".to_owned());
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_counted_where_it_was_asked_for() {
        let profile = |session: i64, other: i64| {
            json!({
                "ftbl": ["[root]", "0x1: malloc (in /vg.so)", "0x2: alloc::raw_vec::grow (raw_vec.rs:1)",
                         "0x3: pingora::Session::new (session.rs:9)", "0x4: <a::B as core::C<(u8, u8)>>::d (a.rs:1)"],
                "pps": [
                    {"gb": session, "gbk": 10, "tb": 0, "fs": [1, 2, 3]},
                    {"gb": 100, "gbk": 10, "fs": [1, 3]},
                    {"gb": other, "gbk": 21, "fs": [1, 4]},
                    {"gb": 90_000, "gbk": 2, "fs": [2]},
                ],
            })
        };
        let found = growth(&profile(3000, 50), &profile(6000, 9050), 10, HIGHEST);
        let expected = [
            ("<a::B as core::C<(u8, u8)>>::d", 9000),
            ("pingora::Session::new", 3000),
        ];
        let found: Vec<(&str, i64)> = found.iter().map(|h| (h.place.as_str(), h.bytes)).collect();
        assert_eq!(found, expected);
        assert_eq!(growth(&profile(3000, 50), &profile(3100, 50), 13, HIGHEST), []);
    }
}
