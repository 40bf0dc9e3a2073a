//! The manifest for users, as it is: the API server takes it whole, and the gateway runs by it under the restricted profile.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use sluice_tests::cluster::{Cluster, inside};
use sluice_tests::h1;
use sluice_tests::wait::{SOON, wait_for};

/// A user as OpenShift gives a namespace one.
const USER: u32 = 1_000_770_000;

fn manifest() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes/sluice.yaml");
    std::fs::read_to_string(root).expect("the manifest")
}

#[tokio::test]
async fn the_api_server_takes_it_and_it_runs_as_any_user() {
    let Some(cluster) = inside() else { return };
    cluster.script("ingress-api", &[]).await;
    cluster.kubectl(&["create", "namespace", "sluice-system"]).await;
    let dry = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
    let said = cluster.try_kubectl(&dry, &manifest()).await;
    let said = said.unwrap_or_else(|e| panic!("{e}"));
    let objects = manifest()
        .lines()
        .filter(|line| line.starts_with("kind: "))
        .count();
    assert_eq!(said.lines().count(), objects, "{said}");
    assert!(
        said.lines().all(|line| line.ends_with("(server dry run)")),
        "{said}"
    );

    // It waits until both Pods are ready. The namespace enforces the restricted profile.
    cluster.script("sluice", &["2"]).await;
    answers(&cluster).await;
    let users = users_of_the_gateway();
    if !any_user_can_be_had() {
        eprintln!("SKIPPED: this user namespace has no user {USER}, as which the gateway is to run");
        return;
    }
    assert!(!users.contains(&USER), "{users:?}");
    let patch = format!(
        "{{\"spec\": {{\"template\": {{\"spec\": {{\"securityContext\": {{\"runAsUser\": {USER}}}}}}}}}}}"
    );
    let patched = [
        "--namespace=sluice-system",
        "patch",
        "deployment/sluice",
        "--patch",
        &patch,
    ];
    cluster.kubectl(&patched).await;
    let status = [
        "--namespace=sluice-system",
        "rollout",
        "status",
        "deployment/sluice",
        "--timeout=30s",
    ];
    if let Err(e) = cluster.try_kubectl(&status, "").await {
        panic!("{e}{}", cluster.logs("sluice-system"));
    }
    assert!(
        users_of_the_gateway().contains(&USER),
        "{:?}",
        users_of_the_gateway()
    );
    answers(&cluster).await;
}

/// Both Services lead to the gateway, which has no route yet; its Pods can be scraped.
async fn answers(cluster: &Cluster) {
    let pods = [
        "--namespace=sluice-system",
        "get",
        "pods",
        "--output=jsonpath={.items[0].status.podIP}",
    ];
    let pod: IpAddr = cluster
        .kubectl(&pods)
        .await
        .parse()
        .expect("a Pod with an address");
    let metrics = h1::fetch(SocketAddr::new(pod, 9901), &h1::get("pod", "/metrics")).await;
    let metrics = metrics.expect("an answer").text();
    assert!(metrics.contains("sluice_config_generation"), "{metrics}");
    for name in ["sluice", "sluice-internal"] {
        let service = cluster.service("sluice-system", name, 80).await;
        // kube-proxy writes its rules after the Pods are ready, and refuses connections until then.
        let answer = wait_for("an answer through the Service", SOON, || async {
            h1::fetch(service, &h1::get("nowhere.example.com", "/"))
                .await
                .ok()
        })
        .await;
        assert_eq!(
            (answer.status, answer.reason()),
            (404, Some("no_route")),
            "{name}"
        );
    }
}

/// The users of the gateway's processes, each of which has no capability unless it is root's.
fn users_of_the_gateway() -> BTreeSet<u32> {
    let mut users = BTreeSet::new();
    for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let is_gateway = std::fs::read(process.path().join("cmdline"))
            .is_ok_and(|line| line.starts_with(b"/ko-app/sluice\0run\0--kubernetes\0"));
        let Ok(status) = std::fs::read_to_string(process.path().join("status")) else {
            continue;
        };
        if !is_gateway {
            continue;
        }
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next())
                .expect("a field of proc(5)")
                .to_owned()
        };
        let user = field("Uid:").parse().expect("a user");
        if user != 0 {
            assert_eq!(field("CapEff:"), "0000000000000000", "as {user}");
        }
        users.insert(user);
    }
    users
}

/// Outside of a user namespace, or in one that has this user, a Pod can run as it.
fn any_user_can_be_had() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("/proc");
    map.lines().any(|line| {
        let mut numbers = line
            .split_whitespace()
            .filter_map(|number| number.parse::<u64>().ok());
        let (Some(first), Some(_), Some(length)) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (first..first + length).contains(&u64::from(USER))
    })
}
