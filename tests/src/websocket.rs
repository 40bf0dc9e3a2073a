//! WebSocket clients, and a backend that echoes.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::raw_backend::RawBackend;
use crate::wait::{SOON, within};

/// A backend that echoes messages, and the codes of the Close frames that it gets.
pub async fn echo_backend() -> (RawBackend, mpsc::UnboundedReceiver<u16>) {
    let (sender, closes) = mpsc::unbounded_channel();
    let backend = RawBackend::start(move |_, io: TcpStream| {
        let sender = sender.clone();
        async move {
            let mut ws = accept_async(io).await.map_err(std::io::Error::other)?;
            while let Some(Ok(message)) = ws.next().await {
                match message {
                    Message::Close(frame) => {
                        let _ = sender.send(frame.map_or(0, |f| f.code.into()));
                    }
                    message => {
                        if ws.send(message).await.is_err() {
                            break;
                        }
                    }
                }
            }
            Ok(())
        }
    })
    .await;
    (backend, closes)
}

/// A WebSocket to `/chat` on `host`, over `addr`.
///
/// # Panics
/// When the handshake fails.
pub async fn connect(addr: SocketAddr, host: &str) -> WebSocketStream<TcpStream> {
    let io = TcpStream::connect(addr).await.expect("the gateway accepts");
    let (ws, response) = client_async(format!("ws://{host}/chat"), io)
        .await
        .expect("the upgrade succeeds");
    assert_eq!(response.status(), 101);
    ws
}

/// Sends a message and waits for its echo.
///
/// # Panics
/// When another message comes.
pub async fn echoed<S: AsyncRead + AsyncWrite + Unpin>(ws: &mut WebSocketStream<S>, message: Message) {
    ws.send(message.clone()).await.expect("the tunnel is open");
    let reply = within("an echo", SOON, ws.next()).await.expect("a message");
    assert_eq!(reply.expect("the tunnel is open"), message);
}

/// Waits for a Close that says "going away" (1001).
///
/// # Panics
/// When another message comes.
pub async fn going_away<S: AsyncRead + AsyncWrite + Unpin>(ws: &mut WebSocketStream<S>) {
    let end = within("a Close", SOON, ws.next()).await.expect("a message");
    match end.expect("an orderly end") {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
}
