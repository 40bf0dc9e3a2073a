//! Runs the binary until it exits.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::wait::{SOON, within};

/// The binary under test: `SLUICE_BIN`, or the one beside the test executable.
///
/// # Panics
/// When there is none, saying how to build it.
pub fn sluice_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("the test knows itself");
    exe.ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join("sluice"))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no sluice binary near {}: build it with the same profile first (cargo build -p sluice-gateway), or set SLUICE_BIN",
                exe.display()
            )
        })
}

/// The output of a finished command.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` when a signal ended the process.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Both outputs together.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When standard output is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }
}

/// Runs `sluice ARGS…` in `dir` until it exits.
///
/// # Panics
/// When the command does not exit soon.
pub async fn sluice_in(dir: &Path, args: &[&str]) -> Finished {
    let child = tokio::process::Command::new(sluice_bin())
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary starts");
    let output = within(&format!("sluice {args:?} exits"), SOON, child.wait_with_output())
        .await
        .expect("the output can be read");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
