//! The process that owns all local instances.
//!
//! A gateway that is killed cannot clean up. So a small process of the same binary does the
//! starting: it holds one end of a socket, the gateway the other, and when the last gateway is
//! gone the kernel closes the socket and every instance is ended, whatever killed the gateway.
//! Each instance leads a process group of its own, which is ended as a whole.
//!
//! In an upgrade there are two gateways, each with a socket of its own: no message is ever half
//! read by one and half by the other. The newest gives the orders and hears of everything; the
//! others are life lines.
//!
//! **Invariant:** it never waits for the gateway. Output that nobody reads is dropped and counted.

mod groups;
mod inherited;
mod launch;
mod output;
mod strays;
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
pub(crate) use inherited::Inherited;
pub(crate) use wire::{ATTACHES, Command, Event, Label, Link, Listed, Start, Stream, Turn, VERSION, decode};

/// The first argument that makes the binary a supervisor.
pub const ARGUMENT: &str = "__supervisor";

/// The longest grace when the gateway is gone: whoever starts a new one wants the ports back.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// Lines that may wait for the gateway; with the longest lines half a MiB.
const OUTPUT_QUEUE: usize = 64;

/// Lines are taken from the queue only while less than this is unwritten.
const OUTPUT_BACKLOG: usize = 64 << 10;

/// Gateways at once: each is a drain that has not come to its end.
const GATEWAYS: usize = 16;

/// Commands are read only while less than this is unwritten.
const ANSWER_BACKLOG: usize = 1 << 20;

/// Runs a supervisor on the socket that is this process's standard input, and returns once the
/// gateway is gone and every instance has ended. For the composition root, when the first argument
/// is [`ARGUMENT`]; call it before any thread or runtime is started. The second argument, if there is one, is the
/// soft limit of descriptors that instances get.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A write that fails must not panic: nobody may be there to read it.
            let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("sluice supervisor: {error}\n"));
            ExitCode::from(2)
        }
    }
}

fn run() -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    // Orphans come to us instead of to init, so that none is lost.
    nix::sys::prctl::set_child_subreaper(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        // What is aimed at the gateway's group or session must not end us before our instances.
        // A handler and not SIG_IGN, which every instance would inherit.
        let _deaf = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ];
        let descriptors = std::env::args().nth(2).and_then(|limit| limit.parse().ok());
        serve(
            UnixStream::from(socket),
            Scope::Process,
            Inherited { descriptors },
        )
        .await
    })
}

/// Starts a supervisor process and returns the gateway's end of the socket. Its instances get this soft limit of
/// descriptors, or else that of this process.
///
/// # Errors
/// When there is no socket pair or the executable cannot be started.
pub(crate) fn spawn(executable: &Path, descriptors: Option<u64>) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    // What runs, not what lies where it was started from: that may have been replaced since.
    let running = Path::new("/proc/self/exe");
    let program = if running.exists() { running } else { executable };
    // Tokio's, because it reaps a child that nobody waits for.
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
pub(crate) async fn serve(stream: UnixStream, scope: Scope, inherited: Inherited) -> io::Result<()> {
    // Newest last.
    let mut gateways = vec![Link::new(stream)?.pause_above(ANSWER_BACKLOG)];
    let mut child_ended = signal(SignalKind::child())?;
    let (events, mut outgoing) = mpsc::channel(OUTPUT_QUEUE);
    let mut groups = Groups::new(scope, inherited, events);

    while !gateways.is_empty() || !groups.is_empty() {
        let wake = groups.next_wake();
        let backlog = gateways.last().map_or(0, Link::backlog);
        tokio::select! {
            (from, turn) = next_turn(&mut gateways) => match turn {
                Ok(Turn::Message(frame)) => obey(from, &frame, &mut gateways, &mut groups),
                Ok(Turn::Wrote) => continue,
                Ok(Turn::Closed) | Err(_) => {
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
                    say(newest, &event);
                }
                // Nothing can have ended, and there may be very many of these.
                continue;
            }
        }
        groups.tick(Instant::now());
    }
    if scope == Scope::Process {
        strays::end_all();
    }
    Ok(())
}

/// What is too long for a message is a list of tens of thousands of instances: not worth ending
/// those instances for.
fn say(link: &mut Link, event: &Event) {
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

/// What happens next on any of the sockets, the newest first. Dropping the future loses nothing.
async fn next_turn(gateways: &mut [Link]) -> (usize, io::Result<Turn>) {
    let mut turns: Vec<_> = gateways.iter_mut().map(|link| Box::pin(link.next())).collect();
    poll_fn(|cx| {
        for (from, turn) in turns.iter_mut().enumerate().rev() {
            if let Poll::Ready(turn) = turn.as_mut().poll(cx) {
                return Poll::Ready((from, turn));
            }
        }
        Poll::Pending
    })
    .await
}

fn obey(from: usize, frame: &[u8], gateways: &mut Vec<Link>, groups: &mut Groups) {
    let newest = from + 1 == gateways.len();
    let answer = match decode(frame) {
        Ok(Command::Hello { .. }) => Some(Event::Hello { version: VERSION }),
        Ok(Command::Reclaim) => {
            gateways.truncate(from + 1);
            Some(listing(groups))
        }
        Ok(Command::Start(_) | Command::Stop { .. } | Command::List | Command::Attach) if !newest => {
            // Whatever came with it is not for a later command.
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
        say(&mut gateways[from], &answer);
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
