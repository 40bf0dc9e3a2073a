//! Revisions: backends, scaling, timeouts and queues.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use sluice_config_shape::{
    Choice, DurationRange, Integer, List, Located, NodeRef, Object, Record, Seconds, Size, Table,
    WithLocation,
};
use sluice_model::{
    Backend, BackendTls, DEFAULT_STREAMS_PER_CONNECTION, EndpointTarget, Probe, ProbeKind, Protocol,
    QueueLimits, RevisionTimeouts,
};

use super::autoscaling::{SCALING, Scaling};
use super::backend_tls::{BACKEND_TLS, check_wire};
use super::manifest::ContainerDraft;
use super::names::{
    BACKEND_URL, ENDPOINT, HeaderText, LABEL, PROBE_PATH, UPGRADE, WEBHOOK_URL, settable_header,
};
use super::process::PROCESS;
use super::tiers::{NEED, NeedName, TIER, TierDraft, as_backend, check_tiers};
use crate::plan::{ProcessSpec, ScalerSpec, WebhookSpec};

/// A revision, as far as it could be decoded.
#[derive(Debug, Clone)]
pub(crate) struct RevisionDraft {
    /// `None` in a shorthand service, and after a mistake.
    pub(crate) name: Option<Located<String>>,
    /// `None` after a mistake.
    pub(crate) backend: Option<Backend>,
    pub(crate) scaler: Option<ScalerSpec>,
    pub(crate) protocol: Protocol,
    pub(crate) max_streams_per_connection: u32,
    pub(crate) tls: BackendTls,
    /// Files that the data plane reads.
    pub(crate) tls_files: Vec<Located<PathBuf>>,
    pub(crate) upgrades: Option<Vec<String>>,
    pub(crate) readiness: Option<Probe>,
    pub(crate) start_timeout: Duration,
    pub(crate) container_concurrency: Option<u32>,
    pub(crate) timeouts: RevisionTimeouts,
    pub(crate) queue: QueueLimits,
    pub(crate) request_headers: BTreeMap<String, String>,
    pub(crate) scaling: Option<Located<Scaling>>,
    /// In their order; empty for a revision of one kind.
    pub(crate) tiers: Vec<TierDraft>,
    pub(crate) needs: Vec<Located<NeedName>>,
    /// The container of a manifest: `images` say what it runs as, which the compiler makes the scaler.
    pub(crate) container: Option<ContainerDraft>,
}

impl RevisionDraft {
    /// What starts instances, with the limit of one, by tier: one entry for a revision without tiers.
    pub(crate) fn scalers(&self) -> Vec<(Option<&ScalerSpec>, Option<u32>)> {
        if self.tiers.is_empty() {
            return vec![(self.scaler.as_ref(), self.container_concurrency)];
        }
        let tiers = self.tiers.iter();
        tiers
            .map(|tier| (tier.scaler.as_ref(), tier.container_concurrency))
            .collect()
    }
}

/// The keys of backends. One of them in a service makes the service a shorthand.
pub(super) const BACKENDS: [&str; 5] = ["endpoints", "url", "process", "activation", "tiers"];

pub(super) const REVISION: Record<RevisionDraft> = Record {
    name: "Revision",
    doc: "One version of a service: where its requests go and how.",
    decode: |o| {
        let name = o.required(
            "name",
            "Unique in its namespace, across services.",
            WithLocation(LABEL),
        );
        let mut draft = revision_keys(o);
        draft.name = name;
        o.want_one_of(
            &BACKENDS,
            "the revision has no backend",
            "give it endpoints, a url, or a process",
        );
        Some(draft)
    },
};

/// Decodes every key of a revision but its name; also for a shorthand service.
pub(super) fn revision_keys(o: &mut Object<'_>) -> RevisionDraft {
    let endpoints = o.optional(
        "endpoints",
        "Fixed addresses: host:port, [::1]:port or unix:/path. Names are resolved again and again.",
        List(WithLocation(ENDPOINT)),
    );
    let url = o.optional(
        "url",
        "A backend behind a URL: Host is rewritten, TLS verified.",
        WithLocation(BACKEND_URL),
    );
    let process = o.optional("process", "A local process that is started on demand.", PROCESS);
    let activation = o.optional(
        "activation",
        "What starts instances elsewhere on demand.",
        ACTIVATION,
    );
    let tiers = o.optional(
        "tiers",
        "Endpoints of several kinds; the last tier with a ready one serves.",
        List(WithLocation(TIER)),
    );
    let needs = o.optional(
        "needs",
        "Revisions, or services: started and ready before this one, held above zero while it runs.",
        List(WithLocation(NEED)),
    );
    let readiness = o.optional(
        "readinessProbe",
        "How readiness is found out. Default: a TCP connect; for endpoints: off.",
        PROBE,
    );
    let tls = o.optional("tls", "TLS towards an https url.", BACKEND_TLS);
    let tls = tls.unwrap_or_default();
    let draft = RevisionDraft {
        name: None,
        backend: None,
        scaler: None,
        protocol: o.or(
            "protocol",
            "The protocol spoken to endpoints; h2 is HTTP/2 over TLS, for an https url.",
            Choice(&[
                ("http1", Protocol::Http1),
                ("h2c", Protocol::H2c),
                ("h2", Protocol::H2),
            ]),
            Protocol::Http1,
        ),
        max_streams_per_connection: streams(o),
        tls: tls.tls,
        tls_files: tls.files,
        upgrades: o.optional(
            "upgrades",
            "Protocols that a backend may be asked to switch to (Upgrade); websocket always. Default: any but TLS, h2 and h2c.",
            List(UPGRADE),
        ),
        readiness: readiness.flatten(),
        start_timeout: o.or(
            "startTimeout",
            "The longest an instance may take to become ready.",
            DurationRange::POSITIVE,
            Duration::from_secs(60),
        ),
        container_concurrency: concurrency(o),
        timeouts: timeouts(o),
        queue: o
            .optional("queue", "Bounds of this revision's queue.", QUEUE)
            .unwrap_or(DEFAULT_QUEUE),
        request_headers: o
            .optional("requestHeaders", "Headers of requests to this revision.", HEADERS)
            .unwrap_or_default(),
        scaling: o.optional(
            "autoscaling",
            "How it is scaled, under the names of Knative's annotations.",
            WithLocation(SCALING),
        ),
        tiers: Vec::new(),
        needs: needs.unwrap_or_default(),
        container: None,
    };
    if o.has("tiers") {
        let before = o.cx.errors();
        o.only_one_of(&["endpoints", "url", "process", "tiers"]);
        if let Some(key) = o.key("activation") {
            let diagnostic = key.error("'activation' goes into the tier that it is for");
            o.cx.report(diagnostic.hint("move it into one of the tiers"));
        }
        let drafts = check_tiers(o, tiers.unwrap_or_default(), &draft);
        let sound = o.cx.errors() == before && drafts.iter().all(|tier| tier.backend.is_some());
        let backend = sound.then(|| as_backend(&drafts));
        if let Some(backend) = &backend {
            check_wire(o, Some(backend), draft.protocol);
        }
        return RevisionDraft {
            backend,
            tiers: drafts,
            ..draft
        };
    }
    let (backend, scaler) = backend(o, endpoints, url, process, activation);
    check_wire(o, backend.as_ref(), draft.protocol);
    RevisionDraft {
        backend,
        scaler,
        ..draft
    }
}

pub(super) fn concurrency(o: &mut Object<'_>) -> Option<u32> {
    let limit = o.or(
        "containerConcurrency",
        "Requests one endpoint may hold at once; 0 is no limit.",
        Integer {
            min: 0,
            max: 1_000_000,
        },
        0,
    );
    u32::try_from(limit).ok().filter(|limit| *limit > 0)
}

fn streams(o: &mut Object<'_>) -> u32 {
    let streams = o.or(
        "maxStreamsPerConnection",
        "Requests on one HTTP/2 connection to a backend at once, unless the backend allows fewer.",
        Integer { min: 1, max: 10_000 },
        u64::from(DEFAULT_STREAMS_PER_CONNECTION),
    );
    u32::try_from(streams).unwrap_or(DEFAULT_STREAMS_PER_CONNECTION)
}

fn timeouts(o: &mut Object<'_>) -> RevisionTimeouts {
    RevisionTimeouts {
        total: o.or(
            "timeoutSeconds",
            "For the whole request, queue included; 0 is none.",
            Seconds,
            None,
        ),
        response_start: o.or(
            "responseStartTimeoutSeconds",
            "Until the response head, queue included; 0 is none.",
            Seconds,
            Some(Duration::from_secs(300)),
        ),
        idle: o.or("idleTimeoutSeconds", "Between bytes; 0 is none.", Seconds, None),
        max_stream_age: Some(o.or(
            "maxStreamAge",
            "After which a stream is asked to end, and then ended; 0s is never.",
            DurationRange::ANY,
            Duration::ZERO,
        ))
        .filter(|age| !age.is_zero()),
    }
}

pub(super) type BackendAndScaler = (Option<Backend>, Option<ScalerSpec>);

/// Combines the backend keys into backend and scaler; `None` after a mistake.
pub(super) fn backend(
    o: &mut Object<'_>,
    endpoints: Option<Vec<Located<EndpointTarget>>>,
    url: Option<Located<sluice_model::UrlBackend>>,
    process: Option<ProcessSpec>,
    activation: Option<Option<WebhookSpec>>,
) -> BackendAndScaler {
    let before = o.cx.errors();
    let which = o.only_one_of(&["endpoints", "url", "process"]);
    if let (Some("url" | "process"), Some(key)) = (which, o.key("activation")) {
        let message = "'activation' goes with endpoints, or stands alone";
        let hint = "a process is started by the gateway itself, and a url is always there";
        o.cx.report(key.error(message).hint(hint));
    }
    if o.cx.errors() != before {
        return (None, None);
    }
    let webhook = activation.flatten();
    match which {
        Some("endpoints") => {
            let Some(endpoints) = endpoints else {
                return (None, None);
            };
            let mut first: HashMap<&EndpointTarget, &NodeRef> = HashMap::new();
            for endpoint in &endpoints {
                if let Some(first) = first.get(&endpoint.value) {
                    let message = format!("the endpoint '{}' is listed twice", endpoint.value);
                    let diagnostic = endpoint.node.error(message).hint("leave one out");
                    o.cx.report(diagnostic.related(first.location(), "it is listed here first"));
                } else {
                    first.insert(&endpoint.value, &endpoint.node);
                }
            }
            let listed = o.key("endpoints");
            if let (true, Some(key)) = (endpoints.is_empty() && webhook.is_none(), listed)
                && o.cx.errors() == before
                && key_is_empty(o)
            {
                let diagnostic = key.error("the list of endpoints is empty");
                o.cx.report(diagnostic.hint("give at least one: host:port"));
            }
            let backend = Backend::Static {
                targets: endpoints.into_iter().map(|e| e.value).collect(),
                activated: webhook.is_some(),
            };
            (Some(backend), webhook.map(ScalerSpec::Webhook))
        }
        Some("url") => {
            let Some(url) = url else { return (None, None) };
            (Some(Backend::Url(url.value)), None)
        }
        Some(_) => match process {
            Some(process) => (Some(Backend::Managed), Some(ScalerSpec::Process(process))),
            None => (None, None),
        },
        None => match webhook {
            Some(webhook) => (Some(Backend::Managed), Some(ScalerSpec::Webhook(webhook))),
            None => (None, None),
        },
    }
}

/// Whether the list of endpoints is empty in the file, not only after mistakes.
fn key_is_empty(o: &Object<'_>) -> bool {
    o.value("endpoints").is_some_and(|v| v.list_len() == Some(0))
}

pub(crate) const DEFAULT_QUEUE: QueueLimits = QueueLimits {
    depth: 10_000,
    bytes: 64 << 20,
    timeout: Duration::from_secs(60),
};

const QUEUE: Record<QueueLimits> = Record {
    name: "RevisionQueue",
    doc: "Bounds of one revision's queue. Bodies are not read while a request waits.",
    decode: |o| {
        let depth = Integer {
            min: 1,
            max: 10_000_000,
        };
        Some(QueueLimits {
            depth: super::to_usize(o.or("depth", "Requests.", depth, 10_000)),
            bytes: o.or(
                "bytes",
                "What they hold in memory.",
                Size {
                    min: 1 << 10,
                    max: 1 << 40,
                },
                DEFAULT_QUEUE.bytes,
            ),
            timeout: o.or(
                "timeout",
                "The longest one waits.",
                DurationRange::POSITIVE,
                DEFAULT_QUEUE.timeout,
            ),
        })
    },
};

const HEADERS: Record<BTreeMap<String, String>> = Record {
    name: "RequestHeaders",
    doc: "Headers of requests to a backend.",
    decode: |o| {
        o.optional(
            "set",
            "Set on every request; what the client sent is overwritten.",
            SET,
        )
    },
};

/// Headers that are set.
pub(super) const SET: Table<HeaderText> = Table {
    check: settable_header,
    values: HeaderText,
};

pub(super) const ACTIVATION: Record<Option<WebhookSpec>> = Record {
    name: "Activation",
    doc: "What starts instances elsewhere.",
    decode: |o| Some(o.required("webhook", "Asked for instances by POST.", WEBHOOK)),
};

const WEBHOOK: Record<WebhookSpec> = Record {
    name: "Webhook",
    doc: "A platform that starts instances when asked.",
    decode: |o| {
        let url = o.required("url", "Where the POST goes; http or https.", WEBHOOK_URL);
        let headers = o
            .optional("headers", "Set on every request.", SET)
            .unwrap_or_default();
        Some(WebhookSpec { url: url?, headers })
    },
};

const PROBE: Record<Option<Probe>> = Record {
    name: "ReadinessProbe",
    doc: "How readiness is found out. Probing is tight while somebody waits, whatever periodSeconds says.",
    decode: |o| {
        let http = o.optional("httpGet", "Ready when this answers 200 to 399.", HTTP_GET);
        o.optional("tcpSocket", "Ready when it can be connected to.", TCP_SOCKET);
        let period = o.or(
            "periodSeconds",
            "Between probes while nobody waits.",
            Seconds,
            None,
        );
        let timeout = o.or("timeoutSeconds", "For one probe.", Seconds, None);
        let failure_threshold = o.or(
            "failureThreshold",
            "Failures in a row after which an endpoint counts as failing.",
            Integer { min: 1, max: 1_000 },
            3,
        );
        let before = o.cx.errors();
        let which = o.only_one_of(&["httpGet", "tcpSocket"]);
        let kind = match (which, http) {
            (Some("httpGet"), Some(Some(path))) => ProbeKind::Http { path },
            (Some("httpGet"), _) => return Some(None),
            _ => ProbeKind::Tcp,
        };
        (o.cx.errors() == before).then_some(Some(Probe {
            kind,
            period: period.unwrap_or(Duration::from_secs(10)),
            timeout: timeout.unwrap_or(Duration::from_secs(1)),
            failure_threshold: u32::try_from(failure_threshold).unwrap_or(u32::MAX),
        }))
    },
};

const HTTP_GET: Record<Option<String>> = Record {
    name: "HttpGet",
    doc: "A GET.",
    decode: |o| Some(o.required("path", "Path and query.", PROBE_PATH)),
};

const TCP_SOCKET: Record<()> = Record {
    name: "TcpSocket",
    doc: "A connect.",
    decode: |_| Some(()),
};
