//! The manifest: the API server takes it, and it allows what the gateway needs and nothing else.

use sluice_tests::cluster::{Cluster, inside};

const ALL: &str = "";
const KNATIVE: &str = "networking.internal.knative.dev";
const LEASES: &str = "coordination.k8s.io";

/// Verb, API group, resource with its subresource, namespace, and name; an empty one is all of them.
type Access = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const ALLOWED: [Access; 16] = [
    ("watch", KNATIVE, "ingresses", ALL, ALL),
    ("patch", KNATIVE, "ingresses/status", ALL, ALL),
    ("watch", KNATIVE, "serverlessservices", ALL, ALL),
    ("watch", "serving.knative.dev", "revisions", ALL, ALL),
    ("watch", "discovery.k8s.io", "endpointslices", ALL, ALL),
    ("list", "", "services", ALL, ALL),
    ("watch", "", "pods", ALL, ALL),
    ("watch", "", "secrets", ALL, ALL),
    ("watch", "", "configmaps", "knative-serving", "config-network"),
    ("watch", "", "configmaps", "knative-serving", "config-sluice"),
    ("create", LEASES, "leases", "sluice-system", ALL),
    ("get", LEASES, "leases", "sluice-system", "sluice-status"),
    ("update", LEASES, "leases", "sluice-system", "sluice-status"),
    ("create", "", "secrets", "sluice-system", ALL),
    ("patch", "", "secrets", "sluice-system", "sluice-peer"),
    ("get", "", "secrets", "sluice-system", "sluice-peer"),
];

const REFUSED: [Access; 20] = [
    ("update", KNATIVE, "ingresses", ALL, ALL),
    ("patch", KNATIVE, "ingresses", ALL, ALL),
    ("update", KNATIVE, "ingresses/status", ALL, ALL),
    ("delete", KNATIVE, "ingresses", ALL, ALL),
    ("update", KNATIVE, "serverlessservices/status", ALL, ALL),
    ("update", "serving.knative.dev", "revisions", ALL, ALL),
    ("create", "", "pods", "sluice-system", ALL),
    ("delete", "", "pods", ALL, ALL),
    ("create", "", "pods/exec", ALL, ALL),
    ("update", "", "services", ALL, ALL),
    ("update", "discovery.k8s.io", "endpointslices", ALL, ALL),
    ("create", "", "secrets", "knative-serving", ALL),
    ("patch", "", "secrets", "sluice-system", "other"),
    ("update", "", "secrets", "sluice-system", "sluice-peer"),
    ("delete", "", "secrets", "sluice-system", "sluice-peer"),
    ("watch", "", "configmaps", "knative-serving", ALL),
    ("update", "", "configmaps", "knative-serving", "config-sluice"),
    ("update", LEASES, "leases", "sluice-system", "other"),
    ("delete", LEASES, "leases", "sluice-system", "sluice-status"),
    ("update", LEASES, "leases", "knative-serving", "sluice-status"),
];

#[tokio::test]
async fn it_allows_what_the_gateway_needs_and_nothing_else() {
    let Some(cluster) = inside() else { return };
    cluster.script("sluice", &["0"]).await;
    let (yes, no) = (
        answers(&cluster, &ALLOWED).await,
        answers(&cluster, &REFUSED).await,
    );
    let wrong: Vec<_> = ALLOWED
        .iter()
        .zip(&yes)
        .filter(|(_, answer)| *answer != "true")
        .chain(REFUSED.iter().zip(&no).filter(|(_, answer)| *answer != "false"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!((yes.len(), no.len()), (ALLOWED.len(), REFUSED.len()));
}

/// Asks the API server what the gateway's service account may do.
async fn answers(cluster: &Cluster, accesses: &[Access]) -> Vec<String> {
    let reviews = accesses.iter().map(|(verb, group, resource, namespace, name)| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": "system:serviceaccount:sluice-system:sluice",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:sluice-system", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource,
                    "namespace": namespace, "name": name,
                },
            },
        })
        .to_string()
    });
    let documents = reviews.collect::<Vec<_>>().join("\n---\n");
    let create = [
        "create",
        "--filename=-",
        "--output=jsonpath={.status.allowed}{\"\\n\"}",
    ];
    let said = cluster.try_kubectl(&create, &documents).await;
    let said = said.unwrap_or_else(|e| panic!("{e}"));
    said.lines().map(str::to_owned).collect()
}
