//! An invented week of load: quiet nights, two peaks a day, bursts, noise, and one odd day.

/// Seconds of a day.
pub const DAY: usize = 86_400;

/// The first second: a Monday, 00:00 UTC.
pub const ORIGIN: u64 = 1_767_571_200;

/// The seed of the week in the docs.
pub const SEED: u64 = 14;

/// The odd one: a day off, with a fraction of the load.
const DAY_OFF: usize = 4;

/// Jobs of others that call at a time of day, every day, some minutes early or late: hour, requests at a time, seconds.
const DAILY: [(f64, f64, f64); 5] = [
    (2.0, 35.0, 240.0),
    (5.5, 60.0, 300.0),
    (13.0, 80.0, 180.0),
    (16.0, 60.0, 240.0),
    (23.25, 45.0, 300.0),
];

/// Requests in flight in each second of seven days.
pub fn week(seed: u64) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut load = Vec::with_capacity(7 * DAY);
    // Requests that arrived keep going for some seconds: the load of a second depends on the one before.
    let mut swing = 0.0_f64;
    for day in 0..7 {
        // No day is like another: its height, and when it begins.
        let height = 0.85 + 0.3 * rng.f64() - if day == DAY_OFF { 0.7 } else { 0.0 };
        let shift = (rng.f64() - 0.5) * 0.2;
        let bursts = bursts(&mut rng, day);
        let night = night_visits(&mut rng);
        for second in 0..DAY {
            #[allow(clippy::cast_precision_loss)]
            let hour = second as f64 / 3600.0;
            let mut mean = height * shape(hour + shift);
            for burst in &bursts {
                if burst.covers(second) {
                    mean += burst.height;
                }
            }
            // Noise: an autoregressive swing of some 5 %, and chance arrivals.
            swing = 0.98 * swing + 0.02 * 4.0 * gaussian(&mut rng);
            mean *= (1.0 + 0.12 * swing).max(0.0);
            let mut now = poisson(&mut rng, mean);
            if night.iter().any(|visit| (visit.0..visit.1).contains(&second)) {
                now = now.max(1);
            }
            load.push(now);
        }
    }
    load
}

/// The load of an ordinary day, at an hour: nothing by night, peaks of 90 at ten and of 120 at eight in the evening.
fn shape(hour: f64) -> f64 {
    let bell = |centre: f64, width: f64| (-((hour - centre) / width).powi(2)).exp();
    let day = 15.0 * (smooth(hour, 6.5) - smooth(hour, 22.5));
    let load = day.max(0.0) + 75.0 * bell(10.3, 1.1) + 105.0 * bell(20.2, 1.2);
    if load < 0.3 { 0.0 } else { load }
}

/// From 0 to 1 around an hour, within some ten minutes.
fn smooth(hour: f64, at: f64) -> f64 {
    1.0 / (1.0 + (-(hour - at) * 20.0).exp())
}

struct Burst {
    from: usize,
    seconds: usize,
    height: f64,
}

impl Burst {
    fn covers(&self, second: usize) -> bool {
        (self.from..self.from + self.seconds).contains(&second)
    }
}

/// Those that come every day, and three that nobody can know.
fn bursts(rng: &mut fastrand::Rng, day: usize) -> Vec<Burst> {
    let burst = |hour: f64, height: f64, seconds: f64| Burst {
        from: to_second(hour * 3600.0),
        seconds: to_second(seconds),
        height,
    };
    let mut all = Vec::new();
    for (hour, height, seconds) in DAILY {
        if day == DAY_OFF && (8.0..18.0).contains(&hour) {
            continue;
        }
        let late = (rng.f64() - 0.5) * 240.0 / 3600.0;
        all.push(burst(hour + late, height * (0.8 + 0.4 * rng.f64()), seconds));
    }
    for _ in 0..3 {
        all.push(burst(
            rng.f64() * 23.9,
            20.0 + 40.0 * rng.f64(),
            60.0 + 120.0 * rng.f64(),
        ));
    }
    all
}

/// Single requests by night, some minutes apart, each for some seconds; more of them at the hour, when clients poll.
fn night_visits(rng: &mut fastrand::Rng) -> Vec<(usize, usize)> {
    let mut visits = Vec::new();
    for hour in [0_usize, 1, 3, 4, 6, 23] {
        // Clients that poll at the hour.
        let from = hour * 3600 + rng.usize(0..90);
        visits.push((from, from + 5));
    }
    for _ in 0..4 {
        let from = rng.usize(0..6 * 3600);
        visits.push((from, from + 3));
    }
    visits
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn to_second(seconds: f64) -> usize {
    seconds.max(0.0) as usize
}

/// Box and Muller's.
fn gaussian(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// Knuth's by multiplication, and the normal approximation where that takes long.
fn poisson(rng: &mut fastrand::Rng, mean: f64) -> u32 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    if mean > 30.0 {
        return (mean + mean.sqrt() * gaussian(rng)).round().max(0.0) as u32;
    }
    let limit = (-mean).exp();
    let (mut n, mut product) = (0, rng.f64());
    while product > limit {
        n += 1;
        product *= rng.f64();
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_week_is_what_it_says() {
        let load = week(SEED);
        assert_eq!(load, week(SEED), "the same again");
        assert_ne!(load, week(SEED + 1));
        let mean = |day: usize, from: usize, until: usize| {
            let seconds = &load[day * DAY + from * 3600..day * DAY + until * 3600];
            seconds.iter().map(|&n| f64::from(n)).sum::<f64>() / seconds.len() as f64
        };
        for day in [0, 3, 6] {
            assert!(mean(day, 3, 5) < 5.0, "a quiet night");
            assert!(mean(day, 10, 11) > 50.0 && mean(day, 20, 21) > 80.0, "two peaks");
            assert!(mean(day, 14, 16) < 40.0);
        }
        assert!(mean(DAY_OFF, 10, 11) < 50.0, "a day off");
    }
}
