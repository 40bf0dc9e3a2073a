//! Days of load, second by second.

use super::*;

const DAY: u64 = 86_400;
/// A midnight.
const START: u64 = 20_000 * DAY;

fn hour(at: u64) -> u64 {
    at % DAY / 3600
}

fn office(at: u64) -> f64 {
    if (8..18).contains(&hour(at)) { 40.0 } else { 0.0 }
}

fn watch(
    forecast: &mut Forecast,
    seconds: std::ops::Range<u64>,
    load: impl Fn(u64) -> f64,
) -> Vec<SeasonEnd> {
    seconds.filter_map(|at| forecast.observe(at, load(at))).collect()
}

fn new() -> Forecast {
    Forecast::new(DAY, Metric::Concurrency)
}

fn expected(forecast: &Forecast, hours: f64) -> Option<f64> {
    let at = START + 10 * DAY + (hours * 3600.0) as u64;
    forecast.expected(at, at).map(f64::round)
}

#[test]
fn what_came_at_this_time_comes_again() {
    let mut forecast = new();
    watch(&mut forecast, START..START + DAY, office);
    assert_eq!(expected(&forecast, 12.0), None, "the day is not over");
    let ends = watch(&mut forecast, START + DAY..START + DAY + 1, office);
    assert_eq!(ends, [SeasonEnd { whole: true }]);
    for (hours, want) in [
        (3.0, 0.0),
        (7.8, 0.0),
        (7.97, 40.0),
        (12.0, 40.0),
        (17.9, 40.0),
        (18.2, 0.0),
        (23.9, 0.0),
    ] {
        assert_eq!(expected(&forecast, hours), Some(want), "{hours}");
    }
    // As far ahead as a start takes.
    let at = START + 10 * DAY + 7 * 3600;
    assert_eq!(forecast.expected(at, at + 3600).map(f64::round), Some(40.0));
    // Over midnight.
    let late = START + 11 * DAY - 60;
    assert_eq!(
        forecast.expected(late, late + 9 * 3600).map(f64::round),
        Some(40.0)
    );
}

#[test]
fn a_day_that_was_not_seen_whole_teaches_nothing() {
    let mut forecast = new();
    // From noon on.
    let ends = watch(&mut forecast, START + DAY / 2..START + DAY + 1, office);
    assert_eq!(ends.last(), Some(&SeasonEnd { whole: false }));
    assert_eq!(forecast.seasons(), 0);
    // An outage of an hour, and one that takes the end of the day with it.
    watch(&mut forecast, START + DAY + 1..START + DAY + 3600, office);
    let ends = watch(&mut forecast, START + DAY + 7200..START + 2 * DAY + 1, office);
    assert_eq!(ends, [SeasonEnd { whole: false }]);
    watch(&mut forecast, START + 2 * DAY + 1..START + 3 * DAY - 3600, office);
    let ends = watch(&mut forecast, START + 4 * DAY..START + 4 * DAY + 1, office);
    assert_eq!((ends, forecast.seasons()), (vec![SeasonEnd { whole: false }], 0));
    // A restart of some seconds costs nothing.
    watch(&mut forecast, START + 4 * DAY + 1..START + 4 * DAY + 3600, office);
    let ends = watch(&mut forecast, START + 4 * DAY + 3620..START + 5 * DAY + 1, office);
    assert_eq!((ends, forecast.seasons()), (vec![SeasonEnd { whole: true }], 1));
}

#[test]
fn one_odd_day_changes_nothing() {
    let mut forecast = new();
    let holiday = 3;
    watch(&mut forecast, START..START + 5 * DAY + 1, |at| {
        match (at - START) / DAY {
            day if day == holiday => 400.0 - 10.0 * office(at),
            _ => office(at),
        }
    });
    assert_eq!(expected(&forecast, 12.0), Some(40.0));
    assert_eq!(expected(&forecast, 3.0), Some(0.0));
}

#[test]
fn a_quiet_day_is_not_served_like_others() {
    let mut forecast = new();
    watch(&mut forecast, START..START + 2 * DAY, office);
    let noon = START + 2 * DAY + 12 * 3600;
    let expected = |forecast: &Forecast| forecast.expected(noon, noon + 5).unwrap();
    let mut holiday = forecast.clone();
    watch(&mut holiday, START + 2 * DAY..noon, |at| office(at) / 8.0);
    assert!((4.0..7.0).contains(&expected(&holiday)), "{}", expected(&holiday));
    let mut dead = forecast.clone();
    watch(&mut dead, START + 2 * DAY..noon, |_| 0.0);
    assert_eq!(expected(&dead).round(), 4.0, "a tenth is always expected");
    // What was not seen says nothing.
    assert_eq!(expected(&forecast).round(), 40.0);
    // Three quarters of the usual are noise.
    watch(&mut forecast, START + 2 * DAY..noon, |at| office(at) * 0.75);
    assert_eq!(expected(&forecast).round(), 40.0);
}

#[test]
fn a_spike_of_a_second_counts_in_part() {
    let mut forecast = new();
    watch(&mut forecast, START..START + DAY + 1, |at| {
        if at % 300 == 7 { 100.0 } else { 0.0 }
    });
    let expected = expected(&forecast, 12.0).unwrap();
    assert!((50.0..70.0).contains(&expected), "{expected}");
}

#[test]
fn a_clock_that_jumps_breaks_nothing() {
    let mut forecast = new();
    watch(&mut forecast, START..START + 3600, office);
    assert_eq!(forecast.observe(START + 1800, 1.0), None, "an hour is seen once");
    watch(&mut forecast, START + 1800..START + DAY + 1, office);
    assert_eq!(forecast.seasons(), 1);
    assert_eq!(forecast.observe(START - 5 * DAY, 1.0), None);
    let ends = watch(&mut forecast, START - 5 * DAY + 1..START - 3 * DAY + 1, office);
    assert_eq!(ends.last(), Some(&SeasonEnd { whole: true }));
}

#[test]
fn a_document_brings_all_of_it_back() {
    let mut forecast = new();
    watch(&mut forecast, START..START + DAY + 7200, office);
    let text = serde_json::to_vec(&Saved::from(&forecast)).unwrap();
    let saved: Saved = serde_json::from_slice(&text).unwrap();
    let mut back = Forecast::try_from(saved).unwrap();
    assert!(back.is_for(DAY, Metric::Concurrency) && !back.is_for(DAY, Metric::Rps));
    assert_eq!(expected(&back, 12.0), expected(&forecast, 12.0));
    let ends = watch(&mut back, START + DAY + 7205..START + 2 * DAY + 1, office);
    assert_eq!(
        (ends, back.seasons()),
        (vec![SeasonEnd { whole: true }], 2),
        "the day goes on"
    );
}

#[test]
fn a_damaged_document_is_refused() {
    let mut forecast = new();
    watch(&mut forecast, START..START + DAY + 1, office);
    let sound = serde_json::to_value(Saved::from(&forecast)).unwrap();
    let refused = |edit: &dyn Fn(&mut serde_json::Value)| {
        let mut value = sound.clone();
        edit(&mut value);
        let saved = serde_json::from_value::<Saved>(value).map_err(|_| "no document");
        saved.and_then(Forecast::try_from).is_err()
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|value| value["version"] = 2.into()));
    assert!(refused(&|value| value["seasonSeconds"] = 0.into()));
    assert!(refused(&|value| value["seasons"][0][5] = (-1.0).into()));
    assert!(refused(&|value| value["seasons"][0] = Vec::<f32>::new().into()));
    assert!(refused(&|value| value["current"]["seen"][5] = 3_000_000.into()));
    assert!(refused(&|value| value["current"]["last"] = u64::MAX.into()));
    assert!(refused(
        &|value| value["current"]["peaks"] = serde_json::Value::Null
    ));
}

#[test]
fn seasons_that_are_no_multiple_of_the_bins_are_seen_whole_too() {
    for season in [3600, 7 * DAY, 100_003] {
        let mut forecast = Forecast::new(season, Metric::Rps);
        let start = 1_000 * season;
        let ends = watch(&mut forecast, start..start + season + 1, |_| 7.0);
        assert_eq!(ends, [SeasonEnd { whole: true }], "{season}");
        assert_eq!(
            forecast.expected(start, start).map(f64::round),
            Some(7.0),
            "{season}"
        );
    }
}
