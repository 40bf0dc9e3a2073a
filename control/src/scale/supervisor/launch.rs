//! Launches the process group of an instance.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::net::unix::pipe;

use super::spawn::SpawnOptions;
use super::wire::Start;

/// The variable that marks the processes of an instance. Inherited by all that the instance starts, so that a process that
/// left the group can still be attributed to the instance.
const MARKER: &str = "SLUICE_INSTANCE";

/// The marker's value. Contains the supervisor's process id, because an instance may be a gateway with instances of equal
/// numbers.
fn mark(instance: u64) -> String {
    format!("{}-{instance}", std::process::id())
}

/// The marker as an entry of `/proc/{pid}/environ`.
pub(crate) fn marker(instance: u64) -> String {
    format!("{MARKER}={}", mark(instance))
}

/// A process group that has just been started.
pub(crate) struct Launched {
    /// The process id of the leader, and the id of the group.
    pub(crate) pid: i32,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// Starts the command as the leader of a new process group.
///
/// # Errors
/// The reason in one line, for the log and the status.
pub(crate) fn launch(start: &Start, options: &SpawnOptions) -> Result<Launched, String> {
    let (word, args) = start.command.split_first().ok_or("the command is empty")?;
    if !start.cwd.is_dir() {
        return Err(format!("working directory not found: {}", start.cwd.display()));
    }
    let path = match start.env.get("PATH") {
        Some(path) => Some(OsString::from(path)),
        // A cleared environment clears what the instance sees, not where its program is found.
        None => std::env::var_os("PATH"),
    };
    let program = find(word, path.as_deref(), &start.cwd)?;

    let mut command = Command::new(program);
    command
        .arg0(word)
        .args(args)
        .current_dir(&start.cwd)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if start.clear_env {
        command.env_clear();
    }
    SpawnOptions::remove_own_variables(&mut command);
    command.envs(&start.env).env(MARKER, mark(start.instance));

    let mut child = options
        .spawn(&mut command)
        .map_err(|error| format!("cannot start {word}: {error}"))?;
    let pid = i32::try_from(child.id()).expect("a pid is an i32 for the kernel");
    let pipes = child.stdout.take().zip(child.stderr.take());
    let (stdout, stderr) = pipes.expect("both were asked for");
    let receivers = receiver(stdout.into()).and_then(|out| Ok((out, receiver(stderr.into())?)));
    match receivers {
        Ok((stdout, stderr)) => Ok(Launched { pid, stdout, stderr }),
        Err(error) => {
            // The process is not watched yet, so it must not stay.
            let _ = child.kill();
            let _ = child.wait();
            Err(format!("cannot read the output of {word}: {error}"))
        }
    }
}

fn receiver(pipe: OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(pipe)
}

/// Looks up a program on `PATH`. Done here and not by `execvp`, so that the result does not depend on a changed environment,
/// and the error tells a missing program from one that is not executable.
fn find(word: &str, path: Option<&OsStr>, cwd: &Path) -> Result<PathBuf, String> {
    if word.contains('/') {
        let file = cwd.join(word);
        return if is_program(&file) {
            Ok(file)
        } else if file.exists() {
            Err(format!("not executable: {word}"))
        } else {
            Err(format!("command not found: {word}"))
        };
    }
    let mut unusable = None;
    let path = path.unwrap_or_else(|| OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    for directory in std::env::split_paths(path) {
        let file = cwd.join(directory).join(word);
        if is_program(&file) {
            return Ok(file);
        }
        if file.is_file() {
            unusable.get_or_insert(file);
        }
    }
    Err(match unusable {
        Some(file) if !word.is_empty() => format!("not executable: {}", file.display()),
        _ => format!("command not found: {word}"),
    })
}

fn is_program(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_would() {
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("tool");
        std::fs::write(&tool, "#!/bin/sh\n").unwrap();
        let path = dir.path().as_os_str();
        assert_eq!(
            find("tool", Some(path), Path::new("/")),
            Err(format!("not executable: {}", tool.display()))
        );
        assert_eq!(
            find("./tool", None, dir.path()),
            Err("not executable: ./tool".to_owned())
        );
        std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(find("tool", Some(path), Path::new("/")), Ok(tool.clone()));
        assert_eq!(find("./tool", None, dir.path()), Ok(dir.path().join("./tool")));
        assert!(find("sh", None, Path::new("/")).is_ok());
        assert_eq!(
            find("no-such-thing", None, Path::new("/")),
            Err("command not found: no-such-thing".to_owned())
        );
    }
}
