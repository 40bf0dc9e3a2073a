//! Shapes of scalars.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_model::Percent;

use super::decode::{Context, Definitions, Shape, did_you_mean};
use super::tree::{Scalar, Spot};
use super::units::{self, parse_duration, parse_size, show_duration, show_size};

/// A year: long enough for every timer, short enough for every clock.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);
const NO_TIME: Duration = Duration::ZERO;

/// Every scalar may be, or hold, a variable.
fn or_variable(schema: &Value) -> Value {
    json!({"anyOf": [schema, {"type": "string", "pattern": "\\$\\{"}]})
}

fn scalar<'s>(at: &'s Spot, cx: &mut Context, expected: &str) -> Option<&'s Scalar> {
    match at.scalar() {
        Some(scalar) if !scalar.is_null() => Some(scalar),
        _ => {
            cx.mismatch(at, expected, None);
            None
        }
    }
}

/// A text that is passed on as it is written, numbers and booleans included: arguments,
/// variables and header values.
pub(super) struct Verbatim;

impl Shape for Verbatim {
    type Out = String;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<String> {
        match at.scalar() {
            Some(scalar) if scalar.is_null() => Some(String::new()),
            Some(scalar) => Some(scalar.text.to_string()),
            None => {
                cx.mismatch(at, "text", None);
                None
            }
        }
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": ["string", "number", "boolean", "null"]})
    }
}

/// A text that is expanded for each instance: `$(PORT)` and the like.
pub(super) struct Template;

impl Shape for Template {
    type Out = String;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<String> {
        let text = Verbatim.decode(at, cx)?;
        let Some(again) = at.scalar().and_then(|scalar| scalar.again.as_ref()) else {
            return Some(text);
        };
        if let Some(name) = again.own {
            let message = format!("'${{{name}}}' is the gateway's own variable, taken when the file is read");
            let hint = format!("write $({name}) for the instance's own");
            cx.report(at.error(message).hint(hint).warning());
        }
        Some(again.text.clone())
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        Verbatim.schema(definitions)
    }
}

/// A text that means something. The function judges it and gives message and hint.
pub(super) struct Parsed<T> {
    /// What it should be, for messages: "an address with a port".
    pub(super) what: &'static str,
    pub(super) parse: fn(&str, &Spot) -> Result<T, Refusal>,
}

/// Why a text means nothing here.
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

impl<T> Shape for Parsed<T> {
    type Out = T;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<T> {
        let scalar = scalar(at, cx, self.what)?;
        if scalar.raw.is_none() && scalar.as_bool().is_some() {
            cx.mismatch(at, self.what, None);
            return None;
        }
        match (self.parse)(&scalar.text, at) {
            Ok(value) => Some(value),
            Err(refusal) => {
                let message = format!("{} is not {}: {}", scalar.shown(), self.what, refusal.message);
                let mut diagnostic = at.error(message);
                diagnostic.hint = refusal.hint;
                cx.report(diagnostic);
                None
            }
        }
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "string"})
    }
}

/// True or false.
pub(super) struct Flag;

impl Shape for Flag {
    type Out = bool;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<bool> {
        let value = at.scalar().and_then(Scalar::as_bool);
        if value.is_none() {
            let hint = at.scalar().and_then(|s| match &*s.text.to_ascii_lowercase() {
                "true" | "yes" | "on" | "1" => Some("write true"),
                "false" | "no" | "off" | "0" => Some("write false"),
                _ => None,
            });
            cx.mismatch(at, "true or false", hint.map(str::to_owned));
        }
        value
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        or_variable(&json!({"type": "boolean"}))
    }

    fn show(&self, value: &bool) -> Option<Value> {
        Some(json!(value))
    }
}

/// One of a few words.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Shape for Choice<T> {
    type Out = T;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<T> {
        let words: Vec<&str> = self.0.iter().map(|(word, _)| *word).collect();
        let expected = format!("one of {}", words.join(", "));
        let text = &scalar(at, cx, &expected)?.text;
        let value = self.0.iter().find(|(word, _)| word == &&**text).map(|(_, v)| *v);
        if value.is_none() {
            let hint = did_you_mean(text, words.iter().copied()).map(|w| format!("did you mean '{w}'?"));
            cx.mismatch(at, &expected, hint);
        }
        value
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        let words: Vec<&str> = self.0.iter().map(|(word, _)| *word).collect();
        or_variable(&json!({"enum": words}))
    }

    fn show(&self, value: &T) -> Option<Value> {
        self.0
            .iter()
            .find(|(_, v)| v == value)
            .map(|(word, _)| json!(word))
    }
}

/// A number as text if the value is one; a quoted number is a text, as everywhere in YAML.
fn numeric<'s>(at: &'s Spot, cx: &mut Context, expected: &str) -> Option<&'s Scalar> {
    let found = scalar(at, cx, expected)?;
    if found.is_number() {
        return Some(found);
    }
    let unquoted = Scalar {
        plain: true,
        ..found.clone()
    };
    let hint = if !found.plain && unquoted.is_number() {
        Some("remove the quotes".to_owned())
    } else {
        let bare = found.text.trim_end_matches(|c: char| !c.is_ascii_digit());
        (!bare.is_empty() && bare.parse::<f64>().is_ok() && found.raw.is_none())
            .then(|| format!("a plain number, without '{}'", &found.text[bare.len()..]))
    };
    cx.mismatch(at, expected, hint);
    None
}

fn out_of_range(at: &Spot, cx: &mut Context, shown: &str, low: &str, high: &str) {
    let message = format!("{shown} is not between {low} and {high}");
    cx.report(at.error(message));
}

/// A whole number in a range.
pub(super) struct Integer {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Shape for Integer {
    type Out = u64;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<u64> {
        let scalar = numeric(at, cx, "a whole number")?;
        let text = scalar.text.strip_prefix('+').unwrap_or(&scalar.text);
        let whole = text.strip_prefix('-').unwrap_or(text);
        if !whole.bytes().all(|b| b.is_ascii_digit()) {
            cx.mismatch(at, "a whole number", None);
            return None;
        }
        // A number too large for u64 is out of every range.
        match text.parse() {
            Ok(value) if (self.min..=self.max).contains(&value) => Some(value),
            _ => {
                out_of_range(
                    at,
                    cx,
                    &scalar.shown(),
                    &self.min.to_string(),
                    &self.max.to_string(),
                );
                None
            }
        }
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        or_variable(&json!({"type": "integer", "minimum": self.min, "maximum": self.max}))
    }

    fn show(&self, value: &u64) -> Option<Value> {
        Some(json!(value))
    }
}

/// A number in a range; with `or_minus_one` also -1, which means unlimited.
pub(super) struct Number {
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) or_minus_one: bool,
}

impl Number {
    pub(super) fn between(min: f64, max: f64) -> Self {
        Self {
            min,
            max,
            or_minus_one: false,
        }
    }
}

impl Shape for Number {
    type Out = f64;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<f64> {
        let scalar = numeric(at, cx, "a number")?;
        let value: f64 = scalar.text.parse().unwrap_or(f64::NAN);
        if (self.min..=self.max).contains(&value) || (self.or_minus_one && value.total_cmp(&-1.0).is_eq()) {
            return Some(value);
        }
        let low = if self.or_minus_one {
            format!("{} (or -1)", self.min)
        } else {
            self.min.to_string()
        };
        out_of_range(at, cx, &scalar.shown(), &low, &self.max.to_string());
        None
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        let min = if self.or_minus_one { -1.0 } else { self.min };
        or_variable(&json!({"type": "number", "minimum": min, "maximum": self.max}))
    }

    fn show(&self, value: &f64) -> Option<Value> {
        // 100, not 100.0.
        #[allow(clippy::cast_possible_truncation)]
        let whole = *value as i64;
        #[allow(clippy::cast_precision_loss)]
        let exact = (whole as f64).total_cmp(value).is_eq();
        Some(if exact { json!(whole) } else { json!(value) })
    }
}

/// A share of up to two decimals.
pub(super) struct Share;

impl Shape for Share {
    type Out = Percent;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<Percent> {
        let scalar = numeric(at, cx, "a percentage")?;
        match units::parse_hundredths(&scalar.text) {
            Ok(hundredths) => match Percent::from_hundredths(hundredths) {
                Some(percent) => Some(percent),
                None => {
                    out_of_range(at, cx, &scalar.shown(), "0", "100");
                    None
                }
            },
            Err(units::NotAShare::Negative) => {
                out_of_range(at, cx, &scalar.shown(), "0", "100");
                None
            }
            Err(units::NotAShare::TooFine) => {
                let message = format!("{} has more than two decimals", scalar.shown());
                cx.report(
                    at.error(message)
                        .hint("a percent is split into hundredths, no further"),
                );
                None
            }
        }
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        or_variable(&json!({"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.01}))
    }
}

/// A duration with a unit.
pub(super) struct Span {
    pub(super) min: Duration,
    pub(super) max: Duration,
    /// Knative's windows and delays have no fractions.
    pub(super) whole_seconds: bool,
}

impl Span {
    /// Any duration, zero included.
    pub(super) const ANY: Self = Self::at_least(NO_TIME);
    /// Any but zero.
    pub(super) const SOME: Self = Self::at_least(Duration::from_millis(1));

    const fn at_least(min: Duration) -> Self {
        Self {
            min,
            max: MAX_DURATION,
            whole_seconds: false,
        }
    }
}

impl Shape for Span {
    type Out = Duration;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<Duration> {
        let expected = "a duration such as 250ms, 10s, 5m or 1h";
        let scalar = scalar(at, cx, expected)?;
        let Some(value) = parse_duration(&scalar.text) else {
            let right = format!("{}s", scalar.text);
            let possible = scalar.raw.is_none() && parse_duration(&right).is_some();
            cx.mismatch(at, expected, possible.then(|| format!("give it a unit: {right}")));
            return None;
        };
        if !(self.min..=self.max).contains(&value) {
            let (low, high) = (show_duration(self.min), show_duration(self.max));
            out_of_range(at, cx, &scalar.shown(), &low, &high);
            return None;
        }
        if self.whole_seconds && value.subsec_nanos() > 0 {
            cx.report(at.error(format!("{} is not a whole number of seconds", scalar.shown())));
            return None;
        }
        Some(value)
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        or_variable(&json!({"type": ["string", "integer"], "pattern": units::DURATION_PATTERN}))
    }

    fn show(&self, value: &Duration) -> Option<Value> {
        Some(json!(show_duration(*value)))
    }
}

/// A plain number of seconds, for keys that say so; 0 is `None`: no limit.
pub(super) struct Seconds;

impl Shape for Seconds {
    type Out = Option<Duration>;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<Self::Out> {
        let scalar = numeric(at, cx, "a number of seconds")?;
        let value: f64 = scalar.text.parse().unwrap_or(f64::NAN);
        if !(0.0..=MAX_DURATION.as_secs_f64()).contains(&value) {
            out_of_range(at, cx, &scalar.shown(), "0", &MAX_DURATION.as_secs().to_string());
            return None;
        }
        let value = Duration::from_secs_f64(value);
        Some((!value.is_zero()).then_some(value))
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        or_variable(&json!({"type": "number", "minimum": 0}))
    }

    fn show(&self, value: &Self::Out) -> Option<Value> {
        let seconds = value.unwrap_or_default();
        Number::between(0.0, f64::MAX).show(&seconds.as_secs_f64())
    }
}

/// A size in bytes.
pub(super) struct Size {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Shape for Size {
    type Out = u64;

    fn decode(&self, at: &Spot, cx: &mut Context) -> Option<u64> {
        let expected = "a size such as 64KiB, 1GiB or a number of bytes";
        let scalar = scalar(at, cx, expected)?;
        let Some(value) = parse_size(&scalar.text) else {
            let decimal = scalar.text.ends_with(['B', 'b', 'K', 'k', 'M', 'm', 'G', 'g']);
            let hint = decimal.then(|| "units are KiB, MiB, GiB and TiB".to_owned());
            cx.mismatch(at, expected, hint);
            return None;
        };
        if (self.min..=self.max).contains(&value) {
            return Some(value);
        }
        let (low, high) = (show_size(self.min), show_size(self.max));
        out_of_range(at, cx, &scalar.shown(), &low, &high);
        None
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        or_variable(&json!({"type": ["string", "integer"], "pattern": units::SIZE_PATTERN, "minimum": 0}))
    }

    fn show(&self, value: &u64) -> Option<Value> {
        Some(if *value == 0 {
            json!(0)
        } else {
            json!(show_size(*value))
        })
    }
}
