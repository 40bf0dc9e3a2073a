//! Client connections: the request loops of HTTP/1 and HTTP/2, and the relay of bytes after a protocol
//! switch.

mod frame_watch;
mod http1;
mod http1_client;
mod http2;
mod http2_client;
mod http2_head;
mod relay;
mod websocket_frames;
mod websocket_stream;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

pub(crate) use self::relay::{Bounds, Ended, relay};
pub use self::websocket_frames::WebSocketFrameTracker;
use crate::edge::{Connection, ConnectionHandler, Drain, HandlerFuture, HttpVersion};
use crate::http1::HttpDate;
use crate::request::Engine;

/// Serves HTTP on prepared connections.
pub struct Downstream {
    engine: Arc<Engine>,
}

impl Downstream {
    /// A connection handler over the shared state.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

impl ConnectionHandler for Downstream {
    fn serve(&self, connection: Connection, drain: watch::Receiver<Drain>) -> HandlerFuture<'_> {
        // Boxed one by one: an HTTP/1 connection keeps no room for the state of an HTTP/2 one.
        match connection.http_version {
            HttpVersion::Http1 => Box::pin(http1::serve(&self.engine, connection, drain)),
            HttpVersion::Http2 => Box::pin(http2::serve(&self.engine, connection, drain)),
        }
    }
}

/// The value of a `Date` field for a message made now (RFC 9110 6.6.1), rendered once a second on each
/// thread.
fn date_now() -> [u8; 29] {
    thread_local! {
        static DATE: RefCell<HttpDate> = RefCell::new(HttpDate::new());
    }
    let since = crate::observe::wall_clock().duration_since(SystemTime::UNIX_EPOCH);
    DATE.with_borrow_mut(|date| *date.at(since.map_or(0, |since| since.as_secs())))
}
