use super::*;
use crate::name::{RevisionId, ServiceId};
use crate::route::{HeaderMatch, HeaderMatcher, HttpOption, PathMatch, RouteMatch, Rule};
use crate::split::Percent;
use proptest::prelude::*;

struct Request {
    method: &'static str,
    path: String,
    beta: bool,
}

impl RequestView for Request {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        (self.beta && name == "x-beta").then_some(b"1".as_slice())
    }
}

fn split(name: &str, tag: Option<&str>) -> TrafficSplit {
    TrafficSplit::new(vec![TrafficTarget {
        revision: RevisionId::parse("default", name).expect("a name"),
        slot: 0,
        percent: Percent::from_hundredths(10_000).expect("a share"),
        tag: tag.map(|t| Tag::parse(t).expect("a tag")),
        append_headers: Arc::default(),
    }])
    .expect("a split")
}

fn entry(service: &Arc<Service>) -> Entry {
    Entry {
        service: Arc::clone(service),
        live: (),
    }
}

fn service(n: usize, visibility: Visibility, routes: Vec<RouteMatch>) -> Arc<Service> {
    ingress(n, visibility, routes, false, false)
}

/// A service whose rule is its first or its second one, with traffic of its own or, if `bare`, for its routes alone.
fn ingress(
    n: usize,
    visibility: Visibility,
    routes: Vec<RouteMatch>,
    second: bool,
    bare: bool,
) -> Arc<Service> {
    let bare = bare && !routes.is_empty();
    let routes = routes
        .into_iter()
        .enumerate()
        .map(|(i, matches)| Route {
            matches,
            rewrite_host: None,
            rewrite_path: None,
            append_headers: Arc::default(),
            cold: None,
            split: split(&format!("s{n}-route{i}"), None),
        })
        .collect();
    let rule = Rule {
        visibility,
        http_option: HttpOption::Enabled,
        routes,
        split: if bare {
            TrafficSplit::none()
        } else {
            split(&format!("s{n}"), Some("t"))
        },
    };
    let decoy = Rule {
        visibility: Visibility::External,
        http_option: HttpOption::Enabled,
        routes: vec![],
        split: split("decoy", None),
    };
    Arc::new(Service {
        id: ServiceId::parse("default", &format!("s{n}")).expect("a name"),
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts: vec![],
        revisions: vec![],
        main: if second { decoy } else { rule.clone() },
        further: if second { Box::from([rule]) } else { Box::default() },
        ingress: None,
    })
}

/// A claim of a host for the first rule.
fn host(raw: &str) -> HostClaim {
    HostClaim {
        pattern: HostPattern::parse(raw).expect("a pattern"),
        rule: 0,
        tag: None,
    }
}

/// The reference for `find`: a scan of all patterns that keeps the best one.
fn scan<'a>(
    patterns: &'a [(HostPattern, Arc<Service>, bool)],
    listener: Visibility,
    host: &str,
    request: &Request,
) -> Option<&'a str> {
    let rank = |p: &HostPattern| match p {
        HostPattern::Exact(_) => usize::MAX,
        HostPattern::Wildcard(suffix) => suffix.as_str().len(),
        HostPattern::Any => 0,
    };
    let (_, service, tagged) = patterns
        .iter()
        .filter(|(p, ..)| p.matches(host))
        .max_by_key(|(p, ..)| rank(p))?;
    let rule = service.rules().last().expect("a rule");
    if listener == Visibility::External && rule.visibility == Visibility::Internal {
        return None;
    }
    let split = if *tagged {
        &rule.split
    } else {
        let mut routes = rule.routes.iter();
        routes
            .find(|r| r.matches.matches(request))
            .map_or(&rule.split, |r| &r.split)
    };
    Some(split.targets().first()?.revision.name())
}

fn label() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "d-e"]).prop_map(str::to_owned)
}

fn host_text() -> impl Strategy<Value = String> {
    prop::collection::vec(label(), 1..5).prop_map(|labels| labels.join("."))
}

fn route_match() -> impl Strategy<Value = RouteMatch> {
    let path = prop::option::of(prop_oneof![
        Just(PathMatch::Exact("/v2".into())),
        Just(PathMatch::Prefix("/v2".into())),
        Just(PathMatch::RawPrefix("/v".into())),
    ]);
    let header = HeaderMatch {
        name: "x-beta".into(),
        matcher: HeaderMatcher::Exact("1".into()),
    };
    (path, any::<bool>(), any::<bool>()).prop_map(move |(path, beta, get)| RouteMatch {
        path,
        headers: if beta { vec![header.clone()] } else { vec![] },
        methods: if get { vec!["GET".into()] } else { vec![] },
    })
}

/// The first is `None` for every host.
type Claim = (Option<String>, bool, bool, bool, (bool, bool), Vec<RouteMatch>);

fn claim() -> impl Strategy<Value = Claim> {
    (
        prop::option::weighted(0.9, host_text()),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<(bool, bool)>(),
        prop::collection::vec(route_match(), 0..3),
    )
}

proptest! {
    #[test]
    fn find_equals_a_linear_scan(
        claims in prop::collection::vec(claim(), 0..24),
        removed in prop::collection::vec(prop_oneof![Just("*".to_owned()), host_text()], 0..3),
        hosts in prop::collection::vec(host_text(), 1..24),
        path in prop::sample::select(vec!["/", "/v2", "/v2/x", "/v2x"]),
        beta in any::<bool>(),
        method in prop::sample::select(vec!["GET", "POST"]),
        internal in any::<bool>(),
    ) {
        let mut table = RouteTable::default();
        let mut patterns: Vec<(HostPattern, Arc<Service>, bool)> = Vec::new();
        for (n, (host, wildcard, hidden, tagged, (second, bare), routes)) in claims.into_iter().enumerate() {
            let raw = host.map(|host| if wildcard { format!("*.{host}") } else { host });
            let pattern = raw.map_or(HostPattern::Any, |raw| HostPattern::parse(&raw).expect("a pattern"));
            let visibility = if hidden { Visibility::Internal } else { Visibility::External };
            let service = ingress(n, visibility, routes, second, bare);
            let tag = Tag::parse("t").expect("a tag");
            let tagged = tagged && !service.rule(usize::from(second)).split.is_none();
            let claim = HostClaim { pattern: pattern.clone(), rule: u16::from(second), tag: tagged.then_some(tag) };
            let added = table.insert(&claim, &entry(&service));
            let taken = patterns.iter().any(|(p, ..)| *p == pattern);
            prop_assert_eq!(added.is_err(), taken);
            if !taken {
                patterns.push((pattern, service, tagged));
            }
        }
        // What is removed is as if it had never been there.
        for (pattern, ..) in patterns.extract_if(.., |(pattern, ..)| removed.contains(&pattern.to_string())) {
            table.remove(&pattern);
        }
        let mut listed: Vec<_> = table.hosts().map(|(pattern, ..)| pattern).collect();
        listed.sort();
        let mut wanted: Vec<_> = patterns.iter().map(|(pattern, ..)| pattern.clone()).collect();
        wanted.sort();
        prop_assert_eq!(&listed, &wanted);
        prop_assert_eq!(table.len(), wanted.len());
        let listener = if internal { Visibility::Internal } else { Visibility::External };
        let request = Request { method, path: path.into(), beta };
        for host in hosts {
            let found = table.find(listener, &host, &request, None).ok();
            let name = found.map(|f| f.split.targets()[0].revision.name().to_owned());
            prop_assert_eq!(name.as_deref(), scan(&patterns, listener, &host, &request), "{}", host);
        }
    }
}

#[test]
fn every_host_is_no_pattern_that_can_be_written() {
    assert_eq!(HostPattern::Any.to_string(), "*");
    for raw in ["*", "*.", "", "."] {
        assert!(HostPattern::parse(raw).is_err(), "{raw}");
    }
    let mut table = RouteTable::default();
    let all = HostClaim {
        pattern: HostPattern::Any,
        ..host("h")
    };
    let service = service(0, Visibility::External, vec![]);
    table.insert(&all, &entry(&service)).expect("is free");
    assert!(table.insert(&all, &entry(&service)).is_err(), "claimed once");
    let request = Request {
        method: "GET",
        path: "/".into(),
        beta: false,
    };
    for host in ["h", "a.b.c", "[::1]", "10.0.0.1"] {
        assert!(
            table.find(Visibility::External, host, &request, None).is_ok(),
            "{host}"
        );
    }
    table.remove(&HostPattern::Any);
    assert!(table.find(Visibility::External, "h", &request, None).is_err());
    assert!(table.is_empty());
}

#[test]
fn exact_beats_wildcard_and_the_longer_wildcard_the_shorter() {
    let mut table = RouteTable::default();
    for (n, raw) in ["*.example.com", "*.a.example.com", "x.a.example.com"]
        .into_iter()
        .enumerate()
    {
        table
            .insert(&host(raw), &entry(&service(n, Visibility::External, vec![])))
            .expect("is free");
    }
    let request = Request {
        method: "GET",
        path: "/".into(),
        beta: false,
    };
    let name = |host: &str| {
        table
            .find(Visibility::External, host, &request, None)
            .map(|f| f.service.id.name().to_owned())
    };
    assert_eq!(name("x.a.example.com").as_deref(), Ok("s2"));
    assert_eq!(name("y.a.example.com").as_deref(), Ok("s1"));
    assert_eq!(name("y.x.a.example.com").as_deref(), Ok("s1"));
    assert_eq!(name("b.example.com").as_deref(), Ok("s0"));
    assert_eq!(name("example.com"), Err(NotFound::UnknownHost));
}

#[test]
fn the_tag_header_selects_and_an_unknown_tag_is_ignored() {
    let mut table = RouteTable::default();
    let service = service(0, Visibility::External, vec![RouteMatch::default()]);
    table.insert(&host("h"), &entry(&service)).expect("is free");
    let request = Request {
        method: "GET",
        path: "/".into(),
        beta: false,
    };
    let find = |tag| {
        table
            .find(Visibility::External, "h", &request, tag)
            .expect("a route")
    };
    assert!(find(Some("t")).tagged.is_some());
    assert!(find(Some("nope")).tagged.is_none() && find(Some("nope")).route.is_some());
}
