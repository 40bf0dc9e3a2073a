//! WebSocket load: messages that wait for their echo.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::Shared;
use crate::dial::{Dial, Io};

pub(super) async fn run(dial: Dial, host: String, shared: Arc<Shared>) {
    let uri = match dial {
        Dial::Plain(_) => format!("ws://{host}/"),
        Dial::Tls(..) => format!("wss://{host}/"),
    };
    while !shared.stopped() {
        let io = match dial.connect().await {
            Ok(io) => io,
            Err(e) => {
                shared.count_refused(&e).await;
                continue;
            }
        };
        match client_async(&uri, io).await {
            Ok((ws, _)) => echo_by_echo(ws, &shared).await,
            Err(e) => shared.count(Err(format!("WebSocket handshake: {e}"))),
        }
    }
}

/// Runs until the gateway sends Close, which is no failure, or until the connection breaks, which is one.
async fn echo_by_echo(mut ws: WebSocketStream<Io>, shared: &Shared) {
    for n in 0u64.. {
        if shared.stopped() {
            // An error of the closing handshake does not count.
            let _ = ws.close(None).await;
            return;
        }
        let sent = Message::text(n.to_string());
        // A Close that is there already is read below.
        let sending = ws.send(sent.clone()).await;
        match (sending, ws.next().await) {
            (Ok(()), Some(Ok(echo))) if echo == sent => shared.count(Ok(String::new())),
            (Ok(()) | Err(Error::ConnectionClosed), Some(Ok(Message::Close(Some(_))))) => {
                // Reading on answers the Close and waits for the end.
                while let Some(Ok(_)) = ws.next().await {}
                return;
            }
            other => {
                shared.count(Err(format!("WebSocket: {other:?}")));
                return;
            }
        }
    }
}
