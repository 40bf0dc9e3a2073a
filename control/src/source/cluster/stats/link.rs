//! The WebSocket to the autoscaler: connected again at once when it breaks, and given up when no pong comes.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use sluice_model::RevisionId;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::reports::{PERIOD, Reports, Stat, encode};
use super::{PodLoads, StatsHandle, StatsOptions};

/// The timeout of connecting and of the handshake. A restarted autoscaler decides after 2 s by what it has heard until
/// then: Knative's own 3 s are too long.
const CONNECT: Duration = Duration::from_millis(500);

/// The pauses between attempts, from the first failure on.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
];

/// Attempts at the last of [`PAUSES`] after a connection that had worked: about 10 s, in which an autoscaler restarts and
/// has to hear of what is in use before it decides.
const RESTART: usize = 40;

/// The longest pause, where there is no autoscaler.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The pause after this many failures in a row.
fn pause(failures: usize, had_connection: bool) -> Duration {
    let last = PAUSES[PAUSES.len() - 1];
    let steady = PAUSES.len() - 1 + if had_connection { RESTART } else { 0 };
    match PAUSES.get(failures) {
        Some(pause) => *pause,
        None => {
            let doublings = u32::try_from(failures.saturating_sub(steady)).unwrap_or(u32::MAX);
            last.saturating_mul(2u32.saturating_pow(doublings)).min(MAX_PAUSE)
        }
    }
}

/// The interval of pings.
const PING: Duration = Duration::from_secs(1);

/// The longest time without a pong. Until it is over requests are marked as counted here, also when the connection is a black hole: it
/// has to be shorter than the shortest window of the autoscaler, which is 6 s.
const PONG: Duration = Duration::from_secs(4);

pub(super) async fn run(handle: StatsHandle, options: StatsOptions, loads: Arc<dyn PodLoads>) {
    let mut reports = Reports::default();
    let mut failures = 0;
    let (mut is_broken, mut had_connection) = (false, false);
    loop {
        // Nobody connects for a cluster whose revisions are all unused.
        wait_for_use(&handle, &*loads, &mut reports).await;
        match timeout(CONNECT, connect(&options)).await {
            Ok(Ok(socket)) => {
                if std::mem::take(&mut is_broken) {
                    tracing::info!("statistics reach the autoscaler again");
                }
                failures = 0;
                had_connection = true;
                handle.connected();
                let why = serve(socket, &handle, &options, &*loads, &mut reports).await;
                handle.set_delivered(false);
                handle.failed();
                tracing::info!("the connection for statistics ended: {why}");
            }
            Ok(Err(error)) => warn_once(&mut is_broken, &handle, &error),
            Err(_) => warn_once(&mut is_broken, &handle, "no answer in time"),
        }
        sleep(pause(failures, had_connection)).await;
        failures += 1;
    }
}

fn warn_once(is_broken: &mut bool, handle: &StatsHandle, error: &str) {
    handle.failed();
    if !std::mem::replace(is_broken, true) {
        tracing::warn!(
            "statistics do not reach the autoscaler: {error}; queue-proxies count requests meanwhile, and revisions with a target-burst-capacity of -1 are not scaled by their load"
        );
    }
}

/// Waits until a revision is in use. What is in use already, as after a broken connection, is reported when the
/// connection is there.
async fn wait_for_use(handle: &StatsHandle, loads: &dyn PodLoads, reports: &mut Reports) {
    loop {
        if reports.is_in_use() || !handle.waiting.lock().is_empty() {
            return;
        }
        let unused = reports.tick(loads.sample(), Instant::now().into_std());
        if !unused.is_empty() {
            return;
        }
        tokio::select! {
            () = handle.changed.notified() => {}
            () = sleep(PERIOD) => {}
        }
    }
}

async fn connect(options: &StatsOptions) -> Result<WebSocketStream<TcpStream>, String> {
    let (host, port) = &options.autoscaler;
    let at = |e: &dyn std::fmt::Display| format!("{host}:{port}: {e}");
    let stream = TcpStream::connect((host.as_str(), *port))
        .await
        .map_err(|e| at(&e))?;
    stream.set_nodelay(true).map_err(|e| at(&e))?;
    let (socket, _) = client_async(format!("ws://{host}:{port}/"), stream)
        .await
        .map_err(|e| at(&e))?;
    Ok(socket)
}

/// Reports over one connection, until it breaks. Returns the reason.
async fn serve(
    mut socket: WebSocketStream<TcpStream>,
    handle: &StatsHandle,
    options: &StatsOptions,
    loads: &dyn PodLoads,
    reports: &mut Reports,
) -> String {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ping = interval(PING);
    let mut heard = Instant::now();
    loop {
        let silence = sleep(PONG.saturating_sub(heard.elapsed()));
        let mut silence = pin!(silence);
        let message = tokio::select! {
            // The first tick is immediate: all that is in use is reported to a new autoscaler.
            _ = period.tick() => {
                let now = reports.tick(loads.sample(), Instant::now().into_std());
                if now.is_empty() {
                    continue;
                }
                binary(options, &now)
            }
            () = handle.changed.notified() => {
                let waiting = handle.take_waiting().into_iter();
                let new = waiting.filter(|revision| !reports.knows(revision)).collect::<Vec<_>>();
                let first = new.into_iter().filter_map(|revision| {
                    let stat = reports.activate(&revision, &loads.sample_one(&revision)?);
                    Some((revision, stat))
                });
                let first: Vec<(RevisionId, Stat)> = first.collect();
                if first.is_empty() {
                    continue;
                }
                binary(options, &first)
            }
            _ = ping.tick() => Message::Ping(Default::default()),
            () = &mut silence => return "no pong came in time".to_owned(),
            received = socket.next() => match received {
                Some(Ok(Message::Pong(_))) => {
                    heard = Instant::now();
                    handle.set_delivered(true);
                    continue;
                }
                Some(Ok(Message::Close(frame))) => {
                    return frame.map_or_else(|| "closed".to_owned(), |frame| format!("closed: {}", frame.code));
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => return error.to_string(),
                None => return "closed".to_owned(),
            },
        };
        match timeout(PERIOD, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "nothing more can be sent".to_owned(),
        }
    }
}

fn binary(options: &StatsOptions, reports: &[(RevisionId, Stat)]) -> Message {
    Message::Binary(encode(&options.pod_name, reports).into())
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
