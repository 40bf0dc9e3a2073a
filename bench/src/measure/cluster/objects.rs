//! Objects as Knative's controllers make them, for figures in which these would only cost time.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::Path;

/// The namespace of all objects that are written here.
pub(super) const NAMESPACE: &str = "bench";

/// An object and the path that it is created at.
pub(super) type Object = (String, Value);

pub(super) fn namespace() -> Object {
    (
        "/api/v1/namespaces".to_owned(),
        json!({"metadata": {"name": NAMESPACE}}),
    )
}

/// The path of the objects of a kind.
pub(super) fn path(kind: &str) -> String {
    let group = match kind {
        "ingresses" => "apis/networking.internal.knative.dev/v1alpha1",
        "revisions" => "apis/serving.knative.dev/v1",
        "endpointslices" => "apis/discovery.k8s.io/v1",
        _ => "api/v1",
    };
    format!("/{group}/namespaces/{NAMESPACE}/{kind}")
}

/// A Service of Knative's with one revision, as the objects that an ingress and the activator see of it.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) concurrency: u32,
}

impl Set {
    pub(super) fn new(name: String, path: Path) -> Self {
        Self {
            name,
            class: path.class(),
            concurrency: 0,
        }
    }

    pub(super) fn revision(&self) -> String {
        format!("{}-00001", self.name)
    }

    pub(super) fn private(&self) -> String {
        format!("{}-00001-private", self.name)
    }

    pub(super) fn host(&self) -> String {
        format!("{}.{NAMESPACE}.example.com", self.name)
    }

    /// The path of the Ingress.
    pub(super) fn ingress_path(&self) -> String {
        format!("{}/{}", path("ingresses"), self.name)
    }

    /// The labels of what belongs to the revision.
    fn labels(&self, kind: &str) -> Value {
        json!({
            "app": self.revision(), "networking.internal.knative.dev/serverlessservice": self.revision(),
            "networking.internal.knative.dev/serviceType": kind, "serving.knative.dev/configuration": self.name,
            "serving.knative.dev/configurationGeneration": "1",
            "serving.knative.dev/configurationUID": "8f7e0d56-5fd4-4c2b-bc40-53a5a25bb5ed",
            "serving.knative.dev/revision": self.revision(),
            "serving.knative.dev/revisionUID": "0d3c80ab-1a3d-4a7b-9e8f-a3ae52bb80ff",
            "serving.knative.dev/service": self.name,
            "serving.knative.dev/serviceUID": "b54a8c07-1ac7-4a8d-9be5-a4e3a2b0a0d1",
        })
    }

    /// The Ingress that a Route has.
    pub(super) fn ingress(&self) -> Object {
        let name = &self.name;
        let split = json!({
            "serviceName": self.revision(), "serviceNamespace": NAMESPACE, "servicePort": 80, "percent": 100,
            "appendHeaders": {"Knative-Serving-Namespace": NAMESPACE, "Knative-Serving-Revision": self.revision()},
        });
        let local = ["", ".svc", ".svc.cluster.local"].map(|end| format!("{name}.{NAMESPACE}{end}"));
        let object = json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {
                "name": name,
                "annotations": {
                    "networking.internal.knative.dev/rollout":
                        format!(r#"{{"configurations":[{{"configurationName":"{name}","percent":100,"revisions":[{{"revisionName":"{name}-00001","percent":100}}],"stepParams":{{}}}}]}}"#),
                    "networking.knative.dev/ingress.class": self.class,
                    "serving.knative.dev/creator": "system:admin", "serving.knative.dev/lastModifier": "system:admin",
                },
                "labels": {
                    "serving.knative.dev/route": name, "serving.knative.dev/routeNamespace": NAMESPACE,
                    "serving.knative.dev/service": name,
                },
            },
            "spec": {"httpOption": "Enabled", "rules": [
                {"hosts": local, "visibility": "ClusterLocal", "http": {"paths": [{"splits": [split]}]}},
                {"hosts": [self.host()], "visibility": "ExternalIP",
                 "http": {"paths": [{"splits": [split], "appendHeaders": {"x-version": "v0"}}]}},
            ]},
        });
        (path("ingresses"), object)
    }

    /// The patch that changes the version.
    pub(super) fn version(version: &str) -> Value {
        json!([{"op": "replace", "path": "/spec/rules/1/http/paths/0/appendHeaders/x-version", "value": version}])
    }

    /// The Revision.
    pub(super) fn revision_object(&self) -> Object {
        let mut labels = self.labels("");
        if let Some(labels) = labels.as_object_mut() {
            labels.retain(|name, _| {
                name.starts_with("serving.knative.dev/configuration")
                    || name.starts_with("serving.knative.dev/service")
            });
        }
        let object = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": self.revision(), "labels": labels,
                "annotations": {"serving.knative.dev/creator": "system:admin", "serving.knative.dev/routes": self.name}},
            "spec": {
                "containerConcurrency": self.concurrency, "timeoutSeconds": 300, "enableServiceLinks": false,
                "containers": [{
                    "name": "user-container", "image": "dev.local/measure", "resources": {},
                    "readinessProbe": {"successThreshold": 1, "tcpSocket": {"port": 0}},
                }],
            },
        });
        (path("revisions"), object)
    }

    /// The private Service, whose endpoints are the Pods, without a selector: nothing else writes its endpoints.
    pub(super) fn private_service(&self) -> Object {
        let ports = [
            ("http", 80, 8012),
            ("https", 443, 8112),
            ("http-autometric", 9090, 9090),
            ("http-usermetric", 9091, 9091),
            ("http-queueadm", 8022, 8022),
            ("http-istio", 8012, 8012),
            ("https-istio", 8112, 8112),
        ];
        let ports =
            ports.map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}));
        let metadata = json!({"name": self.private(), "labels": self.labels("Private")});
        (
            path("services"),
            json!({"metadata": metadata, "spec": {"ports": ports}}),
        )
    }

    /// The public Service, which the Ingress names.
    pub(super) fn public_service(&self) -> Object {
        let metadata = json!({"name": self.revision(), "labels": self.labels("Public")});
        let ports = json!([{"name": "http", "port": 80, "targetPort": 8012}, {"name": "https", "port": 443, "targetPort": 8112}]);
        (
            path("services"),
            json!({"metadata": metadata, "spec": {"ports": ports}}),
        )
    }

    /// The Service by the Service's own name, which leads callers in the cluster to the ingress.
    fn placeholder(&self) -> Object {
        let spec = json!({
            "type": "ExternalName", "externalName": "sluice-internal.sluice-system.svc.cluster.local",
            "ports": [{"name": "http2", "port": 80, "targetPort": 80}],
        });
        let labels =
            json!({"serving.knative.dev/route": self.name, "serving.knative.dev/service": self.name});
        let metadata = json!({"name": self.name, "labels": labels});
        (path("services"), json!({"metadata": metadata, "spec": spec}))
    }

    /// A slice of a Service's endpoints.
    pub(super) fn slice(&self, service: &str, endpoints: &[(SocketAddr, bool)], kind: &str) -> Object {
        let port = endpoints.first().map_or(8012, |(address, _)| address.port());
        let mut labels = self.labels(kind);
        labels["kubernetes.io/service-name"] = service.into();
        labels["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io".into();
        let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
        let object = json!({
            "metadata": {"name": format!("{service}-abcde"), "labels": labels},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        });
        (path("endpointslices"), object)
    }

    /// The Endpoints of the private Service: the activator follows these, and no slices.
    pub(super) fn endpoints(&self, endpoints: &[(SocketAddr, bool)]) -> Object {
        let mut labels = self.labels("Private");
        labels["endpointslice.kubernetes.io/skip-mirror"] = "true".into();
        let object = json!({
            "metadata": {"name": self.private(), "labels": labels}, "subsets": subsets(endpoints),
        });
        (path("endpoints"), object)
    }

    /// All that a gateway sees of a Service with one Pod at this address, but the Pod itself.
    pub(super) fn all(&self, pod: SocketAddr) -> Vec<Object> {
        let pods = [(pod, true)];
        vec![
            self.revision_object(),
            self.placeholder(),
            self.public_service(),
            self.slice(&self.revision(), &pods, "Public"),
            self.private_service(),
            self.slice(&self.private(), &pods, "Private"),
            self.ingress(),
        ]
    }
}

/// One endpoint of a slice, ready or not yet.
pub(super) fn endpoint((address, is_ready): &(SocketAddr, bool)) -> Value {
    json!({
        "addresses": [address.ip()], "nodeName": "node",
        "conditions": {"ready": is_ready, "serving": is_ready, "terminating": false},
    })
}

/// The subsets of Endpoints.
pub(super) fn subsets(endpoints: &[(SocketAddr, bool)]) -> Value {
    let of = |wanted: bool| -> Vec<Value> {
        let of = endpoints.iter().filter(|(_, is_ready)| *is_ready == wanted);
        of.map(|(address, _)| json!({"ip": address.ip()})).collect()
    };
    let port = endpoints.first().map_or(8012, |(address, _)| address.port());
    let ports = json!([{"name": "http", "port": port, "protocol": "TCP"}]);
    match endpoints {
        [] => json!([]),
        _ => json!([{"addresses": of(true), "notReadyAddresses": of(false), "ports": ports}]),
    }
}
