//! Samplers: which requests are recorded, by the names of `OTEL_TRACES_SAMPLER`.

use std::fmt;

use super::context::{TraceContext, TraceId};

/// Names of the samplers, the default first.
pub(super) const NAMES: [&str; 6] = [
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
    "always_on",
    "always_off",
    "traceidratio",
];

/// Decides which requests are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whether a caller's decision is kept; the share is for requests without a valid `traceparent`.
    pub parent_based: bool,
    /// The share of traces that are recorded, from 0 to 1.
    pub ratio: f64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            parent_based: true,
            ratio: 1.0,
        }
    }
}

impl Sampler {
    /// The sampler of this name; `ratio` is the share of the samplers that take one.
    pub fn named(name: &str, ratio: f64) -> Option<Self> {
        let (parent_based, kind) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let ratio = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => ratio,
            _ => return None,
        };
        Some(Self { parent_based, ratio })
    }

    /// Whether a request is recorded. `trace` is the parent's where there is one. The decision by share is a function of the trace
    /// alone, the same one as in other SDKs: everyone with the same share keeps the same traces.
    pub fn is_sampled(&self, parent: Option<&TraceContext>, trace: TraceId) -> bool {
        if let Some(parent) = parent.filter(|_| self.parent_based) {
            return parent.sampled;
        }
        let [.., low] = *trace.to_bytes().as_chunks::<8>().0 else {
            return false;
        };
        // 63 bits, as the SDKs of Go, Java and Rust compare them. A share of 1 is above all of them.
        let bound = (self.ratio * (1_u64 << 63) as f64) as u64;
        u64::from_be_bytes(low) >> 1 < bound
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parent_based {
            f.write_str("as callers decide, else ")?;
        }
        write!(f, "{} % of the requests", self.ratio * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::traces::context::SpanId;

    fn trace(low: u64) -> TraceId {
        TraceId::random(|| 1 << 127 | u128::from(low))
    }

    fn parent(sampled: bool) -> TraceContext {
        TraceContext {
            trace: trace(u64::MAX),
            span: SpanId::random(|| 1),
            sampled,
        }
    }

    #[test]
    fn every_name_is_a_sampler_and_the_first_one_the_default() {
        let all = NAMES.map(|name| Sampler::named(name, 0.5).unwrap());
        assert_eq!(all[0], Sampler::default());
        assert_eq!(
            all.map(|s| (s.parent_based, s.ratio)),
            [
                (true, 1.0),
                (true, 0.0),
                (true, 0.5),
                (false, 1.0),
                (false, 0.0),
                (false, 0.5)
            ]
        );
        assert_eq!(Sampler::named("parentbased_jaeger_remote", 1.0), None);
    }

    #[test]
    fn a_parents_decision_is_kept_where_the_sampler_is_based_on_it() {
        for name in NAMES {
            let sampler = Sampler::named(name, 0.0).unwrap();
            for sampled in [false, true] {
                let got = sampler.is_sampled(Some(&parent(sampled)), trace(u64::MAX));
                let own = sampler.ratio > 0.0;
                assert_eq!(got, if sampler.parent_based { sampled } else { own }, "{name}");
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_are_none_and_all() {
        for low in [0, 1, u64::MAX] {
            let ratio = |ratio| Sampler {
                parent_based: false,
                ratio,
            };
            assert!(ratio(1.0).is_sampled(None, trace(low)));
            assert!(!ratio(0.0).is_sampled(None, trace(low)));
        }
    }

    proptest! {
        #[test]
        fn a_greater_share_keeps_what_a_smaller_one_keeps(low: u64, a in 0.0..=1.0, b in 0.0..=1.0) {
            let sampled = |ratio| Sampler { parent_based: false, ratio }.is_sampled(None, trace(low));
            prop_assert!(sampled(f64::max(a, b)) || !sampled(f64::min(a, b)));
        }
    }
}
