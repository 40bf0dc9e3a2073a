//! The baseline proxy of `bench/compare`: a minimal proxy on pingora-proxy with the features that `bench/compare`
//! needs of every proxy: a table of hosts, a weighted split, listeners for HTTP/1.1, TLS and HTTP/2 by prior
//! knowledge, WebSockets and gRPC.
//!
//! The proxy has no timeouts of its own, no limits, no metrics and no retries: its cost is the cost of Pingora
//! itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use clap::Parser;
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[derive(Debug, Parser)]
struct Cli {
    #[arg(long)]
    plain: SocketAddr,
    #[arg(long)]
    tls: SocketAddr,
    #[arg(long)]
    h2c: SocketAddr,
    #[arg(long)]
    cert: String,
    #[arg(long)]
    key: String,
    /// A file of lines `HOST BACKEND BACKEND`, with `HOST BACKEND BACKEND h2c` where the backends speak HTTP/2; the
    /// first backend gets nine tenths.
    #[arg(long)]
    routes: std::path::PathBuf,
}

/// The route of a host.
struct Route {
    backends: [SocketAddr; 2],
    h2c: bool,
}

struct Proxy {
    routes: Arc<HashMap<String, Route>>,
    turn: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, session: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let head = session.req_header();
        let host = head
            .uri
            .host()
            .or_else(|| head.headers.get("host")?.to_str().ok());
        let Some(route) = host.and_then(|host| self.routes.get(host)) else {
            return Err(Error::new(ErrorType::HTTPStatus(404)));
        };
        let tenth = self.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(10);
        let mut peer = HttpPeer::new(route.backends[usize::from(tenth)], false, String::new());
        if route.h2c {
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = 100;
        }
        Ok(Box::new(peer))
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let text = std::fs::read_to_string(&cli.routes);
    let text = text.map_err(|e| Error::because(ErrorType::FileReadError, "the routes", e))?;
    let routes = text.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let address = |nth: usize| words.get(nth).and_then(|word| word.parse().ok());
        let bad = || Error::explain(ErrorType::FileReadError, format!("no route: '{line}'"));
        let backends = [address(1).ok_or_else(bad)?, address(2).ok_or_else(bad)?];
        let h2c = words.get(3) == Some(&"h2c");
        Ok((words[0].to_owned(), Route { backends, h2c }))
    });
    let routes: Arc<HashMap<_, _>> = Arc::new(routes.collect::<Result<_>>()?);

    let conf = ServerConf {
        threads: 1,
        work_stealing: false,
        upstream_keepalive_pool_size: 512,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    for h2c in [false, true] {
        let routes = Arc::clone(&routes);
        let turn = AtomicUsize::new(0);
        let mut service = http_proxy_service(&server.configuration, Proxy { routes, turn });
        if h2c {
            let mut options = HttpServerOptions::default();
            options.h2c = true;
            if let Some(app) = service.app_logic_mut() {
                app.server_options = Some(options);
            }
            service.add_tcp(&cli.h2c.to_string());
        } else {
            service.add_tcp(&cli.plain.to_string());
            let mut tls = TlsSettings::intermediate(&cli.cert, &cli.key)?;
            tls.enable_h2();
            service.add_tls_with_settings(&cli.tls.to_string(), None, tls);
        }
        server.add_service(service);
    }
    server.run_forever()
}
