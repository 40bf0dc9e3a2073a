//! The status of Ingresses: written once for each change, only when it differs, by the replica that leads.
//!
//! Source of the conditions: `ingress_lifecycle.go` of knative.dev/networking. `Ready` is the conjunction of
//! `NetworkConfigured` and `LoadBalancerReady`; Serving waits for `Ready` at the present generation.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::acks::{LATE, Served};
use super::lease::Leader;
use super::objects::{Condition, Ingress, IngressStatus, LoadBalancer, LoadBalancers};
use super::outage::Outage;
use super::peers::{PeerEvent, Peers};
use super::queue::{StatusQueue, Write};
use super::{ClusterOptions, Statuses};
use crate::ingress::{IngressOutcome, ProblemKind};
use crate::object_name::ObjectName;

/// Writes under way at once.
const WRITES: usize = 16;

/// The pause between looks for Ingresses that are gone.
const PRUNE: Duration = Duration::from_secs(10);

/// Outcomes that were published, with what is served since.
pub(super) type Outcomes = UnboundedReceiver<(IngressOutcome, Served)>;

/// Writes statuses as long as this replica leads: problems at once, Ready when all ready replicas serve the same.
pub(super) async fn write(
    client: Client,
    options: ClusterOptions,
    statuses: Statuses,
    mut leader: watch::Receiver<Leader>,
    mut outcomes: Outcomes,
    mut peers: Peers,
) {
    let addresses = Addresses::of(&options);
    let mut queue = StatusQueue::default();
    let mut writing: JoinSet<(ObjectName, Written)> = JoinSet::new();
    let mut outage = Outage::default();
    let mut prunes = interval(PRUNE);
    prunes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_leader, mut knows_replicas, mut leads) = (false, false, false);
    loop {
        let now = Instant::now();
        if !leads && is_leader && knows_replicas {
            leads = true;
            queue.begin(now);
        }
        let hold = outage.hold(now);
        while leads && hold.is_none() && writing.len() < outage.limit(WRITES) {
            let clock = Timestamp::now().to_string();
            let write = queue.take(&statuses.lock(), &addresses, now, &clock);
            let Some(Write { name, uid, status }) = write else {
                break;
            };
            let api = Api::<Ingress>::namespaced(client.clone(), name.namespace());
            let statuses = Arc::clone(&statuses);
            writing.spawn(async move {
                let written = put(&api, &name, &uid, status, &statuses).await;
                (name, written)
            });
        }
        let timer = hold.or_else(|| queue.timer());
        let timer = timer.filter(|_| leads && writing.len() < outage.limit(WRITES));
        tokio::select! {
            outcome = outcomes.recv() => {
                let Some((outcome, served)) = outcome else { return };
                queue.publish(outcome, served, Instant::now());
            }
            Some(event) = peers.events.recv() => match event {
                PeerEvent::Joined { connection, replica, recipe } => queue.joined(connection, &replica, recipe),
                PeerEvent::Acknowledged { connection, replica, acks, gone } => {
                    queue.acknowledged(connection, &replica, acks, &gone);
                }
                PeerEvent::Left { connection, replica } => queue.left(connection, &replica),
            },
            Some(done) = writing.join_next(), if !writing.is_empty() => {
                if let Ok((name, written)) = done {
                    note(&mut queue, &mut outage, name, written);
                }
            }
            () = sleep_until(timer.unwrap_or(now)), if timer.is_some() => {}
            changed = statuses.changed(), if leads => queue.changed(changed, Instant::now()),
            changed = peers.members.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Some(members) = &*peers.members.borrow_and_update() {
                    knows_replicas = true;
                    queue.ready(&members.others_ready(&options.identity), Instant::now());
                }
            }
            changed = leader.changed() => {
                if changed.is_err() {
                    return;
                }
                is_leader = *leader.borrow_and_update() == Leader::Me;
                // Also where it leads again: it did not meanwhile.
                leads = false;
                queue.end();
            }
            _ = prunes.tick() => {
                let statuses = statuses.lock();
                queue.retain(|name| statuses.contains_key(name));
                peers.table.retain(|name| statuses.contains_key(name));
            }
        }
    }
}

/// What became of a write.
#[derive(Debug)]
enum Written {
    /// It is there, or there is nothing to write it to any more.
    Done,
    /// The API server takes others, and not this one.
    Refused(kube::Error),
    /// The API server takes none.
    Failed(kube::Error),
}

/// Records what became of a write: an outage of the API server is logged once, and so is the refusal of one status.
fn note(queue: &mut StatusQueue, outage: &mut Outage, name: ObjectName, written: Written) {
    let now = Instant::now();
    if !matches!(written, Written::Failed(_)) && outage.answered() {
        tracing::info!("statuses of Ingresses are written again");
    }
    match written {
        Written::Done => queue.written(name, true),
        Written::Refused(error) => {
            let text = name.to_string();
            if queue.refused(name, now) {
                tracing::warn!(ingress = text, %error, "its status is refused, and is tried again now and then");
            }
        }
        Written::Failed(error) => {
            if outage.failed(now) {
                tracing::warn!(ingress = %name, %error, "no status can be written; it is tried again until one can be");
            }
            queue.written(name, false);
        }
    }
}

/// Writes one status.
async fn put(
    api: &Api<Ingress>,
    name: &ObjectName,
    uid: &str,
    status: IngressStatus,
    statuses: &Statuses,
) -> Written {
    // With the uid: the status of an Ingress that was deleted and created again is not for the new one.
    let patch = json!({"metadata": {"uid": uid}, "status": status});
    let written = api
        .patch_status(name.name(), &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    match written {
        Ok(_) => {
            if let Some(seen) = statuses.lock().get_mut(name) {
                *seen = status;
            }
            Written::Done
        }
        // Deleted, or another object of this name.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409 | 422) => Written::Done,
        Err(error) => match &error {
            kube::Error::Api(answer) if answer.code < 500 && answer.code != 429 => Written::Refused(error),
            _ => Written::Failed(error),
        },
    }
}

/// The addresses of the gateway's Services.
#[derive(Debug)]
pub(super) struct Addresses {
    public: LoadBalancers,
    private: LoadBalancers,
}

impl Addresses {
    pub(super) fn of(options: &ClusterOptions) -> Self {
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

/// The reason of a condition that waits for replicas.
const NOT_ACKNOWLEDGED: &str = "ReplicasNotAcknowledged";

/// Replicas that a message names; the others are counted.
const NAMED: usize = 3;

/// Whether a status says Ready for this generation.
pub(super) fn is_ready(status: &IngressStatus, generation: i64) -> bool {
    let mut conditions = status.conditions.iter();
    status.observed_generation == generation
        && conditions.any(|condition| condition.kind == "Ready" && condition.status == "True")
}

/// The status to be written; `None` if it is written already. `late` are the replicas that are waited for in vain.
pub(super) fn next(
    outcome: &IngressOutcome,
    late: &[String],
    seen: &IngressStatus,
    addresses: &Addresses,
    now: &str,
) -> Option<IngressStatus> {
    let (configured, balancer) = match &outcome.problem {
        None if late.is_empty() => (
            true_condition("NetworkConfigured"),
            true_condition("LoadBalancerReady"),
        ),
        None => {
            let balancer = Condition {
                kind: "LoadBalancerReady".to_owned(),
                status: "Unknown".to_owned(),
                last_transition_time: None,
                reason: NOT_ACKNOWLEDGED.to_owned(),
                message: not_acknowledged(late, outcome.object.generation),
            };
            (true_condition("NetworkConfigured"), balancer)
        }
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

fn not_acknowledged(late: &[String], generation: i64) -> String {
    let (one, named) = (late.len() == 1, late.get(..NAMED).unwrap_or(late));
    let mut who = named.join(", ");
    if let Some(more) = late.len().checked_sub(NAMED + 1) {
        who = format!("{who} and {} more", more + 1);
    }
    format!(
        "{} {who} {} not acknowledged generation {generation} for {} s",
        if one { "replica" } else { "replicas" },
        if one { "has" } else { "have" },
        LATE.as_secs()
    )
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
            name: ObjectName::new("d", "hello"),
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
            peers: None,
            knative_namespace: "knative-serving".into(),
            is_activator: false,
        })
    }

    fn of<'s>(status: &'s IngressStatus, kind: &str) -> &'s Condition {
        let mut all = status.conditions.iter();
        all.find(|condition| condition.kind == kind).expect("a condition")
    }

    #[test]
    fn a_status_is_written_once_and_times_change_with_the_status_alone() {
        let first = next(
            &outcome(1, None),
            &[],
            &IngressStatus::default(),
            &addresses(),
            "t1",
        )
        .expect("differs");
        assert_eq!(of(&first, "Ready").status, "True");
        let public = first.public_load_balancer.as_ref().expect("an address");
        assert_eq!(
            public.ingress[0].domain_internal,
            "sluice.sluice-system.svc.cluster.local"
        );
        assert_eq!(next(&outcome(1, None), &[], &first, &addresses(), "t2"), None);

        let second = next(&outcome(2, None), &[], &first, &addresses(), "t2").expect("another generation");
        assert_eq!(second.observed_generation, 2);
        assert_eq!(of(&second, "Ready").last_transition_time.as_deref(), Some("t1"));

        let broken = next(
            &outcome(3, Some(ProblemKind::Missing)),
            &[],
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
    fn ready_is_the_worst_of_both() {
        for (kind, status) in [
            (ProblemKind::Invalid, "False"),
            (ProblemKind::Missing, "Unknown"),
            (ProblemKind::NotReady, "Unknown"),
            (ProblemKind::HostConflict, "False"),
        ] {
            let status_of = next(
                &outcome(1, Some(kind)),
                &[],
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
