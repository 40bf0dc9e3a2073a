//! Top-level keys: the gateway as a whole.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_config_shape::{
    Choice, DurationRange, Flag, Integer, List, Located, NodeRef, Object, ParseError, Parsed, Record, Size,
    WithLocation,
};
use sluice_model::{
    AccessLogFormat, AdminAddress, DrainSettings, Host, Http2Settings, ListenerSettings, ProxyProtocol,
    ProxyProtocolMode, QueueTotals, Settings, TlsSettings, Visibility,
};

use super::admin::ADMIN;
use super::autoscaling::{GLOBALS, Globals};
use super::images::{IMAGE, ImageRule};
use super::limits::{LIMITS, default_limits};
use super::names::{DOMAIN, LISTEN, NETWORK};
use super::service::{SERVICE, VISIBILITY};
use super::shared;
use super::state::STATE;
use super::tls::TLS;
use crate::plan::ProcessLimits;

/// The settings for all services, as far as they could be decoded.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) settings: Settings,
    pub(crate) processes: ProcessLimits,
    pub(crate) autoscaling: Globals,
    /// What the containers of manifests run as; the first match wins.
    pub(crate) images: Vec<ImageRule>,
    /// Files that the data plane reads.
    pub(crate) files: Vec<Located<PathBuf>>,
    /// The position of each listener's address; `None` for the default listener.
    pub(crate) listeners: Vec<Option<NodeRef>>,
    /// The listeners, and the health listener, are those of the configuration, not the defaults.
    pub(crate) has_listeners: bool,
    pub(crate) has_health: bool,
    /// The keys that the configuration has, of those that a cluster may set besides.
    pub(crate) named: Vec<&'static str>,
    /// No listener was left out for a mistake, so that the visibility of all is known.
    pub(crate) listeners_sound: bool,
}

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(LOOPBACK), 9900);
const KIB: u64 = 1 << 10;

/// The listeners where the configuration names none.
#[derive(Debug, Clone, Default)]
pub struct Defaults(Option<(Vec<ListenerSettings>, SocketAddr)>);

impl Defaults {
    /// Those of a gateway in a cluster of this domain, on this address: public and private listeners with and without
    /// TLS, whose certificates come from the cluster, those of an activator, and a health listener.
    pub fn of_cluster(ip: IpAddr, domain: &str) -> Self {
        let domain: Arc<str> = domain.into();
        let listener = |port, visibility, has_tls: bool| ListenerSettings {
            address: SocketAddr::new(ip, port),
            visibility,
            tls: has_tls.then(|| TlsSettings::new(Vec::new())),
            proxy_protocol: None,
            http2: Http2Settings::default(),
            activator: None,
        };
        let activator = |port, has_tls| ListenerSettings {
            activator: Some(Arc::clone(&domain)),
            ..listener(port, Visibility::Internal, has_tls)
        };
        let listeners = vec![
            listener(8080, Visibility::External, false),
            listener(8443, Visibility::External, true),
            listener(8081, Visibility::Internal, false),
            listener(8444, Visibility::Internal, true),
            // Both take either protocol, as the activator's do.
            activator(8012, false),
            activator(8013, false),
            activator(8112, true),
        ];
        Self(Some((listeners, SocketAddr::new(ip, 9901))))
    }

    /// Puts the defaults in the place of what the configuration does not name.
    pub(crate) fn complete(&self, draft: &mut Draft) {
        let Some((listeners, health)) = &self.0 else {
            return;
        };
        if !draft.has_listeners {
            draft.settings.listeners.clone_from(listeners);
            draft.listeners = vec![None; listeners.len()];
        }
        if !draft.has_health {
            draft.settings.health = Some(*health);
        }
    }
}

/// Decodes the top-level keys.
pub(super) fn root(o: &mut Object<'_>) -> Option<Draft> {
    let localhost = Host::parse("localhost").expect("a host");
    let domain = o
        .optional(
            "domain",
            "Services have {service}.{namespace}.{domain} and {tag}-{service}.{namespace}.{domain}. Default: localhost.",
            DOMAIN,
        )
        .unwrap_or(localhost);
    let before = o.cx.errors();
    let listeners = o.list(
        "listeners",
        "Where requests come in. Default: 127.0.0.1:8080.",
        LISTENER,
    );
    let listeners_sound = o.cx.errors() == before;
    if let (true, Some([]), Some(key)) = (listeners_sound, listeners.as_deref(), o.key("listeners")) {
        let diagnostic = key.error("there is no listener");
        o.cx.report(diagnostic.hint("leave the key out for 127.0.0.1:8080"));
    }
    let trusted_proxies = o.list(
        "trustedProxies",
        "Who may send X-Forwarded-*; judged on the address after PROXY.",
        NETWORK,
    );
    let tag_header = o.or(
        "tagHeader",
        "true: the header Knative-Serving-Tag selects a tagged revision.",
        Flag,
        false,
    );
    let access_log = o.optional("accessLog", "How requests are logged.", ACCESS_LOG);
    let error_detail = o.or(
        "errorDetail",
        "true: clients see why an activation failed, not only that it did.",
        Flag,
        false,
    );
    let limits = o.optional("limits", "What a client may ask.", LIMITS);
    let queue = o.optional("queue", "Bounds of all queues together.", QUEUE);
    let processes = o.optional("processes", "Bounds of local instances, all together.", PROCESSES);
    let autoscaling = o.optional("autoscaling", "Defaults for all revisions.", GLOBALS);
    let drain = o.optional("drain", "How the gateway goes away.", DRAIN);
    let health = o.optional(
        "health",
        "A listener for balancers, never PROXY: /healthz and /readyz, in a cluster /metrics too. Default: none, in a cluster 9901.",
        HEALTH,
    );
    let admin = o.optional("admin", "The admin listener. Default: 127.0.0.1:9900.", ADMIN);
    let state = o.optional(
        "state",
        "What outlives the process. Absent: nothing is kept.",
        STATE,
    );
    let images = o.list(
        "images",
        "Which containers of manifests may run here, and as what; the first match wins.",
        IMAGE,
    );
    let dns = o.optional("dns", "How names of endpoints are resolved.", DNS);
    // Services are decoded file by file; the key is asked for here, so that the schema has it.
    o.list("services", "What is served.", SERVICE);

    let health = health.flatten();
    let admin_key = o.has("admin").then(|| admin.clone().unwrap_or_default().address);
    let listeners = listeners.unwrap_or_else(|| vec![ListenerDraft::default()]);
    check_addresses(o, &listeners, health.as_ref(), admin_key);
    let mut files = Vec::new();
    let mut spots = Vec::new();
    let listeners = listeners.into_iter().map(|l| {
        files.extend(l.files);
        spots.push(l.node);
        l.settings
    });
    let listeners = listeners.collect();
    Some(Draft {
        settings: Settings {
            domain: domain.as_str().to_owned(),
            listeners,
            trusted_proxies: trusted_proxies.unwrap_or_default(),
            tag_header,
            access_log: access_log.unwrap_or(AccessLogFormat::Pretty),
            error_detail,
            limits: limits.unwrap_or_else(default_limits),
            queue: queue.unwrap_or(DEFAULT_QUEUE),
            drain: drain.unwrap_or(DEFAULT_DRAIN),
            health: health.map(|h| h.value),
            admin: admin.unwrap_or_default().settings(DEFAULT_ADMIN.into()),
            dns_refresh: dns.unwrap_or(DEFAULT_DNS_REFRESH),
            retention: state.as_ref().map(|state| state.retention).unwrap_or_default(),
            state_directory: state.and_then(|state| state.directory),
        },
        processes: processes.unwrap_or(ProcessLimits {
            max: 64,
            ports: 20_000..=29_999,
        }),
        autoscaling: autoscaling.unwrap_or_default(),
        images: images.into_iter().flatten().flatten().collect(),
        files,
        listeners: spots,
        has_listeners: o.has("listeners"),
        has_health: o.has("health"),
        named: shared::KEYS.into_iter().filter(|key| o.has(key)).collect(),
        listeners_sound,
    })
}

/// Reports two listeners on one address. Port 0 is another port each time. `admin` is `None` without the key, and
/// `Some(None)` where the key has no sound address.
fn check_addresses(
    o: &mut Object<'_>,
    listeners: &[ListenerDraft],
    health: Option<&Located<SocketAddr>>,
    admin: Option<Option<Located<AdminAddress>>>,
) {
    let here = |a: &Located<SocketAddr>, what| (a.value, what, Some(a.node.clone()));
    let mut all: Vec<(SocketAddr, &str, Option<NodeRef>)> = Vec::new();
    match admin {
        Some(Some(admin)) => {
            if let AdminAddress::Tcp(address) = admin.value {
                all.push((address, "admin", Some(admin.node)));
            }
        }
        None => all.push((DEFAULT_ADMIN, "admin", None)),
        Some(None) => {}
    }
    all.extend(health.map(|h| here(h, "health")));
    all.extend(
        listeners
            .iter()
            .map(|l| (l.settings.address, "a listener", l.node.clone())),
    );
    for (i, (address, _, node)) in all.iter().enumerate() {
        let earlier = all[..i].iter().find(|(other, ..)| other == address);
        let Some((_, what, other)) = earlier.filter(|_| address.port() != 0) else {
            continue;
        };
        let Some(node) = node.as_ref().or(other.as_ref()) else {
            continue;
        };
        let mut diagnostic = node.error(format!("{address} is taken twice: {what} is there too"));
        diagnostic = match other {
            Some(other) => diagnostic.related(other.location(), format!("{what} is here")),
            None => diagnostic.hint(format!("{what} is there by default: set admin.address")),
        };
        o.cx.report(diagnostic);
    }
}

#[derive(Debug, Clone)]
struct ListenerDraft {
    settings: ListenerSettings,
    node: Option<NodeRef>,
    files: Vec<Located<PathBuf>>,
}

impl Default for ListenerDraft {
    fn default() -> Self {
        Self {
            settings: ListenerSettings {
                address: SocketAddr::from((LOOPBACK, 8080)),
                visibility: Visibility::External,
                tls: None,
                proxy_protocol: None,
                http2: Http2Settings::default(),
                activator: None,
            },
            node: None,
            files: Vec::new(),
        }
    }
}

const LISTENER: Record<ListenerDraft> = Record {
    name: "Listener",
    doc: "Where requests come in.",
    decode: |o| {
        let address = o.required(
            "address",
            "Address and port; port 0 is any free one.",
            WithLocation(LISTEN),
        );
        let visibility = o.or(
            "visibility",
            "What is served: internal serves external routes too.",
            VISIBILITY,
            Visibility::External,
        );
        let tls = o.optional("tls", "Makes it a TLS listener.", TLS).flatten();
        let proxy_protocol = o
            .optional(
                "proxyProtocol",
                "Makes it speak the PROXY protocol, versions 1 and 2.",
                PROXY,
            )
            .flatten();
        let http2 = o.optional("http2", "Its HTTP/2.", HTTP2).unwrap_or_default();
        let address = address?;
        let mut files = Vec::new();
        let tls = tls.map(|tls| {
            files.extend(tls.files);
            tls.settings
        });
        Some(ListenerDraft {
            settings: ListenerSettings {
                address: address.value,
                visibility,
                tls,
                proxy_protocol,
                http2,
                activator: None,
            },
            node: Some(address.node),
            files,
        })
    },
};

const HTTP2: Record<Http2Settings> = Record {
    name: "Http2",
    doc: "A listener's HTTP/2.",
    decode: |o| {
        Some(Http2Settings {
            web_socket: o.or(
                "webSocket",
                "true: WebSocket over HTTP/2 (RFC 8441) is announced; browsers then use it for every WebSocket of the origin.",
                Flag,
                false,
            ),
        })
    },
};

const PROXY: Record<Option<ProxyProtocol>> = Record {
    name: "ProxyProtocol",
    doc: "The PROXY protocol of a listener. A header from elsewhere closes the connection.",
    decode: |o| {
        let mode = o.required(
            "mode",
            "Whether a header may or must come.",
            Choice(&[
                ("optional", ProxyProtocolMode::Optional),
                ("required", ProxyProtocolMode::Required),
            ]),
        );
        let from = o.required("from", "Networks that may send one.", WithLocation(List(NETWORK)));
        if let Some(from) = &from
            && from.node.list_len() == Some(0)
        {
            let diagnostic = from.node.whole().error("nobody may send a PROXY header");
            o.cx.report(diagnostic.hint("list the balancer's networks, as 100.64.0.0/10"));
        }
        Some(match (mode, from) {
            (Some(mode), Some(from)) => Some(ProxyProtocol {
                mode,
                from: from.value,
            }),
            _ => None,
        })
    },
};

pub(super) const ACCESS_LOG: Record<AccessLogFormat> = Record {
    name: "AccessLog",
    doc: "How requests are logged.",
    decode: |o| {
        Some(o.or(
            "format",
            "For people, for machines, or not at all.",
            Choice(&[
                ("pretty", AccessLogFormat::Pretty),
                ("json", AccessLogFormat::Json),
                ("off", AccessLogFormat::Off),
            ]),
            AccessLogFormat::Pretty,
        ))
    },
};

const DEFAULT_QUEUE: QueueTotals = QueueTotals {
    depth: 100_000,
    bytes: 1 << 30,
};

pub(super) const QUEUE: Record<QueueTotals> = Record {
    name: "Queue",
    doc: "Bounds of all queues together.",
    decode: |o| {
        let depth = Integer {
            min: 1,
            max: 100_000_000,
        };
        Some(QueueTotals {
            depth: super::to_usize(o.or("depth", "Requests.", depth, 100_000)),
            bytes: o.or(
                "bytes",
                "What they hold in memory.",
                Size {
                    min: KIB,
                    max: 1 << 40,
                },
                DEFAULT_QUEUE.bytes,
            ),
        })
    },
};

const PORTS: Parsed<(u16, u16)> = Parsed {
    what: "a range of ports",
    parse: |text, _| {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        match (low.trim().parse(), high.trim().parse()) {
            (Ok(low), Ok(high)) if 0 < low && low <= high => Ok((low, high)),
            (Ok(low), Ok(high)) if high < low && high > 0 => {
                let hint = format!("write {high}-{low}");
                Err(ParseError::with_hint("its first port is above its last", hint))
            }
            _ => Err(ParseError::with_hint("it cannot be read", "write 20000-29999")),
        }
    },
};

const PROCESSES: Record<ProcessLimits> = Record {
    name: "Processes",
    doc: "Bounds of local instances, all together.",
    decode: |o| {
        let max = o.or("max", "Instances at once.", Integer { min: 1, max: 65_535 }, 64);
        let (low, high) = o
            .optional(
                "ports",
                "What $PORT is taken from: 20000-29999 by default.",
                PORTS,
            )
            .unwrap_or((20_000, 29_999));
        let ports = u64::from(high - low) + 1;
        if let (true, Some(value)) = (ports < max, o.value("ports")) {
            let message = format!("there are {ports} ports for up to {max} instances");
            o.cx.report(value.error(message).hint("widen ports or lower max").warning());
        }
        Some(ProcessLimits {
            max: u32::try_from(max).unwrap_or(u32::MAX),
            ports: low..=high,
        })
    },
};

const DEFAULT_DRAIN: DrainSettings = DrainSettings {
    delay: Duration::ZERO,
    timeout: Duration::from_secs(300),
};

pub(super) const DRAIN: Record<DrainSettings> = Record {
    name: "Drain",
    doc: "How the gateway goes away.",
    decode: |o| {
        Some(DrainSettings {
            delay: o.or(
                "delay",
                "How long new connections are still served after /readyz turned 503.",
                DurationRange::ANY,
                DEFAULT_DRAIN.delay,
            ),
            timeout: o.or(
                "timeout",
                "How long open requests may still take.",
                DurationRange::ANY,
                DEFAULT_DRAIN.timeout,
            ),
        })
    },
};

const HEALTH: Record<Option<Located<SocketAddr>>> = Record {
    name: "Health",
    doc: "A listener for balancers' health checks.",
    decode: |o| Some(o.required("address", "Address and port.", WithLocation(LISTEN))),
};

const DEFAULT_DNS_REFRESH: Duration = Duration::from_secs(5);

const DNS: Record<Duration> = Record {
    name: "Dns",
    doc: "How names of endpoints are resolved.",
    decode: |o| {
        let refresh = DurationRange {
            min: Duration::from_millis(100),
            max: Duration::from_secs(24 * 3600),
            whole_seconds: false,
        };
        Some(o.or("refresh", "How often, again.", refresh, DEFAULT_DNS_REFRESH))
    },
};
