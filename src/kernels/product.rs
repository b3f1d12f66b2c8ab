//! The dense product that everything rests on: `out[j][i] = start[j] + sum_k right[k][j] left[k][i]`.
//!
//! `left` is packed in panels of 32 (`[k][32]`, the vector side), `right` in groups of 12 (`[k][12]`, the
//! broadcast side). One tile of 32 by 12 stays in registers over the whole depth, so each result is one
//! chain of fused operations in rising k: its bits depend on neither the tiling, the threads, nor on whether
//! AVX-512 or AVX2 does it.
//!
//! Measured on Zen 4 (512-bit operations split in two, 116 GFlop/s at most), depth 576 to 1536: this tile
//! reaches 113 to 115 GFlop/s, the `gemm` crate 102. Tiles of 48x8, 64x6, 16x24 and 32x13 were within 2 % of
//! it; cutting the depth into blocks that fit the first-level cache gained nothing, since both operands
//! stream from the second.

#![expect(
    clippy::needless_range_loop,
    reason = "an index runs through several arrays of registers and memory"
)]

use super::simd::{LANES, Simd};

/// Width of a panel of the vector side.
pub(super) const PANEL: usize = 2 * LANES;
/// Width of a group of the broadcast side.
pub(super) const GROUP: usize = 12;

/// What a tile begins with.
#[derive(Clone, Copy)]
pub(super) enum Start {
    /// One value per member of the group.
    Bias(*const f32),
    /// What `out` holds.
    Out,
}

/// One tile; `out` has rows of `stride` values, of which 32 are written.
///
/// # Safety
/// Instructions of `S` enabled; `left` readable for `depth * 32`, `right` for `depth * 12`, the bias for 12
/// values; 12 rows of 32 values writable at `out`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd>(
    depth: usize,
    left: *const f32,
    right: *const f32,
    start: Start,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the parts lie inside the tile, for which the caller promises the same.
    unsafe {
        if S::ACCUMULATORS >= 16 {
            part::<S, 2, 12>(depth, left, right, start, out, stride);
        } else if S::ACCUMULATORS >= 6 {
            for (i, j) in [(0, 0), (0, 6), (16, 0), (16, 6)] {
                part_at::<S, 1, 6>(depth, left, right, start, out, stride, i, j);
            }
        } else {
            for i in [0, 16] {
                for j in [0, 3, 6, 9] {
                    part_at::<S, 1, 3>(depth, left, right, start, out, stride, i, j);
                }
            }
        }
    }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the corner of the part within the tile comes on top")]
unsafe fn part_at<S: Simd, const VECTORS: usize, const MEMBERS: usize>(
    depth: usize,
    left: *const f32,
    right: *const f32,
    start: Start,
    out: *mut f32,
    stride: usize,
    i: usize,
    j: usize,
) {
    // SAFETY: the corner lies inside the tile.
    unsafe {
        let start = match start {
            Start::Bias(bias) => Start::Bias(bias.add(j)),
            Start::Out => Start::Out,
        };
        let out = out.add(j * stride + i);
        part::<S, VECTORS, MEMBERS>(depth, left.add(i), right.add(j), start, out, stride);
    }
}

#[inline(always)]
unsafe fn part<S: Simd, const VECTORS: usize, const MEMBERS: usize>(
    depth: usize,
    mut left: *const f32,
    mut right: *const f32,
    start: Start,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: all offsets lie inside what the caller of `tile` promises.
    unsafe {
        let mut sums = [[S::splat(0.0); VECTORS]; MEMBERS];
        for j in 0..MEMBERS {
            for v in 0..VECTORS {
                sums[j][v] = match start {
                    Start::Bias(bias) => S::splat(*bias.add(j)),
                    Start::Out => S::load(out.add(j * stride + v * LANES)),
                };
            }
        }
        for _ in 0..depth {
            let mut x = [S::splat(0.0); VECTORS];
            for v in 0..VECTORS {
                x[v] = S::load(left.add(v * LANES));
            }
            for j in 0..MEMBERS {
                let w = S::splat(*right.add(j));
                for v in 0..VECTORS {
                    sums[j][v] = S::fma(x[v], w, sums[j][v]);
                }
            }
            left = left.add(PANEL);
            right = right.add(GROUP);
        }
        for j in 0..MEMBERS {
            for v in 0..VECTORS {
                S::store(out.add(j * stride + v * LANES), sums[j][v]);
            }
        }
    }
}

/// Packs up to 32 rows of a (.., D) array as one panel `[k][32]`; missing rows become zeros.
pub(super) fn pack_panel(rows: &[f32], d_in: usize, subtract: Option<&[f32]>, out: &mut [f32]) {
    let n_rows = rows.len() / d_in;
    assert!(n_rows <= PANEL && out.len() == d_in * PANEL, "one panel");
    if n_rows < PANEL {
        out.fill(0.0);
    }
    // Blocks of 16 keep the cache lines of all rows in use until they are done with.
    for first in (0..d_in).step_by(16) {
        let last = (first + 16).min(d_in);
        for (i, row) in rows.chunks_exact(d_in).enumerate() {
            for k in first..last {
                out[k * PANEL + i] = match subtract {
                    Some(bias) => row[k] - bias[k],
                    None => row[k],
                };
            }
        }
    }
}

/// Packs up to 12 rows of a (F, D) array as one group `[k][12]`; missing rows become zeros.
pub(super) fn pack_group(rows: &[&[f32]], d_in: usize, out: &mut [f32]) {
    assert!(rows.len() <= GROUP && out.len() == d_in * GROUP, "one group");
    if rows.len() < GROUP {
        out.fill(0.0);
        for (j, row) in rows.iter().enumerate() {
            for k in 0..d_in {
                out[k * GROUP + j] = row[k];
            }
        }
        return;
    }
    let mut all = [rows[0]; GROUP];
    for (row, &from) in all.iter_mut().zip(rows) {
        *row = &from[..d_in];
    }
    // Four columns at a time, as far as that goes.
    let by_fours = if cfg!(target_arch = "x86_64") { d_in / 4 * 4 } else { 0 };
    #[cfg(target_arch = "x86_64")]
    for done in (0..by_fours).step_by(4) {
        use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
        let to = &mut out[done * GROUP..][..4 * GROUP];
        for first in [0, 4, 8] {
            // SAFETY: SSE is part of x86-64; four values are readable at `done` of every row, and four
            // members of four groups are writable.
            unsafe {
                let at = |j: usize| _mm_loadu_ps(all[first + j].as_ptr().add(done));
                let (mut a, mut b, mut c, mut d) = (at(0), at(1), at(2), at(3));
                _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                for (k, column) in [a, b, c, d].into_iter().enumerate() {
                    _mm_storeu_ps(to.as_mut_ptr().add(k * GROUP + first), column);
                }
            }
        }
    }
    for (k, group) in out.chunks_exact_mut(GROUP).enumerate().skip(by_fours) {
        for j in 0..GROUP {
            group[j] = all[j][k];
        }
    }
}
