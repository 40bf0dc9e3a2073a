//! Helpers shared by fuzz targets.

/// Takes one byte off the front of the input: a choice that the fuzzer makes. 0 when nothing is left.
pub fn choice(data: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = data.split_first() else {
        return 0;
    };
    *data = rest;
    first
}

/// The ends of the pieces that `len` bytes come in, the last one `len` itself. `step` 0 is all at
/// once; small ones make pieces of one, two, … bytes, so that every boundary is met.
pub fn ends(len: usize, step: u8) -> impl Iterator<Item = usize> {
    let step = match step {
        0 => len.max(1),
        step => usize::from(step),
    };
    (1..=len.div_ceil(step).max(1)).map(move |nth| (nth * step).min(len))
}
