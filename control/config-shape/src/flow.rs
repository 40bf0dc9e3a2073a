//! Writes YAML flow lists, for hints that can be pasted into a file.

/// The longest text that a hint repeats, in bytes.
pub const MAX_QUOTED_BYTES: usize = 500;

/// A word as an element of a YAML flow list: bare where YAML reads it back as the same text, else quoted.
pub(crate) fn element(word: &str) -> String {
    let inner = |c: char| c.is_alphanumeric() || "_./+-@%=:~^$".contains(c);
    let first = |c: char| c.is_alphanumeric() || "_./+-".contains(c);
    let bare = word.starts_with(first)
        && word.chars().all(inner)
        && !word.ends_with(':')
        && word != "-"
        && !word.starts_with("---")
        && !matches!(
            &*word.to_ascii_lowercase(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off"
        );
    if bare {
        word.to_owned()
    } else if word.chars().any(char::is_control) {
        serde_json::Value::from(word).to_string()
    } else {
        format!("'{}'", word.replace('\'', "''"))
    }
}

/// A YAML flow list: `[a, 'b c']`.
pub fn flow_list<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let words: Vec<_> = words.into_iter().map(element).collect();
    format!("[{}]", words.join(", "))
}

/// The elements of a list that was written as one scalar, separated by commas or blanks.
pub(crate) fn words(text: &str) -> Vec<&str> {
    let apart = |c: char| c == ',' || c.is_whitespace();
    text.split(apart).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_bare_where_yaml_reads_them_as_they_are() {
        for (word, want) in [
            ("npm", "npm"),
            ("--port=$(PORT)", "'--port=$(PORT)'"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("*.example.com", "'*.example.com'"),
            ("[::1]:80", "'[::1]:80'"),
            ("it's", "'it''s'"),
            ("true", "'true'"),
            ("a:", "'a:'"),
            ("-", "'-'"),
            ("", "''"),
            ("a\tb", "\"a\\tb\""),
            ("müller.example", "müller.example"),
        ] {
            assert_eq!(element(word), want);
        }
    }
}
