//! The output of a gateway: kept for the test to read, and parsed for the bound addresses.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Lines kept of each output; older ones are dropped.
const KEPT_LINES: usize = 20_000;

#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) stdout: VecDeque<String>,
    pub(super) stderr: VecDeque<String>,
    pub(super) bound: Bound,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Bound {
    pub(super) listeners: BTreeMap<usize, SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    /// The admin listener, where it is a Unix socket.
    pub(super) admin_socket: Option<PathBuf>,
    pub(super) health: Option<SocketAddr>,
    pub(super) ready: bool,
}

impl Bound {
    /// Reads a line such as `sluice: listener 0 on 127.0.0.1:34567 (http)`.
    fn learn(&mut self, line: &str) {
        let Some((_, said)) = line.split_once("sluice: ") else {
            return;
        };
        let words: Vec<&str> = said.split_whitespace().collect();
        match words.as_slice() {
            ["listener", index, "on", addr, ..] => {
                if let (Ok(index), Ok(addr)) = (index.parse(), addr.parse()) {
                    self.listeners.insert(index, addr);
                }
            }
            ["admin", "on", addr, ..] => {
                self.admin = addr.parse().ok();
                self.admin_socket = addr.strip_prefix("unix:").map(PathBuf::from);
            }
            ["health", "on", addr, ..] => self.health = addr.parse().ok(),
            ["ready", ..] => self.ready = true,
            _ => {}
        }
    }
}

pub(super) fn lock(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads lines until the pipe's end; the task ends with the process.
pub(super) fn capture(
    pipe: Option<impl AsyncRead + Unpin + Send + 'static>,
    output: &Arc<Mutex<Output>>,
    side: fn(&mut Output) -> &mut VecDeque<String>,
) {
    let pipe = pipe.expect("the pipe was asked for");
    let output = Arc::clone(output);
    tokio::spawn(async move {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut output = lock(&output);
            if !output.bound.ready {
                output.bound.learn(&text);
            }
            let lines = side(&mut output);
            if lines.len() == KEPT_LINES {
                lines.pop_front();
            }
            lines.push_back(text);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_learned() {
        let mut bound = Bound::default();
        for line in [
            "sluice: listener 0 on 127.0.0.1:34567 (http)",
            "sluice: listener 1 on 127.0.0.1:34568 (https)",
            "INFO sluice: admin on 127.0.0.1:34569",
            "something else",
            "sluice: health on [::1]:34570",
            "sluice: ready",
        ] {
            bound.learn(line);
        }
        assert_eq!(bound.listeners[&1].port(), 34568);
        assert_eq!(bound.admin.map(|a| a.port()), Some(34569));
        assert_eq!(bound.health.map(|a| a.port()), Some(34570));
        assert!(bound.ready);
    }
}
