use super::*;
use std::time::Duration;

pub(super) fn env(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("secret-token".to_owned()),
        "FC_KEY" => Some("secret-key".to_owned()),
        "FIFTY" => Some("50".to_owned()),
        "YES" => Some("true".to_owned()),
        _ => None,
    }
}

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile {
        path: path.into(),
        text: text.to_owned(),
    }
}

fn load_one(text: &str) -> Result<Compiled, Diagnostics> {
    load(&[file("/etc/sluice/sluice.yaml", text)], &env)
}

#[test]
fn twelve_mistakes_of_six_kinds() {
    let text = include_str!("../config/testdata/mistakes.yaml");
    let diagnostics = load_one(text).expect_err("mistakes");
    println!("{diagnostics}");
}

#[test]
fn the_example_of_the_user_contract_loads() {
    let text = include_str!("../config/testdata/example.yaml");
    let compiled = load_one(text).unwrap_or_else(|e| panic!("{e}"));
    println!(
        "{}\n{}\n{:#?}",
        compiled.summary(),
        compiled.warnings,
        compiled.snapshot
    );
}
