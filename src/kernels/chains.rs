//! Products of one weight row with some rows of the batch, with the very bits that [`super::product`] gives them: one
//! chain of fused operations in rising k that begins with the bias.
//!
//! Sixteen tokens at a time, one in each lane. Their rows are transposed on the way, four columns at once: a
//! quarter of a register is loaded from each of four rows, and two rounds of shuffles make columns of four such.
//!
//! Measured on Zen 4 at widths 576 to 1536, random tokens of 1024: 13.8 G products a second, of 14.5 that one
//! chain's latency allows; a quarter of the dense product's rate. Whole lines transposed 16 by 16 are as fast; two
//! chains at once gain nothing; scalar chains reach 5.4, gathering from panels 1.2. Rows must not all begin at the same
//! place of a page: 6.5 where they are 4 KB apart.

use std::arch::x86_64::*;

use super::simd::LANES;

/// The products with the rows at `rows`, in their order, each begun with `bias`.
///
/// # Safety
/// AVX-512 F and DQ enabled; `weights` valid for `d_in` values, every row for that many rounded up to a multiple of 4.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn chains(
    rows: &[*const f32; LANES],
    weights: *const f32,
    d_in: usize,
    bias: f32,
) -> __m512 {
    let mut sums = _mm512_set1_ps(bias);
    let mut k = 0;
    while k + 4 <= d_in {
        // SAFETY: four columns of each row and four weights are readable.
        unsafe {
            let columns = four_columns(rows, k);
            for (i, column) in columns.into_iter().enumerate() {
                sums = _mm512_fmadd_ps(column, _mm512_set1_ps(*weights.add(k + i)), sums);
            }
        }
        k += 4;
    }
    if k < d_in {
        // SAFETY: rows are readable up to a multiple of 4; no more weights are used than there are.
        unsafe {
            let columns = four_columns(rows, k);
            for (i, column) in columns.into_iter().enumerate().take(d_in - k) {
                sums = _mm512_fmadd_ps(column, _mm512_set1_ps(*weights.add(k + i)), sums);
            }
        }
    }
    sums
}

/// Columns k to k + 3 of all rows.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn four_columns(rows: &[*const f32; LANES], k: usize) -> [__m512; 4] {
    // SAFETY: the caller's: four values are readable at k of every row.
    unsafe {
        // Rows r, r + 4, r + 8 and r + 12, a quarter of the register each.
        let quarters = |r: usize| {
            let at = |row: usize| _mm_loadu_ps(rows[row].add(k));
            let quarters = _mm512_broadcast_f32x4(at(r));
            let quarters = _mm512_mask_broadcast_f32x4(quarters, 0x00F0, at(r + 4));
            let quarters = _mm512_mask_broadcast_f32x4(quarters, 0x0F00, at(r + 8));
            _mm512_mask_broadcast_f32x4(quarters, 0xF000, at(r + 12))
        };
        let (a, b, c, d) = (quarters(0), quarters(1), quarters(2), quarters(3));
        let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        [
            _mm512_shuffle_ps::<0x44>(ab_low, cd_low),
            _mm512_shuffle_ps::<0xEE>(ab_low, cd_low),
            _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm512_shuffle_ps::<0xEE>(ab_high, cd_high),
        ]
    }
}
