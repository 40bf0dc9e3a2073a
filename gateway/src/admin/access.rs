//! Access control of the admin address: which requests are answered, and who may change something.
//!
//! Three checks, in this order, for every request:
//!
//! 1. **Host**, against DNS rebinding: a page whose name was made to resolve to this address still sends its own name.
//! 2. **Origin**, against cross-site requests: browsers name the page that a request comes from, and pages cannot
//!    change it.
//! 3. **Token**, for every method that changes something.
//!
//! Pure: decides on the request's head.

use http::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode};
use ring::hmac;
use sluice_model::{AdminAddress, AdminSettings, Secret, normalize_host};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `Host` is a name that the address does not have.
    Host,
    /// `Origin` is another site.
    Origin,
    /// A change without the token, or with another one.
    Token,
    /// A change that needs a token, where none is configured.
    NoTokenConfigured,
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin | Self::NoTokenConfigured => StatusCode::FORBIDDEN,
            Self::Token => StatusCode::UNAUTHORIZED,
        }
    }

    /// What to do, in one line.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Host => {
                "this name is not one of the admin address: use an IP address or localhost, or list it in admin.hosts"
            }
            Self::Origin => "not from the page of another site",
            Self::Token => {
                "this needs the admin token: --token-file FILE or $SLUICE_TOKEN, as `Authorization: Bearer`"
            }
            Self::NoTokenConfigured => {
                "changes are accepted on a loopback address or a Unix socket, and not from web pages, unless admin.token is set"
            }
        }
    }
}

/// Decides on a request to the admin server that is bound to `bound`.
///
/// # Errors
/// Why the request is refused.
pub(super) fn check<B>(
    request: &Request<B>,
    bound: &AdminAddress,
    settings: &AdminSettings,
) -> Result<(), Refusal> {
    let headers = request.headers();
    let host = host(request).map_err(|()| Refusal::Host)?;
    if !host.is_none_or(|host| is_ours(host, &settings.hosts)) {
        return Err(Refusal::Host);
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    let origin = origins.next();
    if let Some(origin) = origin {
        let same = host.is_some_and(|host| is_origin_of(origin.as_bytes(), host));
        if !same || origins.next().is_some() {
            return Err(Refusal::Origin);
        }
    }
    if origin.is_none() && is_embedded_elsewhere(headers) {
        return Err(Refusal::Origin);
    }
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    match &settings.token {
        Some(token) if bearer(headers).is_some_and(|given| is_token(given, token)) => Ok(()),
        Some(_) => Err(Refusal::Token),
        None if origin.is_none() && is_local(bound) => Ok(()),
        None => Err(Refusal::NoTokenConfigured),
    }
}

/// The host that the client names, with its port: `None` where it names none, which no browser does. An absolute
/// request target counts before the field (RFC 9112 3.2.2), and both have to agree.
fn host<B>(request: &Request<B>) -> Result<Option<&str>, ()> {
    let mut fields = request.headers().get_all(HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (None, _) => None,
        (Some(one), None) => Some(one.to_str().map_err(drop)?),
        (Some(_), Some(_)) => return Err(()),
    };
    match (request.uri().authority().map(Authority::as_str), field) {
        (Some(target), Some(field)) if !target.eq_ignore_ascii_case(field) => Err(()),
        (target, field) => Ok(target.or(field)),
    }
}

/// An IP literal, `localhost`, or one of the names.
fn is_ours(host: &str, names: &[String]) -> bool {
    let mut buf = [0; 256];
    let Ok(name) = normalize_host(host.as_bytes(), &mut buf) else {
        return false;
    };
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_literal = match literal {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.parse::<std::net::Ipv4Addr>().is_ok(),
    };
    is_literal || name == "localhost" || names.iter().any(|own| own == name)
}

/// Whether an `Origin` is a page of this host, over HTTP or behind something that adds TLS. `null` is not.
fn is_origin_of(origin: &[u8], host: &str) -> bool {
    let rest = [&b"http://"[..], b"https://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(*scheme));
    rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host.as_bytes()))
}

/// Whether another site's page asks for an image, a script or the like, which browsers do without an `Origin`: its page
/// could not read the answer, but hold places of `/api/events`. A link from elsewhere is followed (Fetch Metadata).
fn is_embedded_elsewhere(headers: &HeaderMap) -> bool {
    let is = |name: &str, values: &[&str]| {
        let value = headers.get(name).map(HeaderValue::as_bytes);
        value.is_some_and(|value| values.iter().any(|one| one.as_bytes() == value))
    };
    is("sec-fetch-site", &["cross-site", "same-site"]) && !is("sec-fetch-mode", &["navigate"])
}

/// The token of an `Authorization: Bearer` (RFC 6750 2.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return None;
    };
    let (scheme, token) = field.as_bytes().split_at_checked(b"Bearer ".len())?;
    let token = token.trim_ascii_start();
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// Compares in constant time, by MACs of equal length: neither a common prefix nor the token's length shows in the
/// time.
fn is_token(given: &[u8], token: &Secret) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"sluice admin token");
    let wanted = hmac::sign(&key, token.reveal().as_bytes());
    hmac::verify(&key, given, wanted.as_ref()).is_ok()
}

/// An address that only programs of this machine reach, or only the gateway's own user.
fn is_local(bound: &AdminAddress) -> bool {
    match bound {
        AdminAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
        AdminAddress::Unix(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn settings(token: Option<&str>) -> AdminSettings {
        AdminSettings {
            hosts: vec!["sluice.internal".into()],
            token: token.map(Secret::new),
            ..AdminSettings::at(loopback())
        }
    }

    fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 9900).into()
    }

    fn asked(
        bound: AdminAddress,
        token: Option<&str>,
        method: &str,
        fields: &[(&str, &str)],
    ) -> Result<(), Refusal> {
        let mut request = Request::builder().method(method).uri("/api/upgrade");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap(), &bound, &settings(token))
    }

    #[test]
    fn a_host_is_an_address_localhost_or_a_name_of_the_list() {
        let get = |host| asked(loopback().into(), None, "GET", &[("host", host)]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:9900",
            "[::1]:9900",
            "[::1]",
            "10.1.2.3:1",
            "localhost",
            "LocalHost:9900",
            "localhost.",
            "sluice.internal",
            "Sluice.Internal:80",
        ] {
            assert_eq!(get(host), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "2130706433",
            "0x7f.1",
            "127.1",
            "[::1",
            "::1",
            "[localhost]",
            "",
            "sluice.internal.",
            "x.sluice.internal",
            "localhost:x",
            "u@localhost",
        ] {
            // One closing dot is the same name.
            let want = if host == "sluice.internal." {
                Ok(())
            } else {
                Err(Refusal::Host)
            };
            assert_eq!(get(host), want, "{host}");
        }
        assert_eq!(asked(loopback().into(), None, "GET", &[]), Ok(()), "HTTP/1.0");
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(asked(loopback().into(), None, "GET", &two), Err(Refusal::Host));
    }

    #[test]
    fn an_absolute_target_is_a_host_too() {
        for (uri, host, want) in [
            ("http://evil.example/", "localhost", Err(Refusal::Host)),
            ("http://localhost/", "evil.example", Err(Refusal::Host)),
            ("http://evil.example/", "evil.example", Err(Refusal::Host)),
            ("http://localhost/", "localhost", Ok(())),
        ] {
            let request = Request::builder().uri(uri).header("host", host).body(()).unwrap();
            assert_eq!(
                check(&request, &loopback().into(), &settings(None)),
                want,
                "{uri} {host}"
            );
        }
    }

    #[test]
    fn an_origin_is_this_host_or_refused_and_then_needs_the_token() {
        let host = ("host", "localhost:9900");
        let post = |token, origin, more: &[(&str, &str)]| {
            let fields = [&[host, ("origin", origin)], more].concat();
            asked(loopback().into(), token, "POST", &fields)
        };
        let bearer = [("authorization", "Bearer t")];
        let own = "http://localhost:9900";
        assert_eq!(post(Some("t"), own, &bearer), Ok(()));
        assert_eq!(post(Some("t"), "https://localhost:9900", &bearer), Ok(()));
        assert_eq!(post(Some("t"), own, &[]), Err(Refusal::Token));
        assert_eq!(post(None, own, &bearer), Err(Refusal::NoTokenConfigured));
        for origin in [
            "http://localhost",
            "http://evil.example",
            "null",
            "",
            "http://localhost:9900/",
            "file://",
        ] {
            assert_eq!(post(Some("t"), origin, &bearer), Err(Refusal::Origin), "{origin}");
            // Reading, too.
            let get = asked(loopback().into(), None, "GET", &[host, ("origin", origin)]);
            assert_eq!(get, Err(Refusal::Origin), "{origin}");
        }
        assert_eq!(
            asked(loopback().into(), None, "GET", &[host, ("origin", own)]),
            Ok(())
        );
        let two = [host, ("origin", own), ("origin", "http://evil.example")];
        assert_eq!(asked(loopback().into(), None, "GET", &two), Err(Refusal::Origin));
    }

    #[test]
    fn a_page_of_another_site_embeds_nothing() {
        let get = |site, mode| {
            let fields = [
                ("host", "localhost"),
                ("sec-fetch-site", site),
                ("sec-fetch-mode", mode),
            ];
            asked(loopback().into(), None, "GET", &fields)
        };
        for site in ["cross-site", "same-site"] {
            assert_eq!(get(site, "no-cors"), Err(Refusal::Origin), "{site}");
            assert_eq!(get(site, "navigate"), Ok(()), "a link from {site}");
        }
        assert_eq!(get("same-origin", "cors"), Ok(()));
        assert_eq!(get("none", "navigate"), Ok(()), "typed");
    }

    #[test]
    fn without_a_token_changes_are_local() {
        let post = |bound: AdminAddress| asked(bound, None, "POST", &[("host", "10.0.0.1")]);
        let tcp = |text: &str| AdminAddress::Tcp(text.parse().unwrap());
        assert_eq!(post(loopback().into()), Ok(()));
        assert_eq!(post(tcp("[::1]:1")), Ok(()));
        assert_eq!(post(tcp("[::ffff:127.0.0.1]:1")), Ok(()));
        assert_eq!(post(AdminAddress::Unix("a.sock".into())), Ok(()));
        for other in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            assert_eq!(post(tcp(other)), Err(Refusal::NoTokenConfigured), "{other}");
        }
    }

    #[test]
    fn with_a_token_every_change_needs_it() {
        let post =
            |fields: &[(&str, &str)]| asked(AdminAddress::Unix("a".into()), Some("s3cret"), "POST", fields);
        assert_eq!(post(&[("authorization", "Bearer s3cret")]), Ok(()));
        assert_eq!(post(&[("authorization", "bearer  s3cret")]), Ok(()));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3cre",
            "Bearer S3CRET",
            "Basic s3cret",
            "s3cret",
            "Bearer s3crets",
        ] {
            assert_eq!(post(&[("authorization", wrong)]), Err(Refusal::Token), "{wrong}");
        }
        assert_eq!(post(&[]), Err(Refusal::Token));
        let two = [("authorization", "Bearer s3cret"), ("authorization", "Bearer x")];
        assert_eq!(post(&two), Err(Refusal::Token));
        // Any method that is not one for reading.
        for method in ["PUT", "DELETE", "PATCH", "FOO"] {
            let asked = asked(
                loopback().into(),
                Some("s3cret"),
                method,
                &[("host", "localhost")],
            );
            assert_eq!(asked, Err(Refusal::Token), "{method}");
        }
    }
}
