//! `${VAR}` and `${VAR:-default}` in scalars.

use std::cell::Cell;

/// Defaults within defaults; more is a mistake or an attack.
const MAX_NESTING: usize = 8;
/// What one scalar may become. Each reference may bring a long value.
const MAX_EXPANDED: usize = 1 << 20;

/// Expands every variable in `text`; `$${` is a literal `${`, and any other `$` stands for itself, so that `$(PORT)`
/// and its escape `$$(PORT)` reach the instance. A default is taken where the variable is unset or empty.
///
/// # Errors
/// What is wrong and a hint.
pub(super) fn expand(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, (String, Option<String>)> {
    let mut out = String::with_capacity(text.len());
    expand_into(text, env, 0, &mut out)?;
    Ok(out)
}

/// What the second expansion, `$(NAME)` for each instance, makes this very text of.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// A text with variables, on its way to a second expansion.
#[derive(Debug)]
pub(super) struct Again {
    /// Expanded once. What came from variables is escaped: nobody looks for `$(NAME)` in a password.
    pub(super) text: String,
    /// A variable of the gateway's in it that an instance has one of its own of.
    pub(super) own: Option<&'static str>,
}

impl Again {
    /// Of a text that [`expand`] takes.
    pub(super) fn of(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let own = Cell::new(None);
        let escaped = |name: &str| {
            let found = OF_INSTANCE.into_iter().find(|known| *known == name);
            own.set(own.get().or(found));
            env(name).map(|value| literal(&value))
        };
        // Escaped it may be too long.
        let once = expand(text, &escaped).or_else(|_| expand(text, env));
        Self {
            text: once.unwrap_or_default(),
            own: own.get(),
        }
    }
}

/// The variables that an instance has a value of its own for.
const OF_INSTANCE: [&str; 3] = ["PORT", "K_SERVICE", "K_REVISION"];

const FORMS: &str = "write ${NAME} or ${NAME:-default}, and $${ for a literal ${";

fn expand_into(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    nesting: usize,
    out: &mut String,
) -> Result<(), (String, Option<String>)> {
    if nesting > MAX_NESTING {
        return Err(("variables are nested too deeply".to_owned(), None));
    }
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix("${") {
            out.push_str("${");
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let unclosed = || ("'${' is not closed".to_owned(), Some(FORMS.to_owned()));
            let end = closing_brace(after).ok_or_else(unclosed)?;
            expand_one(&after[..end], env, nesting, out)?;
            rest = &after[end + 1..];
        } else {
            out.push('$');
            rest = after;
        }
        if out.len() > MAX_EXPANDED {
            return Err(("it is longer than 1 MiB once expanded".to_owned(), None));
        }
    }
    out.push_str(rest);
    Ok(())
}

fn expand_one(
    reference: &str,
    env: &dyn Fn(&str) -> Option<String>,
    nesting: usize,
    out: &mut String,
) -> Result<(), (String, Option<String>)> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(word) {
        let message = format!("{} is no variable", super::tree::quoted(&format!("${{{name}}}")));
        return Err((message, Some(FORMS.to_owned())));
    }
    match (env(name), default) {
        (Some(value), _) if !value.is_empty() => out.push_str(&value),
        (_, Some(default)) => expand_into(default, env, nesting + 1, out)?,
        (Some(_), None) => {}
        (None, None) => {
            let mut hint = format!("set it, or give a default: ${{{name}:-value}}");
            if OF_INSTANCE.contains(&name) {
                hint = format!("in a process write $({name}) for the instance's own; else {hint}");
            }
            return Err((format!("the variable {name} is not set"), Some(hint)));
        }
    }
    Ok(())
}

/// Where the brace opened before `text` closes, nested ones skipped.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'$' if bytes.get(i + 1) == Some(&b'{') => {
                open += 1;
                i += 1;
            }
            b'}' if open == 0 => return Some(i),
            b'}' => open -= 1,
            _ => {}
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String, String> {
        let env = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(text, &env).map_err(|(message, _)| message)
    }

    #[test]
    fn variables_defaults_and_dollars() {
        for (text, want) in [
            ("a${A}b", "a1b"),
            ("${A:-x}${B:-y}", "1y"),
            ("${EMPTY}|${EMPTY:-z}", "|z"),
            ("${B:-}", ""),
            ("${B:-${A}}", "1"),
            ("${B:-${C:-deep}}!", "deep!"),
            ("$$", "$$"),
            ("pa$$word", "pa$$word"),
            ("$$${A}", "$${A}"),
            ("${B:-$${A}}", "${A}"),
            ("$${", "${"),
            ("$${A}", "${A}"),
            ("$(PORT) $x $", "$(PORT) $x $"),
            ("$$(PORT)", "$$(PORT)"),
            ("${B:-a:-b}", "a:-b"),
        ] {
            assert_eq!(run(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn values_are_not_looked_into_by_the_second_expansion() {
        let env = |name: &str| match name {
            "SECRET" => Some("a$$b$(PORT)".to_owned()),
            "PORT" => Some("1".to_owned()),
            _ => None,
        };
        let again = |text| Again::of(text, &env);
        assert_eq!(again("$(PORT) ${SECRET}").text, "$(PORT) a$$$$b$$(PORT)");
        assert_eq!(again("$$(PORT) ${X:-$(PORT)}").text, "$$(PORT) $(PORT)");
        assert_eq!(again("$${PORT} ${SECRET}").own, None);
        assert_eq!(again("${SECRET} ${PORT:-8080}").own, Some("PORT"));
        assert_eq!(again("${X:-${K_SERVICE:-a}}").own, Some("K_SERVICE"));
    }

    #[test]
    fn mistakes() {
        for (text, want) in [
            ("${B}", "the variable B is not set"),
            ("${A", "'${' is not closed"),
            ("${}", "'${}' is no variable"),
            ("${a-b}", "'${a-b}' is no variable"),
            ("${1A}", "'${1A}' is no variable"),
        ] {
            assert_eq!(run(text), Err(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn nothing_grows_or_nests_without_bound() {
        let deep = "${X:-".repeat(50_000) + &"}".repeat(50_000);
        assert_eq!(run(&deep), Err("variables are nested too deeply".to_owned()));
        let long = "a".repeat(4096);
        let env = |_: &str| Some(long.clone());
        let err = expand(&"${A}".repeat(1000), &env).unwrap_err();
        assert!(err.0.contains("1 MiB"), "{err:?}");
    }
}
