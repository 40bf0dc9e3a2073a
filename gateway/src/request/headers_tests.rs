use std::time::Duration;

use sluice_model::{Backend, Protocol, RevisionId, RevisionSpec, RouteMatch, TrafficSplit};

use super::*;

#[derive(Debug, Default)]
struct Head(Vec<(String, Vec<u8>)>);

impl Fields for Head {
    fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
        for (name, value) in &self.0 {
            each(name.as_bytes(), value);
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        let found = self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_slice())
    }
}

impl FieldSink for Head {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        let name = String::from_utf8(name.to_vec()).expect("a name");
        self.0.push((name, value.to_vec()));
    }
}

impl Head {
    fn of(pairs: &[(&str, &str)]) -> Self {
        Self(
            pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec()))
                .collect(),
        )
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.first(name).map(|v| std::str::from_utf8(v).expect("text"))
    }

    fn count(&self, name: &str) -> usize {
        self.0
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .count()
    }
}

fn revision(headers: &[(&str, &str)]) -> RevisionSpec {
    let mut spec = crate::registry::test_kit::spec("greeter-v1", Backend::Managed);
    spec.id = RevisionId::parse("default", "greeter-v1").expect("a name");
    spec.protocol = Protocol::Http1;
    spec.request_headers = headers
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    spec
}

const FROM: Forwarding<'static> = Forwarding {
    client: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)),
    trusted: false,
    tls: false,
    host: b"a.example",
    request_id: "id",
    hops: 1,
};

fn sent(head: &Head, from: Forwarding<'_>, revision: &RevisionSpec) -> Head {
    traced(head, from, revision, None)
}

fn traced(head: &Head, from: Forwarding<'_>, revision: &RevisionSpec, trace: Option<OutgoingTrace>) -> Head {
    let mut out = Head::default();
    let edit = RequestEdit {
        from,
        trace,
        ..edit(head, revision)
    };
    request_fields(head, &edit, &mut out);
    out
}

fn edit<'a>(head: &'a Head, revision: &'a RevisionSpec) -> RequestEdit<'a> {
    RequestEdit {
        from: FROM,
        revision,
        route: None,
        target_headers: &[],
        network_hash: None,
        activator: false,
        counted: false,
        nominated: Nominated::of(head),
        plain: false,
        join_cookies: head.count("cookie") > 1,
        trace: None,
    }
}

const HASH: &str = "a25000a350642c8abef53078b329bd043e18758f6063c1172d53b04e14fcf5c1";

/// What a service of an Ingress forwards, with headers of the route and of the target.
fn sent_by_ingress(head: &Head, route: &[(&str, &str)], target: &[(&str, &str)]) -> Head {
    let pairs = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        pairs.collect::<Vec<_>>()
    };
    let route = Route {
        matches: RouteMatch::default(),
        rewrite_host: None,
        rewrite_path: None,
        append_headers: pairs(route).into(),
        cold: None,
        split: TrafficSplit::none(),
    };
    let mut out = Head::default();
    let edit = RequestEdit {
        from: FROM,
        revision: &revision(&[]),
        route: Some(&route),
        target_headers: &pairs(target),
        network_hash: Some(HASH),
        activator: false,
        counted: false,
        nominated: Nominated::of(head),
        join_cookies: false,
        trace: None,
        plain: false,
    };
    request_fields(head, &edit, &mut out);
    out
}

#[test]
fn the_version_is_told_to_whoever_asks_an_ingress_for_it() {
    let asked = |value: &str| Head::of(&[("K-Network-Hash", value)]);
    for (value, forwarded) in [
        ("override", HASH),
        ("Override", "Override"),
        ("0ceecf5c", "0ceecf5c"),
    ] {
        let out = sent_by_ingress(&asked(value), &[], &[]);
        assert_eq!(out.text("k-network-hash"), Some(forwarded));
        assert_eq!(out.count("k-network-hash"), 1);
        let plain = sent(&asked(value), FROM, &revision(&[]));
        assert_eq!(plain.text("k-network-hash"), Some(value), "not of an Ingress");
    }
    assert_eq!(
        sent_by_ingress(&Head::of(&[]), &[], &[]).text("k-network-hash"),
        None
    );
}

#[test]
fn fields_between_knatives_components_are_an_ingress_to_set_and_never_a_clients() {
    let fields = [
        "K-Proxy-Request",
        "K-Original-Host",
        "K-Passthrough-Lb",
        "K-Kubelet-Probe",
    ];
    let evil = fields.map(|name| (name, "evil"));
    for name in fields {
        assert_eq!(
            sent_by_ingress(&Head::of(&evil), &[], &[]).text(name),
            None,
            "{name}"
        );
        assert_eq!(
            sent(&Head::of(&evil), FROM, &revision(&[])).text(name),
            None,
            "{name}"
        );
        let out = sent_by_ingress(&Head::of(&evil), &[(name, "route")], &[]);
        assert_eq!((out.text(name), out.count(name)), (Some("route"), 1), "{name}");
        let out = sent_by_ingress(&Head::of(&evil), &[], &[(name, "target")]);
        assert_eq!((out.text(name), out.count(name)), (Some("target"), 1), "{name}");
    }
    // The other ones of this prefix are not between components.
    let probe = Head::of(&[("K-Network-Probe", "probe")]);
    assert_eq!(
        sent_by_ingress(&probe, &[], &[]).text("k-network-probe"),
        Some("probe")
    );
}

#[test]
fn an_activator_passes_on_what_an_ingress_says_and_not_which_revision_it_named() {
    let head = Head::of(&[
        ("Knative-Serving-Revision", "rev-1"),
        ("Knative-Serving-Namespace", "team"),
        ("Knative-Serving-Tag", "canary"),
        ("Knative-Serving-Default-Route", "true"),
        ("K-Original-Host", "www.example.com"),
        ("K-Network-Hash", "abc"),
        ("K-Passthrough-Lb", "true"),
        ("K-Proxy-Request", "evil"),
        ("X-Forwarded-For", "192.0.2.7"),
    ]);
    let mut out = Head::default();
    let revision = revision(&[]);
    let edit = RequestEdit {
        from: Forwarding {
            trusted: true,
            ..FROM
        },
        activator: true,
        counted: true,
        network_hash: Some(HASH),
        ..edit(&head, &revision)
    };
    request_fields(&head, &edit, &mut out);
    for (name, value) in [
        ("knative-serving-revision", None),
        ("knative-serving-namespace", None),
        ("knative-serving-tag", Some("canary")),
        ("knative-serving-default-route", Some("true")),
        ("k-original-host", Some("www.example.com")),
        ("k-network-hash", None),
        ("k-passthrough-lb", None),
        ("k-proxy-request", Some("activator")),
        ("x-forwarded-for", Some("192.0.2.7, 10.0.0.9")),
    ] {
        assert_eq!(out.text(name), value, "{name}");
    }
}

#[test]
fn headers_of_the_target_come_last_and_overwrite() {
    let head = Head::of(&[("X-Who", "client"), ("x-route", "client"), ("x-kept", "client")]);
    let route = [("X-Who", "route"), ("X-Route", "route")];
    let out = sent_by_ingress(&head, &route, &[("x-who", "target"), ("x-target", "target")]);
    for (name, value) in [
        ("x-who", "target"),
        ("x-route", "route"),
        ("x-target", "target"),
        ("x-kept", "client"),
    ] {
        assert_eq!((out.text(name), out.count(name)), (Some(value), 1), "{name}");
    }
}

#[test]
fn an_ingress_names_the_revision_in_its_own_headers_and_nowhere_else() {
    let evil = Head::of(&[
        ("Knative-Serving-Revision", "evil"),
        ("Knative-Serving-Namespace", "evil"),
    ]);
    let out = sent_by_ingress(&evil, &[], &[]);
    assert_eq!(out.text("knative-serving-revision"), None);
    assert_eq!(out.text("knative-serving-namespace"), None);
    let target = [
        ("Knative-Serving-Revision", "rev-1"),
        ("Knative-Serving-Namespace", "team"),
    ];
    let out = sent_by_ingress(&evil, &[], &target);
    assert_eq!(out.text("knative-serving-revision"), Some("rev-1"));
    assert_eq!(out.text("knative-serving-namespace"), Some("team"));
    assert_eq!(out.count("knative-serving-revision"), 1);
    // What frames and addresses the message stays the writer's.
    let out = sent_by_ingress(
        &Head::of(&[]),
        &[("Host", "x"), ("Content-Length", "1")],
        &[("TE", "x")],
    );
    for name in ["host", "content-length", "te"] {
        assert_eq!(out.text(name), None, "{name}");
    }
}

#[test]
fn a_client_cannot_set_decision_or_forwarding_headers() {
    let head = Head::of(&[
        ("Knative-Serving-Revision", "evil"),
        ("knative-serving-tag", "evil"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-proto", "https"),
        ("Forwarded", "for=1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
        ("X-Api-Key", "mine"),
        ("x-sluice-hops", "evil"),
        ("traceparent", "00-1"),
    ]);
    let revision = revision(&[("x-api-key", "secret")]);
    let out = sent(&head, FROM, &revision);
    for (name, value) in [
        ("knative-serving-revision", Some("greeter-v1")),
        ("knative-serving-namespace", Some("default")),
        ("knative-serving-tag", None),
        ("x-forwarded-for", Some("10.0.0.9")),
        ("x-forwarded-port", None),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("a.example")),
        ("forwarded", None),
        ("x-real-ip", None),
        ("x-api-key", Some("secret")),
        ("x-sluice-hops", Some("1")),
        ("traceparent", Some("00-1")),
    ] {
        assert_eq!(out.text(name), value, "{name}");
        assert!(out.count(name) <= 1, "{name}");
    }
    let head = Head::of(&[
        ("x-forwarded-for", "1.2.3.4"),
        ("X-Forwarded-For", "5.6.7.8"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "1.2.3.4"),
    ]);
    let trusted = Forwarding {
        trusted: true,
        ..FROM
    };
    let out = sent(&head, trusted, &revision);
    assert_eq!(out.text("x-forwarded-for"), Some("1.2.3.4, 5.6.7.8, 10.0.0.9"));
    assert_eq!(out.count("x-forwarded-for"), 1);
    assert_eq!(out.text("x-forwarded-proto"), Some("https"));
    assert_eq!(out.text("x-real-ip"), Some("1.2.3.4"));
}

#[test]
fn hop_by_hop_fields_stay_here_and_names_pass_as_they_were_sent() {
    let head = Head::of(&[
        ("Connection", "X-Hop, keep-alive, x-forwarded-for, Host, Cookie"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Proxy-Authorization", "secret"),
        ("Content-Length", "3"),
        ("Transfer-Encoding", "chunked"),
        ("Cookie", "a=1"),
        ("cookie", "b=2"),
        ("X-KEPT", "1"),
    ]);
    let out = sent(&head, FROM, &revision(&[]));
    for gone in [
        "connection",
        "x-hop",
        "keep-alive",
        "te",
        "upgrade",
        "proxy-authorization",
        "content-length",
        "transfer-encoding",
    ] {
        assert_eq!(out.text(gone), None, "{gone}");
    }
    assert_eq!(out.text("cookie"), Some("a=1; b=2"));
    assert!(out.0.iter().any(|(name, _)| name == "X-KEPT"));
}

#[test]
fn responses_lose_hop_by_hop_fields_and_what_connection_names() {
    let head = Head::of(&[
        ("Connection", "X-Hop, keep-alive, set-cookie"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Content-Length", "3"),
        ("X-Sluice-Reason", "queue_full"),
        ("Set-Cookie", "a=1"),
        ("X-Kept", "1"),
    ]);
    let mut out = Head::default();
    assert!(!response_fields(&head, &mut out));
    let names: Vec<_> = out.0.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["Set-Cookie", "X-Kept"]);
    assert!(response_fields(
        &Head::of(&[("Date", "Mon, 01 Jan 2001 00:00:00 GMT")]),
        &mut out
    ));
}

#[test]
fn nominations_are_bounded() {
    let many = (0..1000).map(|n| format!("n{n}")).collect::<Vec<_>>().join(",");
    let head = Head::of(&[("connection", &many)]);
    assert_eq!(Nominated::of(&head).len, MAX_NOMINATIONS);
}

#[test]
fn trailers_that_frame_route_or_authenticate_are_refused() {
    for name in [
        "Content-Length",
        "HOST",
        "set-cookie",
        "authorization",
        "x-forwarded-for",
        "te",
    ] {
        assert!(!may_be_trailer(name.as_bytes()), "{name}");
    }
    for name in ["grpc-status", "x-checksum", "digest"] {
        assert!(may_be_trailer(name.as_bytes()), "{name}");
    }
}

#[test]
fn request_ids_are_kept_when_fit() {
    assert_eq!(RequestId::of(Some(b"abc-1"), || 0).as_str(), "abc-1");
    for bad in [&b""[..], b"a b", b"\xff", &[b'a'; 129]] {
        assert_eq!(
            RequestId::of(Some(bad), || 0xab).as_str(),
            format!("{:032x}", 0xab)
        );
    }
}

#[test]
fn hops_that_are_malformed_count_as_nothing() {
    assert_eq!(hops(Some(b"3")), 3);
    for nothing in [None, Some(&b""[..]), Some(b"-1"), Some(b"1234567890"), Some(b"x")] {
        assert_eq!(hops(nothing), 0, "{nothing:?}");
    }
}

#[test]
fn cookies_and_grpc_timeouts_are_read() {
    assert_eq!(cookie(b"a=1; user=me=2 ;b=", "user"), Some(&b"me=2"[..]));
    assert_eq!(cookie(b"xuser=1", "user"), None);
    assert_eq!(grpc_timeout(b"100m"), Some(Duration::from_millis(100)));
    assert_eq!(grpc_timeout(b"2S"), Some(Duration::from_secs(2)));
    for bad in [&b""[..], b"S", b"123456789S", b"-1S", b"+1S", b"1x"] {
        assert_eq!(grpc_timeout(bad), None);
    }
}

#[test]
fn trace_fields_are_the_clients_while_no_traces_are_made_and_ours_while_they_are() {
    const OWN: &[u8; 55] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let head = Head::of(&[
        ("TraceParent", "00-1"),
        ("tracestate", "a=1"),
        ("tracestate", "b=2"),
        ("b3", "0"),
        ("sw8", "1-x"),
    ]);
    let trace = |keeps_state| {
        Some(OutgoingTrace {
            traceparent: *OWN,
            keeps_state,
        })
    };
    let own = std::str::from_utf8(OWN).unwrap();
    for (trace, parent, states) in [(None, "00-1", 2), (trace(true), own, 2), (trace(false), own, 0)] {
        let out = traced(&head, FROM, &revision(&[]), trace);
        assert_eq!(
            (out.text("traceparent"), out.count("traceparent")),
            (Some(parent), 1)
        );
        assert_eq!(out.count("tracestate"), states);
        assert_eq!((out.text("b3"), out.text("sw8")), (Some("0"), Some("1-x")));
    }
    // What is configured wins, as it does over other fields of the gateway.
    let out = traced(&head, FROM, &revision(&[("traceparent", "fixed")]), trace(true));
    assert_eq!(
        (out.text("traceparent"), out.count("traceparent")),
        (Some("fixed"), 1)
    );
}
