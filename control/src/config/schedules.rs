//! Schedules, forecasts and the mode of a revision's autoscaling.

use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use sluice_config_shape::{
    Choice, DurationRange, Located, MAX_DURATION, ParseError, Parsed, Record, WithLocation,
};

use super::autoscaling::SCALE;
use super::did_you_mean;
use crate::plan::{ForecastPolicy, ScalingMode};
use crate::schedule::{NO_LIMIT, Schedule, parse_cron};

pub(super) const MODE: Choice<ScalingMode> =
    Choice(&[("active", ScalingMode::Active), ("observe", ScalingMode::Observe)]);

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A pattern as written, and as parsed.
const CRON: Parsed<(String, Cron)> = Parsed {
    what: "a cron pattern",
    parse: |text, _| {
        let hint = "minute hour day month weekday, as in cron(8): 0 8 * * 1-5";
        let cron = parse_cron(text).map_err(|why| ParseError::with_hint(why, hint))?;
        Ok((text.to_owned(), cron))
    },
};

/// A time zone with its name. The system's time zones are asked first, then those in the binary.
const ZONE: Parsed<(String, TimeZone)> = Parsed {
    what: "a time zone",
    parse: |text, _| match TimeZone::get(text) {
        Ok(zone) => Ok((text.to_owned(), zone)),
        Err(_) => {
            let known: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
            let hint = match did_you_mean(text, known.iter().map(String::as_str)) {
                Some(known) => format!("did you mean '{known}'?"),
                None => "write it as in the IANA database: Europe/Berlin, UTC".to_owned(),
            };
            Err(ParseError::with_hint("there is none of this name", hint))
        }
    },
};

pub(super) const SCHEDULE: Record<Option<Schedule>> = Record {
    name: "Schedule",
    doc: "A floor and a ceiling for the number of instances, in windows that a cron pattern begins.",
    decode: |o| {
        let before = o.cx.errors();
        let cron = o.required(
            "cron",
            "When a window begins: minute, hour, day, month, weekday, as in cron(8).",
            CRON,
        );
        let zone = o.optional(
            "timeZone",
            "The pattern's time zone, as in the IANA database. Default UTC.",
            ZONE,
        );
        let duration = o.required(
            "duration",
            "How long a window lasts, whatever the clock does meanwhile.",
            DurationRange {
                min: MINUTE,
                max: MAX_DURATION,
                whole_seconds: true,
            },
        );
        let min_scale = o.optional(
            "minScale",
            "Never fewer, inside of a window.",
            WithLocation(SCALE),
        );
        let max_scale = o.optional(
            "maxScale",
            "Never more, inside of a window, in place of the revision's maxScale; 0 is no limit.",
            SCALE,
        );
        o.close();
        let (has_min, has_max) = (o.has_or_meant("minScale"), o.has_or_meant("maxScale"));
        if !has_min && !has_max {
            let diagnostic =
                o.at.whole()
                    .error("the schedule sets neither minScale nor maxScale");
            o.cx.report(diagnostic.hint("give it a floor, a ceiling, or both"));
        }
        if let (Some(Located { value: min, node }), Some(max)) = (&min_scale, max_scale)
            && max > 0
            && *min > max
        {
            let message = format!("minScale {min} is above maxScale {max}");
            o.cx.report(node.error(message).hint("raise maxScale or lower minScale"));
        }
        if o.cx.errors() != before {
            return Some(None);
        }
        let (Some((text, cron)), Some(duration)) = (cron, duration) else {
            return Some(None);
        };
        let (zone_name, zone) = zone.unwrap_or_else(|| ("UTC".to_owned(), TimeZone::UTC));
        let mut schedule = Schedule::new(&text, cron, &zone_name, zone, duration);
        schedule.min_scale = min_scale.map(|min| scale(min.value));
        schedule.max_scale = max_scale.map(|max| if max == 0 { NO_LIMIT } else { scale(max) });
        Some(Some(schedule))
    },
};

pub(super) const FORECAST: Record<Option<ForecastPolicy>> = Record {
    name: "Forecast",
    doc: "A floor by the load of earlier seasons. It is applied once it would have saved cold starts in a whole season.",
    decode: |o| {
        let season = o.or(
            "season",
            "After which the load repeats: a day, or a week where weekends differ.",
            DurationRange {
                min: Duration::from_secs(3600),
                max: 31 * DAY,
                whole_seconds: true,
            },
            DAY,
        );
        let mode = o.or(
            "mode",
            "observe: what it would have saved is logged and shown, and its floor not applied.",
            MODE,
            ScalingMode::Active,
        );
        Some(Some(ForecastPolicy { season, mode }))
    },
};

fn scale(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_config_shape::{Context, Shape, Variables, parse};

    use super::*;

    fn decoded(text: &str) -> (Option<Schedule>, String) {
        let mut cx = Context::default();
        let roots = parse(Path::new("a.yaml"), text, &Variables::none(), &mut cx.diagnostics);
        let schedule = SCHEDULE.decode(&roots[0], &mut cx).flatten();
        (schedule, cx.diagnostics.to_string())
    }

    #[test]
    fn every_key_is_understood() {
        let (schedule, said) = decoded(
            "{cron: '0 8 * * 1-5', timeZone: Europe/Berlin, duration: 10h, minScale: 2, maxScale: 20}",
        );
        let schedule = schedule.expect("a schedule");
        assert_eq!(said, "");
        assert_eq!(schedule.to_string(), "0 8 * * 1-5 Europe/Berlin for 10h");
        assert_eq!((schedule.min_scale, schedule.max_scale), (Some(2), Some(20)));
        let (schedule, _) = decoded("{cron: '* * * * *', duration: 1m, maxScale: 0}");
        let schedule = schedule.expect("a schedule");
        assert_eq!((schedule.min_scale, schedule.max_scale), (None, Some(NO_LIMIT)));
        assert_eq!(schedule.to_string(), "* * * * * UTC for 1m");
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        for (text, want) in [
            ("{duration: 1h, minScale: 1}", "the key 'cron' is missing"),
            (
                "{cron: '0 8 * * *', minScale: 1}",
                "the key 'duration' is missing",
            ),
            ("{cron: '0 8 * *', duration: 1h, minScale: 1}", "4 fields"),
            ("{cron: '0 25 * * *', duration: 1h, minScale: 1}", "25"),
            (
                "{cron: '0 8 * * *', duration: 1h}",
                "neither minScale nor maxScale",
            ),
            (
                "{cron: '0 8 * * *', duration: 1h, minScael: 1}",
                "did you mean 'minScale'",
            ),
            ("{cron: '0 8 * * *', duration: 1s, minScale: 1}", "between 60s"),
            (
                "{cron: '0 8 * * *', duration: 1h, minScale: 3, maxScale: 2}",
                "minScale 3 is above maxScale 2",
            ),
            (
                "{cron: '0 8 * * *', duration: 1h, minScale: 1, timeZone: Europe/Berlim}",
                "did you mean 'Europe/Berlin'",
            ),
            (
                "{cron: '0 8 * * *', duration: 1h, minScale: 1, timezone: UTC}",
                "did you mean 'timeZone'",
            ),
        ] {
            let (schedule, said) = decoded(text);
            assert!(said.contains(want), "{text}: {said}");
            assert_eq!(schedule, None, "{text}");
            assert_eq!(said.matches("error").count(), 1, "{text}: {said}");
        }
    }
}
