//! TLS termination with rustls.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ProducesTickets, ServerConfig, ServerSessionMemoryCache, StoresServerSessions};
use rustls::version::{TLS12, TLS13};
use sluice_model::{CipherSuite, TlsSettings, TlsVersion};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificates::{Certificate, CertificateError, CertificateTable};
use super::connection::{HttpVersion, TlsInfo};
use super::stream::SocketStream;

/// Interval of the check of certificate files for changes.
pub(super) const FILES_CHECKED_EVERY: Duration = Duration::from_secs(3);

/// The result of loading certificates again.
#[derive(Debug, Default)]
pub struct Reload {
    /// Whether other certificates are served from now on.
    pub changed: bool,
    /// Certificates that were refused; what was served before is still served. Reported once per content of
    /// the files.
    pub errors: Vec<CertificateError>,
}

/// The TLS terminator of a listener: ALPN h2 and http/1.1, certificates by SNI, versions and cipher suites as
/// configured.
///
/// Certificates are an immutable resolver inside the rustls config, and a reload swaps the config as a whole:
/// a handshake uses one table from its first byte on, and the names in its [`TlsInfo`] are those of the
/// certificate it served. Ticket keys and sessions outlive the swap, so a reload costs no client its
/// resumption; they do not outlive the process, whose successor's clients make one full handshake each.
#[derive(Debug)]
pub struct TlsTerminator {
    current: ArcSwap<Current>,
    resumption: Resumption,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    table: Arc<CertificateTable>,
    provider: Arc<CryptoProvider>,
    min_version: TlsVersion,
    cipher_suites: Option<Vec<CipherSuite>>,
}

/// State of session resumption, which works for any of the listener's certificates.
#[derive(Debug)]
struct Resumption {
    /// Stateless tickets: keys change every six hours and expire after twelve. Any number of clients can
    /// resume, where rustls's default cache holds 256. `None` without randomness.
    tickets: Option<Arc<dyn ProducesTickets>>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl TlsTerminator {
    /// Loads all certificates. Blocks, some milliseconds for each hundred.
    ///
    /// # Errors
    /// All certificates that cannot be served.
    pub fn new(settings: &TlsSettings) -> Result<Self, Vec<CertificateError>> {
        let resumption = Resumption {
            tickets: ring::Ticketer::new().ok(),
            // Session cache for TLS 1.2 clients without tickets; rustls's default size.
            sessions: ServerSessionMemoryCache::new(256),
        };
        let provider = provider(settings.cipher_suites.as_deref());
        let load = CertificateTable::load(&settings.certificates, None, &provider);
        let Some(table) = load.table.map(Arc::new) else {
            return Err(load.errors);
        };
        Ok(Self {
            current: ArcSwap::from_pointee(Current::new(table, provider, settings, &resumption)),
            resumption,
        })
    }

    /// Checks the files for changes and serves their new content. Blocks; must not run twice at once.
    pub fn refresh(&self) -> Reload {
        let current = self.current.load_full();
        let certificates = current.table.certificates();
        self.reload(&TlsSettings {
            certificates: certificates.iter().map(|c| c.files.clone()).collect(),
            min_version: current.min_version,
            cipher_suites: current.cipher_suites.clone(),
        })
    }

    /// Replaces certificates, versions and suites for handshakes to come; open connections keep theirs.
    ///
    /// All or nothing for new certificates: when one of them is bad, nothing changes. A known certificate
    /// whose new content is bad stays as it was, while the others change. Blocks; must not run twice at once.
    pub fn reload(&self, wanted: &TlsSettings) -> Reload {
        let current = self.current.load_full();
        let same_policy =
            current.min_version == wanted.min_version && current.cipher_suites == wanted.cipher_suites;
        let provider = match same_policy {
            true => Arc::clone(&current.provider),
            false => provider(wanted.cipher_suites.as_deref()),
        };
        let load = CertificateTable::load(&wanted.certificates, Some(&current.table), &provider);
        let table = match load.table {
            Some(table) => Some(Arc::new(table)),
            // No new table: another policy takes effect with the present table, unless a certificate was
            // refused; then nothing changes.
            None if !same_policy && load.whole => Some(Arc::clone(&current.table)),
            None => None,
        };
        if let Some(table) = table {
            let new = Current::new(table, provider, wanted, &self.resumption);
            self.current.store(Arc::new(new));
        }
        Reload {
            changed: load.changed,
            errors: load.errors,
        }
    }

    /// All certificate and key files.
    pub fn files(&self) -> Vec<PathBuf> {
        let certificates = self.certificates();
        let files = certificates.iter().map(|c| &c.files);
        files
            .flat_map(|f| [f.cert_file.clone(), f.key_file.clone()])
            .collect()
    }

    /// The served certificates, in the order of the settings.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.current.load_full().table.certificates().to_vec()
    }

    /// Performs the TLS handshake. The caller sets the deadline; dropping the future closes the connection.
    ///
    /// # Errors
    /// The error of rustls or the socket; the client was sent an alert where possible.
    pub(super) async fn accept(
        &self,
        stream: SocketStream,
    ) -> io::Result<(TlsStream<SocketStream>, TlsInfo, HttpVersion)> {
        let current = self.current.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&current.config));
        let stream = acceptor.accept(stream).await?;
        let session = stream.get_ref().1;
        let sni = session.server_name().map(str::to_owned);
        let http_version = match session.alpn_protocol() {
            Some(b"h2") => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        };
        let names = match current.table.find(sni.as_deref()) {
            Some(certificate) => Arc::clone(&certificate.names),
            None => Arc::default(),
        };
        Ok((stream, TlsInfo { sni, names }, http_version))
    }
}

impl Current {
    fn new(
        table: Arc<CertificateTable>,
        provider: Arc<CryptoProvider>,
        settings: &TlsSettings,
        resumption: &Resumption,
    ) -> Self {
        let versions: &[&SupportedProtocolVersion] = match settings.min_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("settings leave a suite for the oldest version or a newer one")
            // Client certificates will be asked for here.
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&table) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::clone(&resumption.sessions);
        if let Some(tickets) = &resumption.tickets {
            config.ticketer = Arc::clone(tickets);
        }
        Self {
            config: Arc::new(config),
            table,
            provider,
            min_version: settings.min_version,
            cipher_suites: settings.cipher_suites.clone(),
        }
    }
}

/// The *ring* crypto provider, limited to the allowed suites, in its own order of preference.
fn provider(allowed: Option<&[CipherSuite]>) -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    if let Some(allowed) = allowed {
        provider
            .cipher_suites
            .retain(|known| allowed.iter().any(|suite| known.suite() == named(*suite)));
    }
    Arc::new(provider)
}

fn named(suite: CipherSuite) -> rustls::CipherSuite {
    use rustls::CipherSuite as Known;
    match suite {
        CipherSuite::Tls13Aes256GcmSha384 => Known::TLS13_AES_256_GCM_SHA384,
        CipherSuite::Tls13Aes128GcmSha256 => Known::TLS13_AES_128_GCM_SHA256,
        CipherSuite::Tls13Chacha20Poly1305Sha256 => Known::TLS13_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheEcdsaAes256GcmSha384 => Known::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaAes128GcmSha256 => Known::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaChacha20Poly1305Sha256 => Known::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheRsaAes256GcmSha384 => Known::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaAes128GcmSha256 => Known::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaChacha20Poly1305Sha256 => Known::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "tls_policy_tests.rs"]
mod policy_tests;
