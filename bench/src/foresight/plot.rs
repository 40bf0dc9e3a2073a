//! The plot: the load of two days and the instances that each policy wanted, as SVG.

use std::fmt::Write;

use super::{Comparison, DAY, Run};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 34.0;

/// What is shown: the fourth day, the first that is counted, and the fifth, which is odd.
const DAYS: std::ops::Range<usize> = 3..5;

/// Draws the load, divided by what one instance takes, and the policies on top.
pub fn plot(comparison: &Comparison, load: &[u32], capacity: f64) -> String {
    let (from, until) = (DAYS.start * DAY, DAYS.end * DAY);
    let series = |run: &Run| -> Vec<f64> {
        let steps = run.wanted.iter().map(|&n| f64::from(n));
        steps
            .skip(from / Run::STEP)
            .take((until - from) / Run::STEP)
            .collect()
    };
    let needed: Vec<f64> = load[from..until]
        .chunks(Run::STEP)
        .map(|minute| minute.iter().map(|&n| f64::from(n)).fold(0.0, f64::max) / capacity)
        .collect();
    let lines = [
        ("forecast", "#d9480f", series(&comparison.forecast)),
        ("load alone", "#1864ab", series(&comparison.reactive)),
    ];
    let all = lines.iter().flat_map(|(_, _, values)| values).chain(&needed);
    let most = all.fold(1.0_f64, |most, &value| most.max(value)).ceil() + 1.0;
    let points = needed.len();
    #[allow(clippy::cast_precision_loss)]
    let x = |nth: usize| LEFT + nth as f64 / points as f64 * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Instances wanted over two days: with a forecast, and by the load alone</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    // A String takes everything, here and below.
    let mut mark = 0.0;
    while mark <= most {
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {0:.1}H{1:.1}\" stroke=\"#e9ecef\"/><text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\" fill=\"#495057\">{mark}</text>",
            y(mark),
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(mark) + 4.0
        );
        mark += 5.0;
    }
    for hour in (0..=(until - from) / 3600).step_by(6) {
        let at = x(hour * 3600 / Run::STEP);
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {TOP}V{0:.1}\" stroke=\"#e9ecef\"/><text x=\"{at:.1}\" y=\"{1:.1}\" text-anchor=\"middle\" fill=\"#495057\">{2:02}:00</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            hour % 24
        );
    }
    let mut area = format!("M{:.1} {:.1}", x(0), y(0.0));
    for (nth, value) in needed.iter().enumerate() {
        let _ = write!(area, "L{:.1} {:.1}", x(nth), y(*value));
    }
    let _ = writeln!(
        out,
        "<path d=\"{area}L{:.1} {:.1}Z\" fill=\"#ced4da\"/>",
        x(points),
        y(0.0)
    );
    for (_, colour, values) in &lines {
        let mut path = String::new();
        let mut last = None;
        for (nth, value) in values.iter().enumerate() {
            if last != Some(*value) {
                let start = if last.is_none() { "M" } else { "H" };
                match last {
                    None => _ = write!(path, "{start}{:.1} {:.1}", x(nth), y(*value)),
                    Some(_) => _ = write!(path, "{start}{:.1}V{:.1}", x(nth), y(*value)),
                }
                last = Some(*value);
            }
        }
        let _ = writeln!(
            out,
            "<path d=\"{path}H{:.1}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            x(points)
        );
    }
    let legend = [("load / what one instance takes", "#adb5bd")]
        .into_iter()
        .chain(lines.iter().map(|(name, colour, _)| (*name, *colour)));
    let mut at = LEFT;
    for (name, colour) in legend {
        let _ = writeln!(
            out,
            "<rect x=\"{at:.0}\" y=\"16\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{0:.0}\" y=\"26\" fill=\"#212529\">{name}</text>",
            at + 18.0
        );
        #[allow(clippy::cast_precision_loss)]
        {
            at += 44.0 + 6.6 * name.len() as f64;
        }
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Outcome, run};
    use super::*;

    #[test]
    fn the_picture_has_both_lines() {
        let load = vec![5; 7 * DAY];
        let one = run("", super::super::plan("{}"), &load);
        assert_eq!(
            one.counted.cold_starts,
            Outcome::default().cold_starts,
            "it never stops"
        );
        let comparison = Comparison {
            reactive: one.clone(),
            forecast: one.clone(),
            constant: one.clone(),
            schedules: one,
        };
        let svg = plot(&comparison, &load, 10.0);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        for want in ["forecast", "load alone", "06:00", "#d9480f"] {
            assert!(svg.contains(want), "{want}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
