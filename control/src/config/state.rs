//! The key `state`: where the gateway keeps what outlives the process.

use std::path::PathBuf;

use serde_json::{Value, json};
use sluice_config_shape::{Context, Definitions, DurationRange, Integer, NodeRef, Parsed, Record, Shape};
use sluice_model::Retention;

use super::names::resolve;
use super::to_usize;

/// The key, as far as it could be decoded.
#[derive(Debug, Clone)]
pub(super) struct StateDraft {
    /// `None` after a mistake.
    pub(super) directory: Option<PathBuf>,
    pub(super) retention: Retention,
}

pub(super) const STATE: Record<StateDraft> = Record {
    name: "State",
    doc: "What outlives the process: revisions of manifests, rollouts and overrides, and what forecasts learned. Revisions that no share and no tag leads to are kept under the rules of Knative's config-gc.",
    decode: |o| {
        let directory = o.required(
            "directory",
            "A directory of this gateway alone, made if need be. Absent state: nothing is kept.",
            DIRECTORY,
        );
        let d = Retention::default();
        let retention = Retention {
            since_create: o.or(
                "retainSinceCreateTime",
                "How long a revision is kept at least after it was made; disabled: does not count.",
                OrDisabled(DurationRange::ANY),
                d.since_create,
            ),
            since_last_active: o.or(
                "retainSinceLastActiveTime",
                "How long a revision is kept at least after a share or a tag led to it; disabled: does not count.",
                OrDisabled(DurationRange::ANY),
                d.since_last_active,
            ),
            min_non_active: to_usize(o.or(
                "minNonActiveRevisions",
                "As many are kept of a service, whatever their age.",
                COUNT,
                20,
            )),
            max_non_active: o
                .or(
                    "maxNonActiveRevisions",
                    "No more are kept of a service, whatever their age; disabled: as many as there are.",
                    OrDisabled(COUNT),
                    Some(1000),
                )
                .map(to_usize),
        };
        if let Some(max) = retention
            .max_non_active
            .filter(|max| *max < retention.min_non_active)
        {
            let message = format!(
                "minNonActiveRevisions {} is above maxNonActiveRevisions {max}",
                retention.min_non_active
            );
            let key = o
                .key("minNonActiveRevisions")
                .or_else(|| o.key("maxNonActiveRevisions"));
            let at = key.unwrap_or_else(|| o.at.clone());
            o.cx.report(at.error(message).hint("raise the maximum or lower the minimum"));
        }
        Some(StateDraft { directory, retention })
    },
};

const COUNT: Integer = Integer { min: 0, max: 100_000 };

const DIRECTORY: Parsed<PathBuf> = Parsed {
    what: "a directory",
    parse: |text, at| Ok(resolve(text, at)),
};

/// A value, or the word `disabled`, as in Knative's `config-gc`.
struct OrDisabled<S>(S);

const DISABLED: &str = "disabled";

impl<S: Shape> Shape for OrDisabled<S> {
    type Out = Option<S::Out>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
        match at.scalar().is_some_and(|scalar| scalar.text() == DISABLED) {
            true => Some(None),
            false => self.0.decode(at, cx).map(Some),
        }
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        json!({"anyOf": [self.0.schema(definitions), {"const": DISABLED}]})
    }

    fn show(&self, value: &Self::Out) -> Option<Value> {
        match value {
            Some(value) => self.0.show(value),
            None => Some(json!(DISABLED)),
        }
    }
}
