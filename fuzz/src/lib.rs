//! Helpers shared by fuzz targets.

/// Takes one byte off the front of the input, as a choice of the fuzzer. 0 at the end of the input.
pub fn choice(data: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = data.split_first() else {
        return 0;
    };
    *data = rest;
    first
}

/// The cut positions for an input of `len` bytes, the last one `len` itself. `step` 0 makes one piece; small steps
/// make pieces of one, two, … bytes, so that every boundary is tested.
pub fn ends(len: usize, step: u8) -> impl Iterator<Item = usize> {
    let step = match step {
        0 => len.max(1),
        step => usize::from(step),
    };
    (1..=len.div_ceil(step).max(1)).map(move |nth| (nth * step).min(len))
}
