//! The mesh: links in memory with paused time, and replicas over loopback with TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use sluice_model::{Replica, ReplicaSender};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::time::Instant;

use super::link::{MAX_FRAME, MAX_QUEUED, Outbox, carry};
use super::*;
use crate::source::cluster::lease::Leader;
use crate::source::cluster::peers::accept::Accept;
use crate::source::cluster::peers::certificate;
use crate::source::cluster::peers::{PING, PeerEvent};

const SOON: Duration = Duration::from_secs(20);

/// What the sink was called with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Replicas(Vec<(String, bool)>),
    Connected(String, u64),
    Received(String, Vec<u8>),
    Disconnected(String),
}

/// A sink that tells its calls.
pub(in crate::source::cluster::peers) struct Sink {
    is_wanted: AtomicBool,
    wake: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    calls: UnboundedSender<Call>,
    senders: Mutex<HashMap<String, ReplicaSender>>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl Sink {
    fn new(is_wanted: bool) -> (Arc<Self>, UnboundedReceiver<Call>) {
        let (calls, told) = unbounded_channel();
        let sink = Self {
            is_wanted: AtomicBool::new(is_wanted),
            wake: Mutex::default(),
            calls,
            senders: Mutex::default(),
        };
        (Arc::new(sink), told)
    }

    /// One that wants nothing.
    pub(in crate::source::cluster::peers) fn idle() -> Arc<Self> {
        Self::new(false).0
    }

    fn want(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Ordering::SeqCst);
        (self.wake.lock().as_ref().expect("it was asked"))();
    }

    fn send(&self, replica: &str, message: &[u8]) {
        self.senders.lock()[replica](message.to_vec());
    }

    fn call(&self, call: Call) {
        let _ = self.calls.send(call);
    }
}

impl ReplicaSink for Sink {
    fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::SeqCst)
    }

    fn on_wanted(&self, wake: Box<dyn Fn() + Send + Sync>) {
        *self.wake.lock() = Some(wake);
    }

    fn replicas(&self, _: &str, all: &[Replica]) {
        let all = all
            .iter()
            .map(|replica| (replica.name.to_string(), replica.serves));
        self.call(Call::Replicas(all.collect()));
    }

    fn connected(&self, replica: &str, incarnation: u64, sender: ReplicaSender) {
        self.senders.lock().insert(replica.to_owned(), sender);
        self.call(Call::Connected(replica.to_owned(), incarnation));
    }

    fn received(&self, replica: &str, message: &[u8]) -> Result<(), String> {
        self.call(Call::Received(replica.to_owned(), message.to_vec()));
        match message {
            b"no message" => Err("what is that".to_owned()),
            _ => Ok(()),
        }
    }

    fn disconnected(&self, replica: &str) {
        self.call(Call::Disconnected(replica.to_owned()));
    }
}

fn replicas(all: &[(&str, bool)]) -> Call {
    Call::Replicas(
        all.iter()
            .map(|(name, serves)| ((*name).to_owned(), *serves))
            .collect(),
    )
}

fn received(from: &str, message: &[u8]) -> Call {
    Call::Received(from.to_owned(), message.to_vec())
}

fn disconnected(from: &str) -> Call {
    Call::Disconnected(from.to_owned())
}

async fn silent(stream: DuplexStream) -> io::Result<()> {
    carry(stream, &Arc::default(), |_| Ok(())).await
}

fn kind(ended: &io::Result<()>) -> io::ErrorKind {
    ended.as_ref().expect_err("it ends with an error").kind()
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_in_order_in_both_directions_and_keep_alives_keep_a_link() {
    let (one, other) = duplex(1_000);
    let (here, there) = (Arc::<Outbox>::default(), Arc::<Outbox>::default());
    let (mut at_one, mut at_other) = (Vec::new(), Vec::new());
    for nth in 0..2_000_u32 {
        here.push(&nth.to_be_bytes());
        there.push(&(nth + 1).to_be_bytes());
    }
    here.push(&vec![7; MAX_FRAME]);
    let both = async {
        tokio::join!(
            carry(one, &here, |message| {
                at_one.push(message.to_vec());
                Ok(())
            }),
            carry(other, &there, |message| {
                at_other.push(message.to_vec());
                Ok(())
            })
        )
    };
    timeout(Duration::from_secs(60), both)
        .await
        .expect_err("it lives");
    let numbers = |from: u32| (from..from + 2_000).map(|nth| nth.to_be_bytes().to_vec());
    assert!(numbers(1).eq(at_one));
    assert_eq!(at_other.pop().map(|long| long.len()), Some(MAX_FRAME));
    assert!(numbers(0).eq(at_other));
}

#[tokio::test(start_paused = true)]
async fn silence_and_a_write_without_progress_end_a_link() {
    let began = Instant::now();
    let (one, _other) = duplex(1_000_000);
    assert_eq!(kind(&silent(one).await), io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed(), DEAD);

    // The other side sends and never reads: its keep-alives do not keep what cannot be written.
    let began = Instant::now();
    let (one, mut other) = duplex(100);
    let outbox = Arc::<Outbox>::default();
    outbox.push(&[1; 1_000]);
    let pings = async {
        loop {
            other.write_all(&[0; 4]).await.unwrap();
            sleep(PING).await;
        }
    };
    let ended = tokio::select! {
        ended = carry(one, &outbox, |_| Ok(())) => ended,
        () = pings => unreachable!(),
    };
    assert_eq!(kind(&ended), io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed(), DEAD);
}

#[tokio::test(start_paused = true)]
async fn a_long_frame_may_come_slowly_and_one_that_is_too_long_ends_the_link() {
    let (one, mut other) = duplex(1_000_000);
    let mut got = Vec::new();
    let slowly = async {
        other.write_all(&[0, 0, 0, 9]).await.unwrap();
        for part in [b"abc", b"def", b"ghi"] {
            sleep(DEAD - Duration::from_millis(1)).await;
            other.write_all(part).await.unwrap();
        }
        let too_long = u32::try_from(MAX_FRAME + 1).unwrap();
        other.write_all(&too_long.to_be_bytes()).await.unwrap();
    };
    let outbox = Arc::default();
    let link = carry(one, &outbox, |message| {
        got.push(message.to_vec());
        Ok(())
    });
    let (ended, ()) = tokio::join!(link, slowly);
    assert_eq!(kind(&ended), io::ErrorKind::InvalidData);
    assert_eq!(got, [b"abcdefghi".to_vec()]);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_ends_the_link_and_sending_is_silent_then() {
    for too_much in [vec![1; MAX_FRAME + 1], vec![1; MAX_FRAME]] {
        let outbox = Arc::<Outbox>::default();
        for _ in 0..MAX_QUEUED / MAX_FRAME {
            outbox.push(&too_much);
        }
        let (one, _other) = duplex(10);
        let ended = carry(one, &outbox, |_| Ok(())).await;
        assert_eq!(kind(&ended), io::ErrorKind::Other);
        outbox.push(b"more");
        assert!(format!("{outbox:?}").contains("queued: 0"), "{outbox:?}");
    }
}

fn drain(calls: &mut UnboundedReceiver<Call>) -> Vec<Call> {
    std::iter::from_fn(|| calls.try_recv().ok()).collect()
}

fn connected(to: &str, incarnation: u64) -> Call {
    Call::Connected(to.to_owned(), incarnation)
}

#[test]
fn a_newer_connection_ends_the_former_one_first() {
    let (sink, mut calls) = Sink::new(true);
    let hub = Arc::new(Hub::new("b".into(), sink));
    let former = hub.join("a".into(), 1);
    former.receive(b"one").unwrap();
    let newer = hub.join("a".into(), 2);
    former.receive(b"two").expect_err("it was replaced");
    drop(former);
    newer.receive(b"three").unwrap();
    assert!(newer.receive(b"no message").is_err());
    drop(newer);
    let expected = [
        connected("a", 1),
        received("a", b"one"),
        disconnected("a"),
        connected("a", 2),
        received("a", b"three"),
        received("a", b"no message"),
        disconnected("a"),
    ];
    assert_eq!(drain(&mut calls), expected);
}

#[test]
fn the_sink_is_told_who_is_there_when_that_changes() {
    let (sink, mut calls) = Sink::new(true);
    let hub = Arc::new(Hub::new("a".into(), sink));
    let at = |last: u8| SocketAddr::from(([10, 0, 0, last], 9902));
    let alone = Members::of("a", at(1));
    let both = alone.clone().with("b", "b1", at(2), false);
    hub.list(&Members::default());
    hub.list(&alone);
    hub.list(&both);
    // The same again, and at another address.
    hub.list(&both);
    hub.list(&alone.clone().with("b", "b1", at(3), false));
    hub.list(&alone.clone().with("b", "b1", at(3), true));
    let expected = [
        replicas(&[]),
        replicas(&[("a", true)]),
        replicas(&[("a", true), ("b", false)]),
        replicas(&[("a", true), ("b", true)]),
    ];
    assert_eq!(drain(&mut calls), expected);

    // Another Pod of the name, whose uid is in one of two slices first.
    let joined = hub.join("b".into(), 1);
    hub.list(&alone.clone().with_uids("b", &["b2", "b1"], at(3)));
    assert_eq!(drain(&mut calls), [connected("b", 1)]);
    hub.list(&alone.clone().with("b", "b2", at(3), true));
    let expected = [
        disconnected("b"),
        replicas(&[("a", true)]),
        replicas(&[("a", true), ("b", true)]),
    ];
    assert_eq!(drain(&mut calls), expected);
    joined.receive(b"late").expect_err("it is the former Pod's");
    drop(joined);

    // Gone.
    let _joined = hub.join("b".into(), 2);
    hub.list(&alone);
    let expected = [connected("b", 2), disconnected("b"), replicas(&[("a", true)])];
    assert_eq!(drain(&mut calls), expected);
}

/// A replica.
struct Node {
    name: &'static str,
    sink: Arc<Sink>,
    calls: UnboundedReceiver<Call>,
    incarnation: u64,
    address: SocketAddr,
    members: watch::Sender<Option<Members>>,
    events: tokio::sync::mpsc::Receiver<PeerEvent>,
    _leader: watch::Sender<Leader>,
    _tls: watch::Sender<Option<PeerTls>>,
    _tasks: JoinSet<()>,
}

impl Node {
    async fn start(name: &'static str, tls: &PeerTls, is_wanted: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sink, calls) = Sink::new(is_wanted);
        let (mesh, follow) = Mesh::new(name.into(), Arc::clone(&sink) as Arc<dyn ReplicaSink>);
        let (sends_tls, tls) = watch::channel(Some(tls.clone()));
        let (members, listed) = watch::channel(None);
        let (leader, knows_leader) = watch::channel(Leader::Me);
        let (sender, events) = channel(4);
        let accept = Accept {
            me: name.into(),
            leader: knows_leader,
            tls: tls.clone(),
            events: sender,
            mesh: mesh.clone(),
        };
        let incarnation = mesh.incarnation;
        let mut tasks = JoinSet::new();
        tasks.spawn(follow);
        tasks.spawn(accept.serve(listener));
        tasks.spawn(mesh.run(listed, tls));
        Self {
            name,
            sink,
            calls,
            incarnation,
            address,
            members,
            events,
            _leader: leader,
            _tls: sends_tls,
            _tasks: tasks,
        }
    }

    async fn call(&mut self) -> Call {
        let call = timeout(SOON, self.calls.recv()).await.expect("a call soon");
        call.expect("the sink is there")
    }

    async fn expect(&mut self, call: Call) {
        assert_eq!(self.call().await, call, "of {}", self.name);
    }
}

fn list(nodes: &[&Node]) -> Members {
    let mut members = Members::default();
    for node in nodes {
        members = members.with(node.name, node.name, node.address, true);
    }
    members
}

fn tls() -> PeerTls {
    let made = certificate::make(Timestamp::now()).unwrap();
    PeerTls::of(made.chain.as_bytes(), made.key.as_bytes()).unwrap()
}

#[tokio::test]
async fn replicas_meet_while_that_is_wanted_and_tell_each_other_what_their_sinks_say() {
    let tls = tls();
    let mut a = Node::start("a", &tls, false).await;
    let mut b = Node::start("b", &tls, false).await;
    let all = list(&[&a, &b]);
    let listed = replicas(&[("a", true), ("b", true)]);
    for node in [&mut a, &mut b] {
        node.members.send_replace(Some(all.clone()));
        node.expect(listed.clone()).await;
    }
    // The one that dials wants to, and is not answered before the other one does.
    a.sink.want(true);
    b.sink.want(true);
    a.expect(connected("b", b.incarnation)).await;
    b.expect(connected("a", a.incarnation)).await;
    for nth in 0..100_u8 {
        a.sink.send("b", &[nth]);
        b.sink.send("a", &[nth, 1]);
    }
    for nth in 0..100 {
        b.expect(received("a", &[nth])).await;
        a.expect(received("b", &[nth, 1])).await;
    }

    // What is no message ends the connection, and they meet anew.
    a.sink.send("b", b"no message");
    b.expect(received("a", b"no message")).await;
    b.expect(disconnected("a")).await;
    a.expect(disconnected("b")).await;
    b.expect(connected("a", a.incarnation)).await;
    a.expect(connected("b", b.incarnation)).await;

    // One of them wants it no more.
    b.sink.want(false);
    b.expect(disconnected("a")).await;
    a.expect(disconnected("b")).await;
    b.sink.want(true);
    b.expect(connected("a", a.incarnation)).await;
    a.expect(connected("b", b.incarnation)).await;

    // Gone for one, which ends the connection for both; it is met again where it is listed again.
    a.members.send_replace(Some(list(&[&a])));
    a.expect(disconnected("b")).await;
    a.expect(replicas(&[("a", true)])).await;
    b.expect(disconnected("a")).await;
    a.members.send_replace(Some(all));
    a.expect(listed).await;
    a.expect(connected("b", b.incarnation)).await;
    b.expect(connected("a", a.incarnation)).await;
}

#[tokio::test]
async fn another_process_of_a_replica_is_met_at_its_new_address() {
    let tls = tls();
    let mut a = Node::start("a", &tls, true).await;
    let mut b = Node::start("b", &tls, true).await;
    // It has not listed anybody: who has the certificate may meet it.
    a.members.send_replace(Some(list(&[&a, &b])));
    a.expect(replicas(&[("a", true), ("b", true)])).await;
    a.expect(connected("b", b.incarnation)).await;
    b.expect(connected("a", a.incarnation)).await;
    drop(b);
    a.expect(disconnected("b")).await;
    let mut b = Node::start("b", &tls, true).await;
    a.members.send_replace(Some(list(&[&a, &b])));
    a.expect(connected("b", b.incarnation)).await;
    b.expect(connected("a", a.incarnation)).await;

    // One that another replica answers in the place of is not met.
    let c = Node::start("c", &tls, true).await;
    let wrong = list(&[&a, &b]).with("bb", "bb", c.address, true);
    a.members.send_replace(Some(wrong));
    a.expect(replicas(&[("a", true), ("b", true), ("bb", true)]))
        .await;
    let right = Node::start("bb", &tls, true).await;
    a.members.send_replace(Some(list(&[&a, &b, &right])));
    a.expect(connected("bb", right.incarnation)).await;
}

async fn dial(address: SocketAddr, tls: &PeerTls, first: &Message) -> impl AsyncRead + AsyncWrite + use<> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let connector = TlsConnector::from(Arc::clone(&tls.client));
    let mut stream = connector.connect(name, stream).await.unwrap();
    wire::write(&mut stream, first).await.unwrap();
    stream
}

fn meet(replica: &str, incarnation: &str) -> Message {
    Message::Meet {
        version: VERSION,
        replica: replica.into(),
        incarnation: incarnation.into(),
    }
}

#[tokio::test]
async fn a_second_connection_of_a_replica_replaces_the_first_beside_acknowledgements() {
    let tls = tls();
    let mut b = Node::start("b", &tls, true).await;
    let hello = Message::Hello {
        version: 1,
        replica: "a".into(),
        recipe: 1,
    };
    let mut acks = dial(b.address, &tls, &hello).await;
    let mut buffer = Vec::new();
    assert!(matches!(
        wire::read(&mut acks, &mut buffer).await.unwrap(),
        Message::Welcome { .. }
    ));
    let mut first = dial(b.address, &tls, &meet("a", "1")).await;
    assert!(matches!(
        wire::read(&mut first, &mut buffer).await.unwrap(),
        Message::Met { replica, .. } if replica == "b"
    ));
    b.expect(connected("a", 1)).await;
    first.write_all(b"\0\0\0\x03one\0\0\0\0").await.unwrap();
    first.flush().await.unwrap();
    b.expect(received("a", b"one")).await;
    let mut second = dial(b.address, &tls, &meet("a", "2")).await;
    b.expect(disconnected("a")).await;
    b.expect(connected("a", 2)).await;
    let mut rest = Vec::new();
    let ended = timeout(SOON, first.read_to_end(&mut rest)).await;
    let _ = ended.expect("the first one is closed");
    second.write_all(b"\0\0\0\x03two").await.unwrap();
    second.flush().await.unwrap();
    b.expect(received("a", b"two")).await;

    // The acknowledgements know nothing of it.
    wire::write(&mut acks, &Message::Ping).await.unwrap();
    assert_eq!(wire::read(&mut acks, &mut buffer).await.unwrap(), Message::Ping);
    assert!(matches!(b.events.recv().await, Some(PeerEvent::Joined { .. })));
    assert!(b.events.try_recv().is_err());

    // It sends no keep-alives.
    b.expect(disconnected("a")).await;
}

#[tokio::test]
async fn who_cannot_be_one_that_dials_is_not_met() {
    let tls = tls();
    let mut b = Node::start("b", &tls, true).await;
    let long = "a".repeat(254);
    for (name, incarnation) in [
        ("b", "1"),
        ("c", "1"),
        ("", "1"),
        ("A b", "1"),
        (&long, "1"),
        ("a", "x"),
    ] {
        let mut stream = dial(b.address, &tls, &meet(name, incarnation)).await;
        let answer = timeout(SOON, wire::read(&mut stream, &mut Vec::new())).await;
        answer.expect("refused soon").expect_err("nobody answers to that");
    }
    assert_eq!(drain(&mut b.calls), []);
}

/// In memory, where time can be paused.
#[tokio::test(start_paused = true)]
async fn a_replica_that_nothing_is_to_be_told_is_refused_unless_there_is_soon() {
    for is_late in [false, true] {
        let (sink, mut calls) = Sink::new(false);
        let (mesh, follow) = Mesh::new("b".into(), Arc::clone(&sink) as Arc<dyn ReplicaSink>);
        let (mut one, other) = duplex(1_000);
        let wants = async {
            let late = if is_late { DEAD } else { PATIENCE / 2 };
            sleep(late).await;
            sink.want(true);
            std::future::pending::<()>().await;
        };
        let answer = async {
            let answer = wire::read(&mut one, &mut Vec::new()).await;
            assert_eq!(answer.is_err(), is_late);
            // And ends, or the connection would go on.
            drop(one);
        };
        tokio::select! {
            (ended, ()) = async { tokio::join!(mesh.accepted(other, "a".into(), "7"), answer) } => {
                ended.expect_err("it ends");
            }
            () = follow => unreachable!(),
            () = wants => unreachable!(),
        }
        let expected = [connected("a", 7), disconnected("a")];
        let expected: &[Call] = if is_late { &[] } else { &expected };
        assert_eq!(drain(&mut calls), expected);
    }
}
