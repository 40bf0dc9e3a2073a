//! Commands that read a configuration without running it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use sluice_control::compile::{Compiled, FileReference, load_with};
use sluice_control::config::{Diagnostic, Diagnostics, schema as config_schema};
use sluice_control::release::{Histories, restore};
use sluice_control::source;
use sluice_control::state::{Documents, StateError};
use sluice_gateway::cli::{CheckArgs, ExplainArgs, OutputFormat, explain as cli_explain};
use sluice_gateway::edge::TlsTerminator;
use sluice_gateway::explain::{explain as explain_request, scaled};
use sluice_gateway::registry::check_page;
use sluice_gateway::upstream::check_tls;
use sluice_model::{RevisionSpec, Service, Settings};

use super::admin_state::autoscaling;

/// The environment as a configuration sees it.
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The histories of services in the state directory, where there is one.
pub(crate) fn restore_histories(settings: &Settings) -> Result<Histories, StateError> {
    let directory = settings.state_directory.as_ref();
    directory.map_or_else(
        || Ok(Histories::default()),
        |directory| restore(&Documents::of(directory)),
    )
}

/// Reads and compiles; a file that cannot be read is reported like any other mistake.
fn compiled(paths: &[PathBuf]) -> Result<Compiled, Diagnostics> {
    let files = source::read(paths).map_err(|errors| {
        let mut all = Diagnostics::default();
        for error in errors {
            // The diagnostic names the file already.
            let text = error.to_string();
            let named = format!("{}: ", error.path().display());
            let message = text.strip_prefix(&named).unwrap_or(&text);
            all.push(Diagnostic::about_file(error.path(), message));
        }
        all
    })?;
    // What cannot be read says nothing about files: it is told when the gateway starts.
    let compiled = load_with(&files, &env, |settings| {
        restore_histories(settings).unwrap_or_default()
    })?;
    let revisions = compiled.snapshot.revisions();
    let revisions = revisions.iter().map(AsRef::as_ref);
    let mut bad = bad_files(compiled.snapshot.settings(), revisions, &compiled.files);
    let services = compiled.snapshot.services();
    bad.append(bad_pages(services.iter().map(|service| &***service), || {
        compiled.files.clone()
    }));
    if bad.is_empty() { Ok(compiled) } else { Err(bad) }
}

/// Checks the certificate files that the configuration names: those of listeners, and those of TLS towards
/// backends.
pub(crate) fn bad_files<'s>(
    settings: &Settings,
    revisions: impl IntoIterator<Item = &'s RevisionSpec>,
    files: &[FileReference],
) -> Diagnostics {
    let mut bad = Diagnostics::default();
    let mut told = BTreeSet::new();
    for tls in settings.listeners.iter().filter_map(|l| l.tls.as_ref()) {
        let Err(errors) = TlsTerminator::new(tls) else {
            continue;
        };
        for error in errors {
            let reference = files.iter().find(|f| f.file == error.file());
            let diagnostic = match reference {
                Some(reference) => reference.error(error.to_string()),
                None => Diagnostic::about_file(error.file(), error.to_string()),
            };
            if told.insert(error.to_string()) {
                bad.push(diagnostic);
            }
        }
    }
    for spec in revisions {
        let Err(error) = check_tls(spec) else {
            continue;
        };
        let text = format!("revision {}: {error}", spec.id);
        let reference = files.iter().find(|f| Some(f.file.as_path()) == error.file());
        let diagnostic = match (reference, error.file()) {
            (Some(reference), _) => reference.error(text),
            (None, file) => Diagnostic::about_file(file.unwrap_or_else(|| Path::new("")), text),
        };
        bad.push(diagnostic);
    }
    bad
}

/// Checks the files of waiting pages. `files` has the positions of their names; called only where a service names a
/// file.
pub(crate) fn bad_pages<'s>(
    services: impl IntoIterator<Item = &'s Service>,
    files: impl FnOnce() -> Vec<FileReference>,
) -> Diagnostics {
    let pages = services.into_iter().flat_map(Service::pages);
    let named: BTreeSet<&Path> = pages.filter_map(|page| page.file.as_deref()).collect();
    let wrong = named
        .into_iter()
        .filter_map(|file| Some((file, check_page(file).err()?)));
    let wrong: Vec<_> = wrong.collect();
    let mut bad = Diagnostics::default();
    if wrong.is_empty() {
        return bad;
    }
    let files = files();
    for (file, error) in wrong {
        let text = format!("{}: {error}", file.display());
        bad.push(match files.iter().find(|named| named.file == file) {
            Some(reference) => reference.error(text),
            None => Diagnostic::about_file(file, error.to_string()),
        });
    }
    bad
}

/// `sluice check`
pub(crate) fn run(args: &CheckArgs) -> ExitCode {
    let (compiled, diagnostics) = match compiled(&args.config.paths()) {
        Ok(compiled) => (Some(compiled.summary()), compiled.warnings),
        Err(diagnostics) => (None, diagnostics),
    };
    let mut out = std::io::stdout().lock();
    // A closed pipe is not an error.
    let _ = match args.format {
        OutputFormat::Json => {
            let mut value = diagnostics.to_json();
            value["summary"] = json!(compiled);
            writeln!(out, "{value:#}")
        }
        OutputFormat::Text => {
            let mut text = if diagnostics.is_empty() {
                String::new()
            } else {
                format!("{diagnostics}\n")
            };
            match compiled {
                Some(summary) => text.push_str(&format!("ok: {summary}\n")),
                None => text.push_str(&format!("{} to fix\n", many(diagnostics.errors()))),
            }
            write!(out, "{text}")
        }
    };
    if compiled.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn many(mistakes: usize) -> String {
    format!("{mistakes} mistake{}", if mistakes == 1 { "" } else { "s" })
}

/// `sluice explain` on files.
pub(crate) fn explain(args: &ExplainArgs) -> ExitCode {
    let query = match args.query() {
        Ok(query) => query,
        Err(error) => {
            eprintln!("sluice: {error}");
            return ExitCode::from(2);
        }
    };
    match compiled(&args.paths()) {
        Ok(compiled) => {
            let mut found = explain_request(&compiled.snapshot, &[], &query);
            let plans = compiled.plan.revisions.iter();
            let plans = plans.map(|(id, plan)| (id.to_string(), autoscaling(&plan.policy)));
            scaled(&mut found, &plans.collect::<serde_json::Map<_, _>>().into());
            cli_explain::answer(&found, args.format)
        }
        Err(diagnostics) => {
            eprintln!("{diagnostics}");
            ExitCode::from(1)
        }
    }
}

/// `sluice schema`
pub(crate) fn schema() -> ExitCode {
    let _ = writeln!(std::io::stdout().lock(), "{:#}", config_schema());
    ExitCode::SUCCESS
}
