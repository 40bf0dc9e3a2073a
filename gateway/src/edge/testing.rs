//! Test fixture of the edge: settings, a handler that reports and echoes, counted closes, certificates.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use sluice_model::{
    CertificateFiles, CertificatePem, DrainSettings, Limits, ListenerSettings, Settings, TlsSettings,
    test_util,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::*;

/// Timeout of a wait; reached only by a test that fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(super) fn plain() -> ListenerSettings {
    test_util::listener()
}

/// No limit that a test does not set, and timeouts that no test waits for.
pub(super) fn settings(listeners: Vec<ListenerSettings>) -> Settings {
    Settings {
        listeners,
        limits: Limits {
            header_timeout: PATIENCE,
            idle_timeout: PATIENCE,
            write_timeout: PATIENCE,
            max_connections: None,
            ..test_util::limits()
        },
        drain: DrainSettings {
            delay: Duration::ZERO,
            timeout: PATIENCE,
        },
        ..test_util::settings()
    }
}

/// A handler that reports each connection and echoes until the client's end or [`Drain::Closing`].
struct Echo(mpsc::UnboundedSender<(Arc<ConnectionInfo>, HttpVersion)>);

impl ConnectionHandler for Echo {
    fn serve(&self, connection: Connection, mut drain: watch::Receiver<Drain>) -> HandlerFuture<'_> {
        let Connection {
            mut io,
            info,
            http_version,
        } = connection;
        let _ = self.0.send((info, http_version));
        Box::pin(async move {
            let echo = async {
                let mut buf = [0; 1024];
                while let Ok(n @ 1..) = io.read(&mut buf).await {
                    assert_ne!(buf[0], b'!', "asked to panic");
                    if io.write_all(&buf[..n]).await.is_err() || io.flush().await.is_err() {
                        break;
                    }
                }
                let _ = io.shutdown().await;
            };
            tokio::select! {
                () = echo => {}
                _ = drain.wait_for(|phase| *phase == Drain::Closing) => {}
            }
            CloseReason::Served
        })
    }
}

#[derive(Default)]
pub(super) struct Counts {
    open: Mutex<HashMap<ConnectionProtocol, isize>>,
    closed: Mutex<HashMap<CloseReason, usize>>,
    exhausted: Mutex<usize>,
}

impl Counts {
    pub(super) fn open(&self, protocol: ConnectionProtocol) -> isize {
        self.open.lock().get(&protocol).copied().unwrap_or(0)
    }

    pub(super) fn closed(&self, reason: CloseReason) -> usize {
        self.closed.lock().get(&reason).copied().unwrap_or(0)
    }

    pub(super) fn exhausted(&self) -> usize {
        *self.exhausted.lock()
    }
}

impl ListenerMetrics for Counts {
    fn entered(&self, protocol: ConnectionProtocol) {
        *self.open.lock().entry(protocol).or_default() += 1;
    }
    fn left(&self, protocol: ConnectionProtocol) {
        *self.open.lock().entry(protocol).or_default() -= 1;
    }
    fn closed(&self, reason: CloseReason) {
        *self.closed.lock().entry(reason).or_default() += 1;
    }
    fn exhausted(&self) {
        *self.exhausted.lock() += 1;
    }
}

/// Counts all listeners as one.
struct AllAsOne(Arc<Counts>);

impl EdgeMetrics for AllAsOne {
    fn listener(&self, _: SocketAddr) -> Arc<dyn ListenerMetrics> {
        Arc::clone(&self.0) as _
    }
}

/// An edge under test.
pub(super) struct EdgeFixture {
    pub(super) edge: Edge,
    pub(super) counts: Arc<Counts>,
    pub(super) settings: Settings,
    published: Arc<Mutex<Arc<Settings>>>,
    served: mpsc::UnboundedReceiver<(Arc<ConnectionInfo>, HttpVersion)>,
}

impl EdgeFixture {
    pub(super) async fn start(settings: Settings) -> Self {
        let fixture = Self::unbound(settings);
        let errors = fixture.edge.apply(&fixture.settings).await;
        assert!(errors.is_empty(), "{errors:?}");
        fixture
    }

    /// A fixture without listeners.
    pub(super) fn unbound(settings: Settings) -> Self {
        let published = Arc::new(Mutex::new(Arc::new(settings.clone())));
        let reader = Arc::clone(&published);
        let (told, served) = mpsc::unbounded_channel();
        let counts = Arc::<Counts>::default();
        let edge = Edge::new(
            Arc::new(move || Arc::clone(&reader.lock())),
            Arc::new(Echo(told)),
            Arc::new(AllAsOne(Arc::clone(&counts))),
            watch::Sender::new(Drain::Serving),
        );
        Self {
            edge,
            counts,
            settings,
            published,
            served,
        }
    }

    /// Publishes `self.settings` and applies them.
    pub(super) async fn reload(&mut self) -> Vec<ListenerError> {
        *self.published.lock() = Arc::new(self.settings.clone());
        self.edge.apply(&self.settings).await
    }

    pub(super) fn address(&self, listener: usize) -> SocketAddr {
        self.edge.listeners()[listener].bound
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address(0)).await.unwrap()
    }

    /// The next connection that got as far as HTTP.
    pub(super) async fn served(&mut self) -> (Arc<ConnectionInfo>, HttpVersion) {
        timeout(PATIENCE, self.served.recv()).await.unwrap().unwrap()
    }

    /// Waits until this many connections ended for this reason.
    pub(super) async fn closed(&self, reason: CloseReason, n: usize) {
        eventually(
            || self.counts.closed(reason) == n,
            || format!("{reason}: {:?}", self.counts.closed.lock()),
        )
        .await;
    }
}

pub(super) async fn eventually(condition: impl Fn() -> bool, told: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{}", told());
        sleep(Duration::from_millis(1)).await;
    }
}

/// Sends `bytes` and expects them back.
pub(super) async fn echo(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    timeout(PATIENCE, stream.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, bytes);
}

/// Expects the peer to close, with a FIN or a reset.
pub(super) async fn expect_close(stream: &mut TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

/// A new self-signed certificate for these names, as PEM and as shown to clients.
pub(crate) fn pem(names: &[&str]) -> (CertificatePem, Vec<u8>) {
    let names = names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let pem = CertificatePem {
        chain: made.cert.pem().into_bytes().into(),
        key: made.signing_key.serialize_pem().into_bytes().into(),
    };
    (pem, made.cert.der().to_vec())
}

/// Writes a new self-signed certificate for these names and returns it.
pub(super) fn certificate(dir: &Path, stem: &str, names: &[&str]) -> (CertificateFiles, Vec<u8>) {
    let (pem, der) = pem(names);
    let files = CertificateFiles {
        cert_file: dir.join(format!("{stem}.crt")),
        key_file: dir.join(format!("{stem}.key")),
    };
    fs::write(&files.key_file, &pem.key).unwrap();
    fs::write(&files.cert_file, &pem.chain).unwrap();
    (files, der)
}

pub(super) fn tls_listener(certificates: Vec<CertificateFiles>) -> ListenerSettings {
    ListenerSettings {
        tls: Some(TlsSettings::new(certificates)),
        ..plain()
    }
}

/// Accepts any certificate: the tests look at which one was served.
#[derive(Debug)]
struct AnyCertificate;

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let known = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &known)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let known = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &known)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

pub(crate) fn client_config_of(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth()
}

pub(crate) fn client_config(alpn: &[&str]) -> Arc<ClientConfig> {
    let mut config = client_config_of(&[&rustls::version::TLS12, &rustls::version::TLS13]);
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub(crate) type TlsClient = tokio_rustls::client::TlsStream<TcpStream>;

/// Performs a TLS handshake with this server name; an address sends none.
pub(crate) async fn handshake(config: &Arc<ClientConfig>, tcp: TcpStream, name: &str) -> TlsClient {
    try_handshake(config, tcp, name).await.unwrap()
}

/// As [`handshake`], which may fail.
pub(crate) async fn try_handshake(
    config: &Arc<ClientConfig>,
    tcp: TcpStream,
    name: &str,
) -> std::io::Result<TlsClient> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    timeout(PATIENCE, connector.connect(name, tcp)).await.unwrap()
}

/// The certificate the server showed.
pub(super) fn shown(client: &TlsClient) -> Vec<u8> {
    client.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}
