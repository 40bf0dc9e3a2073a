//! Services of an Ingress through real listeners and the real engine: no configuration file can express one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use sluice_model::{
    Backend, CertificatePem, Delta, Demand, EndpointAddr, EndpointSink, EndpointTarget, HostClaim,
    HostPattern, HttpOption, IngressExtras, ListenerSettings, PathMatch, Percent, Pods, RevisionSpec, Route,
    RouteMatch, Rule, Service, ServiceCertificate, Settings, Snapshot, SnapshotBuilder, TlsSettings,
    TrafficSplit, TrafficTarget, Visibility, test_util,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::downstream::Downstream;
use crate::edge::testing::{client_config, handshake, pem};
use crate::edge::{Drain, Edge};
use crate::observe::{AccessLog, LiveGauges, LogSink, Metrics, Observer};
use crate::registry::Registry;
use crate::registry::test_kit::{self, Demands, id, spec};
use crate::request::{Engine, MeasuredRevision};
use crate::throttle::clock;

const HASH: &str = "0ceecf5c2ae903d3c122b7d4ef3ce3fe0ca1bc754af8708c1fd53c438c4b2be4";

/// Revisions of the service under test, by slot: plain ones, and Knative's, one of which is at zero.
const PLAIN: usize = 0;
const KNATIVE: usize = 1;
const AT_ZERO: usize = 2;
const NAMES: [&str; 3] = ["plain", "knative", "at-zero"];

/// A backend that answers each request with its name and the head that it got. Returns its address.
async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut head, mut buf) = (Vec::new(), [0; 4096]);
                while let Ok(read @ 1..) = socket.read(&mut buf).await {
                    head.extend_from_slice(&buf[..read]);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let body = format!("{name}\r\n{}", String::from_utf8_lossy(&head));
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    head.clear();
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn revision(slot: usize, addresses: &[SocketAddr], activated: bool) -> Arc<RevisionSpec> {
    let backend = match activated {
        true => Backend::Pods(Box::new(Pods {
            ready: addresses.to_vec(),
            starting: vec![],
            failure: None,
            owner: Arc::default(),
        })),
        false => {
            let targets = addresses.iter().map(|address| EndpointAddr::Tcp(*address));
            Backend::Static {
                targets: targets.map(EndpointTarget::Address).collect(),
                activated,
            }
        }
    };
    Arc::new(spec(NAMES[slot], backend))
}

fn target(slot: usize, percent: u32, headers: &[(&str, &str)]) -> TrafficTarget {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    TrafficTarget {
        revision: id(NAMES[slot]),
        slot,
        percent: Percent::from_hundredths(percent * 100).unwrap(),
        tag: None,
        append_headers: headers.collect(),
    }
}

fn all_to(slot: usize) -> TrafficSplit {
    TrafficSplit::new(vec![target(slot, 100, &[])]).unwrap()
}

fn rule(visibility: Visibility, split: TrafficSplit) -> Rule {
    Rule {
        visibility,
        http_option: HttpOption::Enabled,
        routes: vec![],
        split,
    }
}

/// An Ingress whose rules have one host each.
async fn ingress(rules: Vec<(&str, Rule)>) -> Service {
    let plain = [backend("plain").await];
    let knative = [backend("knative").await];
    let hosts = rules.iter().enumerate().map(|(index, (host, _))| HostClaim {
        pattern: HostPattern::parse(host).unwrap(),
        rule: u16::try_from(index).unwrap(),
        tag: None,
    });
    let hosts = hosts.collect();
    let mut rules = rules.into_iter().map(|(_, rule)| rule);
    Service {
        id: spec("any", Backend::Managed).service,
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts,
        revisions: vec![
            revision(PLAIN, &plain, false),
            revision(KNATIVE, &knative, true),
            revision(AT_ZERO, &[], true),
        ],
        main: rules.next().unwrap(),
        further: rules.collect(),
        ingress: Some(Box::new(IngressExtras {
            network_hash: HASH.to_owned(),
            certificates: vec![],
        })),
    }
}

/// A gateway under test, with a public, an internal and a public TLS listener, and an activator's.
struct Gateway {
    edge: Edge,
    registry: Arc<Registry>,
    demands: Arc<Demands>,
    metrics: Metrics,
}

const PUBLIC: usize = 0;
const PRIVATE: usize = 1;
const TLS: usize = 2;
const ACTIVATOR: usize = 3;

fn settings() -> Settings {
    let listener = |visibility, tls| ListenerSettings {
        visibility,
        tls,
        ..test_util::listener()
    };
    Settings {
        listeners: vec![
            listener(Visibility::External, None),
            listener(Visibility::Internal, None),
            listener(Visibility::External, Some(TlsSettings::new(vec![]))),
            ListenerSettings {
                activator: Some("cluster.local".into()),
                ..listener(Visibility::Internal, None)
            },
        ],
        ..test_kit::settings()
    }
}

impl Gateway {
    async fn start(service: Service) -> Self {
        let mut builder = SnapshotBuilder::new(settings());
        builder.service(service).unwrap();
        let first: Snapshot = builder.build();
        let (metrics, demands) = (Metrics::new(), Arc::new(Demands::default()));
        let measured = metrics.clone();
        let registry = Arc::new(Registry::new(
            first.settings(),
            Arc::clone(&demands) as _,
            Box::new(move |spec| Arc::new(MeasuredRevision(measured.revision(&spec.service, &spec.id))) as _),
            Handle::current(),
        ));
        let (drain, phase) = watch::channel(Drain::Serving);
        let engine = Engine {
            table: registry.reader(),
            observer: Observer {
                access_log: AccessLog::new(LogSink::none()),
                metrics: metrics.clone(),
            },
            drain: phase,
            counted: Arc::default(),
            tracer: None,
        };
        let reader = registry.reader();
        let edge = Edge::new(
            Arc::new(move || Arc::clone(reader.peek().settings())),
            Arc::new(Downstream::new(Arc::new(engine))),
            Arc::new(metrics.clone()),
            drain,
        );
        let change = Delta::between(&registry.reader().load(), &first);
        edge.offer_certificates(&change).complete();
        registry.apply(&change).unwrap();
        assert!(edge.apply(first.settings()).await.is_empty());
        Self {
            edge,
            registry,
            demands,
            metrics,
        }
    }

    async fn connect(&self, listener: usize) -> TcpStream {
        TcpStream::connect(self.edge.listeners()[listener].bound)
            .await
            .unwrap()
    }

    async fn get(&self, listener: usize, host: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        get(self.connect(listener).await, host, path, fields).await
    }

    /// A GET over HTTP/2.
    async fn get2(&self, listener: usize, host: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let (mut send, connection) = h2::client::handshake(self.connect(listener).await).await.unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::get(format!("http://{host}{path}"));
        for (name, value) in fields {
            request = request.header(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let (response, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            text.extend_from_slice(&data);
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        let fields = head.headers.iter();
        let fields = fields.map(|(n, v)| (n.as_str().to_owned(), v.to_str().unwrap().to_owned()));
        Answer {
            status: head.status.as_u16(),
            fields: fields.collect(),
            body: String::from_utf8(text).unwrap(),
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    fields: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The value of a field that the backend got.
    fn got(&self, name: &str) -> Option<&str> {
        let mut lines = self.body.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The backend that answered.
    fn by(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }
}

async fn get(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    host: &str,
    path: &str,
    fields: &[(&str, &str)],
) -> Answer {
    let fields: String = fields.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A client of TLS may see the end without a close_notify.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let fields = lines.filter_map(|line| line.split_once(": "));
    let fields = fields.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()));
    Answer {
        status,
        fields: fields.collect(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn a_public_listener_serves_no_internal_rule_and_no_request_that_a_rule_does_not_match() {
    let route = Route {
        matches: RouteMatch {
            path: Some(PathMatch::RawPrefix("/api".into())),
            ..RouteMatch::default()
        },
        rewrite_host: None,
        rewrite_path: None,
        append_headers: Arc::default(),
        cold: None,
        split: all_to(PLAIN),
    };
    let bare = Rule {
        routes: vec![route],
        ..rule(Visibility::External, TrafficSplit::none())
    };
    let service = ingress(vec![
        ("a.test", rule(Visibility::External, all_to(PLAIN))),
        (
            "a.default.svc.cluster.local",
            rule(Visibility::Internal, all_to(PLAIN)),
        ),
        ("bare.test", bare),
    ]);
    let gateway = Gateway::start(service.await).await;
    for (listener, host, path, status) in [
        (PUBLIC, "a.test", "/", 200),
        (PUBLIC, "A.test:80", "/", 200),
        (PUBLIC, "a.default.svc.cluster.local", "/", 404),
        (PUBLIC, "A.Default.svc.cluster.local:8080", "/", 404),
        (PRIVATE, "a.test", "/", 200),
        (PRIVATE, "a.default.svc.cluster.local", "/", 200),
        (PUBLIC, "bare.test", "/apix?y", 200),
        (PUBLIC, "bare.test", "/ap", 404),
        (PRIVATE, "bare.test", "/", 404),
    ] {
        let one = gateway.get(listener, host, path, &[]).await;
        assert_eq!(one.status, status, "{host} at {listener}");
        let two = gateway.get2(listener, host, path, &[]).await;
        assert_eq!(two.status, status, "{host} at {listener}, HTTP/2");
        let reason = (status == 404).then_some("no_route");
        assert_eq!(
            (one.field("x-sluice-reason"), two.field("x-sluice-reason")),
            (reason, reason)
        );
    }
}

#[tokio::test]
async fn each_rule_has_its_own_redirect() {
    let redirected = Rule {
        http_option: HttpOption::Redirected,
        ..rule(Visibility::External, all_to(PLAIN))
    };
    let inside = rule(Visibility::Internal, all_to(PLAIN));
    let gateway = Gateway::start(ingress(vec![("a.test", redirected), ("inside.test", inside)]).await).await;
    let moved = gateway.get(PUBLIC, "a.test", "/x?y=1", &[]).await;
    assert_eq!(
        (moved.status, moved.field("location")),
        (301, Some("https://a.test/x?y=1"))
    );
    assert_eq!(gateway.get(PRIVATE, "inside.test", "/x", &[]).await.status, 200);
}

#[tokio::test]
async fn routes_of_a_further_rule_rewrite_and_append() {
    let split = TrafficSplit::new(vec![target(
        PLAIN,
        100,
        &[("Knative-Serving-Revision", "plain"), ("X-Who", "target")],
    )]);
    let route = Route {
        matches: RouteMatch {
            path: Some(PathMatch::RawPrefix("/foo".into())),
            ..RouteMatch::default()
        },
        rewrite_host: Some("other.ns.svc.cluster.local".into()),
        rewrite_path: None,
        append_headers: [("X-Who".into(), "route".into()), ("X-Route".into(), "1".into())].into(),
        cold: None,
        split: split.unwrap(),
    };
    let further = Rule {
        routes: vec![route],
        ..rule(Visibility::External, all_to(KNATIVE))
    };
    let first = rule(Visibility::External, all_to(KNATIVE));
    let gateway = Gateway::start(ingress(vec![("a.test", first), ("b.test", further)]).await).await;
    for path in ["/foo", "/foobar?q", "/foo/bar"] {
        let answer = gateway.get(
            PUBLIC,
            "b.test",
            path,
            &[("X-Who", "client"), ("K-Network-Hash", "override")],
        );
        let answer = answer.await;
        assert_eq!(answer.by(), "plain", "{path}");
        assert_eq!(answer.got("host"), Some("other.ns.svc.cluster.local"));
        assert!(
            answer.body.contains(&format!("GET {path} HTTP/1.1")),
            "{}",
            answer.body
        );
        assert_eq!(
            (answer.got("x-who"), answer.got("x-route")),
            (Some("target"), Some("1"))
        );
        assert_eq!(answer.got("knative-serving-revision"), Some("plain"));
        assert_eq!(answer.got("k-network-hash"), Some(HASH));
    }
    // The other rule has no routes, and what matches none of this one's has its own traffic.
    for (host, path) in [("a.test", "/foo"), ("b.test", "/fo")] {
        let answer = gateway.get(PUBLIC, host, path, &[]).await;
        assert_eq!((answer.by(), answer.got("host")), ("knative", Some(host)));
        assert_eq!(
            answer.got("knative-serving-revision"),
            None,
            "only by its headers"
        );
    }
}

#[tokio::test]
async fn an_activator_serves_the_revision_that_a_request_names_and_shares_it_with_the_ingress() {
    let first = rule(Visibility::External, all_to(KNATIVE));
    let gateway = Gateway::start(ingress(vec![("a.test", first)]).await).await;
    let named = [
        ("Knative-Serving-Namespace", "default"),
        ("Knative-Serving-Revision", "knative"),
    ];
    let host = "knative.default.svc.cluster.local:80";
    for answer in [
        gateway.get(ACTIVATOR, "any.host", "//x", &named).await,
        gateway.get2(ACTIVATOR, "any.host", "//x", &named).await,
        gateway.get(ACTIVATOR, host, "/", &[]).await,
        gateway.get2(ACTIVATOR, host, "/", &[]).await,
    ] {
        assert_eq!((answer.status, answer.by()), (200, "knative"));
        assert_eq!(answer.got("knative-serving-revision"), None);
        assert!(["any.host", host].contains(&answer.got("host").unwrap()));
    }
    // Neither routes nor what stands for a plain Service.
    for (host, fields) in [
        ("a.test", &[][..]),
        ("plain.default.svc.cluster.local", &[]),
        ("unknown.default.svc.cluster.local", &[]),
        ("knative.default.svc.other.domain", &[]),
        ("any.host", &named[1..]),
    ] {
        let answer = gateway.get(ACTIVATOR, host, "/", fields).await;
        assert_eq!(
            (answer.status, answer.field("x-sluice-reason")),
            (404, Some("no_route")),
            "{host}"
        );
    }
    let other = gateway.get(PUBLIC, "any.host", "/", &named).await;
    assert_eq!(other.status, 404, "only to an activator");
    // One revision, one set of counters, whichever way its requests came.
    assert_eq!(gateway.get(PUBLIC, "a.test", "/", &[]).await.by(), "knative");
    let load = gateway.registry.sample(&id("knative")).expect("it was used");
    assert_eq!(load.requests, 5);
}

#[tokio::test]
async fn probes_of_an_activator_wake_nothing_and_a_request_does() {
    let first = rule(Visibility::External, all_to(AT_ZERO));
    let gateway = Gateway::start(ingress(vec![("zero.test", first)]).await).await;
    let host = "at-zero.default.svc.cluster.local";
    for (field, value, status, body) in [
        ("K-Network-Probe", "activator", 200, "activator"),
        (
            "K-Network-Probe",
            "queue",
            400,
            "unexpected probe header value: \"queue\"\n",
        ),
        (
            "K-Network-Probe",
            "probe",
            400,
            "bad_request: a probe has to name a K-Network-Hash\n",
        ),
        ("User-Agent", "kube-probe/1.34", 200, ""),
        ("K-Kubelet-Probe", "1", 200, ""),
    ] {
        let answer = gateway.get(ACTIVATOR, host, "//healthz", &[(field, value)]).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (status, body),
            "{field}: {value}"
        );
    }
    let hash = [("K-Network-Probe", "probe"), ("K-Network-Hash", "abc")];
    let answer = gateway.get2(ACTIVATOR, host, "/healthz", &hash).await;
    assert_eq!(
        (answer.status, answer.field("k-network-hash")),
        (200, Some("abc"))
    );
    assert!(gateway.demands.take().is_empty(), "a probe starts nothing");
    let held = {
        let stream = gateway.connect(ACTIVATOR).await;
        tokio::spawn(async move { get(stream, host, "/", &[]).await })
    };
    test_kit::until("a request at zero is told", || {
        let told = gateway.demands.take();
        told.iter()
            .any(|demand| *demand == Demand::Activate(id("at-zero")))
    })
    .await;
    held.abort();
}

#[tokio::test]
async fn a_probe_of_a_knative_revision_is_answered_and_wakes_nothing() {
    let first = rule(Visibility::External, all_to(AT_ZERO));
    let gateway = Gateway::start(ingress(vec![("zero.test", first)]).await).await;
    /// Headers of a request, and status and hash of the response.
    type Asked<'a> = (&'a [(&'a str, &'a str)], u16, Option<&'a str>);
    let asked: [Asked<'_>; 6] = [
        (&[("K-Network-Hash", "override")], 200, Some(HASH)),
        (&[("K-Network-Hash", "echo-me")], 200, Some("echo-me")),
        (&[("K-Network-Hash", "OVERRIDE")], 200, Some("OVERRIDE")),
        (&[("K-Network-Hash", "")], 400, None),
        (&[("K-Network-Hash", "\u{e4}")], 400, None),
        (&[], 400, None),
    ];
    for (hash, status, told) in asked {
        let fields: Vec<_> = [("K-Network-Probe", "probe")]
            .iter()
            .chain(hash)
            .copied()
            .collect();
        for answer in [
            gateway.get(PUBLIC, "zero.test", "/healthz", &fields).await,
            gateway.get2(PUBLIC, "zero.test", "/healthz", &fields).await,
        ] {
            assert_eq!(
                (answer.status, answer.field("k-network-hash")),
                (status, told),
                "{hash:?}"
            );
        }
    }
    assert!(gateway.demands.take().is_empty(), "nothing is started");
    let live = gateway.registry.live(&id("at-zero")).expect("in the table");
    assert!(live.awake().is_none(), "no live state, so no load and no waiter");
    let text = gateway.metrics.expose(&LiveGauges::default());
    let counted = text.lines().filter(|line| line.contains("shop"));
    assert_eq!(counted.collect::<Vec<_>>(), [""; 0]);
    // A request is counted there and waits: what was looked at would have shown the probes.
    let stream = gateway.connect(PUBLIC).await;
    let waiting = tokio::spawn(async move { get(stream, "zero.test", "/", &[]).await });
    let queued = || live.peek(clock()).queued == 1;
    test_kit::until("the request waits", queued).await;
    assert_eq!(gateway.demands.take().len(), 1);
    waiting.abort();
}

#[tokio::test]
async fn other_probes_and_those_of_plain_services_are_forwarded() {
    let gateway = Gateway::start(
        ingress(vec![
            ("plain.test", rule(Visibility::External, all_to(PLAIN))),
            ("knative.test", rule(Visibility::External, all_to(KNATIVE))),
        ])
        .await,
    )
    .await;
    let probe = [("K-Network-Probe", "probe"), ("K-Network-Hash", "override")];
    let answer = gateway.get(PUBLIC, "plain.test", "/healthz", &probe).await;
    assert_eq!(answer.by(), "plain");
    assert_eq!(
        (answer.got("k-network-probe"), answer.got("k-network-hash")),
        (Some("probe"), Some(HASH))
    );
    let answer = gateway.get(PUBLIC, "knative.test", "/healthz", &probe).await;
    assert_eq!((answer.field("k-network-hash"), answer.by()), (Some(HASH), ""));
    for other in ["queue", "activator", "Probe", ""] {
        let fields = [("K-Network-Probe", other), ("K-Network-Hash", "x")];
        for answer in [
            gateway.get(PUBLIC, "knative.test", "/", &fields).await,
            gateway.get2(PUBLIC, "knative.test", "/", &fields).await,
        ] {
            assert_eq!(
                (answer.by(), answer.got("k-network-hash")),
                ("knative", Some("x")),
                "{other}"
            );
        }
    }
}

#[tokio::test]
async fn probes_do_not_shift_the_shares_of_requests() {
    let mut service = ingress(vec![("a.test", rule(Visibility::External, all_to(KNATIVE)))]).await;
    let other = [backend("other").await];
    service.revisions[AT_ZERO] = revision(AT_ZERO, &other, true);
    let split = TrafficSplit::new(vec![target(KNATIVE, 50, &[]), target(AT_ZERO, 50, &[])]);
    service.main.split = split.unwrap();
    let gateway = Gateway::start(service).await;
    let mut first = 0;
    for n in 0..16 {
        // An odd number of probes between two requests would shift a sequence that both draw from.
        for _ in 0..n % 3 {
            let probe = [("K-Network-Probe", "probe"), ("K-Network-Hash", "override")];
            assert_eq!(gateway.get(PUBLIC, "a.test", "/", &probe).await.by(), "");
        }
        first += u32::from(gateway.get(PUBLIC, "a.test", "/", &[]).await.by() == "knative");
    }
    assert_eq!(first, 8);
}

#[tokio::test]
async fn a_connection_is_for_the_hosts_of_the_certificate_that_it_was_given() {
    let mut service = ingress(vec![
        ("a.test", rule(Visibility::External, all_to(PLAIN))),
        ("b.test", rule(Visibility::External, all_to(PLAIN))),
    ])
    .await;
    let certificate = |name: &str, pem: CertificatePem| ServiceCertificate {
        visibility: Visibility::External,
        name: format!("default/{name}"),
        pem,
    };
    let extras = service.ingress.as_mut().unwrap();
    extras.certificates = vec![
        certificate("a", pem(&["a.test"]).0),
        certificate("b", pem(&["b.test"]).0),
    ];
    let gateway = Gateway::start(service).await;
    for (sni, host, status) in [
        ("a.test", "a.test", 200),
        ("a.test", "b.test", 421),
        ("b.test", "b.test", 200),
    ] {
        let tcp = gateway.connect(TLS).await;
        let stream = handshake(&client_config(&["http/1.1"]), tcp, sni).await;
        let answer = get(stream, host, "/", &[]).await;
        assert_eq!(answer.status, status, "{sni}: {host}");
    }
}
