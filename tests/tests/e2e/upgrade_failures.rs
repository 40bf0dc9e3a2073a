//! Failed upgrades: the old process goes on unchanged, and the error names the cause.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use sluice_tests::backend::HttpBackend;
use sluice_tests::cli::{Finished, sluice_bin, sluice_in};
use sluice_tests::gateway::{Gateway, pretender, with_defaults};
use sluice_tests::h1::{self, H1};
use sluice_tests::load::Load;
use sluice_tests::process::{is_alive, require_python3, with_marker};
use sluice_tests::wait::{SOON, wait_until, within};
use tokio::io::AsyncBufReadExt;

use crate::{WEB, web};

async fn gateway(backend: &HttpBackend) -> Gateway {
    Gateway::builder(&web(backend.addr())).own_binary().start().await
}

/// Asserts that the command failed with this error, and that the first process serves on with no child left.
async fn assert_goes_on(gateway: &Gateway, said: &Finished, why: &str) {
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr.starts_with("sluice: not upgraded: ") && said.stderr.contains(why),
        "{why}: {said:?}"
    );
    gateway
        .wait_said("upgrade: not upgraded, this process goes on")
        .await;
    assert_eq!(gateway.serving_pid().await, gateway.pid());
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(children(gateway), Vec::<u32>::new(), "nothing stays");
}

/// New processes of upgrades, found by the variable in their environment.
fn children(gateway: &Gateway) -> Vec<u32> {
    with_marker(&format!("SLUICE_UPGRADE_FROM={}", gateway.pid()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binaries_that_are_no_good_cost_nothing() {
    let backend = HttpBackend::start("a").await;
    let mut gateway = gateway(&backend).await;
    gateway.may_be_upgraded();
    let load = Load::get(gateway.addr(), 4, WEB);
    load.advance(20).await;
    for (script, why) in [
        ("#!/bin/sh\nexit 3\n", "ended before it was ready: exit status: 3"),
        ("#!/no/such/interpreter\n", "cannot start "),
        (
            "#!/bin/sh\nprintf 'HTTP/1.1 200 OK\\r\\n\\r\\n' >&0\nexec sleep 600\n",
            "not understood",
        ),
        ("#!/bin/sh\nkill -9 $$\n", "ended before it was ready: signal: 9"),
    ] {
        gateway.replace_binary(script);
        assert_goes_on(&gateway, &gateway.upgrade(&[]).await, why).await;
    }
    std::fs::remove_file(gateway.dir().join("sluice")).unwrap();
    assert_goes_on(&gateway, &gateway.upgrade(&[]).await, "cannot start ").await;
    load.advance(20).await;
    load.stop().await.assert_clean();

    // The next upgrade, with a good binary, succeeds.
    gateway.restore_binary();
    gateway.upgraded().await;
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
}

#[tokio::test]
async fn attempts_leave_no_descriptor_behind() {
    let backend = HttpBackend::start("a").await;
    let gateway = gateway(&backend).await;
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
            .expect("the gateway runs")
            .count()
    };
    gateway.replace_binary("#!/bin/sh\nexit 3\n");
    // The first attempt may make the runtime open descriptors for child processes.
    gateway.upgrade(&[]).await;
    let before = open();
    for _ in 0..3 {
        assert_eq!(gateway.upgrade(&[]).await.code, Some(1));
    }
    wait_until("all of it is closed", SOON, || open() <= before).await;
}

#[tokio::test]
async fn a_process_that_hangs_is_ended_in_time() {
    let backend = HttpBackend::start("a").await;
    let gateway = gateway(&backend).await;
    for script in [
        "#!/bin/sh\nexec sleep 600\n",
        // A process that ignores SIGTERM.
        "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.05; done\n",
    ] {
        gateway.replace_binary(script);
        let said = gateway.upgrade(&["--timeout", "500ms"]).await;
        // A child of the second script ends by itself.
        wait_until("it is gone", SOON, || children(&gateway).is_empty()).await;
        assert_goes_on(&gateway, &said, "was not ready within 500ms").await;
    }
}

#[tokio::test]
async fn there_is_one_upgrade_at_a_time_and_a_stop_ends_it() {
    let backend = HttpBackend::start("a").await;
    let mut gateway = gateway(&backend).await;
    gateway.replace_binary("#!/bin/sh\nexec sleep 600\n");
    let (first, ()) = tokio::join!(gateway.upgrade(&["--timeout", "50s"]), async {
        wait_until("the first one is under way", SOON, || {
            !children(&gateway).is_empty()
        })
        .await;
        let second = gateway.upgrade(&[]).await;
        assert_eq!(second.code, Some(1));
        assert!(second.stderr.contains("an upgrade is under way"), "{second:?}");
        gateway.sigterm();
    });
    assert_eq!(first.code, Some(1), "{first:?}");
    assert!(first.stderr.contains("told to stop"), "{first:?}");
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
    assert_eq!(children(&gateway), Vec::<u32>::new());
}

/// Sends SIGTERM to the old process, and acknowledges only then.
const STOPS_THE_OLD: &str = r#"os.kill(os.getppid(), signal.SIGTERM)
time.sleep(0.5)
say(SERVING, b"")"#;

#[tokio::test]
async fn a_stop_comes_too_late_for_who_was_told_to_serve() {
    require_python3();
    let backend = HttpBackend::start("a").await;
    let mut gateway = gateway(&backend).await;
    gateway.may_be_upgraded();
    gateway.replace_binary(&pretender(STOPS_THE_OLD));
    let said = gateway.upgrade(&[]).await;
    assert_eq!(said.code, Some(0), "it may have accepted already: {said:?}");
    assert_eq!(gateway.wait_exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn a_config_that_is_broken_is_quoted() {
    let backend = HttpBackend::start("a").await;
    let gateway = gateway(&backend).await;
    let good = std::fs::read_to_string(gateway.config_path()).unwrap();
    std::fs::write(gateway.config_path(), good.replace("endpoints:", "endpoint:")).unwrap();
    let said = gateway.upgrade(&[]).await;
    assert_goes_on(&gateway, &said, "sluice.yaml:").await;
    assert!(said.stderr.contains("endpoint"), "{said:?}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let listeners = format!("listeners: [{{address: 127.0.0.1:0}}, {{address: {at}}}]\n");
    gateway.write_config(&with_defaults(&format!("{listeners}{}", web(backend.addr()))));
    let said = gateway.upgrade(&[]).await;
    assert_goes_on(
        &gateway,
        &said,
        &format!("cannot listen on {at}: the port is taken"),
    )
    .await;
}

/// A newer binary with an older gateway; the reverse case is below.
#[tokio::test]
async fn a_binary_that_speaks_another_version_is_refused() {
    require_python3();
    let backend = HttpBackend::start("a").await;
    let gateway = gateway(&backend).await;
    gateway.replace_binary(
        r#"#!/usr/bin/env python3
import json, os, time
body = json.dumps({"version": 99, "build": "9.9.9"}).encode()
os.write(0, len(body).to_bytes(4, "big") + bytes([3, 0]) + body)
time.sleep(600)
"#,
    );
    let said = gateway.upgrade(&[]).await;
    assert_goes_on(&gateway, &said, "(9.9.9) speaks version 99").await;
}

/// A new process of an upgrade; the test is the old process.
struct Successor {
    child: tokio::process::Child,
    socket: UnixStream,
    dir: tempfile::TempDir,
}

impl Successor {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("sluice.yaml"), with_defaults("services: []\n"))
            .expect("a file can be written");
        let (socket, theirs) = UnixStream::pair().expect("a socket pair");
        socket.set_read_timeout(Some(SOON)).expect("a live socket");
        let child = tokio::process::Command::new(sluice_bin())
            .arg("run")
            .current_dir(dir.path())
            .env("SLUICE_UPGRADE_FROM", std::process::id().to_string())
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        Self { child, socket, dir }
    }

    fn say(&mut self, kind: u8, body: &str) {
        let mut frame = u32::try_from(body.len())
            .expect("a short body")
            .to_be_bytes()
            .to_vec();
        frame.extend([kind, 0]);
        frame.extend(body.as_bytes());
        self.socket.write_all(&frame).expect("it listens");
    }

    /// The kind and the body of the next frame.
    fn hear(&mut self) -> (u8, String) {
        let mut header = [0; 6];
        self.socket.read_exact(&mut header).expect("it says something");
        let length = u32::from_be_bytes(header[..4].try_into().expect("four bytes"));
        let mut body = vec![0; length as usize];
        self.socket.read_exact(&mut body).expect("the rest of it");
        (header[4], String::from_utf8(body).expect("text"))
    }
}

const HELLO: u8 = 1;
const WELCOME: u8 = 3;
const PREPARED: u8 = 4;
const FAILED: u8 = 5;
const TAKE: u8 = 7;
const SERVING: u8 = 8;

#[tokio::test]
async fn a_gateway_of_another_version_is_not_taken_over_from() {
    let mut new = Successor::start();
    new.say(HELLO, r#"{"version": 99, "build": "9.9.9", "something": "new"}"#);
    let (kind, why) = new.hear();
    assert_eq!(kind, FAILED);
    let output = within("it exits", SOON, new.child.wait_with_output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    for text in [why.as_bytes(), &output.stderr] {
        let text = String::from_utf8_lossy(text);
        assert!(text.contains("(9.9.9) speaks version 99"), "{text}");
    }
}

/// A kill of the old process during an upgrade ends the new process, too.
#[tokio::test]
async fn a_new_process_that_was_not_told_to_serve_ends_with_the_old_one() {
    let mut new = Successor::start();
    new.say(HELLO, r#"{"version": 1, "pid": 1, "sockets": 0}"#);
    assert_eq!(new.hear().0, WELCOME);
    assert_eq!(new.hear().0, PREPARED);
    drop(new.socket);
    let output = within("it exits", SOON, new.child.wait_with_output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("cannot take over: the other process is gone"),
        "{said}"
    );
}

#[tokio::test]
async fn a_new_process_serves_when_it_is_told_to_and_outlives_the_old_one() {
    let mut new = Successor::start();
    new.say(HELLO, r#"{"version": 1, "pid": 1, "sockets": 0}"#);
    assert_eq!(new.hear().0, WELCOME);
    assert_eq!(new.hear().0, PREPARED);
    // The listener is bound, as an inherited socket would be, but the process accepts nothing yet.
    let mut stderr = tokio::io::BufReader::new(new.child.stderr.take().unwrap()).lines();
    let bound = within("it listens", SOON, async {
        loop {
            let line = stderr.next_line().await.unwrap().expect("it runs");
            if let Some((_, address)) = line.split_once("listening listener=") {
                return address.trim().parse::<std::net::SocketAddr>().unwrap();
            }
        }
    })
    .await;
    let mut client = H1::connect(bound).await.unwrap();
    client.send(&h1::get(WEB, "/")).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), client.head(false)).await;
    assert!(early.is_err(), "{early:?}");
    new.say(TAKE, "");
    assert_eq!(new.hear().0, SERVING);
    assert_eq!(client.head(false).await.unwrap().status, 404);
    drop((client, new.socket));
    let pid = new.child.id().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    // The new process logs the end of the old one, and lives on.
    within("it notices", SOON, async {
        while let Some(line) = stderr.next_line().await.unwrap() {
            if line.contains("upgrade: process 1 is gone") {
                return;
            }
        }
        panic!("it ended");
    })
    .await;
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let status = within("it exits", SOON, new.child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    drop(new.dir);
}

/// The inherited environment variable does not make an instance a new process of an upgrade.
#[tokio::test]
async fn the_variable_alone_means_nothing() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::builder(&web(backend.addr()))
        .env("SLUICE_UPGRADE_FROM", &std::process::id().to_string())
        .start()
        .await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
}

#[tokio::test]
async fn what_is_ended_before_it_was_told_to_serve_leaves_the_old_one_alone() {
    let backend = HttpBackend::start("a").await;
    let gateway = gateway(&backend).await;
    gateway.replace_binary("#!/bin/sh\nexec sleep 600\n");
    let (said, ()) = tokio::join!(gateway.upgrade(&[]), async {
        wait_until("it runs", SOON, || !children(&gateway).is_empty()).await;
        for pid in children(&gateway) {
            gateway.signal_to(pid, Signal::SIGKILL);
        }
    });
    assert_goes_on(&gateway, &said, "signal: 9").await;
    assert!(is_alive(gateway.pid()));
}

#[tokio::test]
async fn without_a_gateway_there_is_nothing_to_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let said = sluice_in(dir.path(), &["upgrade", "--admin", &admin]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("cannot reach a gateway"), "{said:?}");
}
