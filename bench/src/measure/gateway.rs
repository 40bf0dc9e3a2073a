//! The gateway under load: a process with a plain listener, an admin listener and the lines that a run adds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::child::{Child, free_addresses};
use super::{Failure, client};

/// The host of the gateway's service, for clients.
pub(crate) const HOST: &str = "bench.example.com";

/// The time limit until the gateway listens.
const STARTING: Duration = Duration::from_secs(90);

/// A running gateway; the process ends when this value is dropped.
pub(crate) struct Gateway {
    pub(crate) child: Child,
    /// Address of the plain listener.
    pub(crate) plain: SocketAddr,
    admin: SocketAddr,
}

/// The directory of a gateway's files, and the CPU of the gateway.
pub(crate) struct Place<'a> {
    pub(crate) folder: &'a Path,
    /// The CPU; `None` for the scheduler's choice.
    pub(crate) cpu: Option<usize>,
}

impl Gateway {
    /// Starts a gateway with these lines of configuration after those of its listeners, and waits until it listens.
    pub(crate) async fn start(
        binary: &Path,
        name: &str,
        lines: &str,
        place: &Place<'_>,
    ) -> Result<Self, Failure> {
        let [plain, admin] = free_addresses()?;
        let config = format!(
            "listeners: [{{address: {plain}}}]\nadmin: {{address: {admin}}}\naccessLog: {{format: off}}\n\
             drain: {{timeout: 1s}}\n{lines}"
        );
        let file = write(place.folder, &format!("{name}.yaml"), &config)?;
        let arguments = ["run".to_owned(), file.display().to_string()];
        let child = Child::start(name, binary, &arguments, place.cpu, place.folder)?;
        let mut gateway = Self { child, plain, admin };
        gateway.child.listens(plain, STARTING).await?;
        Ok(gateway)
    }

    /// The process of the gateway alone: its instances are not counted.
    pub(crate) fn pids(&self) -> Vec<u32> {
        vec![self.child.pid()]
    }

    /// The number of requests that wait for `revision`, from the gateway's own `/api/revisions`.
    pub(crate) async fn queued(&self, revision: &str) -> Result<u64, Failure> {
        let body = client::get(self.admin, "localhost", "/api/revisions").await?;
        let read: Value = serde_json::from_str(&body)
            .map_err(|e| Failure::Unexpected(format!("/api/revisions is no JSON: {e}")))?;
        let mut revisions = read["revisions"].as_array().into_iter().flatten();
        let found = revisions.find(|r| r["revision"] == revision);
        found
            .and_then(|r| r["queued"].as_u64())
            .ok_or_else(|| Failure::Unexpected(format!("/api/revisions does not know {revision}")))
    }
}

/// Writes a file beside others.
pub(crate) fn write(folder: &Path, name: &str, contents: &str) -> Result<PathBuf, Failure> {
    let path = folder.join(name);
    std::fs::write(&path, contents).map_err(|e| Failure::io(&path.display().to_string(), e))?;
    Ok(path)
}
