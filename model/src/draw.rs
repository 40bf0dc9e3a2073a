//! Random points of a split without stickiness: a low-discrepancy sequence.

use crate::hash::mix;
use crate::split::Percent;

/// The block length. Eight, because any 20 consecutive draws then cover at least one whole block and at most eight of
/// either half: a 50/50 split gives each side 8 to 12. Sixteen would allow 4 to 16.
const BLOCK: u64 = 8;

/// The `n`th point of the sequence `seed`, below [`Percent::WHOLE`].
///
/// Every block of eight draws visits each eighth of the range once, in an order drawn anew for
/// each block: shares are met quickly, and clients that take turns in lockstep still see every
/// side (a plain round robin, or a bit-reversed counter, would give each of two clients one side).
pub fn draw_point(seed: u64, n: u64) -> u32 {
    let mut order = [0u8, 1, 2, 3, 4, 5, 6, 7];
    let mut random = mix(seed ^ mix(n / BLOCK));
    for i in (1..order.len()).rev() {
        let bound = i as u64 + 1;
        order.swap(i, usize::try_from(random % bound).unwrap_or(0));
        random /= bound;
    }
    let stratum = u32::from(order[usize::try_from(n % BLOCK).unwrap_or(0)]);
    let width = Percent::WHOLE / 8;
    let offset = u32::try_from(mix(seed.wrapping_add(mix(n))) % u64::from(width)).unwrap_or(0);
    stratum * width + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(seed: u64, n: u64) -> bool {
        draw_point(seed, n) < Percent::WHOLE / 2
    }

    #[test]
    fn any_twenty_consecutive_draws_give_each_half_eight_to_twelve() {
        for seed in 0..50 {
            for start in 0..2_000 {
                let left = (start..start + 20).filter(|&n| side(seed, n)).count();
                assert!((8..=12).contains(&left), "seed {seed} start {start}: {left}");
            }
        }
    }

    #[test]
    fn clients_in_lockstep_each_see_both_halves() {
        for clients in 2..=16u64 {
            for client in 0..clients {
                let left = (0..64).filter(|turn| side(7, turn * clients + client)).count();
                assert!(
                    (10..=54).contains(&left),
                    "client {client} of {clients}: {left} of 64"
                );
            }
        }
    }

    #[test]
    fn a_small_share_gets_its_share() {
        let hits = (0..100_000).filter(|&n| draw_point(3, n) < 100).count();
        assert!((900..=1_100).contains(&hits), "{hits}");
    }
}
