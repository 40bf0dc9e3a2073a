//! Metrics of scale decisions: floors by what sets them, instance-seconds, and what observe mode counts.

use super::LiveGauges;
use super::exposition::Exposition;
use super::families::{INSTANCE_SECONDS, OBSERVED_COLD_STARTS, OBSERVED_INSTANCE_SECONDS, SCALE_FLOOR};

/// Writes them for every revision that is scaled. A floor that nobody sets, and one of 0, has no series.
pub(super) fn expose(out: &mut Exposition, gauges: &LiveGauges) {
    let scaled = || {
        let loads = gauges.loads.iter();
        loads.filter_map(|load| Some((load, gauges.scaling.get(&load.revision)?)))
    };
    let mut floors = out.family(&SCALE_FLOOR);
    for (load, scaling) in scaled() {
        let wants = &scaling.wants;
        for (source, floor) in [
            ("schedule", wants.schedule),
            ("forecast", wants.forecast),
            ("rollout", wants.rollout),
            ("minScale", Some(wants.min_scale)),
        ] {
            if let Some(floor) = floor.filter(|floor| *floor > 0) {
                floors.sample(format_args!("{load},source=\"{source}\""), floor);
            }
        }
    }
    let mut seconds = out.family(&INSTANCE_SECONDS);
    for (load, scaling) in scaled() {
        seconds.sample(format_args!("{load}"), scaling.instance_seconds);
    }
    let observed = || scaled().filter_map(|(load, scaling)| Some((load, scaling.observed.as_ref()?)));
    let mut seconds = out.family(&OBSERVED_INSTANCE_SECONDS);
    for (load, observed) in observed() {
        seconds.sample(format_args!("{load}"), observed.instance_seconds);
    }
    let mut cold = out.family(&OBSERVED_COLD_STARTS);
    for (load, observed) in observed() {
        cold.sample(format_args!("{load}"), observed.cold_starts);
    }
}
