//! Certificate store of a listener: PEM files, looked up by server name.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sluice_model::CertificateFiles;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::expiry::WarnedStage;

/// Size limit of one file, in bytes. The longest chains and keys are some tens of KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Why a certificate cannot be served. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is a pipe, a device or a directory.
    #[error("{}: not a regular file", file.display())]
    NotAFile {
        /// Which.
        file: PathBuf,
    },
    /// The file is larger than 1 MiB.
    #[error("{}: larger than {MAX_BYTES} bytes", file.display())]
    TooLarge {
        /// Which.
        file: PathBuf,
    },
    /// The file is not PEM.
    #[error("{}: not PEM: {source}", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The PEM file has no certificate.
    #[error("{}: no certificate in it", file.display())]
    NoCertificate {
        /// Which.
        file: PathBuf,
    },
    /// The PEM file has no private key, or an encrypted one.
    #[error("{}: no unencrypted private key in it", file.display())]
    NoKey {
        /// Which.
        file: PathBuf,
    },
    /// The certificate cannot be parsed.
    #[error("{}: not a valid certificate: {reason}", file.display())]
    BadCertificate {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key is damaged or of an unknown kind.
    #[error("{}: unusable private key: {source}", file.display())]
    BadKey {
        /// Which.
        file: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error("{}: this key does not match the certificate in {}", key_file.display(), cert_file.display())]
    Mismatch {
        /// The certificate's file.
        cert_file: PathBuf,
        /// The key's file.
        key_file: PathBuf,
    },
}

impl CertificateError {
    /// The file that an operator should look at.
    pub fn file(&self) -> &Path {
        match self {
            Self::Unreadable { file, .. }
            | Self::NotAFile { file }
            | Self::TooLarge { file }
            | Self::Malformed { file, .. }
            | Self::NoCertificate { file }
            | Self::NoKey { file }
            | Self::BadCertificate { file, .. }
            | Self::BadKey { file, .. } => file,
            Self::Mismatch { key_file, .. } => key_file,
        }
    }
}

/// A loaded certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The files it was loaded from.
    pub files: CertificateFiles,
    /// The names that the certificate covers, lower case; wildcards as `*.example.com`, addresses as in a
    /// URL.
    pub names: Arc<[String]>,
    /// The end of its validity.
    pub not_after: SystemTime,
    /// Which warnings of its expiry were logged.
    pub(super) warned: WarnedStage,
    key: Arc<CertifiedKey>,
    identity: PairIdentity,
}

impl Certificate {
    /// Reads and checks both files. Blocks on file I/O.
    fn load(
        files: &CertificateFiles,
        identity: PairIdentity,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let chain = read(&files.cert_file, |pem| {
            CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()
        })?;
        let Some(leaf) = chain.first() else {
            return Err(CertificateError::NoCertificate {
                file: files.cert_file.clone(),
            });
        };
        let (names, not_after) = describe(leaf).map_err(|reason| CertificateError::BadCertificate {
            file: files.cert_file.clone(),
            reason,
        })?;
        let key = read(&files.key_file, PrivateKeyDer::from_pem_slice)?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|source| CertificateError::BadKey {
                file: files.key_file.clone(),
                source,
            })?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(CertificateError::Mismatch {
                    cert_file: files.cert_file.clone(),
                    key_file: files.key_file.clone(),
                });
            }
            Err(e) => {
                return Err(CertificateError::BadCertificate {
                    file: files.cert_file.clone(),
                    reason: e.to_string(),
                });
            }
        }
        Ok(Self {
            files: files.clone(),
            names: names.into(),
            not_after,
            warned: WarnedStage::default(),
            key: Arc::new(key),
            identity,
        })
    }
}

/// A client certificate with its key, checked as a listener's are. Blocks.
///
/// # Errors
/// [`CertificateError`].
pub(crate) fn load_pair(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, CertificateError> {
    Certificate::load(files, PairIdentity::of(files), provider).map(|certificate| certificate.key)
}

/// The certificates of a PEM file; at least one. Blocks.
///
/// # Errors
/// [`CertificateError`].
pub(crate) fn load_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found = read(file, |pem| {
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()
    })?;
    if found.is_empty() {
        let file = file.to_owned();
        return Err(CertificateError::NoCertificate { file });
    }
    Ok(found)
}

fn read<T>(file: &Path, parse: impl FnOnce(&[u8]) -> Result<T, pem::Error>) -> Result<T, CertificateError> {
    let file = file.to_owned();
    let bytes = match contents(&file) {
        Ok(Some(bytes)) if bytes.len() as u64 > MAX_BYTES => return Err(CertificateError::TooLarge { file }),
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(CertificateError::NotAFile { file }),
        Err(source) => return Err(CertificateError::Unreadable { file, source }),
    };
    parse(&bytes).map_err(|source| match source {
        pem::Error::NoItemsFound => CertificateError::NoKey { file },
        source => CertificateError::Malformed { file, source },
    })
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
    let not_after = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
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

/// The immutable table of a listener's certificates; a reload builds another table.
#[derive(Debug)]
pub(super) struct CertificateTable {
    certificates: Vec<Arc<Certificate>>,
    /// Pairs whose present content was refused; the earlier certificate is still served.
    refused: Vec<(CertificateFiles, PairIdentity)>,
    exact: HashMap<String, Arc<Certificate>>,
    /// Wildcard certificates by the suffix after `*.`.
    wildcard: HashMap<String, Arc<Certificate>>,
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
        let known: HashMap<_, _> = before
            .iter()
            .flat_map(|t| &t.certificates)
            .map(|c| (&c.files, c))
            .collect();
        let refused_before: HashMap<_, _> = before
            .iter()
            .flat_map(|t| &t.refused)
            .map(|(files, identity)| (files, identity))
            .collect();
        let (mut certificates, mut refused, mut errors) =
            (Vec::with_capacity(wanted.len()), Vec::new(), Vec::new());
        let mut whole = true;
        for files in wanted {
            // Taken before the read, so that a change during the read is detected the next time.
            let identity = PairIdentity::of(files);
            let old = known.get(files);
            if let Some(same) = old.filter(|c| c.identity == identity) {
                certificates.push(Arc::clone(same));
                continue;
            }
            if let (Some(old), true) = (old, refused_before.get(files) == Some(&&identity)) {
                certificates.push(Arc::clone(old));
                refused.push((files.clone(), identity));
                continue;
            }
            match Certificate::load(files, identity.clone(), provider) {
                Ok(certificate) => certificates.push(Arc::new(certificate)),
                Err(e) => {
                    errors.push(e);
                    refused.push((files.clone(), identity));
                    match old {
                        Some(old) => certificates.push(Arc::clone(old)),
                        None => whole = false,
                    }
                }
            }
        }
        let changed = whole
            && before.is_none_or(|b| {
                b.certificates.len() != certificates.len()
                    || b.certificates
                        .iter()
                        .zip(&certificates)
                        .any(|(a, b)| !Arc::ptr_eq(a, b))
            });
        // A table that differs only in what was refused is kept, too.
        let differs = changed || before.is_some_and(|b| b.refused != refused);
        Load {
            table: (whole && differs).then(|| Self::index(certificates, refused)),
            changed,
            whole,
            errors,
        }
    }

    fn index(certificates: Vec<Arc<Certificate>>, refused: Vec<(CertificateFiles, PairIdentity)>) -> Self {
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for certificate in &certificates {
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
            certificates,
            refused,
            exact,
            wildcard,
        }
    }

    /// The certificate for a server name: exact match, then one-label wildcard, then the first listed.
    pub(super) fn find(&self, sni: Option<&str>) -> Option<&Arc<Certificate>> {
        let named = sni.and_then(|name| {
            self.exact.get(name).or_else(|| {
                let (_, suffix) = name.split_once('.')?;
                self.wildcard.get(suffix)
            })
        });
        named.or_else(|| self.certificates.first())
    }

    /// All certificates, in the order of the settings.
    pub(super) fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
    }
}

impl ResolvesServerCert for CertificateTable {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls gives the name in lower case.
        self.find(hello.server_name()).map(|c| Arc::clone(&c.key))
    }
}
