//! The cluster's objects, cut down to the fields that routing needs: what is not listed here is never kept.
//!
//! An Ingress is Knative's internal `Ingress` (KIngress), `networking.internal.knative.dev/v1alpha1`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::peers::EXPIRES;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The annotation that names the class of an Ingress.
pub(super) const CLASS: &str = "networking.knative.dev/ingress.class";

/// The label of an EndpointSlice that names its Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whether a Service is a revision's private or public one.
pub(super) const SERVICE_TYPE: &str = "networking.internal.knative.dev/serviceType";

/// The Revision that an object belongs to.
pub(super) const OF_REVISION: &str = "serving.knative.dev/revision";

/// The Configuration that an object belongs to.
pub(super) const OF_CONFIGURATION: &str = "serving.knative.dev/configuration";

/// The Knative Service that an object belongs to.
pub(super) const OF_SERVICE: &str = "serving.knative.dev/service";

/// The labels and annotations that are read: an object has ten others, and a first list as many objects as the cluster.
const READ: [&str; 7] = [
    CLASS,
    SERVICE_NAME,
    SERVICE_TYPE,
    OF_REVISION,
    OF_CONFIGURATION,
    OF_SERVICE,
    EXPIRES,
];

/// Labels or annotations, of which only those in [`READ`] are kept.
#[derive(Default)]
struct Read(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Read;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
                let mut read = Read::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    if READ.contains(&&*key) {
                        read.0.insert(key.into_owned(), map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(read)
            }
        }
        from.deserialize_map(Entries)
    }
}

/// Reads what of an object's metadata is used. The rest is most of many an object (`managedFields` above all), and a list is in
/// memory as a whole.
pub(super) fn metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Cut {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<Read>,
        annotations: Option<Read>,
    }
    let cut = Option::<Cut>::deserialize(from)?.unwrap_or_default();
    Ok(ObjectMeta {
        name: cut.name,
        namespace: cut.namespace,
        uid: cut.uid,
        resource_version: cut.resource_version,
        generation: cut.generation,
        creation_timestamp: cut.creation_timestamp,
        deletion_timestamp: cut.deletion_timestamp,
        labels: cut.labels.map(|labels| labels.0),
        annotations: cut.annotations.map(|annotations| annotations.0),
        ..ObjectMeta::default()
    })
}

/// Reads `null` as the default: Go writes empty lists and maps so.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A Knative Ingress.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ingress {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    pub(super) spec: IngressSpec,
    #[serde(deserialize_with = "nullable")]
    pub(super) status: IngressStatus,
}

/// The specification. The fields are in the order of Go's struct, and empty ones are left out: serialised it is the
/// text that Knative hashes (see [`super::hash`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IngressSpec {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) tls: Vec<IngressTls>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) rules: Vec<IngressRule>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) http_option: String,
}

impl IngressSpec {
    /// Gives up the room that lists have for more, which is most of a specification that was just read, and shares equal
    /// lists of headers: a split is there once for the hosts inside of the cluster, and once for those outside.
    pub(super) fn shrink(&mut self) {
        let mut shared = BTreeSet::new();
        self.tls.shrink_to_fit();
        self.rules.shrink_to_fit();
        for rule in &mut self.rules {
            rule.hosts.shrink_to_fit();
            let Some(paths) = rule.http.as_mut().and_then(|http| http.paths.as_mut()) else {
                continue;
            };
            paths.shrink_to_fit();
            for splits in paths.iter_mut().filter_map(|path| path.splits.as_mut()) {
                splits.shrink_to_fit();
                for headers in splits.iter_mut().map(|split| &mut split.append_headers) {
                    match shared.get(headers) {
                        Some(known) => *headers = Headers::clone(known),
                        None => _ = shared.insert(headers.clone()),
                    }
                }
            }
        }
    }
}

/// A certificate for some hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IngressTls {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) hosts: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) secret_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) secret_namespace: String,
}

/// A rule: hosts, and the paths below these hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IngressRule {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) hosts: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) visibility: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http: Option<IngressHttp>,
}

/// The paths of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct IngressHttp {
    pub(super) paths: Option<Vec<IngressPath>>,
}

/// A path: conditions, edits, and a split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IngressPath {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) rewrite_host: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<String, ExactHeader>,
    pub(super) splits: Option<Vec<IngressSplit>>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Headers::is_empty")]
    pub(super) append_headers: Headers,
}

/// Headers to be set, in the order of their names, each once. Splits that set the same ones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(from = "BTreeMap<String, String>")]
pub(super) struct Headers(#[serde(serialize_with = "as_map")] pub(super) Arc<[(String, String)]>);

impl Headers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a header by its exact name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut headers = self.0.iter();
        headers.find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }

    /// These and the later ones, which win.
    pub(super) fn and(&self, later: &Self) -> Self {
        let both = self.0.iter().chain(&*later.0).cloned();
        both.collect::<BTreeMap<_, _>>().into()
    }
}

impl From<BTreeMap<String, String>> for Headers {
    fn from(headers: BTreeMap<String, String>) -> Self {
        let headers = headers.into_iter().map(|(mut name, mut value)| {
            name.shrink_to_fit();
            value.shrink_to_fit();
            (name, value)
        });
        Self(headers.collect())
    }
}

fn as_map<S: Serializer>(headers: &Arc<[(String, String)]>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(headers.iter().map(|(name, value)| (name, value)))
}

/// The value that a header has to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct ExactHeader {
    pub(super) exact: String,
}

/// A share of a path's requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IngressSplit {
    pub(super) service_namespace: String,
    pub(super) service_name: String,
    pub(super) service_port: PortName,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) percent: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Headers::is_empty")]
    pub(super) append_headers: Headers,
}

/// A port by number or by name (`IntOrString`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum PortName {
    Number(i64),
    Name(String),
}

impl Default for PortName {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The status, as far as a gateway writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IngressStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) observed_generation: i64,
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: Vec<Condition>,
    pub(super) public_load_balancer: Option<LoadBalancers>,
    pub(super) private_load_balancer: Option<LoadBalancers>,
}

/// A condition of Knative's kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) last_transition_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
}

/// The addresses of a load balancer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct LoadBalancers {
    #[serde(deserialize_with = "nullable")]
    pub(super) ingress: Vec<LoadBalancer>,
}

/// The address of a load balancer, inside the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct LoadBalancer {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) domain_internal: String,
}

/// A Service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    pub(super) spec: ServiceSpec,
}

/// The specification of a Service, cut down: a cluster has three for each service of Knative's, and all others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "FullServiceSpec")]
pub(super) struct ServiceSpec {
    /// The name that an ExternalName Service leads to; `None` for all other types.
    pub(super) external_name: Option<Box<str>>,
    /// Whether the first of its address families is IPv6.
    pub(super) is_ipv6: bool,
    pub(super) ports: Box<[ServicePort]>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FullServiceSpec {
    #[serde(rename = "type")]
    kind: String,
    external_name: Box<str>,
    #[serde(deserialize_with = "nullable")]
    ip_families: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<ServicePort>,
}

impl From<FullServiceSpec> for ServiceSpec {
    fn from(full: FullServiceSpec) -> Self {
        Self {
            external_name: (full.kind == "ExternalName").then_some(full.external_name),
            is_ipv6: full.ip_families.first().is_some_and(|family| family == "IPv6"),
            ports: full.ports.into(),
        }
    }
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ServicePort {
    /// Empty where a Service has one port without a name.
    pub(super) name: Box<str>,
    pub(super) app_protocol: Option<Box<str>>,
    pub(super) port: i64,
}

/// A Revision of Knative Serving.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Revision {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    pub(super) spec: RevisionObject,
    #[serde(deserialize_with = "nullable")]
    pub(super) status: RevisionStatus,
}

/// The status of a Revision.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RevisionStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: Vec<Condition>,
}

/// The specification of a Revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RevisionObject {
    pub(super) container_concurrency: Option<i64>,
    pub(super) timeout_seconds: Option<i64>,
    pub(super) response_start_timeout_seconds: Option<i64>,
    pub(super) idle_timeout_seconds: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    pub(super) containers: Vec<Container>,
}

/// A container of a Revision: what says whether its Pods may be probed before the cluster takes them for ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Container {
    pub(super) readiness_probe: Option<ContainerProbe>,
    pub(super) startup_probe: Option<ContainerProbe>,
}

/// A command of a probe; the content is of no interest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Exec {}

/// A probe of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ContainerProbe {
    /// A command, which only the kubelet can run.
    pub(super) exec: Option<Exec>,
}

/// A Pod of a revision: only what its containers wait for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    pub(super) status: PodStatus,
}

/// The status of a Pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) container_statuses: Vec<ContainerStatus>,
}

/// The status of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ContainerStatus {
    pub(super) restart_count: i64,
    #[serde(deserialize_with = "nullable")]
    pub(super) state: ContainerState,
}

/// The state of a container, if it waits.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    pub(super) waiting: Option<Waiting>,
}

/// Why a container waits.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    #[serde(deserialize_with = "nullable")]
    pub(super) reason: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) message: String,
}

/// A part of the endpoints of a Service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    pub(super) address_type: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ports: Vec<EndpointPort>,
}

/// An endpoint: a Pod, as a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Endpoint {
    #[serde(deserialize_with = "nullable")]
    pub(super) addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: EndpointConditions,
}

/// The conditions of an endpoint; an unset `ready` counts as true.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct EndpointConditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

/// A port of all endpoints of a slice, by the name that the Service has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct EndpointPort {
    #[serde(deserialize_with = "nullable")]
    pub(super) name: String,
    pub(super) port: Option<i64>,
}

/// A Secret with a certificate.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Secret {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    pub(super) data: SecretData,
}

/// Without the key.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.metadata.name)
            .finish_non_exhaustive()
    }
}

/// The two entries of a Secret of type `kubernetes.io/tls`, in base64.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct SecretData {
    #[serde(rename = "tls.crt")]
    pub(super) chain: Option<k8s_openapi::ByteString>,
    #[serde(rename = "tls.key")]
    pub(super) key: Option<k8s_openapi::ByteString>,
}

/// A ConfigMap.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigMap {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    pub(super) data: BTreeMap<String, String>,
}

macro_rules! resource {
    ($name:ident, $group:literal, $version:literal, $kind:literal, $plural:literal) => {
        impl Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

pub(super) use resource;

resource!(
    Ingress,
    "networking.internal.knative.dev",
    "v1alpha1",
    "Ingress",
    "ingresses"
);
resource!(Revision, "serving.knative.dev", "v1", "Revision", "revisions");
resource!(Pod, "", "v1", "Pod", "pods");
resource!(Service, "", "v1", "Service", "services");
resource!(
    EndpointSlice,
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices"
);
resource!(Secret, "", "v1", "Secret", "secrets");
resource!(ConfigMap, "", "v1", "ConfigMap", "configmaps");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_metadata_only_what_is_used_is_read() {
        let json = r#"{"metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 3,
            "creationTimestamp": "2026-12-01T00:00:00Z",
            "labels": {"l": "1", "serving.knative.dev/revision": "r"},
            "annotations": {"networking.knative.dev/ingress.class": "x",
                "kubectl.kubernetes.io/last-applied-configuration": "LONG", "\u0061": "\u0062"},
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}], "ownerReferences": [], "finalizers": ["f"]}}"#;
        let service: Service = serde_json::from_str(json).expect("a Service");
        let meta = service.metadata;
        assert_eq!(meta.name.as_deref(), Some("a"));
        assert_eq!(meta.namespace.as_deref(), Some("n"));
        assert_eq!(
            (meta.uid.as_deref(), meta.resource_version.as_deref()),
            (Some("u"), Some("7"))
        );
        assert_eq!((meta.generation, meta.deletion_timestamp), (Some(3), None));
        assert!(meta.creation_timestamp.is_some());
        let pair = |key: &str, value: &str| Some(BTreeMap::from([(key.to_owned(), value.to_owned())]));
        assert_eq!(meta.labels, pair(OF_REVISION, "r"));
        assert_eq!(meta.annotations, pair(CLASS, "x"));
        assert_eq!((meta.managed_fields, meta.finalizers), (None, None));
        let none: Service = serde_json::from_str(r#"{"metadata": null}"#).expect("a Service");
        assert_eq!(none.metadata, ObjectMeta::default());
    }
}
