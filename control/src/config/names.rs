//! Shapes of names, addresses, paths and headers.

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, PathBuf};

use ipnet::IpNet;
use sluice_config_shape::{Context, Definitions, NodeRef, ParseError, Parsed, Shape, Verbatim, quoted};
use sluice_model::{
    EndpointAddr, EndpointTarget, Host, HostPattern, NameError, RevisionId, Scheme, Tag, UrlBackend,
};

use super::idna::ascii_host;

/// A path resolved against the file's directory.
pub(super) fn resolve(path: &str, at: &NodeRef) -> PathBuf {
    let joined = at.directory().join(path);
    // Only `.` is removed: the meaning of `..` depends on links in the file system.
    joined.components().filter(|c| *c != Component::CurDir).collect()
}

/// A lower-case DNS label.
pub(super) const LABEL: Parsed<String> = Parsed {
    what: "a name",
    parse: |text, at| {
        written_as_text(text, at)?;
        label(text).map(|()| text.to_owned())
    },
};

fn label(text: &str) -> Result<(), ParseError> {
    match RevisionId::parse("default", text) {
        Ok(_) => Ok(()),
        Err(e) => Err(ParseError::with_hint(
            e.to_string(),
            "a name is up to 63 lower-case letters, digits and '-'",
        )),
    }
}

/// Refuses a name that YAML reads as a number, because that is often a slip.
fn written_as_text(text: &str, at: &NodeRef) -> Result<(), ParseError> {
    match at.scalar() {
        Some(scalar) if !scalar.is_expanded() && scalar.is_number() => Err(ParseError::with_hint(
            "YAML reads it as a number",
            format!("quote it: \"{text}\""),
        )),
        _ => Ok(()),
    }
}

/// The name of a tag.
pub(super) const TAG: Parsed<Tag> = Parsed {
    what: "a tag",
    parse: |text, at| {
        written_as_text(text, at)?;
        let hint = "a tag is up to 63 lower-case letters, digits and '-': it becomes part of a host name";
        Tag::parse(text).map_err(|e| ParseError::with_hint(e.to_string(), hint))
    },
};

/// A domain without wildcard.
pub(super) const DOMAIN: Parsed<Host> = Parsed {
    what: "a domain",
    parse: |text, _| host(text),
};

fn host(text: &str) -> Result<Host, ParseError> {
    if text.contains("://") {
        return Err(ParseError::with_hint("it is a URL", "write the host alone"));
    }
    if !text.starts_with('[') && text.contains(':') {
        return Err(ParseError::with_hint(
            "it has a port",
            "a host matches on every port: leave it out",
        ));
    }
    if let Some(label) = text.trim_end_matches('.').split('.').find(|l| l.len() > 63) {
        return Err(ParseError::new(format!(
            "the label starting with '{}' is longer than 63 bytes",
            label.chars().take(12).collect::<String>()
        )));
    }
    Host::parse(text).map_err(|e| refused_host(text, e))
}

/// The error of an invalid host. Hints at the ASCII form, under which DNS and clients know an international name.
fn refused_host(text: &str, error: NameError) -> ParseError {
    let bare = text.trim_end_matches('.');
    let bare = bare.rsplit_once(':').map_or(bare, |(host, _)| host);
    match ascii_host(bare).filter(|_| matches!(error, NameError::BadChar(_))) {
        Some(ascii) => ParseError::with_hint(error.to_string(), format!("its ASCII form is {ascii}")),
        None => ParseError::new(error.to_string()),
    }
}

/// A host or `*.suffix`.
pub(super) const HOST_PATTERN: Parsed<HostPattern> = Parsed {
    what: "a host",
    parse: |text, _| {
        let (suffix, wildcard) = match text.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        if suffix.contains('*') {
            return Err(ParseError::with_hint(
                "'*' stands for whole labels at the start only",
                "write *.example.com",
            ));
        }
        let host = host(suffix)?;
        Ok(if wildcard {
            HostPattern::Wildcard(host)
        } else {
            HostPattern::Exact(host)
        })
    },
};

/// The Host header for a backend; a port may follow.
pub(super) const AUTHORITY: Parsed<String> = Parsed {
    what: "a host",
    parse: |text, _| match Host::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(e) => Err(refused_host(text, e)),
    },
};

/// An address to listen on.
pub(super) const LISTEN: Parsed<SocketAddr> = Parsed {
    what: "an address with a port",
    parse: |text, _| {
        text.parse().map_err(|_| {
            let port = text.strip_prefix(':').unwrap_or(text);
            if !port.is_empty() && port.parse::<u16>().is_ok() {
                let hint = format!("write 0.0.0.0:{port} for all IPv4 addresses, [::]:{port} for IPv6 too");
                return ParseError::with_hint("the address is missing", hint);
            }
            let port = text.strip_prefix("localhost:");
            if let Some(port) = port.filter(|port| port.parse::<u16>().is_ok()) {
                let hint = format!("write 127.0.0.1:{port}");
                return ParseError::with_hint("a name may stand for several addresses", hint);
            }
            if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
                let right = SocketAddr::new(address, 8080);
                return ParseError::with_hint("the port is missing", format!("write {right}"));
            }
            ParseError::with_hint(
                "it cannot be read",
                "write 127.0.0.1:8080, 0.0.0.0:80 or [::1]:8080",
            )
        })
    },
};

/// A network, or one address.
pub(super) const NETWORK: Parsed<IpNet> = Parsed {
    what: "a network",
    parse: |text, _| {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        address
            .or_else(|_| text.parse::<IpNet>())
            .map(|net| net.trunc())
            .map_err(|_| {
                let hint = "write 10.0.0.0/8, fd00::/8, or one address";
                ParseError::with_hint("it cannot be read", hint)
            })
    },
};

/// `host:port`, `[::1]:80` or `unix:/path`.
pub(super) const ENDPOINT: Parsed<EndpointTarget> = Parsed {
    what: "an endpoint",
    parse: endpoint,
};

fn endpoint(text: &str, at: &NodeRef) -> Result<EndpointTarget, ParseError> {
    let forms = "write host:port, [::1]:port or unix:/path/to.sock";
    if text.contains("://") {
        return Err(ParseError::with_hint(
            "it is a URL",
            "use 'url:' instead of 'endpoints:'",
        ));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.contains('\0') {
            return Err(ParseError::with_hint("the socket's path is missing", forms));
        }
        let path = resolve(path, at);
        // sun_path, less the closing NUL.
        if path.as_os_str().len() > 107 {
            return Err(ParseError::new("the path of a Unix socket has at most 107 bytes"));
        }
        return Ok(EndpointTarget::Address(EndpointAddr::Unix(path)));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(ParseError::new("nothing listens on port 0"));
        }
        return Ok(EndpointTarget::Address(EndpointAddr::Tcp(address)));
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        return Err(ParseError::with_hint("the port is missing", forms));
    };
    if name.contains(':') {
        return Err(ParseError::with_hint("an IPv6 address needs brackets", forms));
    }
    let port = match port.parse::<u16>() {
        Ok(port) if port > 0 && !text.ends_with('+') && !text.contains(":+") => port,
        _ => {
            return Err(ParseError::with_hint(
                "its port is not a number from 1 to 65535",
                forms,
            ));
        }
    };
    let name = host(name)?;
    Ok(EndpointTarget::Dns {
        host: name.as_str().to_owned(),
        port,
    })
}

/// A backend's URL.
pub(super) const BACKEND_URL: Parsed<UrlBackend> = Parsed {
    what: "a URL",
    parse: |text, _| {
        let (scheme, host, port, rest) = url(text)?;
        if rest.contains(['?', '#']) {
            return Err(ParseError::new("a backend's URL has no query and no fragment"));
        }
        let path_prefix = rest.trim_end_matches('/').to_owned();
        Ok(UrlBackend {
            scheme,
            host,
            port,
            path_prefix,
        })
    },
};

/// The URL of a webhook.
pub(super) const WEBHOOK_URL: Parsed<String> = Parsed {
    what: "a URL",
    parse: |text, _| url(text).map(|_| text.to_owned()),
};

fn url(text: &str) -> Result<(Scheme, Host, u16, &str), ParseError> {
    let forms = "write http://host:port or https://host";
    let (scheme, rest) = match text.split_once("://") {
        Some((s, rest)) if s.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
        Some((s, rest)) if s.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
        Some(_) => {
            return Err(ParseError::with_hint(
                "its scheme is neither http nor https",
                forms,
            ));
        }
        None => return Err(ParseError::with_hint("its scheme is missing", forms)),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if authority.contains('@') {
        let hint = "put credentials into a header: requestHeaders or headers";
        return Err(ParseError::with_hint("credentials in a URL are not sent", hint));
    }
    if let Err(error @ NameError::BadChar(_)) = Host::parse(authority) {
        return Err(refused_host(authority, error));
    }
    if text.parse::<http::Uri>().is_err() {
        return Err(ParseError::with_hint("it cannot be read", forms));
    }
    let host = Host::parse(authority).map_err(|e| ParseError::with_hint(e.to_string(), forms))?;
    let named = authority.rfind(':').filter(|i| !authority[*i..].contains(']'));
    let port = match named.map(|i| &authority[i + 1..]) {
        None | Some("") => match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        },
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => {
                return Err(ParseError::with_hint(
                    "its port is not a number from 1 to 65535",
                    forms,
                ));
            }
        },
    };
    Ok((scheme, host, port, rest))
}

/// A path that requests are matched against or rewritten to.
pub(super) const URL_PATH: Parsed<String> = Parsed {
    what: "a path",
    parse: |text, _| {
        url_path(text)?;
        if text.contains('?') {
            return Err(ParseError::new("a path here has no query"));
        }
        Ok(text.to_owned())
    },
};

/// The path of a probe; may have a query.
pub(super) const PROBE_PATH: Parsed<String> = Parsed {
    what: "a path",
    parse: |text, _| url_path(text).map(|()| text.to_owned()),
};

fn url_path(text: &str) -> Result<(), ParseError> {
    let special = |c: char| c <= ' ' || c >= '\x7f' || c == '#';
    if !text.starts_with('/') {
        let hint = format!("write /{}", percent_encoded(text, special));
        return Err(ParseError::with_hint("it does not start with '/'", hint));
    }
    match text.chars().find(|c| special(*c)) {
        Some('#') => Err(ParseError::new("a path has no fragment")),
        Some(c) => Err(ParseError::with_hint(
            format!("the character {c:?} has to be escaped"),
            format!("write {}", percent_encoded(text, special)),
        )),
        None => Ok(()),
    }
}

/// Percent-encodes special characters (RFC 3986 2.1).
fn percent_encoded(text: &str, special: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if special(c) {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// A file. Its reader checks that the file exists.
pub(super) const FILE: Parsed<PathBuf> = Parsed {
    what: "a file",
    parse: |text, at| {
        if text.is_empty() || text.contains('\0') {
            return Err(ParseError::new("its name is empty or holds a NUL"));
        }
        Ok(resolve(text, at))
    },
};

/// A header's name, in lower case.
pub(super) const HEADER_NAME: Parsed<String> = Parsed {
    what: "a header name",
    parse: |text, _| header_name(text).map_err(ParseError::new),
};

/// Checks a header's name and returns it in lower case.
pub(super) fn header_name(text: &str) -> Result<String, String> {
    match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => Err(format!("{} cannot be a header name", quoted(text))),
    }
}

/// Checks the name of a header that is set on requests.
pub(super) fn settable_header(text: &str) -> Result<String, String> {
    let name = header_name(text)?;
    match name.as_str() {
        "host" => {
            Err("the header 'Host' is not set here: use rewriteHost in a route, or a url backend".into())
        }
        "connection" | "content-length" | "keep-alive" | "proxy-connection" | "te" | "trailer"
        | "transfer-encoding" | "upgrade" => Err(format!(
            "the header '{text}' belongs to the connection and cannot be set"
        )),
        _ => Ok(name),
    }
}

/// A protocol to upgrade to (RFC 9110 7.8), in lower case: names are compared without regard to case.
pub(super) const UPGRADE: Parsed<String> = Parsed {
    what: "the name of a protocol",
    parse: |text, _| {
        let (name, version) = text.split_once('/').map_or((text, None), |(n, v)| (n, Some(v)));
        if header_name(name).is_err() || version.is_some_and(|v| header_name(v).is_err()) {
            return Err(ParseError::with_hint(
                "it is no protocol's name",
                "a name as clients send it in Upgrade, such as websocket",
            ));
        }
        let lower = text.to_ascii_lowercase();
        match lower.split('/').next() {
            Some("tls") => Err(ParseError::with_hint(
                "TLS is not begun by an upgrade here",
                "give the backend an https url",
            )),
            Some("h2" | "h2c") => Err(ParseError::with_hint(
                "HTTP/2 is not begun by an upgrade here",
                "protocol: h2c speaks it to the backend at once",
            )),
            _ => Ok(lower),
        }
    },
};

/// A cookie's name.
pub(super) const COOKIE_NAME: Parsed<String> = Parsed {
    what: "a cookie name",
    parse: |text, _| {
        // RFC 6265: a cookie's name is a token, as a header's name is.
        header_name(text)
            .map(|_| text.to_owned())
            .map_err(|_| ParseError::new("it holds a character that cookie names cannot have"))
    },
};

/// A method.
pub(super) const METHOD: Parsed<String> = Parsed {
    what: "a method",
    parse: |text, _| {
        if header_name(text).is_err() {
            return Err(ParseError::new("it holds a character that methods cannot have"));
        }
        if text.bytes().any(|b| b.is_ascii_lowercase()) {
            let hint = format!("write {}", text.to_ascii_uppercase());
            return Err(ParseError::with_hint("methods are written in upper case", hint));
        }
        Ok(text.to_owned())
    },
};

/// A header's value. Diagnostics never show the value, which may be a secret.
pub(super) struct HeaderText;

impl Shape for HeaderText {
    type Out = String;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<String> {
        let value = Verbatim.decode(at, cx)?;
        if http::HeaderValue::from_bytes(value.as_bytes()).is_err() {
            cx.report(at.error("a header value cannot hold line breaks or other control characters"));
            return None;
        }
        Some(value)
    }

    fn schema(&self, definitions: &mut Definitions) -> serde_json::Value {
        Verbatim.schema(definitions)
    }
}
