//! The plot: the part of bad candidates that is rolled back, by the time since their first request, as SVG.

use std::fmt::Write;

use super::Detection;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;

/// The time that is shown, in seconds.
const SECONDS: u32 = 180;

/// Which failure rates are shown, each in its colour; the highest curve first.
const SHOWN: [(f64, &str); 5] = [
    (0.5, "#862e9c"),
    (0.1, "#d9480f"),
    (0.05, "#2b8a3e"),
    (0.03, "#1864ab"),
    (0.02, "#868e96"),
];

/// Draws one curve for each failure rate.
pub fn plot(detections: &[Detection]) -> String {
    let x = |seconds: f64| LEFT + seconds / f64::from(SECONDS) * (WIDTH - LEFT - RIGHT);
    let y = |part: f64| HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Revisions rolled back by the time since their first request, by failure rate</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    // A String takes everything, here and below.
    for percent in (0..=100).step_by(20) {
        let at = y(f64::from(percent) / 100.0);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#e9ecef\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#495057\">{percent} %</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for seconds in (0..=SECONDS).step_by(30) {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#495057\">{seconds} s</text>",
            x(f64::from(seconds)),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"18\" fill=\"#212529\">rolled back, by the time since the first request; steps of 20 and 50 %, every 10 s, 50 requests/s</text>"
    );
    let mut label = f64::MIN;
    for (rate, colour) in SHOWN {
        let Some(detection) = detections.iter().find(|one| (one.rate - rate).abs() < 1e-9) else {
            continue;
        };
        let runs = detection.courses.len().max(1);
        let mut path = String::new();
        let mut last = 0.0;
        for seconds in 0..=SECONDS {
            let found = detection
                .courses
                .iter()
                .filter(|course| course.failed && course.seconds <= u64::from(seconds));
            let part = found.count() as f64 / runs as f64;
            let command = if seconds == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x(f64::from(seconds)), y(part));
            last = part;
        }
        // Labels of curves that end at the top stand one below the other.
        label = f64::max(label + 15.0, y(last) + 4.0);
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{:.0} % fail</text>",
            WIDTH - RIGHT + 6.0,
            label,
            rate * 100.0
        );
    }
    out.push_str("</svg>\n");
    out
}
