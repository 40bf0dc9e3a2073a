//! The template of a revision.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_config_shape::{
    Context, Integer, List, Located, NodeRef, Object, OrNull, Record, Seconds, Shape, WithLocation,
};
use sluice_model::{Backend, BackendTls, DEFAULT_STREAMS_PER_CONNECTION, QueueLimits, RevisionTimeouts};

use super::annotations::{reserve, scaling, start_timeout};
use super::container::{CONTAINER, Decoded};
use super::metadata::{METADATA, Metadata, Unused, check_groups};
use crate::config::revision::{DEFAULT_QUEUE, RevisionDraft};

/// A template, as far as it could be decoded.
#[derive(Debug)]
pub(super) struct TemplateDraft {
    pub(super) metadata: Metadata,
    /// Without a name.
    pub(super) revision: RevisionDraft,
    pub(super) unused: Unused,
}

/// Decodes a template of this configuration. The same for the template that a manifest has now, and for one that a
/// history kept.
pub(super) fn decode(at: &NodeRef, configuration: &str, cx: &mut Context) -> Option<TemplateDraft> {
    let mut template = TEMPLATE.decode(at, cx)?;
    if let Some(container) = &mut template.revision.container {
        configuration.clone_into(&mut container.configuration);
    }
    Some(template)
}

const TEMPLATE: Record<TemplateDraft> = Record {
    name: "RevisionTemplate",
    doc: "What the next revision is made from.",
    decode: |o| {
        let metadata = o.optional("metadata", "Name and annotations.", OrNull(METADATA));
        let spec = o.required("spec", "The container and its limits.", SPEC);
        o.close();
        let metadata = metadata.flatten().unwrap_or_default();
        let spec = spec?;
        let mut unused = spec.unused;
        check_groups(&metadata, &mut unused, o.cx);
        let scaling = scaling(&metadata.annotations, &o.at, &mut unused, o.cx);
        let reserve = reserve(&metadata.annotations, &mut unused, o.cx);
        let start_timeout = start_timeout(&metadata.annotations, o.cx);
        let total = spec.timeouts.total.unwrap_or(KNATIVE_TIMEOUT);
        let mut revision = RevisionDraft {
            name: None,
            backend: spec.container.container.is_some().then_some(Backend::Managed),
            // What starts it follows from `images`, which the compiler knows.
            scaler: None,
            protocol: spec.container.protocol,
            max_streams_per_connection: DEFAULT_STREAMS_PER_CONNECTION,
            tls: BackendTls::default(),
            tls_files: Vec::new(),
            upgrades: None,
            readiness: spec.container.readiness,
            start_timeout,
            container_concurrency: spec.container_concurrency,
            timeouts: spec.timeouts,
            // Requests wait as long as they may take, as at Knative's activator.
            queue: QueueLimits {
                timeout: total,
                ..DEFAULT_QUEUE
            },
            request_headers: BTreeMap::new(),
            scaling: Some(scaling),
            tiers: Vec::new(),
            needs: Vec::new(),
            container: spec.container.container,
        };
        if let Some(container) = &mut revision.container {
            container.reserve = reserve;
        }
        Some(TemplateDraft {
            metadata,
            revision,
            unused,
        })
    },
};

struct Spec {
    container: Decoded,
    container_concurrency: Option<u32>,
    timeouts: RevisionTimeouts,
    unused: Unused,
}

/// Fields of a pod that mean nothing here.
const UNUSED: [&str; 33] = [
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "hostname",
    "imagePullSecrets",
    "initContainers",
    "nodeName",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "shareProcessNamespace",
    "terminationGracePeriodSeconds",
    "tolerations",
];
const MORE_UNUSED: [&str; 3] = ["subdomain", "topologySpreadConstraints", "volumes"];

/// Knative's `revision-timeout-seconds` and `max-revision-timeout-seconds`.
const KNATIVE_TIMEOUT: Duration = Duration::from_secs(300);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);

const SPEC: Record<Spec> = Record {
    name: "RevisionSpec",
    doc: "The container and its limits.",
    decode: |o| {
        let mut unused = Unused::default();
        let containers = o.required("containers", "One container.", WithLocation(List(CONTAINER)));
        let limit = o.optional(
            "containerConcurrency",
            "Requests one instance may hold at once; 0 is no limit.",
            OrNull(Integer { min: 0, max: 1_000 }),
        );
        let seconds = |o: &mut Object<'_>, key, doc| {
            let located = o.optional(key, doc, OrNull(WithLocation(Seconds))).flatten();
            located.and_then(|Located { value, node }| Some(Located { value: value?, node }))
        };
        let total = seconds(
            o,
            "timeoutSeconds",
            "For the whole request, queue included. Default: 300.",
        );
        let start = seconds(o, "responseStartTimeoutSeconds", "Until the response head.");
        let idle = seconds(o, "idleTimeoutSeconds", "Between bytes.");
        unused.ask(o, &UNUSED);
        unused.ask(o, &MORE_UNUSED);
        o.close();
        let limits = [
            (&total, LONGEST_TIMEOUT, "600, the longest that Knative allows"),
            (
                &start,
                total.as_ref().map_or(KNATIVE_TIMEOUT, |t| t.value),
                "timeoutSeconds",
            ),
            (
                &idle,
                total.as_ref().map_or(KNATIVE_TIMEOUT, |t| t.value),
                "timeoutSeconds",
            ),
        ];
        for (timeout, longest, what) in limits {
            if let Some(timeout) = timeout.as_ref().filter(|timeout| timeout.value > longest) {
                let message = format!("{} is above {what}", timeout.value.as_secs());
                o.cx.report(timeout.node.error(message));
            }
        }
        let container = one_container(containers?, o)?;
        unused.append(container.unused.clone());
        Some(Spec {
            container,
            container_concurrency: limit
                .flatten()
                .and_then(|limit| u32::try_from(limit).ok())
                .filter(|limit| *limit > 0),
            timeouts: RevisionTimeouts {
                total: Some(total.map_or(KNATIVE_TIMEOUT, |timeout| timeout.value)),
                response_start: start.map(|timeout| timeout.value),
                idle: idle.map(|timeout| timeout.value),
                max_stream_age: None,
            },
            unused,
        })
    },
};

/// The one container; more than one is a mistake.
fn one_container(containers: Located<Vec<Decoded>>, o: &mut Object<'_>) -> Option<Decoded> {
    let listed = containers.node.list_len();
    let whole = containers.node.whole();
    if listed != Some(1) {
        let message = match listed {
            Some(0) => "there is no container".to_owned(),
            listed => format!(
                "there are {} containers, and one runs here",
                listed.unwrap_or_default()
            ),
        };
        let hint = "what other containers do has to be a service of its own";
        o.cx.report(whole.error(message).hint(hint));
    }
    containers.value.into_iter().next()
}
