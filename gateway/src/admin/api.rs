//! The JSON of the admin API. Settings are spelled as in a configuration, measured values as in metrics and
//! access log; an absent value is `null`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use sluice_model::{
    AccessLogFormat, AdminSettings, Backend, HeaderMatcher, HttpOption, PathMatch, PathRewrite, ProbeKind,
    Protocol, ProxyProtocolMode, RevisionId, RevisionSpec, Route, RouteMatch, Rule, ScalingStatus, Scheme,
    Service, ServiceId, Settings, Snapshot, StickyScope, StickySource, TlsVersion, TrafficSplit, Visibility,
};

use super::{AdminState, ReleaseView, tiers};
use crate::observe::{ListenerCertificates, RevisionLoad};
use crate::replicas::ReplicaStatus;

/// A token: `***`, or `null` where there is none.
pub(super) fn redacted_token(settings: &AdminSettings) -> Value {
    json!(settings.token.as_ref().map(ToString::to_string))
}

/// Redacts a map with these names: they stay, values become `***`.
pub fn redacted<'n>(names: impl Iterator<Item = &'n String>) -> Value {
    names.map(|name| (name.clone(), json!("***"))).collect()
}

/// `/api/routes`: `{generation, hosts: [{host, service, rule, tag}], services: [{namespace, name,
/// visibility, httpOption, paused, sticky, routes: [{match, rewriteHost, rewritePath, appendHeaders,
/// traffic}], traffic: [{revisionName, percent, tag}], furtherRules: [{visibility, httpOption,
/// routes, traffic}]}]}`. Hosts are sorted; `tag` is set where the host routes to a tagged revision. Only the Ingress
/// of a cluster has further rules; `rule` is the index of the host's rule then, 0 for the one that the service shows as
/// its own.
pub fn routes<L: Clone>(snapshot: &Snapshot<L>) -> Value {
    let mut hosts: Vec<_> = snapshot.table().host_rules().collect();
    hosts.sort_by(|a, b| a.0.cmp(&b.0));
    let hosts: Vec<Value> = hosts
        .into_iter()
        .map(|(pattern, service, rule, tag)| {
            json!({
                "host": pattern.to_string(),
                "service": service.id.to_string(),
                "rule": (!service.further.is_empty()).then_some(rule),
                "tag": tag.map(ToString::to_string),
            })
        })
        .collect();
    let services: Vec<Value> = snapshot.services().into_iter().map(|s| service(s)).collect();
    json!({"generation": snapshot.generation.0, "hosts": hosts, "services": services})
}

/// A service with its routes and traffic, as in `/api/routes`.
pub(super) fn service(service: &Service) -> Value {
    let sticky = service.sticky.as_ref().map(|sticky| {
        let (key, value) = match &sticky.source {
            StickySource::Cookie(name) => ("cookie", json!(name)),
            StickySource::Header(name) => ("header", json!(name)),
            StickySource::ClientIp => ("clientIp", json!(true)),
        };
        let scope = match sticky.scope {
            StickyScope::Revision => "revision",
            StickyScope::Endpoint => "endpoint",
        };
        json!({key: value, "scope": scope})
    });
    json!({
        "namespace": service.id.namespace(),
        "name": service.id.name(),
        "visibility": visibility(service.main.visibility),
        "httpOption": http_option(service.main.http_option),
        "paused": service.paused,
        "sticky": sticky,
        "routes": service.main.routes.iter().map(route).collect::<Vec<_>>(),
        "traffic": traffic(&service.main.split),
        "furtherRules": service.further.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn rule(rule: &Rule) -> Value {
    json!({
        "visibility": visibility(rule.visibility),
        "httpOption": http_option(rule.http_option),
        "routes": rule.routes.iter().map(route).collect::<Vec<_>>(),
        "traffic": traffic(&rule.split),
    })
}

fn http_option(option: HttpOption) -> &'static str {
    match option {
        HttpOption::Enabled => "enabled",
        HttpOption::Redirected => "redirected",
    }
}

fn route(route: &Route) -> Value {
    json!({
        "match": matches(&route.matches),
        "rewriteHost": route.rewrite_host,
        "rewritePath": route.rewrite_path.as_ref().map(|rewrite| match rewrite {
            PathRewrite::Prefix(to) => json!({"prefix": to}),
            PathRewrite::Full(to) => json!({"full": to}),
        }),
        "appendHeaders": redacted(route.append_headers.iter().map(|(name, _)| name)),
        "traffic": traffic(&route.split),
    })
}

fn matches(matches: &RouteMatch) -> Value {
    let path = matches.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => json!({"exact": path}),
        PathMatch::Prefix(path) => json!({"prefix": path}),
        PathMatch::RawPrefix(path) => json!({"rawPrefix": path}),
    });
    let headers: Map<String, Value> = matches
        .headers
        .iter()
        .map(|header| {
            let matcher = match &header.matcher {
                HeaderMatcher::Exact(value) => json!({"exact": value}),
                HeaderMatcher::Prefix(value) => json!({"prefix": value}),
                HeaderMatcher::Present => json!({"present": true}),
            };
            (header.name.clone(), matcher)
        })
        .collect();
    json!({"path": path, "headers": headers, "methods": matches.methods})
}

fn traffic(split: &TrafficSplit) -> Value {
    let targets = split.targets().iter().map(|target| {
        json!({
            "revisionName": target.revision.name(),
            "percent": percent(target.percent.hundredths()),
            "tag": target.tag.as_ref().map(ToString::to_string),
        })
    });
    targets.collect()
}

/// A percentage as in a configuration file: 50, 33.33.
fn percent(hundredths: u32) -> Value {
    if hundredths.is_multiple_of(100) {
        json!(hundredths / 100)
    } else {
        json!(f64::from(hundredths) / 100.0)
    }
}

/// `/api/revisions`: `{generation, revisions: [{namespace, service, revision, percent, tags,
/// state, ready, desired, in_flight, queued, last_decision, last_failure, starts, scaling, endpoints:
/// [{address, state, in_flight}], tiers, needs, waits_for, held_by}]}`, sorted by namespace, service, revision. The last
/// four are absent where there are none; `waits_for` has what it needs while that is being started, `held_by` the
/// revisions that run and need it, so that it is held above zero.
///
/// Of a service that has them, each revision has its `rollout` and `override`, and of one that is a manifest `created`,
/// `last_active` and `difference` too: [`ReleaseView`]. `service`: only its revisions.
///
/// `percent` is the sum over the service's own traffic; 0 does not mean unreachable, routes and
/// tags may lead to the revision. `desired` is `null` where nothing scales. A revision that is no longer
/// configured but still drains has `percent: null` and the `state` `leaving`; all others are `serving`. An endpoint's `state` is `starting`, `ready`, `ejected` or `draining`.
pub fn revisions(state: &dyn AdminState, service: Option<&ServiceId>) -> Value {
    let snapshot = state.table();
    let mut loads: BTreeMap<RevisionId, RevisionLoad> = state
        .loads()
        .into_iter()
        .map(|load| (load.revision.clone(), load))
        .collect();
    let mut rows: Vec<((String, String, String), Value)> = Vec::new();
    let is_asked = |id: &ServiceId| service.is_none_or(|service| service == id);
    let mut releases = Releases::new(state);
    for spec in snapshot.revisions() {
        let load = loads.remove(&spec.id);
        if !is_asked(&spec.service) {
            continue;
        }
        let Some(entry) = snapshot.service(&spec.service) else {
            continue;
        };
        let row = Row::configured(&spec.id, &entry.service, load.as_ref());
        let mut value = row.value(state);
        releases.add(&mut value, &spec.service, &spec.id);
        rows.push((row.key(), value));
    }
    for load in loads.values().filter(|load| is_asked(&load.service)) {
        let row = Row::leaving(load);
        let mut value = row.value(state);
        releases.add(&mut value, &load.service, &load.revision);
        rows.push((row.key(), value));
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    let mut value = json!({"generation": snapshot.generation.0, "revisions": rows});
    let replicas = state.replicas();
    if !replicas.is_empty() {
        value["replicas"] = replicas.iter().map(replica).collect();
    }
    value
}

/// Another replica, as this one sees it.
fn replica(replica: &ReplicaStatus) -> Value {
    json!({
        "name": &*replica.name, "serves": replica.serves, "connected": replica.is_connected,
        "forSeconds": replica.since.as_secs(), "agrees": replica.agrees, "holdsSlots": replica.holds,
    })
}

/// The releases of services whose revisions come one after the other.
struct Releases<'s> {
    state: &'s dyn AdminState,
    last: Option<(ServiceId, Option<Release>)>,
}

/// A release with the differences of its templates.
type Release = (ReleaseView, BTreeMap<String, Vec<String>>);

impl<'s> Releases<'s> {
    fn new(state: &'s dyn AdminState) -> Self {
        Self { state, last: None }
    }

    /// Adds to a revision what its service is besides what files say.
    fn add(&mut self, row: &mut Value, service: &ServiceId, revision: &RevisionId) {
        if self.last.as_ref().is_none_or(|(last, _)| last != service) {
            let release = self.state.release(service);
            let release = release.map(|release| (release, self.state.differences(service)));
            self.last = Some((service.clone(), release));
        }
        let Some((_, Some((release, differences)))) = &self.last else {
            return;
        };
        for (key, value) in [("rollout", &release.rollout), ("override", &release.overridden)] {
            if !value.is_null() {
                row[key] = value.clone();
            }
        }
        let kept = release.revisions.get(revision.name()).and_then(Value::as_object);
        for (key, value) in kept.into_iter().flatten() {
            row[key] = value.clone();
        }
        if let Some(difference) = differences.get(revision.name()) {
            row["difference"] = json!(difference);
        }
    }
}

/// One revision of `/api/revisions`.
pub(super) struct Row<'r> {
    pub(super) id: &'r RevisionId,
    service: &'r str,
    percent: Value,
    tags: Vec<String>,
    load: Option<&'r RevisionLoad>,
}

impl<'r> Row<'r> {
    /// A revision that a service has.
    pub(super) fn configured(
        id: &'r RevisionId,
        service: &'r Service,
        load: Option<&'r RevisionLoad>,
    ) -> Self {
        let targets = || service.main.split.targets().iter().filter(|t| t.revision == *id);
        let share: u32 = targets().map(|t| t.percent.hundredths()).sum();
        Self {
            id,
            service: service.id.name(),
            percent: percent(share),
            tags: targets()
                .filter_map(|t| t.tag.as_ref().map(ToString::to_string))
                .collect(),
            load,
        }
    }

    /// A revision that is no longer configured, and drains.
    pub(super) fn leaving(load: &'r RevisionLoad) -> Self {
        Self {
            id: &load.revision,
            service: load.service.name(),
            percent: Value::Null,
            tags: Vec::new(),
            load: Some(load),
        }
    }

    fn key(&self) -> (String, String, String) {
        let names = [self.id.namespace(), self.service, self.id.name()];
        names.map(str::to_owned).into()
    }

    pub(super) fn value(&self, state: &dyn AdminState) -> Value {
        let table = state.table();
        let status = tiers::status(state, &table, self.id);
        let loads = state.endpoints(self.id);
        let tiers = tiers::tiers(state, &table, self.id, &loads);
        let endpoints: Vec<Value> = loads
            .into_iter()
            .map(|endpoint| {
                json!({
                    "address": endpoint.address.to_string(),
                    "state": endpoint.condition.as_str(),
                    "in_flight": endpoint.in_flight,
                })
            })
            .collect();
        let mut value = json!({
            "namespace": self.id.namespace(),
            "service": self.service,
            "revision": self.id.name(),
            "percent": self.percent,
            "tags": self.tags,
            "state": if self.load.is_some_and(|l| l.leaving) { "leaving" } else { "serving" },
            "ready": self.load.map_or(0, |l| l.ready),
            "desired": status.as_ref().map(|s| s.desired),
            "in_flight": self.load.map_or(0, |l| l.in_flight),
            "queued": self.load.map_or(0, |l| l.queued),
            "last_decision": status.as_ref().and_then(|s| s.last_decision.clone()),
            "last_failure": status.as_ref().and_then(|s| s.last_failure.clone()),
            "starts": status.as_ref().map(|s| s.starts),
            "scaling": state.scaling_status(self.id).map(|scaling| self::scaling(&scaling)),
            "endpoints": endpoints,
        });
        // Absent where there are none: most revisions have neither.
        if !tiers.is_null() {
            value["tiers"] = tiers;
        }
        for (key, names) in tiers::needs(&table, self.id, status.as_ref()) {
            if names.as_array().is_some_and(|names| !names.is_empty()) {
                value[key] = names;
            }
        }
        value
    }
}

/// The autoscaler's view of a revision: `{source, wanted: {reactive, panic, schedule, forecast, need, minScale, maxScale},
/// observed: {desired, last_decision, cold_starts, instance_hours}, forecast: {seasons, trusted, floor, cold_starts,
/// cold_starts_with_forecast, extra_instance_hours}}`. `source` is the signal that set the number of instances, `wanted` what each
/// signal called for. `observed` is `null` unless the mode is observe. The last three of `forecast` are of the season that was
/// judged last.
fn scaling(scaling: &ScalingStatus) -> Value {
    let ScalingStatus {
        source,
        wants,
        instance_seconds: _,
        observed,
        forecast,
    } = scaling;
    json!({
        "source": source.as_str(),
        "wanted": {
            "reactive": wants.reactive,
            "panic": wants.panic,
            "schedule": wants.schedule,
            "forecast": wants.forecast,
            "need": wants.need,
            "rollout": wants.rollout,
            "minScale": wants.min_scale,
            "maxScale": wants.max_scale,
        },
        "observed": observed.as_ref().map(|observed| json!({
            "desired": observed.desired,
            "last_decision": observed.last_decision,
            "cold_starts": observed.cold_starts,
            "instance_hours": hours(observed.instance_seconds),
        })),
        "forecast": forecast.map(|forecast| json!({
            "seasons": forecast.seasons,
            "trusted": forecast.trusted,
            "floor": forecast.floor,
            "cold_starts": forecast.cold_starts,
            "cold_starts_with_forecast": forecast.cold_starts_with_forecast,
            "extra_instance_hours": forecast.extra_instance_seconds.map(hours),
        })),
    })
}

/// Hours, to the hundredth: rounded, so that who follows the changes does not hear of every second.
fn hours(seconds: f64) -> f64 {
    (seconds / 36.0).round() / 100.0
}

/// `/api/config`: `{generation, version, pid, startedAt, bound: {listeners, admin, health}, certificates: [{listener,
/// name, notAfter}], settings, revisions, scaling}`. `bound` has the addresses actually bound, `certificates` what each
/// listener serves, from files and Secrets, `settings` the file's values with defaults filled in, `scaling` what
/// [`AdminState::scaling`] gives. Durations are text as in a file; no
/// limit is `null`.
pub fn config(state: &dyn AdminState) -> Value {
    let snapshot = state.table();
    let bound = state.bound();
    json!({
        "generation": snapshot.generation.0,
        "version": env!("CARGO_PKG_VERSION"),
        // The process that responds: after an upgrade another one.
        "pid": std::process::id(),
        "startedAt": humantime::format_rfc3339_millis(state.started()).to_string(),
        "bound": {
            "listeners": bound.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "admin": bound.admin.to_string(),
            "health": bound.health.map(|a| a.to_string()),
        },
        "certificates": certificates(&state.certificates()),
        "settings": settings(snapshot.settings()),
        "revisions": snapshot.revisions().into_iter().map(|r| revision(r)).collect::<Vec<_>>(),
        "scaling": state.scaling(),
    })
}

fn certificates(listeners: &[ListenerCertificates]) -> Vec<Value> {
    let of_listener = |listener: &ListenerCertificates| {
        let address = listener.listener.to_string();
        let row = move |(name, end): &(String, SystemTime)| {
            let end = humantime::format_rfc3339_seconds(*end).to_string();
            json!({"listener": address, "name": name, "notAfter": end})
        };
        listener.ends.iter().map(row).collect::<Vec<_>>()
    };
    listeners.iter().flat_map(of_listener).collect()
}

fn settings(settings: &Settings) -> Value {
    let listeners: Vec<Value> = settings
        .listeners
        .iter()
        .map(|listener| {
            json!({
                "address": listener.address.to_string(),
                "visibility": visibility(listener.visibility),
                "tls": listener.tls.as_ref().map(|tls| json!({
                    // A certificate's path is no secret; a key's path is redacted.
                    "certificates": tls.certificates.iter()
                        .map(|c| json!({"certFile": c.cert_file.display().to_string(), "keyFile": "***"}))
                        .collect::<Vec<_>>(),
                    "minVersion": match tls.min_version {
                        TlsVersion::Tls12 => "1.2",
                        TlsVersion::Tls13 => "1.3",
                    },
                    "cipherSuites": tls.cipher_suites.as_ref()
                        .map(|suites| suites.iter().map(|s| s.as_str()).collect::<Vec<_>>()),
                })),
                "proxyProtocol": listener.proxy_protocol.as_ref().map(|proxy| json!({
                    "mode": match proxy.mode {
                        ProxyProtocolMode::Optional => "optional",
                        ProxyProtocolMode::Required => "required",
                    },
                    "from": proxy.from.iter().map(ToString::to_string).collect::<Vec<_>>(),
                })),
            })
        })
        .collect();
    let limits = &settings.limits;
    json!({
        "domain": settings.domain,
        "listeners": listeners,
        "trustedProxies": settings.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tagHeader": settings.tag_header,
        "accessLog": {"format": match settings.access_log {
            AccessLogFormat::Pretty => "pretty",
            AccessLogFormat::Json => "json",
            AccessLogFormat::Off => "off",
        }},
        "errorDetail": settings.error_detail,
        "limits": {
            "headerTimeout": duration(limits.header_timeout),
            "idleTimeout": duration(limits.idle_timeout),
            "maxHeaderBytes": limits.max_header_bytes,
            "maxHeaders": limits.max_headers,
            "maxUriBytes": limits.max_uri_bytes,
            "maxBodyBytes": limits.max_body_bytes,
            "bodyReadTimeout": duration(limits.body_read_timeout),
            "minBodyRate": limits.min_body_rate,
            "writeTimeout": duration(limits.write_timeout),
            "maxConnections": limits.max_connections,
            "maxConnectionsPerClient": limits.max_connections_per_client,
            "maxConnectionAge": limits.max_connection_age.map(duration),
            "maxConcurrentStreams": limits.max_concurrent_streams,
            "maxStreamResets": limits.max_stream_resets,
            "maxControlFrames": limits.max_control_frames,
            "upstreamIdleTimeout": duration(limits.upstream_idle_timeout),
            "connectTimeout": duration(limits.connect_timeout),
        },
        "queue": {"depth": settings.queue.depth, "bytes": settings.queue.bytes},
        "drain": {"delay": duration(settings.drain.delay), "timeout": duration(settings.drain.timeout)},
        "health": settings.health.map(|a| json!({"address": a.to_string()})),
        "admin": {
            "address": settings.admin.address.to_string(),
            "token": redacted_token(&settings.admin),
            "hosts": settings.admin.hosts,
        },
        "dnsRefresh": duration(settings.dns_refresh),
        "state": settings.state_directory.as_ref().map(|directory| json!({
            "directory": directory.display().to_string(),
            "retainSinceCreateTime": settings.retention.since_create.map_or_else(|| "disabled".to_owned(), duration),
            "retainSinceLastActiveTime": settings.retention.since_last_active.map_or_else(|| "disabled".to_owned(), duration),
            "minNonActiveRevisions": settings.retention.min_non_active,
            "maxNonActiveRevisions": settings.retention.max_non_active.map_or_else(|| json!("disabled"), |max| json!(max)),
        })),
    })
}

fn revision(spec: &RevisionSpec) -> Value {
    let timeouts = &spec.timeouts;
    json!({
        "namespace": spec.id.namespace(),
        "service": spec.service.name(),
        "revision": spec.id.name(),
        "backend": backend(&spec.backend),
        "protocol": match spec.protocol {
            Protocol::Http1 => "http1",
            Protocol::H2c => "h2c",
            Protocol::H2 => "h2",
        },
        "upgrades": spec.upgrades,
        "readinessProbe": spec.readiness.as_ref().map(|probe| json!({
            "probe": match &probe.kind {
                ProbeKind::Tcp => json!({"tcpSocket": {}}),
                ProbeKind::QueueProxy => json!({"queueProxy": {}}),
                ProbeKind::Http { path } => json!({"httpGet": {"path": path}}),
            },
            "period": duration(probe.period),
            "timeout": duration(probe.timeout),
            "failureThreshold": probe.failure_threshold,
        })),
        "startTimeout": duration(spec.start_timeout),
        "containerConcurrency": spec.container_concurrency,
        "timeout": timeouts.total.map(duration),
        "responseStartTimeout": timeouts.response_start.map(duration),
        "idleTimeout": timeouts.idle.map(duration),
        "maxStreamAge": timeouts.max_stream_age.map(duration),
        "queue": {
            "depth": spec.queue.depth,
            "bytes": spec.queue.bytes,
            "timeout": duration(spec.queue.timeout),
        },
        "requestHeaders": redacted(spec.request_headers.keys()),
        "needs": spec.needs.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn backend(kind: &Backend) -> Value {
    match kind {
        Backend::Static { targets, activated } => json!({
            "kind": "static",
            "endpoints": targets.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "activated": activated,
        }),
        Backend::Url(url) => {
            let scheme = match url.scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
            };
            json!({"kind": "url", "url": format!("{scheme}://{}:{}{}", url.host, url.port, url.path_prefix)})
        }
        Backend::Managed => json!({"kind": "managed"}),
        Backend::Tiers(tiers) => {
            let tiers = tiers.iter().map(|tier| {
                json!({
                    "name": tier.name.as_str(),
                    "backend": backend(&tier.backend),
                    "containerConcurrency": tier.container_concurrency,
                })
            });
            json!({"kind": "tiers", "tiers": tiers.collect::<Vec<_>>()})
        }
        Backend::Pods(pods) => json!({
            "kind": "pods",
            "ready": pods.ready.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "starting": pods.starting.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
    }
}

fn visibility(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::External => "external",
        Visibility::Internal => "internal",
    }
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
