//! Who may know whom: what the compiler cannot forbid because a binary shares its library's
//! dependencies.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out
}

fn naming(dir: &str, words: &[&str], except: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir);
    let files = sources(&root);
    assert!(!files.is_empty(), "{dir} has no sources");
    let mut found = Vec::new();
    for file in files {
        if except.iter().any(|e| file.to_string_lossy().contains(e)) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a readable source");
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        for (n, line) in code.enumerate() {
            if words.iter().any(|w| line.contains(w)) {
                found.push(format!("{}:{}: {}", file.display(), n + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn only_the_composition_root_knows_the_control_plane() {
    let found = naming(
        "gateway/src",
        &["sluice_control"],
        &["gateway/src/main.rs", "gateway/src/root/"],
    );
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_control_plane_does_not_know_the_data_plane() {
    let found = naming("control/src", &["sluice_gateway", "pingora"], &[]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_model_does_no_io_and_knows_no_clock_async_or_serde() {
    let words = [
        "tokio",
        "serde",
        "tracing",
        "std::fs",
        "std::io",
        "Instant",
        "SystemTime",
        "async fn",
        "rand::",
    ];
    let found = naming("model/src", &words, &[]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_decision_part_names_no_type_of_pingoras() {
    for dir in ["gateway/src/request", "gateway/src/throttle"] {
        let found = naming(dir, &["pingora_"], &[]);
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// Runtime, I/O, clocks and randomness: what a codec is given from outside.
const NOT_PURE: [&str; 12] = [
    "tokio",
    "futures",
    "pingora",
    "hyper",
    "std::fs",
    "std::io",
    "std::net",
    "std::thread",
    "SystemTime",
    "Instant::now",
    "async fn",
    "rand::",
];

/// `super::super::` leads a level above too; a test's module needs it for its own codec.
const OTHER_MODULES: [&str; 8] = [
    "sluice_control",
    "observe::",
    "edge::",
    "request::",
    "throttle::",
    "upstream::",
    "downstream::",
    "registry::",
];

#[test]
fn the_http1_codec_is_sans_io_and_names_no_other_module() {
    let words = [&NOT_PURE[..], &OTHER_MODULES, &["crate::", "bytes::", "Instant"]].concat();
    let found = naming("gateway/src/http1", &words, &[]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_http2_frame_guard_is_sans_io_and_names_no_other_layer() {
    let words = [&NOT_PURE[..], &OTHER_MODULES, &["crate::http1", "h2::"]].concat();
    let found = naming("gateway/src/h2", &words, &["_tests.rs"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_engine_knows_protocols_by_its_two_sides_alone() {
    let words = ["crate::http1", "crate::h2", "crate::framing", "h2::", "hyper"];
    let found = naming("gateway/src/exchange", &words, &["exchange/sides.rs"]);
    assert!(found.is_empty(), "{found:#?}");
}
