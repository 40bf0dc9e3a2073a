//! A sliding-window maximum.

use std::collections::VecDeque;

/// A sliding-window maximum by a monotone queue: amortised constant time, at most one entry for each step of the window.
#[derive(Debug, Clone)]
pub(crate) struct SlidingMax {
    /// Steps that the window covers.
    steps: u64,
    /// (step, value): steps rise, values fall.
    falling: VecDeque<(u64, u32)>,
}

impl SlidingMax {
    pub(crate) fn new(steps: u64) -> Self {
        Self {
            steps: steps.max(1),
            falling: VecDeque::new(),
        }
    }

    /// Records a value and returns the greatest of the window that ends with it.
    pub(crate) fn record(&mut self, step: u64, value: u32) -> u32 {
        while self.falling.front().is_some_and(|&(s, _)| s + self.steps <= step) {
            self.falling.pop_front();
        }
        while self.falling.back().is_some_and(|&(_, v)| v <= value) {
            self.falling.pop_back();
        }
        if self.falling.back().is_none_or(|&(s, _)| s < step) {
            self.falling.push_back((step, value));
        }
        self.falling.front().map_or(value, |&(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    //! Vectors of Knative Serving, pkg/autoscaler/aggregation/max/window_test.go.
    use super::*;

    fn run(values: impl IntoIterator<Item = (u64, u32)>) -> Vec<u32> {
        let mut max = SlidingMax::new(5);
        values.into_iter().map(|(s, v)| max.record(s, v)).collect()
    }

    /// TestWindowMax.
    #[test]
    fn maxima() {
        assert_eq!(run((0..).zip([5, 6, 5, 5, 5, 5, 5])), [5, 6, 6, 6, 6, 6, 5]);
        assert_eq!(
            run((0..).zip([5, 8, 5, 7, 5, 5, 1, 4, 4, 4, 4, 9])),
            [5, 8, 8, 8, 8, 8, 7, 7, 5, 5, 4, 9]
        );
    }

    /// TestWindowMax: "gap" and "same index".
    #[test]
    fn gaps_and_repeats() {
        assert_eq!(run([(0, 6), (1, 5), (2, 2), (6, 1)]), [6, 6, 6, 2]);
        assert_eq!(run([7, 6, 5, 4, 3, 2, 1].map(|v| (0, v))), [7; 7]);
    }
}
