//! Rollouts in virtual time over many seeds: false alarms, detection times and requests hurt, as tables and a plot.

mod plot;

use std::fmt::Write;
use std::time::Duration;

use sluice_control::rollout::simulate::{Course, Scenario, play_all};

pub use plot::plot;

/// The seeds of each scenario in the docs: 0 to 9,999.
pub const RUNS: u64 = 10_000;

/// Failure rates of candidates next to a settled revision without failures.
const RATES: [f64; 9] = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0];

/// Factors by which candidates are slower.
const SLOWDOWNS: [f64; 4] = [1.5, 2.0, 3.0, 5.0];

/// Seconds for which a candidate is good before its fault begins, and its failure rate from then on.
const LATE: [(u64, f64); 4] = [(600, 0.1), (600, 1.0), (3_600, 0.1), (3_600, 1.0)];

/// A late fault takes an hour to play: fewer seeds of it.
const LATE_PART: u64 = 10;

/// Candidates with one failure rate.
#[derive(Debug)]
pub struct Detection {
    /// The failure rate.
    pub rate: f64,
    /// One for each seed.
    pub courses: Vec<Course>,
}

/// What all runs found.
#[derive(Debug)]
pub struct Findings {
    alarms: Vec<(String, f64, f64)>,
    detections: Vec<Detection>,
    slow: Vec<(f64, Vec<Course>)>,
    /// By the seconds before the fault and the failure rate, the seconds from the fault to the rollback.
    late: Vec<(u64, f64, Vec<Course>)>,
    /// Those that never answer, by the milliseconds after which clients leave.
    hanging: Vec<(u64, Vec<Course>)>,
}

/// Plays everything.
pub fn play(runs: u64) -> Findings {
    let failed = |courses: &[Course]| part(courses, |course| course.failed);
    let errors = |base_errors, candidate_errors| Scenario {
        base_errors,
        candidate_errors,
        ..Scenario::default()
    };
    let mut alarms = Vec::new();
    for rate in [0.0, 0.001, 0.005, 0.01, 0.02, 0.05] {
        let bound = f64::max(0.01, 2.0 * rate);
        let same = failed(&play_all(&errors(rate, rate), runs));
        let boundary = failed(&play_all(&errors(rate, bound), runs));
        let name = format!("{} % fail; at the limit {} %", rate * 100.0, bound * 100.0);
        alarms.push((name, same, boundary));
    }
    for spread in [0.2, 0.7, 1.5] {
        let latency = |slowdown| Scenario {
            slowdown,
            spread,
            ..slow(1.0)
        };
        let same = failed(&play_all(&latency(1.0), runs));
        let boundary = failed(&play_all(&latency(1.5), runs));
        let name = format!("log-normal durations, spread {spread}; at the limit 1.5 times as long");
        alarms.push((name, same, boundary));
    }
    let detections = RATES.into_iter().map(|rate| Detection {
        rate,
        courses: play_all(&errors(0.0, rate), runs),
    });
    let slow_ones = SLOWDOWNS
        .into_iter()
        .map(|factor| (factor, play_all(&slow(factor), runs)));
    let late = LATE.into_iter().map(|(good_for, rate)| {
        let mut courses = play_all(&Scenario::late(good_for, rate), (runs / LATE_PART).max(1));
        for course in &mut courses {
            course.seconds -= good_for.min(course.seconds);
        }
        (good_for, rate, courses)
    });
    let hanging = [200, 2_000, 10_000].into_iter().map(|millis| {
        let hangs = Scenario {
            hangs: Some(Duration::from_millis(millis)),
            ..slow(1.0)
        };
        (millis, play_all(&hangs, (runs / LATE_PART).max(1)))
    });
    Findings {
        alarms,
        detections: detections.collect(),
        late: late.collect(),
        hanging: hanging.collect(),
        slow: slow_ones.collect(),
    }
}

fn slow(slowdown: f64) -> Scenario {
    Scenario {
        base_latency: Some(Duration::from_millis(20)),
        slowdown,
        ..Scenario::default()
    }
}

impl Findings {
    /// Candidates by failure rate.
    pub fn detections(&self) -> &[Detection] {
        &self.detections
    }

    /// The tables of the docs.
    pub fn tables(&self) -> String {
        // A String takes everything, here and below.
        let mut out = String::from("| neither is worse | the same | at the limit |\n|---|---|---|\n");
        for (name, same, boundary) in &self.alarms {
            let _ = writeln!(
                out,
                "| {name} | {:.2} % | {:.2} % |",
                same * 100.0,
                boundary * 100.0
            );
        }
        out.push_str(
            "\n| the new revision fails | rolled back | within 30 s | within 3 min | median | 9 of 10 within | requests hurt | without a judge |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for Detection { rate, courses } in &self.detections {
            let _ = writeln!(
                out,
                "| {:.0} % | {} | {} | {} | {} | {:.0} | {:.0} |",
                rate * 100.0,
                percent(part(courses, |course| course.failed)),
                percent(part(courses, |course| course.failed && course.seconds <= 30)),
                percent(part(courses, |course| course.failed && course.seconds <= 180)),
                times(courses),
                mean(courses, |course| course.hurt),
                // Rate × share in the same three minutes: 20 and 50 % for 10 s each, then all.
                rate * 50.0 * (0.2 * 10.0 + 0.5 * 10.0 + 160.0),
            );
        }
        out.push_str(
            "\n| the new revision begins to fail | rolled back | within 10 s | within 30 s | median | 9 of 10 within | requests hurt |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for (good_for, rate, courses) in &self.late {
            let _ = writeln!(
                out,
                "| after {} min, {:.0} % | {} | {} | {} | {} | {:.0} |",
                good_for / 60,
                rate * 100.0,
                percent(part(courses, |course| course.failed)),
                percent(part(courses, |course| course.failed && course.seconds <= 10)),
                percent(part(courses, |course| course.failed && course.seconds <= 30)),
                times(courses),
                mean(courses, |course| course.hurt),
            );
        }
        out.push_str(
            "\n| the new revision takes | rolled back | within 30 s | median | 9 of 10 within |\n|---|---|---|---|---|\n",
        );
        for (factor, courses) in &self.slow {
            let _ = writeln!(
                out,
                "| {factor} times as long | {} | {} | {} |",
                percent(part(courses, |course| course.failed)),
                percent(part(courses, |course| course.failed && course.seconds <= 30)),
                times(courses),
            );
        }
        for (millis, courses) in &self.hanging {
            let _ = writeln!(
                out,
                "| for ever, clients leave after {millis} ms | {} | {} | {} |",
                percent(part(courses, |course| course.failed)),
                percent(part(courses, |course| course.failed && course.seconds <= 30)),
                times(courses),
            );
        }
        out
    }
}

/// The median and the 90th percentile of the time to a rollback, in two cells; of all runs, as a run without one takes for ever.
fn times(courses: &[Course]) -> String {
    let mut seconds: Vec<u64> = courses
        .iter()
        .filter(|course| course.failed)
        .map(|course| course.seconds)
        .collect();
    seconds.sort_unstable();
    let at = |tenths: usize| match seconds.get(courses.len() * tenths / 10) {
        Some(seconds) => format!("{seconds} s"),
        None => "–".to_owned(),
    };
    format!("{} | {}", at(5), at(9))
}

fn percent(part: f64) -> String {
    match part * 100.0 {
        all if all >= 99.995 => "100 %".to_owned(),
        some => format!("{some:.1} %"),
    }
}

fn part(courses: &[Course], what: impl Fn(&Course) -> bool) -> f64 {
    courses.iter().filter(|course| what(course)).count() as f64 / courses.len().max(1) as f64
}

fn mean(courses: &[Course], what: impl Fn(&Course) -> u64) -> f64 {
    courses.iter().map(what).sum::<u64>() as f64 / courses.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_plot_show_every_scenario() {
        let findings = play(4);
        let tables = findings.tables();
        assert_eq!(
            tables.lines().filter(|line| line.starts_with('|')).count(),
            9 + 9 + 4 + 4 + 3 + 8
        );
        assert!(tables.contains("| 100 % | 100 % | 100 % | 100 % |"), "{tables}");
        let svg = plot(findings.detections());
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
