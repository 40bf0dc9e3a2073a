//! The supervisor: a process of the same binary that owns all local instances.
//!
//! A gateway that is killed cannot clean up. The supervisor holds one end of a socket, the gateway the other: when the last
//! gateway is gone, whatever killed it, the kernel closes the socket, and the supervisor ends every instance. Each instance
//! leads a process group of its own, which is ended as a whole.
//!
//! In an upgrade there are two gateways, each with a socket of its own, so that no message is read in halves by both. The
//! newest gateway gives the commands and gets all events; the sockets of the others only show that they live.
//!
//! **Invariant:** the supervisor never waits for a gateway. Output that no gateway reads is dropped and counted.

#![allow(
    clippy::disallowed_methods,
    reason = "the supervisor is a process of its own, whose clock is the real one"
)]

mod groups;
mod launch;
mod orphans;
mod output;
mod spawn;
mod wire;

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use groups::Groups;
pub(crate) use groups::Scope;
pub(crate) use spawn::SpawnOptions;
pub(crate) use wire::{
    ATTACHES, Command, Event, Label, Link, LinkEvent, Listed, Start, Stream, VERSION, decode,
};

/// The first command-line argument of a supervisor process.
pub const ARGUMENT: &str = "__supervisor";

/// The bound of grace periods once the gateway is gone: a new gateway needs the ports.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// The bound of the queue of output lines; with the longest lines half a MiB.
const OUTPUT_QUEUE: usize = 64;

/// Back-pressure on the queue of lines: no line is taken while this many bytes are unwritten.
const OUTPUT_BACKLOG: usize = 64 << 10;

/// The bound of attached gateways. All but the newest are draining.
const GATEWAYS: usize = 16;

/// Back-pressure on commands: none is read while this many bytes are unwritten.
const ANSWER_BACKLOG: usize = 1 << 20;

/// Runs a supervisor on the socket at standard input, and returns once the gateway is gone and every instance has ended. For
/// the composition root, when the first argument is [`ARGUMENT`]; to be called before any thread or runtime is started. A
/// second argument is the soft limit of descriptors of instances.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A failed write must not panic: stderr may be closed.
            let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("sluice supervisor: {error}\n"));
            ExitCode::from(2)
        }
    }
}

fn run() -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    // A subreaper: orphans become children of this process instead of init, so that none is lost.
    nix::sys::prctl::set_child_subreaper(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        // Signals to the gateway's group or session must not end the supervisor before its instances. Handlers and not
        // SIG_IGN, which every instance would inherit.
        let _ignored = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ];
        let descriptors = std::env::args().nth(2).and_then(|limit| limit.parse().ok());
        serve(
            UnixStream::from(socket),
            Scope::Process,
            SpawnOptions { descriptors },
        )
        .await
    })
}

/// Starts a supervisor process and returns the gateway's end of the socket. `descriptors` is the soft limit of descriptors of
/// its instances; `None` is the limit of this process.
///
/// # Errors
/// No socket pair can be made, or the executable cannot be started.
pub(crate) fn spawn(executable: &Path, descriptors: Option<u64>) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    // The running binary: the file at its path may have been replaced since.
    let running = Path::new("/proc/self/exe");
    let program = if running.exists() { running } else { executable };
    // Tokio's `Command`, because it reaps children that nobody waits for.
    tokio::process::Command::new(program)
        .arg0(executable)
        .arg(ARGUMENT)
        .args(descriptors.map(|limit| limit.to_string()))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(false)
        .spawn()?;
    Ok(ours)
}

/// The supervisor's loop: returns once the gateway is gone and every instance has ended.
///
/// # Errors
/// When signals cannot be received or the socket cannot be used at all.
pub(crate) async fn serve(stream: UnixStream, scope: Scope, options: SpawnOptions) -> io::Result<()> {
    // Newest last.
    let mut gateways = vec![Link::new(stream)?.pause_above(ANSWER_BACKLOG)];
    let mut child_ended = signal(SignalKind::child())?;
    let (events, mut outgoing) = mpsc::channel(OUTPUT_QUEUE);
    let mut groups = Groups::new(scope, options, events);

    while !gateways.is_empty() || !groups.is_empty() {
        let wake = groups.next_wake();
        let backlog = gateways.last().map_or(0, Link::backlog);
        tokio::select! {
            (from, event) = next_event(&mut gateways) => match event {
                Ok(LinkEvent::Message(frame)) => execute(from, &frame, &mut gateways, &mut groups),
                Ok(LinkEvent::Wrote) => continue,
                Ok(LinkEvent::Closed) | Err(_) => {
                    gateways.remove(from);
                    if gateways.is_empty() {
                        groups.stop_all(ORPHAN_GRACE, Instant::now());
                    }
                }
            },
            _ = child_ended.recv() => {}
            () = sleep_until(wake) => {}
            Some(event) = outgoing.recv(), if backlog < OUTPUT_BACKLOG => {
                if let Some(newest) = gateways.last_mut() {
                    send(newest, &event);
                }
                // Output ends no group, and there may be very many lines.
                continue;
            }
        }
        groups.tick(Instant::now());
    }
    if scope == Scope::Process {
        orphans::end_all();
    }
    Ok(())
}

/// Queues an event. One that is too long for a message, such as a listing of tens of thousands of instances, is replaced by
/// a refusal: an error would end those instances.
fn send(link: &mut Link, event: &Event) {
    if let Err(error) = link.push(event) {
        let error = error.to_string();
        let _ = link.push(&Event::Refused { error });
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next event on any of the sockets, the newest first. Cancel safe.
async fn next_event(gateways: &mut [Link]) -> (usize, io::Result<LinkEvent>) {
    let mut events: Vec<_> = gateways.iter_mut().map(|link| Box::pin(link.next())).collect();
    poll_fn(|cx| {
        for (from, event) in events.iter_mut().enumerate().rev() {
            if let Poll::Ready(event) = event.as_mut().poll(cx) {
                return Poll::Ready((from, event));
            }
        }
        Poll::Pending
    })
    .await
}

/// Executes a command and queues its reply.
fn execute(from: usize, frame: &[u8], gateways: &mut Vec<Link>, groups: &mut Groups) {
    let newest = from + 1 == gateways.len();
    let answer = match decode(frame) {
        Ok(Command::Hello { .. }) => Some(Event::Hello { version: VERSION }),
        Ok(Command::Reclaim) => {
            gateways.truncate(from + 1);
            Some(listing(groups))
        }
        Ok(Command::Start(_) | Command::Stop { .. } | Command::List | Command::Attach) if !newest => {
            // A descriptor that came with the command must not go to a later one.
            while gateways[from].take_fd().is_some() {}
            Some(Event::Outranked)
        }
        Ok(Command::Start(start)) => Some(groups.start(*start)),
        Ok(Command::Stop { instance, grace_ms }) => {
            groups.stop(instance, Duration::from_millis(grace_ms), Instant::now());
            None
        }
        Ok(Command::List) => Some(listing(groups)),
        Ok(Command::Attach) => attach(gateways).err().map(|error| Event::Refused {
            error: format!("the next gateway cannot be attached: {error}"),
        }),
        Err(error) => Some(Event::Refused { error }),
    };
    if let Some(answer) = answer {
        send(&mut gateways[from], &answer);
    }
}

fn attach(gateways: &mut Vec<Link>) -> io::Result<()> {
    let fd = gateways.last_mut().and_then(Link::take_fd);
    let fd = fd.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no socket came with it"))?;
    if gateways.len() >= GATEWAYS {
        return Err(io::Error::other(format!("{GATEWAYS} gateways are attached")));
    }
    gateways.push(Link::new(UnixStream::from(fd))?.pause_above(ANSWER_BACKLOG));
    Ok(())
}

fn listing(groups: &Groups) -> Event {
    Event::Listing {
        instances: groups.list(),
    }
}

#[cfg(test)]
mod attach_tests;
#[cfg(test)]
mod tests;
