//! Expansion of variables, `${VAR}` and `${VAR:-default}`, in scalars; values are data and never become YAML structure.

use std::cell::Cell;
use std::fmt;

use crate::tree::quoted;

/// The bound of defaults within defaults, in levels.
const MAX_NESTING: usize = 8;
/// The bound of one expanded scalar, in bytes: each reference may insert a long value.
const MAX_EXPANDED: usize = 1 << 20;

/// Returns the value of a variable, or `None` when the variable is not set.
pub type Lookup<'e> = &'e dyn Fn(&str) -> Option<String>;

/// The variables of a file.
///
/// Some formats expand a text a second time, later and per use: `$(NAME)`. Names that the second expansion defines are
/// listed here, so that a mix-up of `${NAME}` and `$(NAME)` can be reported.
#[derive(Clone, Copy)]
pub struct Variables<'e> {
    /// Returns the value of a variable.
    pub lookup: Lookup<'e>,
    /// The names that the second expansion defines.
    pub deferred: &'static [&'static str],
    /// The hint for a name of `deferred` that is not set in the first expansion.
    pub deferred_hint: fn(&str) -> String,
}

impl<'e> Variables<'e> {
    /// Variables without a second expansion.
    pub fn new(lookup: Lookup<'e>) -> Self {
        Self {
            lookup,
            deferred: &[],
            deferred_hint: |_| String::new(),
        }
    }

    /// No variable is set.
    pub fn none() -> Self {
        Self::new(&|_| None)
    }

    fn with_lookup<'l>(&self, lookup: Lookup<'l>) -> Variables<'l> {
        Variables {
            lookup,
            deferred: self.deferred,
            deferred_hint: self.deferred_hint,
        }
    }
}

// By hand: a function has no text.
impl fmt::Debug for Variables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variables")
            .field("deferred", &self.deferred)
            .finish_non_exhaustive()
    }
}

/// An error message and a hint.
type ExpandError = (String, Option<String>);

/// Expands every variable in `text`. `$${` is a literal `${`, and any other `$` stands for itself, so that `$(NAME)` and its
/// escape `$$(NAME)` are left to the second expansion. A default is taken where the variable is unset or empty.
///
/// # Errors
/// A malformed or unset variable, or a result beyond a bound.
pub(crate) fn expand(text: &str, variables: &Variables<'_>) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    expand_into(text, variables, 0, &mut out)?;
    Ok(out)
}

/// Escapes a text for the second expansion, which then leaves it as it is.
pub fn escape_deferred(text: &str) -> String {
    text.replace('$', "$$")
}

/// A text after the first expansion, prepared for the second one.
#[derive(Debug)]
pub struct DeferredText {
    /// The text with `${NAME}` expanded. Values of variables are escaped: a password that holds `$(NAME)` stays as it is.
    pub text: String,
    /// The first name in the text that the second expansion defines, too: probably `$(NAME)` was meant.
    pub shadowed: Option<&'static str>,
}

impl DeferredText {
    /// Prepares a text that [`expand`] accepts.
    pub(crate) fn of(text: &str, variables: &Variables<'_>) -> Self {
        let shadowed = Cell::new(None);
        let escaped = |name: &str| {
            let found = variables.deferred.iter().copied().find(|known| *known == name);
            shadowed.set(shadowed.get().or(found));
            (variables.lookup)(name).map(|value| escape_deferred(&value))
        };
        // Escapes may take the text beyond the bound.
        let once = expand(text, &variables.with_lookup(&escaped)).or_else(|_| expand(text, variables));
        Self {
            text: once.unwrap_or_default(),
            shadowed: shadowed.get(),
        }
    }
}

const FORMS: &str = "write ${NAME} or ${NAME:-default}, and $${ for a literal ${";

fn expand_into(
    text: &str,
    variables: &Variables<'_>,
    nesting: usize,
    out: &mut String,
) -> Result<(), ExpandError> {
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
            expand_one(&after[..end], variables, nesting, out)?;
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
    variables: &Variables<'_>,
    nesting: usize,
    out: &mut String,
) -> Result<(), ExpandError> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(word) {
        let message = format!("{} is no variable", quoted(&format!("${{{name}}}")));
        return Err((message, Some(FORMS.to_owned())));
    }
    match ((variables.lookup)(name), default) {
        (Some(value), _) if !value.is_empty() => out.push_str(&value),
        (_, Some(default)) => expand_into(default, variables, nesting + 1, out)?,
        (Some(_), None) => {}
        (None, None) => {
            let mut hint = format!("set it, or give a default: ${{{name}:-value}}");
            if variables.deferred.contains(&name) {
                hint = format!("{}; else {hint}", (variables.deferred_hint)(name));
            }
            return Err((format!("the variable {name} is not set"), Some(hint)));
        }
    }
    Ok(())
}

/// The index of the brace that closes the one before `text`; nested pairs are skipped.
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
        expand(text, &Variables::new(&env)).map_err(|(message, _)| message)
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
        let variables = Variables {
            deferred: &["PORT", "K_SERVICE"],
            ..Variables::new(&env)
        };
        let deferred = |text| DeferredText::of(text, &variables);
        assert_eq!(deferred("$(PORT) ${SECRET}").text, "$(PORT) a$$$$b$$(PORT)");
        assert_eq!(deferred("$$(PORT) ${X:-$(PORT)}").text, "$$(PORT) $(PORT)");
        assert_eq!(deferred("$${PORT} ${SECRET}").shadowed, None);
        assert_eq!(deferred("${SECRET} ${PORT:-8080}").shadowed, Some("PORT"));
        assert_eq!(deferred("${X:-${K_SERVICE:-a}}").shadowed, Some("K_SERVICE"));
    }

    #[test]
    fn an_unset_deferred_name_has_a_hint() {
        let variables = Variables {
            deferred: &["PORT"],
            deferred_hint: |name| format!("write $({name})"),
            ..Variables::none()
        };
        let (_, hint) = expand("${PORT}", &variables).unwrap_err();
        assert!(hint.unwrap().starts_with("write $(PORT); else set it"));
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
        let err = expand(&"${A}".repeat(1000), &Variables::new(&env)).unwrap_err();
        assert!(err.0.contains("1 MiB"), "{err:?}");
    }
}
