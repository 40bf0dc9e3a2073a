//! Fuzzes routing: any path against any match and rewrite, and any URL through `explain`, which has to decide as the
//! request path does.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use sluice_control::compile;
use sluice_control::config::SourceFile;
use sluice_fuzz::choice;
use sluice_gateway::admin::ExplainQuery;
use sluice_gateway::explain::explain;
use sluice_model::{
    PathMatch, PathRewrite, Percent, RevisionId, Route, RouteMatch, Snapshot, TrafficSplit, TrafficTarget,
};

/// One host with every kind of path match and rewrite.
const CONFIG: &str = "\
listeners: [{address: 127.0.0.1:8080}]
services:
  - name: a
    hosts: [a.example, '*.w.example']
    routes:
      - match: {path: {exact: /exact}}
        rewritePath: {full: /full}
        traffic: [{revisionName: one, percent: 100}]
      - match: {path: {prefix: /api}}
        rewritePath: {prefix: /}
        traffic: [{revisionName: one, percent: 100}]
    traffic: [{revisionName: one, percent: 50, tag: t}, {revisionName: two, percent: 50}]
    revisions:
      - {name: one, endpoints: [127.0.0.1:1]}
      - {name: two, endpoints: [127.0.0.1:2]}
";

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let file = SourceFile {
        path: "/etc/sluice.yaml".into(),
        text: CONFIG.to_owned(),
    };
    let compiled = compile::load(&[file], &|_| None);
    compiled.unwrap_or_else(|e| panic!("{e}")).snapshot
});

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let (matched, rewritten) = (choice(&mut data), choice(&mut data));
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    url(text);
    let mut parts = text.splitn(3, '\n');
    let (Some(path), Some(from), Some(to)) = (parts.next(), parts.next(), parts.next()) else {
        return;
    };
    // The compiler lets only prefixes with a leading slash through, and every path but `*` has one.
    if path != "*" && !path.starts_with('/') || !from.starts_with('/') || !to.starts_with('/') {
        return;
    }
    one(path, from, to, matched, rewritten);
});

fn url(text: &str) {
    let query = ExplainQuery {
        url: text.to_owned(),
        method: "GET".to_owned(),
        headers: Vec::new(),
    };
    let answer = explain(&SNAPSHOT, &[], &query);
    let found = answer["found"]
        .as_bool()
        .expect("says whether it found something");
    if found {
        let path = answer["path"].as_str().expect("a path");
        assert!(path.starts_with('/') && !path.contains(['?', '#']), "{path}");
        let is_exact = path == "/exact";
        let is_api = path == "/api" || path.starts_with("/api/");
        let route = if is_exact { Some(0) } else { is_api.then_some(1) };
        assert_eq!(
            answer["route"].as_u64(),
            route.filter(|_| answer["tag"].is_null()),
            "{answer}"
        );
    }
}

fn one(path: &str, from: &str, to: &str, matched: u8, rewritten: u8) {
    let route = Route {
        matches: RouteMatch {
            path: match matched % 4 {
                0 => None,
                1 => Some(PathMatch::Exact(from.to_owned())),
                2 => Some(PathMatch::Prefix(from.to_owned())),
                _ => Some(PathMatch::RawPrefix(from.to_owned())),
            },
            ..RouteMatch::default()
        },
        rewrite_host: None,
        rewrite_path: match rewritten % 3 {
            0 => None,
            1 => Some(PathRewrite::Full(to.to_owned())),
            _ => Some(PathRewrite::Prefix(to.to_owned())),
        },
        append_headers: Arc::default(),
        cold: None,
        split: everything(),
    };
    let matches = route.matches.path.as_ref().is_none_or(|p| p.matches(path));
    if let Some(PathMatch::Prefix(_)) = &route.matches.path {
        let whole = from.trim_end_matches('/');
        let want = path == whole || path.starts_with(&format!("{whole}/"));
        assert_eq!(matches, want, "{path:?} under {from:?}");
    }
    let becomes = route.rewritten_path(path);
    if matches {
        assert_eq!(becomes.is_some(), route.rewrite_path.is_some());
    }
    if let Some(becomes) = becomes {
        assert!(becomes.starts_with('/'), "{path:?} becomes {becomes:?}");
    }
}

fn everything() -> TrafficSplit {
    let target = TrafficTarget {
        revision: RevisionId::parse("default", "one").expect("a name"),
        slot: 0,
        percent: Percent::from_hundredths(Percent::WHOLE).expect("a share"),
        tag: None,
        append_headers: Arc::default(),
    };
    TrafficSplit::new(vec![target]).expect("adds up")
}
