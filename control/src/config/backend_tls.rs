//! TLS of a revision towards its backend.

use std::path::PathBuf;

use sluice_config_shape::{Flag, Located, Object, ParseError, Parsed, Record, WithLocation};
use sluice_model::{Backend, BackendTls, CertificateFiles, Host, Protocol, Scheme};

use super::names::FILE;

/// A revision's TLS settings, with the files that the data plane reads.
#[derive(Debug, Clone, Default)]
pub(super) struct BackendTlsDraft {
    pub(super) tls: BackendTls,
    pub(super) files: Vec<Located<PathBuf>>,
}

/// A DNS name or an IP address, as a certificate names it.
const SERVER_NAME: Parsed<String> = Parsed {
    what: "a server name",
    parse: |text, _| {
        let hint = "write a host name or an address, without port and brackets";
        if text.parse::<std::net::IpAddr>().is_ok() {
            return Ok(text.to_owned());
        }
        match Host::parse(text) {
            Ok(host) if !text.contains([':', '[', '*']) => Ok(host.as_str().to_owned()),
            Ok(_) => Err(ParseError::with_hint("it is more than a name", hint)),
            Err(e) => Err(ParseError::with_hint(e.to_string(), hint)),
        }
    },
};

pub(super) const BACKEND_TLS: Record<BackendTlsDraft> = Record {
    name: "BackendTls",
    doc: "TLS towards an https URL. PEM files, relative to this file; what they hold is read again when they change.",
    decode: |o| {
        let ca = o.optional(
            "caFile",
            "The only authorities that are trusted. Default: the system's.",
            WithLocation(FILE),
        );
        let cert = o.optional(
            "certFile",
            "A client certificate, leaf first; goes with keyFile.",
            WithLocation(FILE),
        );
        let key = o.optional(
            "keyFile",
            "The client certificate's private key.",
            WithLocation(FILE),
        );
        let server_name = o.optional(
            "serverName",
            "Asked for and verified in place of the URL's host.",
            SERVER_NAME,
        );
        let insecure_skip_verify = o.or(
            "insecureSkipVerify",
            "true: any certificate is taken. Whoever can redirect the connection can read and change it.",
            Flag,
            false,
        );
        for (one, other) in [("certFile", "keyFile"), ("keyFile", "certFile")] {
            if let (Some(node), false) = (o.key(one), o.has_or_meant(other)) {
                let diagnostic = node.error(format!("'{one}' stands without '{other}'"));
                o.cx.report(diagnostic.hint("a client certificate needs both"));
            }
        }
        if let (true, Some(node)) = (insecure_skip_verify, o.key("insecureSkipVerify")) {
            let diagnostic = node.error("the backend's certificate is not verified");
            let hint = "for tests only; name the backend's own authority with caFile instead";
            o.cx.report(diagnostic.hint(hint).warning());
            if let Some(unused) = o.key("caFile") {
                o.cx.report(
                    unused
                        .error("caFile has no effect with insecureSkipVerify")
                        .warning(),
                );
            }
        }
        let files = ca.iter().chain(&cert).chain(&key).cloned().collect();
        let pair = cert.zip(key).map(|(cert, key)| CertificateFiles {
            cert_file: cert.value,
            key_file: key.value,
        });
        Some(BackendTlsDraft {
            tls: BackendTls {
                ca_file: ca.map(|f| f.value),
                certificate: pair,
                server_name,
                insecure_skip_verify,
            },
            files,
        })
    },
};

/// Checks that protocol and TLS fit the backend. Reports nothing where the backend could not be decoded.
pub(super) fn check_wire(o: &mut Object<'_>, backend: Option<&Backend>, protocol: Protocol) {
    let Some(backend) = backend else { return };
    let is_https = |backend: &Backend| matches!(backend, Backend::Url(url) if url.scheme == Scheme::Https);
    // `tls` is for the tiers with an https url; a protocol is for all of them.
    let (https, all_https) = match backend {
        Backend::Tiers(tiers) => {
            let https = tiers.iter().filter(|tier| is_https(&tier.backend)).count();
            (https > 0, https == tiers.len())
        }
        backend => (is_https(backend), is_https(backend)),
    };
    if let (false, Some(node)) = (https, o.key("tls")) {
        let diagnostic = node.error("'tls' goes with an https url only");
        o.cx.report(diagnostic.hint("leave it out, or give the revision a url: https://host"));
    }
    match (protocol, o.key("protocol")) {
        (Protocol::H2, Some(node)) if !all_https => {
            let diagnostic = node.error("h2 is HTTP/2 over TLS, but the backend is no https url");
            o.cx.report(diagnostic.hint("use h2c for HTTP/2 without TLS, or url: https://host"));
        }
        (Protocol::H2c, Some(node)) if https => {
            let diagnostic = node.error("h2c is HTTP/2 without TLS, but the url is https");
            let diagnostic = diagnostic.hint("use h2 for HTTP/2 over TLS, or http://");
            o.cx.report(match o.value("url") {
                Some(url) => diagnostic.related(url.location(), "the url"),
                None => diagnostic,
            });
        }
        _ => {}
    }
}
