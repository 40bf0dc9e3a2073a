use sluice_model::{BackendTls, Protocol, RevisionSpec};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;

use super::super::testing::{Authority, Server, https};
use super::super::tls::RevisionTls;
use super::*;

/// Generous: reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    dir: TempDir,
    authority: Authority,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            authority: Authority::new(),
        }
    }

    fn trusting(&self) -> BackendTls {
        BackendTls {
            ca_file: Some(self.authority.write(self.dir.path())),
            ..BackendTls::default()
        }
    }
}

async fn over(spec: &RevisionSpec, server: &Server) -> Result<Connected, ConnectError> {
    let slot = RevisionTls::new(spec, &Handle::current());
    through(&slot, server).await
}

async fn through(slot: &RevisionTls, server: &Server) -> Result<Connected, ConnectError> {
    let tls = slot.get().await.expect("usable").expect("https");
    let address = EndpointAddr::Tcp(server.address);
    let mut connected = connect(&address, Some(&tls), PATIENCE).await?;
    // Tickets come before the first byte; what a server refuses in TLS 1.3 is known here, too.
    let mut byte = [0];
    connected
        .io
        .read_exact(&mut byte)
        .await
        .map_err(ConnectError::Tls)?;
    Ok(connected)
}

#[tokio::test]
async fn tcp_has_no_delay_and_unix_connects() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = EndpointAddr::Tcp(listener.local_addr().expect("bound"));
    let connected = connect(&address, None, PATIENCE).await.expect("it listens");
    let BackendIo::Tcp(stream) = &connected.io else {
        panic!("TCP")
    };
    assert!(stream.nodelay().expect("asked"));
    assert!(!connected.alpn_h2);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let _listener = UnixListener::bind(&path).expect("bound");
    let connected = connect(&EndpointAddr::Unix(path), None, PATIENCE).await;
    assert!(matches!(connected.expect("it listens").io, BackendIo::Unix(_)));
}

#[tokio::test]
async fn failures_are_told_apart() {
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = EndpointAddr::Tcp(port.local_addr().expect("bound"));
    drop(port);
    let refused = connect(&address, None, PATIENCE)
        .await
        .expect_err("nobody listens");
    assert!(matches!(refused, ConnectError::Refused), "{refused:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let missing = EndpointAddr::Unix(dir.path().join("s"));
    let missing = connect(&missing, None, PATIENCE)
        .await
        .expect_err("no socket there");
    assert!(
        matches!(&missing, ConnectError::Io(e) if e.kind() == io::ErrorKind::NotFound),
        "{missing:?}"
    );
    // The listener never answers the handshake.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = EndpointAddr::Tcp(listener.local_addr().expect("bound"));
    let bench = Bench::new();
    let slot = RevisionTls::new(
        &https("localhost", Protocol::Http1, bench.trusting()),
        &Handle::current(),
    );
    let tls = slot.get().await.expect("usable").expect("https");
    let late = connect(&address, Some(&tls), Duration::from_millis(50)).await;
    let late = late.expect_err("no handshake");
    assert_eq!(late.to_string(), "not connected within 50ms");
}

#[test]
fn running_out_of_descriptors_is_nobodys_failure_but_ours() {
    for code in [Errno::EMFILE, Errno::ENFILE] {
        let system = io::Error::from_raw_os_error(code as i32);
        let pingora =
            pingora_error::Error::because(ErrorType::SocketError, "failed to create socket", system);
        assert!(matches!(of_pingora(pingora), ConnectError::OutOfDescriptors));
    }
}

#[tokio::test]
async fn an_own_authority_is_trusted_and_no_other_is() {
    let bench = Bench::new();
    let mut server = Server::start(&bench.authority, &["backend.test"], &["http/1.1"], None).await;
    let spec = https("backend.test", Protocol::Http1, bench.trusting());
    let connected = over(&spec, &server).await.expect("trusted");
    assert!(!connected.alpn_h2);
    let seen = server.seen.recv().await.expect("a handshake");
    assert_eq!(seen.sni.as_deref(), Some("backend.test"));
    assert_eq!(seen.alpn.as_deref(), Some("http/1.1"));
    let stranger = Server::start(&Authority::new(), &["backend.test"], &[], None).await;
    let refused = over(&spec, &stranger).await.expect_err("of another authority");
    // Two authorities of one name: which of unknown and wrongly signed it is depends on the order of checks.
    let text = refused.to_string();
    assert!(
        text.starts_with("TLS handshake: invalid peer certificate: "),
        "{text}"
    );
}

#[tokio::test]
async fn the_name_is_verified_and_server_name_replaces_it() {
    let bench = Bench::new();
    let mut server = Server::start(&bench.authority, &["real.test"], &[], None).await;
    let refused = over(&https("other.test", Protocol::Http1, bench.trusting()), &server).await;
    let refused = refused.expect_err("another name").to_string();
    assert!(refused.contains("not valid for name"), "{refused}");
    let tls = BackendTls {
        server_name: Some("real.test".to_owned()),
        ..bench.trusting()
    };
    over(&https("other.test", Protocol::Http1, tls), &server)
        .await
        .expect("its name");
    let seen = server.seen.recv().await.expect("a handshake");
    assert_eq!(seen.sni.as_deref(), Some("real.test"));
}

#[tokio::test]
async fn an_address_is_verified_without_sni() {
    let bench = Bench::new();
    let mut server = Server::start(&bench.authority, &["127.0.0.1"], &[], None).await;
    let spec = https("127.0.0.1", Protocol::Http1, bench.trusting());
    over(&spec, &server).await.expect("its address");
    assert_eq!(server.seen.recv().await.expect("a handshake").sni, None);
    let named = Server::start(&bench.authority, &["localhost"], &[], None).await;
    over(&spec, &named)
        .await
        .expect_err("a certificate without the address");
    let v6 = https("[::1]", Protocol::Http1, bench.trusting());
    over(&v6, &server).await.expect_err("another address");
    let v6_server = Server::start(&bench.authority, &["::1"], &[], None).await;
    over(&v6, &v6_server).await.expect("its address");
}

#[tokio::test]
async fn h2_is_agreed_on_by_alpn() {
    let bench = Bench::new();
    let mut server = Server::start(&bench.authority, &["b.test"], &["h2", "http/1.1"], None).await;
    let spec = https("b.test", Protocol::H2, bench.trusting());
    assert!(over(&spec, &server).await.expect("trusted").alpn_h2);
    assert_eq!(
        server.seen.recv().await.expect("a handshake").alpn.as_deref(),
        Some("h2")
    );
    let spec = https("b.test", Protocol::Http1, bench.trusting());
    assert!(!over(&spec, &server).await.expect("trusted").alpn_h2);
    // RFC 7301, 3.2: no protocol in common ends the handshake.
    let old = Server::start(&bench.authority, &["b.test"], &["http/1.1"], None).await;
    let spec = https("b.test", Protocol::H2, bench.trusting());
    let refused = over(&spec, &old).await.expect_err("no h2 there").to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
}

#[tokio::test]
async fn the_second_connection_of_a_revision_resumes() {
    let bench = Bench::new();
    let mut server = Server::start(&bench.authority, &["b.test"], &[], None).await;
    let slot = RevisionTls::new(
        &https("b.test", Protocol::Http1, bench.trusting()),
        &Handle::current(),
    );
    through(&slot, &server).await.expect("trusted");
    assert!(!server.seen.recv().await.expect("a handshake").resumed);
    through(&slot, &server).await.expect("trusted");
    assert!(server.seen.recv().await.expect("a handshake").resumed);
    // Another revision has nothing to resume.
    over(&https("b.test", Protocol::Http1, bench.trusting()), &server)
        .await
        .expect("trusted");
    assert!(!server.seen.recv().await.expect("a handshake").resumed);
}

#[tokio::test]
async fn a_client_certificate_is_shown_when_asked_for() {
    let bench = Bench::new();
    let clients = Authority::new();
    let mut server = Server::start(&bench.authority, &["b.test"], &[], Some(&clients)).await;
    over(&https("b.test", Protocol::Http1, bench.trusting()), &server)
        .await
        .expect_err("none to show");
    let tls = BackendTls {
        certificate: Some(clients.write_pair(bench.dir.path(), "me", &["gateway.test"])),
        ..bench.trusting()
    };
    over(&https("b.test", Protocol::Http1, tls), &server)
        .await
        .expect("shown");
    assert!(server.seen.recv().await.expect("a handshake").client_certificate);
}

#[tokio::test]
async fn without_verification_any_certificate_is_taken() {
    let server = Server::start(&Authority::new(), &["somebody.test"], &[], None).await;
    let tls = BackendTls {
        insecure_skip_verify: true,
        ..BackendTls::default()
    };
    over(&https("b.test", Protocol::Http1, tls), &server)
        .await
        .expect("taken");
}

/// Session tickets come after the handshake, unasked: they are no word of the backend's.
#[tokio::test]
async fn an_idle_tls_connection_is_clean_until_the_backend_speaks() {
    let bench = Bench::new();
    let server = Server::start(&bench.authority, &["b.test"], &[], None).await;
    let spec = https("b.test", Protocol::Http1, bench.trusting());
    let slot = RevisionTls::new(&spec, &Handle::current());
    let mut good = through(&slot, &server).await.expect("trusted");
    for ask_kernel in [false, true] {
        assert!(good.io.is_idle_clean(ask_kernel));
    }
    // The greeting was not read: it spoke.
    let tls = slot.get().await.expect("usable").expect("https");
    let address = EndpointAddr::Tcp(server.address);
    let mut spoke = connect(&address, Some(&tls), PATIENCE).await.expect("trusted");
    let heard = async {
        while spoke.io.is_idle_clean(false) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("it spoke");
}
