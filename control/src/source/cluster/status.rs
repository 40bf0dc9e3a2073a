//! The status of Ingresses: written once for each change, only when it differs, by the replica that leads.
//!
//! Source of the conditions: `ingress_lifecycle.go` of knative.dev/networking. `Ready` is the conjunction of
//! `NetworkConfigured` and `LoadBalancerReady`; Serving waits for `Ready` at the present generation.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::objects::{Condition, Ingress, IngressStatus, LoadBalancer, LoadBalancers};
use super::store::Name;
use super::{ClusterOptions, Statuses};
use crate::ingress::{IngressOutcome, ProblemKind};

/// Writes under way at once.
const WRITES: usize = 16;

/// The pause before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Writes the status of each outcome, as long as this replica leads.
pub(super) async fn write(
    client: Client,
    options: ClusterOptions,
    statuses: Statuses,
    mut leads: watch::Receiver<bool>,
    mut outcomes: UnboundedReceiver<IngressOutcome>,
) {
    let addresses = Addresses::of(&options);
    // The newest outcome of each Ingress, kept by replicas that do not lead as well: the next leader knows them all.
    let mut newest: HashMap<Name, IngressOutcome> = HashMap::new();
    let mut waiting: BTreeSet<Name> = BTreeSet::new();
    let mut writing: JoinSet<(Name, bool)> = JoinSet::new();
    let mut busy: HashSet<Name> = HashSet::new();
    loop {
        if *leads.borrow() {
            while writing.len() < WRITES {
                let Some(name) = waiting.iter().find(|name| !busy.contains(*name)).cloned() else {
                    break;
                };
                waiting.remove(&name);
                let Some(outcome) = newest.get(&name) else {
                    continue;
                };
                // An Ingress that is gone has no status to be written.
                let Some(seen) = statuses.lock().get(&name).cloned() else {
                    newest.remove(&name);
                    continue;
                };
                let Some(next) = next(outcome, &seen, &addresses, &Timestamp::now().to_string()) else {
                    continue;
                };
                busy.insert(name.clone());
                let api = Api::<Ingress>::namespaced(client.clone(), &name.namespace);
                let (statuses, uid) = (Arc::clone(&statuses), outcome.object.uid.clone());
                writing.spawn(async move {
                    let is_done = put(&api, &name, &uid, next, &statuses).await;
                    (name, is_done)
                });
            }
        }
        tokio::select! {
            outcome = outcomes.recv() => {
                let Some(outcome) = outcome else { return };
                let name = Name {
                    namespace: outcome.object.namespace.clone(),
                    name: outcome.object.name.clone(),
                };
                newest.insert(name.clone(), outcome);
                waiting.insert(name);
                forget_gone(&mut newest, &statuses.lock());
            }
            Some(done) = writing.join_next(), if !writing.is_empty() => {
                if let Ok((name, is_done)) = done {
                    busy.remove(&name);
                    if !is_done {
                        waiting.insert(name);
                    }
                }
            }
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                if *leads.borrow_and_update() {
                    waiting.extend(newest.keys().cloned());
                }
            }
        }
    }
}

/// Drops the outcomes of Ingresses that are gone, when these may be half of all: without a lead nothing else does.
fn forget_gone(newest: &mut HashMap<Name, IngressOutcome>, known: &HashMap<Name, IngressStatus>) {
    if newest.len() > 2 * known.len() + 64 {
        newest.retain(|name, _| known.contains_key(name));
    }
}

/// Writes one status. Returns `false` after a failure, when it is to be tried again.
async fn put(api: &Api<Ingress>, name: &Name, uid: &str, status: IngressStatus, statuses: &Statuses) -> bool {
    // With the uid: the status of an Ingress that was deleted and created again is not for the new one.
    let patch = json!({"metadata": {"uid": uid}, "status": status});
    let written = api
        .patch_status(&name.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    match written {
        Ok(_) => {
            if let Some(seen) = statuses.lock().get_mut(name) {
                *seen = status;
            }
            true
        }
        // Deleted, or another object of this name.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409 | 422) => true,
        Err(error) => {
            tracing::warn!(ingress = %name, %error, "its status cannot be written");
            tokio::time::sleep(RETRY).await;
            false
        }
    }
}

/// The addresses of the gateway's Services.
#[derive(Debug)]
struct Addresses {
    public: LoadBalancers,
    private: LoadBalancers,
}

impl Addresses {
    fn of(options: &ClusterOptions) -> Self {
        // Serving takes one address at most, and makes Services of the name that is inside the cluster.
        let of = |service: &str| LoadBalancers {
            ingress: vec![LoadBalancer {
                domain_internal: format!("{service}.{}.svc.{}", options.namespace, options.cluster_domain),
            }],
        };
        Self {
            public: of("sluice"),
            private: of("sluice-internal"),
        }
    }
}

/// The status to be written; `None` if it is written already.
fn next(
    outcome: &IngressOutcome,
    seen: &IngressStatus,
    addresses: &Addresses,
    now: &str,
) -> Option<IngressStatus> {
    let (configured, balancer) = match &outcome.problem {
        None => (
            true_condition("NetworkConfigured"),
            true_condition("LoadBalancerReady"),
        ),
        Some(problem) => {
            let reason = problem.kind.reason();
            let condition = |kind: &str, status: &str| Condition {
                kind: kind.to_owned(),
                status: status.to_owned(),
                last_transition_time: None,
                reason: reason.to_owned(),
                message: problem.message.clone(),
            };
            match problem.kind {
                ProblemKind::HostConflict => (
                    true_condition("NetworkConfigured"),
                    condition("LoadBalancerReady", "False"),
                ),
                ProblemKind::NotReady => (
                    true_condition("NetworkConfigured"),
                    condition("LoadBalancerReady", "Unknown"),
                ),
                ProblemKind::Invalid => (
                    condition("NetworkConfigured", "False"),
                    condition("LoadBalancerReady", "Unknown"),
                ),
                ProblemKind::Missing => (
                    condition("NetworkConfigured", "Unknown"),
                    condition("LoadBalancerReady", "Unknown"),
                ),
            }
        }
    };
    let ready = ready(&configured, &balancer);
    let mut conditions = vec![balancer, configured, ready];
    for condition in &mut conditions {
        let known = seen.conditions.iter().find(|known| known.kind == condition.kind);
        let same = known.filter(|known| known.status == condition.status);
        condition.last_transition_time = match same {
            Some(known) => known.last_transition_time.clone(),
            None => Some(now.to_owned()),
        };
    }
    let next = IngressStatus {
        observed_generation: outcome.object.generation,
        conditions,
        // Addresses stay where they are known: a problem does not take them away.
        public_load_balancer: Some(addresses.public.clone()),
        private_load_balancer: Some(addresses.private.clone()),
    };
    (next != *seen).then_some(next)
}

fn true_condition(kind: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: "True".to_owned(),
        ..Condition::default()
    }
}

/// The conjunction: false if one is false, else unknown if one is unknown.
fn ready(configured: &Condition, balancer: &Condition) -> Condition {
    let both = [configured, balancer];
    let worst = ["False", "Unknown"]
        .iter()
        .find_map(|status| both.iter().find(|condition| condition.status == *status));
    match worst {
        None => true_condition("Ready"),
        Some(worst) => Condition {
            kind: "Ready".to_owned(),
            ..(*worst).clone()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::{IngressObject, IngressProblem};

    fn outcome(generation: i64, problem: Option<ProblemKind>) -> IngressOutcome {
        let problem = problem.map(|kind| IngressProblem::new(kind, "why"));
        let object = IngressObject {
            namespace: "d".into(),
            name: "hello".into(),
            uid: "u".into(),
            generation,
            service: None,
            problem: problem.clone(),
        };
        IngressOutcome {
            object: Arc::new(object),
            problem,
        }
    }

    fn addresses() -> Addresses {
        Addresses::of(&ClusterOptions {
            namespace: "sluice-system".into(),
            identity: "me".into(),
            cluster_domain: "cluster.local".into(),
        })
    }

    fn of<'s>(status: &'s IngressStatus, kind: &str) -> &'s Condition {
        let mut all = status.conditions.iter();
        all.find(|condition| condition.kind == kind).expect("a condition")
    }

    #[test]
    fn a_status_is_written_once_and_times_change_with_the_status_alone() {
        let first = next(&outcome(1, None), &IngressStatus::default(), &addresses(), "t1").expect("differs");
        assert_eq!(of(&first, "Ready").status, "True");
        let public = first.public_load_balancer.as_ref().expect("an address");
        assert_eq!(
            public.ingress[0].domain_internal,
            "sluice.sluice-system.svc.cluster.local"
        );
        assert_eq!(next(&outcome(1, None), &first, &addresses(), "t2"), None);

        let second = next(&outcome(2, None), &first, &addresses(), "t2").expect("another generation");
        assert_eq!(second.observed_generation, 2);
        assert_eq!(of(&second, "Ready").last_transition_time.as_deref(), Some("t1"));

        let broken = next(
            &outcome(3, Some(ProblemKind::Missing)),
            &second,
            &addresses(),
            "t3",
        );
        let broken = broken.expect("differs");
        let ready = of(&broken, "Ready");
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_str()),
            ("Unknown", "BackendMissing")
        );
        assert_eq!(ready.last_transition_time.as_deref(), Some("t3"));
    }

    #[test]
    fn outcomes_of_ingresses_that_are_gone_are_not_kept() {
        let name = |n: usize| Name {
            namespace: "d".into(),
            name: n.to_string(),
        };
        let known = HashMap::from([(name(0), IngressStatus::default())]);
        let mut newest = HashMap::new();
        for n in 0..1_000 {
            newest.insert(name(n), outcome(1, None));
            forget_gone(&mut newest, &known);
            assert!(newest.len() <= 66 && newest.contains_key(&name(0)));
        }
    }

    #[test]
    fn ready_is_the_worst_of_both() {
        for (kind, status) in [
            (ProblemKind::Invalid, "False"),
            (ProblemKind::Missing, "Unknown"),
            (ProblemKind::NotReady, "Unknown"),
            (ProblemKind::HostConflict, "False"),
        ] {
            let status_of = next(
                &outcome(1, Some(kind)),
                &IngressStatus::default(),
                &addresses(),
                "t",
            );
            assert_eq!(
                of(&status_of.expect("differs"), "Ready").status,
                status,
                "{kind:?}"
            );
        }
    }
}
