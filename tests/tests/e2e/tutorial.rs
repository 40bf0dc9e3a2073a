//! Knative's tutorial, its manifests as they are: a revision, the next one, both by tag, half and half. Under load that never
//! fails, with processes that come and go, and a restart in the end.

use std::path::Path;
use std::time::Duration;

use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::load::Load;
use sluice_tests::wait::{SOON, wait_for};

const SERVICE: &str = include_str!("tutorial/service.yaml");
const SERVICE_ENV: &str = include_str!("tutorial/service-env.yaml");
const SERVICE_PINNED: &str = include_str!("tutorial/service-pinned.yaml");

const HOST: &str = "greeter.default.localhost";

/// What the tutorial's container is here, and where its revisions are kept. An idle revision is at zero soon.
fn config(state: &Path) -> String {
    format!(
        "state: {{directory: {}}}
autoscaling: {{stableWindow: 6s}}
images:
  - match: 'quay.io/rhdevelopers/*:quarkus'
    command: [sluice, echo, --message, $(MESSAGE_PREFIX)]
    env: {{MESSAGE_PREFIX: Hi}}
",
        state.display()
    )
}

async fn start(state: &Path, manifest: &str) -> Gateway {
    let builder = Gateway::builder(&config(state)).file("greeter.yaml", manifest);
    let manifest = builder.dir().join("greeter.yaml");
    builder.arg(manifest.to_str().expect("a path")).start().await
}

/// Replaces the manifest, as `kubectl apply` does, and waits until the change is served.
async fn apply(gateway: &Gateway, manifest: &str) {
    let before = gateway.generation().await;
    let (path, next) = (
        gateway.dir().join("greeter.yaml"),
        gateway.dir().join("greeter.new"),
    );
    std::fs::write(&next, manifest).expect("the manifest is written");
    std::fs::rename(&next, &path).expect("the manifest is replaced");
    gateway.wait_generation(before + 1).await;
}

/// Who answers under a host: the first line of the answer.
async fn who(gateway: &Gateway, host: &str) -> String {
    let response = gateway.get(host, "/").await;
    assert_eq!(response.status, 200, "{host}: {}", response.text());
    response.text().lines().next().unwrap_or_default().to_owned()
}

/// Waits until all of ten requests in a row go to one revision.
async fn wait_all(gateway: &Gateway, revision: &str) {
    wait_for(&format!("all goes to {revision}"), SOON * 3, async || {
        for _ in 0..10 {
            if !who(gateway, HOST).await.contains(revision) {
                return None;
            }
        }
        Some(())
    })
    .await;
}

fn percents(current: u32, prev: u32) -> String {
    let text = SERVICE_PINNED.replace(
        "greeter-v1, percent: 100}",
        &format!("greeter-v1, percent: {current}}}"),
    );
    text.replace(
        "greeter-v2, percent: 0}",
        &format!("greeter-v2, percent: {prev}}}"),
    )
}

#[tokio::test]
async fn the_tutorial_under_load_that_never_fails() {
    let state = tempfile::tempdir().unwrap();
    let gateway = start(state.path(), SERVICE).await;
    let idle = SOON + Duration::from_secs(15);

    // The first revision.
    assert_eq!(who(&gateway, HOST).await, "Hi from greeter-v1");
    let load = Load::get(gateway.addr(), 4, HOST);
    load.advance(50).await;

    // Another environment makes the next revision, and all traffic moves to it once it was ready; the first one goes.
    apply(&gateway, SERVICE_ENV).await;
    wait_all(&gateway, "greeter-v2").await;
    assert_eq!(who(&gateway, HOST).await, "Namaste from greeter-v2");
    load.advance(50).await;
    gateway.wait_ready_instances("greeter-v1", 0.0, idle).await;
    gateway.wait_ready_instances("greeter-v2", 1.0, SOON).await;

    // Pinned to the first revision, which comes again; the second one is reached by tag, also once it is at zero.
    apply(&gateway, SERVICE_PINNED).await;
    wait_all(&gateway, "greeter-v1").await;
    load.advance(50).await;
    for (tag, revision) in [
        ("current", "greeter-v1"),
        ("prev", "greeter-v2"),
        ("latest", "greeter-v2"),
    ] {
        let answer = who(&gateway, &format!("{tag}-{HOST}")).await;
        assert!(answer.ends_with(revision), "{tag}: {answer}");
    }
    gateway.wait_ready_instances("greeter-v2", 0.0, idle).await;
    assert_eq!(
        who(&gateway, &format!("prev-{HOST}")).await,
        "Namaste from greeter-v2"
    );
    load.stop().await.assert_clean();

    // Half and half.
    let load = Load::get(gateway.addr(), 4, HOST);
    load.advance(50).await;
    apply(&gateway, &percents(50, 50)).await;
    load.advance(50).await;
    load.stop().await.assert_clean();
    let load = Load::get(gateway.addr(), 4, HOST);
    load.advance(400).await;
    let report = load.stop().await;
    report.assert_clean();
    let count = |revision: &str| {
        let all = report.bodies.iter();
        all.filter(|(line, _)| line.ends_with(revision))
            .map(|(_, n)| n)
            .sum::<u64>()
    };
    let (current, prev) = (count("greeter-v1"), count("greeter-v2"));
    assert!(current.abs_diff(prev) * 4 <= report.ok, "{current} and {prev}");
    assert_eq!(current + prev, report.ok);

    // A name stays what it is: other content under it is refused, and what was served is served.
    let before = gateway.reloads("rejected").await;
    let other = SERVICE_ENV.replace("Namaste", "Servus");
    std::fs::write(gateway.dir().join("greeter.yaml"), other).unwrap();
    wait_for("the manifest is refused", SOON, async || {
        (gateway.reloads("rejected").await > before).then_some(())
    })
    .await;
    gateway
        .wait_said("the template of revision 'greeter-v2' has changed, and its name has not")
        .await;
    assert!(who(&gateway, HOST).await.contains("from greeter-v"));

    // Another process knows the revisions of the one before, killed or not.
    gateway.sigkill();
    drop(gateway);
    let gateway = start(state.path(), &percents(100, 0)).await;
    assert_eq!(who(&gateway, HOST).await, "Hi from greeter-v1");
    assert_eq!(
        who(&gateway, &format!("latest-{HOST}")).await,
        "Namaste from greeter-v2"
    );
}

#[tokio::test]
async fn an_unnamed_template_moves_traffic_without_a_gap() {
    let state = tempfile::tempdir().unwrap();
    let unnamed = |manifest: &str, version: &str| {
        manifest.replace(&format!("    metadata:\n      name: greeter-{version}\n"), "")
    };
    let gateway = start(state.path(), &unnamed(SERVICE, "v1")).await;
    assert_eq!(who(&gateway, HOST).await, "Hi from greeter-00001");
    let request = h1::get(HOST, "/");
    let load = Load::start(gateway.addr(), 4, request);
    load.advance(20).await;
    apply(&gateway, &unnamed(SERVICE_ENV, "v2")).await;
    wait_all(&gateway, "greeter-00002").await;
    load.advance(20).await;
    let report = load.stop().await;
    report.assert_clean();
    assert_eq!(
        report.bodies.keys().collect::<Vec<_>>(),
        ["Hi from greeter-00001", "Namaste from greeter-00002"]
    );
}
