//! The admin token of a command: from a file, or from the environment.

use std::path::Path;

use sluice_model::Secret;

/// The variable with the token.
const VARIABLE: &str = "SLUICE_TOKEN";

/// The token of `--token-file`, else of the variable; `None` where there is neither. White space around is not part of
/// it.
///
/// # Errors
/// The file cannot be read or has no token, or the token is none; the message does not repeat it.
pub(super) fn token(file: Option<&Path>) -> Result<Option<Secret>, String> {
    let variable = std::env::var(VARIABLE).ok();
    resolve(file, variable.as_deref())
}

fn resolve(file: Option<&Path>, variable: Option<&str>) -> Result<Option<Secret>, String> {
    let (text, from) = match (file, variable) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
            (text, file.display().to_string())
        }
        (None, Some(text)) if !text.trim().is_empty() => (text.to_owned(), format!("${VARIABLE}")),
        (None, _) => return Ok(None),
    };
    match text.trim() {
        "" => Err(format!("{from}: there is no token in it")),
        token if token.bytes().all(|b| b.is_ascii_graphic()) => Ok(Some(Secret::new(token))),
        _ => Err(format!(
            "{from}: a token has no white space, and ASCII characters alone"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_before_the_variable() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "s3cret\n").unwrap();
        let token =
            |file: Option<&Path>, variable| resolve(file, variable).map(|t| t.map(|t| t.reveal().to_owned()));
        assert_eq!(token(Some(&file), Some("other")), Ok(Some("s3cret".to_owned())));
        assert_eq!(token(None, Some("other")), Ok(Some("other".to_owned())));
        assert_eq!(token(None, Some("")), Ok(None));
        assert_eq!(token(None, None), Ok(None));
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for wrong in ["", "\n", "hunter2 hunter2", "hunter2\u{e9}"] {
            std::fs::write(&file, wrong).unwrap();
            let error = resolve(Some(&file), None).unwrap_err();
            assert!(error.contains("token") && !error.contains("hunter2"), "{error}");
        }
        let error = resolve(Some(&folder.path().join("none")), None).unwrap_err();
        assert!(error.contains("none"), "{error}");
    }
}
