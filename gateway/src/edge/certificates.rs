//! Certificates: PEM text checked, and the files of a listener, looked up by server name.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sluice_model::{CertificateFiles, CertificatePem};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::expiry::WarnedStage;

/// Size limit of one file, in bytes. The longest chains and keys are some tens of KiB.
const MAX_BYTES: u64 = 1 << 20;

/// The last second of the year 9999, in seconds since 1970.
const LATEST_END: u64 = 253_402_300_799;

/// Why a certificate file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", file.display())]
pub struct CertificateError {
    file: PathBuf,
    fault: CertificateFault,
}

impl CertificateError {
    /// The file that an operator should look at.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// What is wrong with a certificate, wherever its content comes from.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateFault {
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// The path is a pipe, a device or a directory.
    #[error("not a regular file")]
    NotAFile,
    /// The file is larger than 1 MiB.
    #[error("larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// The content is not PEM.
    #[error("not PEM: {0}")]
    Malformed(pem::Error),
    /// The PEM text has no certificate.
    #[error("no certificate in it")]
    NoCertificate,
    /// The PEM text has no private key, or an encrypted one.
    #[error("no unencrypted private key in it")]
    NoKey,
    /// The certificate cannot be parsed.
    #[error("not a valid certificate: {0}")]
    BadCertificate(String),
    /// The key is damaged or of an unknown kind.
    #[error("unusable private key: {0}")]
    BadKey(rustls::Error),
    /// The key belongs to another certificate.
    #[error("this key does not match the certificate in {certificate}")]
    Mismatch {
        /// The file or the field of the certificate.
        certificate: String,
    },
}

/// A loaded certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The name for people and metrics: the file of the certificate, or namespace and name of a Secret.
    pub name: String,
    /// The names that the certificate covers, lower case; wildcards as `*.example.com`, addresses as in a
    /// URL.
    pub names: Arc<[String]>,
    /// The end of its validity.
    pub not_after: SystemTime,
    /// Which warnings of its expiry were logged.
    pub(super) warned: WarnedStage,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads and checks both files. Blocks on file I/O.
    fn load(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Self, CertificateError> {
        let CertificateFiles { cert_file, key_file } = files;
        let chain = Chain::parse(&read(cert_file)?).map_err(|fault| at(cert_file, fault))?;
        let key = parse_key(&read(key_file)?, provider).map_err(|fault| at(key_file, fault))?;
        let name = cert_file.display().to_string();
        Self::of_pair(&name, chain, key, &name).map_err(|fault| match fault {
            CertificateFault::Mismatch { .. } => at(key_file, fault),
            _ => at(cert_file, fault),
        })
    }

    /// Checks a certificate whose content is not in files. The error comes with the part that is wrong.
    pub(super) fn of_pem(
        name: &str,
        pem: &CertificatePem,
        provider: &CryptoProvider,
    ) -> Result<Self, (PemPart, CertificateFault)> {
        let chain = Chain::parse(&pem.chain).map_err(|fault| (PemPart::Chain, fault))?;
        let key = parse_key(&pem.key, provider).map_err(|fault| (PemPart::Key, fault))?;
        Self::of_pair(name, chain, key, PemPart::Chain.as_str()).map_err(|fault| match fault {
            CertificateFault::Mismatch { .. } => (PemPart::Key, fault),
            _ => (PemPart::Chain, fault),
        })
    }

    /// Joins chain and key. `place` tells people where the chain is from.
    fn of_pair(
        name: &str,
        chain: Chain,
        key: Arc<dyn SigningKey>,
        place: &str,
    ) -> Result<Self, CertificateFault> {
        let pair = CertifiedKey::new(chain.certificates, key);
        match pair.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let certificate = place.to_owned();
                return Err(CertificateFault::Mismatch { certificate });
            }
            Err(e) => return Err(CertificateFault::BadCertificate(e.to_string())),
        }
        Ok(Self {
            name: name.to_owned(),
            names: chain.names.into(),
            not_after: chain.not_after,
            warned: WarnedStage::default(),
            key: Arc::new(pair),
        })
    }

    /// The chain with its key, for a handshake.
    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

/// A part of a certificate that is not in files, named as in a Secret of type `kubernetes.io/tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PemPart {
    /// The chain.
    Chain,
    /// The private key.
    Key,
}

impl PemPart {
    /// The key of a Secret.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Chain => "tls.crt",
            Self::Key => "tls.key",
        }
    }
}

/// A certificate chain, leaf first, and what its leaf says.
struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    not_after: SystemTime,
}

impl Chain {
    fn parse(pem: &[u8]) -> Result<Self, CertificateFault> {
        let certificates = certificates_in(pem)?;
        let (names, not_after) = describe(&certificates[0]).map_err(CertificateFault::BadCertificate)?;
        Ok(Self {
            certificates,
            names,
            not_after,
        })
    }
}

fn parse_key(pem: &[u8], provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, CertificateFault> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => CertificateFault::NoKey,
        error => CertificateFault::Malformed(error),
    })?;
    let key = provider.key_provider.load_private_key(key);
    key.map_err(CertificateFault::BadKey)
}

/// The certificates of a PEM text; at least one.
fn certificates_in(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateFault> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(CertificateFault::Malformed)?;
    if found.is_empty() {
        return Err(CertificateFault::NoCertificate);
    }
    Ok(found)
}

fn at(file: &Path, fault: CertificateFault) -> CertificateError {
    let file = file.to_owned();
    CertificateError { file, fault }
}

/// A client certificate with its key, checked as a listener's are. Blocks.
///
/// # Errors
/// [`CertificateError`].
pub(crate) fn load_pair(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, CertificateError> {
    Certificate::load(files, provider).map(|certificate| certificate.key)
}

/// The certificates of a PEM file; at least one. Blocks.
///
/// # Errors
/// [`CertificateError`].
pub(crate) fn load_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    certificates_in(&read(file)?).map_err(|fault| at(file, fault))
}

fn read(file: &Path) -> Result<Vec<u8>, CertificateError> {
    let fault = match contents(file) {
        Ok(Some(bytes)) if bytes.len() as u64 > MAX_BYTES => CertificateFault::TooLarge,
        Ok(Some(bytes)) => return Ok(bytes),
        Ok(None) => CertificateFault::NotAFile,
        Err(source) => CertificateFault::Unreadable(source),
    };
    Err(at(file, fault))
}

/// Reads a regular file up to one byte over the size limit; `None` for anything else. Opening a pipe would
/// block until its other end opens, and with it every change of listeners and the drain.
fn contents(file: &Path) -> io::Result<Option<Vec<u8>>> {
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Parses names and end of validity. The common name counts only without any alternative name: browsers
/// ignore it, and hand-made certificates on a laptop have nothing else.
fn describe(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, SystemTime), String> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    // Bounded by what RFC 3339 can write: later ends could not be shown.
    let not_after = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = not_after.min(LATEST_END);
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
    let names = match leaf.subject_alternative_name().map_err(|e| e.to_string())? {
        Some(alternatives) => alternatives
            .value
            .general_names
            .iter()
            .filter_map(covered)
            .collect(),
        None => leaf
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok().map(str::to_ascii_lowercase))
            .collect(),
    };
    Ok((names, not_after))
}

fn covered(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|b| IpAddr::V4(Ipv4Addr::from(b)));
            let v6 = || <[u8; 16]>::try_from(*bytes).map(|b| IpAddr::V6(Ipv6Addr::from(b)));
            v4.or_else(|_| v6()).ok().map(|ip| match ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            })
        }
        _ => None,
    }
}

/// Change detection for a pair of files, without reading them. Follows symlinks, so that the swap of a
/// mounted secret is seen. `None` for a missing file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PairIdentity([Option<[i64; 7]>; 2]);

impl PairIdentity {
    fn of(files: &CertificateFiles) -> Self {
        Self([file_identity(&files.cert_file), file_identity(&files.key_file)])
    }
}

/// Change detection for a file, without reading it: device, inode, size and times; `None` for a missing file.
pub(crate) fn file_identity(file: &Path) -> Option<[i64; 7]> {
    file.metadata().ok().map(|m: Metadata| {
        // The change time detects a copy that kept length and modification time.
        [
            m.dev() as i64,
            m.ino() as i64,
            m.size() as i64,
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec(),
        ]
    })
}

/// The immutable table of a listener's certificate files; a reload builds another table.
#[derive(Debug)]
pub(super) struct CertificateTable {
    loaded: Vec<LoadedFiles>,
    /// Pairs whose present content was refused; the earlier certificate is still served.
    refused: Vec<(CertificateFiles, PairIdentity)>,
    exact: HashMap<String, Arc<Certificate>>,
    /// Wildcard certificates by the suffix after `*.`.
    wildcard: HashMap<String, Arc<Certificate>>,
}

/// A certificate with the files it was loaded from.
#[derive(Debug, Clone)]
struct LoadedFiles {
    files: CertificateFiles,
    identity: PairIdentity,
    certificate: Arc<Certificate>,
}

/// The result of building a table.
pub(super) struct Load {
    /// `None` when nothing changed, and when a new certificate cannot be served.
    pub(super) table: Option<CertificateTable>,
    /// Whether the table serves other certificates than the one before.
    pub(super) changed: bool,
    /// Whether every certificate has a version that can be served.
    pub(super) whole: bool,
    /// Certificates that could not be loaded; not repeated for files that are unchanged since they were
    /// refused.
    pub(super) errors: Vec<CertificateError>,
}

impl CertificateTable {
    /// Builds a table of these files. Files unchanged since `before` are not read again, and where a new
    /// content is bad, the certificate from `before` stays. Blocks.
    pub(super) fn load(
        wanted: &[CertificateFiles],
        before: Option<&Self>,
        provider: &CryptoProvider,
    ) -> Load {
        let known = before.iter().flat_map(|t| &t.loaded);
        let known: HashMap<_, _> = known.map(|loaded| (&loaded.files, loaded)).collect();
        let refused_before: HashMap<_, _> = before
            .iter()
            .flat_map(|t| &t.refused)
            .map(|(files, identity)| (files, identity))
            .collect();
        let (mut loaded, mut refused, mut errors) =
            (Vec::with_capacity(wanted.len()), Vec::new(), Vec::new());
        let mut whole = true;
        for files in wanted {
            // Taken before the read, so that a change during the read is detected the next time.
            let identity = PairIdentity::of(files);
            let old = known.get(files).copied();
            if let Some(same) = old.filter(|old| old.identity == identity) {
                loaded.push(same.clone());
                continue;
            }
            if let (Some(old), true) = (old, refused_before.get(files) == Some(&&identity)) {
                loaded.push(old.clone());
                refused.push((files.clone(), identity));
                continue;
            }
            match Certificate::load(files, provider) {
                Ok(certificate) => loaded.push(LoadedFiles {
                    files: files.clone(),
                    identity,
                    certificate: Arc::new(certificate),
                }),
                Err(e) => {
                    errors.push(e);
                    refused.push((files.clone(), identity));
                    match old {
                        Some(old) => loaded.push(old.clone()),
                        None => whole = false,
                    }
                }
            }
        }
        let differ = |(a, b): (&LoadedFiles, &LoadedFiles)| !Arc::ptr_eq(&a.certificate, &b.certificate);
        let changed = whole
            && before.is_none_or(|before| {
                before.loaded.len() != loaded.len() || before.loaded.iter().zip(&loaded).any(differ)
            });
        // A table that differs only in what was refused is kept, too.
        let differs = changed || before.is_some_and(|b| b.refused != refused);
        Load {
            table: (whole && differs).then(|| Self::index(loaded, refused)),
            changed,
            whole,
            errors,
        }
    }

    fn index(loaded: Vec<LoadedFiles>, refused: Vec<(CertificateFiles, PairIdentity)>) -> Self {
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for LoadedFiles { certificate, .. } in &loaded {
            for name in certificate.names.iter() {
                // The first listed certificate wins a name that two cover.
                let (map, name) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut wildcard, suffix),
                    None => (&mut exact, name.as_str()),
                };
                map.entry(name.to_owned())
                    .or_insert_with(|| Arc::clone(certificate));
            }
        }
        Self {
            loaded,
            refused,
            exact,
            wildcard,
        }
    }

    /// The certificate that names this server.
    pub(super) fn exact(&self, name: &str) -> Option<&Arc<Certificate>> {
        self.exact.get(name)
    }

    /// The certificate whose one-label wildcard covers this server.
    pub(super) fn wildcard(&self, name: &str) -> Option<&Arc<Certificate>> {
        let (_, suffix) = name.split_once('.')?;
        self.wildcard.get(suffix)
    }

    /// The certificate for clients that name no known server: the first one.
    pub(super) fn default(&self) -> Option<&Arc<Certificate>> {
        self.loaded.first().map(|loaded| &loaded.certificate)
    }

    /// All certificates, in the order of the settings.
    pub(super) fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        self.loaded.iter().map(|loaded| &loaded.certificate)
    }

    /// The files of all certificates, in the order of the settings.
    pub(super) fn files(&self) -> impl Iterator<Item = &CertificateFiles> {
        self.loaded.iter().map(|loaded| &loaded.files)
    }
}
