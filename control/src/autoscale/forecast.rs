//! Seasonal-naive forecast of a revision's load: what came at this time of earlier seasons comes again.
//!
//! A season (a day) is cut into [`BINS`] bins. Of each bin the highest load is kept, smoothed over some seconds, for the last
//! [`KEPT`] seasons; the forecast of a bin is the median of those, so that one odd day changes nothing. A
//! day that is far quieter is not served like the others: the forecast shrinks by what the last bins fell short. A season counts only
//! when each of its bins was seen: a day on which the gateway did not run, or only in part, teaches nothing.
//!
//! Pure: time is an argument, in seconds since 1970. Bins are aligned to UTC. Memory is bounded: some 5 KiB.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::plan::Metric;

/// Bins of a season: 5 minutes of a day.
pub(crate) const BINS: usize = 288;

/// Seasons that are kept.
const KEPT: usize = 3;

/// The share of a bin's seconds that must have been seen, in percent: a restart of some seconds costs no day.
const SEEN_PERCENT: u64 = 90;

/// The weight of a new second in the smoothed load. The noise of single seconds is what starts instances, so most of it
/// counts; a request that is there for a part of a second counts less.
const NEWEST: f64 = 0.6;

/// The longest gap between two observations that counts as seen.
const LONGEST_GAP: u64 = 10;

/// Bins that tell how today compares with other days: an hour of a day.
const COMPARED: usize = 12;

/// The share of the usual load below which a day counts as quieter: less is noise, or a burst that is late.
const QUIETER: f64 = 0.6;

/// The least share: however quiet it is, what comes at this time may come.
const LEAST_SHARE: f64 = 0.1;

/// The version of [`Saved`].
const VERSION: u32 = 1;

/// The load of the last seasons, and of the present one so far.
#[derive(Debug, Clone)]
pub(crate) struct Forecast {
    /// In seconds.
    season: u64,
    metric: Metric,
    /// The highest load of each bin, the oldest season first.
    past: VecDeque<Box<[f32]>>,
    current: Season,
    smoothed: f64,
    /// The last observation; 0 before the first one.
    last: u64,
}

/// A season that is not over.
#[derive(Debug, Clone)]
struct Season {
    /// Seasons since 1970.
    index: u64,
    peaks: Box<[f32]>,
    /// Seconds of each bin that were seen.
    seen: Box<[u32]>,
}

impl Season {
    fn new(index: u64) -> Self {
        Self {
            index,
            peaks: vec![0.0; BINS].into(),
            seen: vec![0; BINS].into(),
        }
    }
}

/// The end of a season.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeasonEnd {
    /// The season was seen whole, and is learned from.
    pub(crate) whole: bool,
}

impl Forecast {
    /// A forecast that has seen nothing. `season` is in seconds, at least [`BINS`].
    pub(crate) fn new(season: u64, metric: Metric) -> Self {
        Self {
            season: season.max(BINS as u64),
            metric,
            past: VecDeque::new(),
            current: Season::new(0),
            smoothed: 0.0,
            last: 0,
        }
    }

    /// Whether the forecast is of this season and metric.
    pub(crate) fn is_for(&self, season: u64, metric: Metric) -> bool {
        (self.season, self.metric) == (season.max(BINS as u64), metric)
    }

    /// Whether the other forecast is of the same season and metric.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.season, self.metric) == (other.season, other.metric)
    }

    /// Whole seasons that are known.
    pub(crate) fn seasons(&self) -> usize {
        self.past.len()
    }

    /// Takes the load of the time since the last observation, which ends at `at`. Returns the end of a season, where one ended
    /// in between. A clock that was set back is waited for; after a longer gap the time in between counts as not seen.
    pub(crate) fn observe(&mut self, at: u64, load: f64) -> Option<SeasonEnd> {
        if at <= self.last {
            if self.last - at > self.season {
                // Set back by more than a season: what is known of the present one is of another time.
                self.current = Season::new(at / self.season);
                self.last = at;
            }
            return None;
        }
        if self.last == 0 {
            self.current = Season::new(at / self.season);
        }
        let first = if at - self.last > LONGEST_GAP {
            at
        } else {
            self.last + 1
        };
        self.last = at;
        self.smoothed += NEWEST * (load.max(0.0) - self.smoothed);
        let mut end = None;
        for second in first..=at {
            end = self.roll(second / self.season).or(end);
            let bin = self.bin(second);
            self.current.seen[bin] += 1;
            #[allow(
                clippy::cast_possible_truncation,
                reason = "seven digits of a load are plenty"
            )]
            let load = self.smoothed as f32;
            self.current.peaks[bin] = self.current.peaks[bin].max(load);
        }
        end
    }

    /// The highest load that is expected from `from` to `until`; `None` before a whole season was seen. Half a bin on either side
    /// counts too: what comes at a time does not come at the second.
    pub(crate) fn expected(&self, from: u64, until: u64) -> Option<f64> {
        if self.past.is_empty() {
            return None;
        }
        let (width, share) = (self.width(), self.share(from));
        let (from, until) = (from.saturating_sub(width / 2), until.saturating_add(width / 2));
        let first = self.bin(from);
        let bins = usize::try_from((from % self.season % width + (until - from)) / width + 1).unwrap_or(BINS);
        let bins = (0..bins.min(BINS)).map(|n| self.typical((first + n) % BINS));
        Some(bins.fold(0.0, f64::max) * share)
    }

    /// The share of the usual load that the last bins of this season had; 1 unless it is far less.
    fn share(&self, at: u64) -> f64 {
        if at / self.season != self.current.index {
            return 1.0;
        }
        let now = self.bin(at);
        // What was not seen says nothing, and a few bins do not either.
        let enough = self.width() * SEEN_PERCENT / 100;
        let seen =
            (now.saturating_sub(COMPARED)..now).filter(|&bin| u64::from(self.current.seen[bin]) >= enough);
        let (mut usual, mut came, mut bins) = (0.0, 0.0, 0);
        for bin in seen {
            usual += self.typical(bin);
            came += f64::from(self.current.peaks[bin]);
            bins += 1;
        }
        // Where usually not even one request is in flight, chance decides what comes in an hour.
        let says_something = bins >= COMPARED / 2 && usual >= COMPARED as f64;
        match came / usual {
            share if says_something && share < QUIETER => share.max(LEAST_SHARE),
            _ => 1.0,
        }
    }

    fn roll(&mut self, index: u64) -> Option<SeasonEnd> {
        if index == self.current.index {
            return None;
        }
        let fresh = Season::new(index);
        let over = std::mem::replace(&mut self.current, fresh);
        let whole = index == over.index + 1 && self.is_whole(&over);
        if whole {
            if self.past.len() == KEPT {
                self.past.pop_front();
            }
            self.past.push_back(over.peaks);
        }
        Some(SeasonEnd { whole })
    }

    fn is_whole(&self, season: &Season) -> bool {
        let width = self.width();
        let mut bins = season.seen.iter().zip(0..);
        bins.all(|(&seen, nth)| {
            // The last bins are shorter, or empty, where the season is no multiple of their number.
            let seconds = self.season.saturating_sub(nth * width).min(width);
            u64::from(seen) * 100 >= seconds * SEEN_PERCENT
        })
    }

    /// The median over the seasons; of two, the lower one.
    fn typical(&self, bin: usize) -> f64 {
        let mut values = [0.0_f32; KEPT];
        let known = self.past.iter().map(|season| season[bin]);
        for (value, seen) in values.iter_mut().zip(known) {
            *value = seen;
        }
        let values = &mut values[..self.past.len()];
        values.sort_unstable_by(f32::total_cmp);
        values
            .get((values.len().max(1) - 1) / 2)
            .copied()
            .map_or(0.0, f64::from)
    }

    fn bin(&self, second: u64) -> usize {
        let nth = second % self.season / self.width();
        usize::try_from(nth).unwrap_or(0).min(BINS - 1)
    }

    /// The seconds of a bin.
    fn width(&self) -> u64 {
        self.season.div_ceil(BINS as u64)
    }
}

/// A forecast as a document.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saved {
    version: u32,
    season_seconds: u64,
    metric: SavedMetric,
    /// The highest load of each bin, the oldest season first.
    seasons: Vec<Vec<f32>>,
    current: SavedSeason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum SavedMetric {
    Concurrency,
    Rps,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SavedSeason {
    index: u64,
    peaks: Vec<f32>,
    seen: Vec<u32>,
    last: u64,
}

impl From<&Forecast> for Saved {
    fn from(forecast: &Forecast) -> Self {
        Self {
            version: VERSION,
            season_seconds: forecast.season,
            metric: match forecast.metric {
                Metric::Concurrency => SavedMetric::Concurrency,
                Metric::Rps => SavedMetric::Rps,
            },
            seasons: forecast.past.iter().map(|season| season.to_vec()).collect(),
            current: SavedSeason {
                index: forecast.current.index,
                peaks: forecast.current.peaks.to_vec(),
                seen: forecast.current.seen.to_vec(),
                last: forecast.last,
            },
        }
    }
}

impl TryFrom<Saved> for Forecast {
    type Error = &'static str;

    /// Checks what a file says: it may be damaged, or another version's.
    fn try_from(saved: Saved) -> Result<Self, &'static str> {
        if saved.version != VERSION {
            return Err("it has another version");
        }
        if saved.season_seconds < BINS as u64 || saved.seasons.len() > KEPT {
            return Err("its seasons are out of range");
        }
        let current = &saved.current;
        let sound =
            |bins: &[f32]| bins.len() == BINS && bins.iter().all(|load| load.is_finite() && *load >= 0.0);
        let seasons = saved.seasons.iter().all(|season| sound(season));
        if !seasons || !sound(&current.peaks) || current.seen.len() != BINS {
            return Err("its bins are damaged");
        }
        let width = saved.season_seconds.div_ceil(BINS as u64);
        if current.seen.iter().any(|&seen| u64::from(seen) > width)
            || current.last / saved.season_seconds > current.index
        {
            return Err("its present season is damaged");
        }
        let metric = match saved.metric {
            SavedMetric::Concurrency => Metric::Concurrency,
            SavedMetric::Rps => Metric::Rps,
        };
        Ok(Self {
            past: saved.seasons.into_iter().map(Into::into).collect(),
            current: Season {
                index: current.index,
                peaks: saved.current.peaks.into(),
                seen: saved.current.seen.into(),
            },
            last: saved.current.last,
            ..Self::new(saved.season_seconds, metric)
        })
    }
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
