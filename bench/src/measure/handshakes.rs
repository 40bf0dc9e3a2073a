//! What a TLS handshake costs the proxy, full and resumed, nginx and HAProxy beside it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::HandshakeKind;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::machine::cpu_time;
use super::proxies::{Certificate, HOST, Kind, Place, Proxy};
use super::report::{Report, Table};
use super::stats::{BUSY, Spread, number, utilisation};
use super::{Common, Failure, OTHER_CPU, PROXY_CPU, Run, client, installed, two_cpus};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Milliseconds of each kind of handshake, at each proxy, in a round.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    #[arg(long, value_delimiter = ',', default_value = "sluice,nginx,haproxy")]
    proxies: Vec<Kind>,
    /// Handshakes at once.
    #[arg(long, default_value_t = 8)]
    clients: usize,
}

/// A kind of handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A connection to the plain listener and its end: what of a handshake's cost is no TLS.
    Tcp,
    Tls {
        version: &'static rustls::SupportedProtocolVersion,
        resumed: bool,
    },
}

const MODES: [(&str, Mode); 5] = [
    ("TCP only", Mode::Tcp),
    (
        "TLS 1.3 full",
        Mode::Tls {
            version: &rustls::version::TLS13,
            resumed: false,
        },
    ),
    (
        "TLS 1.3 resumed",
        Mode::Tls {
            version: &rustls::version::TLS13,
            resumed: true,
        },
    ),
    (
        "TLS 1.2 full",
        Mode::Tls {
            version: &rustls::version::TLS12,
            resumed: false,
        },
    ),
    (
        "TLS 1.2 resumed",
        Mode::Tls {
            version: &rustls::version::TLS12,
            resumed: true,
        },
    ),
];

/// Where one kind of handshake is made, and with what.
#[derive(Clone)]
struct Target {
    address: SocketAddr,
    mode: Mode,
    connector: TlsConnector,
}

impl Target {
    fn new(proxy: &Proxy, mode: Mode) -> Self {
        match mode {
            Mode::Tcp => Self {
                address: proxy.plain,
                mode,
                connector: client::tls(&rustls::version::TLS13, false),
            },
            Mode::Tls { version, resumed } => Self {
                address: proxy.tls,
                mode,
                connector: client::tls(version, resumed),
            },
        }
    }

    /// Makes one and takes leave, reading the tickets that come meanwhile.
    ///
    /// Gives whether it was of the kind that was wanted.
    async fn once(&self) -> Result<bool, Failure> {
        let mut stream = client::connect(self.address).await?;
        let Mode::Tls { resumed, .. } = self.mode else {
            return leave(&mut stream).await.map(|()| true);
        };
        let mut stream = client::handshake(&self.connector, HOST, stream).await?;
        leave(&mut stream).await?;
        let kind = stream.get_ref().1.handshake_kind();
        Ok((kind == Some(HandshakeKind::Resumed)) == resumed)
    }
}

/// Says goodbye and waits for the other side's end. A reset is one, too: a proxy may answer an early
/// goodbye with it, once the handshake is made and paid for.
async fn leave<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<(), Failure> {
    let _ = stream.shutdown().await;
    let mut rest = [0; 4096];
    let read = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    tokio::time::timeout(client::LONG, read)
        .await
        .map_err(|_| Failure::Unexpected("a proxy does not close after the client did".to_owned()))
}

/// What one proxy did in one round.
#[derive(Debug, Clone, Copy)]
struct Figures {
    handshakes: u64,
    /// Of which of another kind than wanted.
    others: u64,
    cpu_us: f64,
    util: f64,
}

async fn measure(proxy: &Proxy, mode: Mode, options: &Options) -> Result<Figures, Failure> {
    let targets: Vec<Target> = (0..options.clients).map(|_| Target::new(proxy, mode)).collect();
    // Each client gets its first tickets before anybody counts.
    for target in &targets {
        target.once().await?;
    }
    let pids = proxy.pids();
    let (before, start) = (cpu_time(&pids), Instant::now());
    let end = start + Duration::from_millis(options.millis);
    let clients: Vec<_> = targets
        .into_iter()
        .map(|target| {
            tokio::spawn(async move {
                let (mut made, mut others) = (0_u64, 0_u64);
                while Instant::now() < end {
                    others += u64::from(!target.once().await?);
                    made += 1;
                }
                Ok::<_, Failure>((made, others))
            })
        })
        .collect();
    let (mut handshakes, mut others) = (0, 0);
    for client in clients {
        let (made, other) = client.await.map_err(|e| Failure::Unexpected(e.to_string()))??;
        handshakes += made;
        others += other;
    }
    let cpu = cpu_time(&pids) - before;
    Ok(Figures {
        handshakes,
        others,
        cpu_us: cpu.as_secs_f64() * 1e6 / handshakes as f64,
        util: cpu.as_secs_f64() / start.elapsed().as_secs_f64(),
    })
}

/// Those that are compared, started on the proxies' CPU.
pub(crate) async fn start_all(
    run: &Run,
    kinds: &[Kind],
    backend: SocketAddr,
    folder: &Path,
) -> Result<Vec<(Kind, Proxy)>, Failure> {
    let certificate = Certificate::single(folder)?;
    let mut running = Vec::new();
    for &kind in kinds {
        let folder = folder.join(kind.to_string());
        std::fs::create_dir_all(&folder).map_err(|e| Failure::io("a directory", e))?;
        let place = Place {
            folder: &folder,
            cpu: Some(PROXY_CPU),
        };
        let proxy = Proxy::before(kind, &run.sluice, backend, &certificate, &place).await?;
        running.push((kind, proxy));
    }
    Ok(running)
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, true)?;
    installed(&options.proxies)?;
    two_cpus()?;
    let (_responder, backend) = run.responder(0, Some(OTHER_CPU)).await?;
    let proxies = start_all(&run, &options.proxies, backend, run.folder()).await?;
    let mut rounds: Vec<Vec<Vec<Figures>>> = Vec::new();
    for round in 0..options.rounds {
        let start = Instant::now();
        let mut modes = Vec::new();
        for (_, mode) in MODES {
            let mut each = vec![None; proxies.len()];
            for nth in 0..proxies.len() {
                // Another one first each time.
                let turn = (nth + round) % proxies.len();
                each[turn] = Some(measure(&proxies[turn].1, mode, &options).await?);
            }
            modes.push(each.into_iter().flatten().collect());
        }
        rounds.push(modes);
        if !run.another(start.elapsed()) {
            break;
        }
    }
    Ok(report(&options, &rounds))
}

fn report(options: &Options, rounds: &[Vec<Vec<Figures>>]) -> Report {
    let mut report = Report {
        parameters: json!({"rounds": rounds.len(), "millis": options.millis, "clients": options.clients, "certificate": "ECDSA P-256", "proxies": options.proxies.iter().map(ToString::to_string).collect::<Vec<_>>()}),
        ..Report::default()
    };
    let mut table = Table::new(
        "CPU of the proxy, user and system, per connection: connect, handshake, close; no request. Median [min-max] over \
         rounds; ratios within a round.",
        &[
            "handshake",
            "proxy",
            "µs",
            "per second and core, computed",
            "of nginx",
            "of HAProxy",
            "of the wanted kind",
            "util",
        ],
    );
    let position = |kind| options.proxies.iter().position(|k| *k == kind);
    for (m, (name, _)) in MODES.iter().enumerate() {
        for (p, kind) in options.proxies.iter().enumerate() {
            let over = |what: &dyn Fn(&Figures) -> f64| Spread::of(rounds.iter().map(|r| what(&r[m][p])));
            let against = |peer: Option<usize>| {
                let ratio = |q: usize| Spread::of(rounds.iter().map(|r| r[m][p].cpu_us / r[m][q].cpu_us));
                Spread::text(peer.and_then(ratio), 2)
            };
            let cpu = over(&|f| f.cpu_us);
            let made: u64 = rounds.iter().map(|r| r[m][p].handshakes).sum();
            let others: u64 = rounds.iter().map(|r| r[m][p].others).sum();
            let wanted = 1.0 - others as f64 / made as f64;
            table.row([
                (*name).to_owned(),
                kind.to_string(),
                Spread::text(cpu, 1),
                number(cpu.map(|s| 1e6 / s.median), 0),
                against(position(Kind::Nginx)),
                against(position(Kind::Haproxy)),
                format!("{:.1} %", 100.0 * wanted),
                utilisation(over(&|f| f.util).map(|s| s.median)),
            ]);
            if wanted < 0.95 {
                report.notes.push(format!(
                    "NOT TO BE QUOTED: {name} at {kind}: {:.0} % were of another kind",
                    100.0 * (1.0 - wanted)
                ));
            }
        }
    }
    report.tables.push(table);
    report.notes.push(
        format!("util is the share of one CPU that the proxy was busy; below {BUSY} (marked `low`) it was the client that \
         was waited for, and waking up is part of the figure: such a row is an upper bound")
    );
    report.rounds = rounds
        .iter()
        .map(|round| {
            let modes = MODES.iter().zip(round).map(|((name, _), each)| {
                let proxies = options.proxies.iter().zip(each).map(|(kind, f)| {
                    json!({"proxy": kind.to_string(), "handshakes": f.handshakes, "others": f.others, "cpu_us": f.cpu_us, "util": f.util})
                });
                json!({"handshake": name, "proxies": proxies.collect::<Vec<Value>>()})
            });
            modes.collect::<Vec<Value>>()
        })
        .map(Value::from)
        .collect();
    report
}
