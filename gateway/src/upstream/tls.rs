//! TLS to backends: one rustls client config per revision, made off the data threads.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sluice_model::{Backend, BackendTls, Protocol, RevisionId, RevisionSpec, Scheme};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::edge::CertificateError;
use crate::edge::certificates::{file_identity, load_authorities, load_pair};

/// Interval of the check of files for changes; as for a listener's certificates.
const FILES_CHECKED_EVERY: Duration = Duration::from_secs(3);

/// Pause after a failure: until it is over, requests get the last failure.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Why the TLS config of a backend cannot be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendTlsError {
    /// A configured file cannot be used.
    #[error("{0}")]
    File(Arc<CertificateError>),
    /// A certificate of the authorities' file is malformed.
    #[error("{}: not a valid certificate: {reason}", file.display())]
    BadAuthority {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system has no root certificates, or they cannot be read now.
    #[error("the system's certificates cannot be read: {0}; install them, or name a caFile")]
    NoSystemRoots(String),
    /// The server name is neither a DNS name nor an address.
    #[error("'{0}' is no name that a certificate could have")]
    BadName(String),
    /// The task that reads files was cancelled: the gateway shuts down.
    #[error("the gateway is going away")]
    Cancelled,
}

impl BackendTlsError {
    /// The file that an operator should look at.
    pub fn file(&self) -> Option<&std::path::Path> {
        match self {
            Self::File(error) => Some(error.file()),
            Self::BadAuthority { file, .. } => Some(file),
            Self::NoSystemRoots(_) | Self::BadName(_) | Self::Cancelled => None,
        }
    }
}

impl From<CertificateError> for BackendTlsError {
    fn from(error: CertificateError) -> Self {
        Self::File(Arc::new(error))
    }
}

/// The TLS of one backend: client config and server name.
#[derive(Debug)]
pub(crate) struct UpstreamTls {
    /// The client config, with a session store of its own: sessions are resumed within one revision only.
    pub(crate) config: Arc<ClientConfig>,
    /// The server name: sent as SNI (unless it is an address) and verified.
    pub(crate) name: ServerName<'static>,
}

/// Checks the files of a revision's TLS. Blocks on file I/O.
///
/// # Errors
/// The first file that cannot be used.
pub fn check_tls(spec: &RevisionSpec) -> Result<(), BackendTlsError> {
    let tiers = 0..u8::try_from(spec.tiers().len().max(1)).unwrap_or(u8::MAX);
    for wanted in tiers.filter_map(|tier| TlsSpec::of(spec, tier)) {
        wanted.name()?;
        TlsFiles::read(&wanted.tls, &provider())?;
    }
    Ok(())
}

/// A client config for HTTP/1.1 outside of any revision. Blocks on file I/O.
///
/// # Errors
/// The first file that cannot be used, or that the system has no root certificates.
pub(crate) fn client_config(tls: &BackendTls) -> Result<ClientConfig, BackendTlsError> {
    let files = TlsFiles::read(tls, &provider())?;
    let roots = match (&files.authorities, &tls.ca_file) {
        (Some(found), Some(file)) => Arc::new(roots_of(found, file)?),
        _ => system_roots()?,
    };
    Ok(files.config(false, Some(roots)))
}

/// The TLS settings of a revision's spec.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TlsSpec {
    revision: RevisionId,
    host: String,
    tls: BackendTls,
    http2: bool,
}

impl TlsSpec {
    /// `None` unless the backend of the tier is an https URL.
    fn of(spec: &RevisionSpec, tier: u8) -> Option<Self> {
        let Backend::Url(url) = spec.backend_of(tier) else {
            return None;
        };
        (url.scheme == Scheme::Https).then(|| Self {
            revision: spec.id.clone(),
            host: url.host.as_str().to_owned(),
            tls: spec.tls.clone(),
            http2: spec.protocol == Protocol::H2,
        })
    }

    fn name(&self) -> Result<ServerName<'static>, BackendTlsError> {
        let name = self.tls.server_name.as_ref().unwrap_or(&self.host);
        let address = name.trim_start_matches('[').trim_end_matches(']');
        match address.parse::<IpAddr>() {
            Ok(address) => Ok(ServerName::IpAddress(address.into())),
            Err(_) => ServerName::try_from(name.clone()).map_err(|_| BackendTlsError::BadName(name.clone())),
        }
    }
}

/// The content of a revision's TLS files.
#[derive(Debug, Clone)]
struct TlsFiles {
    authorities: Option<Vec<CertificateDer<'static>>>,
    client: Option<Arc<CertifiedKey>>,
    /// Taken before the read, so that a change during the read is detected the next time.
    identities: Vec<Option<[i64; 7]>>,
}

impl TlsFiles {
    /// Reads the files. Blocks.
    fn read(tls: &BackendTls, provider: &CryptoProvider) -> Result<Self, BackendTlsError> {
        let identities = identities(tls);
        let authorities = match &tls.ca_file {
            Some(file) => {
                let found = load_authorities(file)?;
                roots_of(&found, file)?;
                Some(found)
            }
            None => None,
        };
        let client = tls.certificate.as_ref().map(|files| load_pair(files, provider));
        Ok(Self {
            authorities,
            client: client.transpose()?,
            identities,
        })
    }

    /// Whether both contents amount to the same TLS, whenever and from wherever they were read. Keys need no
    /// comparison: [`load_pair`] checked that a key belongs to its certificate.
    fn is_same(&self, other: &Self) -> bool {
        let chain = |m: &Self| m.client.as_ref().map(|c| c.cert.clone());
        self.authorities == other.authorities && chain(self) == chain(other)
    }

    fn config(&self, http2: bool, roots: Option<Arc<RootCertStore>>) -> ClientConfig {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions");
        let builder = match roots {
            Some(roots) => builder.with_root_certificates(roots),
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(NoVerification(provider))),
        };
        let mut config = match &self.client {
            Some(client) => {
                let client = SingleCertAndKey::from(CertifiedKey::clone(client));
                builder.with_client_cert_resolver(Arc::new(client))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![if http2 {
            b"h2".to_vec()
        } else {
            b"http/1.1".to_vec()
        }];
        // Room for one name with eight tickets, rustls's maximum, in place of 32 names.
        config.resumption = Resumption::in_memory_sessions(8);
        config
    }
}

fn identities(tls: &BackendTls) -> Vec<Option<[i64; 7]>> {
    tls.files().map(|file| file_identity(file)).collect()
}

fn roots_of(
    authorities: &[CertificateDer<'static>],
    file: &std::path::Path,
) -> Result<RootCertStore, BackendTlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone())
            .map_err(|e| BackendTlsError::BadAuthority {
                file: file.to_owned(),
                reason: e.to_string(),
            })?;
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}

/// The system's root certificates, read once per process. An empty set is not cached: certificates may be
/// installed later. Blocks, some milliseconds.
fn system_roots() -> Result<Arc<RootCertStore>, BackendTlsError> {
    static ROOTS: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
    let mut known = ROOTS.lock();
    if let Some(roots) = &*known {
        return Ok(Arc::clone(roots));
    }
    let roots = Arc::new(read_system_roots()?);
    *known = Some(Arc::clone(&roots));
    Ok(roots)
}

fn read_system_roots() -> Result<RootCertStore, BackendTlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first();
        let why = why.map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(BackendTlsError::NoSystemRoots(why));
    }
    Ok(roots)
}

/// The source of root certificates: [`system_roots`], except in tests.
type RootSource = fn() -> Result<Arc<RootCertStore>, BackendTlsError>;

/// A revision's TLS: made once on a blocking thread, and again when the files change.
///
/// Its settings never change: a revision with other settings has another `RevisionTls`, and with it other
/// endpoints, so that no connection that was verified otherwise is reused.
#[derive(Debug)]
pub(crate) struct RevisionTls(Option<Arc<SharedTls>>);

#[derive(Debug)]
struct SharedTls {
    wanted: TlsSpec,
    roots: RootSource,
    current: ArcSwapOption<UpstreamTls>,
    /// Serialises loads; holds the result of the last one.
    attempts: tokio::sync::Mutex<LoadAttempts>,
}

#[derive(Debug, Default)]
struct LoadAttempts {
    files: Option<TlsFiles>,
    failed: Option<(BackendTlsError, Instant)>,
    /// The content that was refused last, so that it is logged once.
    refused: Option<Vec<Option<[i64; 7]>>>,
}

impl RevisionTls {
    #[cfg(test)]
    pub(crate) fn new(spec: &RevisionSpec, runtime: &Handle) -> Self {
        Self::of_tier(spec, 0, runtime)
    }

    /// Starts loading on `runtime`, where the backend of the tier is an https URL.
    pub(crate) fn of_tier(spec: &RevisionSpec, tier: u8, runtime: &Handle) -> Self {
        Self::with_roots(spec, tier, runtime, system_roots)
    }

    fn with_roots(spec: &RevisionSpec, tier: u8, runtime: &Handle, roots: RootSource) -> Self {
        let Some(wanted) = TlsSpec::of(spec, tier) else {
            return Self(None);
        };
        if wanted.tls.insecure_skip_verify {
            tracing::warn!(
                "revision {}: the certificate of https://{} is not verified (insecureSkipVerify)",
                wanted.revision,
                wanted.host
            );
        }
        let watched = wanted.tls.files().next().is_some();
        let shared = Arc::new(SharedTls {
            wanted,
            roots,
            current: ArcSwapOption::empty(),
            attempts: tokio::sync::Mutex::default(),
        });
        runtime.spawn(maintain(Arc::downgrade(&shared), watched));
        Self(Some(shared))
    }

    /// Whether the backend is reached without TLS.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.is_none()
    }

    /// The current TLS; `None` where the backend is not an https URL. Waits for the first load. Cancel-safe.
    ///
    /// # Errors
    /// Why the config cannot be made; a later call tries again after a second.
    pub(crate) async fn get(&self) -> Result<Option<Arc<UpstreamTls>>, BackendTlsError> {
        let Some(shared) = &self.0 else {
            return Ok(None);
        };
        match shared.current.load_full() {
            Some(tls) => Ok(Some(tls)),
            None => shared.make().await.map(Some),
        }
    }

    /// Reloads files that changed. Unusable content is logged, and the present config stays.
    #[cfg(test)]
    async fn refresh(&self) {
        if let Some(shared) = &self.0 {
            shared.refresh().await;
        }
    }
}

/// Loads ahead of the first request, then polls the files for changes.
async fn maintain(shared: Weak<SharedTls>, watched: bool) {
    if let Some(shared) = shared.upgrade() {
        let _ = shared.make().await;
    }
    if !watched {
        return;
    }
    loop {
        tokio::time::sleep(FILES_CHECKED_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.refresh().await;
    }
}

impl SharedTls {
    async fn make(self: &Arc<Self>) -> Result<Arc<UpstreamTls>, BackendTlsError> {
        let mut attempts = self.attempts.lock().await;
        if let Some(tls) = self.current.load_full() {
            return Ok(tls);
        }
        if let Some((error, at)) = &attempts.failed
            && at.elapsed() < TRIED_AGAIN_AFTER
        {
            return Err(error.clone());
        }
        let this = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            let files = TlsFiles::read(&this.wanted.tls, &provider())?;
            let tls = this.assemble(&files)?;
            Ok((files, tls))
        });
        match made.await.unwrap_or(Err(BackendTlsError::Cancelled)) {
            Ok((files, tls)) => {
                let tls = Arc::new(tls);
                *attempts = LoadAttempts {
                    files: Some(files),
                    ..LoadAttempts::default()
                };
                self.current.store(Some(Arc::clone(&tls)));
                Ok(tls)
            }
            Err(error) => {
                if attempts.failed.is_none() {
                    tracing::error!("revision {}: TLS to its backend: {error}", self.wanted.revision);
                }
                attempts.failed = Some((error.clone(), Instant::now()));
                Err(error)
            }
        }
    }

    /// Builds the client config. Blocks where the system's certificates are not cached yet.
    fn assemble(&self, files: &TlsFiles) -> Result<UpstreamTls, BackendTlsError> {
        let name = self.wanted.name()?;
        let tls = &self.wanted.tls;
        let roots = match (&files.authorities, &tls.ca_file) {
            _ if tls.insecure_skip_verify => None,
            (Some(authorities), Some(file)) => Some(Arc::new(roots_of(authorities, file)?)),
            _ => Some((self.roots)()?),
        };
        let config = Arc::new(files.config(self.wanted.http2, roots));
        Ok(UpstreamTls { config, name })
    }

    async fn refresh(self: &Arc<Self>) {
        let mut attempts = self.attempts.lock().await;
        let Some(before) = attempts.files.clone() else {
            return;
        };
        let (this, refused) = (Arc::clone(self), attempts.refused.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let now = identities(&this.wanted.tls);
            if now == before.identities || Some(&now) == refused.as_ref() {
                return Ok(None);
            }
            let read = TlsFiles::read(&this.wanted.tls, &provider());
            let read = read.and_then(|files| {
                let tls = match files.is_same(&before) {
                    true => None,
                    false => Some(this.assemble(&files)?),
                };
                Ok(Some((files, tls)))
            });
            read.map_err(|error| (error, now))
        });
        match looked.await {
            Ok(Ok(Some((files, tls)))) => {
                attempts.files = Some(files);
                attempts.refused = None;
                if let Some(tls) = tls {
                    tracing::info!("revision {}: TLS files changed", self.wanted.revision);
                    self.current.store(Some(Arc::new(tls)));
                }
            }
            Ok(Err((error, identities))) => {
                let revision = &self.wanted.revision;
                tracing::error!("revision {revision}: TLS files changed, what was there stays: {error}");
                attempts.refused = Some(identities);
            }
            Ok(Ok(None)) | Err(_) => {}
        }
    }
}

/// A verifier for `insecureSkipVerify`: accepts any certificate, but still checks that the peer holds its
/// key.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
