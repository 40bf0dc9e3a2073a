//! TLS of a listener.

use std::path::PathBuf;

use serde_json::{Value, json};
use sluice_config_shape::{
    Choice, Context, Definitions, List, Located, NodeRef, Record, Scalar, Shape, WithLocation, did_you_mean,
};
use sluice_model::{CertificateFiles, CipherSuite, TlsSettings, TlsVersion};

use super::names::FILE;

/// A listener's TLS settings, with the files that the data plane reads.
#[derive(Debug, Clone)]
pub(super) struct TlsDraft {
    pub(super) settings: TlsSettings,
    pub(super) files: Vec<Located<PathBuf>>,
}

/// A cipher suite under IANA's name.
struct Suite;

impl Shape for Suite {
    type Out = CipherSuite;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<CipherSuite> {
        let words = CipherSuite::ALL.map(CipherSuite::as_str);
        let text = at.scalar().map(Scalar::text);
        let suite = CipherSuite::ALL
            .into_iter()
            .find(|suite| text == Some(suite.as_str()));
        if suite.is_none() {
            let hint = text.and_then(|text| did_you_mean(text, words));
            let hint = hint.map(|word| format!("did you mean '{word}'?"));
            cx.mismatch(at, "a cipher suite's name", hint);
        }
        suite
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"anyOf": [
            {"enum": CipherSuite::ALL.map(CipherSuite::as_str)},
            {"type": "string", "pattern": "\\$\\{"},
        ]})
    }
}

pub(super) const TLS: Record<Option<TlsDraft>> = Record {
    name: "Tls",
    doc: "TLS of a listener.",
    decode: |o| {
        let certificates = o.required(
            "certificates",
            "Chosen by the name that the client asks for; the first is the default.",
            WithLocation(List(CERTIFICATE)),
        );
        let min_version = o.or(
            "minVersion",
            "The oldest version that is spoken.",
            Choice(&[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)]),
            TlsVersion::Tls12,
        );
        let cipher_suites = o.optional(
            "cipherSuites",
            "The only ones that may be agreed on. Default: all that are listed here.",
            WithLocation(List(Suite)),
        );
        if let Some(suites) = &cipher_suites {
            let usable = |suite: &CipherSuite| min_version == TlsVersion::Tls12 || suite.is_tls13();
            let whole = suites.node.list_len() == Some(suites.value.len());
            if whole && !suites.value.iter().any(usable) {
                let diagnostic = suites
                    .node
                    .whole()
                    .error("there is no cipher suite that minVersion allows");
                o.cx.report(diagnostic.hint("leave the key out for all of them"));
            }
        }
        let certificates = certificates?;
        if certificates.node.list_len() == Some(0) {
            let diagnostic = certificates
                .node
                .whole()
                .error("tls needs at least one certificate");
            o.cx.report(diagnostic.hint("certificates: [{certFile: tls.crt, keyFile: tls.key}]"));
        }
        let mut files = Vec::new();
        let pairs = certificates.value.into_iter().map(|(cert, key)| {
            files.extend([cert.clone(), key.clone()]);
            CertificateFiles {
                cert_file: cert.value,
                key_file: key.value,
            }
        });
        Some(Some(TlsDraft {
            settings: TlsSettings {
                certificates: pairs.collect(),
                min_version,
                cipher_suites: cipher_suites.map(|suites| suites.value),
            },
            files,
        }))
    },
};

const CERTIFICATE: Record<(Located<PathBuf>, Located<PathBuf>)> = Record {
    name: "Certificate",
    doc: "PEM files, relative to this file.",
    decode: |o| {
        let cert = o.required("certFile", "The chain, leaf first.", WithLocation(FILE));
        let key = o.required("keyFile", "The private key.", WithLocation(FILE));
        Some((cert?, key?))
    },
};
