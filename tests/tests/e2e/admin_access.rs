//! Who is answered on the admin address, and who may change something.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sluice_tests::backend::HttpBackend;
use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1, H1Response};
use sluice_tests::wait::{SOON, wait_for, wait_until};
use tokio::net::UnixStream;

use crate::commands::command;
use crate::{WEB, web};

/// With a token of this test's environment, and one more name.
async fn with_token(addr: std::net::SocketAddr) -> Gateway {
    let admin = "admin: {address: 127.0.0.1:0, token: \"${SLUICE_TOKEN}\", hosts: [sluice.internal]}\n";
    Gateway::builder(&format!("{admin}{}", web(addr)))
        .env("SLUICE_TOKEN", "s3cret-token")
        .start()
        .await
}

async fn admin(
    gateway: &Gateway,
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> H1Response {
    let request = h1::request(method, host, path, headers, b"");
    h1::fetch(gateway.admin(), &request).await.expect("an answer")
}

#[tokio::test]
async fn a_foreign_host_is_misdirected_whatever_it_asks_for() {
    let backend = HttpBackend::start("a").await;
    let gateway = with_token(backend.addr()).await;
    for path in [
        "/",
        "/dashboard",
        "/api/config",
        "/api/events",
        "/metrics",
        "/healthz",
    ] {
        let answer = admin(&gateway, "GET", "rebound.example", path, &[]).await;
        assert_eq!(answer.status, 421, "{path}");
        assert!(answer.text().contains("admin.hosts"), "{path}: {}", answer.text());
    }
    let port = gateway.admin().port();
    for host in [
        "localhost".to_owned(),
        format!("127.0.0.1:{port}"),
        "[::1]".to_owned(),
        format!("Sluice.Internal:{port}"),
    ] {
        assert_eq!(
            admin(&gateway, "GET", &host, "/api/config", &[]).await.status,
            200,
            "{host}"
        );
    }
}

#[tokio::test]
async fn with_a_token_every_change_needs_it() {
    let backend = HttpBackend::start("a").await;
    let gateway = with_token(backend.addr()).await;
    let before = gateway.serving_pid().await;
    let post =
        async |headers: &[(&str, &str)]| admin(&gateway, "POST", "localhost", "/api/upgrade", headers).await;
    for wrong in [
        &[][..],
        &[("authorization", "Bearer nonsense")],
        &[("authorization", "Basic s3cret-token")],
    ] {
        let answer = post(wrong).await;
        assert_eq!(answer.status, 401, "{wrong:?}");
        assert!(
            answer
                .header("www-authenticate")
                .is_some_and(|v| v.starts_with("Bearer"))
        );
        assert_eq!(answer.json()["upgraded"], false);
    }
    // A page of another site that has the token, and one of this host that has not.
    let token = ("authorization", "Bearer s3cret-token");
    assert_eq!(
        post(&[token, ("origin", "http://evil.example")]).await.status,
        403
    );
    assert_eq!(post(&[token, ("origin", "null")]).await.status, 403);
    assert_eq!(post(&[("origin", "http://localhost")]).await.status, 401);
    let foreign = admin(&gateway, "POST", "evil.example", "/api/upgrade", &[token]).await;
    assert_eq!(foreign.status, 421);
    // Reading needs none, but not from another site.
    assert_eq!(
        admin(&gateway, "GET", "localhost", "/api/revisions", &[])
            .await
            .status,
        200
    );
    let cross = [("origin", "http://evil.example")];
    assert_eq!(
        admin(&gateway, "GET", "localhost", "/api/revisions", &cross)
            .await
            .status,
        403
    );
    assert_eq!(gateway.serving_pid().await, before, "nothing was changed");

    // A page of this host with the token.
    gateway.may_be_upgraded();
    let answer = post(&[token, ("origin", "http://localhost")]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_ne!(gateway.serving_pid().await, before);
}

/// Every command for a service; each can be carried out on its own but for those of rollouts, of which there is none.
const COMMANDS: [&str; 8] = [
    "/api/pause?service=web",
    "/api/resume?service=web",
    "/api/rollback?service=web&revision=web-a",
    "/api/rollout/pause?service=web",
    "/api/rollout/resume?service=web",
    "/api/rollout/promote?service=web",
    "/api/rollout/abort?service=web",
    "/api/rollout/retry?service=web",
];

#[tokio::test]
async fn with_a_token_every_command_for_a_service_needs_it() {
    let backend = HttpBackend::start("a").await;
    let gateway = with_token(backend.addr()).await;
    let token = ("authorization", "Bearer s3cret-token");
    let site = ("origin", "http://evil.example");
    for path in COMMANDS {
        let post =
            async |host: &str, headers: &[(&str, &str)]| admin(&gateway, "POST", host, path, headers).await;
        for wrong in [
            &[][..],
            &[("authorization", "Bearer nonsense")],
            &[("authorization", "Bearer s3cret-toke")],
            &[("authorization", "Basic s3cret-token")],
            &[("origin", "http://localhost")],
            &[token, token],
        ] {
            let answer = post("localhost", wrong).await;
            assert_eq!(answer.status, 401, "{path} {wrong:?}");
            assert_eq!(answer.json()["done"], false, "{path}");
            assert!(
                answer.json()["error"]
                    .as_str()
                    .is_some_and(|why| why.contains("--token-file"))
            );
        }
        // A page of another site, even with the token, and a name that was made to lead here.
        for foreign in [
            site,
            ("origin", "null"),
            ("origin", "https://localhost.evil.example"),
        ] {
            assert_eq!(
                post("localhost", &[token, foreign]).await.status,
                403,
                "{path} {foreign:?}"
            );
        }
        assert_eq!(post("evil.example", &[token]).await.status, 421, "{path}");
        assert_eq!(post("evil.example", &[token, site]).await.status, 421, "{path}");
        // What a link, an image or a form of another site could send.
        let get = admin(&gateway, "GET", "localhost", path, &[token]).await;
        assert_eq!((get.status, get.header("allow")), (405, Some("POST")), "{path}");
        for method in ["PUT", "DELETE", "PATCH"] {
            let answer = admin(&gateway, method, "localhost", path, &[]).await;
            assert_eq!(answer.status, 401, "{method} {path}");
        }
    }
    let row = |value: serde_json::Value| value["revisions"][0].clone();
    let before = row(gateway.admin_json("/api/revisions").await);
    assert_eq!(before["override"], serde_json::Value::Null, "nothing was changed");
    assert_eq!(gateway.get(WEB, "/").await.status, 200);

    // A page of this host with the token, and a program with it.
    let own = ("origin", "http://localhost");
    let paused = admin(&gateway, "POST", "localhost", COMMANDS[0], &[token, own]).await;
    assert_eq!(
        (paused.status, &paused.json()["done"]),
        (200, &true.into()),
        "{}",
        paused.text()
    );
    assert_eq!(
        row(gateway.admin_json("/api/revisions").await)["override"]["paused"],
        true
    );
    let resumed = admin(&gateway, "POST", "sluice.internal", COMMANDS[1], &[token]).await;
    assert_eq!(resumed.status, 200, "{}", resumed.text());
    for path in &COMMANDS[1..] {
        let answer = admin(&gateway, "POST", "localhost", path, &[token]).await;
        assert_eq!(answer.status, 409, "nothing to act on: {path} {}", answer.text());
    }
    let bad = admin(&gateway, "POST", "localhost", "/api/pause", &[token]).await;
    assert_eq!(bad.status, 400, "{}", bad.text());
    let none = admin(&gateway, "POST", "localhost", "/api/pause?service=wbe", &[token]).await;
    assert_eq!(none.status, 404, "{}", none.text());
}

#[tokio::test]
async fn commands_for_services_get_the_token_and_show_it_nowhere() {
    let backend = HttpBackend::start("a").await;
    let gateway = with_token(backend.addr()).await;
    let without = command(&gateway, &["pause", "web"]).await;
    assert_eq!(without.code, Some(1), "{without:?}");
    assert!(without.stderr.contains("--token-file"), "{without:?}");
    let file = gateway.dir().join("token");
    std::fs::write(&file, "s3cret-token\n").unwrap();
    let file = file.to_str().unwrap();
    let paused = command(&gateway, &["pause", "web", "--token-file", file]).await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    // Reading needs none.
    let status = command(&gateway, &["status"]).await;
    assert!(status.stdout.contains("paused by command"), "{status:?}");
    let url = format!("http://{}", gateway.admin());
    let resumed = std::process::Command::new(sluice_tests::cli::sluice_bin())
        .args(["resume", "web", "--admin", &url, "--format", "json"])
        .env("SLUICE_TOKEN", "s3cret-token")
        .output()
        .unwrap();
    assert!(resumed.status.success(), "{resumed:?}");
    // Lines of log are written by a thread of their own.
    let said = || [gateway.stdout(), gateway.stderr()].concat().join("\n");
    wait_until("a command is logged", SOON, || said().contains("by command")).await;
    assert!(!said().contains("s3cret-token"), "{}", said());
    assert!(!format!("{paused:?}{status:?}").contains("s3cret-token"));
}

#[tokio::test]
async fn commands_get_the_token_from_a_file_or_the_environment_and_nobody_shows_it() {
    let backend = HttpBackend::start("a").await;
    let gateway = with_token(backend.addr()).await;
    let without = gateway.upgrade(&[]).await;
    assert_eq!(without.code, Some(1), "{without:?}");
    assert!(without.stderr.contains("--token-file"), "{without:?}");
    let file = gateway.dir().join("token");
    std::fs::write(&file, "wrong\n").unwrap();
    let file = file.to_str().unwrap();
    let wrong = gateway.upgrade(&["--token-file", file]).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(!wrong.all().contains("wrong\n"), "{wrong:?}");
    let none = gateway.upgrade(&["--token-file", "/nowhere"]).await;
    assert_eq!(none.code, Some(2), "{none:?}");
    std::fs::write(file, "s3cret-token\n").unwrap();
    let done = gateway.upgrade(&["--token-file", file]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let url = format!("http://{}", gateway.admin());
    let by_variable = std::process::Command::new(sluice_tests::cli::sluice_bin())
        .args(["upgrade", "--admin", &url])
        .env("SLUICE_TOKEN", "s3cret-token")
        .output()
        .unwrap();
    assert!(by_variable.status.success(), "{by_variable:?}");

    let config = gateway.admin_json("/api/config").await;
    let shown = &config["settings"]["admin"];
    assert_eq!(
        (&shown["token"], &shown["hosts"][0]),
        (&"***".into(), &"sluice.internal".into()),
        "{shown}"
    );
    for path in [
        "/api/config",
        "/api/routes",
        "/api/revisions",
        "/dashboard",
        "/metrics",
    ] {
        assert!(
            !gateway.admin_get(path).await.text().contains("s3cret-token"),
            "{path}"
        );
    }
    let said = [gateway.stdout(), gateway.stderr()].concat().join("\n");
    assert!(!said.contains("s3cret-token"), "{said}");
}

#[tokio::test]
async fn a_token_and_names_follow_a_reload() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!(
        "admin: {{address: 127.0.0.1:0}}\n{}",
        web(backend.addr())
    ))
    .await;
    let status = async |headers: &[(&str, &str)]| {
        let answer = admin(&gateway, "POST", "localhost", "/api/upgrade?timeout=x", headers).await;
        answer.status
    };
    assert_eq!(
        status(&[]).await,
        400,
        "accepted without a token on loopback, and not understood"
    );
    assert_eq!(
        status(&[("origin", "http://localhost")]).await,
        403,
        "a page never without a token"
    );
    gateway
        .rewrite_config(|old| {
            old.replace(
                "admin: {address",
                "admin: {token: t0ken, hosts: [new.example], address",
            )
        })
        .await;
    assert_eq!(status(&[]).await, 401);
    assert_eq!(status(&[("authorization", "Bearer t0ken")]).await, 400);
    assert_eq!(
        admin(&gateway, "GET", "new.example", "/healthz", &[])
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn beyond_this_machine_nothing_is_changed_without_a_token() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!("admin: {{address: 0.0.0.0:0}}\n{}", web(backend.addr()))).await;
    let port = gateway.admin().port();
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let post = h1::request("POST", "127.0.0.1", "/api/upgrade", &[], b"");
    let answer = h1::fetch(at, &post).await.unwrap();
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("admin.token"), "{}", answer.text());
    for path in COMMANDS {
        let post = h1::request("POST", "127.0.0.1", path, &[], b"");
        assert_eq!(h1::fetch(at, &post).await.unwrap().status, 403, "{path}");
    }
    assert_eq!(
        h1::fetch(at, &h1::get("127.0.0.1", "/api/revisions"))
            .await
            .unwrap()
            .status,
        200
    );
}

/// The environment of instances is not the gateway's in this.
#[tokio::test]
async fn an_instance_does_not_inherit_the_token() {
    let config = "services:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {command: [sh, -c, 'MESSAGE=\"[$SLUICE_TOKEN]\" exec $0 echo', sluice]}\n";
    let config = config.replace(
        "sluice]}",
        &format!("{}]}}", sluice_tests::cli::sluice_bin().display()),
    );
    let gateway = Gateway::builder(&config)
        .env("SLUICE_TOKEN", "s3cret-token")
        .start()
        .await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(
        answer.text().contains("[]") && !answer.text().contains("s3cret"),
        "{}",
        answer.text()
    );
}

async fn by_socket(path: &Path, request: &[u8]) -> H1Response {
    let stream = UnixStream::connect(path).await.expect("the gateway listens");
    H1::over(stream).exchange(request).await.expect("an answer")
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner_and_outlives_an_upgrade() {
    let backend = HttpBackend::start("a").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let config = format!(
        "admin: {{address: \"unix:{}\"}}\n{}",
        path.display(),
        web(backend.addr())
    );
    let mut gateway = Gateway::builder(&config).first("umask 0").start().await;
    assert_eq!(gateway.admin_socket(), path);
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o600);
    let config = by_socket(&path, &h1::get("localhost", "/api/config"))
        .await
        .json();
    assert_eq!(config["bound"]["admin"], format!("unix:{}", path.display()));
    assert_eq!(by_socket(&path, &h1::get("evil.example", "/")).await.status, 421);
    // A change without a token: only the owner is here.
    let post = h1::request("POST", "localhost", "/api/upgrade?timeout=x", &[], b"");
    assert_eq!(by_socket(&path, &post).await.status, 400);
    for verb in ["pause", "resume"] {
        let url = format!("unix:{}", path.display());
        let done = sluice_in(gateway.dir(), &[verb, "web", "--admin", &url]).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        let page = ("origin", "http://localhost");
        let from_page = h1::request("POST", "localhost", COMMANDS[0], &[page], b"");
        assert_eq!(
            by_socket(&path, &from_page).await.status,
            403,
            "a page never without a token"
        );
        let foreign = h1::request("POST", "evil.example", COMMANDS[0], &[], b"");
        assert_eq!(by_socket(&path, &foreign).await.status, 421);
    }
    let url = format!("unix:{}", path.display());
    let status = sluice_in(gateway.dir(), &["status", "--admin", &url]).await;
    assert!(
        status.code == Some(0) && status.stdout.contains("web-a"),
        "{status:?}"
    );
    let explained = sluice_in(
        gateway.dir(),
        &["explain", "--admin", &url, &format!("http://{WEB}/")],
    )
    .await;
    assert_eq!(explained.code, Some(0), "{explained:?}");

    // Another gateway does not take it.
    let other = sluice_in(gateway.dir(), &["run", "--admin", &url]).await;
    assert_eq!(other.code, Some(2), "{other:?}");
    assert!(other.stderr.contains("another process serves"), "{other:?}");

    gateway.may_be_upgraded();
    let upgraded = sluice_in(gateway.dir(), &["upgrade", "--admin", &url]).await;
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    // The old process leaves the file to the new one.
    gateway.wait_exit(SOON).await;
    let config = by_socket(&path, &h1::get("localhost", "/api/config"))
        .await
        .json();
    let new = config["pid"].as_u64().unwrap();
    assert_ne!(new, u64::from(gateway.pid()));
    assert_eq!(mode(), 0o600);
    gateway.signal_to(u32::try_from(new).unwrap(), nix::sys::signal::Signal::SIGTERM);
    wait_for("the new process removes the file", SOON, async || {
        (!path.exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_socket_that_a_killed_gateway_left_is_replaced_and_other_files_are_not() {
    let backend = HttpBackend::start("a").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let config = format!(
        "admin: {{address: \"unix:{}\"}}\n{}",
        path.display(),
        web(backend.addr())
    );
    let mut killed = Gateway::start(&config).await;
    killed.sigkill();
    killed.wait_exit(SOON).await;
    assert!(path.exists(), "left behind");
    let gateway = Gateway::start(&config).await;
    let answer = by_socket(&path, &h1::get("localhost", "/readyz")).await;
    assert_eq!(answer.status, 200);
    drop(gateway);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let file = folder.path().join("sluice.yaml");
    std::fs::write(&file, sluice_tests::gateway::with_defaults(&config)).unwrap();
    let refused = sluice_in(folder.path(), &["run", "sluice.yaml"]).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("not a socket"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
