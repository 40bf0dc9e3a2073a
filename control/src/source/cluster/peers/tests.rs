//! Replicas over loopback: both sides, with TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::accept::Accept;
use super::certificate::{self, PeerTls};
use super::members::Members;
use super::mesh::Mesh;
use super::mesh::tests::Sink;
use super::report::Report;
use super::{PeerEvent, ServedTable};
use crate::ingress::{IngressObject, IngressOutcome};
use crate::object_name::ObjectName;
use crate::source::cluster::acks::{RECIPE, Served};
use crate::source::cluster::lease::Leader;

const SOON: std::time::Duration = std::time::Duration::from_secs(20);

fn tls() -> PeerTls {
    let made = certificate::make(Timestamp::now()).unwrap();
    PeerTls::of(made.chain.as_bytes(), made.key.as_bytes()).unwrap()
}

/// A replica that leads, or not.
struct Leading {
    address: SocketAddr,
    leader: watch::Sender<Leader>,
    events: Receiver<PeerEvent>,
    tasks: JoinSet<()>,
}

impl Leading {
    async fn start(leader: Leader, tls: PeerTls) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leader, known) = watch::channel(leader);
        let (sender, events) = channel(4);
        let accept = Accept {
            me: "a".into(),
            leader: known,
            tls: watch::channel(Some(tls)).1,
            events: sender,
            mesh: Mesh::new("a".into(), Sink::idle()).0,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept.serve(listener));
        Self {
            address,
            leader,
            events,
            tasks,
        }
    }

    async fn event(&mut self) -> PeerEvent {
        let event = timeout(SOON, self.events.recv()).await.expect("an event soon");
        event.expect("the channel is open")
    }

    async fn joined(&mut self) -> u64 {
        match self.event().await {
            PeerEvent::Joined {
                connection,
                replica,
                recipe,
            } => {
                assert_eq!((replica.as_str(), recipe), ("b", RECIPE));
                connection
            }
            other => panic!("{other:?}"),
        }
    }

    async fn acks(&mut self, of: u64) -> (Vec<(String, i64)>, Vec<String>) {
        match self.event().await {
            PeerEvent::Acknowledged {
                connection,
                acks,
                gone,
                ..
            } => {
                assert_eq!(connection, of);
                let acks = acks.iter().map(|ack| (ack.uid.to_string(), ack.generation));
                (acks.collect(), gone)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn left(&mut self, of: u64) {
        match self.event().await {
            PeerEvent::Left { connection, .. } => assert_eq!(connection, of),
            other => panic!("{other:?}"),
        }
    }
}

/// A replica `b` that tells the leader `a`.
struct Telling {
    table: Arc<ServedTable>,
    members: watch::Sender<Option<Members>>,
    _leader: watch::Sender<Leader>,
    tls: watch::Sender<Option<PeerTls>>,
    _tasks: JoinSet<()>,
}

impl Telling {
    fn start(address: SocketAddr, tls: PeerTls) -> Self {
        let (leader, knows_leader) = watch::channel(Leader::Other("a".into()));
        let (members, knows_members) = watch::channel(Some(Members::of("a", address)));
        let (sends_tls, knows_tls) = watch::channel(Some(tls));
        let table = Arc::<ServedTable>::default();
        let report = Report {
            me: "b".into(),
            leader: knows_leader,
            members: knows_members,
            tls: knows_tls,
            table: Arc::clone(&table),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(report.run());
        Self {
            table,
            members,
            _leader: leader,
            tls: sends_tls,
            _tasks: tasks,
        }
    }

    fn serve(&self, name: &str, uid: &str, generation: i64) {
        let outcome = IngressOutcome {
            object: Arc::new(IngressObject {
                name: ObjectName::new("d", name),
                uid: uid.into(),
                generation,
                service: None,
                problem: None,
            }),
            problem: None,
        };
        self.table.serve(&outcome, Served::of(&outcome));
    }
}

fn ack(uid: &str, generation: i64) -> (String, i64) {
    (uid.to_owned(), generation)
}

#[tokio::test]
async fn a_replica_tells_all_that_it_serves_and_then_what_changes() {
    let tls = tls();
    let mut leading = Leading::start(Leader::Me, tls.clone()).await;
    let telling = Telling::start("127.0.0.1:1".parse().unwrap(), tls);
    telling.serve("one", "u1", 1);
    telling.serve("two", "u2", 5);
    // It was not there where it was looked for first.
    telling
        .members
        .send_replace(Some(Members::of("a", leading.address)));
    let connection = leading.joined().await;
    let all = leading.acks(connection).await;
    assert_eq!(all, (vec![ack("u1", 1), ack("u2", 5)], vec![]));

    telling.serve("one", "u1", 2);
    assert_eq!(leading.acks(connection).await.0, [ack("u1", 2)]);
    // The same again is not told; another object of a name, and one that is gone, are.
    telling.serve("one", "u1", 2);
    telling.serve("two", "u3", 1);
    assert_eq!(
        leading.acks(connection).await,
        (vec![ack("u3", 1)], vec!["u2".to_owned()])
    );
    telling.table.retain(|name: &ObjectName| name.name() == "two");
    assert_eq!(leading.acks(connection).await, (vec![], vec!["u1".to_owned()]));
}

#[tokio::test]
async fn a_leader_that_does_not_lead_any_more_closes_and_gets_everything_when_it_leads_again() {
    let tls = tls();
    let mut leading = Leading::start(Leader::Me, tls.clone()).await;
    let telling = Telling::start(leading.address, tls);
    telling.serve("one", "u1", 1);
    let first = leading.joined().await;
    assert_eq!(leading.acks(first).await.0, [ack("u1", 1)]);
    leading.leader.send_replace(Leader::Nobody);
    leading.left(first).await;
    // Refused until then.
    leading.leader.send_replace(Leader::Me);
    let second = leading.joined().await;
    assert_ne!(first, second);
    assert_eq!(leading.acks(second).await.0, [ack("u1", 1)]);
    // The process is gone.
    leading.tasks.shutdown().await;
    drop(leading);
    let mut successor = Leading::start(Leader::Me, telling_tls(&telling)).await;
    telling
        .members
        .send_replace(Some(Members::of("a", successor.address)));
    let third = successor.joined().await;
    assert_eq!(successor.acks(third).await.0, [ack("u1", 1)]);
}

fn telling_tls(telling: &Telling) -> PeerTls {
    telling.tls.borrow().clone().expect("it has one")
}

#[tokio::test]
async fn nobody_gets_in_without_the_certificate() {
    let mut leading = Leading::start(Leader::Me, tls()).await;
    let stranger = Telling::start(leading.address, tls());
    stranger.serve("one", "u1", 1);
    // Neither with another certificate nor with none, nor with something that is no TLS.
    let mut plain = TcpStream::connect(leading.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"\0\0\0\x02{}")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let closed = timeout(SOON, plain.read_to_end(&mut answer))
        .await
        .expect("closed soon");
    assert!(closed.is_err() || !answer.windows(4).any(|bytes| bytes == b"kind"));

    let own = Arc::new(rustls::crypto::ring::default_provider());
    let nobody = rustls::ClientConfig::builder_with_provider(own)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let stream = TcpStream::connect(leading.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from(certificate::SERVER_NAME).unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(nobody))
        .connect(name, stream)
        .await;
    // In TLS 1.3 a client is refused after its handshake.
    let mut stream = stream.unwrap();
    let refused = timeout(SOON, stream.read_u8()).await.expect("refused soon");
    refused.expect_err("no message for a stranger");
    assert!(leading.events.try_recv().is_err());
}

#[tokio::test]
async fn a_connection_without_keep_alives_ends() {
    // A client that says Hello and nothing more.
    let tls = tls();
    let mut leading = Leading::start(Leader::Me, tls.clone()).await;
    let stream = TcpStream::connect(leading.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from(certificate::SERVER_NAME).unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(tls.client)
        .connect(name, stream)
        .await
        .unwrap();
    let hello = super::wire::Message::Hello {
        version: 1,
        replica: "b".into(),
        recipe: RECIPE,
    };
    super::wire::write(&mut stream, &hello).await.unwrap();
    let connection = leading.joined().await;
    leading.left(connection).await;
}

/// Takes any certificate, as an attacker would.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
