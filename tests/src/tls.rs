//! A certificate authority for one test, and TLS on both sides.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, as PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key`.
    ///
    /// # Panics
    /// When the directory cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let cert = dir.join(format!("{name}.crt"));
        let key = dir.join(format!("{name}.key"));
        std::fs::write(&cert, &self.cert).expect("the directory is writable");
        std::fs::write(&key, &self.key).expect("the directory is writable");
        (cert, key)
    }
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Ca {
    /// Makes one.
    ///
    /// # Panics
    /// Never, short of a broken crypto library.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names.
    ///
    /// # Panics
    /// When they are no names.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.sign(&CertificateParams::new(owned(names)).expect("valid names"))
    }

    /// The same, valid until then.
    ///
    /// # Panics
    /// When they are no names.
    pub fn issue_until(&self, names: &[&str], end: SystemTime) -> Pair {
        let mut params = CertificateParams::new(owned(names)).expect("valid names");
        params.not_after = end.into();
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    /// A client that trusts this authority and offers `alpn`.
    pub fn client(&self, alpn: &[&str]) -> TlsConnector {
        trusting(&self.pem, alpn)
    }

    /// The same, of these versions alone.
    pub fn client_of(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> TlsConnector {
        client(&self.pem, versions, alpn)
    }

    /// Connects with SNI.
    ///
    /// # Errors
    /// The refusal, or a certificate that is not for `name`.
    pub async fn connect(
        &self,
        addr: SocketAddr,
        name: &str,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        self.client(alpn).connect(name, tcp).await
    }
}

/// A client that trusts this one certificate and offers `alpn`.
///
/// # Panics
/// When it is no certificate.
pub fn trusting(pem: &str, alpn: &[&str]) -> TlsConnector {
    client(pem, rustls::DEFAULT_VERSIONS, alpn)
}

fn client(pem: &str, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    roots.add(der).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions that ring has suites for")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols(alpn);
    TlsConnector::from(Arc::new(config))
}

/// A server with this certificate.
///
/// # Panics
/// When the pair is none.
pub fn acceptor(pair: &Pair, alpn: &[&str]) -> TlsAcceptor {
    let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).expect("our own PEM");
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("our own PEM");
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("our own certificate");
    config.alpn_protocols = protocols(alpn);
    TlsAcceptor::from(Arc::new(config))
}

/// The protocol that was agreed on.
pub fn negotiated(stream: &TlsStream<TcpStream>) -> Option<String> {
    let (_, session) = stream.get_ref();
    session
        .alpn_protocol()
        .map(|p| String::from_utf8_lossy(p).into_owned())
}

/// The certificate that the other side showed.
///
/// # Panics
/// When it showed none, which the handshake excludes.
pub fn peer_certificate(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().expect("the handshake is done");
    chain[0].clone().into_owned()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|p| p.as_bytes().to_vec()).collect()
}
