//! What routing needs of the Revisions of Knative Serving. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Probe, ProbeKind, RevisionOwner, RevisionSettings, RevisionTimeouts};

use super::objects::{OF_CONFIGURATION, OF_SERVICE, Revision, RevisionObject};
use super::pods::refusal;
use crate::object_name::ObjectName;

/// The timeout of a probe of a Pod. The activator's 300 ms are too short for a Pod that shares a busy CPU while it starts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How much later than queue-proxy's the timeouts of a revision end here. Both have the same three, and two timers of one length race:
/// queue-proxy's, which starts when it gets the request, is to win, for its answer is what Knative's clients and conformance tests
/// know. A Pod that does not even time out is given up all the same.
const AFTER_QUEUE_PROXY: Duration = Duration::from_secs(1);

/// Settings that are kept though no Revision has them any more, until there are twice as many.
const SPARE: usize = 64;

/// A Revision, cut down.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KnownRevision {
    /// Its settings, but for the protocol, which is its Service's.
    pub(super) settings: Arc<RevisionSettings>,
    /// Whether queue-proxy knows readiness as well as the kubelet does.
    pub(super) may_be_probed: bool,
    /// Why no Pod of it can be created, as its status says.
    pub(super) refusal: Option<Arc<str>>,
    /// Whose it is, as its labels say.
    pub(super) owner: Arc<RevisionOwner>,
}

/// All Revisions.
#[derive(Debug, Default)]
pub(super) struct KnownRevisions {
    all: HashMap<ObjectName, KnownRevision>,
    /// The settings of all of them: most have the same.
    settings: HashMap<Numbers, Arc<RevisionSettings>>,
}

/// What a Revision says about its limits and timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Numbers {
    concurrency: Option<i64>,
    total: Option<i64>,
    response_start: Option<i64>,
    idle: Option<i64>,
}

impl KnownRevisions {
    /// The Revision of this name.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&KnownRevision> {
        self.all.get(name)
    }

    /// The names of all Revisions.
    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.all.keys()
    }

    /// Records a Revision. `defaults` are the settings of one that says nothing. Returns whether it is another one than before.
    pub(super) fn apply(&mut self, revision: Revision, defaults: &RevisionSettings) -> bool {
        let name = ObjectName::of(&revision);
        let labels = revision.metadata.labels.unwrap_or_default();
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let known = KnownRevision {
            settings: self.settings(&revision.spec, defaults),
            may_be_probed: may_be_probed(&revision.spec),
            refusal: refusal(&revision.status.conditions),
            owner: Arc::new(RevisionOwner {
                service: label(OF_SERVICE),
                configuration: label(OF_CONFIGURATION),
            }),
        };
        let has_changed = self.all.get(&name) != Some(&known);
        if has_changed {
            self.all.insert(name, known);
        }
        has_changed
    }

    /// Forgets a Revision. Returns whether it was there.
    pub(super) fn forget(&mut self, name: &ObjectName) -> bool {
        self.all.remove(name).is_some()
    }

    fn settings(&mut self, spec: &RevisionObject, defaults: &RevisionSettings) -> Arc<RevisionSettings> {
        if self.settings.len() >= 2 * SPARE {
            self.settings
                .retain(|_, settings| Arc::strong_count(settings) > 1);
        }
        let numbers = Numbers {
            concurrency: spec.container_concurrency,
            total: spec.timeout_seconds,
            response_start: spec.response_start_timeout_seconds,
            idle: spec.idle_timeout_seconds,
        };
        let settings = self.settings.entry(numbers);
        Arc::clone(settings.or_insert_with(|| Arc::new(settings_of(numbers, defaults))))
    }
}

/// Whether queue-proxy knows readiness as well as the kubelet does: not where the kubelet runs a command, or a startup
/// probe. Source: `pkg/activator/net/revision_backends.go` of knative.dev/serving.
fn may_be_probed(revision: &RevisionObject) -> bool {
    revision.containers.iter().all(|container| {
        let probe = container.readiness_probe.as_ref();
        container.startup_probe.is_none() && probe.is_none_or(|probe| probe.exec.is_none())
    })
}

/// The settings of a revision: its own limits, timeouts and probes, which activator and queue-proxy enforce as well.
fn settings_of(numbers: Numbers, defaults: &RevisionSettings) -> RevisionSettings {
    let seconds = |value: Option<i64>| {
        let value = value.and_then(|seconds| u64::try_from(seconds).ok());
        let value = value.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        value.map(|timeout| timeout + AFTER_QUEUE_PROXY)
    };
    let concurrency = numbers.concurrency.and_then(|limit| u32::try_from(limit).ok());
    RevisionSettings {
        container_concurrency: concurrency.filter(|limit| *limit > 0),
        timeouts: RevisionTimeouts {
            total: seconds(numbers.total),
            response_start: seconds(numbers.response_start),
            idle: seconds(numbers.idle),
            max_stream_age: None,
        },
        readiness: Some(Probe {
            kind: ProbeKind::QueueProxy,
            period: PROBE_TIMEOUT,
            timeout: PROBE_TIMEOUT,
            failure_threshold: 1,
        }),
        ..defaults.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::cluster::settings;

    fn revision(name: &str, concurrency: usize) -> Revision {
        let spec = json!({"containerConcurrency": concurrency, "timeoutSeconds": 300});
        let object = json!({"metadata": {"namespace": "d", "name": name}, "spec": spec});
        serde_json::from_value(object).expect("a Revision")
    }

    #[test]
    fn equal_settings_are_there_once_and_those_of_nobody_are_forgotten() {
        let (mut known, defaults) = (KnownRevisions::default(), settings());
        for name in ["a", "b"] {
            assert!(known.apply(revision(name, 7), &defaults));
            assert!(!known.apply(revision(name, 7), &defaults));
        }
        let of = |known: &KnownRevisions, name: &str| {
            let found = known.get(&ObjectName::new("d", name)).expect("a Revision");
            Arc::clone(&found.settings)
        };
        assert!(Arc::ptr_eq(&of(&known, "a"), &of(&known, "b")));
        assert_eq!(of(&known, "a").container_concurrency, Some(7));
        for limit in 0..10 * SPARE {
            assert!(known.apply(revision("a", 100 + limit), &defaults));
        }
        assert!(known.settings.len() <= 2 * SPARE, "{}", known.settings.len());
        assert!(known.forget(&ObjectName::new("d", "a")) && !known.forget(&ObjectName::new("d", "a")));
    }
}
