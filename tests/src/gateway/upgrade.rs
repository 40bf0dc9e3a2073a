//! Upgrades of a gateway under test.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Gateway;
use super::start::put_binary;
use crate::cli::{Finished, sluice_in};
use crate::process;
use crate::wait::{SOON, wait_for, wait_until};

/// A fake new process for upgrades, as a Python script: sends `Prepared`, and runs the code `take` on `Take`. The
/// script exits with 3 when the old process is gone. `take` may use `say(kind, body)`, which sends a frame of the
/// upgrade's protocol (`gateway/src/root/upgrade/wire.rs`).
pub fn pretender(take: &str) -> String {
    let take = take.replace('\n', "\n        ");
    format!(
        r#"#!/usr/bin/env python3
import json, os, signal, time
TAKE, SERVING = 7, 8
def say(kind, body):
    os.write(0, len(body).to_bytes(4, "big") + bytes([kind, 0]) + body)
def exactly(n):
    got = b""
    while len(got) < n:
        some = os.read(0, n - len(got))
        if not some:
            raise SystemExit(3)
        got += some
    return got
greeted = False
while True:
    head = exactly(6)
    exactly(int.from_bytes(head[:4], "big"))
    if not greeted:
        greeted = True
        say(3, json.dumps({{"version": 1, "build": "none"}}).encode())
        say(4, b"")
    if head[4] == TAKE:
        {take}
"#
    )
}

impl Gateway {
    /// Runs `sluice upgrade` against this gateway.
    ///
    /// # Panics
    /// When the command does not end soon.
    pub async fn upgrade(&self, more: &[&str]) -> Finished {
        self.may_be_upgraded();
        let admin = format!("http://{}", self.admin());
        let mut args = vec!["upgrade", "--admin", &admin];
        args.extend(more);
        sluice_in(self.dir(), &args).await
    }

    /// Runs `sluice upgrade`, and returns the process that serves now.
    ///
    /// # Panics
    /// When it fails.
    pub async fn upgraded(&self) -> u32 {
        let before = self.serving_pid().await;
        let said = self.upgrade(&[]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        let after = self.serving_pid().await;
        assert_ne!(after, before, "{said:?}");
        assert!(said.stdout.contains(&after.to_string()), "{said:?}");
        after
    }

    /// Sends SIGQUIT, and returns the process that serves then.
    ///
    /// # Panics
    /// When none takes over soon.
    pub async fn upgraded_by_signal(&self) -> u32 {
        let before = self.serving_pid().await;
        self.may_be_upgraded();
        self.signal(Signal::SIGQUIT);
        wait_for("another process serves", SOON, async || {
            let now = self.serving_pid().await;
            (now != before).then_some(now)
        })
        .await
    }

    /// Notes that there may be further processes, which are killed when this value is dropped.
    pub fn may_be_upgraded(&self) {
        self.upgraded.store(true, Ordering::SeqCst);
    }

    /// The id of the process that serves the admin address.
    ///
    /// # Panics
    /// When none does.
    pub async fn serving_pid(&self) -> u32 {
        let config = self.admin_json("/api/config").await;
        let pid = config["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("no pid in {config}"))
    }

    /// Signals one of this gateway's processes.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal_to(&self, pid: u32, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        kill(pid, signal).expect("the process runs");
    }

    /// Puts another file in the binary's place, as an installation does; see
    /// [`own_binary`](super::Builder::own_binary).
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn replace_binary(&self, script: &str) {
        let new = self.dir().join("sluice.new");
        std::fs::write(&new, script).expect("the script can be written");
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("and be executable");
        std::fs::rename(&new, self.dir().join("sluice")).expect("and take the binary's place");
    }

    /// Puts the binary under test in its place again.
    ///
    /// # Panics
    /// When it cannot be put there.
    pub fn restore_binary(&self) {
        let new = self.dir().join("sluice.new");
        put_binary(&new);
        std::fs::rename(&new, self.dir().join("sluice")).expect("it takes the place");
    }

    /// Waits until one of this gateway's processes is gone.
    ///
    /// # Panics
    /// When it is not within `limit`.
    pub async fn wait_gone(&self, pid: u32, limit: Duration) {
        wait_until(&format!("process {pid} is gone"), limit, || {
            !process::is_alive(pid)
        })
        .await;
    }

    /// The processes of this gateway: all have the path of its config among their arguments.
    pub fn processes(&self) -> Vec<u32> {
        process::with_marker(&self.config_path().to_string_lossy())
    }

    /// Kills the new processes of upgrades. They are not children of the test, and are found by the test's
    /// directory.
    pub(super) fn end_successors(&self) {
        if !self.upgraded.load(Ordering::SeqCst) {
            return;
        }
        for pid in self.processes() {
            if let Ok(pid) = i32::try_from(pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
