//! Ready of an Ingress waits until every ready replica serves it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::cluster::{Cluster, NODE, inside};
use sluice_tests::h1;
use sluice_tests::wait::{SOON, wait_for, within};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::Instant;

/// Generation, observed generation, status, reason and message of Ready, with bars between them.
const READY: &str = "--output=jsonpath={.metadata.generation}|{.status.observedGeneration}|\
                     {.status.conditions[?(@.type==\"Ready\")].status}|{.status.conditions[?(@.type==\"Ready\")].reason}|\
                     {.status.conditions[?(@.type==\"Ready\")].message}{\"\\n\"}";

const INGRESS: &str = "ingresses.networking.internal.knative.dev/web";

/// The gateway with three replicas, and an Ingress to a backend in this process.
struct Scene {
    cluster: Cluster,
    backend: HttpBackend,
    namespace: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Ready {
    is_current: bool,
    status: String,
    reason: String,
    message: String,
}

impl Ready {
    fn of(line: &str) -> Self {
        let mut parts = line.trim_end().splitn(5, '|').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self {
            is_current: next() == next(),
            status: next(),
            reason: next(),
            message: next(),
        }
    }

    fn is_true(&self) -> bool {
        self.is_current && self.status == "True"
    }
}

impl Scene {
    async fn new(cluster: Cluster) -> Self {
        cluster.script("sluice", &["3"]).await;
        let backend = HttpBackend::builder("a")
            .at(SocketAddr::new(NODE, 0))
            .start()
            .await;
        let namespace = cluster.namespace("acks").await;
        let (ip, port) = (NODE, backend.addr().port());
        let objects = format!(
            r"
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{ports: [{{name: http, port: 80, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [{ip}], conditions: {{ready: true}}}}]
ports: [{{name: http, port: {port}}}]
---
apiVersion: networking.internal.knative.dev/v1alpha1
kind: Ingress
metadata:
  name: web
  annotations: {{networking.knative.dev/ingress.class: sluice.ingress.networking.knative.dev}}
spec:
  rules:
  - hosts: [web.example.com]
    visibility: ExternalIP
    http:
      paths:
      - splits: [{{serviceName: web, serviceNamespace: {namespace}, servicePort: 80, percent: 100}}]
        appendHeaders: {{x-version: v0}}
"
        );
        cluster.apply(&namespace, &objects).await;
        Self {
            cluster,
            backend,
            namespace,
        }
    }

    async fn change(&self, version: &str) {
        let patch = format!(
            r#"[{{"op":"replace","path":"/spec/rules/0/http/paths/0/appendHeaders/x-version","value":"{version}"}}]"#
        );
        let args = [
            "--namespace",
            &self.namespace,
            "patch",
            INGRESS,
            "--type=json",
            "--patch",
            &patch,
        ];
        self.cluster.kubectl(&args).await;
    }

    async fn ready(&self) -> Ready {
        let args = ["--namespace", &self.namespace, "get", INGRESS, READY];
        Ready::of(&self.cluster.kubectl(&args).await)
    }

    async fn until_ready(&self, limit: Duration) {
        wait_for("Ready", limit, || async {
            self.ready().await.is_true().then_some(())
        })
        .await;
    }

    /// The names and addresses of the replicas that are ready.
    async fn replicas(&self) -> BTreeMap<String, IpAddr> {
        let output = "--output=jsonpath={range .items[*]}{.metadata.name} {.status.podIP} \
                      {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}";
        let said = self
            .cluster
            .kubectl(&["--namespace=sluice-system", "get", "pods", output])
            .await;
        let mut replicas = BTreeMap::new();
        for line in said.lines() {
            if let [name, ip, "True"] = line.split(' ').collect::<Vec<_>>()[..] {
                replicas.insert(name.to_owned(), ip.parse().expect("an address"));
            }
        }
        replicas
    }

    async fn leader(&self) -> String {
        let output = "--output=jsonpath={.spec.holderIdentity}";
        let lease = [
            "--namespace=sluice-system",
            "get",
            "lease",
            "sluice-status",
            output,
        ];
        self.cluster.kubectl(&lease).await
    }

    /// The version that a replica serves at this moment.
    async fn served_by(&self, replica: IpAddr) -> String {
        let target = format!("/{replica}");
        let answer = h1::fetch(
            SocketAddr::new(replica, 8080),
            &h1::get("web.example.com", &target),
        )
        .await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = self.backend.last();
        assert_eq!(seen.target, target);
        seen.header("x-version").unwrap_or_default().to_owned()
    }

    async fn is_served_by_all(&self, version: &str) {
        for (name, ip) in self.replicas().await {
            assert_eq!(self.served_by(ip).await, version, "{name}");
        }
    }

    fn logs(&self) -> String {
        self.cluster.logs("sluice-system")
    }
}

/// A Pod without a way to the API server; it has one again when this is dropped. Its other connections go on, and its
/// probe too.
struct CutOff;

impl CutOff {
    fn new(pod: IpAddr) -> Self {
        let rules = format!(
            "table ip cutoff {{
                chain from {{ type filter hook prerouting priority raw; ip saddr {pod} ip daddr 10.96.0.1 drop; }}
                chain to {{ type filter hook output priority raw; ip daddr {pod} tcp sport 6443 drop; }}
            }}"
        );
        nft(&rules);
        Self
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        nft("delete table ip cutoff");
    }
}

pub(super) fn nft(rules: &str) {
    let done = std::process::Command::new("nft")
        .arg(rules)
        .output()
        .expect("nft, which kube-proxy needs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn ready_waits_for_a_replica_that_does_not_see_the_change_and_names_it() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster).await;
    scene.until_ready(SOON).await;
    scene.is_served_by_all("v0").await;

    let leader = scene.leader().await;
    let replicas = scene.replicas().await;
    let (blind, ip) = replicas
        .iter()
        .find(|(name, _)| **name != leader)
        .expect("three replicas");
    let cut = CutOff::new(*ip);
    scene.change("v1").await;
    let named = wait_for("Ready names the replica", SOON, || async {
        let ready = scene.ready().await;
        assert!(!ready.is_true(), "before {blind} serves it: {ready:?}");
        (ready.is_current && !ready.message.is_empty()).then_some(ready)
    })
    .await;
    assert_eq!(
        named,
        Ready {
            is_current: true,
            status: "Unknown".into(),
            reason: "ReplicasNotAcknowledged".into(),
            message: format!("replica {blind} has not acknowledged generation 2 for 5 s"),
        },
        "{}",
        scene.logs()
    );
    assert_eq!(scene.served_by(*ip).await, "v0");
    for (name, ip) in replicas.iter().filter(|(name, _)| *name != blind) {
        assert_eq!(scene.served_by(*ip).await, "v1", "{name}");
    }

    drop(cut);
    scene.until_ready(SOON * 3).await;
    scene.is_served_by_all("v1").await;

    // A replica that is gone is not waited for.
    let cut = CutOff::new(*ip);
    scene.change("v2").await;
    scene
        .cluster
        .kubectl(&[
            "--namespace=sluice-system",
            "delete",
            "pod",
            blind,
            "--grace-period=0",
            "--force",
        ])
        .await;
    scene.until_ready(SOON * 3).await;
    drop(cut);
}

#[tokio::test]
async fn another_replica_writes_when_the_leader_is_gone() {
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster).await;
    scene.until_ready(SOON).await;
    let leader = scene.leader().await;
    let kill = [
        "--namespace=sluice-system",
        "delete",
        "pod",
        &leader,
        "--grace-period=0",
        "--force",
    ];
    scene.cluster.kubectl(&kill).await;
    scene.change("v1").await;
    // The Lease has to end first.
    scene.until_ready(SOON * 3).await;
    assert_ne!(scene.leader().await, leader);
    scene.is_served_by_all("v1").await;
}

/// Prints how long after an accepted change Ready follows, as a client sees both on one watch.
#[tokio::test]
async fn ready_follows_a_change_within_a_second() {
    const CHANGES: usize = 100;
    let Some(cluster) = inside() else { return };
    let scene = Scene::new(cluster).await;
    scene.until_ready(SOON).await;
    let mut watch = Command::new("kubectl")
        .args(["--namespace", &scene.namespace, "get", INGRESS, "--watch", READY])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl");
    let mut lines = BufReader::new(watch.stdout.take().expect("it is piped")).lines();
    let mut next = async || {
        let line = within("an event", SOON, lines.next_line()).await;
        Ready::of(&line.expect("an event").expect("the watch goes on"))
    };
    assert!(next().await.is_true());
    let mut took = Vec::new();
    for nth in 1..=CHANGES {
        let version = format!("v{nth}");
        let change = scene.change(&version);
        let ready = async {
            while next().await.is_true() {}
            let accepted = Instant::now();
            while !next().await.is_true() {}
            accepted.elapsed()
        };
        took.push(tokio::join!(change, ready).1);
    }
    scene.is_served_by_all(&format!("v{CHANGES}")).await;
    took.sort();
    let (p50, p99) = (took[CHANGES / 2], took[CHANGES * 99 / 100 - 1]);
    println!(
        "Ready after {CHANGES} changes, three replicas: p50 {p50:.1?}, p99 {p99:.1?}, longest {:.1?}",
        took[CHANGES - 1]
    );
    assert!(p99 < Duration::from_secs(1), "{took:?}");
}

/// The replica that writes statuses.
async fn leader(cluster: &Cluster) -> String {
    let holder = "--output=jsonpath={.spec.holderIdentity}";
    let lease = [
        "--namespace=sluice-system",
        "get",
        "lease",
        "sluice-status",
        holder,
    ];
    wait_for("a leader", SOON, || async {
        let holder = cluster.try_kubectl(&lease, "").await.ok()?;
        (!holder.is_empty()).then_some(holder)
    })
    .await
}

#[tokio::test]
async fn a_replica_that_goes_hands_the_lead_over_before_its_drain_ends() {
    let Some(cluster) = inside() else { return };
    cluster.script("sluice", &["2"]).await;
    let first = leader(&cluster).await;
    let pod = [
        "--namespace=sluice-system",
        "delete",
        "pod",
        &first,
        "--wait=false",
    ];
    cluster.kubectl(&pod).await;
    wait_for("another leader", SOON, || async {
        (leader(&cluster).await != first).then_some(())
    })
    .await;
    // It still drains: one that held the Lease to its end would renew it now.
    let get = ["--namespace=sluice-system", "get", "pod", &first, "--output=name"];
    let there = cluster.try_kubectl(&get, "").await;
    assert!(there.is_ok(), "{there:?}");
}
