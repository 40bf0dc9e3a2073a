//! A traffic split: the share of each revision.

use std::fmt;
use std::sync::Arc;

use crate::hash::{StickyKey, rendezvous, stable_hash};
use crate::name::{RevisionId, Tag};

/// A share in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u16);

impl Percent {
    /// 100 %, in the hundredths of a percent that points are drawn in.
    pub const WHOLE: u32 = 10_000;

    /// A share of `hundredths` of a percent; `None` above 100 %.
    pub fn from_hundredths(hundredths: u32) -> Option<Self> {
        (hundredths <= Self::WHOLE).then(|| Self(u16::try_from(hundredths).unwrap_or(u16::MAX)))
    }

    /// The share in hundredths of a percent.
    pub fn hundredths(self) -> u32 {
        u32::from(self.0)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 100, self.0 % 100);
        match (part, part % 10) {
            (0, _) => write!(f, "{whole}"),
            (_, 0) => write!(f, "{whole}.{}", part / 10),
            _ => write!(f, "{whole}.{part:02}"),
        }
    }
}

/// One target of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficTarget {
    /// The revision that gets the share.
    pub revision: RevisionId,
    /// The index of the revision in its service's [`Service::revisions`](crate::Service::revisions).
    pub slot: usize,
    /// The share of the split's own traffic; requests by tag come on top.
    pub percent: Percent,
    /// The tag, by which requests reach the revision whatever its share.
    pub tag: Option<Tag>,
    /// Headers that are set on requests that get this target, after those of the route.
    pub append_headers: Arc<[(String, String)]>,
}

/// The reason why a list of targets is not a valid split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitError {
    /// The shares add up to this many hundredths of a percent, not to 10,000.
    Sum(u32),
    /// Two targets have this tag.
    RepeatedTag(Tag),
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum(sum) => write!(f, "percents add up to {}.{:02}, not to 100", sum / 100, sum % 100),
            Self::RepeatedTag(tag) => write!(f, "tag '{tag}' is used twice"),
        }
    }
}

impl std::error::Error for SplitError {}

/// A list of targets whose shares add up to exactly 100 %.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficSplit {
    targets: Box<[TrafficTarget]>,
    /// `ends[i]` is the first point past target `i`; the last one is [`Percent::WHOLE`]. Empty when one target
    /// has everything.
    ends: Box<[u32]>,
    /// The index of the target with the whole share, if any: no point needs to be drawn.
    only: Option<u32>,
}

impl TrafficSplit {
    /// Checks that the shares add up to 100 % and that no tag is repeated.
    ///
    /// # Errors
    /// [`SplitError`], the sum before a repeated tag.
    pub fn new(targets: Vec<TrafficTarget>) -> Result<Self, SplitError> {
        let mut sum = 0;
        let mut ends: Box<[u32]> = targets
            .iter()
            .map(|t| {
                sum += t.percent.hundredths();
                sum
            })
            .collect();
        if sum != Percent::WHOLE {
            return Err(SplitError::Sum(sum));
        }
        for (i, target) in targets.iter().enumerate() {
            if let Some(tag) = &target.tag
                && targets[..i].iter().any(|t| t.tag.as_ref() == Some(tag))
            {
                return Err(SplitError::RepeatedTag(tag.clone()));
            }
        }
        let only = targets
            .iter()
            .position(|t| t.percent.hundredths() == Percent::WHOLE)
            .and_then(|only| u32::try_from(only).ok());
        if only.is_some() {
            ends = Box::default();
        }
        Ok(Self {
            targets: targets.into(),
            ends,
            only,
        })
    }

    /// The split without targets, of a rule that has traffic for its routes alone. Nothing may be picked from it.
    pub fn none() -> Self {
        Self {
            targets: Box::default(),
            ends: Box::default(),
            only: None,
        }
    }

    /// Whether this is the split without targets.
    pub fn is_none(&self) -> bool {
        self.targets.is_empty()
    }

    /// All targets, in the order of the configuration.
    pub fn targets(&self) -> &[TrafficTarget] {
        &self.targets
    }

    /// Gives the revision in this slot another name.
    pub fn rename(&mut self, slot: usize, revision: &RevisionId) {
        let targets = self.targets.iter_mut().filter(|target| target.slot == slot);
        targets.for_each(|target| target.revision = revision.clone());
    }

    /// The target with the whole share, if any.
    pub fn only(&self) -> Option<&TrafficTarget> {
        self.only.map(|i| &self.targets[i as usize])
    }

    /// The target of a point. `point` is taken modulo [`Percent::WHOLE`]; over all points every target gets exactly
    /// its share, and a target of 0 % gets none.
    pub fn pick(&self, point: u32) -> &TrafficTarget {
        if let Some(only) = self.only() {
            return only;
        }
        let point = point % Percent::WHOLE;
        &self.targets[self.ends.partition_point(|&end| end <= point)]
    }

    /// The target of a key by weighted rendezvous hashing: a function of key and shares alone. Raising a share by Δ
    /// moves keys only into that target.
    pub fn pick_sticky(&self, key: StickyKey) -> &TrafficTarget {
        let candidates = self
            .targets
            .iter()
            .map(|t| (stable_hash(t.revision.name().as_bytes()), t.percent.hundredths()));
        // A split sums to 100 %, so that some weight is above 0.
        &self.targets[rendezvous(key, candidates).unwrap_or(0)]
    }

    /// The target with this tag.
    pub fn tagged(&self, tag: &str) -> Option<&TrafficTarget> {
        self.targets
            .iter()
            .find(|t| t.tag.as_ref().is_some_and(|t| t.as_str() == tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn split(shares: &[u32]) -> TrafficSplit {
        let targets = shares
            .iter()
            .enumerate()
            .map(|(i, &share)| TrafficTarget {
                revision: RevisionId::parse("default", &format!("r{i}")).expect("a name"),
                slot: i,
                percent: Percent::from_hundredths(share).expect("a share"),
                tag: None,
                append_headers: Arc::default(),
            })
            .collect();
        TrafficSplit::new(targets).expect("a split")
    }

    fn shares() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0..=Percent::WHOLE, 0..6).prop_map(|mut cuts| {
            cuts.extend([0, Percent::WHOLE]);
            cuts.sort_unstable();
            cuts.windows(2).map(|w| w[1] - w[0]).collect()
        })
    }

    proptest! {
        #[test]
        fn over_all_points_each_target_gets_exactly_its_share(shares in shares()) {
            let split = split(&shares);
            let mut counts = vec![0; shares.len()];
            for point in 0..Percent::WHOLE {
                counts[split.pick(point).slot] += 1;
            }
            prop_assert_eq!(counts, shares);
        }

        /// With two revisions a raised share moves exactly Δ of the keys, all of them into the target with that
        /// share.
        #[test]
        fn raising_a_share_moves_keys_only_into_it(before in 0..Percent::WHOLE, after in 0..=Percent::WHOLE) {
            let (low, high) = (before.min(after), before.max(after));
            let (a, b) = (split(&[low, Percent::WHOLE - low]), split(&[high, Percent::WHOLE - high]));
            let keys = 4_000u32;
            let mut moved = 0u32;
            for key in 0..keys {
                let key = StickyKey::of(&key.to_be_bytes());
                let (was, is) = (a.pick_sticky(key).slot, b.pick_sticky(key).slot);
                prop_assert!(was == is || (was == 1 && is == 0));
                moved += u32::from(was != is);
            }
            let expected = f64::from(high - low) / f64::from(Percent::WHOLE);
            let got = f64::from(moved) / f64::from(keys);
            // 5 standard deviations of a binomial of 4,000 at worst.
            prop_assert!((got - expected).abs() < 0.04, "moved {got}, expected {expected}");
        }

        /// In general at most 2Δ/(1+Δ) of the keys move.
        #[test]
        fn few_keys_move_in_general(a in shares(), b in shares()) {
            let n = a.len().max(b.len());
            let pad = |mut v: Vec<u32>| { v.resize(n, 0); v };
            let (a, b) = (pad(a), pad(b));
            let delta: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(y.saturating_sub(*x))).sum::<f64>() / f64::from(Percent::WHOLE);
            let (sa, sb) = (split(&a), split(&b));
            let keys = 4_000u32;
            let moved = (0..keys)
                .filter(|k| { let k = StickyKey::of(&k.to_be_bytes()); sa.pick_sticky(k).slot != sb.pick_sticky(k).slot })
                .count();
            let got = moved as f64 / f64::from(keys);
            prop_assert!(got <= 2.0 * delta / (1.0 + delta) + 0.04, "moved {got} for {delta}");
        }
    }

    #[test]
    fn shares_must_add_up_and_tags_differ() {
        let target = |share, tag: Option<&str>| TrafficTarget {
            revision: RevisionId::parse("default", "r").expect("a name"),
            slot: 0,
            percent: Percent::from_hundredths(share).expect("a share"),
            tag: tag.map(|t| Tag::parse(t).expect("a tag")),
            append_headers: Arc::default(),
        };
        assert_eq!(
            TrafficSplit::new(vec![target(9_999, None)]),
            Err(SplitError::Sum(9_999))
        );
        assert_eq!(
            TrafficSplit::new(vec![target(10_000, Some("a")), target(0, Some("a"))]),
            Err(SplitError::RepeatedTag(Tag::parse("a").expect("a tag")))
        );
    }

    #[test]
    fn zero_percent_gets_nothing_but_its_tag() {
        let split = split(&[0, 10_000, 0]);
        assert!((0..Percent::WHOLE).all(|p| split.pick(p).slot == 1));
        assert!((0..1000u32).all(|k| split.pick_sticky(StickyKey::of(&k.to_be_bytes())).slot == 1));
        assert_eq!(split.only().map(|t| t.slot), Some(1));
    }

    #[test]
    fn percent_prints_as_people_write_it() {
        let show = |h| Percent::from_hundredths(h).expect("a share").to_string();
        assert_eq!(
            [show(10_000), show(5_050), show(1), show(0)],
            ["100", "50.5", "0.01", "0"]
        );
        assert_eq!(Percent::from_hundredths(10_001), None);
    }
}
