//! Latency at a fixed rate, open loop: from the scheduled time of a request, not from the time of sending, so that a
//! pause counts for every request that the pause delayed (no coordinated omission).

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::h1;
use crate::measure::stats::{percentile, sorted};
use crate::measure::{Failure, client};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pace {
    to: std::net::SocketAddr,
    host: String,
    path: String,
    receive: usize,
    /// Requests per second, over all connections.
    rate: f64,
    connections: usize,
    /// Seconds of the measurement.
    seconds: f64,
    /// Seconds of warm-up before the measurement.
    warm: f64,
}

pub(super) async fn pace(order: &Pace) -> Result<Value, Failure> {
    let mut streams = Vec::new();
    for _ in 0..order.connections {
        streams.push(client::connect(order.to).await?);
    }
    let request = h1::request(&order.host, &order.path, 0, "");
    let all = ((order.warm + order.seconds) * order.rate).round() as u32;
    let unmeasured = (order.warm * order.rate).round() as u32;
    let (start, interval) = (Instant::now(), Duration::from_secs_f64(order.rate.recip()));
    let mut running = JoinSet::new();
    for (first, mut stream) in (0..).zip(streams) {
        let (request, receive, step) = (request.clone(), order.receive, order.connections);
        running.spawn(async move {
            let mut buf = h1::buffer(receive);
            let mut latencies = Vec::new();
            for nth in (first..all).step_by(step) {
                let due = start + interval * nth;
                // A busy wait instead of a sleep: the runtime's clock ticks in milliseconds, and waking up takes
                // time.
                while Instant::now() < due {
                    tokio::task::yield_now().await;
                }
                h1::exchange(&mut stream, &request, receive, &mut buf).await?;
                if nth >= unmeasured {
                    latencies.push(due.elapsed().as_secs_f64() * 1e6);
                }
            }
            Ok(latencies)
        });
    }
    let ends = async {
        let mut latencies = Vec::new();
        while let Some(ended) = running.join_next().await {
            let each: Result<Vec<f64>, Failure> = ended.map_err(|e| Failure::Unexpected(e.to_string()))?;
            latencies.extend(each?);
        }
        Ok(sorted(latencies))
    };
    let latencies = super::limited(ends).await?;
    let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|p| percentile(&latencies, p));
    Ok(json!({"answered": latencies.len(), "p50_us": p50, "p90_us": p90, "p99_us": p99}))
}
