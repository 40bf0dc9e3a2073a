//! Upgrade in place: the binary on disk takes over without losing a request or a connection.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use sluice_tests::backend::{HttpBackend, ok, streamed};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::load::Load;
use sluice_tests::process::is_alive;
use sluice_tests::wait::{SOON, wait_for, wait_until, within};
use sluice_tests::websocket::{self, echo_backend, going_away};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::{WEB, web};

/// The services `web` and `chat`.
fn web_and_chat(web_at: SocketAddr, chat_at: SocketAddr) -> String {
    format!("{}  - {{name: chat, endpoints: [\"{chat_at}\"]}}\n", web(web_at))
}

async fn websocket(addr: SocketAddr) -> WebSocketStream<TcpStream> {
    let mut ws = websocket::connect(addr, "chat.default.localhost").await;
    echoed(&mut ws, "hi").await;
    ws
}

async fn echoed(ws: &mut WebSocketStream<TcpStream>, text: &str) {
    websocket::echoed(ws, Message::text(text)).await;
}

/// Begins a request whose body is [`finished`] later.
pub(crate) async fn upload(gateway: &Gateway, host: &str) -> H1 {
    let mut client = H1::connect(gateway.addr()).await.expect("the gateway accepts");
    let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\nfirst");
    client.send(head.as_bytes()).await.expect("the connection holds");
    client
}

/// Sends the rest of an [`upload`], and reads the answer.
pub(crate) async fn finished(mut upload: H1) -> h1::H1Response {
    upload.exchange(b"-last").await.expect("an answer")
}

/// Two upgrades in a row, the second while the first process still drains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_not_one_request_or_connection_is_lost() {
    let backend = HttpBackend::start("a").await;
    let (chat, _) = echo_backend().await;
    let mut gateway = Gateway::start(&web_and_chat(backend.addr(), chat.addr())).await;
    let addr = gateway.addr();
    let mut first_ws = websocket(addr).await;
    let loads = [
        Load::get(addr, 8, WEB),
        Load::get_anew(addr, 4, WEB),
        Load::get_h2(addr, 4, WEB),
    ];
    let advance = async || {
        for load in &loads {
            load.advance(150).await;
        }
    };
    advance().await;
    let second = gateway.upgraded().await;
    advance().await;
    echoed(&mut first_ws, "in the first process").await;
    let mut second_ws = websocket(addr).await;
    let third = gateway.upgraded().await;
    advance().await;
    for load in loads {
        load.stop().await.assert_clean();
    }
    echoed(&mut first_ws, "still").await;
    echoed(&mut second_ws, "in the second").await;
    assert!(is_alive(gateway.pid()) && is_alive(second) && is_alive(third));

    // Each process exits with its last connection, and not before its predecessor.
    second_ws.close(None).await.unwrap();
    echoed(&mut first_ws, "and still").await;
    assert!(is_alive(second));
    first_ws.close(None).await.unwrap();
    let status = gateway.wait_exit(Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(0));
    gateway.wait_gone(second, Duration::from_secs(15)).await;
    assert_eq!(gateway.serving_pid().await, third);
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
}

#[tokio::test]
async fn sigquit_does_what_the_command_does() {
    let backend = HttpBackend::start("a").await;
    let mut gateway = Gateway::start(&web(backend.addr())).await;
    let before = gateway.admin_json("/api/config").await;
    assert_eq!(before["pid"], gateway.pid());
    let pid = gateway.upgraded_by_signal().await;
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
    let after = gateway.admin_json("/api/config").await;
    assert_eq!(after["pid"], pid);
    assert!(
        after["startedAt"].as_str() > before["startedAt"].as_str(),
        "{after}"
    );
    assert_eq!(after["bound"], before["bound"]);
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
    for line in [
        "upgrade: starting ".to_owned(),
        format!("upgrade: process {pid} is ready"),
        format!("upgrade: serving in place of process {}", gateway.pid()),
        format!("upgrade: process {pid} (version "),
        format!("upgrade: process {} no longer accepts", gateway.pid()),
    ] {
        // Lines of two processes may come in any order.
        gateway.wait_said(&line).await;
    }
}

#[tokio::test]
async fn an_upload_and_a_download_under_way_are_finished() {
    let (feed, chunks) = mpsc::channel(1);
    let chunks = std::sync::Mutex::new(Some(chunks));
    let download = HttpBackend::builder("download")
        .answer(move |_| ok(streamed(chunks.lock().unwrap().take().expect("one request"))))
        .start()
        .await;
    let uploads = HttpBackend::start("upload").await;
    let mut gateway = Gateway::start(&format!(
        "{}  - {{name: files, endpoints: [\"{}\"]}}\n",
        web(uploads.addr()),
        download.addr()
    ))
    .await;
    let up = upload(&gateway, WEB).await;
    let mut down = H1::connect(gateway.addr()).await.unwrap();
    down.send(&h1::get("files.default.localhost", "/")).await.unwrap();
    feed.send(Bytes::from_static(b"one")).await.unwrap();
    down.head(false).await.unwrap();
    assert_eq!(down.chunk().await.unwrap().unwrap(), b"one");
    wait_until("the upload has begun", SOON, || uploads.in_flight() == 1).await;

    gateway.upgraded().await;
    assert!(is_alive(gateway.pid()));
    feed.send(Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(down.chunk().await.unwrap().unwrap(), b"two");
    drop(feed);
    assert_eq!(down.chunk().await.unwrap(), None);
    let response = finished(up).await;
    assert_eq!(response.status, 200);
    assert_eq!(uploads.last().body, &b"first-last"[..]);
    assert!(response.closes(), "{response:?}");
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
}

#[tokio::test]
async fn ports_stay_where_they_are_and_listeners_follow_the_new_config() {
    let backend = HttpBackend::start("a").await;
    let services = web(backend.addr());
    let listeners = |addresses: &[&str]| {
        let all: Vec<_> = addresses.iter().map(|a| format!("{{address: {a}:0}}")).collect();
        format!(
            "health: {{address: 127.0.0.1:0}}\nlisteners: [{}]\n{services}",
            all.join(", ")
        )
    };
    let gateway = Gateway::start(&listeners(&["127.0.0.1", "127.0.0.1", "127.0.0.2"])).await;
    let bound = async || -> Vec<SocketAddr> {
        let config = gateway.admin_json("/api/config").await;
        let all = config["bound"]["listeners"].as_array().expect("a list").clone();
        all.iter().map(|a| a.as_str().unwrap().parse().unwrap()).collect()
    };
    let serves = async |addr| h1::fetch(addr, &h1::get(WEB, "/")).await.map(|r| r.status);
    let [first, second, third] = bound().await[..] else {
        panic!()
    };
    // Several sockets of one configured address are distinguished.
    gateway.upgraded().await;
    assert_eq!(bound().await, [first, second, third]);
    assert_eq!(
        h1::fetch(gateway.health(), &h1::get("x", "/readyz"))
            .await
            .unwrap()
            .status,
        200
    );

    gateway.write_config(&listeners(&["127.0.0.3", "127.0.0.1", "127.0.0.1"]));
    gateway.upgraded().await;
    let now = bound().await;
    assert_eq!(now[1..], [first, second]);
    for addr in now {
        assert_eq!(serves(addr).await.unwrap(), 200, "{addr}");
    }
    assert!(TcpStream::connect(third).await.is_err(), "nobody has it any more");

    // Inherited listeners follow the config like others.
    gateway.reload(&listeners(&["127.0.0.1", "127.0.0.2"])).await;
    wait_for("the listeners are those of the config", SOON, async || {
        let now = bound().await;
        (now.len() == 2 && now[0] == first && now[1].ip() == third.ip()).then_some(())
    })
    .await;
    assert!(TcpStream::connect(second).await.is_err());
    assert_eq!(serves(first).await.unwrap(), 200);
}

#[tokio::test]
async fn at_the_end_of_the_old_process_s_drain_websockets_are_asked_to_go() {
    let (chat, _) = echo_backend().await;
    let config = format!(
        "drain: {{timeout: 1s}}\n{}",
        web_and_chat(chat.addr(), chat.addr())
    );
    let mut gateway = Gateway::start(&config).await;
    let mut ws = websocket(gateway.addr()).await;
    gateway.upgraded().await;
    going_away(&mut ws).await;
    drop(ws);
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
}

/// `systemctl stop` while the old process drains, and SIGTERM to the new one.
#[tokio::test]
async fn stopping_either_process_cuts_nothing_that_the_old_one_still_has() {
    let (chat, _) = echo_backend().await;
    let mut gateway = Gateway::start(&web_and_chat(chat.addr(), chat.addr())).await;
    let mut ws = websocket(gateway.addr()).await;
    let new = gateway.upgraded().await;
    gateway.sigterm();
    echoed(&mut ws, "the old one was told to stop").await;
    gateway.signal_to(new, Signal::SIGTERM);
    wait_for("the new one is on its way out", SOON, async || {
        TcpStream::connect(gateway.addr()).await.is_err().then_some(())
    })
    .await;
    echoed(&mut ws, "so was the new one").await;
    assert!(is_alive(new), "the old one needs what it owns");
    ws.close(None).await.unwrap();
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
    gateway.wait_gone(new, Duration::from_secs(15)).await;
}

#[tokio::test]
async fn told_twice_the_old_process_goes_at_once() {
    let (chat, _) = echo_backend().await;
    let mut gateway = Gateway::start(&web_and_chat(chat.addr(), chat.addr())).await;
    let _ws = websocket(gateway.addr()).await;
    gateway.upgraded().await;
    gateway.sigterm();
    gateway.wait_said("upgrade: process").await;
    // Signals of one kind that come together are one.
    wait_for("the second is the last", SOON, async || {
        if is_alive(gateway.pid()) {
            gateway.sigterm();
        }
        (!is_alive(gateway.pid())).then_some(())
    })
    .await;
    assert_eq!(gateway.wait_exit(SOON).await.code(), Some(0));
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
}

#[tokio::test]
async fn systemd_is_told_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
    let told = async || {
        let mut message = [0; 512];
        let n = within("systemd is told", SOON, socket.recv(&mut message))
            .await
            .unwrap();
        String::from_utf8_lossy(&message[..n]).into_owned()
    };
    let backend = HttpBackend::start("a").await;
    let mut gateway = Gateway::builder(&web(backend.addr()))
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .start()
        .await;
    assert!(told().await.starts_with("READY=1\n"));
    gateway.sighup();
    assert!(told().await.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(told().await.starts_with("READY=1\n"));
    let new = gateway.upgraded().await;
    assert_eq!(told().await, format!("MAINPID={new}"));
    assert!(told().await.starts_with("READY=1\n"));
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
    gateway.signal_to(new, Signal::SIGTERM);
    assert!(
        told().await.starts_with("STOPPING=1\n"),
        "and nothing of the old process's end"
    );
    gateway.wait_gone(new, Duration::from_secs(15)).await;
}
