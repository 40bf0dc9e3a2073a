//! Windows and bounds on a calendar: overlaps, both changes of a year, leap days.

use proptest::prelude::*;

use super::*;

pub(crate) fn schedule(cron: &str, zone: &str, hours: f64, min: Option<u32>, max: Option<u32>) -> Schedule {
    let zone_of = TimeZone::get(zone).expect("a time zone");
    let cron_of = parse_cron(cron).expect(cron);
    let duration = Duration::from_secs_f64(hours * 3600.0);
    let mut schedule = Schedule::new(cron, cron_of, zone, zone_of, duration);
    (schedule.min_scale, schedule.max_scale) = (min, max);
    schedule
}

/// Seconds since 1970 of a time such as `2026-03-29T01:00Z`.
fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().expect(text).as_second()
}

fn floor(schedules: &[Schedule], time: &str) -> Option<u32> {
    ScheduleBounds::at(schedules, at(time), 0).0.floor
}

#[test]
fn office_hours_in_berlin() {
    let office = [schedule("0 8 * * 1-5", "Europe/Berlin", 10.0, Some(2), Some(20))];
    // Monday in winter: 08:00 is 07:00Z.
    for (time, want) in [
        ("2026-11-30T06:59:59Z", None),
        ("2026-11-30T07:00:00Z", Some(2)),
        ("2026-11-30T16:59:59Z", Some(2)),
        ("2026-11-30T17:00:00Z", None),
        // Saturday.
        ("2026-11-28T10:00:00Z", None),
        // Summer: 08:00 is 06:00Z.
        ("2026-07-01T06:00:00Z", Some(2)),
        ("2026-07-01T05:59:59Z", None),
    ] {
        assert_eq!(floor(&office, time), want, "{time}");
    }
}

#[test]
fn overlaps_take_the_greatest_floor_and_the_least_ceiling() {
    let both = [
        schedule("0 8 * * *", "UTC", 10.0, Some(2), Some(20)),
        schedule("0 12 * * *", "UTC", 1.0, Some(6), None),
        schedule("30 12 * * *", "UTC", 1.0, None, Some(10)),
        schedule("0 22 * * *", "UTC", 1.0, None, Some(NO_LIMIT)),
    ];
    let bounds = |time: &str| {
        let bounds = ScheduleBounds::at(&both, at(time), 0).0;
        (bounds.floor, bounds.ceiling)
    };
    assert_eq!(bounds("2026-01-05T09:00:00Z"), (Some(2), Some(20)));
    assert_eq!(bounds("2026-01-05T12:00:00Z"), (Some(6), Some(20)));
    assert_eq!(bounds("2026-01-05T12:30:00Z"), (Some(6), Some(10)));
    assert_eq!(bounds("2026-01-05T13:00:00Z"), (Some(2), Some(10)));
    assert_eq!(bounds("2026-01-05T18:00:00Z"), (None, None));
    assert_eq!(bounds("2026-01-05T22:00:00Z"), (None, Some(NO_LIMIT)));
}

#[test]
fn windows_of_one_schedule_overlap_too() {
    let hourly = [schedule("0 * * * *", "UTC", 1.5, Some(1), None)];
    assert_eq!(floor(&hourly, "2026-01-05T09:59:59Z"), Some(1));
    let rare = schedule("0 */4 * * *", "UTC", 1.5, Some(1), None);
    assert_eq!(floor(&[rare], "2026-01-05T09:45:00Z"), None);
}

/// Europe/Berlin goes from 02:00 to 03:00 on 2026-03-29, and from 03:00 to 02:00 on 2026-10-25.
#[test]
fn the_clock_goes_forward() {
    let in_gap = schedule("30 2 * * *", "Europe/Berlin", 1.0, Some(1), None);
    let begins = |schedule: &Schedule, from: &str, n: usize| {
        let mut time = at(from);
        let mut all = Vec::new();
        for _ in 0..n {
            time = schedule.next_after(time).expect("a window").from;
            all.push(Timestamp::from_second(time).unwrap().to_string());
        }
        all
    };
    assert_eq!(
        begins(&in_gap, "2026-03-28T00:00:00Z", 3),
        [
            "2026-03-28T01:30:00Z",
            "2026-03-29T01:00:00Z",
            "2026-03-30T00:30:00Z"
        ],
        "right after the gap, at 03:00"
    );
    // By steps: what is skipped is left out.
    let steps = schedule("*/30 2 * * *", "Europe/Berlin", 1.0, Some(1), None);
    assert_eq!(
        begins(&steps, "2026-03-28T01:30:00Z", 2),
        ["2026-03-30T00:00:00Z", "2026-03-30T00:30:00Z"]
    );
    // A window is as long as it says, though the clock shows an hour more.
    let night = schedule("0 22 * * 6", "Europe/Berlin", 8.0, Some(1), None);
    let window = night.open_at(at("2026-03-29T04:59:59Z")).expect("open");
    assert_eq!(window.until, at("2026-03-29T05:00:00Z"), "07:00 instead of 06:00");
}

#[test]
fn the_clock_goes_back() {
    let twice = schedule("30 2 * * *", "Europe/Berlin", 0.25, Some(1), None);
    let open = |time: &str| twice.open_at(at(time)).is_some();
    assert!(open("2026-10-25T00:30:00Z") && open("2026-10-25T00:44:59Z"));
    assert!(
        !open("2026-10-25T01:30:00Z"),
        "02:30 comes again, and begins nothing"
    );
    assert!(!open("2026-10-25T00:45:00Z"));
    let steps = schedule("*/30 2 * * *", "Europe/Berlin", 0.25, Some(1), None);
    for time in ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"] {
        assert!(
            steps.open_at(at(time)).is_some(),
            "{time}: by steps it begins twice"
        );
    }
    let across = schedule("0 22 * * 6", "Europe/Berlin", 8.0, Some(1), None);
    let window = across.open_at(at("2026-10-25T00:00:00Z")).expect("open");
    assert_eq!(window.until, at("2026-10-25T04:00:00Z"), "05:00 instead of 06:00");
}

#[test]
fn leap_days() {
    let leap = schedule("0 0 29 2 *", "UTC", 24.0, Some(3), None);
    let next = leap.next_after(at("2025-01-01T00:00:00Z")).expect("a window");
    assert_eq!(next.from, at("2028-02-29T00:00:00Z"));
    assert!(leap.open_at(at("2028-02-29T23:59:59Z")).is_some());
    assert!(leap.open_at(at("2028-03-01T00:00:00Z")).is_none());
    assert!(
        leap.open_at(at("2100-02-28T12:00:00Z")).is_none(),
        "2100 has none"
    );
    let last = schedule("0 0 28 2 *", "UTC", 48.0, Some(3), None);
    assert!(last.open_at(at("2024-02-29T23:00:00Z")).is_some());
    assert!(last.open_at(at("2024-03-01T00:00:00Z")).is_none());
    assert!(last.open_at(at("2025-03-01T23:00:00Z")).is_some());
}

/// As in crontab(5): restricted both, either day suffices.
#[test]
fn either_day_suffices() {
    let either = schedule("0 0 13 * 5", "UTC", 24.0, Some(1), None);
    for (time, want) in [
        ("2026-11-13T12:00:00Z", true), // Friday the 13th
        ("2026-11-20T12:00:00Z", true), // a Friday
        ("2026-12-13T12:00:00Z", true), // a Sunday
        ("2026-12-14T12:00:00Z", false),
    ] {
        assert_eq!(either.open_at(at(time)).is_some(), want, "{time}");
    }
}

#[test]
fn a_window_counts_from_as_long_before_as_a_start_takes() {
    let schedules = [
        schedule("0 8 * * *", "UTC", 1.0, Some(2), Some(4)),
        schedule("0 9 * * *", "UTC", 1.0, None, Some(1)),
    ];
    let bounds = |time: &str, lead| ScheduleBounds::at(&schedules, at(time), lead);
    let (none, until) = bounds("2026-01-05T07:00:00Z", 30);
    assert_eq!((none.floor, until), (None, at("2026-01-05T07:59:30Z")));
    let (ahead, until) = bounds("2026-01-05T07:59:30Z", 30);
    assert_eq!((ahead.floor, ahead.ceiling), (Some(2), Some(4)));
    assert_eq!(until, at("2026-01-05T09:00:00Z"), "a ceiling alone comes on time");
    // Starts that take longer than the window lasts.
    let (ahead, _) = bounds("2026-01-05T05:59:59Z", 2 * 3600 + 1);
    assert_eq!(ahead.floor, Some(2));
    let mut clock = ScheduleClock::default();
    let lead = Duration::from_millis(29_500);
    assert_eq!(
        clock.bounds(&schedules, at("2026-01-05T07:59:29Z"), lead).floor,
        None
    );
    assert_eq!(
        clock.bounds(&schedules, at("2026-01-05T07:59:30Z"), lead).floor,
        Some(2)
    );
    assert_eq!(
        clock.bounds(&schedules, at("2026-01-05T07:00:00Z"), lead).floor,
        None,
        "set back"
    );
}

#[test]
fn a_floor_above_a_ceiling_is_found() {
    let office = |min, max| schedule("0 8 * * 1-5", "Europe/Berlin", 10.0, min, max);
    let noon = |min, max| schedule("0 12 * * *", "UTC", 1.0, min, max);
    let night = |min, max| schedule("0 22 * * *", "UTC", 1.0, min, max);
    for (name, schedules, min, max, want) in [
        ("within the base", vec![office(Some(2), None)], 0, Some(3), None),
        (
            "above the base",
            vec![office(Some(4), None)],
            0,
            Some(3),
            Some((0, 4, 3)),
        ),
        ("with its own", vec![office(Some(4), Some(9))], 0, Some(3), None),
        (
            "below the base's floor",
            vec![office(None, Some(1))],
            2,
            None,
            Some((0, 2, 1)),
        ),
        (
            "overlap",
            vec![office(Some(4), Some(9)), noon(None, Some(3))],
            0,
            None,
            Some((0, 4, 3)),
        ),
        (
            "apart",
            vec![office(Some(4), Some(9)), night(None, Some(3))],
            0,
            None,
            None,
        ),
        (
            "another one lifts the base's",
            vec![
                office(None, Some(9)),
                schedule("0 9 * * 1-5", "Europe/Berlin", 1.0, Some(5), None),
            ],
            0,
            Some(3),
            None,
        ),
        (
            "but for its end",
            vec![
                office(None, Some(9)),
                schedule("0 17 * * 1-5", "Europe/Berlin", 2.0, Some(5), None),
            ],
            0,
            Some(3),
            Some((0, 5, 3)),
        ),
        (
            "on a leap day",
            vec![
                schedule("0 0 29 2 *", "UTC", 24.0, Some(5), None),
                noon(None, Some(2)),
            ],
            0,
            None,
            Some((0, 5, 2)),
        ),
    ] {
        let found = conflict(&schedules, min, max).map(|c| (c.schedule, c.floor, c.ceiling));
        match want {
            None => assert_eq!(found, None, "{name}"),
            // Which one is named depends on whose edge comes first.
            Some((_, floor, ceiling)) => {
                assert_eq!(found.map(|f| (f.1, f.2)), Some((floor, ceiling)), "{name}");
            }
        }
    }
}

#[test]
fn what_is_no_pattern_is_told() {
    for (text, want) in [
        ("", "0 fields"),
        ("0 8 * *", "4 fields"),
        ("0 0 8 * * 1-5", "6 fields"),
        ("@daily", "five fields"),
        ("0 8 L * *", "'l'"),
        ("0 8 * * 5#2", "'#'"),
        ("0 8 ? * *", "'?'"),
        ("60 8 * * *", "the minute '60': number out of bounds"),
        ("0 8 30 2 *", "no such day"),
        ("0 8 * * tues", "'s'"),
        ("0 8 * * 8", "the weekday '8': "),
    ] {
        let why = parse_cron(text).expect_err(text);
        assert!(why.contains(want), "{text}: {why}");
    }
    for text in [
        "0 8 * * 1-5",
        "0 8 * JUL mon-fri",
        "*/5 0-6,22 1 1,7 *",
        "  0   8 * * 7 ",
    ] {
        assert!(parse_cron(text).is_ok(), "{text}");
    }
}

proptest! {
    /// Looking back finds what walking forward meets, whatever the clock does: over both changes of a year, in zones that
    /// shift by an hour, by half an hour (Lord Howe), and not at all.
    #[test]
    fn a_window_is_open_from_its_begin_for_its_length(
        (minute, hour, step) in (0_u32..60, 0_u32..24, 1_u32..4),
        zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Shanghai"]),
        change in prop::sample::select(vec!["2026-03-28T00:00:00Z", "2026-10-24T00:00:00Z", "2026-03-07T00:00:00Z",
            "2026-10-31T00:00:00Z", "2026-04-03T12:00:00Z", "2026-10-02T12:00:00Z"]),
        minutes in 5_u32..600,
        by_steps in any::<bool>(),
    ) {
        let cron = if by_steps { format!("{minute} */{step} * * *") } else { format!("{minute} {hour} * * *") };
        let schedule = schedule(&cron, zone, f64::from(minutes) / 60.0, None, None);
        let from = at(change);
        let mut windows = Vec::new();
        let mut time = from - 2 * 86_400;
        while let Some(window) = schedule.next_after(time).filter(|w| w.from < from + 3 * 86_400) {
            prop_assert!(window.from > time);
            time = window.from;
            windows.push(window);
        }
        let mut second = from;
        while second < from + 3 * 86_400 {
            let met = windows.iter().any(|w| w.from <= second && second < w.until);
            prop_assert_eq!(schedule.open_at(second).is_some(), met, "{} at {}", schedule,
                Timestamp::from_second(second).unwrap());
            second += 293;
        }
    }
}
