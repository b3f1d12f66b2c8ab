//! Which pre-activations may reach their limits, from products of bytes: those that cannot are never computed in full.
//!
//! Rows x of the batch and w of the encoder, their columns scaled by powers of two that leave x . w as it is
//! ([`super::balance`]), are rounded to x' = s q and w' = t p, with integers q, p from -127 to 127 and one scale each.
//! AVX-512 VNNI makes the integer product I = q . p at four times the rate of f32. What it says of the true product is
//! bounded by Cauchy and Schwarz,
//!
//! `|x . w - s t I| = |(x - x') . w + x' . (w - w')| <= |x - x'| |w| + |x'| |w - w'|`,
//!
//! and what the f32 chain of [`super::product`] makes of it by the usual bound of a sum of D products begun with b,
//! `|chain - (b + x . w)| <= g (|b| + |x| |w|)` with `g = D u / (1 - D u)`, `u = 2^-24` (Higham, Accuracy and Stability
//! of Numerical Algorithms, 2002, section 3.1; |x| |w| bounds the sum of the |x_k w_k|, scaled or not). So the value
//! lies within E of `C = b + s t I`, where
//!
//! `E = |x'| |w - w'| + (|x - x'| + h |x|') |w| + h |b| + tiny`
//!
//! with `|x|' = |x| + |x - x'|`, which also stands for |x'|, being no less. `h = 1.01 (D + 8) u` in place of g covers
//! the roundings of C: five, each within `u (|b| + |x'| |w'|)`, and `|w'| <= |w| + |w - w'|`. Norms are taken 0.1 %
//! larger than they come out, which covers their own rounding (sums of D / 16 squares in each lane: below 2.5e-4 for D
//! up to 65536) and that of E; and 1e-15 larger, for squares too small for f32. `tiny` is for what underflows elsewhere.
//! Where a norm is not finite or beyond 1e15, or |b| beyond 1e30, E is infinite: below that no chain overflows. A bound
//! that is NaN counts as reached, and so every NaN is found.
//!
//! Values that may reach their limits are computed as always, token by token ([`super::chains`]), and tested again. So
//! lists are the same, bit for bit, with and without screening, and each tile may choose: it looks at its first panels,
//! and if too many values pass goes the dense way, now and for some steps to come.
//!
//! Measured on one Zen 4 core, 1024 tokens of normal numbers by 1024 by 16384, at L0 60: bounds let 1.4 % of the values
//! pass, 0.4 % are positive; rounding and integer products take 95 ms, the values in full 29 ms, where the whole f32
//! product takes 305. At L0 500, 8 % pass, and the two ways are within a third of each other; [`SPARSE_SHARE`] is where
//! they cost the same.
//!
//! Rejected: bf16, whose bounds are about five times closer, but whose product alone, at twice the rate of f32, would
//! take longer than bytes and values in full together. A second, closer bound before values are computed, from f32
//! products summed in any order: by estimate it would save a third of the 29 ms. Choosing by time: either way gives the
//! same bits, but the shares that pass say as much and need no clock.

use std::arch::x86_64::*;
use std::sync::atomic::{AtomicU8, Ordering};

use super::balance::balance;
use super::bytes::{WORD, integer_tile, quantise};
use super::chains::chains;
use super::gather::{GatherSpace, GatherTile, Limits, valid_tokens};
use super::isa::Isa;
use super::lists::TILE;
use super::memory::{Buffer, Disjoint};
use super::params::Params;
use super::pool::Pool;
use super::product::{GROUP, PANEL, pack_group};
use super::simd::{Avx512Lanes, LANES, Simd};

/// The widest rows whose integer products stay below 2^31, and whose bounds hold.
pub(super) const MAX_WIDTH: usize = 1 << 16;
/// Panels after which a tile decides.
const TRIAL_PANELS: usize = 2;
/// Share of values that may pass, of a tile's first panels and of each group's values.
const SPARSE_SHARE: f64 = 0.15;
/// Steps for which a tile that was not sparse goes the dense way.
pub(super) const PATIENCE: u8 = 8;

/// A batch of tokens as bytes. Buffers per token hold whole panels.
pub(super) struct Screen {
    can_screen: bool,
    is_loaded: bool,
    /// q + 128, in panels: `[k / 4][32]` words of four columns.
    words: Buffer,
    /// What columns of the batch and of the encoder are multiplied with before they are rounded.
    for_x: Vec<f32>,
    for_w: Vec<f32>,
    /// The rows as the encoder sees them, `stride` apart, with zeros after the last column.
    rows: Buffer,
    stride: usize,
    /// s, |x|', and |x - x'| + h |x|'.
    scale: Buffer,
    norm: Buffer,
    rest: Buffer,
    /// For how many steps each tile goes the dense way.
    pub(super) patience: Vec<AtomicU8>,
}

impl Screen {
    pub(super) fn new(isa: Isa, d_sae: usize) -> Self {
        Self {
            can_screen: isa >= Isa::Avx512Vnni,
            is_loaded: false,
            words: Buffer::default(),
            for_x: Vec::new(),
            for_w: Vec::new(),
            rows: Buffer::default(),
            stride: 0,
            scale: Buffer::default(),
            norm: Buffer::default(),
            rest: Buffer::default(),
            patience: (0..d_sae.div_ceil(TILE)).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// Takes in a batch, less `subtract` where given, for an encoder.
    pub(super) fn load(&mut self, pool: &Pool, x: &[f32], subtract: Option<&[f32]>, params: &Params) {
        let d_in = params.d_in();
        self.is_loaded = self.can_screen && d_in <= MAX_WIDTH;
        if !self.is_loaded {
            return;
        }
        self.for_x.resize(d_in, 0.0);
        self.for_w.resize(d_in, 0.0);
        balance(x, subtract, &params.w_enc, [&mut self.for_x, &mut self.for_w]);
        let n_tokens = x.len() / d_in;
        let (n_panels, n_words) = (n_tokens.div_ceil(PANEL), d_in.div_ceil(WORD));
        // An odd number of cache lines, so that equal columns of the rows spread over the cache's sets.
        self.stride = (d_in.div_ceil(LANES) | 1) * LANES;
        self.words.resize(n_panels * PANEL * n_words);
        self.rows.resize(n_panels * PANEL * self.stride);
        for buffer in [&mut self.scale, &mut self.norm, &mut self.rest] {
            buffer.resize(n_panels * PANEL);
        }
        let (stride, for_x) = (self.stride, &self.for_x);
        let (words, rows) = (Disjoint::new(&mut self.words), Disjoint::new(&mut self.rows));
        let [scale, norm, rest] =
            [&mut self.scale, &mut self.norm, &mut self.rest].map(|buffer| Disjoint::new(buffer));
        pool.run(n_panels, &|panel| {
            // SAFETY: one panel per task.
            let (words, rows, scale, norm, rest) = unsafe {
                (
                    words.part(panel * PANEL * n_words, PANEL * n_words),
                    rows.part(panel * PANEL * stride, PANEL * stride),
                    scale.part(panel * PANEL, PANEL),
                    norm.part(panel * PANEL, PANEL),
                    rest.part(panel * PANEL, PANEL),
                )
            };
            let tokens = &x[panel * PANEL * d_in..((panel + 1) * PANEL).min(n_tokens) * d_in];
            for (i, (from, row)) in tokens.chunks_exact(d_in).zip(rows.chunks_exact_mut(stride)).enumerate() {
                match subtract {
                    Some(bias) => {
                        for ((to, from), bias) in row.iter_mut().zip(from).zip(bias) {
                            *to = from - bias;
                        }
                    }
                    None => row[..d_in].copy_from_slice(from),
                }
                row[d_in..].fill(0.0);
                // SAFETY: `is_loaded` says that the machine has the instructions; the panel has a word for
                // every four columns of 32 tokens.
                let quantised = unsafe {
                    let to = words.as_mut_ptr().add(i).cast::<u32>();
                    quantise(&row[..d_in], for_x, &mut |word, bytes| {
                        *to.add(word * PANEL) = bytes ^ 0x8080_8080
                    })
                };
                scale[i] = quantised.scale;
                norm[i] = quantised.norm + quantised.rest;
                rest[i] = 1.001 * (quantised.rest + rounding(d_in) * norm[i]);
            }
        });
    }

    /// Room for a (B, D) array, once the batch that is loaded has been gathered.
    pub(super) fn scratch(&mut self) -> &mut Buffer {
        &mut self.rows
    }

    /// Itself, once a batch is loaded on a machine that can screen it.
    pub(super) fn loaded(&self) -> Option<&Self> {
        self.is_loaded.then_some(self)
    }

    /// Fills the lists of a tile, if they promise to be sparse; if not, leaves them empty and returns false.
    pub(super) fn gather(&self, tile: &mut GatherTile<'_>) -> bool {
        let patience = &self.patience[tile.index];
        let left = patience.load(Ordering::Relaxed);
        if left > 0 {
            patience.store(left - 1, Ordering::Relaxed);
            return false;
        }
        // SAFETY: a screen is loaded only where the machine has the instructions.
        let is_sparse = unsafe { self.find_candidates(tile) };
        if is_sparse {
            for group in 0..tile.latents.len().div_ceil(GROUP) {
                self.compute_candidates(tile, group);
            }
        } else {
            tile.space.counts.fill(0);
            patience.store(PATIENCE, Ordering::Relaxed);
        }
        is_sparse
    }

    /// Lists the tokens whose values may reach their limits; stops with false if they are too many.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn find_candidates(&self, tile: &mut GatherTile<'_>) -> bool {
        let (d_in, n_tokens) = (tile.gather.params.d_in(), tile.gather.n_tokens);
        let (n_panels, n_words) = (n_tokens.div_ceil(PANEL), d_in.div_ceil(WORD));
        let n_groups = tile.latents.len().div_ceil(GROUP);
        let by_magnitude = tile.gather.by_magnitude;
        // SAFETY: instructions enabled.
        let latents = unsafe { self.quantise_latents(tile) };
        let mut block = [0_i32; GROUP * PANEL];
        let mut candidates = 0;
        for panel in 0..n_panels {
            let valid = valid_tokens(n_tokens, panel);
            let left = self.words[panel * PANEL * n_words..][..PANEL * n_words].as_ptr();
            for group in 0..n_groups {
                let right = tile.space.bytes[group * GROUP * n_words..][..GROUP * n_words].as_ptr();
                let start = latents.start[group * GROUP..][..GROUP].as_ptr();
                // SAFETY: instructions enabled; panels, groups and block are whole.
                unsafe { integer_tile(n_words, left, right.cast(), start, block.as_mut_ptr()) };
                for j in 0..GROUP.min(tile.latents.len() - group * GROUP) {
                    let place = group * GROUP + j;
                    let limits = tile.limits(place);
                    for half in [0, LANES] {
                        let first = panel * PANEL + half;
                        // SAFETY: instructions enabled; blocks hold 32 values here, buffers whole panels; each
                        // latent's list has room for every token and for one vector more.
                        unsafe {
                            let product = _mm512_loadu_si512(block.as_ptr().add(j * PANEL + half).cast());
                            let at = |values: &Buffer| _mm512_loadu_ps(values[first..][..LANES].as_ptr());
                            let each = |values: &[f32; TILE]| _mm512_set1_ps(values[place]);
                            let scale = _mm512_mul_ps(at(&self.scale), each(&latents.scale));
                            let center =
                                _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, each(&tile.bias));
                            let error =
                                _mm512_fmadd_ps(at(&self.rest), each(&latents.norm), each(&latents.bias));
                            let error = _mm512_fmadd_ps(at(&self.norm), each(&latents.rest), error);
                            let upper = _mm512_add_ps(error, center);
                            let minus_lower = if by_magnitude { _mm512_sub_ps(error, center) } else { upper };
                            let limit = limits.at::<Avx512Lanes>(first);
                            let reached = tile.reached::<Avx512Lanes>(place, upper, minus_lower, limit);
                            let mask = reached & (valid >> half) & 0xFFFF;
                            if mask != 0 {
                                let GatherSpace { values, tokens, capacity, counts, .. } = &mut *tile.space;
                                let to = place * *capacity + counts[place];
                                let (values, tokens) =
                                    (values.as_mut_ptr().add(to), tokens.as_mut_ptr().add(to));
                                let n = Avx512Lanes::compress(upper, mask, first as u32, values, tokens);
                                counts[place] += n;
                                candidates += n;
                            }
                        }
                    }
                }
            }
            let seen = (n_tokens.min((panel + 1) * PANEL) * tile.latents.len()) as f64;
            if panel + 1 == TRIAL_PANELS.min(n_panels) && candidates as f64 > SPARSE_SHARE * seen {
                return false;
            }
        }
        true
    }

    /// Rounds a tile's weights, by groups of `[k / 4][12]` words.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn quantise_latents(&self, tile: &mut GatherTile<'_>) -> Latents {
        let d_in = tile.gather.params.d_in();
        let n_words = d_in.div_ceil(WORD);
        let bytes = &mut tile.space.bytes;
        bytes.resize((TILE + GROUP) * n_words);
        let (bytes, rows) = bytes.split_at_mut(TILE * n_words);
        let mut out = Latents {
            scale: [0.0; TILE],
            norm: [0.0; TILE],
            rest: [0.0; TILE],
            bias: [0.0; TILE],
            start: [0; TILE],
        };
        for (group, members) in tile.latents.chunks(GROUP).enumerate() {
            for (j, (&latent, to)) in members.iter().zip(rows.chunks_exact_mut(n_words)).enumerate() {
                let place = group * GROUP + j;
                let row = &tile.gather.params.w_enc[latent as usize * d_in..][..d_in];
                let to = to.as_mut_ptr().cast::<u32>();
                // SAFETY: instructions enabled; the row has a word for every four columns.
                let quantised =
                    unsafe { quantise(row, &self.for_w, &mut |word, bytes| *to.add(word) = bytes) };
                let bias = tile.bias[place].abs();
                out.scale[place] = quantised.scale;
                out.norm[place] = quantised.norm;
                out.rest[place] = if bias <= 1e30 { quantised.rest } else { f32::INFINITY };
                out.bias[place] = rounding(d_in) * bias + 1e-30;
                // What the 128 in every byte of the other side adds.
                out.start[place] = quantised.sum.wrapping_mul(-128);
            }
            let mut of_members: [&[f32]; GROUP] = [&[]; GROUP];
            for (member, row) in of_members.iter_mut().zip(rows.chunks_exact(n_words)) {
                *member = row;
            }
            let to = &mut bytes[group * GROUP * n_words..][..GROUP * n_words];
            pack_group(&of_members[..members.len()], n_words, to);
        }
        out
    }

    /// Computes the listed values of a group and keeps what reaches its limit; all of them, if too many are listed.
    fn compute_candidates(&self, tile: &mut GatherTile<'_>, group: usize) {
        let places = group * GROUP..((group + 1) * GROUP).min(tile.latents.len());
        let candidates: usize = tile.space.counts[places.clone()].iter().sum();
        if candidates as f64 > SPARSE_SHARE * (tile.gather.n_tokens * places.len()) as f64 {
            tile.space.counts[places].fill(0);
            tile.gather_densely(group..group + 1);
            return;
        }
        for place in places {
            // SAFETY: a screen is loaded only where the machine has the instructions.
            tile.space.counts[place] = unsafe { self.compute_latent(tile, place) };
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn compute_latent(&self, tile: &mut GatherTile<'_>, place: usize) -> usize {
        let d_in = tile.gather.params.d_in();
        let weights = &tile.gather.params.w_enc[tile.latents[place] as usize * d_in..][..d_in];
        let limits = tile.limits(place);
        let (first, count) = (place * tile.space.capacity, tile.space.counts[place]);
        let mut kept = 0;
        for done in (0..count).step_by(LANES) {
            let n = LANES.min(count - done);
            let tokens = &tile.space.tokens[first + done..][..LANES];
            let row = |lane: usize| {
                self.rows[tokens[lane.min(n - 1)] as usize * self.stride..][..self.stride].as_ptr()
            };
            let rows: [*const f32; LANES] = std::array::from_fn(row);
            // SAFETY: instructions enabled; rows have `stride` values, of which D rounded up to 4 are no more.
            // Lists have room for one vector more than their entries; what is overwritten has been read.
            unsafe {
                let values = chains(&rows, weights.as_ptr(), d_in, tile.bias[place]);
                let valid = ((1_u32 << n) - 1) as u16;
                let tokens = _mm512_loadu_si512(tokens.as_ptr().cast());
                let limit = match limits {
                    Limits::OfLatent(limit) => _mm512_set1_ps(limit),
                    Limits::OfTokens(limits) => {
                        let zeros = _mm512_setzero_ps();
                        _mm512_mask_i32gather_ps::<4>(zeros, valid, tokens, limits.as_ptr().cast())
                    }
                };
                let minus = Avx512Lanes::mul(values, _mm512_set1_ps(-1.0));
                let mask = tile.reached::<Avx512Lanes>(place, values, minus, limit) as u16 & valid;
                let GatherSpace { values: to_values, tokens: to_tokens, .. } = &mut *tile.space;
                let to = to_values[first + kept..][..LANES].as_mut_ptr();
                _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, values));
                let to = to_tokens[first + kept..][..LANES].as_mut_ptr();
                _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(mask, tokens));
                kept += mask.count_ones() as usize;
            }
        }
        kept
    }
}

/// What a tile's latents bring to the bound.
struct Latents {
    /// t, |w|, |w - w'|, and h |b| + tiny.
    scale: [f32; TILE],
    norm: [f32; TILE],
    rest: [f32; TILE],
    bias: [f32; TILE],
    /// What the integer product begins with.
    start: [i32; TILE],
}

/// The h of the bound.
pub(super) fn rounding(d_in: usize) -> f32 {
    1.01 * (d_in + 8) as f32 / (1 << 24) as f32
}
