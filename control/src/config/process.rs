//! Local processes: command lines and variables, which are expanded again for each instance.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use sluice_config_shape::{
    Context, Definitions, DurationRange, Flag, List, Located, Lookup, MAX_QUOTED_BYTES, NodeRef, Object,
    Record, Shape, Table, Variables, Verbatim, WithLocation, escape_deferred, flow_list, quoted,
};

use super::names::FILE;
use crate::plan::ProcessSpec;

/// Variables of a file. `$(PORT)`, `$(K_SERVICE)` and `$(K_REVISION)` are each instance's own, and expanded when it is
/// started.
pub(super) fn variables(lookup: Lookup<'_>) -> Variables<'_> {
    Variables {
        lookup,
        deferred: &["PORT", "K_SERVICE", "K_REVISION"],
        deferred_hint: |name| format!("in a process write $({name}) for the instance's own"),
    }
}

pub(super) const PROCESS: Record<ProcessSpec> = Record {
    name: "Process",
    doc: "A local process. $(PORT), $(K_SERVICE) and $(K_REVISION) expand in command and env.",
    decode: |o| {
        let words = o.required(
            "command",
            "Program and arguments. Looked up on PATH; 'sluice' is the running executable; with a slash it is relative to this file.",
            COMMAND,
        );
        let spec = ProcessSpec {
            command: Vec::new(),
            env: o
                .optional("env", "Variables of the process.", VARIABLES)
                .unwrap_or_default(),
            working_directory: working_directory(o),
            inherit_env: o.or(
                "inheritEnv",
                "Whether the gateway's own variables are passed on.",
                Flag,
                true,
            ),
            stop_grace_period: o.or(
                "stopGracePeriod",
                "Between SIGTERM and SIGKILL.",
                DurationRange::ANY,
                STOP_GRACE_PERIOD,
            ),
        };
        let command = command(words?, o)?;
        Some(ProcessSpec { command, ..spec })
    },
};

const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// The process of an entrypoint, with the defaults of every other key.
pub(super) fn of_command(command: Vec<String>, working_directory: PathBuf) -> ProcessSpec {
    ProcessSpec {
        command,
        env: BTreeMap::new(),
        working_directory,
        inherit_env: true,
        stop_grace_period: STOP_GRACE_PERIOD,
    }
}

/// The key `workingDirectory`.
pub(super) fn working_directory(o: &mut Object<'_>) -> PathBuf {
    let directory = o.optional(
        "workingDirectory",
        "Relative to this file, whose directory is the default.",
        FILE,
    );
    directory.unwrap_or_else(|| o.at.directory())
}

pub(super) const COMMAND: WithLocation<CommandLine> = WithLocation(CommandLine);

/// Checks a command line and finds its program.
pub(super) fn command(mut words: Located<Vec<String>>, o: &mut Object<'_>) -> Option<Vec<String>> {
    match words.value.first_mut() {
        Some(first) if !first.is_empty() => *first = program(first, &words.node),
        _ => {
            let diagnostic = words.node.whole().error("the command is empty");
            o.cx.report(diagnostic.hint("command: [program, argument, …]"));
            return None;
        }
    }
    if words.value.iter().any(|word| word.contains('\0')) {
        o.cx.report(words.node.error("a command cannot hold a NUL"));
    }
    Some(words.value)
}

/// Program and arguments.
pub(super) struct CommandLine;

impl Shape for CommandLine {
    type Out = Vec<String>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
        match at.scalar().filter(|scalar| !scalar.is_null()) {
            Some(scalar) => {
                let written = Some(scalar.written()).filter(|text| text.len() <= MAX_QUOTED_BYTES);
                cx.mismatch(at, "a list", written.map(as_command));
                None
            }
            None => List(Template).decode(at, cx),
        }
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        List(Template).schema(definitions)
    }
}

/// A text that is expanded again for each instance.
pub(super) struct Template;

impl Shape for Template {
    type Out = String;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<String> {
        let text = Verbatim.decode(at, cx)?;
        let Some(deferred) = at.scalar().and_then(|scalar| scalar.deferred()) else {
            return Some(text);
        };
        if let Some(name) = deferred.shadowed {
            let message = format!("'${{{name}}}' is the gateway's own variable, taken when the file is read");
            let hint = format!("write $({name}) for the instance's own");
            cx.report(at.error(message).hint(hint).warning());
        }
        Some(deferred.text.clone())
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        Verbatim.schema(definitions)
    }
}

pub(super) const VARIABLES: Table<Template> = Table {
    check: |name| {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("{} cannot be a variable's name", quoted(name)));
        }
        Ok(name.to_owned())
    },
    values: Template,
};

/// The program of a command; a relative path is resolved against the file's directory, a bare word is not. The directory is
/// escaped, because the program is expanded for each instance.
fn program(word: &str, at: &NodeRef) -> String {
    if word.contains('/') && Path::new(word).is_relative() {
        let directory = escape_deferred(&at.directory().to_string_lossy());
        let joined = Path::new(&directory).join(word);
        let parts = joined.components().filter(|c| *c != Component::CurDir);
        parts.collect::<PathBuf>().to_string_lossy().into_owned()
    } else {
        word.to_owned()
    }
}

/// The hint for a command that was written as one text.
fn as_command(text: &str) -> String {
    let shell = flow_list(["sh", "-c", text]);
    let program = text.split_whitespace().next().unwrap_or_default();
    // Characters that only a shell understands; `$(PORT)` is the gateway's.
    let meant = text.replace("$(PORT)", "").replace("$(K_", "");
    if program.contains('=') || meant.contains(['\'', '"', '`', '\\', '$', '|', '&', ';', '<', '>', '*', '?'])
    {
        return format!("no shell reads it: write {shell}");
    }
    let words = flow_list(text.split_whitespace());
    format!("write {words}, or {shell} for a shell")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_taken_apart_unless_a_shell_is_meant() {
        assert_eq!(
            as_command("npm start"),
            "write [npm, start], or [sh, -c, 'npm start'] for a shell"
        );
        assert_eq!(
            as_command("app --port $(PORT)"),
            "write [app, --port, '$(PORT)'], or [sh, -c, 'app --port $(PORT)'] for a shell"
        );
        for text in ["A=b npm start", "cd x && ./run", "echo 'x'", "app $PORT"] {
            let hint = as_command(text);
            assert!(hint.starts_with("no shell reads it: write [sh, -c, "), "{hint}");
        }
    }
}
