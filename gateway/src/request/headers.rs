//! Which headers a request carries to the backend, and which a response carries to the client.
//!
//! Pure and protocol-neutral: each adapter brings its own header map behind [`HeadMut`].

use std::net::IpAddr;

use sluice_model::{RevisionId, RevisionSpec, Route};

/// A message head whose fields can be changed. Names are given in lower case.
pub trait HeadMut {
    /// The first value of a field.
    fn get(&self, name: &str) -> Option<&[u8]>;
    /// All values of a field, joined by `, `; `None` without any.
    fn joined(&self, name: &str) -> Option<Vec<u8>>;
    /// Sets a field to one value; a value that no header can hold is left out.
    fn set(&mut self, name: &str, value: &[u8]);
    /// As `set`, for a name that need not be copied.
    fn set_known(&mut self, name: &'static str, value: &[u8]) {
        self.set(name, value);
    }
    /// Removes all fields of a name.
    fn remove(&mut self, name: &str);
    /// The lower-case names of all fields that start with `prefix`.
    fn names_with_prefix(&self, prefix: &str) -> Vec<String>;
}

/// Fields by which routing decisions are told to the backend; a client's own are dropped.
const DECISION_FIELDS: [&str; 4] = [
    "knative-serving-revision",
    "knative-serving-namespace",
    "knative-serving-tag",
    "knative-serving-default-route",
];

/// A client asks with it where the time until the response head goes; for the gateway alone.
pub(super) const TIMING_HEADER: &str = "x-sluice-timing";

/// Fields by which proxies tell where a request came from, besides `x-forwarded-*`.
const FORWARDING_FIELDS: [&str; 2] = ["forwarded", "x-real-ip"];

/// The longest request id taken over from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// What the forwarding headers say of a request.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding<'a> {
    /// The client, after PROXY.
    pub client: IpAddr,
    /// Whether the client is a trusted proxy, whose own forwarding headers count.
    pub trusted: bool,
    /// Whether the client came by TLS.
    pub tls: bool,
    /// The Host the client sent.
    pub host: &'a [u8],
    /// The id of the request; see [`request_id`].
    pub request_id: &'a str,
}

/// Changes a request head into what the backend gets. The caller has dealt with hop-by-hop
/// fields, Host and path.
pub fn to_backend(
    head: &mut impl HeadMut,
    from: Forwarding<'_>,
    revision: &RevisionSpec,
    route: Option<&Route>,
) {
    for name in DECISION_FIELDS {
        head.remove(name);
    }
    head.remove(TIMING_HEADER);
    if !from.trusted {
        for name in FORWARDING_FIELDS {
            head.remove(name);
        }
        for name in head.names_with_prefix("x-forwarded-") {
            head.remove(&name);
        }
    }
    let client = from.client.to_string();
    match head.joined("x-forwarded-for") {
        Some(mut chain) => {
            chain.extend_from_slice(b", ");
            chain.extend_from_slice(client.as_bytes());
            head.set_known("x-forwarded-for", &chain);
        }
        None => head.set_known("x-forwarded-for", client.as_bytes()),
    }
    if head.get("x-forwarded-proto").is_none() {
        head.set_known("x-forwarded-proto", if from.tls { b"https" } else { b"http" });
    }
    if head.get("x-forwarded-host").is_none() {
        head.set_known("x-forwarded-host", from.host);
    }
    head.set_known("x-request-id", from.request_id.as_bytes());
    if let Some(route) = route {
        for (name, value) in &route.append_headers {
            head.set(name, value.as_bytes());
        }
    }
    for (name, value) in &revision.request_headers {
        head.set(name, value.as_bytes());
    }
    set_decision(head, &revision.id);
}

fn set_decision(head: &mut impl HeadMut, revision: &RevisionId) {
    head.set_known("knative-serving-revision", revision.name().as_bytes());
    head.set_known("knative-serving-namespace", revision.namespace().as_bytes());
}

/// The client's request id if it is fit to be passed on, else a new one made of `random`.
pub fn request_id(sent: Option<&[u8]>, random: impl FnOnce() -> u128) -> String {
    sent.filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.iter().all(u8::is_ascii_graphic))
        .and_then(|id| std::str::from_utf8(id).ok())
        .map_or_else(|| format!("{:032x}", random()), str::to_owned)
}

/// Hop-by-hop fields of RFC 9110 7.6.1 and their relatives that must not pass a proxy.
const HOP_BY_HOP: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "te", "upgrade"];

/// Removes what concerns only the connection to the backend from a response, and the reason
/// header, which only the gateway's own answers may carry. Framing fields stay.
pub fn from_backend(head: &mut impl HeadMut) {
    if let Some(nominated) = head.joined("connection") {
        for name in nominated.split(|&b| b == b',') {
            let name = String::from_utf8_lossy(name).trim().to_ascii_lowercase();
            // Nominating framing or Host-like fields is an attack or a mistake, never a wish.
            if !matches!(
                name.as_str(),
                "" | "content-length" | "transfer-encoding" | "set-cookie"
            ) {
                head.remove(&name);
            }
        }
    }
    for name in HOP_BY_HOP {
        head.remove(name);
    }
    head.remove("x-sluice-reason");
}

/// Removes hop-by-hop fields from a request, for adapters whose framework does not.
pub fn strip_hop_by_hop(head: &mut impl HeadMut) {
    if let Some(nominated) = head.joined("connection") {
        for name in nominated.split(|&b| b == b',') {
            let name = String::from_utf8_lossy(name).trim().to_ascii_lowercase();
            // A client must not be able to switch off what the gateway adds or relies on.
            if !(name.is_empty()
                || matches!(
                    name.as_str(),
                    "host" | "content-length" | "transfer-encoding" | "authorization" | "cookie"
                )
                || name.starts_with("x-forwarded-")
                || FORWARDING_FIELDS.contains(&name.as_str()))
            {
                head.remove(&name);
            }
        }
    }
    for name in HOP_BY_HOP {
        head.remove(name);
    }
    head.remove("proxy-authenticate");
    head.remove("proxy-authorization");
    head.remove("trailer");
}

/// The value of a cookie in `Cookie` fields joined by `; `.
pub fn cookie<'v>(header: &'v [u8], name: &str) -> Option<&'v [u8]> {
    header.split(|&b| b == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let eq = pair.iter().position(|&b| b == b'=')?;
        (&pair[..eq] == name.as_bytes()).then(|| &pair[eq + 1..])
    })
}

/// A `grpc-timeout` value: up to eight digits and a unit.
pub fn grpc_timeout(value: &[u8]) -> Option<std::time::Duration> {
    use std::time::Duration;
    let (unit, digits) = value.split_last()?;
    // `parse` takes a sign.
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[derive(Default)]
    struct Fields(Vec<(String, Vec<u8>)>);

    impl HeadMut for Fields {
        fn get(&self, name: &str) -> Option<&[u8]> {
            self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_slice())
        }
        fn joined(&self, name: &str) -> Option<Vec<u8>> {
            let values: Vec<_> = self
                .0
                .iter()
                .filter(|(n, _)| n == name)
                .map(|(_, v)| v.clone())
                .collect();
            (!values.is_empty()).then(|| values.join(&b", "[..]))
        }
        fn set(&mut self, name: &str, value: &[u8]) {
            self.remove(name);
            self.0.push((name.to_owned(), value.to_vec()));
        }
        fn remove(&mut self, name: &str) {
            self.0.retain(|(n, _)| n != name);
        }
        fn names_with_prefix(&self, prefix: &str) -> Vec<String> {
            self.0
                .iter()
                .filter(|(n, _)| n.starts_with(prefix))
                .map(|(n, _)| n.clone())
                .collect()
        }
    }

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields(
            pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec()))
                .collect(),
        )
    }

    fn revision() -> RevisionSpec {
        use sluice_model::{Backend, Protocol, QueueLimits, RevisionTimeouts, ServiceId};
        RevisionSpec {
            id: RevisionId::parse("default", "greeter-v1").expect("a name"),
            service: ServiceId::parse("default", "greeter").expect("a name"),
            backend: Backend::Managed,
            protocol: Protocol::Http1,
            upgrades: None,
            readiness: None,
            start_timeout: Duration::from_secs(60),
            container_concurrency: None,
            timeouts: RevisionTimeouts {
                total: None,
                response_start: None,
                idle: None,
                max_stream_age: None,
            },
            queue: QueueLimits {
                depth: 1,
                bytes: 1,
                timeout: Duration::from_secs(1),
            },
            request_headers: [("x-api-key".to_owned(), "secret".to_owned())].into(),
        }
    }

    fn text<'f>(fields: &'f Fields, name: &str) -> Option<&'f str> {
        fields.get(name).map(|v| std::str::from_utf8(v).expect("text"))
    }

    #[test]
    fn a_client_cannot_set_decision_or_forwarding_headers() {
        let mut head = fields(&[
            ("knative-serving-revision", "evil"),
            ("knative-serving-tag", "evil"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=1.2.3.4"),
            ("x-api-key", "mine"),
            ("traceparent", "00-1"),
        ]);
        let from = Forwarding {
            client: "10.0.0.9".parse().expect("an address"),
            trusted: false,
            tls: false,
            host: b"a.example",
            request_id: "id",
        };
        to_backend(&mut head, from, &revision(), None);
        assert_eq!(text(&head, "knative-serving-revision"), Some("greeter-v1"));
        assert_eq!(text(&head, "knative-serving-namespace"), Some("default"));
        assert_eq!(text(&head, "knative-serving-tag"), None);
        assert_eq!(text(&head, "x-forwarded-for"), Some("10.0.0.9"));
        assert_eq!(text(&head, "x-forwarded-port"), None);
        assert_eq!(text(&head, "x-forwarded-proto"), Some("http"));
        assert_eq!(text(&head, "x-forwarded-host"), Some("a.example"));
        assert_eq!(text(&head, "forwarded"), None);
        assert_eq!(text(&head, "x-api-key"), Some("secret"));
        assert_eq!(text(&head, "traceparent"), Some("00-1"));

        let mut head = fields(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")]);
        to_backend(
            &mut head,
            Forwarding {
                trusted: true,
                ..from
            },
            &revision(),
            None,
        );
        assert_eq!(text(&head, "x-forwarded-for"), Some("1.2.3.4, 10.0.0.9"));
        assert_eq!(text(&head, "x-forwarded-proto"), Some("https"));
    }

    #[test]
    fn responses_lose_hop_by_hop_fields_and_what_connection_names() {
        let mut head = fields(&[
            ("connection", "X-Hop, keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("content-length", "3"),
            ("x-sluice-reason", "queue_full"),
            ("x-kept", "1"),
        ]);
        from_backend(&mut head);
        let names: Vec<_> = head.0.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["content-length", "x-kept"]);
    }

    #[test]
    fn connection_cannot_nominate_what_the_gateway_relies_on() {
        let mut head = fields(&[
            ("connection", "x-forwarded-for, host, x-mine"),
            ("host", "a"),
            ("x-forwarded-for", "b"),
            ("x-mine", "c"),
        ]);
        strip_hop_by_hop(&mut head);
        assert_eq!(
            (
                text(&head, "host"),
                text(&head, "x-forwarded-for"),
                text(&head, "x-mine")
            ),
            (Some("a"), Some("b"), None)
        );
    }

    #[test]
    fn request_ids_are_kept_when_fit() {
        assert_eq!(request_id(Some(b"abc-1"), || 0), "abc-1");
        for bad in [&b""[..], b"a b", b"\xff", &[b'a'; 129]] {
            assert_eq!(request_id(Some(bad), || 0xab), format!("{:032x}", 0xab));
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
}
