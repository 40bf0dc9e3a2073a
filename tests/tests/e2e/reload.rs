//! Reload: a changed config is served without losing a request, however the file was written.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::{Gateway, with_defaults};
use sluice_tests::h1;
use sluice_tests::load::Load;
use sluice_tests::wait::{SOON, wait_for, wait_until};

use crate::{WEB, web, web_split};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_reloads_under_load_fail_not_one_request() {
    let backends = [
        HttpBackend::start("x").await,
        HttpBackend::start("y").await,
        HttpBackend::start("z").await,
    ];
    let config = |n: usize| {
        let (a, b, c) = (
            backends[n % 3].addr(),
            backends[(n + 1) % 3].addr(),
            backends[(n + 2) % 3].addr(),
        );
        let share = (n * 7) % 101;
        let mut config = web_split(a, &share.to_string(), b, &(100 - share).to_string(), "");
        config.push_str(&format!("  - {{name: extra-{n}, endpoints: [\"{c}\"]}}\n"));
        config
    };
    let gateway = Gateway::start(&config(0)).await;
    let load = Load::get(gateway.addr(), 32, WEB);
    load.advance(100).await;
    for n in 1..=200 {
        gateway.reload(&config(n)).await;
        let extra = gateway.get(&format!("extra-{n}.default.localhost"), "/").await;
        assert_eq!(extra.status, 200, "generation {n} is served");
        let old = gateway
            .get(&format!("extra-{}.default.localhost", n - 1), "/")
            .await;
        assert_eq!(old.status, 404, "generation {} is not", n - 1);
        // Tables of older generations are dropped with the last request that began in them.
        gateway
            .wait_metric("sluice_tables_alive", &[], SOON, |n| (1.0..=2.0).contains(&n))
            .await;
    }
    let report = load.stop().await;
    report.assert_clean();
    gateway
        .wait_metric("sluice_tables_alive", &[], SOON, |n| n == 1.0)
        .await;
    assert!(report.bodies.len() == 3, "{:?}", report.bodies);
    assert_eq!(gateway.reloads("rejected").await, 0.0);
    assert!(gateway.reloads("applied").await >= 200.0);
}

/// Two backends, and configs that lead to one or the other.
struct Change {
    a: HttpBackend,
    b: HttpBackend,
}

impl Change {
    async fn new() -> Self {
        Self {
            a: HttpBackend::start("a").await,
            b: HttpBackend::start("b").await,
        }
    }

    fn to_a(&self) -> String {
        with_defaults(&web(self.a.addr()))
    }

    fn to_b(&self) -> String {
        with_defaults(&web(self.b.addr()))
    }
}

async fn wait_served(gateway: &Gateway, want: &str) {
    wait_for(&format!("{want:?} is served"), SOON, async || {
        (gateway.get(WEB, "/").await.text() == want).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_plain_write() {
    let change = Change::new().await;
    let gateway = Gateway::start(&change.to_a()).await;
    wait_served(&gateway, "a").await;
    gateway.write_config(&change.to_b());
    wait_served(&gateway, "b").await;
}

#[tokio::test]
async fn a_save_by_rename_again_and_again() {
    let change = Change::new().await;
    let gateway = Gateway::start(&change.to_a()).await;
    for round in 0..4 {
        let (text, want) = if round % 2 == 0 {
            (change.to_b(), "b")
        } else {
            (change.to_a(), "a")
        };
        let temporary = gateway.dir().join(".sluice.yaml.swp");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(&temporary, gateway.config_path()).unwrap();
        wait_served(&gateway, want).await;
    }
}

#[tokio::test]
async fn a_symlink_swap_as_kubernetes_does_it() {
    let change = Change::new().await;
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path();
    for (version, text) in [
        ("v1", change.to_a()),
        ("v2", change.to_b()),
        ("v3", change.to_a()),
    ] {
        std::fs::create_dir(mount.join(version)).unwrap();
        std::fs::write(mount.join(version).join("sluice.yaml"), text).unwrap();
    }
    symlink("v1", mount.join("..data")).unwrap();
    symlink("..data/sluice.yaml", mount.join("sluice.yaml")).unwrap();
    let gateway = Gateway::builder("")
        .source(&mount.join("sluice.yaml"))
        .start()
        .await;
    wait_served(&gateway, "a").await;
    for (version, want) in [("v2", "b"), ("v3", "a")] {
        symlink(version, mount.join("..data_tmp")).unwrap();
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
        wait_served(&gateway, want).await;
    }
}

#[tokio::test]
async fn files_come_to_a_directory_and_leave_it() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("main.yaml"), with_defaults(&web(a.addr()))).unwrap();
    let gateway = Gateway::builder("").source(dir.path()).start().await;
    wait_served(&gateway, "a").await;
    let more = format!("services:\n  - {{name: more, endpoints: [\"{}\"]}}\n", b.addr());
    std::fs::write(dir.path().join("more.yaml"), more).unwrap();
    let status = async || gateway.get("more.default.localhost", "/").await.status;
    wait_for("the added file is served", SOON, async || {
        (status().await == 200).then_some(())
    })
    .await;
    assert_eq!(gateway.get(WEB, "/").await.text(), "a");
    std::fs::remove_file(dir.path().join("more.yaml")).unwrap();
    wait_for("the removed file is not", SOON, async || {
        (status().await == 404).then_some(())
    })
    .await;
    assert_eq!(gateway.get(WEB, "/").await.text(), "a");
}

/// Two renames within this are one change to the gateway, whose quiet time is twice as long.
const TOGETHER: Duration = Duration::from_millis(10);

/// A checkout moves a service from one file to another: two events, of which the first
/// alone would publish a gap, or a service twice. Moves in which the system delayed the writer
/// between its renames are two changes, and do not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_moves_between_files_a_thousand_times_is_never_gone() {
    let backends = [HttpBackend::start("0").await, HttpBackend::start("1").await];
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(format!(".{name}")), text).unwrap();
    let place =
        |name: &str| std::fs::rename(dir.path().join(format!(".{name}")), dir.path().join(name)).unwrap();
    let service = |turn: usize| {
        let address = backends[turn % 2].addr();
        format!("services:\n  - {{name: web, endpoints: [\"{address}\"]}}\n")
    };
    std::fs::write(dir.path().join("main.yaml"), with_defaults("")).unwrap();
    std::fs::write(dir.path().join("0.yaml"), service(0)).unwrap();
    std::fs::write(dir.path().join("1.yaml"), "services: []\n").unwrap();
    let gateway = Gateway::builder("").source(dir.path()).start().await;
    wait_served(&gateway, "0").await;
    let load = Load::get(gateway.addr(), 8, WEB);
    let (mut counted, mut turn, mut excused) = (0, 0, 0);
    while counted < 1_000 {
        turn += 1;
        assert!(turn <= 4_000, "the writer was held up in most of its moves");
        let (from, to) = (format!("{}.yaml", (turn + 1) % 2), format!("{}.yaml", turn % 2));
        put(&from, "services: []\n");
        put(&to, &service(turn));
        // Either half comes first.
        let order = if turn % 4 < 2 { [&from, &to] } else { [&to, &from] };
        let failed = load.failed();
        let start = Instant::now();
        for name in order {
            place(name);
        }
        let together = start.elapsed() < TOGETHER;
        wait_served(&gateway, &(turn % 2).to_string()).await;
        if together {
            counted += 1;
        } else {
            // Requests from before are finished: each connection has had a response since.
            load.advance(16).await;
            excused += load.failed() - failed;
        }
    }
    let report = load.stop().await;
    assert!(
        report.failed == excused && report.ok > 0,
        "{:#?}",
        report.failures
    );
}

#[tokio::test]
async fn sighup_reads_again_and_equal_content_publishes_nothing() {
    let change = Change::new().await;
    let gateway = Gateway::start(&change.to_a()).await;
    let generation = gateway.generation().await;
    gateway.sighup();
    let unchanged = [("result", "unchanged")];
    gateway
        .wait_metric("sluice_config_reloads_total", &unchanged, SOON, |n| n >= 1.0)
        .await;
    assert_eq!(gateway.generation().await, generation);
    assert_eq!(gateway.get(WEB, "/").await.text(), "a");
}

#[tokio::test]
async fn a_bad_config_changes_nothing_until_it_is_fixed() {
    let change = Change::new().await;
    let gateway = Gateway::start(&change.to_a()).await;
    let generation = gateway.generation().await;
    let rejected = [("result", "rejected")];
    for (n, bad) in [
        "services: [",
        "sevrices: []\n",
        &change.to_b().replace("endpoints", "endpiont"),
    ]
    .into_iter()
    .enumerate()
    {
        gateway.write_config(bad);
        let want = n as f64 + 1.0;
        gateway
            .wait_metric("sluice_config_reloads_total", &rejected, SOON, |n| n >= want)
            .await;
        assert_eq!(gateway.get(WEB, "/").await.text(), "a", "{bad}");
        assert_eq!(gateway.generation().await, generation);
    }
    gateway.wait_said("sluice.yaml:").await;
    gateway.write_config(&change.to_b());
    wait_served(&gateway, "b").await;
}

#[tokio::test]
async fn a_request_in_flight_outlives_its_revision() {
    let change = Change::new().await;
    let gateway = Gateway::start(&change.to_a()).await;
    change.a.hold();
    let addr = gateway.addr();
    let old = tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await });
    wait_for("it is in flight", SOON, async || {
        (change.a.in_flight() == 1).then_some(())
    })
    .await;
    gateway.reload(&change.to_b().replace("web-a", "web-b")).await;
    assert_eq!(gateway.get(WEB, "/").await.text(), "b");
    change.a.release();
    assert_eq!(old.await.unwrap().unwrap().text(), "a");
}

#[tokio::test]
async fn a_changed_limit_applies_in_place() {
    let backend = HttpBackend::start("a").await;
    let config = |limit: u32| crate::web_with(backend.addr(), &format!("containerConcurrency: {limit}"));
    let gateway = Gateway::start(&config(1)).await;
    backend.hold();
    let addr = gateway.addr();
    let waiting: Vec<_> = (0..4)
        .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await }))
        .collect();
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 3.0)
        .await;
    gateway.reload(&config(3)).await;
    wait_for("two more are admitted", SOON, async || {
        (backend.in_flight() == 3).then_some(())
    })
    .await;
    backend.release();
    for request in waiting {
        assert_eq!(request.await.unwrap().unwrap().status, 200);
    }
    assert_eq!(backend.peak_in_flight(), 3);
}

#[tokio::test]
async fn a_request_that_waits_for_a_revision_that_is_removed_goes_where_its_host_leads_now() {
    let backend = HttpBackend::start("elsewhere").await;
    let never = crate::cold_start::shell_service("sleep 1000", "");
    let gateway = Gateway::start(&never).await;
    let addr = gateway.addr();
    let waiting = tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await });
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 1.0)
        .await;
    gateway
        .reload(&web(backend.addr()).replace("web-a", "web-b"))
        .await;
    let response = waiting.await.unwrap().unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "elsewhere"));
}

#[tokio::test]
async fn a_removed_revision_is_shown_while_it_finishes() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let states = async || -> Vec<(String, u64)> {
        let all = gateway.admin_json("/api/revisions").await;
        let rows = all["revisions"].as_array().unwrap().iter();
        let rows = rows.filter(|row| row["revision"] == "web-a");
        rows.map(|row| {
            (
                row["state"].as_str().unwrap().to_owned(),
                row["in_flight"].as_u64().unwrap(),
            )
        })
        .collect()
    };
    assert_eq!(states().await, [("serving".to_owned(), 0)]);
    backend.hold();
    let addr = gateway.addr();
    let held = tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await });
    wait_until("it arrives", SOON, || backend.in_flight() == 1).await;
    gateway
        .reload("services:\n  - {name: other, endpoints: [\"127.0.0.1:9\"]}\n")
        .await;
    assert_eq!(states().await, [("leaving".to_owned(), 1)]);
    let labels = [("revision", "web-a")];
    assert_eq!(gateway.metric("sluice_requests_in_flight", &labels).await, 1.0);
    backend.release();
    assert_eq!(held.await.unwrap().unwrap().status, 200);
    wait_for("it is gone", SOON, async || {
        states().await.is_empty().then_some(())
    })
    .await;
    wait_for("its series are gone", SOON, async || {
        let metrics = gateway.metrics().await;
        metrics.label_values().all(|value| value != "web-a").then_some(())
    })
    .await;
}
