//! TLS termination with rustls.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{
    Acceptor, ClientHello, ProducesTickets, ResolvesServerCert, ServerConfig, ServerSessionMemoryCache,
    StoresServerSessions,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use sluice_model::{CertificateFiles, CipherSuite, TlsSettings, TlsVersion, Visibility};
use tokio::io::AsyncWriteExt;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::certificates::{Certificate, CertificateError, CertificateTable};
use super::connection::{HttpVersion, TlsInfo};
use super::service_certificates::ServiceCertificates;
use super::sni_map::SniMap;
use super::stream::SocketStream;

/// Interval of the check of certificate files for changes.
pub(super) const FILES_CHECKED_EVERY: Duration = Duration::from_secs(3);

/// The alert for a client that names no known server, fatal `unrecognized_name` (RFC 6066) as a record: rustls sends
/// `access_denied` where no certificate is found, which clients show as a question of rights.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

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
/// configured. Certificates are the listener's own, from files, and those that services bring for its visibility.
///
/// Certificates are an immutable resolver inside the rustls config, and a change swaps the config as a whole:
/// a handshake uses one version from its first byte on, and the names in its [`TlsInfo`] are those of the
/// certificate it served. Ticket keys and sessions outlive the swap, so a change costs no client its
/// resumption; they do not outlive the process, whose successor's clients make one full handshake each.
#[derive(Debug)]
pub struct TlsTerminator {
    current: ArcSwap<Current>,
    /// Serialises swaps of `current`: files are loaded by one task, services' certificates taken up by handshakes.
    swap: Mutex<()>,
    services: Arc<ServiceCertificates>,
    resumption: Resumption,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
    provider: Arc<CryptoProvider>,
    policy: Policy,
}

/// The part of the settings besides certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Policy {
    min_version: TlsVersion,
    cipher_suites: Option<Vec<CipherSuite>>,
    visibility: Visibility,
}

/// One version of the certificates: those of files, and those of services.
#[derive(Debug)]
struct Resolver {
    files: Arc<CertificateTable>,
    services: Arc<SniMap>,
}

impl Resolver {
    /// The certificate for a server name: exact match, then one-label wildcard, files before services for each; then
    /// the first file.
    fn find(&self, sni: Option<&str>) -> Option<&Arc<Certificate>> {
        let named = sni.and_then(|name| {
            let exact = self.files.exact(name).or_else(|| self.services.exact(name));
            exact
                .or_else(|| self.files.wildcard(name))
                .or_else(|| self.services.wildcard(name))
        });
        named.or_else(|| self.files.default())
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls gives the name in lower case.
        self.find(hello.server_name()).map(|c| Arc::clone(c.key()))
    }
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
    /// Loads all certificates of files. Blocks, some milliseconds for each hundred.
    ///
    /// # Errors
    /// All certificates that cannot be served.
    pub fn new(settings: &TlsSettings) -> Result<Self, Vec<CertificateError>> {
        Self::beside(Arc::default(), settings, Visibility::External)
    }

    /// As [`new`](Self::new), beside the certificates that services bring for a visibility.
    pub(super) fn beside(
        services: Arc<ServiceCertificates>,
        settings: &TlsSettings,
        visibility: Visibility,
    ) -> Result<Self, Vec<CertificateError>> {
        let resumption = Resumption {
            tickets: ring::Ticketer::new().ok(),
            // Session cache for TLS 1.2 clients without tickets; rustls's default size.
            sessions: ServerSessionMemoryCache::new(256),
        };
        let provider = provider(settings.cipher_suites.as_deref());
        let load = CertificateTable::load(&settings.certificates, None, &provider);
        let Some(files) = load.table.map(Arc::new) else {
            return Err(load.errors);
        };
        let resolver = Resolver {
            files,
            services: services.served(visibility),
        };
        let current = Current::new(resolver, provider, Policy::of(settings, visibility), &resumption);
        Ok(Self {
            current: ArcSwap::from_pointee(current),
            swap: Mutex::default(),
            services,
            resumption,
        })
    }

    /// Checks the files for changes and serves their new content. Blocks; must not run twice at once.
    pub fn refresh(&self) -> Reload {
        let current = self.current.load_full();
        let files: Vec<_> = current.resolver.files.files().cloned().collect();
        self.load(&files, current.policy.clone())
    }

    /// Replaces certificates of files, versions and suites for handshakes to come; open connections keep theirs.
    ///
    /// All or nothing for new certificates: when one of them is bad, nothing changes. A known certificate
    /// whose new content is bad stays as it was, while the others change. Blocks; must not run twice at once.
    pub fn reload(&self, wanted: &TlsSettings, visibility: Visibility) -> Reload {
        self.load(&wanted.certificates, Policy::of(wanted, visibility))
    }

    fn load(&self, wanted: &[CertificateFiles], policy: Policy) -> Reload {
        let current = self.current.load_full();
        let same_policy = current.policy == policy;
        let provider = match current.policy.cipher_suites == policy.cipher_suites {
            true => Arc::clone(&current.provider),
            false => provider(policy.cipher_suites.as_deref()),
        };
        let files = &current.resolver.files;
        let load = CertificateTable::load(wanted, Some(files), &provider);
        let table = match load.table {
            Some(table) => Some(Arc::new(table)),
            // No new table: another policy takes effect with the present table, unless a certificate was
            // refused; then nothing changes.
            None if !same_policy && load.whole => Some(Arc::clone(files)),
            None => None,
        };
        if let Some(files) = table {
            let _one_at_a_time = self.swap.lock();
            let services = self.services.served(policy.visibility);
            let resolver = Resolver { files, services };
            let new = Current::new(resolver, provider, policy, &self.resumption);
            self.current.store(Arc::new(new));
        }
        Reload {
            changed: load.changed,
            errors: load.errors,
        }
    }

    /// All certificate and key files.
    pub fn files(&self) -> Vec<PathBuf> {
        let current = self.current.load_full();
        let files = current.resolver.files.files();
        files
            .flat_map(|f| [f.cert_file.clone(), f.key_file.clone()])
            .collect()
    }

    /// The served certificates: those of files in the order of the settings, then those of services by name.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        let resolver = &self.current().resolver;
        let files = resolver.files.certificates().cloned();
        files.chain(resolver.services.certificates()).collect()
    }

    /// The present version, with the certificates that services bring now: the first handshake after a change of
    /// these makes a new config, some microseconds of work, so that a change need not know the listeners.
    fn current(&self) -> Arc<Current> {
        let is_present = |current: &Current| {
            let services = self.services.served(current.policy.visibility);
            Arc::ptr_eq(&current.resolver.services, &services)
        };
        let current = self.current.load_full();
        if is_present(&current) {
            return current;
        }
        let _one_at_a_time = self.swap.lock();
        let current = self.current.load_full();
        if is_present(&current) {
            return current;
        }
        let policy = current.policy.clone();
        let resolver = Resolver {
            files: Arc::clone(&current.resolver.files),
            services: self.services.served(policy.visibility),
        };
        let provider = Arc::clone(&current.provider);
        let new = Arc::new(Current::new(resolver, provider, policy, &self.resumption));
        self.current.store(Arc::clone(&new));
        new
    }

    /// Performs the TLS handshake. The caller sets the deadline; dropping the future closes the connection.
    ///
    /// # Errors
    /// The error of rustls or the socket; the client was sent an alert where possible.
    pub(super) async fn accept(
        &self,
        stream: SocketStream,
    ) -> io::Result<(TlsStream<SocketStream>, TlsInfo, HttpVersion)> {
        let current = self.current();
        let stream = match current.resolver.files.default() {
            Some(_) => {
                TlsAcceptor::from(Arc::clone(&current.config))
                    .accept(stream)
                    .await?
            }
            None => accept_known_name(stream, &current).await?,
        };
        let session = stream.get_ref().1;
        let sni = session.server_name().map(str::to_owned);
        let http_version = match session.alpn_protocol() {
            Some(b"h2") => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        };
        let names = match current.resolver.find(sni.as_deref()) {
            Some(certificate) => Arc::clone(&certificate.names),
            None => Arc::default(),
        };
        Ok((stream, TlsInfo { sni, names }, http_version))
    }
}

/// Performs the handshake on a listener that has no certificate for clients that name no known server: these get the
/// alert `unrecognized_name`.
async fn accept_known_name(stream: SocketStream, current: &Current) -> io::Result<TlsStream<SocketStream>> {
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    if current
        .resolver
        .find(start.client_hello().server_name())
        .is_some()
    {
        return start.into_stream(Arc::clone(&current.config)).await;
    }
    start.io.write_all(&UNRECOGNIZED_NAME).await?;
    start.io.shutdown().await?;
    let text = "no certificate for the server name that the client asks for";
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

impl Policy {
    fn of(settings: &TlsSettings, visibility: Visibility) -> Self {
        Self {
            min_version: settings.min_version,
            cipher_suites: settings.cipher_suites.clone(),
            visibility,
        }
    }
}

impl Current {
    fn new(
        resolver: Resolver,
        provider: Arc<CryptoProvider>,
        policy: Policy,
        resumption: &Resumption,
    ) -> Self {
        let resolver = Arc::new(resolver);
        let versions: &[&SupportedProtocolVersion] = match policy.min_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("settings leave a suite for the oldest version or a newer one")
            // Client certificates will be asked for here.
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&resolver) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::clone(&resumption.sessions);
        if let Some(tickets) = &resumption.tickets {
            config.ticketer = Arc::clone(tickets);
        }
        Self {
            config: Arc::new(config),
            resolver,
            provider,
            policy,
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
