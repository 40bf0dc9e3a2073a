//! Child processes of a benchmark, which are ended however the benchmark ends.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

use super::Failure;

/// The time limit of a graceful stop.
const STOPPING: Duration = Duration::from_secs(8);

/// A child process; stopped when dropped. A graceful stop comes first: a killed gateway leaves its instances to its
/// supervisor, which may take longer than this process lives.
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts the process in a process group of its own, so that a Ctrl-C of the terminal reaches the benchmark
    /// alone; bound to a CPU if one is given. The output goes to a file in `folder`.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        arguments: &[String],
        cpu: Option<usize>,
        folder: &Path,
    ) -> Result<Self, Failure> {
        use std::os::unix::process::CommandExt;
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).map_err(|e| Failure::io(&log.display().to_string(), e))?;
        let second = file
            .try_clone()
            .map_err(|e| Failure::io(&log.display().to_string(), e))?;
        // The last resort if the benchmark is killed: the kernel sends a signal to its children.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]);
        if let Some(cpu) = cpu {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        let process = command
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(second)
            .process_group(0)
            .spawn()
            .map_err(|e| Failure::io(&format!("starting {}", program.display()), e))?;
        Ok(Self {
            name: name.to_owned(),
            process,
            log,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until a process accepts connections at `address`.
    ///
    /// # Errors
    /// When the child ended or `limit` is over, with the output of the child.
    pub(crate) async fn listens(&mut self, address: SocketAddr, limit: Duration) -> Result<(), Failure> {
        let end = Instant::now() + limit;
        loop {
            self.lives()?;
            if TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(self.complaint(&format!("does not listen on {address} within {limit:?}")));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// # Errors
    /// When the child ended, with its output.
    pub(crate) fn lives(&mut self) -> Result<(), Failure> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.complaint(&format!("ended with {status}"))),
            Err(e) => Err(Failure::io(&format!("waiting for {}", self.name), e)),
        }
    }

    /// Waits until the child has ended with success.
    ///
    /// # Errors
    /// When the child fails, or runs for longer than `limit`.
    pub(crate) async fn ended(&mut self, limit: Duration) -> Result<(), Failure> {
        let end = Instant::now() + limit;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.complaint(&format!("ended with {status}"))),
                Ok(None) if Instant::now() > end => return Err(self.complaint("does not end")),
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(e) => return Err(Failure::io(&format!("waiting for {}", self.name), e)),
            }
        }
    }

    pub(crate) fn complaint(&self, what: &str) -> Failure {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = said.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Failure::Unexpected(format!("{} {what}:\n{}", self.name, tail.join("\n")))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        kill(pid, signal).map_err(|e| Failure::io(&format!("{signal} to {}", self.name), e))
    }

    /// Sends SIGTERM and waits; kills a child that does not end.
    pub(crate) fn stop(&mut self) {
        // The child is reaped already: its process id may belong to another process by now.
        if !matches!(self.process.try_wait(), Ok(None)) {
            return;
        }
        let _ = self.signal(Signal::SIGTERM);
        let end = Instant::now() + STOPPING;
        while Instant::now() < end {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Free ports of this machine, all different.
pub(crate) fn free_addresses<const N: usize>() -> Result<[SocketAddr; N], Failure> {
    let failed = |e: io::Error| Failure::io("a free port", e);
    let mut held = Vec::new();
    let mut found = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for address in &mut found {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
        *address = listener.local_addr().map_err(failed)?;
        held.push(listener);
    }
    Ok(found)
}

/// The path of a program, by `PATH` and the directories of system programs.
///
/// # Errors
/// When the program is not installed.
pub(crate) fn program(name: &str) -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            Failure::Missing(format!(
                "{name} is not installed (Debian: apt-get install {name})"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_is_gone_and_one_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().expect("a directory");
        let sleep = program("sleep").expect("coreutils");
        let child =
            Child::start("sleep", &sleep, &["60".to_owned()], None, folder.path()).expect("it starts");
        let proc = PathBuf::from(format!("/proc/{}", child.pid()));
        assert!(proc.exists());
        drop(child);
        assert!(!proc.exists());
        let error = program("no-such-program-here")
            .expect_err("there is none")
            .to_string();
        assert!(error.contains("no-such-program-here"), "{error}");
    }

    #[test]
    fn free_addresses_differ() {
        let [a, b, c] = free_addresses::<3>().expect("free ports");
        assert!(a != b && b != c && a != c);
    }
}
