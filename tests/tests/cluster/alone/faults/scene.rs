//! The scene of a fault: replicas of the gateway, an Ingress that two backends in this process answer for, and traffic
//! that counts every failure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::api_server::ApiServer;
use sluice_tests::backend::{HttpBackend, full, ok};
use sluice_tests::cluster::{Cluster, NODE};
use sluice_tests::h1;
use sluice_tests::load::Load;
use sluice_tests::wait::{SOON, wait_for};

pub(super) const HOST: &str = "web.example.com";

/// What a backend takes for an answer: there are requests in flight whenever a fault comes, and cores left for the
/// cluster.
const WORK: Duration = Duration::from_millis(100);

/// The path of the gateway's Pods, in the API.
pub(in crate::alone) const PODS: &str = "/api/v1/namespaces/sluice-system/pods";

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/sluice-system/deployments/sluice";

pub(super) struct Scene {
    pub(super) cluster: Cluster,
    pub(super) api: ApiServer,
    pub(super) namespace: String,
    /// Named `a` and `b`; `a` is a ready endpoint at first.
    backends: [HttpBackend; 2],
}

/// A replica of the gateway that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::alone) struct Replica {
    pub(in crate::alone) name: String,
    pub(super) uid: String,
    pub(super) ip: IpAddr,
}

impl Replica {
    /// Where it takes requests.
    pub(in crate::alone) fn public(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 8080)
    }

    /// Where it tells of its health, and its metrics.
    pub(super) fn health(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 9901)
    }

    /// Whether it says that it is ready.
    pub(super) async fn is_ready(&self) -> bool {
        let answer = h1::fetch(self.health(), &h1::get("health", "/readyz")).await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// What it answers to a request for a host: the backend's name and the version that the gateway appended, as in
    /// `a v0`; else status and reason.
    pub(super) async fn answer(&self, host: &str) -> String {
        match h1::fetch(self.public(), &h1::get(host, "/")).await {
            Ok(answer) if answer.status == 200 => answer.text(),
            Ok(answer) => format!("{} {:?}", answer.status, answer.reason()),
            Err(error) => error.to_string(),
        }
    }
}

impl Scene {
    /// Starts the gateway with that many replicas, and waits until the Ingress is Ready.
    pub(super) async fn new(cluster: Cluster, replicas: u32) -> Self {
        cluster.script("sluice", &[&replicas.to_string()]).await;
        Self::around(cluster).await
    }

    /// [`new`](Self::new), with replicas that reach the API server by way of this address.
    pub(super) async fn by_way_of(cluster: Cluster, replicas: u32, api_server: SocketAddr) -> Self {
        cluster.script("sluice", &["0"]).await;
        let env = json!([
            {"name": "KUBERNETES_SERVICE_HOST", "value": api_server.ip().to_string()},
            {"name": "KUBERNETES_SERVICE_PORT", "value": api_server.port().to_string()},
        ]);
        let each = env.as_array().into_iter().flatten().map(|variable| {
            json!({"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": variable})
        });
        let mut patch: Vec<Value> = each.collect();
        patch.push(json!({"op": "replace", "path": "/spec/replicas", "value": replicas}));
        let patched = cluster
            .api()
            .send("PATCH", DEPLOYMENT, &Value::Array(patch))
            .await;
        patched.expect("the Deployment is there");
        let status = [
            "--namespace=sluice-system",
            "rollout",
            "status",
            "deployment/sluice",
            "--timeout=50s",
        ];
        cluster.kubectl(&status).await;
        Self::around(cluster).await
    }

    async fn around(cluster: Cluster) -> Self {
        let namespace = cluster.namespace("faults").await;
        let backends = [backend("a").await, backend("b").await];
        let scene = Self {
            api: cluster.api(),
            cluster,
            namespace,
            backends,
        };
        let services = format!("/api/v1/namespaces/{}/services", scene.namespace);
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
        scene.must("POST", &services, service).await;
        for (name, backend) in ["a", "b"].into_iter().zip(&scene.backends) {
            let slice = json!({
                "metadata": {"name": format!("web-{name}"), "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": backend.addr().port()}],
                "endpoints": [{"addresses": [NODE], "conditions": {"ready": name == "a"}}],
            });
            scene.must("POST", &scene.slices(), slice).await;
        }
        scene.create("web", HOST).await;
        scene.until_ready("web").await;
        scene
    }

    /// The path of the Ingresses of the scene's namespace.
    pub(super) fn ingresses(&self) -> String {
        format!(
            "/apis/networking.internal.knative.dev/v1alpha1/namespaces/{}/ingresses",
            self.namespace
        )
    }

    fn slices(&self) -> String {
        format!(
            "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
            self.namespace
        )
    }

    /// Creates an Ingress to the backends.
    pub(super) async fn create(&self, name: &str, host: &str) {
        let object = ingress(&self.namespace, name, host);
        self.must("POST", &self.ingresses(), object).await;
    }

    /// Changes the version that the gateway appends to requests for [`HOST`].
    pub(super) async fn change(&self, version: &str) {
        let path = format!("{}/web", self.ingresses());
        let at = "/spec/rules/0/http/paths/0/appendHeaders/x-version";
        self.must(
            "PATCH",
            &path,
            json!([{"op": "replace", "path": at, "value": version}]),
        )
        .await;
    }

    /// Says that the backend `name` is a ready endpoint, or is none.
    pub(super) async fn set_ready(&self, name: &str, is_ready: bool) {
        let path = format!("{}/web-{name}", self.slices());
        let at = "/endpoints/0/conditions/ready";
        self.must(
            "PATCH",
            &path,
            json!([{"op": "replace", "path": at, "value": is_ready}]),
        )
        .await;
    }

    /// A request to the API server that has to succeed.
    pub(super) async fn must(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.api.send(method, path, &body).await;
        answer.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits until an Ingress is Ready at its present generation.
    pub(super) async fn until_ready(&self, name: &str) {
        let path = format!("{}/{name}", self.ingresses());
        wait_for("the Ingress is Ready", SOON * 3, || async {
            is_ready(&self.api.get(&path).await.ok()?).then_some(())
        })
        .await;
    }

    /// The replicas that are ready and stay.
    pub(super) async fn replicas(&self) -> Vec<Replica> {
        replicas(&self.api).await
    }

    /// The name of the replica that holds the Lease; empty if there is none.
    pub(super) async fn leader(&self) -> String {
        let lease = "/apis/coordination.k8s.io/v1/namespaces/sluice-system/leases/sluice-status";
        let lease = self.must("GET", lease, Value::Null).await;
        let holder = lease["spec"]["holderIdentity"].as_str();
        holder.unwrap_or_default().to_owned()
    }

    /// Asserts that every ready replica answers this for a host.
    pub(super) async fn is_answered(&self, host: &str, by: &str) {
        for replica in self.replicas().await {
            assert_eq!(replica.answer(host).await, by, "{}", replica.name);
        }
    }

    /// Waits until every ready replica answers this for a host.
    pub(super) async fn until_answered(&self, host: &str, by: &str) {
        for replica in self.replicas().await {
            let what = format!("{} answers {by}", replica.name);
            wait_for(&what, SOON * 2, || async {
                (replica.answer(host).await == by).then_some(())
            })
            .await;
        }
    }

    /// Traffic for [`HOST`] through the Service, on connections that are kept, on new ones and over HTTP/2, and to each
    /// of these replicas.
    pub(super) async fn traffic(&self, replicas: &[Replica]) -> Traffic {
        let service = self.cluster.service("sluice-system", "sluice", 80).await;
        let mut traffic = Traffic::default();
        traffic.add("kept connections", Load::get(service, 4, HOST));
        traffic.add("new connections", Load::get_anew(service, 2, HOST));
        traffic.add("HTTP/2", Load::get_h2(service, 2, HOST));
        traffic.add_direct(replicas);
        traffic.advance().await;
        traffic
    }
}

/// The replicas of the gateway that are ready and stay.
pub(in crate::alone) async fn replicas(api: &ApiServer) -> Vec<Replica> {
    let list = api.get(PODS).await.expect("the API server answers");
    let pods = list["items"].as_array().expect("a list");
    let staying = pods.iter().filter(|pod| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    });
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let replica = |pod: &Value| Replica {
        name: text(&pod["metadata"]["name"]),
        uid: text(&pod["metadata"]["uid"]),
        ip: text(&pod["status"]["podIP"]).parse().expect("an address"),
    };
    staying.map(replica).collect()
}

/// Whether an object says that it is Ready at its present generation.
pub(in crate::alone) fn is_ready(object: &Value) -> bool {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    object["metadata"]["generation"] == object["status"]["observedGeneration"]
        && conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// An Ingress of our class to the scene's backends.
pub(super) fn ingress(namespace: &str, name: &str, host: &str) -> Value {
    let split =
        json!({"serviceName": "web", "serviceNamespace": namespace, "servicePort": 80, "percent": 100});
    json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {
            "name": name,
            "annotations": {"networking.knative.dev/ingress.class": "sluice.ingress.networking.knative.dev"},
        },
        "spec": {"rules": [{
            "hosts": [host], "visibility": "ExternalIP",
            "http": {"paths": [{"splits": [split], "appendHeaders": {"x-version": "v0"}}]},
        }]},
    })
}

async fn backend(name: &'static str) -> HttpBackend {
    HttpBackend::builder(name)
        .at(SocketAddr::new(NODE, 0))
        .stream(move |request| async move {
            tokio::time::sleep(WORK).await;
            let version = request.headers().get("x-version");
            let version = version.and_then(|v| v.to_str().ok()).unwrap_or_default();
            ok(full(format!("{name} {version}")))
        })
        .start()
        .await
}

/// Loads that run throughout a test.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    loads: Vec<(String, Load)>,
}

impl Traffic {
    pub(super) fn add(&mut self, name: impl Into<String>, load: Load) {
        self.loads.push((name.into(), load));
    }

    /// Connections to each of these replicas, past the Service.
    pub(super) fn add_direct(&mut self, replicas: &[Replica]) {
        for replica in replicas {
            self.add(&replica.name, Load::get(replica.public(), 2, HOST));
        }
    }

    /// Waits until each load has finished further requests, more than one on each connection.
    pub(super) async fn advance(&self) {
        for (_, load) in &self.loads {
            load.advance(10).await;
        }
    }

    /// Ends the traffic and returns how often each answer came.
    ///
    /// # Panics
    /// When a request failed, or a load had none.
    pub(super) async fn stop(self) -> BTreeMap<String, u64> {
        let mut bodies = BTreeMap::new();
        for (name, load) in self.loads {
            let report = load.stop().await;
            assert!(
                report.failed == 0 && report.ok > 0,
                "{name}: {} failed of {}: {:#?}",
                report.failed,
                report.ok + report.failed,
                report.failures
            );
            for (body, count) in report.bodies {
                *bodies.entry(body).or_default() += count;
            }
        }
        bodies
    }
}
