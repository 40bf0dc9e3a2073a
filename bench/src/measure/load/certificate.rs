//! The certificate that the proxies of `bench/compare` share.

use std::path::{Path, PathBuf};

use super::super::Failure;
use super::super::gateway::{HOST, write};

/// The files of a certificate, in the form that each proxy needs.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Certificate and key in one file.
    pub(crate) both: PathBuf,
}

impl Certificate {
    /// Writes a certificate for [`HOST`] into `folder`: ECDSA P-256, self-signed, since the clients verify no
    /// signature.
    pub(crate) fn generate(folder: &Path) -> Result<Self, Failure> {
        let failed = |e: rcgen::Error| Failure::Unexpected(format!("a certificate for {HOST}: {e}"));
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).map_err(failed)?;
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        Ok(Self {
            cert: write(folder, "one.crt", &cert)?,
            key: write(folder, "one.key", &key)?,
            both: write(folder, "one.pem", &format!("{cert}{key}"))?,
        })
    }
}
