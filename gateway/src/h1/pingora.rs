//! What Pingora wants of a stream beside its bytes.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;

use super::context::ConnectionContext;
use super::stream::GuardedStream;
use crate::edge::Wire;

/// No descriptor. Pingora would ask the socket for addresses, and get the balancer's; they are
/// given below instead, and what else it could ask (TCP_INFO) fails politely.
const NO_SOCKET: i32 = -1;

/// What Pingora's sessions learn of this connection, made once.
#[derive(Debug)]
pub(super) struct Digests {
    socket: Arc<SocketDigest>,
    proxy: Option<Arc<ProxyDigest>>,
}

impl Digests {
    pub(super) fn new(context: &Arc<ConnectionContext>) -> Self {
        let socket = SocketDigest::from_raw_fd(NO_SOCKET);
        let info = context.info();
        // Fresh cells: setting them cannot fail.
        let _ = socket.peer_addr.set(Some(info.client.into()));
        let _ = socket.local_addr.set(Some(info.local.into()));
        let _ = socket.original_dst.set(None);
        // The response is a CONNECT proxy's in Pingora's own use; nobody reads this one.
        let proxy = ResponseHeader::build_no_case(200, Some(0))
            .ok()
            .map(|response| ProxyDigest::new(Box::new(response), Some(Box::new(Arc::clone(context)))));
        Self {
            socket: Arc::new(socket),
            proxy: proxy.map(Arc::new),
        }
    }
}

#[async_trait]
impl Shutdown for GuardedStream {
    async fn shutdown(&mut self) {
        self.close().await;
    }
}

impl UniqueID for GuardedStream {
    fn id(&self) -> UniqueIDType {
        self.context.id()
    }
}

impl Ssl for GuardedStream {
    /// What was settled before Pingora, by ALPN or by the first bytes.
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(match self.context.wire() {
            Wire::Http1 => ALPN::H1,
            Wire::Http2 => ALPN::H2,
        })
    }
}

impl GetTimingDigest for GuardedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for GuardedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.digests.proxy.clone()
    }
}

impl GetSocketDigest for GuardedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digests.socket))
    }
}

impl Peek for GuardedStream {}
