//! The real binary, started for one test and ended with it.

mod output;
mod start;
mod upgrade;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;

use self::output::{Bound, Output, lock};
pub use self::start::{Builder, can_mount, with_defaults};
use self::start::{complete, write};
pub use self::upgrade::pretender;
use crate::h1::{self, H1Response};
use crate::metrics::Metrics;
use crate::wait::{SOON, wait_for, wait_until, within};

/// A running gateway; dropping the value kills its process and all processes that it was upgraded to.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    pid: u32,
    dir: TempDir,
    config_path: PathBuf,
    processes: String,
    output: Arc<Mutex<Output>>,
    /// There may be processes besides `child`.
    upgraded: AtomicBool,
}

impl Gateway {
    /// Prepares a gateway with this config. Missing keys are added: one listener and the
    /// admin on ports of the kernel's choice, a JSON access log, and a range of ports for instances.
    ///
    /// # Panics
    /// When there is no place for temporary files.
    pub fn builder(config: &str) -> Builder {
        Builder::new(config)
    }

    /// Starts one with this config; see [`builder`](Self::builder).
    pub async fn start(config: &str) -> Self {
        Self::builder(config).start().await
    }

    /// The first listener.
    pub fn addr(&self) -> SocketAddr {
        self.listener(0)
    }

    /// The `index`th listener.
    ///
    /// # Panics
    /// When it announced none.
    pub fn listener(&self, index: usize) -> SocketAddr {
        let bound = self.bound();
        *bound
            .listeners
            .get(&index)
            .unwrap_or_else(|| panic!("no listener {index}: {bound:?}"))
    }

    /// The admin listener.
    ///
    /// # Panics
    /// When it announced none.
    pub fn admin(&self) -> SocketAddr {
        self.bound().admin.expect("an admin listener was announced")
    }

    /// The file of the admin listener, where it is a Unix socket.
    ///
    /// # Panics
    /// When it announced none.
    pub fn admin_socket(&self) -> PathBuf {
        self.bound().admin_socket.expect("an admin socket was announced")
    }

    /// The health listener.
    ///
    /// # Panics
    /// When it announced none.
    pub fn health(&self) -> SocketAddr {
        self.bound().health.expect("a health listener was announced")
    }

    /// The gateway's process; after an upgrade still the first one.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The directory of the config file.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The config file.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// GETs a path of a host from the first listener.
    ///
    /// # Panics
    /// When no response comes.
    pub async fn get(&self, host: &str, path: &str) -> H1Response {
        self.send(&h1::get(host, path)).await
    }

    /// Sends exact bytes to the first listener and reads one response.
    ///
    /// # Panics
    /// When no response comes.
    pub async fn send(&self, request: &[u8]) -> H1Response {
        h1::fetch(self.addr(), request)
            .await
            .unwrap_or_else(|e| panic!("{e}, to {:?}", String::from_utf8_lossy(request)))
    }

    /// GETs an admin path.
    ///
    /// # Panics
    /// When no response comes.
    pub async fn admin_get(&self, path: &str) -> H1Response {
        h1::fetch(self.admin(), &h1::get("localhost", path))
            .await
            .unwrap_or_else(|e| panic!("{e}, to admin {path}"))
    }

    /// GETs an admin path that answers JSON.
    ///
    /// # Panics
    /// When it does not answer 200 with JSON.
    pub async fn admin_json(&self, path: &str) -> Value {
        let response = self.admin_get(path).await;
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        response.json()
    }

    /// A scrape of `/metrics`.
    ///
    /// # Panics
    /// When it cannot be read.
    pub async fn metrics(&self) -> Metrics {
        let response = self.admin_get("/metrics").await;
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics::parse(&response.text())
    }

    /// One value of a scrape: the sum over all samples with these labels, 0 without any.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().await.sum(name, labels)
    }

    /// Waits until a metric satisfies a condition.
    pub async fn wait_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        limit: Duration,
        wanted: impl Fn(f64) -> bool,
    ) {
        let what = format!("{name}{labels:?} as wanted");
        wait_for(&what, limit, async || {
            wanted(self.metric(name, labels).await).then_some(())
        })
        .await;
    }

    /// Waits until a revision has this many ready instances.
    pub async fn wait_ready_instances(&self, revision: &str, count: f64, limit: Duration) {
        let labels = [("revision", revision), ("state", "ready")];
        self.wait_metric("sluice_revision_replicas", &labels, limit, |n| n == count)
            .await;
    }

    /// The generation that is served.
    ///
    /// # Panics
    /// When the admin does not say.
    pub async fn generation(&self) -> u64 {
        let config = self.admin_json("/api/config").await;
        config["generation"]
            .as_u64()
            .unwrap_or_else(|| panic!("no generation in {config}"))
    }

    /// Waits until a generation, or a later one, is served.
    pub async fn wait_generation(&self, generation: u64) {
        wait_for(&format!("generation {generation} is served"), SOON, async || {
            (self.generation().await >= generation).then_some(())
        })
        .await;
    }

    /// How many reloads ended like this: `applied`, `unchanged`, `rejected`.
    pub async fn reloads(&self, result: &str) -> f64 {
        self.metric("sluice_config_reloads_total", &[("result", result)])
            .await
    }

    /// Overwrites the config file in place and returns at once.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self, config: &str) {
        write(
            &self.config_path,
            &complete(&with_defaults(config), &self.processes),
        );
    }

    /// Edits the config file, and waits until the edit is served.
    ///
    /// # Panics
    /// When it is not served soon.
    pub async fn rewrite_config(&self, edit: impl FnOnce(String) -> String) {
        let before = self.generation().await;
        let old = std::fs::read_to_string(&self.config_path).expect("the config is readable");
        let new = edit(old.clone());
        assert_ne!(old, new, "the edit changes nothing");
        write(&self.config_path, &new);
        self.wait_generation(before + 1).await;
    }

    /// Overwrites the config, and waits until it is served.
    ///
    /// # Panics
    /// When it is not served soon.
    pub async fn reload(&self, config: &str) {
        self.rewrite_config(|_| complete(&with_defaults(config), &self.processes))
            .await;
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("the gateway runs");
    }

    /// Sends SIGTERM: drain and exit.
    pub fn sigterm(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends SIGKILL.
    pub fn sigkill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends SIGHUP: reload.
    pub fn sighup(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Waits for the exit of the first process.
    ///
    /// # Panics
    /// When it does not exit within `limit`.
    pub async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        within("the gateway exits", limit, self.child.wait())
            .await
            .expect("a child can be waited for")
    }

    /// All lines of standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.lock().stdout.iter().cloned().collect()
    }

    /// All lines of standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        self.lock().stderr.iter().cloned().collect()
    }

    /// Waits until a line on either output contains `text`.
    pub async fn wait_said(&self, text: &str) {
        wait_until(&format!("the gateway says {text:?}"), SOON, || {
            let output = self.lock();
            output
                .stdout
                .iter()
                .chain(&output.stderr)
                .any(|l| l.contains(text))
        })
        .await;
    }

    /// The access log so far, where its format is JSON.
    pub fn access_log(&self) -> Vec<Value> {
        let output = self.lock();
        output
            .stdout
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|entry| entry.get("duration_ms").is_some())
            .collect()
    }

    /// Waits for an access log entry.
    pub async fn wait_access_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("an access log entry: {what}"), SOON, async || {
            self.access_log().into_iter().find(|entry| wanted(entry))
        })
        .await
    }

    async fn until_ready(&mut self) {
        let output = Arc::clone(&self.output);
        let child = &mut self.child;
        wait_for("the gateway announces `ready`", SOON, || {
            let exited = child.try_wait().expect("a child can be asked");
            let output = lock(&output);
            let has_admin = output.bound.admin.is_some() || output.bound.admin_socket.is_some();
            if output.bound.ready && has_admin && !output.bound.listeners.is_empty() {
                return std::future::ready(Some(()));
            }
            if let Some(status) = exited {
                panic!("the gateway exited ({status}) before it was ready: {output:#?}");
            }
            std::future::ready(None)
        })
        .await;
    }

    /// Finds the addresses of a gateway whose standard output is not read: the admin listener is the one that responds
    /// to `/readyz`.
    async fn until_found(&mut self) {
        let (admin, listener) = wait_for("it listens on two ports", SOON, async || {
            let addrs = crate::process::listening(self.pid);
            let &[a, b] = addrs.as_slice() else { return None };
            for (one, other) in [(a, b), (b, a)] {
                let ready = h1::fetch(one, &h1::get("localhost", "/readyz")).await;
                if ready.is_ok_and(|r| r.status == 200 && r.reason().is_none()) {
                    return Some((one, other));
                }
            }
            None
        })
        .await;
        let mut output = self.lock();
        output.bound.admin = Some(admin);
        output.bound.listeners.insert(0, listener);
        output.bound.ready = true;
    }

    fn bound(&self) -> Bound {
        self.lock().bound.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        lock(&self.output)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.lock();
            let tail = |lines: &VecDeque<String>| {
                let skip = lines.len().saturating_sub(40);
                lines.iter().skip(skip).cloned().collect::<Vec<_>>().join("\n  ")
            };
            eprintln!("gateway stdout:\n  {}", tail(&output.stdout));
            eprintln!("gateway stderr:\n  {}", tail(&output.stderr));
        }
        // `kill_on_drop` would do as well, but only when a runtime is left to reap the child.
        let _ = self.child.start_kill();
        self.end_successors();
    }
}
