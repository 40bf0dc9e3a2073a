//! Connections of clients: the loops that take one request after another from an HTTP/1 connection, or
//! many at a time from an HTTP/2 one, and the relay of bytes after a switch of protocols.

mod close_frames;
mod frame_watch;
mod http1;
mod http1_client;
mod http2;
mod http2_client;
mod http2_head;
mod relay;
mod web_socket;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

pub use self::close_frames::FrameTracker;
pub(crate) use self::relay::{Bounds, Ended, relay};
use crate::edge::{CloseReason, Connection, Drain, Serve, Wire};
use crate::request::Engine;

/// Serves HTTP on prepared connections.
pub struct Downstream {
    engine: Arc<Engine>,
}

impl Downstream {
    /// A server of connections over the shared engine.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl Serve for Downstream {
    async fn serve(&self, connection: Connection, drain: watch::Receiver<Drain>) -> CloseReason {
        match connection.wire {
            Wire::Http1 => http1::serve(&self.engine, connection, drain).await,
            // Boxed: the larger of the two states is not kept for every connection.
            Wire::Http2 => Box::pin(http2::serve(&self.engine, connection, drain)).await,
        }
    }
}
