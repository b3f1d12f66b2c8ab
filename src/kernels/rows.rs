//! The sparse work of a step on rows of (.., D) arrays: weighted sums of rows, one row added to many, and
//! products of one vector with many rows.
//!
//! All keep what they can in registers while they walk a list: a stretch of the result, of the row, or four
//! sums. Lanes that lie beyond D are masked, so any D will do. Rows are read in the order of the list.
//!
//! Rejected for weighted sums: adding whole rows one after the other, which loads and stores the sum once
//! per row; prefetching into the first-level instead of the second-level cache made no difference.

#![expect(
    clippy::needless_range_loop,
    reason = "an index runs through several arrays of registers and memory"
)]

use super::simd::{LANES, Simd};

/// `out = out * keep + sum_i coefs[i] * rows[indices[i]]`, entries in order; `keep` is 0 or 1.
///
/// # Safety
/// Instructions of `S` enabled; `out` valid for `d_in` values, `rows` for `d_in` values at every index.
#[inline(always)]
pub(super) unsafe fn sum_of_rows<S: Simd>(
    out: *mut f32,
    keep: bool,
    rows: *const f32,
    d_in: usize,
    indices: &[u32],
    coefs: &[f32],
) {
    let whole = d_in / LANES;
    let mut first = 0;
    // SAFETY: all stretches lie inside the rows.
    unsafe {
        if S::ACCUMULATORS >= 16 {
            while first + 16 <= whole {
                stretch::<S, 16>(out, keep, rows, d_in, first, indices, coefs);
                first += 16;
            }
        }
        while first + 4 <= whole {
            stretch::<S, 4>(out, keep, rows, d_in, first, indices, coefs);
            first += 4;
        }
        while first < whole {
            stretch::<S, 1>(out, keep, rows, d_in, first, indices, coefs);
            first += 1;
        }
        let rest = d_in - whole * LANES;
        if rest > 0 {
            let at = whole * LANES;
            let mut sum = if keep { S::load_part(out.add(at), rest) } else { S::splat(0.0) };
            for (&index, &coef) in indices.iter().zip(coefs) {
                let row = S::load_part(rows.add(index as usize * d_in + at), rest);
                sum = S::fma(S::splat(coef), row, sum);
            }
            S::store_part(out.add(at), sum, rest);
        }
    }
}

#[inline(always)]
unsafe fn stretch<S: Simd, const N: usize>(
    out: *mut f32,
    keep: bool,
    rows: *const f32,
    d_in: usize,
    first: usize,
    indices: &[u32],
    coefs: &[f32],
) {
    let at = first * LANES;
    // SAFETY: the stretch lies inside the rows, as the caller promises; prefetching may look beyond.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        if keep {
            for v in 0..N {
                sums[v] = S::load(out.add(at + v * LANES));
            }
        }
        for (&index, &coef) in indices.iter().zip(coefs) {
            let row = rows.add(index as usize * d_in + at);
            let coef = S::splat(coef);
            for v in 0..N {
                sums[v] = S::fma(coef, S::load(row.add(v * LANES)), sums[v]);
                if N > 4 {
                    S::prefetch(row.wrapping_add((N + v) * LANES));
                }
            }
        }
        for v in 0..N {
            S::store(out.add(at + v * LANES), sums[v]);
        }
    }
}

/// `block[token - first] += value * row` for all entries, where the block's rows are `width` apart.
///
/// # Safety
/// Instructions of `S` enabled; every token minus `first` is a row of the block, `row` is at most `width`
/// long, and `width` is a multiple of the lanes.
#[inline(always)]
pub(super) unsafe fn add_to_rows<S: Simd>(
    block: &mut [f32],
    width: usize,
    first: u32,
    row: &[f32],
    tokens: &[u32],
    values: &[f32],
) {
    debug_assert!(width.is_multiple_of(LANES) && row.len() <= width);
    debug_assert!(tokens.iter().all(|&token| ((token - first) as usize + 1) * width <= block.len()));
    let whole = row.len() / LANES;
    let mut at = 0;
    // SAFETY: all stretches lie inside the row and the rows of the block.
    unsafe {
        let (to, row_start) = (block.as_mut_ptr(), row.as_ptr());
        if S::ACCUMULATORS >= 16 {
            while at + 16 <= whole {
                add_stretch::<S, 16>(to, width, first, row_start, at, tokens, values);
                at += 16;
            }
            while at + 8 <= whole {
                add_stretch::<S, 8>(to, width, first, row_start, at, tokens, values);
                at += 8;
            }
        }
        while at + 4 <= whole {
            add_stretch::<S, 4>(to, width, first, row_start, at, tokens, values);
            at += 4;
        }
        while at < whole {
            add_stretch::<S, 1>(to, width, first, row_start, at, tokens, values);
            at += 1;
        }
        let rest = row.len() - whole * LANES;
        if rest > 0 {
            let w = S::load_part(row_start.add(whole * LANES), rest);
            for (&token, &value) in tokens.iter().zip(values) {
                let to = to.add((token - first) as usize * width + whole * LANES);
                S::store(to, S::fma(S::splat(value), w, S::load(to)));
            }
        }
    }
}

#[inline(always)]
unsafe fn add_stretch<S: Simd, const N: usize>(
    block: *mut f32,
    width: usize,
    first: u32,
    row: *const f32,
    at: usize,
    tokens: &[u32],
    values: &[f32],
) {
    // SAFETY: the stretch lies inside the row and the rows of the block.
    unsafe {
        let mut w = [S::splat(0.0); N];
        for v in 0..N {
            w[v] = S::load(row.add((at + v) * LANES));
        }
        for (&token, &value) in tokens.iter().zip(values) {
            let to = block.add((token - first) as usize * width + at * LANES);
            let value = S::splat(value);
            for v in 0..N {
                let to = to.add(v * LANES);
                S::store(to, S::fma(value, w[v], S::load(to)));
            }
        }
    }
}

/// `out[i] = vector . rows[indices[i]]`, four rows at a time.
///
/// # Safety
/// Instructions of `S` enabled; `vector` valid for `d_in` values, `rows` for `d_in` values at every index.
#[inline(always)]
pub(super) unsafe fn products_with_rows<S: Simd>(
    vector: *const f32,
    rows: *const f32,
    d_in: usize,
    indices: &[u32],
    out: &mut [f32],
) {
    let mut done = 0;
    // SAFETY: all offsets lie inside the rows, and the rows are those of the given indices.
    unsafe {
        let at = |i: usize| rows.add(indices[i] as usize * d_in);
        while done + 4 <= indices.len() {
            let four = [at(done), at(done + 1), at(done + 2), at(done + 3)];
            let products = products::<S, 4>(vector, four, d_in);
            out[done..done + 4].copy_from_slice(&products);
            done += 4;
        }
        while done < indices.len() {
            out[done] = products::<S, 1>(vector, [at(done)], d_in)[0];
            done += 1;
        }
    }
}

#[inline(always)]
unsafe fn products<S: Simd, const N: usize>(
    vector: *const f32,
    rows: [*const f32; N],
    d_in: usize,
) -> [f32; N] {
    // SAFETY: all offsets lie inside the rows.
    unsafe {
        let mut dots = [S::splat(0.0); N];
        let mut at = 0;
        while at + LANES <= d_in {
            let x = S::load(vector.add(at));
            for r in 0..N {
                dots[r] = S::fma(x, S::load(rows[r].add(at)), dots[r]);
            }
            at += LANES;
        }
        if at < d_in {
            let x = S::load_part(vector.add(at), d_in - at);
            for r in 0..N {
                dots[r] = S::fma(x, S::load_part(rows[r].add(at), d_in - at), dots[r]);
            }
        }
        let mut out = [0.0; N];
        for r in 0..N {
            out[r] = S::sum(dots[r]);
        }
        out
    }
}

/// `row . row`
///
/// # Safety
/// Instructions of `S` enabled; the row valid for `d_in` values.
#[inline(always)]
pub(super) unsafe fn square_of_row<S: Simd>(row: *const f32, d_in: usize) -> f32 {
    // SAFETY: all offsets lie inside the row.
    unsafe {
        let mut sum = S::splat(0.0);
        let mut at = 0;
        while at + LANES <= d_in {
            let w = S::load(row.add(at));
            sum = S::fma(w, w, sum);
            at += LANES;
        }
        if at < d_in {
            let w = S::load_part(row.add(at), d_in - at);
            sum = S::fma(w, w, sum);
        }
        S::sum(sum)
    }
}

/// `out = out + factor * row`
///
/// # Safety
/// Instructions of `S` enabled; both valid for `d_in` values.
#[inline(always)]
pub(super) unsafe fn add_scaled<S: Simd>(out: *mut f32, factor: f32, row: *const f32, d_in: usize) {
    // SAFETY: all offsets lie inside the rows.
    unsafe {
        let factor = S::splat(factor);
        let mut at = 0;
        while at + LANES <= d_in {
            S::store(out.add(at), S::fma(factor, S::load(row.add(at)), S::load(out.add(at))));
            at += LANES;
        }
        if at < d_in {
            let rest = d_in - at;
            let sum = S::fma(factor, S::load_part(row.add(at), rest), S::load_part(out.add(at), rest));
            S::store_part(out.add(at), sum, rest);
        }
    }
}
