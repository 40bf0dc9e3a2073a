//! Fuzzes the configuration: any text compiles, or fails with diagnostics that have a position in the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_control::compile::load;
use sluice_control::config::{Diagnostics, SourceFile};

fn env(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("secret".to_owned()),
        "FIFTY" => Some("50".to_owned()),
        // The values of variables are data: a value that looks like YAML or like another variable must stay text.
        "ODD" => Some("${TOKEN}: [{\n- &a *a".to_owned()),
        _ => None,
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let files = [SourceFile {
        path: "/etc/sluice/sluice.yaml".into(),
        text: text.to_owned(),
    }];
    match (load(&files, &env), load(&files, &env)) {
        (Ok(first), Ok(second)) => {
            assert!(
                first.is_same_as(&second.snapshot, &second.plan),
                "not a function of its input"
            );
            assert_eq!(first.warnings.errors(), 0);
            told(&first.warnings, text);
        }
        (Err(first), Err(second)) => {
            assert!(first.errors() > 0, "refused without a reason");
            assert_eq!(first.to_string(), second.to_string());
            told(&first, text);
        }
        (first, _) => panic!("once {first:?}, once not"),
    }
});

fn told(diagnostics: &Diagnostics, text: &str) {
    // YAML 1.2 ends lines with CR, LF or both; the end of the file may be reported one line further.
    let lines = text.split(['\n', '\r']).count() + 1;
    for item in diagnostics.items() {
        assert!(!item.message.is_empty());
        assert!(item.location.line as usize <= lines, "{item}");
    }
    drop(diagnostics.to_json());
}
