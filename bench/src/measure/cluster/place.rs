//! Where the parts of the cluster are: addresses of replicas, processes of programs.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::api::Api;
use crate::measure::Failure;
use crate::measure::machine::now_ns;

/// A Pod that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) name: String,
    ip: IpAddr,
}

impl Replica {
    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// By its Pod, if it has an address and is not ending.
    pub(super) fn of(pod: &Value) -> Option<Self> {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return None;
        }
        Some(Self {
            name: pod["metadata"]["name"].as_str()?.to_owned(),
            ip: pod["status"]["podIP"].as_str()?.parse().ok()?,
        })
    }
}

/// The Pods of an app, ready or not.
pub(super) async fn pods(api: &Api, namespace: &str, app: &str) -> Result<Vec<Value>, Failure> {
    let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{app}");
    let mut list = api.get(&path).await?;
    Ok(match list["items"].take() {
        Value::Array(pods) => pods,
        _ => Vec::new(),
    })
}

pub(super) async fn replicas(api: &Api, namespace: &str, app: &str) -> Result<Vec<Replica>, Failure> {
    let pods = pods(api, namespace, app).await?;
    Ok(pods
        .iter()
        .filter(|pod| has_condition(pod, "Ready"))
        .filter_map(Replica::of)
        .collect())
}

/// Whether a condition of an object is `True`.
pub(super) fn has_condition(object: &Value, kind: &str) -> bool {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// The processes of the container images by these names, of all Pods.
pub(super) fn processes(programs: &[&str]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let program = command.split(|&b| b == 0).next().unwrap_or_default();
        let is_wanted =
            |name: &&str| Path::new("/ko-app").join(name).as_os_str().as_encoded_bytes() == program;
        if programs.iter().any(is_wanted) {
            found.push(pid);
        }
    }
    found
}

/// When a process began, in nanoseconds of the common clock, to a hundredth of a second.
pub(super) fn began(pid: u32) -> Option<i64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may have spaces.
    let ticks: i64 = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()?;
    // The kernel counts from the boot of the machine, sleep included.
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let asleep = boot.tv_sec() * 1_000_000_000 + boot.tv_nsec() - now_ns();
    Some(ticks * 10_000_000 - asleep)
}

/// Runs a program, such as `kubectl`, and waits for its end.
pub(super) fn must(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|e| Failure::io(program, e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::Unexpected(format!("{program} {arguments:?}: {said}")))
}

/// Makes every address of 10.99.0.0/16 one of the node's own: each stands for a Pod, and one process answers for all.
pub(super) fn own_addresses() -> Result<(), Failure> {
    must("ip", &["route", "replace", "local", "10.99.0.0/16", "dev", "lo"])
}

/// One of these addresses.
pub(super) fn own_address(nth: usize) -> SocketAddr {
    let [.., high, low] = (nth + 1).to_be_bytes();
    SocketAddr::from(([10, 99, high, low], 8012))
}
