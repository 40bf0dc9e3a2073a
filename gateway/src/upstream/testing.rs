//! Test fixture of TLS to backends: a certificate authority, and a server that reports handshakes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sluice_model::{Backend, BackendTls, CertificateFiles, Host, Protocol, RevisionSpec, Scheme, UrlBackend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::registry::test_kit;

/// A certificate authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let made = params.self_signed(&key).expect("a certificate");
        Self {
            certificate: made.der().clone(),
            pem: made.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Issues a certificate and key for these names, as PEM.
    pub(super) fn issue(&self, names: &[&str]) -> (String, String) {
        let names = names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let params = CertificateParams::new(names).expect("valid names");
        let key = KeyPair::generate().expect("a key");
        let made = params.signed_by(&key, &self.issuer).expect("a certificate");
        (made.pem(), key.serialize_pem())
    }

    pub(super) fn write(&self, dir: &Path) -> PathBuf {
        let file = dir.join("ca.crt");
        std::fs::write(&file, &self.pem).expect("written");
        file
    }

    pub(super) fn write_pair(&self, dir: &Path, stem: &str, names: &[&str]) -> CertificateFiles {
        let (cert, key) = self.issue(names);
        let files = CertificateFiles {
            cert_file: dir.join(format!("{stem}.crt")),
            key_file: dir.join(format!("{stem}.key")),
        };
        std::fs::write(&files.cert_file, cert).expect("written");
        std::fs::write(&files.key_file, key).expect("written");
        files
    }
}

/// One successful handshake, as the server saw it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sni: Option<String>,
    pub(super) alpn: Option<String>,
    pub(super) resumed: bool,
    pub(super) client_certificate: bool,
}

/// A TLS server with one certificate. Sends one byte, then reads until the end.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) seen: mpsc::UnboundedReceiver<Seen>,
}

impl Server {
    /// With `clients`, a client certificate of that authority is required.
    pub(super) async fn start(
        authority: &Authority,
        names: &[&str],
        alpn: &[&str],
        clients: Option<&Authority>,
    ) -> Self {
        let (cert, key) = authority.issue(names);
        let chain = CertificateDer::pem_slice_iter(cert.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match clients {
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.certificate.clone()).expect("an authority");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).expect("a pair");
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, tell) = (acceptor.clone(), tell.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    let session = stream.get_ref().1;
                    let alpn = session.alpn_protocol();
                    let _ = tell.send(Seen {
                        sni: session.server_name().map(str::to_owned),
                        alpn: alpn.map(|p| String::from_utf8_lossy(p).into_owned()),
                        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
                        client_certificate: session.peer_certificates().is_some(),
                    });
                    let _ = stream.write_all(b"!").await;
                    while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
                });
            }
        });
        Self { address, seen }
    }
}

/// A revision behind an https URL.
pub(super) fn https(host: &str, protocol: Protocol, tls: BackendTls) -> RevisionSpec {
    let url = UrlBackend {
        scheme: Scheme::Https,
        host: Host::parse(host).expect("a host"),
        port: 443,
        path_prefix: String::new(),
    };
    let mut spec = test_kit::spec("r", Backend::Url(url));
    spec.protocol = protocol;
    spec.tls = tls;
    spec
}
