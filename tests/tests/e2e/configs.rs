//! The example configs: all are valid, and the demo does what its comments say.

use std::path::{Path, PathBuf};

use rustls_pki_types::ServerName;
use sluice_tests::balancer::Balancer;
use sluice_tests::cli::sluice_in;
use sluice_tests::dial::Dial;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::tls::trusting;
use sluice_tests::wait::SOON;
use tokio::net::TcpStream;

fn configs() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace").join("configs")
}

fn files() -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(configs())
        .expect("configs/ exists")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn every_example_passes_check() {
    let files = files();
    for name in [
        "behind-slb",
        "canary-sticky",
        "greeter",
        "internet-edge",
        "knative-service",
        "reserve",
        "reverse-proxy",
        "rollout",
        "schedules",
        "tls",
        "waiting-page",
        "webhook",
    ] {
        assert!(
            files.iter().any(|f| f.ends_with(format!("{name}.yaml"))),
            "no {name}"
        );
    }
    for file in files {
        let done = sluice_in(&configs(), &["check", file.to_str().unwrap()]).await;
        assert_eq!(done.code, Some(0), "{}: {done:?}", file.display());
    }
}

#[test]
fn every_example_explains_itself() {
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let comments = text
            .lines()
            .filter(|line| line.trim_start().starts_with('#'))
            .count();
        assert!(comments >= 5, "{}", file.display());
    }
}

/// An example on ports of the kernel's choice, so that tests do not meet.
async fn start(name: &str) -> Gateway {
    let text = std::fs::read_to_string(configs().join(name)).expect("the file is there");
    let text = [8080, 8443, 9900, 9901].iter().fold(text, |text, port| {
        text.replace(&format!("127.0.0.1:{port}"), "127.0.0.1:0")
            .replace(&format!("0.0.0.0:{port}"), "127.0.0.1:0")
    });
    let text = text
        .replace(
            "certFile: tls/",
            &format!("certFile: {}/tls/", configs().display()),
        )
        .replace("keyFile: tls/", &format!("keyFile: {}/tls/", configs().display()));
    Gateway::start(&text).await
}

#[tokio::test]
async fn every_example_starts() {
    for file in files() {
        let name = file.file_name().unwrap().to_str().unwrap();
        let gateway = start(name).await;
        assert_eq!(gateway.admin_get("/readyz").await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn the_tls_example_serves_with_its_demo_certificate() {
    let gateway = start("tls.yaml").await;
    let pem = std::fs::read_to_string(configs().join("tls/demo-localhost.crt")).unwrap();
    let name = "hello.localhost";
    let tcp = TcpStream::connect(gateway.listener(1)).await.unwrap();
    let sni = ServerName::try_from(name).unwrap();
    let io = trusting(&pem, &["http/1.1"]).connect(sni, tcp).await.unwrap();
    let response = H1::over(io).exchange(&h1::get(name, "/")).await.unwrap();
    assert!(response.text().contains("Hello over TLS"), "{}", response.text());
    assert_eq!(gateway.get(name, "/x").await.status, 301);
}

#[tokio::test]
async fn the_edge_example_serves_over_tls_and_redirects_the_rest() {
    let gateway = start("internet-edge.yaml").await;
    let pem = std::fs::read_to_string(configs().join("tls/demo-localhost.crt")).unwrap();
    let name = "hello.localhost";
    let dial = Dial::tls(gateway.listener(1), name, trusting(&pem, &["http/1.1"]));
    let io = dial.connect().await.unwrap();
    let response = H1::over(io).exchange(&h1::get(name, "/")).await.unwrap();
    assert!(
        response.text().contains("Hello from the edge"),
        "{}",
        response.text()
    );
    assert_eq!(gateway.get(name, "/x").await.status, 301);
}

#[tokio::test]
async fn the_balancer_example_serves_behind_a_balancer_and_nobody_else() {
    let gateway = start("behind-slb.yaml").await;
    let balancer = Balancer::start(&[(gateway.addr(), gateway.health())]).await;
    let get = h1::get("hello.localhost", "/");
    let response = h1::fetch(balancer.addr(), &get).await.unwrap();
    assert!(
        response.text().contains("Hello from behind a balancer"),
        "{}",
        response.text()
    );
    let direct = h1::fetch(gateway.addr(), &get).await;
    assert!(direct.is_err(), "{direct:?}");
}

#[tokio::test]
async fn the_demo_of_the_readme() {
    let gateway = start("greeter.yaml").await;
    let host = "greeter.default.localhost";
    let (mut hello, mut namaste) = (0, 0);
    for _ in 0..40 {
        let response = gateway.get(host, "/").await;
        assert_eq!(response.status, 200, "{}", response.text());
        hello += usize::from(response.text().contains("Hello"));
        namaste += usize::from(response.text().contains("Namaste"));
    }
    assert!(
        hello + namaste == 40 && (16..=24).contains(&hello),
        "{hello} {namaste}"
    );
    for (tag, text) in [("current", "Hello"), ("prev", "Namaste"), ("latest", "Namaste")] {
        let response = gateway.get(&format!("{tag}-{host}"), "/").await;
        assert!(response.text().contains(text), "{tag}: {}", response.text());
    }
    gateway
        .rewrite_config(|text| {
            text.replacen("percent: 50", "percent: 100", 1)
                .replacen("percent: 50", "percent: 0", 1)
        })
        .await;
    for _ in 0..20 {
        assert!(gateway.get(host, "/").await.text().contains("Hello"));
    }
    gateway
        .wait_metric("sluice_revision_replicas", &[("state", "ready")], SOON * 2, |n| {
            n == 0.0
        })
        .await;
    assert_eq!(gateway.get(host, "/").await.status, 200);
}

/// Settings of the systemd unit that upgrade and stop rely on; docs/operating.md has the reasons.
#[test]
fn the_systemd_unit_fits_the_gateway() {
    let unit = std::fs::read_to_string(configs().join("systemd/sluice.service")).unwrap();
    for line in [
        "Type=notify",
        "NotifyAccess=main",
        "KillMode=mixed",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "OOMPolicy=continue",
        "WantedBy=multi-user.target",
    ] {
        assert!(unit.lines().any(|l| l == line), "no {line}");
    }
    let value = |key: &str| {
        let line = unit.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {key}"))
    };
    let stop: u64 = value("TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    assert!(stop > 300, "longer than drain.timeout by default");
    let (soft, hard) = value("LimitNOFILE").split_once(':').unwrap();
    assert!(hard.parse::<u64>().unwrap() >= 3 * 50_000);
    // The soft limit of instances: FD_SETSIZE of select(2).
    assert_eq!(soft, "1024");
    assert!(value("ExecStart").starts_with("/usr/local/bin/sluice run "));
}
