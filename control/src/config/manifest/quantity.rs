//! Values of annotations: texts that are numbers and durations.

use std::time::Duration;

use sluice_config_shape::{Context, Located, quoted};

/// A whole number in a range, bounds included.
pub(super) fn whole(text: &Located<String>, min: u64, max: u64, cx: &mut Context) -> Option<u64> {
    let digits = text.value.bytes().all(|byte| byte.is_ascii_digit());
    let value = digits.then(|| text.value.parse().ok()).flatten();
    let value = value.filter(|value| (min..=max).contains(value));
    if value.is_none() {
        out_of_range(text, "a whole number", &min.to_string(), &max.to_string(), cx);
    }
    value
}

/// A number in a range, bounds included.
pub(super) fn number(text: &Located<String>, min: f64, max: f64, cx: &mut Context) -> Option<f64> {
    let value = text.value.parse::<f64>().ok();
    let value = value.filter(|value| (min..=max).contains(value));
    if value.is_none() {
        out_of_range(text, "a number", &min.to_string(), &max.to_string(), cx);
    }
    value
}

/// A duration in whole seconds unless `fine`, in a range, bounds included; a bare `0` is one, too.
pub(super) fn duration(
    text: &Located<String>,
    min: Duration,
    max: Duration,
    fine: bool,
    cx: &mut Context,
) -> Option<Duration> {
    let value = sluice_config_shape::parse_duration(&text.value);
    let value = value.filter(|value| (min..=max).contains(value));
    match value {
        None => {
            let (low, high) = (format!("{}s", min.as_secs()), format!("{}s", max.as_secs()));
            out_of_range(text, "a duration", &low, &high, cx);
            None
        }
        Some(value) if value.subsec_nanos() > 0 && !fine => {
            let message = format!("{} is not a whole number of seconds", quoted(&text.value));
            cx.report(text.node.error(message));
            None
        }
        value => value,
    }
}

fn out_of_range(text: &Located<String>, what: &str, low: &str, high: &str, cx: &mut Context) {
    let message = format!("{} is not {what} from {low} to {high}", quoted(&text.value));
    cx.report(text.node.error(message));
}
