//! Statistics of the results: percentiles, medians and the spread over rounds.

use serde_json::Value;

/// The nearest-rank percentile of sorted values: the smallest value that at least `percent` of all values do not
/// exceed. Always a measured value, never an interpolated one.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    debug_assert!(sorted.is_sorted());
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Values in ascending order.
pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The median of some rounds with minimum and maximum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// The spread; `None` without values. The median of an even number of values is the mean of the two in the
    /// middle.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values = sorted(values.into_iter().collect());
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }

    /// Formatted as `12.3 [11.9-14.0]`.
    pub(crate) fn text(spread: Option<Self>, digits: usize) -> String {
        spread.map_or_else(
            || "-".to_owned(),
            |s| format!("{:.digits$} [{:.digits$}-{:.digits$}]", s.median, s.min, s.max),
        )
    }
}

/// The samples of one kind, by round, for percentiles over all rounds and for their spread.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    rounds: Vec<Vec<f64>>,
}

impl Samples {
    pub(crate) fn add_round(&mut self, values: Vec<f64>) {
        self.rounds.push(sorted(values));
    }

    /// Splits values, in the order of measurement, into `blocks` consecutive rounds.
    pub(crate) fn blocks(values: &[f64], blocks: usize) -> Self {
        let mut samples = Self::default();
        for block in values.chunks(values.len().div_ceil(blocks).max(1)) {
            samples.add_round(block.to_vec());
        }
        samples
    }

    /// The percentile over all rounds together.
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        percentile(&sorted(self.rounds.concat()), percent)
    }

    /// The spread over the rounds of each round's percentile.
    pub(crate) fn spread(&self, percent: f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| percentile(round, percent)))
    }

    pub(crate) fn count(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }

    /// The samples rounded to three decimals: finer digits are noise, and the files are kept.
    pub(crate) fn raw(&self) -> Value {
        let rounded = |round: &Vec<f64>| -> Value { round.iter().map(|v| (v * 1e3).round() / 1e3).collect() };
        self.rounds.iter().map(rounded).collect()
    }
}

/// A number; `-` if it was not measured.
pub(crate) fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50.0), Some(50.0));
        assert_eq!(percentile(&hundred, 99.0), Some(99.0));
        assert_eq!(percentile(&hundred, 99.9), Some(100.0));
        assert_eq!(percentile(&hundred, 100.0), Some(100.0));
        assert_eq!(percentile(&hundred, 0.0), Some(1.0));
        assert_eq!(percentile(&[7.0], 1.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
        // With ten samples p99 is the largest one: nothing is interpolated.
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(percentile(&ten, 99.0), Some(10.0));
        assert_eq!(percentile(&ten, 90.0), Some(9.0));
    }

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        let odd = Spread::of([3.0, 1.0, 2.0]).expect("values");
        assert_eq!((odd.min, odd.median, odd.max), (1.0, 2.0, 3.0));
        let even = Spread::of([4.0, 1.0, 2.0, 3.0]).expect("values");
        assert_eq!((even.min, even.median, even.max), (1.0, 2.5, 4.0));
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::text(Some(even), 1), "2.5 [1.0-4.0]");
        assert_eq!(Spread::text(None, 1), "-");
    }

    #[test]
    fn samples_are_pooled_for_the_figure_and_kept_apart_for_the_spread() {
        let mut samples = Samples::default();
        samples.add_round(vec![5.0, 1.0, 3.0]);
        samples.add_round(vec![9.0, 7.0, 8.0]);
        assert_eq!(samples.count(), 6);
        assert_eq!(samples.percentile(50.0), Some(5.0));
        let spread = samples.spread(50.0).expect("two rounds");
        assert_eq!((spread.min, spread.median, spread.max), (3.0, 5.5, 8.0));
        assert_eq!(number(samples.percentile(100.0), 2), "9.00");
        assert_eq!(number(None, 2), "-");
        let blocks = Samples::blocks(&[4.0, 2.0, 9.0, 9.0, 1.0], 3);
        assert_eq!(blocks.raw(), json!([[2.0, 4.0], [9.0, 9.0], [1.0]]));
        assert_eq!(Samples::blocks(&[], 3).count(), 0);
    }
}
