//! Shapes of scalars: texts, choices, and numbers, durations and sizes with a range.

use std::time::Duration;

use serde_json::{Value, json};

use crate::object::did_you_mean;
use crate::shape::{Context, Definitions, Shape};
use crate::tree::{NodeRef, Scalar};
use crate::units::{self, HundredthsError, parse_duration, parse_size, show_duration, show_size};

/// The longest duration that a shape accepts, one year: any clock can add it to the present.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// The schema of a scalar in whose place a variable may stand.
fn or_variable(schema: &Value) -> Value {
    json!({"anyOf": [schema, {"type": "string", "pattern": "\\$\\{"}]})
}

/// The scalar of a node that is one and is not null; reports anything else.
fn scalar<'s>(at: &'s NodeRef, cx: &mut Context, expected: &str) -> Option<&'s Scalar> {
    match at.scalar() {
        Some(scalar) if !scalar.is_null() => Some(scalar),
        _ => {
            cx.mismatch(at, expected, None);
            None
        }
    }
}

/// Any scalar as text, exactly as written, numbers and booleans included; null is the empty text.
#[derive(Debug, Clone, Copy)]
pub struct Verbatim;

impl Shape for Verbatim {
    type Out = String;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<String> {
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

/// A text that a function parses, such as an address.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The noun for messages: "an address with a port".
    pub what: &'static str,
    /// Parses the expanded text; the node is its position.
    pub parse: fn(&str, &NodeRef) -> Result<T, ParseError>,
}

/// An error of [`Parsed`]: a message and maybe a hint.
#[derive(Debug)]
pub struct ParseError {
    /// The reason, to follow "… is not …: ".
    pub message: String,
    /// The correction.
    pub hint: Option<String>,
}

impl ParseError {
    /// An error without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// An error with a hint.
    pub fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

impl<T> Shape for Parsed<T> {
    type Out = T;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<T> {
        let scalar = scalar(at, cx, self.what)?;
        if !scalar.is_expanded() && scalar.as_bool().is_some() {
            cx.mismatch(at, self.what, None);
            return None;
        }
        match (self.parse)(&scalar.text, at) {
            Ok(value) => Some(value),
            Err(error) => {
                let message = format!("{} is not {}: {}", scalar.shown(), self.what, error.message);
                let mut diagnostic = at.error(message);
                diagnostic.hint = error.hint;
                cx.report(diagnostic);
                None
            }
        }
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "string"})
    }
}

/// A boolean: `true` or `false`.
#[derive(Debug, Clone, Copy)]
pub struct Flag;

impl Shape for Flag {
    type Out = bool;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<bool> {
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

/// One of a few words, each with its value.
#[derive(Debug, Clone, Copy)]
pub struct Choice<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Shape for Choice<T> {
    type Out = T;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<T> {
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

/// The scalar of a node that is a number; reports anything else. A quoted number is a text, as everywhere in YAML.
fn numeric<'s>(at: &'s NodeRef, cx: &mut Context, expected: &str) -> Option<&'s Scalar> {
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
        (!bare.is_empty() && bare.parse::<f64>().is_ok() && !found.is_expanded())
            .then(|| format!("a plain number, without '{}'", &found.text[bare.len()..]))
    };
    cx.mismatch(at, expected, hint);
    None
}

fn out_of_range(at: &NodeRef, cx: &mut Context, shown: &str, low: &str, high: &str) {
    let message = format!("{shown} is not between {low} and {high}");
    cx.report(at.error(message));
}

/// A whole number in a range, bounds included.
#[derive(Debug, Clone, Copy)]
pub struct Integer {
    /// The lowest value.
    pub min: u64,
    /// The highest value.
    pub max: u64,
}

impl Shape for Integer {
    type Out = u64;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<u64> {
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

/// A number in a range, bounds included.
#[derive(Debug, Clone, Copy)]
pub struct Number {
    /// The lowest value.
    pub min: f64,
    /// The highest value.
    pub max: f64,
    /// Whether -1 is accepted, too, for "unlimited".
    pub or_minus_one: bool,
}

impl Number {
    /// A number from `min` to `max`.
    pub const fn between(min: f64, max: f64) -> Self {
        Self {
            min,
            max,
            or_minus_one: false,
        }
    }
}

impl Shape for Number {
    type Out = f64;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<f64> {
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

/// A percentage from 0 to 100 with up to two decimals, as hundredths of a percent.
#[derive(Debug, Clone, Copy)]
pub struct Percentage;

impl Shape for Percentage {
    type Out = u32;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<u32> {
        let scalar = numeric(at, cx, "a percentage")?;
        match units::parse_hundredths(&scalar.text) {
            Ok(hundredths) if hundredths <= 10_000 => Some(hundredths),
            Ok(_) | Err(HundredthsError::Negative) => {
                out_of_range(at, cx, &scalar.shown(), "0", "100");
                None
            }
            Err(HundredthsError::TooFine) => {
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

/// A duration with a unit (`250ms`, `10s`, `1m30s`) in a range, bounds included.
#[derive(Debug, Clone, Copy)]
pub struct DurationRange {
    /// The shortest value.
    pub min: Duration,
    /// The longest value.
    pub max: Duration,
    /// Whether fractions of a second are refused.
    pub whole_seconds: bool,
}

impl DurationRange {
    /// Any duration up to [`MAX_DURATION`], zero included.
    pub const ANY: Self = Self::at_least(Duration::ZERO);
    /// Any duration from 1 ms to [`MAX_DURATION`].
    pub const POSITIVE: Self = Self::at_least(Duration::from_millis(1));

    const fn at_least(min: Duration) -> Self {
        Self {
            min,
            max: MAX_DURATION,
            whole_seconds: false,
        }
    }
}

impl Shape for DurationRange {
    type Out = Duration;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Duration> {
        let expected = "a duration such as 250ms, 10s, 5m or 1h";
        let scalar = scalar(at, cx, expected)?;
        let Some(value) = parse_duration(&scalar.text) else {
            let right = format!("{}s", scalar.text);
            let possible = !scalar.is_expanded() && parse_duration(&right).is_some();
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

/// A plain number of seconds, for keys with the unit in their name; 0 is `None`, no limit.
#[derive(Debug, Clone, Copy)]
pub struct Seconds;

impl Shape for Seconds {
    type Out = Option<Duration>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
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

/// A size (`64KiB`, `1GiB`, or a number of bytes) in a range, bounds included. The value is in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The smallest value, in bytes.
    pub min: u64,
    /// The largest value, in bytes.
    pub max: u64,
}

impl Shape for Size {
    type Out = u64;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<u64> {
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
