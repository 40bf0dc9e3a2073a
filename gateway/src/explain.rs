//! `explain`: which listener, route, split and revision would serve a request, and why. Runs the data plane's
//! own find and pick, without a request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use sluice_model::{
    Backend, ColdAnswer, EndpointTarget, Found, ListenerSettings, NotFound, PathRewrite, RequestView,
    RevisionId, Scheme, Snapshot, TrafficSplit, Visibility, normalize_host,
};

use crate::admin::ExplainQuery;
use crate::request::{Draw, PickReason, RouteDecision, decide, named_revision, redirects};

/// A parsed URL, as far as routing needs it.
struct ParsedUrl<'u> {
    tls: bool,
    authority: &'u str,
    port: u16,
    explicit_port: bool,
    path: &'u str,
}

impl<'u> ParsedUrl<'u> {
    /// Parses a URL; `http` is assumed where it has no scheme, as browsers and curl do.
    ///
    /// # Errors
    /// A text for the operator.
    fn parse(url: &'u str) -> Result<Self, String> {
        let (tls, rest) = if let Some(rest) = url.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = url.strip_prefix("http://") {
            (false, rest)
        } else if let Some((scheme, _)) = url.split_once("://") {
            return Err(format!("the scheme '{scheme}' is not served: http and https are"));
        } else {
            (false, url)
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let path = target.split('?').next().unwrap_or_default();
        let after_host = authority.rfind(']').map_or(authority, |end| &authority[end..]);
        let port = after_host
            .rsplit_once(':')
            .map(|(_, port)| port)
            .filter(|p| !p.is_empty());
        let default = if tls { 443 } else { 80 };
        let number = match port {
            Some(text) => text
                .parse()
                .map_err(|_| format!("the port '{text}' is not a number up to 65535"))?,
            None => default,
        };
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self {
            tls,
            authority,
            port: number,
            explicit_port: port.is_some(),
            path,
        })
    }
}

struct QueryView<'q> {
    query: &'q ExplainQuery,
    path: &'q str,
}

impl RequestView for QueryView<'_> {
    fn method(&self) -> &str {
        &self.query.method
    }

    fn path(&self) -> &str {
        self.path
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.query
            .headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_bytes())
    }
}

/// Draws nothing: the shares are the result.
struct NoDraw;

impl<L> Draw<L> for NoDraw {
    fn draw(&mut self, _: &Found<'_, L>) -> u32 {
        0
    }
}

/// Explains a routing decision as JSON. `bound` has the addresses actually bound, in the order of the settings;
/// without a running gateway the configured ones serve.
///
/// The returned object has `found` (bool): whether something would serve the request. The text output is made of
/// the keys `listener`, `host`, `path`, `service`, `paused`, `rule` (of an Ingress with several), `route`, `tag`, `split`, `revision`, `backend`, `rewrite`,
/// `reason` and `why` (a list of sentences), all optional; further keys are shown as they are.
pub fn explain<L: Clone>(snapshot: &Snapshot<L>, bound: &[SocketAddr], query: &ExplainQuery) -> Value {
    let refused = |reason: &str, why: String| json!({"found": false, "reason": reason, "why": [why]});
    let target = match ParsedUrl::parse(&query.url) {
        Ok(target) => target,
        Err(why) => return refused("bad_request", why),
    };
    let Some((index, listener)) = listener_for(snapshot, bound, &target) else {
        let scheme = if target.tls { "https" } else { "http" };
        let why = if target.explicit_port {
            format!("no {scheme} listener has port {}", target.port)
        } else {
            format!("there is no external {scheme} listener")
        };
        return refused("no_listener", why);
    };
    let address = bound.get(index).copied().unwrap_or(listener.address);
    let shown = json!({
        "index": index,
        "address": address.to_string(),
        "visibility": match listener.visibility {
            Visibility::External => "external",
            Visibility::Internal => "internal",
        },
        "tls": listener.tls.is_some(),
    });
    let sent = query
        .headers
        .iter()
        .find(|(n, _)| n == "host")
        .map_or(target.authority, |(_, v)| v);
    let mut buf = [0; 256];
    let host = match normalize_host(sent.as_bytes(), &mut buf) {
        Ok(host) => host,
        Err(e) => {
            let mut value = refused("bad_request", format!("the host '{sent}' is not valid: {e}"));
            value["listener"] = shown;
            return value;
        }
    };
    let view = QueryView {
        query,
        path: target.path,
    };
    if let Some(domain) = &listener.activator {
        return to_revision(snapshot, shown, host, &view, domain);
    }
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match decide(snapshot, listener.visibility, host, &view, client, &mut NoDraw) {
        Ok(decision) => found(shown, host, &view, &decision, listener.tls.is_some()),
        Err(reason) => {
            // The operator may learn what clients must not: whether an internal service has the host.
            let why = match reason {
                NotFound::UnknownHost => format!("no service claims the host '{host}'"),
                NotFound::NotVisible => format!(
                    "'{host}' belongs to an internal service, which an external listener never serves"
                ),
                NotFound::NoMatch => format!("'{host}' is known, and no route of it matches the request"),
            };
            let mut value = refused("no_route", why);
            value["listener"] = shown;
            value["host"] = json!(host);
            value
        }
    }
}

/// Explains a request to an activator, which names its revision.
fn to_revision<L: Clone>(
    snapshot: &Snapshot<L>,
    listener: Value,
    host: &str,
    view: &QueryView<'_>,
    domain: &str,
) -> Value {
    let named = named_revision(view, Some(host.as_bytes()), domain);
    let found = named.as_ref().and_then(|id| snapshot.revision(id));
    let found = found.map(|(entry, slot)| (&entry.service.id, &entry.service.revisions[slot]));
    let Some((service, spec)) = found.filter(|(_, spec)| matches!(spec.backend, Backend::Pods(_))) else {
        let why = match named {
            Some(id) => format!("no revision {id} with Pods is known"),
            None => format!(
                "neither the fields Knative-Serving-Namespace and -Revision nor the host '{host}' name a revision"
            ),
        };
        return json!({"found": false, "reason": "no_route", "why": [why], "listener": listener, "host": host});
    };
    json!({
        "found": true,
        "listener": listener,
        "host": host,
        "path": view.path,
        "service": service.to_string(),
        "revision": spec.id.to_string(),
        "backend": backend(&spec.backend),
        "why": [format!("the listener is an activator's, and the request names revision {}", spec.id)],
    })
}

/// Adds how the revision that was found is scaled: `autoscaling`, `schedules` and `forecast`, of `revisions`, which has them by
/// id. A revision that nothing scales has none.
pub fn scaled(found: &mut Value, revisions: &Value) {
    let Some(scaling) = found["revision"].as_str().and_then(|id| revisions.get(id)) else {
        return;
    };
    let keys = ["mode", "minScale", "maxScale", "target"];
    let plain = keys.iter().map(|key| ((*key).to_owned(), scaling[key].clone()));
    found["autoscaling"] = plain.collect::<serde_json::Map<_, _>>().into();
    for key in ["schedules", "forecast"] {
        let value = &scaling[key];
        if !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()) {
            found[key] = value.clone();
        }
    }
}

/// The listener by the URL's port, else the first external listener of its scheme.
fn listener_for<'s, L>(
    snapshot: &'s Snapshot<L>,
    bound: &[SocketAddr],
    target: &ParsedUrl<'_>,
) -> Option<(usize, &'s ListenerSettings)> {
    let mut listeners = snapshot
        .settings()
        .listeners
        .iter()
        .enumerate()
        .filter(|(_, l)| l.tls.is_some() == target.tls);
    if target.explicit_port {
        let port = |i: usize, l: &ListenerSettings| bound.get(i).unwrap_or(&l.address).port();
        return listeners.find(|(i, l)| port(*i, l) == target.port);
    }
    listeners.find(|(_, l)| l.visibility == Visibility::External)
}

fn found<L>(
    listener: Value,
    host: &str,
    view: &QueryView<'_>,
    decision: &RouteDecision<'_, L>,
    tls: bool,
) -> Value {
    let service = decision.found.service;
    let rule = (!service.further.is_empty()).then_some(decision.found.rule_index);
    let mut why = vec![match rule {
        None => format!("'{host}' belongs to service {}", service.id),
        Some(rule) => format!("'{host}' belongs to rule {rule} of service {}", service.id),
    }];
    if redirects(&decision.found, tls) {
        why.push("httpOption is 'redirected': plain HTTP is answered with a redirect to https".to_owned());
        return json!({
            "found": true, "listener": listener, "host": host, "path": view.path,
            "service": service.id.to_string(), "redirect": format!("https://{host}{}", view.path), "why": why,
        });
    }
    match decision.found.route {
        Some((index, _)) => why.push(format!("route {index} is the first that matches")),
        None if decision.picked == PickReason::Tag => {}
        None if decision.found.rule.routes.is_empty() => {}
        None => why.push("no route matches: the service's own traffic is the last resort".to_owned()),
    }
    let tag =
        (decision.picked == PickReason::Tag).then(|| decision.target.tag.as_ref().map(ToString::to_string));
    let revision = match decision.picked {
        PickReason::Tag => {
            why.push("a tag leads to its revision whatever its percent".to_owned());
            Some(&decision.target.revision)
        }
        PickReason::Only => {
            why.push("this revision has 100 %".to_owned());
            Some(&decision.target.revision)
        }
        PickReason::Sticky => {
            why.push("the sticky key falls on this revision".to_owned());
            Some(&decision.target.revision)
        }
        PickReason::Drawn(_) => {
            why.push("each request draws one of these by its share".to_owned());
            None
        }
    };
    let route = decision.found.route.map(|(_, route)| route);
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let no_wake = service.no_wake.as_ref().map(|rules| rules.matches(view, client));
    if no_wake == Some(true) {
        why.push("noWake matches: at zero the request is rejected as dormant and starts nothing".to_owned());
    }
    if service.paused {
        why.push(
            "an operator paused the service: the request waits for `sluice resume`, no longer than queue.timeout"
                .to_owned(),
        );
    }
    let cold = route
        .and_then(|route| route.cold.as_ref())
        .or(service.cold.as_ref());
    let cold = match cold.map(AsRef::as_ref) {
        None | Some(ColdAnswer::Hold) => None,
        Some(ColdAnswer::Page(_)) => {
            why.push("at zero a browser gets the waiting page; other requests are held".to_owned());
            Some("page")
        }
        Some(ColdAnswer::Stream(_)) => {
            why.push(
                "at zero a client that accepts the format gets a stream; other requests are held".to_owned(),
            );
            Some("stream")
        }
    };
    let rewrite = route.map(|route| {
        json!({
            "host": route.rewrite_host,
            "path": route.rewrite_path.as_ref().and_then(|_| route.rewritten_path(view.path)),
            "pathRule": route.rewrite_path.as_ref().map(|rule| match rule {
                PathRewrite::Prefix(to) => json!({"prefix": to}),
                PathRewrite::Full(to) => json!({"full": to}),
            }),
            "appendHeaders": route.append_headers.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        })
    });
    json!({
        "found": true,
        "listener": listener,
        "host": host,
        "path": view.path,
        "service": service.id.to_string(),
        "paused": service.paused.then_some(true),
        "rule": rule,
        "route": decision.found.route.map(|(index, _)| index),
        "tag": tag.flatten(),
        "split": split(decision.found.split),
        "revision": revision.map(ToString::to_string),
        "backend": revision.map(|_| backend(&service.revisions[decision.target.slot].backend)),
        "needs": revision.map(|_| needs(&service.revisions[decision.target.slot].needs)),
        "rewrite": rewrite,
        "cold": cold,
        "noWake": no_wake,
        "why": why,
    })
}

/// The names of what a revision needs; `null` for nothing.
fn needs(needs: &[RevisionId]) -> Value {
    match needs {
        [] => Value::Null,
        needs => needs.iter().map(ToString::to_string).collect(),
    }
}

fn split(split: &TrafficSplit) -> Value {
    let targets = split.targets().iter().map(|target| {
        json!({
            "revision": target.revision.to_string(),
            "percent": f64::from(target.percent.hundredths()) / 100.0,
            "tag": target.tag.as_ref().map(ToString::to_string),
        })
    });
    targets.collect()
}

fn backend(kind: &Backend) -> Value {
    match kind {
        Backend::Static { targets, activated } => json!({
            "endpoints": targets.iter().map(EndpointTarget::to_string).collect::<Vec<_>>(),
            "activated": activated,
        }),
        Backend::Url(url) => {
            let scheme = match url.scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
            };
            json!({"url": format!("{scheme}://{}:{}{}", url.host, url.port, url.path_prefix)})
        }
        Backend::Managed => json!({"process": true}),
        Backend::Pods(pods) => json!({"pods": pods.all().map(|pod| pod.to_string()).collect::<Vec<_>>()}),
        Backend::Tiers(tiers) => {
            let tiers = tiers.iter().map(|tier| {
                let mut value = backend(&tier.backend);
                value["name"] = json!(tier.name.as_str());
                value["containerConcurrency"] = json!(tier.container_concurrency);
                value
            });
            json!({"tiers": tiers.collect::<Vec<_>>()})
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_model::{Pods, Service, SnapshotBuilder, test_util};

    use super::*;
    use crate::admin::fixture::{ingress, snapshot};

    #[test]
    fn a_revision_that_is_scaled_shows_how() {
        let schedules = json!([{"window": "0 8 * * 1-5 UTC for 10h", "minScale": 2, "maxScale": null}]);
        let revisions = json!({"default/a": {"mode": "observe", "minScale": 0, "maxScale": 5, "target": 70.0,
            "schedules": schedules, "forecast": null, "scaler": "kept to itself"}});
        let mut found = json!({"found": true, "revision": "default/a"});
        scaled(&mut found, &revisions);
        assert_eq!(
            found["autoscaling"],
            json!({"mode": "observe", "minScale": 0, "maxScale": 5, "target": 70.0})
        );
        assert_eq!(
            (&found["schedules"], &found["forecast"]),
            (&schedules, &Value::Null)
        );
        let mut other = json!({"found": true, "revision": "default/b"});
        scaled(&mut other, &revisions);
        assert_eq!(other, json!({"found": true, "revision": "default/b"}));
    }

    fn explained<L: Clone>(snapshot: &Snapshot<L>, url: &str) -> Value {
        // The external listener, then the internal one.
        let bound = [8080, 8081].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let query = ExplainQuery::new(url, "GET", &[]).unwrap();
        explain(snapshot, &bound, &query)
    }

    #[test]
    fn the_rule_of_the_host_decides() {
        let ingress = ingress();
        let inside = "greeter.default.svc.cluster.local";
        let value = explained(&ingress, "http://greeter.default.localhost:8080/v2");
        assert_eq!(
            (&value["found"], &value["rule"], &value["route"]),
            (&json!(true), &json!(0), &json!(0))
        );
        let refused = |value: Value, why: &str| {
            assert_eq!(
                (&value["found"], &value["reason"]),
                (&json!(false), &json!("no_route"))
            );
            assert!(value["why"][0].as_str().unwrap().contains(why), "{value:#}");
        };
        refused(
            explained(&ingress, &format!("http://{inside}:8080/v2")),
            "an internal service",
        );
        refused(
            explained(&ingress, &format!("http://{inside}:8081/")),
            "no route of it matches",
        );
        refused(
            explained(&ingress, "http://other:8081/"),
            "no service claims the host",
        );
        let value = explained(&ingress, &format!("http://{inside}:8081/v2"));
        assert_eq!(value["redirect"], json!(format!("https://{inside}/v2")));
        assert!(
            value["why"][0].as_str().unwrap().contains("rule 1 of service"),
            "{value:#}"
        );
        // The first rule redirects nobody, and a service of a file has no rules to tell apart.
        let value = explained(&ingress, "http://greeter.default.localhost:8081/");
        assert_eq!((&value["redirect"], &value["rule"]), (&Value::Null, &json!(0)));
        let value = explained(&snapshot(), "http://greeter.default.localhost:8080/");
        assert_eq!((&value["found"], &value["rule"]), (&json!(true), &Value::Null));
    }

    #[test]
    fn to_an_activator_the_named_revision_decides() {
        let mut settings = test_util::settings();
        settings.listeners.push(ListenerSettings {
            activator: Some("cluster.local".into()),
            ..test_util::listener()
        });
        let mut builder = SnapshotBuilder::new(settings);
        let mut service = Service::clone(snapshot().services()[0]);
        let pods = Pods {
            ready: vec![([10, 0, 0, 1], 8012).into()],
            starting: vec![],
            failure: None,
            owner: Arc::default(),
        };
        Arc::make_mut(&mut service.revisions[0]).backend = Backend::Pods(Box::new(pods));
        builder.service(service).unwrap();
        let snapshot = builder.build();
        let value = explained(&snapshot, "http://greeter-v1.default:8081/x");
        assert_eq!(value["revision"], json!("default/greeter-v1"), "{value:#}");
        assert_eq!(value["backend"], json!({"pods": ["10.0.0.1:8012"]}));
        for (host, why) in [
            ("greeter-v2.default", "no revision default/greeter-v2 with Pods"),
            ("greeter", "name a revision"),
        ] {
            let value = explained(&snapshot, &format!("http://{host}:8081/"));
            assert_eq!(value["reason"], json!("no_route"), "{value:#}");
            assert!(value["why"][0].as_str().unwrap().contains(why), "{value:#}");
        }
    }

    #[test]
    fn urls_are_taken_apart() {
        let parse = |url| {
            ParsedUrl::parse(url).map(|t| {
                (
                    t.tls,
                    t.authority.to_owned(),
                    t.port,
                    t.explicit_port,
                    t.path.to_owned(),
                )
            })
        };
        assert_eq!(
            parse("http://a.b:8080/x?y#z"),
            Ok((false, "a.b:8080".into(), 8080, true, "/x".into()))
        );
        assert_eq!(
            parse("https://a.b"),
            Ok((true, "a.b".into(), 443, false, "/".into()))
        );
        assert_eq!(parse("a.b/x"), Ok((false, "a.b".into(), 80, false, "/x".into())));
        assert_eq!(
            parse("http://[::1]/"),
            Ok((false, "[::1]".into(), 80, false, "/".into()))
        );
        assert_eq!(
            parse("http://[::1]:81?q"),
            Ok((false, "[::1]:81".into(), 81, true, "/".into()))
        );
        assert!(parse("ftp://a").is_err() && parse("http://a:99999").is_err());
    }
}
