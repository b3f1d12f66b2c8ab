//! Which decoder rows may have the largest product with what is left of a token, from products of bytes.
//!
//! With what is left of a token in place of x, decoder rows in place of w and no bias, the product lies within E of C
//! as [`super::screen`] derives it. So the largest of all is at least the largest C - E, and rows with C + E below that
//! cannot have it; of the others it is computed in full.
//!
//! Measured: see [`super::pursuit`].

use std::arch::x86_64::*;

use super::balance::balance;
use super::bytes::{WORD, integer_tile, quantise};
use super::isa::Isa;
use super::memory::{Buffer, Disjoint};
use super::pool::Pool;
use super::product::{GROUP, PANEL, pack_group};
use super::screen::{MAX_WIDTH, rounding};
use super::simd::LANES;

/// What underflows comes to less.
const TINY: f32 = 1e-30;

/// All decoder rows as bytes. Buffers per row hold whole panels.
#[derive(Default)]
pub(super) struct RowBytes {
    d_in: usize,
    d_sae: usize,
    /// p + 128, in panels: `[k / 4][32]` words of four columns.
    words: Buffer,
    /// What columns of tokens and of rows are multiplied with before they are rounded.
    for_x: Vec<f32>,
    for_w: Vec<f32>,
    /// t, |w|, and |w - w'|.
    scale: Buffer,
    norm: Buffer,
    rest: Buffer,
}

/// Some tokens as bytes, in groups of `[k / 4][12]` words; borrowed with the task's space.
#[derive(Default)]
pub(super) struct TokenBytes {
    rows: Buffer,
    groups: Buffer,
    tokens: Vec<TokenBound>,
    /// What each token's integer products begin with.
    start: Vec<i32>,
    /// Largest C - E of every token so far, by lane.
    tops: Buffer,
}

/// s, |x|', and |x - x'| + h |x|' of a token; and what its largest product reaches.
#[derive(Clone, Copy, Default)]
struct TokenBound {
    scale: f32,
    norm: f32,
    rest: f32,
    floor: f32,
}

impl RowBytes {
    /// Whether this machine multiplies bytes fast, and rows of D values are not too wide for it.
    pub(super) fn can_load(isa: Isa, d_in: usize) -> bool {
        isa >= Isa::Avx512Vnni && d_in <= MAX_WIDTH
    }

    /// Rounds the decoder's rows, for tokens `x` and what will be left of them. Only where [`Self::can_load`].
    pub(super) fn load(&mut self, pool: &Pool, x: &[f32], w_dec: &[f32], d_in: usize) {
        let d_sae = w_dec.len() / d_in;
        (self.d_in, self.d_sae) = (d_in, d_sae);
        self.for_x.resize(d_in, 0.0);
        self.for_w.resize(d_in, 0.0);
        balance(x, None, w_dec, [&mut self.for_x, &mut self.for_w]);
        let (n_panels, n_words) = (d_sae.div_ceil(PANEL), d_in.div_ceil(WORD));
        self.words.resize(n_panels * PANEL * n_words);
        for buffer in [&mut self.scale, &mut self.norm, &mut self.rest] {
            buffer.resize(n_panels * PANEL);
        }
        let (words, for_w) = (Disjoint::new(&mut self.words), &self.for_w);
        let [scale, norm, rest] =
            [&mut self.scale, &mut self.norm, &mut self.rest].map(|buffer| Disjoint::new(buffer));
        pool.run(n_panels, &|panel| {
            // SAFETY: one panel per task.
            let (words, scale, norm, rest) = unsafe {
                (
                    words.part(panel * PANEL * n_words, PANEL * n_words),
                    scale.part(panel * PANEL, PANEL),
                    norm.part(panel * PANEL, PANEL),
                    rest.part(panel * PANEL, PANEL),
                )
            };
            let rows = &w_dec[panel * PANEL * d_in..((panel + 1) * PANEL).min(d_sae) * d_in];
            for (i, row) in rows.chunks_exact(d_in).enumerate() {
                // SAFETY: the caller makes sure of the instructions; the panel has a word for every four columns of
                // 32 rows.
                let quantised = unsafe {
                    let to = words.as_mut_ptr().add(i).cast::<u32>();
                    quantise(row, for_w, &mut |word, bytes| *to.add(word * PANEL) = bytes ^ 0x8080_8080)
                };
                (scale[i], norm[i], rest[i]) = (quantised.scale, quantised.norm, quantised.rest);
            }
            // Rows that are not there raise no floor.
            let n_rows = rows.len() / d_in;
            scale[n_rows..].fill(0.0);
            norm[n_rows..].fill(0.0);
            rest[n_rows..].fill(f32::INFINITY);
        });
    }

    /// For each of some tokens, as many as `out` has rows of `columns`, which are whole panels: writes C for every
    /// row, and keeps what the bounds need.
    pub(super) fn centers<'a>(
        &self,
        tokens: impl Iterator<Item = &'a [f32]>,
        space: &mut TokenBytes,
        out: &mut [f32],
        columns: usize,
    ) {
        let n_words = self.d_in.div_ceil(WORD);
        let n_tokens = out.len() / columns;
        let n_groups = n_tokens.div_ceil(GROUP);
        space.rows.resize(GROUP * n_words);
        space.groups.resize(n_groups * GROUP * n_words);
        space.tokens.clear();
        space.start.clear();
        for (i, token) in tokens.enumerate() {
            let row = &mut space.rows[i % GROUP * n_words..][..n_words];
            let to = row.as_mut_ptr().cast::<u32>();
            // SAFETY: rows are loaded only where the machine has the instructions; the row has a word for every four
            // columns.
            let quantised = unsafe { quantise(token, &self.for_x, &mut |word, bytes| *to.add(word) = bytes) };
            let norm = quantised.norm + quantised.rest;
            let rest = 1.001 * (quantised.rest + rounding(self.d_in) * norm);
            space.tokens.push(TokenBound { scale: quantised.scale, norm, rest, floor: f32::NEG_INFINITY });
            // What the 128 in every byte of the other side adds.
            space.start.push(quantised.sum.wrapping_mul(-128));
            let members = i % GROUP + 1;
            if members == GROUP || i + 1 == n_tokens {
                let mut of_members: [&[f32]; GROUP] = [&[]; GROUP];
                for (member, row) in of_members.iter_mut().zip(space.rows.chunks_exact(n_words)) {
                    *member = row;
                }
                let to = &mut space.groups[i / GROUP * GROUP * n_words..][..GROUP * n_words];
                pack_group(&of_members[..members], n_words, to);
            }
        }
        assert_eq!(space.tokens.len(), n_tokens, "a row for every token");
        space.start.resize(n_groups * GROUP, 0);
        space.tops.resize(n_tokens * LANES);
        space.tops.fill(f32::NEG_INFINITY);
        // SAFETY: rows are loaded only where the machine has the instructions.
        unsafe { self.multiply(space, out, columns) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn multiply(&self, space: &mut TokenBytes, out: &mut [f32], columns: usize) {
        let TokenBytes { groups, tokens, start, tops, .. } = space;
        let (n_words, n_panels) = (self.d_in.div_ceil(WORD), self.d_sae.div_ceil(PANEL));
        assert!(columns >= n_panels * PANEL, "rows hold whole panels");
        let mut block = [0_i32; GROUP * PANEL];
        for panel in 0..n_panels {
            let left = self.words[panel * PANEL * n_words..][..PANEL * n_words].as_ptr();
            for (group, members) in tokens.chunks(GROUP).enumerate() {
                let right = groups[group * GROUP * n_words..][..GROUP * n_words].as_ptr();
                let start = start[group * GROUP..][..GROUP].as_ptr();
                // SAFETY: instructions enabled; panels, groups and block are whole.
                unsafe { integer_tile(n_words, left, right.cast(), start, block.as_mut_ptr()) };
                for (j, token) in members.iter().enumerate() {
                    let i = group * GROUP + j;
                    let top = tops[i * LANES..][..LANES].as_mut_ptr();
                    for half in [0, LANES] {
                        let first = panel * PANEL + half;
                        let to = out[i * columns + first..][..LANES].as_mut_ptr();
                        // SAFETY: instructions enabled; blocks hold 32 values here, and the slices 16.
                        unsafe {
                            let product = _mm512_loadu_si512(block.as_ptr().add(j * PANEL + half).cast());
                            let scale = _mm512_loadu_ps(self.scale[first..][..LANES].as_ptr());
                            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(token.scale));
                            let center = _mm512_mul_ps(_mm512_cvtepi32_ps(product), scale);
                            _mm512_storeu_ps(to, center);
                            let lower = _mm512_sub_ps(center, self.error(first, token));
                            // The second where one is NaN.
                            _mm512_storeu_ps(top, _mm512_max_ps(lower, _mm512_loadu_ps(top)));
                        }
                    }
                }
            }
        }
        for (token, tops) in tokens.iter_mut().zip(tops.chunks_exact(LANES)) {
            token.floor = tops.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        }
    }

    /// E of sixteen rows from `first` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn error(&self, first: usize, token: &TokenBound) -> __m512 {
        // SAFETY: the slices hold 16 values.
        let at = |values: &Buffer| unsafe { _mm512_loadu_ps(values[first..][..LANES].as_ptr()) };
        let error = _mm512_fmadd_ps(at(&self.norm), _mm512_set1_ps(token.rest), _mm512_set1_ps(TINY));
        _mm512_fmadd_ps(at(&self.rest), _mm512_set1_ps(token.norm), error)
    }

    /// The rows whose product with the token at `place` may be the largest, in rising order. `centers` are those of
    /// that token.
    pub(super) fn candidates(
        &self,
        space: &TokenBytes,
        place: usize,
        centers: &[f32],
        candidates: &mut Vec<u32>,
    ) {
        candidates.clear();
        // SAFETY: rows are loaded only where the machine has the instructions.
        unsafe { self.reach_floor(&space.tokens[place], centers, candidates) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn reach_floor(&self, token: &TokenBound, centers: &[f32], candidates: &mut Vec<u32>) {
        let floor = _mm512_set1_ps(token.floor);
        for first in (0..self.d_sae).step_by(LANES) {
            let n = LANES.min(self.d_sae - first);
            // SAFETY: instructions enabled; the slice holds 16 values.
            let mut reached = unsafe {
                let center = _mm512_loadu_ps(centers[first..][..LANES].as_ptr());
                let upper = _mm512_add_ps(center, self.error(first, token));
                _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(upper, floor) & (((1_u32 << n) - 1) as u16)
            };
            while reached != 0 {
                candidates.push(first as u32 + reached.trailing_zeros());
                reached &= reached - 1;
            }
        }
    }
}
