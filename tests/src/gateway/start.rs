//! Starts a gateway.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::process::Command;

use super::Gateway;
use super::output::{Output, capture};
use crate::cli::sluice_bin;

/// The number of ports for one gateway's instances. Tests run concurrently, so each gateway gets a range of its own:
/// a test that counts starts must not lose a port to another test.
const PORTS: u32 = 50;

/// Within the default range of `processes.ports`, which no kernel gives to clients.
const FIRST_PORT: u32 = 20_000;

/// How many ranges there are before they are used again.
const RANGES: u32 = 200;

/// How a gateway is started.
#[derive(Debug)]
pub struct Builder {
    dir: TempDir,
    config: String,
    processes: String,
    source: Option<PathBuf>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    own_binary: bool,
    /// Lines of shell that its process runs before it becomes the gateway.
    first: Vec<String>,
    own_mounts: bool,
    stdout: Option<PathBuf>,
}

impl Builder {
    pub(super) fn new(config: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let first = FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % RANGES * PORTS;
        Self {
            processes: format!("processes: {{max: 40, ports: {first}-{}}}", first + PORTS - 1),
            dir: TempDir::new().expect("a temporary directory"),
            config: config.to_owned(),
            source: None,
            args: Vec::new(),
            env: Vec::new(),
            own_binary: false,
            first: Vec::new(),
            own_mounts: false,
            stdout: None,
        }
    }

    /// Starts from a copy of the binary that the test may replace:
    /// [`replace_binary`](Gateway::replace_binary).
    pub fn own_binary(mut self) -> Self {
        self.own_binary = true;
        self
    }

    /// Adds an argument after `run PATH`.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Limits the descriptors of the gateway, soft and hard.
    pub fn descriptors(self, most: u32) -> Self {
        self.first(&format!("ulimit -n {most}"))
    }

    /// Runs this line of shell in the gateway's process before the gateway: for inherited limits and the like. The
    /// gateway does not start when the line fails.
    pub fn first(mut self, line: &str) -> Self {
        self.first.push(line.to_owned());
        self
    }

    /// Bind-mounts one file or directory over another, as `docker run -v` does, in a mount namespace that only the
    /// gateway is in. Both exist when it starts. Needs root: see [`can_mount`].
    pub fn bind_mount(mut self, from: &Path, to: &Path) -> Self {
        self.own_mounts = true;
        self.first(&format!("mount --bind '{}' '{}'", from.display(), to.display()))
    }

    /// Redirects standard output to this file. The test then reads neither access log nor bound addresses: the
    /// addresses come from the kernel, and there must be one listener, without TLS.
    pub fn stdout(mut self, path: &Path) -> Self {
        self.stdout = Some(path.to_owned());
        self
    }

    /// Writes a file beside the config.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(self, name: &str, content: &str) -> Self {
        write(&self.dir.path().join(name), content);
        self
    }

    /// Runs on this path instead of the config file; the caller put the config there.
    pub fn source(mut self, path: &Path) -> Self {
        self.source = Some(path.to_owned());
        self
    }

    /// The directory that the config will be in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the gateway and waits until it is ready.
    ///
    /// # Panics
    /// When the gateway exits or does not become ready soon, with its output.
    pub async fn start(self) -> Gateway {
        let config_path = self.dir.path().join("sluice.yaml");
        if self.source.is_none() {
            write(
                &config_path,
                &complete(&with_defaults(&self.config), &self.processes),
            );
        }
        let mut binary = sluice_bin();
        if self.own_binary {
            let own = self.dir.path().join("sluice");
            put_binary(&own);
            binary = own;
        }
        let stdout = match &self.stdout {
            None => Stdio::piped(),
            Some(path) => {
                let file = std::fs::OpenOptions::new().write(true).open(path);
                file.expect("something to write to").into()
            }
        };
        let mut child = command(&binary, &self.first, self.own_mounts)
            .arg("run")
            .arg(self.source.as_ref().unwrap_or(&config_path))
            .args(&self.args)
            .envs(self.env)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let output = Arc::new(Mutex::new(Output::default()));
        if self.stdout.is_none() {
            capture(child.stdout.take(), &output, |o| &mut o.stdout);
        }
        capture(child.stderr.take(), &output, |o| &mut o.stderr);
        let mut gateway = Gateway {
            pid: child.id().expect("a running process"),
            child,
            dir: self.dir,
            config_path,
            processes: self.processes,
            output,
            upgraded: AtomicBool::new(false),
        };
        if self.stdout.is_some() {
            gateway.until_found().await;
        } else {
            gateway.until_ready().await;
        }
        gateway
    }
}

/// Puts the binary under test at this path, which does not exist yet.
pub(super) fn put_binary(at: &Path) {
    // A hard link is as good as a copy: tests replace the name.
    if std::fs::hard_link(sluice_bin(), at).is_err() {
        std::fs::copy(sluice_bin(), at).expect("the binary can be copied");
    }
}

/// Whether gateways can be started in mount namespaces of their own; prints one line where they cannot.
pub fn can_mount() -> bool {
    let mut unshare = std::process::Command::new("unshare");
    let tried = unshare.args(["-m", "true"]).stderr(Stdio::null()).status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        eprintln!("SKIPPED: bind mounts need root and unshare(1)");
    }
    can
}

/// The command of the gateway: the binary, or a shell that runs lines first and then becomes the binary (exec).
fn command(binary: &Path, first: &[String], own_mounts: bool) -> Command {
    if first.is_empty() {
        return Command::new(binary);
    }
    let mut command = Command::new(if own_mounts { "unshare" } else { "sh" });
    if own_mounts {
        command.args(["-m", "sh"]);
    }
    command
        .arg("-c")
        .arg(format!("{} && exec \"$0\" \"$@\"", first.join(" && ")))
        .arg(binary);
    command
}

/// Adds listener, admin and access log to a config without them.
pub fn with_defaults(config: &str) -> String {
    let mut out = config.to_owned();
    for default in [
        "accessLog: {format: json}",
        "admin: {address: 127.0.0.1:0}",
        "listeners: [{address: 127.0.0.1:0}]",
    ] {
        out = complete(&out, default);
    }
    out
}

/// Adds one line unless the config has its key.
pub(super) fn complete(config: &str, default: &str) -> String {
    let key = default.split_inclusive(':').next().unwrap_or_default();
    if config.lines().any(|line| line.starts_with(key)) {
        return config.to_owned();
    }
    format!("{default}\n{config}")
}

pub(super) fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_added_only_where_nothing_is_said() {
        let config = with_defaults("admin: {address: 127.0.0.1:1}\nservices: []\n");
        assert_eq!(config.matches("admin:").count(), 1);
        assert_eq!(config.matches("listeners:").count(), 1);
    }
}
