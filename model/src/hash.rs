//! Stable hashes: every replica and every restart computes the same values.

/// The key of a sticky choice: the hash of a cookie, a header or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StickyKey(u64);

impl StickyKey {
    /// Hashes a client's key.
    pub fn of(bytes: &[u8]) -> Self {
        Self(stable_hash(bytes))
    }

    /// The key as a number, for another process.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The key from a number of [`to_bits`](Self::to_bits).
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// FNV-1a with a finaliser: stable across versions, platforms and processes, which std's hashers do not promise. Not
/// keyed: a client that chooses the key only chooses the client's own backend.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// splitmix64's finaliser.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Weighted rendezvous hashing: the index of the candidate with the highest score
/// `-weight / ln(u)`, where `u` is drawn from the key and the candidate's own hash.
///
/// Raising one weight moves keys only into that candidate. Candidates of weight 0 are never
/// chosen; `None` when no weight is above 0.
pub fn rendezvous(key: StickyKey, candidates: impl Iterator<Item = (u64, u32)>) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for (i, (id, weight)) in candidates.enumerate() {
        if weight == 0 {
            continue;
        }
        let score = f64::from(weight) / -ln_unit(mix(key.0 ^ mix(id)));
        if best.is_none_or(|(top, _)| score > top) {
            best = Some((score, i));
        }
    }
    best.map(|(_, i)| i)
}

/// Natural logarithm of a 64-bit hash read as a number in (0, 1).
///
/// Only +, -, × and ÷, which IEEE 754 rounds the same everywhere: the platform's `ln` differs in the last bit between
/// libms, and replicas must agree.
fn ln_unit(hash: u64) -> f64 {
    // 52 bits and a half: the number is never 0 and never 1.
    #[allow(clippy::cast_precision_loss)]
    let unit = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    let bits = unit.to_bits();
    let exponent = i32::try_from(bits >> 52).unwrap_or(0) - 1023;
    let mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    // ln(m) = 2 atanh((m-1)/(m+1)), m in [1, 2): the argument stays below 1/3, so 18 terms of
    // the series leave less than 3^-37.
    let x = (mantissa - 1.0) / (mantissa + 1.0);
    let square = x * x;
    let mut term = x;
    let mut sum = 0.0;
    for k in 0..18 {
        sum += term / f64::from(2 * k + 1);
        term *= square;
    }
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_ln() {
        for seed in 0..10_000u64 {
            let hash = mix(seed);
            let unit = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
            assert!((ln_unit(hash) - unit.ln()).abs() < 1e-12 * unit.ln().abs().max(1.0));
        }
        assert!(ln_unit(0) < 0.0 && ln_unit(u64::MAX) < 0.0);
    }

    #[test]
    fn hashes_are_pinned() {
        // Replicas of different versions must agree: a change of these values is a breaking change.
        assert_eq!(stable_hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(StickyKey::of(b"user-1"), StickyKey::of(b"user-1"));
        assert_ne!(StickyKey::of(b"user-1"), StickyKey::of(b"user-2"));
    }
}
