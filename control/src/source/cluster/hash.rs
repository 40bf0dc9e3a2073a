//! The version of an Ingress, by which Knative's probes find out what a gateway serves.
//!
//! Source: `pkg/ingress/ingress.go` of knative.dev/networking. The SHA-256 of the specification as Go's
//! `encoding/json` writes it, followed by namespace and name.

use std::fmt::Write as _;

use ring::digest::{Context, SHA256};

use super::objects::IngressSpec;

/// The version in lower-case hexadecimal digits.
pub(super) fn network_hash(spec: &IngressSpec, namespace: &str, name: &str) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(go_json(spec).as_bytes());
    hash.update(namespace.as_bytes());
    hash.update(name.as_bytes());
    let mut digits = String::with_capacity(64);
    for byte in hash.finish().as_ref() {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

/// The specification as Go writes it: characters that are special to HTML, and to JavaScript, are escaped.
fn go_json(spec: &IngressSpec) -> String {
    // Plain data has nothing that cannot be serialised.
    let json = serde_json::to_string(spec).unwrap_or_default();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Outside of strings JSON has none of these.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> IngressSpec {
        serde_json::from_str(json).expect("a spec")
    }

    /// The vectors of Knative's `ingress_test.go`, and one that has every field.
    #[test]
    fn hashes_are_those_of_knative() {
        let plain = r#"{"rules":[{"hosts":["example.com"],"http":{"paths":[{"splits":[{"serviceNamespace":"","serviceName":"blah","servicePort":0}]}]}}]}"#;
        assert_eq!(go_json(&spec(plain)), plain);
        assert_eq!(
            network_hash(&spec(plain), "", ""),
            "a25000a350642c8abef53078b329bd043e18758f6063c1172d53b04e14fcf5c1"
        );
        let headers = r#"{"rules":[{"hosts":["example.com"],"http":{"paths":[{"splits":[{"serviceNamespace":"","serviceName":"blah","servicePort":0,"appendHeaders":{"Foo":"bar"}}]}]}}]}"#;
        assert_eq!(
            network_hash(&spec(headers), "", ""),
            "6b652c7abed871354affd4a9cb699d33816f24541fac942149b91ad872fe63ca"
        );
        let all = r#"{"tls":[{"hosts":["a.example.com"],"secretName":"s","secretNamespace":"ns"}],
            "rules":[{"hosts":["a.example.com"],"visibility":"ExternalIP","http":{"paths":[{"path":"/x",
            "rewriteHost":"b.ns.svc.cluster.local","headers":{"Knative-Serving-Tag":{"exact":"t"}},
            "splits":[{"serviceNamespace":"ns","serviceName":"b","servicePort":80,"percent":100,
            "appendHeaders":{"B":"<2>","A":"1"}}],"appendHeaders":{"Z":"z"}}]}}],"httpOption":"Redirected"}"#;
        assert_eq!(
            network_hash(&spec(all), "ns", "ing"),
            "0ceecf5c2ae903d3c122b7d4ef3ce3fe0ca1bc754af8708c1fd53c438c4b2be4"
        );
    }

    #[test]
    fn empty_fields_are_left_out_and_lists_that_are_not_there_are_null() {
        assert_eq!(go_json(&IngressSpec::default()), "{}");
        assert_eq!(
            go_json(&spec(r#"{"rules":[{"http":{}}]}"#)),
            r#"{"rules":[{"http":{"paths":null}}]}"#
        );
        let named = r#"{"rules":[{"http":{"paths":[{"splits":[{"serviceNamespace":"a","serviceName":"b","servicePort":"http2"}]}]}}]}"#;
        assert_eq!(go_json(&spec(named)), named);
    }
}
