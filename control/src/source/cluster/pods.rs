//! Pods that cannot become ready: which faults waiting does not heal. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::objects::{Condition, ContainerStatus, OF_REVISION, Pod};
use super::store::Update;
use crate::object_name::ObjectName;

/// Tries after which a fault that a retry may heal counts: of pulling an image, and of starting a program.
const TRIES: u32 = 2;

/// The Pods of revisions, as far as they have a fault.
#[derive(Debug, Default)]
pub(super) struct FaultyPods {
    pods: HashMap<ObjectName, BTreeMap<ObjectName, Fault>>,
    revision_of: HashMap<ObjectName, ObjectName>,
}

/// The fault of one Pod.
#[derive(Debug, Default)]
struct Fault {
    /// Tries of pulling an image that failed.
    pulls: u32,
    is_pulling: bool,
    /// The fault, if waiting does not heal it.
    is_final: Option<String>,
}

impl FaultyPods {
    /// Records a change. Returns the revisions whose failure may be another one.
    pub(super) fn update(&mut self, update: Update<Pod>) -> HashSet<ObjectName> {
        let mut touched = HashSet::new();
        match update {
            Update::Apply(pod) => self.apply(&pod, &mut touched),
            Update::Delete(pod) => self.forget(&ObjectName::of(&pod), &mut touched),
            Update::List(all) => {
                let names: HashSet<ObjectName> = all.iter().map(ObjectName::of).collect();
                let gone = self.revision_of.keys().filter(|name| !names.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.forget(&name, &mut touched);
                }
                all.iter().for_each(|pod| self.apply(pod, &mut touched));
            }
        }
        touched
    }

    /// Why waiting for a revision does not help: every Pod of it has a fault that waiting does not heal, or there is none,
    /// and `refusal` says why none can be created.
    pub(super) fn failure(&self, revision: &ObjectName, refusal: Option<&Arc<str>>) -> Option<Arc<str>> {
        let Some(pods) = self.pods.get(revision) else {
            return refusal.cloned();
        };
        let faults: Option<Vec<&str>> = pods.values().map(|pod| pod.is_final.as_deref()).collect();
        // Of several Pods the first one's is enough.
        faults?.first().map(|fault| Arc::from(*fault))
    }

    fn apply(&mut self, pod: &Pod, touched: &mut HashSet<ObjectName>) {
        let name = ObjectName::of(pod);
        let labels = pod.metadata.labels.as_ref();
        let revision = labels.and_then(|labels| labels.get(OF_REVISION));
        // A Pod that is being deleted says nothing about its successors.
        let (Some(revision), None) = (revision, &pod.metadata.deletion_timestamp) else {
            return self.forget(&name, touched);
        };
        let revision = ObjectName::new(name.namespace(), revision);
        self.revision_of.insert(name.clone(), revision.clone());
        let fault = self
            .pods
            .entry(revision.clone())
            .or_default()
            .entry(name)
            .or_default();
        fault.look(&pod.status.container_statuses);
        touched.insert(revision);
    }

    fn forget(&mut self, name: &ObjectName, touched: &mut HashSet<ObjectName>) {
        let Some(revision) = self.revision_of.remove(name) else {
            return;
        };
        if let Some(pods) = self.pods.get_mut(&revision) {
            pods.remove(name);
            if pods.is_empty() {
                self.pods.remove(&revision);
            }
        }
        touched.insert(revision);
    }
}

impl Fault {
    fn look(&mut self, containers: &[ContainerStatus]) {
        let waiting = containers
            .iter()
            .filter_map(|container| Some((container, container.state.waiting.as_ref()?)));
        let was_pulling = std::mem::take(&mut self.is_pulling);
        self.is_final = None;
        let is_any = |reason| waiting.clone().any(|(_, waiting)| waiting.reason == reason);
        // A try of the Pod, of however many containers: a registry that is away fails all of them at once.
        if is_any("ErrImagePull") {
            self.pulls += u32::from(!was_pulling);
            self.is_pulling = true;
        }
        // Said after a try that failed, which a gateway that has just started has not seen.
        if is_any("ImagePullBackOff") {
            self.pulls = self.pulls.max(1);
        }
        for (container, waiting) in waiting {
            let is_final = match waiting.reason.as_str() {
                "InvalidImageName" | "CreateContainerConfigError" => true,
                "ErrImagePull" | "ImagePullBackOff" => self.pulls >= TRIES,
                "CrashLoopBackOff" => container.restart_count >= i64::from(TRIES),
                _ => false,
            };
            if is_final && self.is_final.is_none() {
                let tries = match waiting.reason.as_str() {
                    "CrashLoopBackOff" => format!(" after {} restarts", container.restart_count),
                    _ => String::new(),
                };
                let message = waiting.message.lines().next().unwrap_or_default();
                let colon = if message.is_empty() { "" } else { ": " };
                self.is_final = Some(format!("{}{tries}{colon}{message}", waiting.reason));
            }
        }
    }
}

/// Why no Pod of a revision can be created: a quota, or whoever admits objects, refuses each. The ReplicaSet's controller
/// says so to the Deployment, and Serving's to the Revision (`PropagateDeploymentStatus`).
pub(super) fn refusal(conditions: &[Condition]) -> Option<Arc<str>> {
    let mut conditions = conditions.iter();
    let refused = conditions.find(|condition| {
        condition.kind == "ResourcesAvailable"
            && condition.status == "False"
            && condition.reason == "FailedCreate"
    })?;
    let message = refused.message.lines().next().unwrap_or_default();
    Some(Arc::from(format!("{}: {message}", refused.reason)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn revision() -> ObjectName {
        ObjectName::new("d", "r")
    }

    fn pod(name: &str, reason: &str, restarts: i64) -> Update<Pod> {
        let waiting = if reason.is_empty() {
            json!(null)
        } else {
            json!({"reason": reason, "message": "why\nmore"})
        };
        let pod = json!({
            "metadata": {"namespace": "d", "name": name, "labels": {"serving.knative.dev/revision": "r"}},
            "status": {"containerStatuses": [
                {"restartCount": 0, "state": {}}, {"restartCount": restarts, "state": {"waiting": waiting}}]}
        });
        Update::Apply(serde_json::from_value(pod).expect("a Pod"))
    }

    fn failure(pods: &FaultyPods) -> Option<String> {
        pods.failure(&revision(), None).map(|why| why.to_string())
    }

    #[test]
    fn some_faults_are_final_at_once_and_others_after_two_tries() {
        let mut pods = FaultyPods::default();
        assert_eq!(failure(&pods), None);
        assert_eq!(
            pods.update(pod("a", "ContainerCreating", 0)),
            HashSet::from([revision()])
        );
        assert_eq!(failure(&pods), None);
        pods.update(pod("a", "InvalidImageName", 0));
        assert_eq!(failure(&pods).as_deref(), Some("InvalidImageName: why"));
        pods.update(pod("a", "ErrImagePull", 0));
        assert_eq!(failure(&pods), None);
        // The same try, told twice.
        pods.update(pod("a", "ErrImagePull", 0));
        pods.update(pod("a", "ImagePullBackOff", 0));
        assert_eq!(failure(&pods), None);
        pods.update(pod("a", "ErrImagePull", 0));
        assert_eq!(failure(&pods).as_deref(), Some("ErrImagePull: why"));
        pods.update(pod("a", "", 0));
        assert_eq!(failure(&pods), None);
        pods.update(pod("a", "CrashLoopBackOff", 1));
        assert_eq!(failure(&pods), None);
        pods.update(pod("a", "CrashLoopBackOff", 2));
        assert_eq!(
            failure(&pods).as_deref(),
            Some("CrashLoopBackOff after 2 restarts: why")
        );
    }

    #[test]
    fn a_try_is_one_of_the_pod_and_not_of_each_of_its_containers() {
        let both = |reason: &str| {
            let waiting = json!({"state": {"waiting": {"reason": reason}}});
            let pod = json!({
                "metadata": {"namespace": "d", "name": "a", "labels": {"serving.knative.dev/revision": "r"}},
                "status": {"containerStatuses": [waiting, waiting]}
            });
            Update::Apply(serde_json::from_value(pod).expect("a Pod"))
        };
        let mut pods = FaultyPods::default();
        pods.update(both("ErrImagePull"));
        pods.update(both("ImagePullBackOff"));
        assert_eq!(failure(&pods), None);
        pods.update(both("ErrImagePull"));
        assert_eq!(failure(&pods).as_deref(), Some("ErrImagePull"));
        // Seen for the first time between two tries.
        let mut pods = FaultyPods::default();
        pods.update(both("ImagePullBackOff"));
        assert_eq!(failure(&pods), None);
        pods.update(both("ErrImagePull"));
        assert_eq!(failure(&pods).as_deref(), Some("ErrImagePull"));
    }

    #[test]
    fn a_refusal_counts_while_there_is_no_pod() {
        let conditions = |status: &str, reason: &str| -> Vec<Condition> {
            let message = "pods \"r-1\" is forbidden: exceeded quota: q\nmore";
            let refused = json!([{"type": "Ready", "status": "False", "reason": "FailedCreate"},
                {"type": "ResourcesAvailable", "status": status, "reason": reason, "message": message}]);
            serde_json::from_value(refused).expect("conditions")
        };
        assert_eq!(refusal(&conditions("Unknown", "FailedCreate")), None);
        assert_eq!(refusal(&conditions("False", "Unschedulable")), None);
        let refused = refusal(&conditions("False", "FailedCreate"));
        assert_eq!(
            refused.as_deref(),
            Some("FailedCreate: pods \"r-1\" is forbidden: exceeded quota: q")
        );
        let mut pods = FaultyPods::default();
        assert_eq!(pods.failure(&revision(), refused.as_ref()), refused);
        // One more was refused, and one is there.
        pods.update(pod("a", "", 0));
        assert_eq!(pods.failure(&revision(), refused.as_ref()), None);
    }

    #[test]
    fn one_pod_that_may_start_is_worth_waiting_for() {
        let mut pods = FaultyPods::default();
        pods.update(pod("a", "InvalidImageName", 0));
        pods.update(pod("b", "", 0));
        assert_eq!(failure(&pods), None);
        let Update::Apply(b) = pod("b", "", 0) else {
            unreachable!()
        };
        pods.update(Update::Delete(b));
        assert!(failure(&pods).is_some());
        pods.update(Update::List(Vec::new()));
        assert_eq!(failure(&pods), None);
    }
}
