//! The key `admin`: where the admin listener is, and who may change something by it.

use std::path::PathBuf;

use serde_json::{Value, json};
use sluice_config_shape::{
    Context, Definitions, List, Located, NodeRef, ParseError, Parsed, Record, Shape, WithLocation,
};
use sluice_model::{AdminAddress, AdminSettings, Secret, normalize_host};

use super::names::{LISTEN, resolve};

/// A key without a sound address; what else there is was decoded.
#[derive(Debug, Clone, Default)]
pub(super) struct AdminDraft {
    pub(super) address: Option<Located<AdminAddress>>,
    hosts: Vec<String>,
    token: Option<Secret>,
}

impl AdminDraft {
    /// The settings, with a default address where there is none.
    pub(super) fn settings(self, default: AdminAddress) -> AdminSettings {
        AdminSettings {
            address: self.address.map_or(default, |address| address.value),
            hosts: self.hosts,
            token: self.token,
        }
    }
}

pub(super) const ADMIN: Record<AdminDraft> = Record {
    name: "Admin",
    doc: "The admin listener.",
    decode: |o| {
        Some(AdminDraft {
            address: o.optional(
                "address",
                "Address and port, or unix:/path of a socket for the gateway's own user. Default: 127.0.0.1:9900.",
                WithLocation(ADDRESS),
            ),
            token: o.optional(
                "token",
                "Every change needs it, as a bearer token: \"${SLUICE_TOKEN}\". Absent: changes are accepted on loopback and Unix sockets alone.",
                TOKEN,
            ),
            hosts: o
                .optional(
                    "hosts",
                    "Names that clients may use for the admin address, besides IP addresses and localhost.",
                    List(NAME),
                )
                .unwrap_or_default(),
        })
    },
};

const ADDRESS: Parsed<AdminAddress> = Parsed {
    what: "an address with a port, or unix:/path",
    parse: |text, at| {
        let Some(path) = text.strip_prefix("unix:") else {
            return (LISTEN.parse)(text, at).map(AdminAddress::Tcp);
        };
        let path = match path {
            "" => PathBuf::new(),
            path => resolve(path, at),
        };
        // The resolved path is the one that has to fit.
        format!("unix:{}", path.display())
            .parse()
            .map_err(ParseError::new)
    },
};

/// A name in `Host`.
const NAME: Parsed<String> = Parsed {
    what: "a host name",
    parse: |text, _| {
        let hint = "write it as clients do, without scheme and port: sluice.internal";
        match normalize_host(text.as_bytes(), &mut [0; 256]) {
            Ok(host) if !text.contains(':') => Ok(host.to_owned()),
            _ => Err(ParseError::with_hint("it cannot be read", hint)),
        }
    },
};

const TOKEN: Token = Token;

/// A bearer token. No message repeats it.
#[derive(Debug, Clone, Copy)]
struct Token;

impl Shape for Token {
    type Out = Secret;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Secret> {
        let Some(scalar) = at.scalar().filter(|scalar| !scalar.is_null()) else {
            cx.mismatch(at, "a token", Some("write token: \"${SLUICE_TOKEN}\"".to_owned()));
            return None;
        };
        let text = scalar.text();
        // RFC 6750 2.1 and RFC 9110 5.5: what a field's value can carry, without white space.
        let why = if text.is_empty() {
            "is empty"
        } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
            "has white space or a character that no header can carry"
        } else {
            return Some(Secret::new(text.to_string()));
        };
        let hint = "letters, digits and punctuation, as from `openssl rand -hex 32`";
        cx.report(at.error(format!("the token {why}")).hint(hint));
        None
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "string"})
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn decoded(text: &str) -> (Option<AdminSettings>, String) {
        let mut cx = Context::default();
        let variables = sluice_config_shape::Variables::none();
        let roots =
            sluice_config_shape::parse(Path::new("conf/a.yaml"), text, &variables, &mut cx.diagnostics);
        let draft = ADMIN.decode(&roots[0], &mut cx);
        let default = AdminAddress::Unix("default".into());
        (
            draft.map(|draft| draft.settings(default)),
            cx.diagnostics.to_string(),
        )
    }

    #[test]
    fn every_key_is_understood() {
        let (settings, said) =
            decoded("{address: 'unix:./run/a.sock', token: s3cret, hosts: [Sluice.Internal, localhost.]}");
        let settings = settings.unwrap();
        assert_eq!(said, "");
        // Relative to the file, whose own path is relative to where the test runs.
        let beside = std::path::absolute("conf/run/a.sock").unwrap();
        assert_eq!(settings.address, AdminAddress::Unix(beside));
        assert_eq!(settings.hosts, ["sluice.internal", "localhost"]);
        assert_eq!(settings.token, Some(Secret::new("s3cret")));
        let (settings, _) = decoded("{address: '[::1]:9900'}");
        assert_eq!(
            settings.unwrap(),
            AdminSettings::at(std::net::SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 9900)))
        );
    }

    #[test]
    fn mistakes_are_told_without_the_token() {
        for (text, want) in [
            ("{token: ''}", "the token is empty"),
            ("{token: 'hunter2 hunter2'}", "white space"),
            ("{token: \"hunter2\\u00e9\"}", "no header can carry"),
            ("{token: [hunter2]}", "a token"),
            ("{address: 'unix:'}", "the socket's path is missing"),
            ("{address: 'localhost:9900'}", "127.0.0.1:9900"),
            ("{hosts: ['sluice.internal:9900']}", "without scheme and port"),
            ("{hosts: ['http://a']}", "without scheme and port"),
        ] {
            let (_, said) = decoded(text);
            assert!(said.contains(want), "{text}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        let long = format!("{{address: 'unix:/{}'}}", "x".repeat(108));
        assert!(decoded(&long).1.contains("107 bytes"));
    }
}
