//! The order `hold`: connections that send one request each, all at the same time, and stay open.

use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Stream, h1};
use crate::measure::{Failure, client};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hold {
    to: SocketAddr,
    host: String,
    path: String,
    receive: usize,
    connections: usize,
    tls: bool,
}

/// The bound of concurrent handshakes: the peak memory of handshakes is not measured.
const AT_ONCE: usize = 16;

#[derive(Default)]
pub(super) struct Held(Vec<Box<dyn Stream>>);

impl Held {
    pub(super) async fn hold(&mut self, order: &Hold) -> Result<Value, Failure> {
        let connector = super::tls(b"http/1.1");
        let (mut running, mut open) = (JoinSet::new(), Vec::with_capacity(order.connections));
        for _ in 0..order.connections {
            if running.len() == AT_ONCE {
                open.extend(next(&mut running).await?);
            }
            let (to, host, connector) = (order.to, order.host.clone(), connector.clone());
            let tls = order.tls;
            running.spawn(async move {
                let stream = client::connect(to).await?;
                let stream: Box<dyn Stream> = match tls {
                    true => Box::new(client::handshake(&connector, &host, stream).await?),
                    false => Box::new(stream),
                };
                Ok(stream)
            });
        }
        while let Some(stream) = next(&mut running).await? {
            open.push(stream);
        }
        let request = h1::request(&order.host, &order.path, 0, "");
        for stream in &mut open {
            h1::send(stream, &request).await?;
        }
        let mut buf = h1::buffer(order.receive);
        let answers = async {
            for stream in &mut open {
                h1::answer(stream, order.receive, &mut buf).await?;
            }
            Ok(())
        };
        super::limited(answers).await?;
        self.0.append(&mut open);
        Ok(json!({"held": order.connections}))
    }

    pub(super) fn release(&mut self) -> Value {
        let released = self.0.len();
        self.0 = Vec::new();
        json!({"released": released})
    }
}

type Opened = Result<Box<dyn Stream>, Failure>;

async fn next(running: &mut JoinSet<Opened>) -> Result<Option<Box<dyn Stream>>, Failure> {
    match running.join_next().await {
        None => Ok(None),
        Some(ended) => ended.map_err(|e| Failure::Unexpected(e.to_string()))?.map(Some),
    }
}
