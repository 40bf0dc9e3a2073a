//! Cold answers: what a client gets while no endpoint of a revision is ready.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::route::RequestView;
use crate::wildcard::Wildcard;

/// The answer to a request that finds no ready endpoint of a revision that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColdAnswer {
    /// The request is held in the queue.
    Hold,
    /// A browser gets a waiting page; other requests are held.
    Page(WaitingPage),
    /// The request is held, and a client that takes the format gets a stream meanwhile.
    Stream(ColdStream),
}

/// A waiting page: a small HTML page that the browser asks for again by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingPage {
    /// The title.
    pub title: String,
    /// The status of the page, 200 to 599.
    pub status: u16,
    /// The interval between two requests of the browser, in whole seconds; at least one.
    pub refresh: Duration,
    /// The page's template in place of the built-in one. The data plane reads it when the service is loaded.
    pub file: Option<PathBuf>,
}

impl WaitingPage {
    /// How long an instance that a page started is kept at least once the instance is ready: three requests of the
    /// browser, of which two may get lost.
    pub fn keep(&self) -> Duration {
        self.refresh * 3
    }
}

/// A stream to a client whose request is held for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdStream {
    /// The wait, from the request's arrival, before the status 200 is sent.
    pub after: Duration,
    /// The interval between two signs of life.
    pub every: Duration,
    /// The format of the stream.
    pub format: StreamFormat,
}

/// The format of a [`ColdStream`], which has to allow bytes without a meaning before the backend's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFormat {
    /// Server-sent events: comments.
    ServerSentEvents,
    /// A JSON text: whitespace.
    Json,
}

impl StreamFormat {
    /// The media type, in lower case.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::ServerSentEvents => "text/event-stream",
            Self::Json => "application/json",
        }
    }
}

/// Which requests are passive: they start nothing, and count as no activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoWake {
    /// The rules, one of which has to match.
    pub rules: Vec<NoWakeRule>,
}

impl NoWake {
    /// Whether a request of `client` is passive.
    pub fn matches(&self, request: &impl RequestView, client: IpAddr) -> bool {
        self.rules.iter().any(|rule| rule.matches(request, client))
    }
}

/// One rule of [`NoWake`]: all conditions have to match, and an empty condition matches every request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoWakeRule {
    /// Patterns of `User-Agent`; a request without the header has an empty one.
    pub user_agents: Vec<Wildcard>,
    /// Patterns of the path without query.
    pub paths: Vec<Wildcard>,
    /// Methods, in upper case.
    pub methods: Vec<String>,
    /// Networks of the client.
    pub clients: Vec<IpNet>,
}

impl NoWakeRule {
    fn matches(&self, request: &impl RequestView, client: IpAddr) -> bool {
        // The cheap conditions first.
        (self.methods.is_empty()
            || self
                .methods
                .iter()
                .any(|m| m.eq_ignore_ascii_case(request.method())))
            && (self.clients.is_empty() || self.clients.iter().any(|net| net.contains(&client)))
            && any(&self.paths, request.path().as_bytes())
            && (self.user_agents.is_empty()
                || any(
                    &self.user_agents,
                    request.header("user-agent").unwrap_or_default(),
                ))
    }
}

fn any(patterns: &[Wildcard], text: &[u8]) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request(&'static str, &'static str, Option<&'static str>);

    impl RequestView for Request {
        fn method(&self) -> &str {
            self.0
        }

        fn path(&self) -> &str {
            self.1
        }

        fn header(&self, name: &str) -> Option<&[u8]> {
            self.2.filter(|_| name == "user-agent").map(str::as_bytes)
        }
    }

    fn patterns(of: &[&str]) -> Vec<Wildcard> {
        of.iter().map(|text| Wildcard::new(text)).collect()
    }

    #[test]
    fn all_conditions_of_a_rule_and_any_rule() {
        let no_wake = NoWake {
            rules: vec![
                NoWakeRule {
                    user_agents: patterns(&["kube-probe/*", "*bot*"]),
                    ..NoWakeRule::default()
                },
                NoWakeRule {
                    paths: patterns(&["/favicon.ico"]),
                    methods: vec!["HEAD".to_owned()],
                    ..NoWakeRule::default()
                },
                NoWakeRule {
                    clients: vec!["10.0.0.0/8".parse().expect("a network")],
                    ..NoWakeRule::default()
                },
            ],
        };
        let outside = IpAddr::from([192, 0, 2, 1]);
        for (request, client, passive) in [
            (Request("GET", "/", Some("Mozilla/5.0")), outside, false),
            (Request("GET", "/", None), outside, false),
            (Request("GET", "/", Some("Kube-Probe/1.30")), outside, true),
            (Request("GET", "/", Some("GoogleBot/2.1")), outside, true),
            (Request("GET", "/favicon.ico", None), outside, false),
            (Request("HEAD", "/", None), outside, false),
            (Request("HEAD", "/FAVICON.ico", None), outside, true),
            (Request("GET", "/", None), IpAddr::from([10, 1, 2, 3]), true),
        ] {
            assert_eq!(
                no_wake.matches(&request, client),
                passive,
                "{} {} {:?} from {client}",
                request.0,
                request.1,
                request.2
            );
        }
    }
}
