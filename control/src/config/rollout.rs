//! The key `rollout` of a service: how traffic moves to a new latest revision.

use std::sync::Arc;
use std::time::Duration;

use sluice_config_shape::{
    DurationRange, Integer, List, Located, MAX_DURATION, Number, Object, ParseError, Parsed, Percentage,
    Record, WithLocation,
};

use crate::rollout::{JudgePolicy, RolloutPolicy, Steps, WHOLE};

const SECOND: Duration = Duration::from_secs(1);

/// The bound of listed steps.
const MAX_STEPS: usize = 100;

pub(super) const ROLLOUT: Record<Option<Arc<RolloutPolicy>>> = Record {
    name: "Rollout",
    doc: "How traffic moves to a new latest revision: in steps, each when instances are ready for it, and back when it is worse. Concerns what latestRevision targets have.",
    decode: |o| {
        let before = o.cx.errors();
        let default = RolloutPolicy::default();
        let steps = o.optional(
            "steps",
            "Percents of the share, growing; 100 follows by itself. Default: 1, 10, 50.",
            List(WithLocation(Percentage)),
        );
        let every = o.optional(
            "every",
            "The least time of a step. One that is not judged ends after ten times as long. Default: 1m.",
            WithLocation(DurationRange {
                min: SECOND,
                max: MAX_DURATION,
                whole_seconds: false,
            }),
        );
        let duration = o.optional(
            "duration",
            "In place of steps: Knative's own steps within this time, from 1 % on.",
            DurationRange {
                min: SECOND,
                max: MAX_DURATION,
                whole_seconds: true,
            },
        );
        let gate = o.optional("gate", "What a step waits for.", GATE);
        let judge = o.optional("judge", "When the new revision is worse.", JUDGE);
        o.close();
        o.only_one_of(&["steps", "duration"]);
        if let (Some(_), Some(every)) = (&duration, &every) {
            let message = "'every' has no effect beside 'duration'";
            o.cx.report(
                every
                    .node
                    .error(message)
                    .hint("leave it out: the steps follow from the duration"),
            );
        }
        if let Some(steps) = &steps {
            check_steps(o, steps);
        }
        if o.cx.errors() != before {
            return Some(None);
        }
        let steps = match (duration, steps, default.steps) {
            (Some(duration), ..) => Steps::Within(duration),
            (None, own, Steps::Listed { shares, every: usual }) => Steps::Listed {
                shares: own.map_or(shares, |own| own.into_iter().map(|step| step.value).collect()),
                every: every.map_or(usual, |every| every.value),
            },
            (None, _, within @ Steps::Within(_)) => within,
        };
        Some(Some(Arc::new(RolloutPolicy {
            steps,
            min_ready: gate.flatten().unwrap_or(default.min_ready),
            judge: judge.unwrap_or(default.judge),
        })))
    },
};

fn check_steps(o: &mut Object<'_>, steps: &[Located<u32>]) {
    if let Some(one_more) = steps.get(MAX_STEPS) {
        let diagnostic = one_more
            .node
            .error(format!("a rollout has {MAX_STEPS} steps at most"));
        o.cx.report(diagnostic.hint("leave some out, or give a duration"));
    }
    let mut last = 0;
    for step in steps.iter().take(MAX_STEPS) {
        match step.value {
            0 => {
                let diagnostic = step.node.error("a step of 0 % moves nothing");
                o.cx.report(diagnostic.hint("leave it out"));
            }
            WHOLE => {
                let diagnostic = step.node.error("the step to 100 % follows by itself");
                o.cx.report(diagnostic.hint("leave it out"));
            }
            share if share <= last => {
                let diagnostic = step.node.error("the steps do not grow");
                o.cx.report(diagnostic.hint("list them from the smallest to the greatest"));
            }
            _ => {}
        }
        last = step.value;
    }
}

const GATE: Record<Option<f64>> = Record {
    name: "Gate",
    doc: "What a step waits for.",
    decode: |o| {
        let min_ready = o.optional(
            "minReady",
            "Ready instances of the new revision, of those that the next step needs. Default: 100%.",
            PART,
        );
        Some(min_ready)
    },
};

const JUDGE: Record<JudgePolicy> = Record {
    name: "Judge",
    doc: "When the new revision is worse than the old one over the same time.",
    decode: |o| {
        let default = JudgePolicy::default();
        let ratio = Number::between(1.0, 1e6);
        Some(JudgePolicy {
            min_requests: o.or(
                "minRequests",
                "Requests of the new revision in each step.",
                Integer { min: 1, max: 1_000_000_000 },
                default.min_requests,
            ),
            max_error_rate: o
                .optional("maxErrorRate", "Never worse up to this part of failed requests. Default: 1%.", PART)
                .unwrap_or(default.max_error_rate),
            max_error_ratio: o.or(
                "maxErrorRatio",
                "Never worse up to this multiple of the old one's part.",
                ratio,
                default.max_error_ratio,
            ),
            max_latency_ratio: o.or(
                "maxLatencyRatio",
                "Never worse up to this multiple of the old one's latency.",
                ratio,
                default.max_latency_ratio,
            ),
            false_alarm: o
                .optional(
                    "falseAlarm",
                    "The probability that a revision which is not worse is rolled back, over the whole rollout. Default: 1%.",
                    RISK,
                )
                .unwrap_or(default.false_alarm),
        })
    },
};

/// A percentage with its sign, as a part of 1.
const PART: Parsed<f64> = Parsed {
    what: "a percentage such as 1% or 0.5%",
    parse: |text, _| percentage(text, 0.01, 100.0),
};

const RISK: Parsed<f64> = Parsed {
    what: "a percentage such as 1% or 0.5%",
    parse: |text, _| percentage(text, 0.001, 50.0),
};

fn percentage(text: &str, min: f64, max: f64) -> Result<f64, ParseError> {
    let Some(number) = text.strip_suffix('%') else {
        let hint = text.parse::<f64>().ok().map(|_| format!("write {text}%"));
        let message = "it has no '%'";
        return Err(hint.map_or_else(
            || ParseError::new(message),
            |hint| ParseError::with_hint(message, hint),
        ));
    };
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match number.parse::<f64>() {
        Ok(percent) if is_plain && (min..=max).contains(&percent) => Ok(percent / 100.0),
        Ok(_) if is_plain => Err(ParseError::new(format!("it is not between {min}% and {max}%"))),
        _ => Err(ParseError::new("it is no number")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_config_shape::{Context, Shape, Variables, parse};

    use super::*;

    fn decoded(text: &str) -> (Option<Arc<RolloutPolicy>>, String) {
        let mut cx = Context::default();
        let roots = parse(Path::new("a.yaml"), text, &Variables::none(), &mut cx.diagnostics);
        let policy = ROLLOUT.decode(&roots[0], &mut cx).flatten();
        (policy, cx.diagnostics.to_string())
    }

    #[test]
    fn what_the_design_shows_is_the_default() {
        let (policy, said) = decoded(
            "{steps: [1, 10, 50], every: 1m, gate: {minReady: 100%},
              judge: {minRequests: 50, maxErrorRate: 1%, maxErrorRatio: 2, maxLatencyRatio: 1.5, falseAlarm: 1%}}",
        );
        assert_eq!(
            (policy.as_deref(), said.as_str()),
            (Some(&RolloutPolicy::default()), "")
        );
        let (policy, said) = decoded("{}");
        assert_eq!(
            (policy.as_deref(), said.as_str()),
            (Some(&RolloutPolicy::default()), "")
        );
    }

    #[test]
    fn every_key_is_understood() {
        let (policy, said) = decoded(
            "{steps: [0.5, 20], every: 10s, gate: {minReady: 50%},
              judge: {minRequests: 5, maxErrorRate: 0.5%, maxErrorRatio: 3, maxLatencyRatio: 1, falseAlarm: 0.1%}}",
        );
        let policy = policy.expect("a policy");
        assert_eq!(said, "");
        let every = Duration::from_secs(10);
        assert_eq!(
            policy.steps,
            Steps::Listed {
                shares: vec![50, 2_000],
                every
            }
        );
        let judge = &policy.judge;
        assert!((policy.min_ready - 0.5).abs() < 1e-9 && (judge.max_error_rate - 0.005).abs() < 1e-9);
        assert!((judge.max_error_ratio - 3.0).abs() < 1e-9 && (judge.false_alarm - 0.001).abs() < 1e-9);
        assert_eq!(judge.min_requests, 5);
        let (policy, _) = decoded("{duration: 10m}");
        assert_eq!(
            policy.expect("a policy").steps,
            Steps::Within(Duration::from_secs(600))
        );
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        for (text, want) in [
            ("{steps: [10, 5]}", "the steps do not grow"),
            ("{steps: [0, 5]}", "moves nothing"),
            ("{steps: [5, 100]}", "follows by itself"),
            ("{steps: [5, 101]}", "is not between 0 and 100"),
            ("{steps: [5], duration: 1m}", "duration"),
            ("{every: 1m, duration: 1m}", "no effect beside 'duration'"),
            ("{every: 100ms}", "between 1s"),
            ("{gate: {minReady: 0.5}}", "write 0.5%"),
            ("{gate: {minRaedy: 50%}}", "did you mean 'minReady'"),
            ("{judge: {falseAlarm: 60%}}", "between 0.001% and 50%"),
            ("{judge: {maxErrorRate: -1%}}", "it is no number"),
            ("{judge: {maxErrorRate: 1e1%}}", "it is no number"),
            ("{judge: {maxErrorRatio: 0.5}}", "is not between 1 and"),
            ("{judge: {minRequests: 0}}", "is not between 1 and"),
            ("{step: [1]}", "did you mean 'steps'"),
        ] {
            let (policy, said) = decoded(text);
            assert!(said.contains(want), "{text}: {said}");
            assert!(policy.is_none() || !text.contains("steps"), "{text}");
            assert_eq!(said.matches("error").count(), 1, "{text}: {said}");
        }
    }
}
