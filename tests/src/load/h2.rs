//! HTTP/2 load: streams one after the other on each connection.

use std::sync::Arc;

use bytes::Bytes;
use h2::Reason;

use super::Shared;
use crate::dial::Dial;
use crate::h2_client::{self, H2};

pub(super) async fn run(dial: Dial, host: String, shared: Arc<Shared>) {
    let scheme = match dial {
        Dial::Plain(_) => "http",
        Dial::Tls(..) => "https",
    };
    while !shared.stopped() {
        match dial.connect().await {
            Ok(io) => stream_by_stream(&H2::over(io).await, scheme, &host, &shared).await,
            Err(e) => shared.count_refused(&e).await,
        }
    }
}

/// Until the connection takes no more streams.
async fn stream_by_stream(conn: &H2, scheme: &str, host: &str, shared: &Shared) {
    while !shared.stopped() {
        if let Err(e) = conn.send.clone().ready().await {
            // Nothing was sent yet: a GOAWAY before the request is no failure.
            if !(e.is_go_away() && e.is_remote() && e.reason() == Some(Reason::NO_ERROR)) {
                shared.count(Err(format!("HTTP/2 connection: {e:?}")));
            }
            return;
        }
        let get = h2_client::get(scheme, host, "/");
        let result = conn.exchange(get, Bytes::new()).await;
        let broken = result.is_err();
        shared.count(match result {
            Ok(response) if response.status == 200 => Ok(response.text()),
            Ok(response) => Err(format!("{} {}", response.status, response.text())),
            Err(e) => Err(format!("HTTP/2 stream: {e:?}")),
        });
        if broken {
            return;
        }
    }
}
