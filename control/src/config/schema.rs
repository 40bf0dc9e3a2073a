//! The JSON Schema of the format, for editors.

use serde_json::{Value, json};

use super::gateway::root;
use sluice_config_shape::{Definitions, describe};

/// The JSON Schema, draft 2020-12. Made by running the decoder on an empty mapping and listing the keys that it asks for, so
/// that schema and decoder have the same keys.
pub fn schema() -> Value {
    let mut definitions = Definitions::new();
    let doc = "Sluice's configuration. Several files are merged: lists add up, other keys are set once.";
    let mut schema = describe(doc, root, &mut definitions);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("sluice.yaml");
    schema["$defs"] = json!(definitions);
    schema
}
