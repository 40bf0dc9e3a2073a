//! The activator's part of Knative Serving: requests that name a revision instead of a route, and the probes that come
//! to an activator.
//!
//! Knative's controllers put the activator behind the public Service of a revision that is at zero, or may be soon: what
//! is sent to that Service past any ingress comes here. Source: `pkg/activator/handler` and `cmd/activator/main.go` of
//! knative.dev/serving.

use bytes::Bytes;
use sluice_model::{RequestView, RevisionId, normalize_host};

use super::network_probe::{self, NETWORK_PROBE};
use crate::local_response::{LocalResponse, RenderedResponse};

/// The longest value of a probe that is quoted in an answer, in bytes.
const MAX_QUOTED: usize = 64;

/// The answer to a probe; `None` for a request of any other kind. A kubelet's probe is told whether the gateway drains;
/// the probe of the autoscaler, which takes the last Pod away only from behind an activator, is told that this is one.
pub(super) fn probe(request: &impl RequestView, draining: bool) -> Option<LocalResponse> {
    if is_kubelet_probe(request) {
        return Some(match draining {
            false => text(200, String::new()),
            true => text(500, "the gateway is shutting down\n".to_owned()),
        });
    }
    match request.header(NETWORK_PROBE)? {
        b"" => None,
        b"probe" => Some(network_probe::echo(request)),
        b"activator" => Some(text(200, "activator".to_owned())),
        other => {
            let shown = other[..other.len().min(MAX_QUOTED)].escape_ascii();
            let message = format!("unexpected probe header value: \"{shown}\"\n");
            Some(text(400, message))
        }
    }
}

/// Whether a kubelet sent it, or a mesh in its place. Source: `IsKubeletProbe` of knative.dev/networking.
fn is_kubelet_probe(request: &impl RequestView) -> bool {
    let agent = request.header("user-agent").unwrap_or_default();
    agent.starts_with(b"kube-probe/")
        || request
            .header("k-kubelet-probe")
            .is_some_and(|value| !value.is_empty())
}

fn text(status: u16, body: String) -> LocalResponse {
    LocalResponse::Answer(RenderedResponse {
        status,
        headers: vec![("content-type", "text/plain; charset=utf-8".to_owned())],
        body: Bytes::from(body),
    })
}

/// The revision that a request names: by both of its fields, else by its host, which is that of the revision's public
/// Service in any of the forms that the cluster's DNS takes.
pub fn revision(request: &impl RequestView, host: Option<&[u8]>, domain: &str) -> Option<RevisionId> {
    let field = |name| {
        let value = request.header(name).filter(|value| !value.is_empty())?;
        std::str::from_utf8(value).ok()
    };
    let named = field("knative-serving-namespace").zip(field("knative-serving-revision"));
    if let Some((namespace, name)) = named {
        return RevisionId::of_object(namespace, name).ok();
    }
    let mut buf = [0; 256];
    let host = normalize_host(host?, &mut buf).ok()?;
    let (name, rest) = host.split_once('.')?;
    let (namespace, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let is_of_cluster = match rest.strip_prefix("svc") {
        Some(rest) => rest.is_empty() || rest.strip_prefix('.') == Some(domain),
        None => rest.is_empty(),
    };
    is_of_cluster
        .then(|| RevisionId::of_object(namespace, name).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request<'r>(&'r [(&'r str, &'r [u8])]);

    impl RequestView for Request<'_> {
        fn method(&self) -> &str {
            "GET"
        }

        fn path(&self) -> &str {
            "/"
        }

        fn header(&self, name: &str) -> Option<&[u8]> {
            let mut fields = self.0.iter();
            fields.find(|(known, _)| *known == name).map(|(_, value)| *value)
        }
    }

    fn named(fields: &[(&str, &[u8])], host: &str) -> Option<String> {
        let found = revision(&Request(fields), Some(host.as_bytes()), "cluster.local");
        found.map(|id| id.to_string())
    }

    /// The vectors of Knative's `context_handler_test.go`, and the short forms of a Service's name.
    #[test]
    fn a_revision_is_named_by_both_fields_or_by_the_host() {
        let both: &[(&str, &[u8])] = &[
            ("knative-serving-namespace", b"n"),
            ("knative-serving-revision", b"r"),
        ];
        assert_eq!(named(both, "anything").as_deref(), Some("n/r"));
        assert_eq!(named(&both[..1], "anything"), None);
        assert_eq!(named(&both[1..], "a.b").as_deref(), Some("b/a"));
        let real = Some("real-namespace/real-name");
        for host in [
            "real-name.real-namespace.svc.cluster.local",
            "real-name.real-namespace.svc.cluster.local:8080",
            "Real-Name.real-namespace.svc.cluster.local.",
            "real-name.real-namespace.svc",
            "real-name.real-namespace:80",
        ] {
            assert_eq!(named(&[], host).as_deref(), real, "{host}");
        }
        for host in [
            "real-name",
            "",
            "real-name.real-namespace.svc.other.domain",
            "real-name.real-namespace.svc.cluster.locals",
            "real-name.real-namespace.pod.cluster.local",
            "real-name.real-namespace.svcx",
            "a..svc.cluster.local",
            "10.0.0.1",
            "[::1]:80",
        ] {
            assert_eq!(named(&[], host), None, "{host}");
        }
        let broken: &[(&str, &[u8])] = &[
            ("knative-serving-namespace", b"N/x"),
            ("knative-serving-revision", b"\xff"),
        ];
        assert_eq!(named(broken, "anything"), None);
    }

    fn answer(fields: &[(&str, &[u8])], draining: bool) -> Option<(u16, String)> {
        match probe(&Request(fields), draining)? {
            LocalResponse::Answer(answer) => {
                let body = String::from_utf8(answer.body.to_vec()).expect("text");
                Some((answer.status, body))
            }
            LocalResponse::Error(error) => Some((error.reason.status().as_u16(), String::new())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn probes_are_answered_by_their_exact_value() {
        let status = |fields: &[(&str, &[u8])]| answer(fields, false).map(|(status, _)| status);
        assert_eq!(status(&[]), None);
        assert_eq!(status(&[("k-network-probe", b"")]), None);
        assert_eq!(
            answer(&[("k-network-probe", b"activator")], true),
            Some((200, "activator".into()))
        );
        assert_eq!(status(&[("k-network-probe", b"probe")]), Some(400));
        assert_eq!(
            status(&[("k-network-probe", b"probe"), ("k-network-hash", b"override")]),
            Some(200)
        );
        let (status_of, body) = answer(&[("k-network-probe", b"que\"ue")], false).expect("a probe");
        assert_eq!(
            (status_of, body.as_str()),
            (400, "unexpected probe header value: \"que\\\"ue\"\n")
        );
        let long = vec![b'x'; 10_000];
        assert!(
            answer(&[("k-network-probe", &long)], false)
                .expect("a probe")
                .1
                .len()
                < 128
        );
        for kubelet in [("user-agent", &b"kube-probe/1.34"[..]), ("k-kubelet-probe", b"1")] {
            assert_eq!(answer(&[kubelet], false).map(|a| a.0), Some(200));
            assert_eq!(answer(&[kubelet], true).map(|a| a.0), Some(500));
        }
    }
}
