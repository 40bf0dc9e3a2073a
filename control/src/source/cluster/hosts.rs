//! The forms of a host inside the cluster: Pods may leave out the cluster's domain, and `svc` before it.
//!
//! Source: `ExpandedHosts` of knative.dev/networking, `pkg/ingress/ingress.go`.

/// The host itself and its shorter forms, longest first. A form whose last label is a number, or is longer than a label
/// may be, would be taken for an address, or for nothing, by clients: it is left out.
pub(super) fn forms<'h>(host: &'h str, cluster_domain: &str) -> impl Iterator<Item = &'h str> {
    let host = host.trim_end_matches('.');
    let without_domain = host
        .strip_suffix(cluster_domain)
        .and_then(|rest| rest.strip_suffix('.'));
    let without_svc = without_domain.and_then(|rest| rest.strip_suffix(".svc"));
    let all = [Some(host), without_domain, without_svc];
    all.into_iter().flatten().filter(|form| is_valid(form))
}

fn is_valid(form: &str) -> bool {
    let last = form.rsplit('.').next().unwrap_or_default();
    last.len() <= 63 && last.bytes().any(|b| b == b'-' || b > b'9')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Knative's `ingress_test.go`.
    #[test]
    fn forms_are_those_of_knative() {
        let forms = |host: &str| {
            forms(host, "cluster.local")
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            forms("service.name-space.svc.cluster.local"),
            [
                "service.name-space.svc.cluster.local",
                "service.name-space.svc",
                "service.name-space"
            ]
        );
        assert_eq!(
            forms("service.1234.svc.cluster.local"),
            ["service.1234.svc.cluster.local", "service.1234.svc"]
        );
        assert_eq!(forms("service.1-1.svc.cluster.local").len(), 3);
        let long = "a".repeat(64);
        assert_eq!(
            forms(&format!("service.{long}.svc.cluster.local")),
            [
                format!("service.{long}.svc.cluster.local"),
                format!("service.{long}.svc")
            ]
        );
        assert_eq!(forms("foo.bar.example.com"), ["foo.bar.example.com"]);
    }
}
