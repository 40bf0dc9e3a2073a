//! Expansion of `$(NAME)` in command and env, by the rules of Kubernetes.

/// Replaces `$(NAME)` by its value and leaves unknown names as they are. `$$` is an escaped dollar, so `$$(NAME)` becomes
/// `$(NAME)`.
pub(super) fn expand<'v>(text: &str, value: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match name.and_then(|(name, tail)| Some((value(name)?, tail))) {
            Some((value, tail)) => {
                out.push_str(value);
                rest = tail;
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_kubernetes_does() {
        let value = |name: &str| (name == "PORT").then_some("8080");
        for (text, expected) in [
            ("--port=$(PORT)", "--port=8080"),
            ("$(PORT)$(PORT)", "80808080"),
            ("$$(PORT)", "$(PORT)"),
            ("$$$(PORT)", "$8080"),
            ("$(OTHER) $(PORT)", "$(OTHER) 8080"),
            ("$(PORT", "$(PORT"),
            ("$(A$(PORT)", "$(A8080"),
            ("$PORT ${PORT} $", "$PORT ${PORT} $"),
            ("ü$(PORT)ü", "ü8080ü"),
            ("", ""),
        ] {
            assert_eq!(expand(text, value), expected, "{text}");
        }
    }
}
