//! Scale-down with open streams: a stream keeps its instance, and is closed in order at the drain's deadline.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use sluice_tests::cli::sluice_bin;
use sluice_tests::gateway::Gateway;
use sluice_tests::grpc::{EchoClient, Note};
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::wait::{SOON, wait_for, wait_until, within};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};
use tonic::Streaming;

use crate::WEB;
use crate::cold_start::shell_service;

/// The limit for the autoscaler to scale down, with a margin for a busy machine.
const WINDOW: Duration = Duration::from_secs(40);

/// The instances that ran, from the file that they write.
struct Instances(PathBuf);

impl Instances {
    fn noted(&self, what: &str) -> Vec<u32> {
        let diary = std::fs::read_to_string(&self.0).unwrap_or_default();
        let ids = diary
            .lines()
            .filter_map(|line| line.strip_prefix(what)?.trim().parse().ok());
        ids.collect()
    }

    fn started(&self) -> Vec<u32> {
        self.noted("start ")
    }

    fn stopped(&self) -> Vec<u32> {
        self.noted("term ")
    }

    async fn wait_stopped(&self, what: &str, count: usize) {
        wait_until(what, WINDOW, || self.stopped().len() == count).await;
    }
}

/// The service `web` with stream servers for instances; `h2c` is what the gRPC ones speak.
fn streams(diary: &Path, version: u32, more: &str) -> String {
    let server = env!("CARGO_BIN_EXE_sluice-stream-server");
    let script = format!("VERSION={version} exec {server} $(PORT) {}", diary.display());
    shell_service(&script, more)
}

/// An open stream of any kind.
enum Open {
    WebSocket(WebSocketStream<TcpStream>),
    Events(H1),
    Watch(EchoClient, Streaming<Note>),
    Chat(EchoClient, mpsc::Sender<Note>, Streaming<Note>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    WebSocket,
    Events,
    Watch,
    Chat,
}

impl Kind {
    fn protocol(self) -> &'static str {
        match self {
            Self::WebSocket | Self::Events => "protocol: http1",
            Self::Watch | Self::Chat => "protocol: h2c",
        }
    }

    async fn open(self, gateway: &Gateway) -> Open {
        let addr = gateway.addr();
        match self {
            Self::WebSocket => {
                let io = TcpStream::connect(addr).await.expect("the gateway accepts");
                let connected = client_async(format!("ws://{WEB}/ws"), io).await;
                Open::WebSocket(connected.expect("the upgrade succeeds").0)
            }
            Self::Events => {
                let mut conn = H1::connect(addr).await.expect("the gateway accepts");
                conn.send(&h1::get(WEB, "/sse")).await.expect("it is sent");
                assert_eq!(conn.head(false).await.expect("a head").status, 200);
                Open::Events(conn)
            }
            Self::Watch => {
                let mut client = EchoClient::connect(addr, WEB).await;
                let mut notes = client.watch(Note::new("endless", 1)).await.expect("a stream");
                let first = within("a note", SOON, notes.message()).await;
                let first = first.expect("no error").expect("no end");
                assert_eq!(first.number, 0);
                Open::Watch(client, notes)
            }
            Self::Chat => {
                let mut client = EchoClient::connect(addr, WEB).await;
                let (say, said) = mpsc::channel(1);
                let replies = client.chat(said).await.expect("a stream");
                Open::Chat(client, say, replies)
            }
        }
    }
}

impl Open {
    /// Asserts that the stream still passes messages.
    async fn assert_alive(&mut self) {
        match self {
            Self::WebSocket(ws) => {
                ws.send(Message::text("still")).await.expect("the tunnel is open");
                let reply = within("an echo", SOON, ws.next()).await;
                let reply = reply.expect("no end").expect("no error");
                assert_eq!(reply, Message::text("still"));
            }
            Self::Events(conn) => {
                let event = within("an event", SOON, conn.chunk()).await;
                assert!(
                    event
                        .expect("no error")
                        .expect("more events")
                        .starts_with(b"data: ")
                );
            }
            // No message is due; the end of the stream would show at once.
            Self::Watch(_, notes) => {
                let end = tokio::time::timeout(Duration::from_millis(50), notes.message()).await;
                assert!(end.is_err(), "{end:?}");
            }
            Self::Chat(_, say, replies) => {
                say.send(Note::new("still", 1)).await.expect("the stream is open");
                let reply = within("a reply", SOON, replies.message()).await;
                let reply = reply.expect("no error").expect("no end");
                assert_eq!(reply.text, "re: still");
            }
        }
    }
}

async fn served_by(gateway: &Gateway) -> u32 {
    let response = gateway.get(WEB, "/").await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().parse().expect("an instance's id")
}

/// Three instances, one with a stream: the autoscaler's wish for fewer ends the other two, an edit
/// sends new requests elsewhere, and the stream's instance is stopped when the stream is over.
async fn holds_its_instance(kind: Kind, metric: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let instances = Instances(dir.path().join("diary"));
    let config = |version, least| {
        let scaling = format!("autoscaling: {{minScale: {least}, window: 6s, metric: {metric}}}");
        streams(&instances.0, version, &format!("{}\n{scaling}", kind.protocol()))
    };
    let gateway = Gateway::start(&config(1, 3)).await;
    gateway.wait_ready_instances("web-a", 3.0, SOON).await;
    let mut stream = kind.open(&gateway).await;
    stream.assert_alive().await;

    gateway.reload(&config(1, 0)).await;
    instances
        .wait_stopped("those without a stream are stopped", 2)
        .await;
    stream.assert_alive().await;
    let holder = served_by(&gateway).await;
    assert!(!instances.stopped().contains(&holder));

    gateway.reload(&config(2, 0)).await;
    wait_until("its successor is started", SOON, || {
        instances.started().len() == 4
    })
    .await;
    let successor = instances.started()[3];
    wait_for("new requests go elsewhere", SOON, async || {
        (served_by(&gateway).await == successor).then_some(())
    })
    .await;
    for _ in 0..10 {
        assert_eq!(served_by(&gateway).await, successor);
        stream.assert_alive().await;
    }
    assert_eq!(instances.stopped().len(), 2, "the stream still runs");
    drop(stream);
    wait_until("its instance is stopped after it", SOON, || {
        instances.stopped().contains(&holder)
    })
    .await;
    assert!(
        instances.noted("close 1001 ").is_empty(),
        "nobody was asked to go"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_holds_its_instance() {
    holds_its_instance(Kind::WebSocket, "concurrency").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_hold_their_instance() {
    holds_its_instance(Kind::Events, "concurrency").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_server_stream_holds_its_instance() {
    holds_its_instance(Kind::Watch, "concurrency").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_bidi_stream_holds_its_instance() {
    holds_its_instance(Kind::Chat, "concurrency").await;
}

/// With the metric rps an open stream counts as no load, so the autoscaler wants zero.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_is_not_reached_while_a_stream_is_open() {
    holds_its_instance(Kind::WebSocket, "rps").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_is_not_reached_while_somebody_waits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let starts = dir.path().join("starts");
    let script = format!(
        "{}; exec {} echo --port $(PORT) --start-delay 12s",
        crate::cold_start::mark(&starts),
        sluice_bin().display()
    );
    // Long before it listens the window has forgotten the one request.
    let more = "autoscaling: {window: 6s, metric: rps}";
    let gateway = Gateway::start(&shell_service(&script, more)).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(sluice_tests::process::line_count(&starts), 1);
}

/// Streams of a retired instance are closed in order at `drain.timeout`.
async fn evicted(kind: Kind) -> (Gateway, Open, Instances, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let instances = Instances(dir.path().join("diary"));
    let config = |version| {
        let service = streams(&instances.0, version, kind.protocol());
        format!("drain: {{timeout: 1s}}\n{service}")
    };
    let gateway = Gateway::start(&config(1)).await;
    let mut stream = kind.open(&gateway).await;
    stream.assert_alive().await;
    gateway.reload(&config(2)).await;
    (gateway, stream, instances, dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_websocket_does_not_keep_a_replaced_instance() {
    let (_gateway, stream, instances, _dir) = evicted(Kind::WebSocket).await;
    let Open::WebSocket(mut ws) = stream else {
        unreachable!()
    };
    let end = within("a Close", SOON, ws.next()).await.expect("a message");
    match end.expect("an orderly end") {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
    instances.wait_stopped("its instance is stopped", 1).await;
    let first = instances.started()[0];
    assert_eq!(instances.noted("close 1001 "), [first], "and was told before");
    assert_eq!(instances.stopped(), [first]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_events_do_not_keep_a_replaced_instance() {
    let (gateway, stream, instances, _dir) = evicted(Kind::Events).await;
    let Open::Events(mut conn) = stream else {
        unreachable!()
    };
    // An event stream ends with its last chunk: it cannot be incomplete.
    while within("the end", SOON, conn.chunk())
        .await
        .expect("a clean end")
        .is_some()
    {}
    conn.closed().await.expect("and the connection with it");
    instances.wait_stopped("its instance is stopped", 1).await;
    let entry = gateway
        .wait_access_log("the events", |e| e["path"] == "/sse")
        .await;
    assert_eq!(entry["reason"], "draining", "{entry}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_grpc_stream_does_not_keep_a_replaced_instance() {
    let (gateway, stream, instances, _dir) = evicted(Kind::Chat).await;
    let Open::Chat(_client, _say, mut replies) = stream else {
        unreachable!()
    };
    let start = Instant::now();
    within("the reset", SOON, replies.message())
        .await
        .expect_err("a broken stream");
    assert!(
        start.elapsed() > Duration::from_secs(4),
        "it had a grace after GOAWAY"
    );
    instances.wait_stopped("its instance is stopped", 1).await;
    let entry = gateway
        .wait_access_log("the stream", |e| e["path"] == "/test.Echo/Chat")
        .await;
    assert_eq!(
        (&entry["reason"], &entry["status"]),
        (&"draining".into(), &200.into()),
        "{entry}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_revision_is_gone_at_the_drain_timeout() {
    let (gateway, mut stream, instances, _dir) = evicted(Kind::WebSocket).await;
    stream.assert_alive().await;
    gateway
        .reload("drain: {timeout: 1s}\nservices:\n  - {name: other, endpoints: [\"127.0.0.1:9\"]}\n")
        .await;
    let Open::WebSocket(mut ws) = stream else {
        unreachable!()
    };
    let end = within("a Close", SOON, ws.next()).await.expect("a message");
    assert!(matches!(end, Ok(Message::Close(Some(frame))) if frame.code == CloseCode::Away));
    wait_until("nothing of it is left", SOON, || {
        instances.stopped().len() == instances.started().len()
    })
    .await;
}

/// The service `web` at one stream server that is no instance.
async fn too_old(kind: Kind, path: &str) -> (Gateway, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let more = format!("{}\nmaxStreamAge: 1s", kind.protocol());
    let gateway = Gateway::start(&streams(&dir.path().join("diary"), 1, &more)).await;
    // The age counts from the response head, not from a cold start's first request.
    assert_eq!(gateway.get(WEB, path).await.status, 200);
    (gateway, dir)
}

async fn assert_too_old(gateway: &Gateway, path: &str) {
    let entry = gateway.wait_access_log("the stream", |e| e["path"] == path).await;
    let told = (&entry["reason"], &entry["timer"], &entry["status"]);
    assert_eq!(told, (&"timeout".into(), &"age".into(), &200.into()), "{entry}");
    assert!(
        entry["duration_ms"].as_f64().expect("a number") > 900.0,
        "{entry}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_too_old_end_cleanly() {
    let (gateway, _dir) = too_old(Kind::Events, "/").await;
    let Open::Events(mut conn) = Kind::Events.open(&gateway).await else {
        unreachable!()
    };
    while within("the end", SOON, conn.chunk())
        .await
        .expect("a clean end")
        .is_some()
    {}
    assert_too_old(&gateway, "/sse").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_other_body_too_old_does_not_look_whole() {
    let (gateway, _dir) = too_old(Kind::Events, "/").await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/chunked")).await.unwrap();
    assert_eq!(conn.head(false).await.unwrap().status, 200);
    let end = loop {
        match within("the end", SOON, conn.chunk()).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    end.expect_err("no last chunk");
    assert_too_old(&gateway, "/chunked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2_too_old_is_goaway_and_then_a_reset() {
    let (gateway, _dir) = too_old(Kind::Events, "/").await;
    let h2 = H2::connect(gateway.addr()).await;
    let open = async |path: &str| {
        let mut requests = h2.send.clone().ready().await.unwrap();
        let get = h2_client::get("http", WEB, path);
        let (response, _) = requests.send_request(get, true).unwrap();
        response.await.unwrap().into_body()
    };
    let mut events = open("/sse").await;
    let mut chunked = open("/chunked").await;
    let start = Instant::now();
    wait_until("GOAWAY", SOON, || {
        let ready = futures_util::FutureExt::now_or_never(h2.send.clone().ready());
        ready.is_some_and(|ready| ready.is_err())
    })
    .await;
    // New streams need another connection; open streams go on for a while.
    let told = start.elapsed();
    assert!(told > Duration::from_millis(900), "{told:?}");
    let go_on = |body: &mut h2::RecvStream, chunk: Bytes| {
        body.flow_control().release_capacity(chunk.len()).unwrap();
    };
    for body in [&mut events, &mut chunked] {
        let chunk = within("more after GOAWAY", SOON, body.data()).await;
        go_on(body, chunk.expect("no end").expect("no reset"));
    }
    let whole = async |body: &mut h2::RecvStream| loop {
        match within("the end", SOON, body.data()).await {
            None => return true,
            Some(Err(_)) => return false,
            Some(Ok(chunk)) => go_on(body, chunk),
        }
    };
    assert!(whole(&mut events).await, "events end cleanly");
    assert!(!whole(&mut chunked).await, "anything else is reset");
    let end = start.elapsed();
    assert!(end - told > Duration::from_secs(4), "{end:?}");
    for path in ["/sse", "/chunked"] {
        assert_too_old(&gateway, path).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_stream_too_old_is_reset_after_its_grace() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let more = "protocol: h2c\nmaxStreamAge: 1s";
    let gateway = Gateway::start(&streams(&dir.path().join("diary"), 1, more)).await;
    let mut stream = Kind::Watch.open(&gateway).await;
    stream.assert_alive().await;
    let Open::Watch(mut client, mut notes) = stream else {
        unreachable!()
    };
    within("the reset", SOON, notes.message())
        .await
        .expect_err("a broken stream");
    assert_too_old(&gateway, "/test.Echo/Count").await;
    // The client has long gone on to another connection.
    let reply = client
        .unary(Note::new("again", 1), None)
        .await
        .expect("an answer");
    assert_eq!(reply.into_inner().text, "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_drains_deadline_every_stream_is_reset_and_logged() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let service = streams(&dir.path().join("diary"), 1, "protocol: h2c");
    let mut gateway = Gateway::start(&format!("drain: {{timeout: 1s}}\n{service}")).await;
    let mut streams = Vec::new();
    for n in 0..20 {
        let kind = if n % 2 == 0 { Kind::Watch } else { Kind::Chat };
        streams.push(kind.open(&gateway).await);
    }
    gateway.sigterm();
    for stream in &mut streams {
        let (Open::Watch(_, notes) | Open::Chat(_, _, notes)) = stream else {
            unreachable!()
        };
        within("the reset", SOON, notes.message())
            .await
            .expect_err("a broken stream");
    }
    assert_eq!(gateway.wait_exit(SOON).await.code(), Some(0));
    wait_until("every stream's line", SOON, || {
        let log = gateway.access_log();
        log.iter().filter(|e| e["reason"] == "draining").count() == streams.len()
    })
    .await;
}
