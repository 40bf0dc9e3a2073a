//! Schedules: windows of time that cron patterns begin, with a floor and a ceiling for the number of instances.
//!
//! A pattern is that of cron(8): five fields, names of months and days, and where both days are restricted either of them
//! suffices. A window lasts a fixed time from its begin, whatever the clock does meanwhile. When the clock goes forward, a
//! begin by one minute and one hour that it skips comes right after the gap, and one by lists or steps is left out; when
//! it goes back, the former comes once, at the first of both times, and the latter comes twice.
//!
//! Pure: time is an argument. Time zones are read when a schedule is made, from the system or, where it has none, from the
//! binary.

mod bounds;
mod conflict;

use std::fmt;
use std::time::Duration;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

pub(crate) use bounds::{ScheduleBounds, ScheduleClock};
pub(crate) use conflict::conflict;

/// The ceiling of a schedule without a limit (`maxScale: 0`).
pub(crate) const NO_LIMIT: u32 = u32::MAX;

/// The time from which windows are enumerated where no present is known: the begin of a leap year.
const REFERENCE: i64 = 1_704_067_200;

/// Windows that a cron pattern begins, with what holds inside.
#[derive(Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
    zone: TimeZone,
    zone_name: String,
    /// The length of a window, in whole seconds; at least a minute.
    duration: Duration,
    /// The floor inside of a window.
    pub min_scale: Option<u32>,
    /// The ceiling inside of a window, in place of the base's; `u32::MAX` lifts the base's.
    pub max_scale: Option<u32>,
}

/// A window of a schedule, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from: i64,
    /// The first second after the window.
    pub(crate) until: i64,
}

/// Parses a cron pattern.
///
/// # Errors
/// A sentence that follows "… is not a cron pattern: ".
pub(crate) fn parse_cron(text: &str) -> Result<Cron, String> {
    if text.trim_start().starts_with('@') {
        return Err("write five fields, such as 0 8 * * 1-5".to_owned());
    }
    let fields = text.split_whitespace().count();
    if fields != 5 {
        return Err(format!(
            "it has {fields} field{}, and five are needed: minute, hour, day, month, weekday",
            if fields == 1 { "" } else { "s" }
        ));
    }
    // What croner knows beyond cron(8) (`L`, `W`, `#`, `?`, `+`) is no part of the contract; L and W are in names, too.
    let names = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "sun", "mon",
        "tue", "wed", "thu", "fri", "sat",
    ];
    let bare = names
        .iter()
        .fold(text.to_lowercase(), |text, name| text.replace(name, ""));
    let foreign = bare
        .chars()
        .find(|c| !(c.is_ascii_digit() || c.is_whitespace() || "*,-/".contains(*c)));
    if let Some(foreign) = foreign {
        return Err(format!("cron(8) does not know '{foreign}'"));
    }
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build();
    let cron = parser.parse(text).map_err(|error| {
        // croner does not say which field it means: the one that is wrong alone.
        let names = ["minute", "hour", "day", "month", "weekday"];
        let fields = text.split_whitespace().zip(names).enumerate();
        let mut alone = fields.filter_map(|(nth, (field, name))| {
            let mut pattern = ["*"; 5];
            pattern[nth] = field;
            let why = parser.parse(&pattern.join(" ")).err()?;
            Some(format!("the {name} '{field}': {}", plain(&why)))
        });
        alone.next().unwrap_or_else(|| plain(&error))
    })?;
    match next(&cron, &TimeZone::UTC, REFERENCE) {
        Some(_) => Ok(cron),
        None => Err("no such day ever comes".to_owned()),
    }
}

/// croner's sentence without its kind.
fn plain(error: &CronError) -> String {
    let text = match error {
        CronError::ComponentError(why) | CronError::InvalidPattern(why) => why.clone(),
        other => other.to_string(),
    };
    text.trim_end_matches('.').to_lowercase()
}

fn zoned(at: i64, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_second(at).ok()?.to_zoned(zone.clone()))
}

/// The first begin after `at`.
fn next(cron: &Cron, zone: &TimeZone, at: i64) -> Option<i64> {
    let found = cron.find_next_occurrence(&zoned(at, zone)?, false).ok()?;
    Some(found.timestamp().as_second())
}

impl Schedule {
    /// A schedule without floor and ceiling. `text` is what `cron` was parsed from.
    pub(crate) fn new(text: &str, cron: Cron, zone_name: &str, zone: TimeZone, duration: Duration) -> Self {
        Self {
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
            cron,
            zone,
            zone_name: zone_name.to_owned(),
            duration,
            min_scale: None,
            max_scale: None,
        }
    }

    /// The window that is open at `at`; of several that overlap, the one that began last.
    pub(crate) fn open_at(&self, at: i64) -> Option<Window> {
        let at_zone = zoned(at, &self.zone)?;
        let begin = self.cron.find_previous_occurrence(&at_zone, true).ok()?;
        let window = self.window(begin.timestamp().as_second());
        (window.from <= at && at < window.until).then_some(window)
    }

    /// The first window that begins after `at`.
    pub(crate) fn next_after(&self, at: i64) -> Option<Window> {
        next(&self.cron, &self.zone, at).map(|from| self.window(from))
    }

    fn window(&self, from: i64) -> Window {
        let length = i64::try_from(self.duration.as_secs()).unwrap_or(i64::MAX);
        Window {
            from,
            until: from.saturating_add(length),
        }
    }
}

/// As a file has it.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, zone_name, .. } = self;
        let seconds = i64::try_from(self.duration.as_secs()).unwrap_or(i64::MAX);
        write!(
            f,
            "{text} {zone_name} for {:#}",
            SignedDuration::from_secs(seconds)
        )
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({self}, {:?}..{:?})", self.min_scale, self.max_scale)
    }
}

/// By what was written: equal text has equal windows.
impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
            && self.zone_name == other.zone_name
            && self.duration == other.duration
            && (self.min_scale, self.max_scale) == (other.min_scale, other.max_scale)
    }
}

#[cfg(test)]
pub(crate) mod tests;
