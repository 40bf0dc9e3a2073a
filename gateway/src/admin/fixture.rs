//! A fake [`AdminState`] for tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_model::{
    Backend, CertificatePem, Delta, EndpointAddr, Generation, HostClaim, HostPattern, HttpOption,
    IngressExtras, ListenerSettings, PathMatch, Percent, QueueLimits, RevisionId, RevisionSettings,
    RevisionSpec, RevisionStatus, RevisionTimeouts, Route, RouteMatch, Rule, ScaleSource, ScaleWants,
    ScalingStatus, Service, ServiceCertificate, ServiceId, Snapshot, SnapshotBuilder, StatusSource, Tag,
    TrafficSplit, TrafficTarget, Visibility, test_util,
};

use super::{AdminState, BoundAddresses, CommandError, ReleaseView, ServiceCommand, UpgradeError, Upgraded};
use crate::observe::{
    Decision, EndpointCondition, EndpointLoad, ListenerCertificates, Metrics, PresentRequests,
    RecentDecisions, RevisionLoad, RevisionMetrics,
};
use crate::registry::{self, LiveService};

/// The secret, in every place of the fixture that may hold one.
pub(crate) const SECRET: &str = "hunter2";

pub(crate) fn revision(name: &str) -> RevisionId {
    RevisionId::parse("default", name).unwrap()
}

fn service() -> ServiceId {
    ServiceId::parse("default", "greeter").unwrap()
}

fn spec(name: &str) -> RevisionSpec {
    RevisionSpec {
        id: revision(name),
        service: service(),
        backend: Backend::Managed,
        settings: Arc::new(RevisionSettings {
            upgrades: Some(vec!["websocket".into()]),
            container_concurrency: Some(5),
            timeouts: RevisionTimeouts {
                response_start: Some(Duration::from_secs(300)),
                ..test_util::no_timeouts()
            },
            queue: QueueLimits {
                depth: 10,
                bytes: 1024,
                timeout: Duration::from_secs(60),
            },
            request_headers: BTreeMap::from([("X-Api-Key".into(), SECRET.into())]),
            ..test_util::revision_settings()
        }),
    }
}

/// The service `greeter`: 66.67 % v1 (tag current), 33.33 % v2; the route /v2 leads to v2, too.
pub(crate) fn snapshot() -> Snapshot {
    let mut builder = SnapshotBuilder::new(test_util::settings());
    let target = |name: &str, slot, hundredths, tag: Option<&str>| TrafficTarget {
        revision: revision(name),
        slot,
        percent: Percent::from_hundredths(hundredths).unwrap(),
        tag: tag.map(|tag| Tag::parse(tag).unwrap()),
        append_headers: Arc::default(),
    };
    let split = TrafficSplit::new(vec![
        target("greeter-v1", 0, 6667, Some("current")),
        target("greeter-v2", 1, 3333, None),
    ]);
    let route = Route {
        matches: RouteMatch {
            path: Some(PathMatch::Prefix("/v2".into())),
            ..RouteMatch::default()
        },
        rewrite_host: None,
        rewrite_path: None,
        append_headers: [("X-From".into(), SECRET.into())].into(),
        cold: None,
        split: TrafficSplit::new(vec![target("greeter-v2", 1, 10_000, None)]).unwrap(),
    };
    let host = |host: &str, tag: Option<&str>| HostClaim {
        pattern: HostPattern::parse(host).unwrap(),
        rule: 0,
        tag: tag.map(|tag| Tag::parse(tag).unwrap()),
    };
    let hosts = [
        host("greeter.default.localhost", None),
        host("current-greeter.default.localhost", Some("current")),
    ];
    let greeter = Service {
        id: service(),
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts: hosts.into(),
        revisions: vec![Arc::new(spec("greeter-v1")), Arc::new(spec("greeter-v2"))],
        main: Rule {
            visibility: Visibility::External,
            http_option: HttpOption::Enabled,
            routes: vec![route],
            split: split.unwrap(),
        },
        further: Box::default(),
        ingress: None,
    };
    builder.service(greeter).unwrap();
    let mut snapshot = builder.build();
    snapshot.generation = Generation(3);
    snapshot
}

/// The service `greeter` as an Ingress: a second rule is internal, redirects plain HTTP and serves `/v2` only.
pub(crate) fn ingress() -> Snapshot {
    let mut greeter = Service::clone(snapshot().services()[0]);
    greeter.hosts.push(HostClaim {
        pattern: HostPattern::parse("greeter.default.svc.cluster.local").unwrap(),
        rule: 1,
        tag: None,
    });
    greeter.further = Box::new([Rule {
        visibility: Visibility::Internal,
        http_option: HttpOption::Redirected,
        routes: greeter.main.routes.clone(),
        split: TrafficSplit::none(),
    }]);
    greeter.ingress = Some(Box::new(IngressExtras {
        network_hash: "a25000".into(),
        certificates: vec![ServiceCertificate {
            visibility: Visibility::External,
            name: "default/tls".into(),
            pem: CertificatePem {
                chain: SECRET.as_bytes().into(),
                key: SECRET.as_bytes().into(),
            },
        }],
    }));
    let mut settings = test_util::settings();
    settings.listeners.push(ListenerSettings {
        visibility: Visibility::Internal,
        ..test_util::listener()
    });
    let mut builder = SnapshotBuilder::new(settings);
    builder.service(greeter).unwrap();
    builder.build()
}

fn table() -> registry::Snapshot {
    let empty = registry::Snapshot::empty(Arc::clone(snapshot().settings()));
    let change = Delta::between(&empty, &snapshot());
    let edited = empty.edit(&change, |service| Arc::new(LiveService::stateless(service)));
    let mut table = edited.unwrap();
    table.generation = Generation(3);
    table
}

/// v1 runs two instances; v2 is at zero and cannot start; a removed v0 still finishes a request.
pub(crate) struct FakeGateway {
    snapshot: Arc<registry::Snapshot>,
    metrics: Metrics,
    _v1: Arc<RevisionMetrics>,
    draining: AtomicBool,
    pub(crate) decisions: RecentDecisions,
    /// What was carried out.
    pub(crate) commands: Mutex<Vec<ServiceCommand>>,
}

impl FakeGateway {
    pub(crate) fn new() -> Self {
        let metrics = Metrics::new();
        metrics.set_generation(Generation(3));
        Self {
            snapshot: Arc::new(table()),
            _v1: metrics.revision(&service(), &revision("greeter-v1")),
            metrics,
            draining: AtomicBool::new(false),
            decisions: RecentDecisions::default(),
            commands: Mutex::default(),
        }
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl AdminState for FakeGateway {
    fn ready(&self) -> Result<Generation, &'static str> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining");
        }
        Ok(self.snapshot.generation)
    }
    fn started(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    /// Fails unless the limit is at least half a minute.
    async fn upgrade(&self, limit: Duration) -> Result<Upgraded, UpgradeError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(UpgradeError::NotNow("draining"));
        }
        if limit < Duration::from_secs(30) {
            return Err(UpgradeError::Failed(format!("not within {limit:?}")));
        }
        Ok(Upgraded {
            pid: 7,
            version: "1.2.3".into(),
        })
    }
    /// Fails for what is no service, and for a resume.
    async fn command(&self, id: &ServiceId, command: ServiceCommand) -> Result<String, CommandError> {
        if *id != service() {
            return Err(CommandError::NoService(format!("there is no service '{id}'")));
        }
        if command == ServiceCommand::Resume {
            return Err(CommandError::Refused("the service is not paused".to_owned()));
        }
        self.commands.lock().push(command);
        Ok("it is done".to_owned())
    }
    /// greeter-v2 is rolled out, and requests are held.
    fn release(&self, id: &ServiceId) -> Option<ReleaseView> {
        let since = "2026-11-30T20:00:00Z";
        let rollout = json!({
            "state": "running", "percent": 33.33, "step": 1, "reason": null, "since": since, "started": since,
            "candidate": "greeter-v2", "base": "greeter-v1",
            "judgement": {"candidate": {"requests": 40, "errors": 1}, "base": {"requests": 80, "errors": 0}, "in_step": 40,
                "unjudged_steps": 0},
        });
        let overridden = json!({
            "pinned": null, "paused": true, "since": since, "files": {"latestRevision": "greeter-v2", "percent": 100},
            "permanent": "no key of the files does",
        });
        (*id == service()).then(|| ReleaseView {
            rollout,
            overridden,
            revisions: BTreeMap::from([(
                "greeter-v2".to_owned(),
                json!({"created": since, "last_active": since}),
            )]),
        })
    }
    fn differences(&self, _: &ServiceId) -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([(
            "greeter-v2".to_owned(),
            vec!["timeoutSeconds: 300 → 10".to_owned()],
        )])
    }
    fn table(&self) -> Arc<registry::Snapshot> {
        Arc::clone(&self.snapshot)
    }
    fn bound(&self) -> BoundAddresses {
        BoundAddresses {
            listeners: vec![([127, 0, 0, 1], 8080).into()],
            admin: std::net::SocketAddr::from(([127, 0, 0, 1], 9900)).into(),
            health: None,
        }
    }
    fn status(&self) -> &dyn StatusSource {
        self
    }
    fn scaling_status(&self, id: &RevisionId) -> Option<ScalingStatus> {
        let wants = ScaleWants {
            reactive: 1,
            schedule: Some(2),
            max_scale: Some(10),
            ..ScaleWants::default()
        };
        (id.name() == "greeter-v1").then(|| ScalingStatus {
            source: ScaleSource::Schedule,
            wants,
            instance_seconds: 7_200.5,
            ..ScalingStatus::default()
        })
    }
    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
    fn decisions(&self, after: u64) -> Vec<Decision> {
        self.decisions.after(after)
    }
    fn diagnostics(&self) -> Value {
        json!({"at": 0.0, "rejected": false, "errors": 0, "warnings": 0, "items": []})
    }
    fn scaling(&self) -> Value {
        let env = BTreeMap::from([("TOKEN".to_owned(), SECRET.to_owned())]);
        json!({"revisions": {"default/greeter-v1": {"env": super::redacted(env.keys())}}})
    }
    fn loads(&self) -> Vec<RevisionLoad> {
        let load = |name: &str, in_flight, queued, ready| RevisionLoad {
            service: service(),
            revision: revision(name),
            in_flight,
            queued,
            ready,
            leaving: name == "greeter-v0",
            owner: None,
        };
        vec![load("greeter-v1", 7, 0, 2), load("greeter-v0", 1, 0, 0)]
    }
    fn present(&self, revisions: &[RevisionId]) -> Vec<PresentRequests> {
        let loads = self.loads();
        let present = revisions.iter().map(|id| {
            let mut named = loads.iter().filter(|load| load.revision == *id);
            named
                .next()
                .map_or_else(PresentRequests::default, |load| PresentRequests {
                    in_flight: load.in_flight,
                    queued: load.queued,
                })
        });
        present.collect()
    }
    fn tables(&self) -> usize {
        1
    }
    fn certificates(&self) -> Vec<ListenerCertificates> {
        vec![ListenerCertificates {
            listener: ([127, 0, 0, 1], 8443).into(),
            ends: vec![("default/tls".to_owned(), SystemTime::UNIX_EPOCH)],
        }]
    }

    fn endpoints(&self, id: &RevisionId) -> Vec<EndpointLoad> {
        if id.name() != "greeter-v1" {
            return Vec::new();
        }
        let endpoint = |port, condition, in_flight| EndpointLoad {
            address: EndpointAddr::Tcp(([127, 0, 0, 1], port).into()),
            tier: 0,
            condition,
            in_flight,
        };
        vec![
            endpoint(20_001, EndpointCondition::Ready, 4),
            endpoint(20_002, EndpointCondition::Ejected, 3),
        ]
    }
}

impl StatusSource for FakeGateway {
    fn revision_status(&self, revision: &RevisionId) -> Option<RevisionStatus> {
        let status = RevisionStatus {
            starts: 4,
            ..RevisionStatus::default()
        };
        match revision.name() {
            "greeter-v1" => Some(RevisionStatus {
                desired: 2,
                last_decision: Some("1 → 2: 12 in flight / target 10".into()),
                ..status
            }),
            "greeter-v2" => Some(RevisionStatus {
                last_failure: Some("exit status 127: sh: no-such-program: not found".into()),
                ..status
            }),
            _ => None,
        }
    }
}
