//! Ten thousand certificates on a listener: how long until the last is served, what they take, and how
//! long a new one in one file takes; nginx and HAProxy with the same files beside.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;

use super::child::free_addresses;
use super::held_memory::step;
use super::proxies::{Certificate, Kind, Place, Proxy, haproxy, key, nginx};
use super::report::{Report, Table};
use super::stats::Spread;
use super::{Common, Failure, PROXY_CPU, Run, client, installed, machine, two_cpus};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Certificates, each in files of its own.
    #[arg(long, default_value_t = 10_000)]
    certificates: usize,
    /// Files that are changed, one after the other, at each start; nginx, which reads all of them again
    /// each time, is started once and changes one.
    #[arg(long, default_value_t = 4)]
    changes: usize,
    #[arg(long, value_delimiter = ',', default_value = "sluice,nginx,haproxy")]
    proxies: Vec<Kind>,
}

fn host(nth: usize) -> String {
    format!("c{nth:05}.bench.example.com")
}

/// All certificates, made once.
struct Store {
    files: Vec<Certificate>,
    /// What HAProxy reads: one file each, and nothing else in it.
    both: std::path::PathBuf,
    key: rcgen::KeyPair,
}

impl Store {
    fn generate(run: &Run, count: usize) -> Result<Self, Failure> {
        let (folder, both) = (run.inner("certificates")?, run.inner("certificates-both")?);
        let key = key()?;
        let make = |nth| {
            let host = host(nth);
            Certificate::generate(&folder, &both, &host, &host, &key)
        };
        Ok(Self {
            files: (0..count).map(make).collect::<Result<_, _>>()?,
            both,
            key,
        })
    }

    /// Puts a new certificate for this host in place of the old one, as a renewal does: written beside
    /// it and renamed.
    fn renew(&self, run: &Run, nth: usize) -> Result<CertificateDer<'static>, Failure> {
        let new = run.inner("renewed")?;
        let made = Certificate::generate(&new, &new, &host(nth), &host(nth), &self.key)?;
        let text = std::fs::read(&made.cert).map_err(|e| Failure::io("a new certificate", e))?;
        let der = CertificateDer::from_pem_slice(&text)
            .map_err(|e| Failure::Unexpected(format!("our own certificate: {e}")))?;
        let old = &self.files[nth];
        for (from, to) in [
            (&made.cert, &old.cert),
            (&made.key, &old.key),
            (&made.both, &old.both),
        ] {
            std::fs::rename(from, to).map_err(|e| Failure::io("putting a new certificate in place", e))?;
        }
        Ok(der)
    }
}

/// The certificate that is served for a host now; `None` where there is no handshake.
async fn served(connector: &TlsConnector, to: SocketAddr, host: &str) -> Option<CertificateDer<'static>> {
    let stream = client::connect(to).await.ok()?;
    let stream = client::handshake(connector, host, stream).await.ok()?;
    stream.get_ref().1.peer_certificates()?.first().cloned()
}

/// Waits until this certificate is served.
async fn serves(
    proxy: &mut Proxy,
    host: &str,
    wanted: &CertificateDer<'static>,
    limit: Duration,
) -> Result<(), Failure> {
    let connector = client::tls(&rustls::version::TLS13, false);
    let end = Instant::now() + limit;
    while served(&connector, proxy.tls, host).await.as_ref() != Some(wanted) {
        proxy.child.lives()?;
        if Instant::now() > end {
            return Err(proxy
                .child
                .complaint(&format!("does not serve {host}'s certificate within {limit:?}")));
        }
        // Handshakes take from the CPU that a proxy loads with: fewer, the longer it takes.
        let pause = (limit - end.saturating_duration_since(Instant::now())) / 50;
        tokio::time::sleep(pause.clamp(Duration::from_millis(1), Duration::from_millis(50))).await;
    }
    Ok(())
}

async fn start(run: &Run, kind: Kind, store: &Store, folder: &Path) -> Result<Proxy, Failure> {
    let place = Place {
        folder,
        cpu: Some(PROXY_CPU),
    };
    match kind {
        Kind::Sluice => {
            let mut lines = String::from(
                "listeners:\n- {address: @PLAIN@}\n- address: @TLS@\n  tls:\n    certificates:\n",
            );
            for Certificate { cert, key, .. } in &store.files {
                lines += &format!(
                    "    - {{certFile: {}, keyFile: {}}}\n",
                    cert.display(),
                    key.display()
                );
            }
            lines += "services:\n- {name: a, hosts: [\"*.bench.example.com\"], endpoints: [127.0.0.1:9]}\n";
            Proxy::sluice(&run.sluice, "sluice", &lines, &place).await
        }
        Kind::Nginx => {
            let [plain, tls] = free_addresses()?;
            let mut http = String::from(
                "ssl_protocols TLSv1.2 TLSv1.3; server_names_hash_max_size 65536; server_names_hash_bucket_size 128;\n",
            );
            for (nth, Certificate { cert, key, .. }) in store.files.iter().enumerate() {
                http += &format!(
                    "server {{ listen {tls} ssl; server_name {}; ssl_certificate {}; ssl_certificate_key {}; return 204; }}\n",
                    host(nth),
                    cert.display(),
                    key.display()
                );
            }
            Proxy::peer(
                kind,
                &nginx(&folder.display().to_string(), &http),
                plain,
                tls,
                &place,
            )
            .await
        }
        Kind::Haproxy => {
            let [plain, tls] = free_addresses()?;
            let config = haproxy(&format!(
                "frontend f\n  bind {tls} ssl crt {}\n  http-request return status 204\n",
                store.both.display()
            ));
            let config = config.replacen(
                "global\n",
                &format!(
                    "global\n  stats socket {} level admin\n",
                    folder.join("stats").display()
                ),
                1,
            );
            Proxy::peer(kind, &config, plain, tls, &place).await
        }
    }
}

/// Makes a proxy take one changed file, each in the way that costs it least.
async fn reload(kind: Kind, proxy: &Proxy, certificate: &Certificate, folder: &Path) -> Result<(), Failure> {
    match kind {
        // It watches.
        Kind::Sluice => Ok(()),
        Kind::Nginx => proxy.child.signal(Signal::SIGHUP),
        Kind::Haproxy => {
            let file = certificate.both.display();
            let pem =
                std::fs::read_to_string(&certificate.both).map_err(|e| Failure::io("a certificate", e))?;
            let orders = [
                format!("set ssl cert {file} <<\n{}\n\n", pem.trim_end()),
                format!("commit ssl cert {file}\n"),
            ];
            for order in orders {
                let failed = |e| Failure::io("HAProxy's stats socket", e);
                let mut socket = UnixStream::connect(folder.join("stats")).await.map_err(failed)?;
                socket.write_all(order.as_bytes()).await.map_err(failed)?;
                let mut said = String::new();
                socket.read_to_string(&mut said).await.map_err(failed)?;
                if !said.contains("created") && !said.contains("Success") {
                    return Err(Failure::Unexpected(format!("HAProxy said '{said}'")));
                }
            }
            Ok(())
        }
    }
}

/// What one start of one proxy showed, and how long all of it took.
#[derive(Debug, Clone)]
struct Figures {
    load_ms: f64,
    rss_mb: f64,
    pss_mb: f64,
    reload_ms: Vec<f64>,
    rss_after_mb: f64,
    pss_after_mb: f64,
    /// What of it a peer did not do in time.
    missing: Option<String>,
    took_s: f64,
}

/// How long one may take to serve what is new.
const PATIENCE: Duration = Duration::from_secs(40);

async fn one(
    run: &Run,
    kind: Kind,
    store: &Store,
    folder: &Path,
    changes: usize,
) -> Result<Figures, Failure> {
    let last = store.files.len() - 1;
    let text = std::fs::read(&store.files[last].cert).map_err(|e| Failure::io("a certificate", e))?;
    let wanted = CertificateDer::from_pem_slice(&text).map_err(|e| Failure::Unexpected(e.to_string()))?;
    let began = Instant::now();
    let mut proxy = start(run, kind, store, folder).await?;
    serves(&mut proxy, &host(last), &wanted, PATIENCE).await?;
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    let settled = step("loaded", &proxy.pids()).await?.memory;
    let (mut reload_ms, mut missing) = (Vec::new(), None);
    let changes = if kind == Kind::Nginx {
        changes.min(1)
    } else {
        changes
    };
    for _ in 0..changes {
        let nth = fastrand::usize(..store.files.len());
        let wanted = store.renew(run, nth)?;
        let changed = Instant::now();
        reload(kind, &proxy, &store.files[nth], folder).await?;
        if let Err(failure) = serves(&mut proxy, &host(nth), &wanted, PATIENCE).await {
            if kind == Kind::Sluice {
                return Err(failure);
            }
            missing = Some(format!("NOT MEASURED: a changed file of {kind}: {failure}"));
            break;
        }
        reload_ms.push(changed.elapsed().as_secs_f64() * 1e3);
        // A change while another is taken in would be measured with it.
        step("settled", &proxy.pids()).await?;
    }
    let after = step("reloaded", &proxy.pids()).await?.memory;
    let mb = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(Figures {
        load_ms,
        rss_mb: mb(settled.rss),
        pss_mb: mb(settled.pss),
        reload_ms,
        rss_after_mb: mb(after.rss),
        pss_after_mb: mb(after.pss),
        missing,
        took_s: began.elapsed().as_secs_f64(),
    })
}

pub(crate) async fn run(options: Options) -> Result<Report, Failure> {
    let run = Run::new(&options.common, true)?;
    installed(&options.proxies)?;
    two_cpus()?;
    machine::raise_descriptors(4096)?;
    if options.certificates == 0 {
        return Err(Failure::Missing("at least one certificate is needed".to_owned()));
    }
    let generating = Instant::now();
    let store = Store::generate(&run, options.certificates)?;
    let generating = generating.elapsed().as_secs_f64();
    let mut rounds: Vec<Vec<Option<Figures>>> = Vec::new();
    let mut notes = Vec::new();
    for round in 0..options.rounds {
        let start = Instant::now();
        let mut each = vec![None; options.proxies.len()];
        for nth in 0..options.proxies.len() {
            let turn = (nth + round) % options.proxies.len();
            let kind = options.proxies[turn];
            // Each of its starts takes as long as everything else of a round.
            if kind == Kind::Nginx && round > 0 {
                continue;
            }
            let folder = run.inner(&format!("{kind}-{round}"))?;
            match one(&run, kind, &store, &folder, options.changes).await {
                Ok(figures) => {
                    notes.extend(figures.missing.clone());
                    each[turn] = Some(figures);
                }
                Err(failure) if kind == Kind::Sluice => return Err(failure),
                Err(failure) => notes.push(format!("NOT MEASURED: {kind}, round {round}: {failure}")),
            }
        }
        rounds.push(each);
        if !run.another(start.elapsed()) {
            break;
        }
    }
    let mut report = report(&options, &rounds, notes);
    report.parameters["generating_s"] = generating.round().into();
    Ok(report)
}

fn report(options: &Options, rounds: &[Vec<Option<Figures>>], notes: Vec<String>) -> Report {
    let mut report = Report {
        parameters: json!({"rounds": rounds.len(), "certificates": options.certificates, "changes": options.changes, "key": "ECDSA P-256, the same in every file"}),
        notes,
        ..Report::default()
    };
    let mut table = Table::new(
        "Median [min-max] over starts. Load: from the start of the process until the last certificate is served. \
         Reload: from the renamed file (sluice watches), SIGHUP (nginx) or `set ssl cert` (HAProxy) until the new one is.",
        &[
            "proxy",
            "starts",
            "load, ms",
            "RSS, MB",
            "PSS, MB",
            "one changed file, ms",
            "RSS afterwards, MB",
            "PSS afterwards, MB",
        ],
    );
    for (p, kind) in options.proxies.iter().enumerate() {
        let starts = || rounds.iter().filter_map(|r| r[p].as_ref());
        let over = |what: fn(&Figures) -> f64| Spread::of(starts().map(what));
        let reloads = starts().flat_map(|f| f.reload_ms.iter().copied());
        table.row([
            kind.to_string(),
            starts().count().to_string(),
            Spread::text(over(|f| f.load_ms), 0),
            Spread::text(over(|f| f.rss_mb), 1),
            Spread::text(over(|f| f.pss_mb), 1),
            Spread::text(Spread::of(reloads), 1),
            Spread::text(over(|f| f.rss_after_mb), 1),
            Spread::text(over(|f| f.pss_after_mb), 1),
        ]);
    }
    report.tables.push(table);
    report.notes.push("sluice looks at certificate files every two seconds and takes a change once it rests: its reload time is that wait".to_owned());
    report.notes.push("nginx is started once and takes one change: it reads every file again; RSS counts what its master and worker share twice, PSS once".to_owned());
    report.rounds = rounds
        .iter()
        .map(|round| {
            let each = options.proxies.iter().zip(round).filter_map(|(kind, f)| {
                let f = f.as_ref()?;
                Some(json!({"proxy": kind.to_string(), "load_ms": f.load_ms, "rss_mb": f.rss_mb, "pss_mb": f.pss_mb, "reload_ms": f.reload_ms, "rss_after_mb": f.rss_after_mb, "pss_after_mb": f.pss_after_mb, "missing": f.missing, "took_s": f.took_s}))
            });
            Value::from(each.collect::<Vec<_>>())
        })
        .collect();
    report
}
