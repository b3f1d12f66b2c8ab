//! The k largest of every token, exactly, while most values are never kept.
//!
//! Latents are gathered in rounds that grow. After each round every token holds its k best so far, and the
//! worst of them becomes the limit that later values must reach; so about k values per token and round pass,
//! instead of all F. A limit can only exclude what k better values already beat, so the result is exact, and
//! since it is a set, nothing depends on the rounds. Of equal values the lower latent wins; NaN counts as
//! larger than every number, so that a broken step shows in its loss.

use super::isa::Isa;
use super::lists::{Lists, Rows, TILE, TileLists};
use super::memory::{Buffer, Disjoint, Spares};
use super::params::Params;
use super::phase;
use super::pool::Pool;
use super::product::PANEL;
use super::rows::square_of_row;
use super::simd::{Kernel, Simd};

/// Tokens per task.
const TOKENS: usize = 8;

/// Value and latent as one number that rises with the value and, among equals, falls with the latent.
#[inline]
pub(super) fn rank(value: f32, latent: u32) -> u64 {
    // Adding 0 makes one zero of the two.
    let bits = (value + 0.0).to_bits();
    let rising = if value.is_nan() {
        u32::MAX
    } else if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    u64::from(rising) << 32 | u64::from(!latent)
}

#[inline]
pub(super) fn value_of(rank: u64) -> f32 {
    let rising = (rank >> 32) as u32;
    if rising == u32::MAX {
        f32::INFINITY
    } else if rising >> 31 == 1 {
        f32::from_bits(rising & !(1 << 31))
    } else {
        f32::from_bits(!rising)
    }
}

/// What a value is chosen by.
#[inline]
fn measure(value: f32, by_magnitude: bool) -> f32 {
    if by_magnitude { value.abs() } else { value }
}

/// The best of every token so far.
#[derive(Default)]
pub(super) struct Selection {
    k: usize,
    by_magnitude: bool,
    /// Ranks kept, k places per token.
    kept: Vec<u64>,
    n_kept: Vec<usize>,
    /// What a value must reach, per token, in whole panels.
    pub(super) limits: Buffer,
    /// What a rank must reach.
    cut: Vec<u64>,
}

impl Selection {
    /// Begins anew.
    pub(super) fn begin(&mut self, k: usize, n_tokens: usize, by_magnitude: bool) {
        self.k = k;
        self.by_magnitude = by_magnitude;
        self.kept.clear();
        self.kept.resize(k * n_tokens, 0);
        self.n_kept.clear();
        self.n_kept.resize(n_tokens, 0);
        self.cut.clear();
        self.cut.resize(n_tokens, if k == 0 { u64::MAX } else { 0 });
        self.limits.resize(n_tokens.next_multiple_of(PANEL));
        self.limits.fill(if k == 0 { f32::INFINITY } else { f32::NEG_INFINITY });
    }

    /// Takes in what a round gathered, as far as `allowed` says so.
    pub(super) fn take(
        &mut self,
        pool: &Pool,
        spares: &Spares<Vec<u64>>,
        rows: &Rows,
        scale: Option<&[f32]>,
        allowed: Option<&[bool]>,
    ) {
        let (k, n_tokens, by_magnitude) = (self.k, self.n_kept.len(), self.by_magnitude);
        if k == 0 {
            return;
        }
        let kept = Disjoint::new(&mut self.kept);
        let n_kept = Disjoint::new(&mut self.n_kept);
        let limits = Disjoint::new(&mut self.limits);
        let cut = Disjoint::new(&mut self.cut);
        pool.run(n_tokens.div_ceil(TOKENS), &|index| {
            spares.with(|space| {
                for token in index * TOKENS..((index + 1) * TOKENS).min(n_tokens) {
                    // SAFETY: each token belongs to one task.
                    let (kept, n_kept, limit, cut) = unsafe {
                        (kept.part(token * k, k), n_kept.at(token), limits.at(token), cut.at(token))
                    };
                    space.clear();
                    space.extend_from_slice(&kept[..*n_kept]);
                    for entry in rows.token(token) {
                        let latent = rows.latent[entry];
                        if allowed.is_none_or(|allowed| allowed[latent as usize]) {
                            let factor = scale.map_or(1.0, |scale| scale[latent as usize]);
                            let rank = rank(measure(rows.value[entry] * factor, by_magnitude), latent);
                            if rank >= *cut {
                                space.push(rank);
                            }
                        }
                    }
                    if space.len() > k {
                        // The k largest come first, the smallest of them last.
                        space.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
                        space.truncate(k);
                    }
                    if space.len() == k {
                        let worst = *space.iter().min().expect("invariant: k is not 0");
                        *cut = worst;
                        *limit = value_of(worst);
                    }
                    kept[..space.len()].copy_from_slice(space);
                    *n_kept = space.len();
                }
            });
        });
    }

    /// Whether a value is among the chosen of its token, once all rounds are over.
    #[inline]
    pub(super) fn chosen(&self, token: u32, value: f32, latent: u32) -> bool {
        rank(measure(value, self.by_magnitude), latent) >= self.cut[token as usize]
    }
}

/// The best of the latents of one auxiliary loss.
pub(super) struct AuxEntries {
    pub(super) selection: Selection,
    pub(super) lists: Lists,
}

impl AuxEntries {
    pub(super) fn new(d_sae: usize) -> Self {
        Self { selection: Selection::default(), lists: Lists::new(d_sae) }
    }
}

/// Copies the entries of one tile that are chosen among those of `allowed` latents.
pub(super) fn copy_chosen(
    lists: &TileLists,
    to: &mut TileLists,
    (selection, allowed): (&Selection, &[bool]),
    latents: &[u32],
    scale: Option<&[f32]>,
) {
    to.restart();
    for (place, &latent) in latents.iter().enumerate() {
        if allowed[latent as usize] {
            let factor = scale.map_or(1.0, |scale| scale[latent as usize]);
            for entry in lists.latent(place) {
                let (token, value) = (lists.token[entry], lists.value[entry]);
                if selection.chosen(token, value * factor, latent) {
                    to.token.push(token);
                    to.value.push(value);
                }
            }
        }
        to.start.push(to.token.len() as u32);
    }
    to.trim();
}

/// Keeps the entries of one tile for whose token, value, latent and value to compare `keep` says so.
pub(super) fn keep_chosen(
    lists: &mut TileLists,
    latents: &[u32],
    scale: Option<&[f32]>,
    keep: impl Fn(u32, f32, u32, f32) -> bool,
) {
    let (mut kept, mut first) = (0, 0);
    for (place, &latent) in latents.iter().enumerate() {
        let last = lists.start[place + 1] as usize;
        let factor = scale.map_or(1.0, |scale| scale[latent as usize]);
        for entry in first..last {
            let (token, value) = (lists.token[entry], lists.value[entry]);
            if keep(token, value, latent, value * factor) {
                lists.token[kept] = token;
                lists.value[kept] = value;
                kept += 1;
            }
        }
        first = last;
        lists.start[place + 1] = kept as u32;
    }
    lists.token.truncate(kept);
    lists.value.truncate(kept);
}

/// Rounds of tiles: the first holds a few times k latents, each later one as many as all before it.
pub(super) fn rounds(
    k: usize,
    tiles: std::ops::Range<usize>,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut next = tiles.start;
    std::iter::from_fn(move || {
        let done = next - tiles.start;
        let length = if done == 0 { (4 * k).div_ceil(TILE).max(2) } else { done };
        let round = next..(next + length).min(tiles.end);
        next = round.end;
        (!round.is_empty()).then_some(round)
    })
}

/// `|W_dec,i|` of every latent.
pub(super) fn decoder_norms(pool: &Pool, isa: Isa, params: &Params, norms: &mut Buffer) {
    let _phase = phase::norms();
    struct Norms<'a> {
        rows: &'a [f32],
        d_in: usize,
        out: &'a mut [f32],
    }
    impl Kernel for Norms<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            for (out, row) in self.out.iter_mut().zip(self.rows.chunks_exact(self.d_in)) {
                // SAFETY: this runs with the instructions of `S`; the row has D values.
                *out = unsafe { square_of_row::<S>(row.as_ptr(), self.d_in) }.sqrt();
            }
        }
    }
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    norms.resize(d_sae);
    let shared = Disjoint::new(norms);
    pool.run(d_sae.div_ceil(TILE), &|index| {
        let first = index * TILE;
        let count = TILE.min(d_sae - first);
        // SAFETY: one part per task.
        let out = unsafe { shared.part(first, count) };
        isa.run(Norms { rows: &params.w_dec[first * d_in..][..count * d_in], d_in, out });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_rise_with_values_and_fall_with_latents() {
        let values = [f32::NEG_INFINITY, -2.0, -1e-40, 0.0, 1e-40, 1.0, f32::INFINITY, f32::NAN];
        for pair in values.windows(2) {
            assert!(rank(pair[0], 0) < rank(pair[1], 9), "{pair:?}");
        }
        assert!(rank(1.0, 3) > rank(1.0, 4));
        assert_eq!(rank(-0.0, 3), rank(0.0, 3));
        for value in &values[..7] {
            assert_eq!(value_of(rank(*value, 5)), *value);
        }
    }

    #[test]
    fn rounds_cover_every_tile_once() {
        for (k, tiles) in [(0, 0..0), (1, 3..4), (32, 0..171), (500, 7..60)] {
            let mut next = tiles.start;
            for round in rounds(k, tiles.clone()) {
                assert_eq!(round.start, next);
                next = round.end;
            }
            assert_eq!(next, tiles.end);
        }
    }
}
