//! Two gateways behind a load balancer: rolling restarts, upgrades and reloads lose no request.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sluice_tests::backend::HttpBackend;
use sluice_tests::balancer::Balancer;
use sluice_tests::dial::Dial;
use sluice_tests::gateway::Gateway;
use sluice_tests::load::Load;
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::tls::{Ca, negotiated, peer_certificate};
use sluice_tests::wait::{SOON, wait_for};
use tokio::net::TcpStream;

use crate::WEB;

const CHAT: &str = "chat.default.localhost";

/// The gateways' config: TLS behind PROXY, a health port, and time for the balancer to notice.
fn config(web: SocketAddr, chat: SocketAddr) -> String {
    format!(
        r#"
listeners:
  - address: 127.0.0.1:0
    proxyProtocol: {{mode: required, from: [127.0.0.0/8]}}
    tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}
health: {{address: "127.0.0.1:0"}}
drain: {{delay: 1s, timeout: 3s}}
services:
  - {{name: web, endpoints: ["{web}"]}}
  - {{name: chat, endpoints: ["{chat}"]}}
"#
    )
}

/// Echoes messages until Close.
async fn chat() -> RawBackend {
    RawBackend::start(|_, io: TcpStream| async move {
        let mut ws = tokio_tungstenite::accept_async(io)
            .await
            .map_err(std::io::Error::other)?;
        while let Some(Ok(message)) = ws.next().await {
            if message.is_text() && ws.send(message).await.is_err() {
                break;
            }
        }
        Ok(())
    })
    .await
}

struct Site {
    ca: Ca,
    gateways: [Gateway; 2],
    balancer: Balancer,
    _backends: (HttpBackend, RawBackend),
}

impl Site {
    async fn start() -> Self {
        let ca = Ca::new();
        let backends = (HttpBackend::start("a").await, chat().await);
        let config = config(backends.0.addr(), backends.1.addr());
        let pair = ca.issue(&[WEB, CHAT]);
        let start = async || {
            let builder = Gateway::builder(&config);
            pair.write(builder.dir(), "a");
            builder.start().await
        };
        let gateways = [start().await, start().await];
        let members = [0, 1].map(|n: usize| (gateways[n].addr(), gateways[n].health()));
        Self {
            ca,
            balancer: Balancer::start(&members).await,
            gateways,
            _backends: backends,
        }
    }

    fn dial(&self, name: &str, alpn: &str) -> Dial {
        Dial::tls(self.balancer.addr(), name, self.ca.client(&[alpn]))
    }

    /// Every kind of client at once.
    fn load(&self) -> Traffic {
        Traffic(vec![
            Load::get(self.dial(WEB, "http/1.1"), 4, WEB),
            Load::get_anew(self.dial(WEB, "http/1.1"), 2, WEB),
            Load::get_h2(self.dial(WEB, "h2"), 4, WEB),
            Load::websockets(self.dial(CHAT, "http/1.1"), 4, CHAT),
        ])
    }

    /// Waits until new connections are answered with this certificate by each gateway.
    async fn wait_certificate(&self, dir: &Path) {
        let pem = std::fs::read_to_string(dir.join("a.crt")).expect("it was written");
        let wanted = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        // In turns: two in a row are one of each.
        let row = Cell::new(0);
        wait_for("the new certificate is served by both", SOON, async || {
            let io = self.ca.connect(self.balancer.addr(), WEB, &["h2"]).await.ok()?;
            assert_eq!(negotiated(&io).as_deref(), Some("h2"));
            let same = peer_certificate(&io) == wanted;
            row.set(if same { row.get() + 1 } else { 0 });
            (row.get() >= 4).then_some(())
        })
        .await;
    }
}

struct Traffic(Vec<Load>);

impl Traffic {
    async fn advance(&self) {
        for load in &self.0 {
            load.advance(50).await;
        }
    }

    async fn assert_clean(self) {
        self.advance().await;
        for load in self.0 {
            load.stop().await.assert_clean();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_is_ended_and_nobody_notices() {
    let mut site = Site::start().await;
    let traffic = site.load();
    traffic.advance().await;
    site.gateways[0].sigterm();
    site.balancer.wait_ready(0, false).await;
    let given = site.balancer.connections(0);
    let exit = site.gateways[0].wait_exit(Duration::from_secs(20)).await;
    assert_eq!(exit.code(), Some(0));
    traffic.assert_clean().await;
    assert_eq!(
        site.balancer.connections(0),
        given,
        "nobody was sent there after it said so"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_is_upgraded_and_nobody_notices() {
    let mut site = Site::start().await;
    let traffic = site.load();
    traffic.advance().await;
    let before = site.balancer.connections(0);
    site.gateways[0].upgraded().await;
    traffic.advance().await;
    let exit = site.gateways[0].wait_exit(Duration::from_secs(20)).await;
    assert_eq!(exit.code(), Some(0));
    wait_for("the new process is sent its share", SOON, async || {
        (site.balancer.connections(0) > before + 10).then_some(())
    })
    .await;
    traffic.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_swapped_and_nobody_notices() {
    let site = Site::start().await;
    let traffic = site.load();
    traffic.advance().await;
    for _ in 0..3 {
        let pair = site.ca.issue(&[WEB, CHAT]);
        for gateway in &site.gateways {
            pair.write(gateway.dir(), "a");
        }
        site.wait_certificate(site.gateways[0].dir()).await;
        traffic.advance().await;
    }
    traffic.assert_clean().await;
}
