//! TLS termination with rustls.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::ServerConfig;
use rustls::version::{TLS12, TLS13};
use sluice_model::{CertificateFiles, TlsSettings};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificates::{Certificate, CertificateError, CertificateTable};
use super::conn::{TlsInfo, Wire};
use super::stream::SocketStream;

/// How often certificate files are looked at for a change.
pub(super) const FILES_CHECKED_EVERY: Duration = Duration::from_secs(3);

/// What came of loading certificates again.
#[derive(Debug, Default)]
pub struct Reload {
    /// Whether other certificates are served from now on.
    pub changed: bool,
    /// What was refused; what was served before is served on. Told once per content of the files.
    pub errors: Vec<CertificateError>,
}

/// Terminates a listener's TLS: 1.2 and 1.3, h2 and http/1.1, certificates by name.
///
/// Certificates live in the rustls config as an immutable resolver, and the config is swapped as a whole:
/// a handshake uses one table from its first byte on, and what it tells of the certificate's names is what
/// it served. Tickets and sessions outlive the swap, so a reload costs no client its resumption.
#[derive(Debug)]
pub struct TlsTerminator {
    current: ArcSwap<Current>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    table: Arc<CertificateTable>,
}

impl TlsTerminator {
    /// Loads all certificates. Blocks: some milliseconds for each hundred.
    ///
    /// # Errors
    /// Every certificate that cannot be served.
    pub fn new(settings: &TlsSettings) -> Result<Self, Vec<CertificateError>> {
        let provider = Arc::new(ring::default_provider());
        let load = CertificateTable::load(&settings.certificates, None, &provider);
        let Some(table) = load.table.map(Arc::new) else {
            return Err(load.errors);
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("ring has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&table) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Stateless tickets under rotating keys: any number of clients can resume, where the default cache
        // holds 256. It fails only without randomness; handshakes are full ones then.
        if let Ok(ticketer) = ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        let config = Arc::new(config);
        Ok(Self {
            current: ArcSwap::from_pointee(Current { config, table }),
            provider,
        })
    }

    /// Serves these certificates from now on; connections that are open keep theirs.
    ///
    /// All or nothing for certificates that are new here: when one of them is bad, nothing changes. A known one
    /// whose new content is bad stays as it was, and the others change. Blocks; not to be called twice at once.
    pub fn reload(&self, settings: &TlsSettings) -> Reload {
        self.load(&settings.certificates)
    }

    /// Looks whether files changed and serves what they hold now. Blocks; not to be called twice at once.
    pub fn refresh(&self) -> Reload {
        let wanted: Vec<_> = self.certificates().iter().map(|c| c.files.clone()).collect();
        self.load(&wanted)
    }

    fn load(&self, wanted: &[CertificateFiles]) -> Reload {
        let current = self.current.load_full();
        let load = CertificateTable::load(wanted, Some(&current.table), &self.provider);
        if let Some(table) = load.table.map(Arc::new) {
            let mut config = ServerConfig::clone(&current.config);
            config.cert_resolver = Arc::clone(&table) as _;
            let config = Arc::new(config);
            self.current.store(Arc::new(Current { config, table }));
        }
        Reload {
            changed: load.changed,
            errors: load.errors,
        }
    }

    /// Every file that is served from.
    pub fn files(&self) -> Vec<PathBuf> {
        let certificates = self.certificates();
        let files = certificates.iter().map(|c| &c.files);
        files
            .flat_map(|f| [f.cert_file.clone(), f.key_file.clone()])
            .collect()
    }

    /// What is served, in the order of the settings.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.current.load_full().table.certificates().to_vec()
    }

    /// The handshake. The caller bounds its time; dropping the future drops the connection.
    ///
    /// # Errors
    /// What rustls or the socket says; the client was sent an alert where possible.
    pub(super) async fn accept(
        &self,
        stream: SocketStream,
    ) -> io::Result<(TlsStream<SocketStream>, TlsInfo, Wire)> {
        let current = self.current.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&current.config));
        let stream = acceptor.accept(stream).await?;
        let session = stream.get_ref().1;
        let sni = session.server_name().map(str::to_owned);
        let wire = match session.alpn_protocol() {
            Some(b"h2") => Wire::Http2,
            _ => Wire::Http1,
        };
        let names = match current.table.find(sni.as_deref()) {
            Some(certificate) => Arc::clone(&certificate.names),
            None => Arc::default(),
        };
        Ok((stream, TlsInfo { sni, names }, wire))
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
