//! `sluice explain`: predicts what the data plane does.

use std::collections::BTreeSet;

use sluice_tests::backend::{HttpBackend, full, ok};
use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;

use crate::web_split;

#[tokio::test]
async fn explain_names_route_split_and_revision() {
    let dir = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:9".parse().unwrap();
    let config = web_split(any, "100", any, "0", "hosts: [shop.example.com]");
    std::fs::write(dir.path().join("sluice.yaml"), config).unwrap();
    for (url, revision) in [
        ("http://shop.example.com/x", "web-a"),
        ("http://b-shop.example.com/", "web-b"),
        ("http://WEB.default.localhost:8080/", "web-a"),
    ] {
        let done = sluice_in(dir.path(), &["explain", "-c", "sluice.yaml", url]).await;
        assert_eq!(done.code, Some(0), "{url}: {done:?}");
        assert!(done.stdout.contains(revision), "{url}: {done:?}");
        let json = sluice_in(dir.path(), &["explain", "--format", "json", url]).await;
        assert!(json.json().to_string().contains(revision), "{json:?}");
    }
    let nothing = sluice_in(dir.path(), &["explain", "http://other.example.com/"]).await;
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    assert!(nothing.all().contains("other.example.com"));
    let usage = sluice_in(dir.path(), &["explain"]).await;
    assert_eq!(usage.code, Some(2));
}

#[tokio::test]
async fn explain_says_what_is_answered_at_zero_and_what_wakes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = "services:\n- name: web\n  cold: {answer: page}\n  noWake: [{userAgents: ['*bot*']}]\n  \
                  process: {command: [sluice, echo]}\n";
    std::fs::write(dir.path().join("sluice.yaml"), config).unwrap();
    let url = "http://web.default.localhost/";
    let explain = async |more: &[&str]| {
        let arguments = [&["explain", "--format", "json", url], more].concat();
        sluice_in(dir.path(), &arguments).await.json()
    };
    let person = explain(&[]).await;
    assert_eq!(
        (&person["cold"], &person["noWake"]),
        (&"page".into(), &false.into())
    );
    assert!(person["why"].to_string().contains("waiting page"), "{person}");
    let robot = explain(&["-H", "User-Agent: a bot"]).await;
    assert_eq!(robot["noWake"], true);
    assert!(robot["why"].to_string().contains("dormant"), "{robot}");
}

/// Services with random hosts and routes; every split sends all to one revision, so that there
/// is one right answer.
fn random_services(rng: &mut fastrand::Rng, endpoint: std::net::SocketAddr) -> String {
    let mut config = "services:\n".to_owned();
    let mut claimed = BTreeSet::new();
    for n in 0..8 {
        let hosts: Vec<String> = (0..3)
            .map(|_| random_host(rng, true))
            .filter(|host| claimed.insert(host.clone()))
            .map(|host| format!("\"{host}\""))
            .collect();
        config.push_str(&format!("  - name: s{n}\n    hosts: [{}]\n", hosts.join(", ")));
        config.push_str(&format!(
            "    traffic: [{{revisionName: s{n}-own, percent: 100}}, {{revisionName: s{n}-r0, percent: 0, tag: t}}]\n    routes:\n"
        ));
        for route in 0..3 {
            let mut matches = Vec::new();
            let kind = rng.choice(["exact", "prefix", "rawPrefix"]).unwrap_or("exact");
            let path = rng.choice(["/a", "/a/b", "/b"]).unwrap_or("/a");
            matches.push(format!("path: {{{kind}: {path}}}"));
            if rng.bool() {
                matches.push("headers: {X-Y: {exact: \"1\"}}".to_owned());
            }
            if rng.bool() {
                matches.push("methods: [PUT]".to_owned());
            }
            config.push_str(&format!(
                "      - match: {{{}}}\n        traffic: [{{revisionName: s{n}-r{route}, percent: 100}}]\n",
                matches.join(", ")
            ));
        }
        config.push_str("    revisions:\n");
        for revision in ["own", "r0", "r1", "r2"] {
            config.push_str(&format!(
                "      - {{name: s{n}-{revision}, endpoints: [\"{endpoint}\"]}}\n"
            ));
        }
    }
    config
}

fn random_host(rng: &mut fastrand::Rng, pattern: bool) -> String {
    let labels: Vec<&str> = (0..rng.usize(1..4))
        .filter_map(|_| rng.choice(["x", "y", "z"]))
        .collect();
    let host = format!("{}.test", labels.join("."));
    match rng.u8(..4) {
        0 if pattern => format!("*.{host}"),
        0 => format!("s{}.default.localhost", rng.u8(..9)),
        1 if !pattern => format!("t-s{}.default.localhost", rng.u8(..9)),
        _ => host,
    }
}

#[tokio::test]
async fn explain_agrees_with_the_running_gateway_on_a_random_table() {
    let seed = std::env::var("SLUICE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    let backend = HttpBackend::builder("")
        .answer(|seen| {
            let revision = seen.header("knative-serving-revision").unwrap_or_default();
            ok(full(revision.to_owned()))
        })
        .start()
        .await;
    let gateway = Gateway::start(&random_services(&mut rng, backend.addr())).await;
    let admin = format!("http://{}", gateway.admin());
    for n in 0..60 {
        let host = random_host(&mut rng, false);
        let path = rng
            .choice(["/", "/a", "/a/b", "/ab", "/a/b/c", "/b"])
            .unwrap_or("/");
        let method = rng.choice(["GET", "PUT"]).unwrap_or("GET");
        let value = rng.choice(["1", "2"]).unwrap_or("1");
        let served = gateway
            .send(&h1::request(method, &host, path, &[("X-Y", value)], b""))
            .await;
        let (url, header) = (format!("http://{host}{path}"), format!("X-Y: {value}"));
        let source = [["-c", "sluice.yaml"], ["--admin", admin.as_str()]][n % 2];
        let mut args = vec!["explain", "--format", "json", "-H", &header, "-X", method];
        args.extend(source);
        args.push(&url);
        let said = sluice_in(gateway.dir(), &args).await;
        let what = format!(
            "SLUICE_SEED={seed}: {args:?}: {said:?}, served {} {}",
            served.status,
            served.text()
        );
        if served.status == 404 {
            assert_eq!(said.code, Some(1), "{what}");
        } else {
            assert_eq!((served.status, said.code), (200, Some(0)), "{what}");
            assert!(
                said.json()["revision"].to_string().contains(&served.text()),
                "{what}"
            );
        }
    }
}
