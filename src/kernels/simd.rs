//! Sixteen f32 lanes, three ways: AVX-512, AVX2 with FMA, and arrays that the compiler may vectorise.
//!
//! A kernel is written once against [`Simd`] and compiled three times; [`Isa::run`] picks. AVX-512 and AVX2
//! do the same fused operations in the same order, so they give the same bits. The plain lanes multiply and
//! add separately where the target has no fused instruction, so they agree to rounding only.
//!
//! Every function here is `inline(always)`: only inlined into a function that enables the instructions does
//! an intrinsic become one instruction.

use super::isa::Isa;

/// Lanes of one vector.
pub(super) const LANES: usize = 16;

/// A kernel that is generic over the lanes. `run` must be `inline(always)`.
pub(super) trait Kernel {
    fn run<S: Simd>(self);
}

impl Isa {
    /// Runs a kernel with these instructions. `self` must be available, as [`Isa::detect`] says; workspaces
    /// check that when they are made.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's level is available on this machine, see above.
            Self::Avx512 | Self::Avx512Vnni => unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { run_avx2(kernel) },
            _ => kernel.run::<PlainLanes>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,popcnt")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run::<x86::Avx512Lanes>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,popcnt")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run::<x86::Avx2Lanes>();
}

/// Operations on sixteen f32 lanes.
///
/// # Safety
/// The functions may only be called where the instructions are enabled; pointers must be valid for the lanes
/// that are read or written, and need no alignment.
pub(super) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// Vectors of accumulators that fit in the registers beside two operands.
    const ACCUMULATORS: usize;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// The first `count` lanes from memory, the others 0.
    unsafe fn load_part(from: *const f32, count: usize) -> Self::V;
    /// Stores the first `count` lanes.
    unsafe fn store_part(to: *mut f32, value: Self::V, count: usize);
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// a * b + c
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each pair of lanes; `b` where one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// One bit per lane that is not below `limit`; NaN is not below anything.
    unsafe fn not_below(a: Self::V, limit: Self::V) -> u32;
    /// Writes the lanes whose bit is set, and `first + lane` for each, packed to the front. Up to sixteen
    /// places may be overwritten. Returns how many lanes there were.
    unsafe fn compress(a: Self::V, mask: u32, first: u32, values: *mut f32, indices: *mut u32) -> usize;
    /// Sum over lanes, always in this order: halves, quarters, pairs, singles.
    unsafe fn sum(a: Self::V) -> f32;
    /// Asks for a cache line to be brought into the second-level cache.
    unsafe fn prefetch(at: *const f32);
}

/// Plain code.
#[derive(Clone, Copy)]
pub(super) struct PlainLanes;

impl PlainLanes {
    #[inline(always)]
    fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        let mut lane = 0;
        while lane < LANES {
            out[lane] = f(lane);
            lane += 1;
        }
        out
    }
}

impl Simd for PlainLanes {
    type V = [f32; LANES];
    const ACCUMULATORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: sixteen lanes are readable.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: sixteen lanes are writable.
        unsafe { to.cast::<Self::V>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self::V {
        // SAFETY: `count` lanes are readable.
        Self::each(|lane| if lane < count { unsafe { *from.add(lane) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, value: Self::V, count: usize) {
        for (lane, &value) in value.iter().enumerate().take(count) {
            // SAFETY: `count` lanes are writable.
            unsafe { *to.add(lane) = value };
        }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|lane| a[lane] - b[lane])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|lane| a[lane] / b[lane])
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        Self::each(|lane| a[lane].sqrt())
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            Self::each(|lane| a[lane].mul_add(b[lane], c[lane]))
        } else {
            Self::each(|lane| a[lane] * b[lane] + c[lane])
        }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn not_below(a: Self::V, limit: Self::V) -> u32 {
        let mut mask = 0;
        for lane in 0..LANES {
            mask |= u32::from(a[lane] >= limit[lane] || a[lane].is_nan()) << lane;
        }
        mask
    }
    #[inline(always)]
    unsafe fn compress(a: Self::V, mask: u32, first: u32, values: *mut f32, indices: *mut u32) -> usize {
        // SAFETY: sixteen places are writable.
        unsafe { compress_by_bits(&a, mask, first, values, indices) }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        sum_in_order(&a)
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}
}

#[inline(always)]
fn sum_in_order(a: &[f32; LANES]) -> f32 {
    let mut part = *a;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            part[lane] += part[lane + width];
        }
        width /= 2;
    }
    part[0]
}

#[inline(always)]
unsafe fn compress_by_bits(
    lanes: &[f32; LANES],
    mut mask: u32,
    first: u32,
    values: *mut f32,
    indices: *mut u32,
) -> usize {
    let mut count = 0;
    while mask != 0 {
        let lane = mask.trailing_zeros();
        // SAFETY: at most sixteen bits are set, and sixteen places are writable.
        unsafe {
            *values.add(count) = lanes[lane as usize];
            *indices.add(count) = first + lane;
        }
        count += 1;
        mask &= mask - 1;
    }
    count
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx512Lanes;

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The two x86 levels. What every block relies on is the contract of [`Simd`]: instructions enabled,
    //! pointers valid.

    use std::arch::x86_64::*;

    use super::{LANES, Simd, compress_by_bits};

    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512Lanes;

    #[inline(always)]
    fn first_lanes(count: usize) -> u16 {
        ((1_u32 << count) - 1) as u16
    }

    impl Simd for Avx512Lanes {
        type V = __m512;
        const ACCUMULATORS: usize = 16;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, value: __m512) {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_storeu_ps(to, value) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> __m512 {
            // SAFETY: contract of `Simd`; masked lanes are not touched.
            unsafe { _mm512_maskz_loadu_ps(first_lanes(count), from) }
        }
        #[inline(always)]
        unsafe fn store_part(to: *mut f32, value: __m512, count: usize) {
            // SAFETY: contract of `Simd`; masked lanes are not touched.
            unsafe { _mm512_mask_storeu_ps(to, first_lanes(count), value) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: __m512) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_sqrt_ps(a) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            // SAFETY: contract of `Simd`.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn not_below(a: __m512, limit: __m512) -> u32 {
            // SAFETY: contract of `Simd`.
            u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, limit) })
        }
        #[inline(always)]
        unsafe fn compress(a: __m512, mask: u32, first: u32, values: *mut f32, indices: *mut u32) -> usize {
            // SAFETY: contract of `Simd`. Compressing into a register and storing all of it is many times
            // faster on Zen 4 than the form that stores to memory.
            unsafe {
                let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let index = _mm512_add_epi32(lane, _mm512_set1_epi32(first as i32));
                _mm512_storeu_ps(values, _mm512_maskz_compress_ps(mask as u16, a));
                _mm512_storeu_epi32(indices.cast(), _mm512_maskz_compress_epi32(mask as u16, index));
            }
            mask.count_ones() as usize
        }
        #[inline(always)]
        unsafe fn sum(a: __m512) -> f32 {
            // SAFETY: contract of `Simd`.
            unsafe {
                let high = _mm512_extractf32x8_ps::<1>(a);
                sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(a), high))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
    }

    /// Sixteen lanes in two registers of eight.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2Lanes;

    #[inline(always)]
    unsafe fn sum_of_eight(a: __m256) -> f32 {
        // SAFETY: contract of `Simd`.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn eight_lanes(count: usize) -> __m256i {
        // SAFETY: contract of `Simd`.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), lane)
        }
    }

    impl Simd for Avx2Lanes {
        type V = (__m256, __m256);
        const ACCUMULATORS: usize = 6;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, value: Self::V) {
            // SAFETY: contract of `Simd`.
            unsafe {
                _mm256_storeu_ps(to, value.0);
                _mm256_storeu_ps(to.add(8), value.1);
            }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self::V {
            // SAFETY: contract of `Simd`; masked lanes are not touched.
            unsafe {
                (
                    _mm256_maskload_ps(from, eight_lanes(count)),
                    _mm256_maskload_ps(from.wrapping_add(8), eight_lanes(count.saturating_sub(8))),
                )
            }
        }
        #[inline(always)]
        unsafe fn store_part(to: *mut f32, value: Self::V, count: usize) {
            // SAFETY: contract of `Simd`; masked lanes are not touched.
            unsafe {
                _mm256_maskstore_ps(to, eight_lanes(count), value.0);
                _mm256_maskstore_ps(to.wrapping_add(8), eight_lanes(count.saturating_sub(8)), value.1);
            }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: Self::V) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_sqrt_ps(a.0), _mm256_sqrt_ps(a.1)) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: contract of `Simd`.
            unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn not_below(a: Self::V, limit: Self::V) -> u32 {
            // SAFETY: contract of `Simd`.
            unsafe {
                let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(a.0, limit.0));
                let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(a.1, limit.1));
                low as u32 | (high as u32) << 8
            }
        }
        #[inline(always)]
        unsafe fn compress(a: Self::V, mask: u32, first: u32, values: *mut f32, indices: *mut u32) -> usize {
            let mut lanes = [0.0; LANES];
            // SAFETY: contract of `Simd`; the array has sixteen places.
            unsafe {
                Self::store(lanes.as_mut_ptr(), a);
                compress_by_bits(&lanes, mask, first, values, indices)
            }
        }
        #[inline(always)]
        unsafe fn sum(a: Self::V) -> f32 {
            // SAFETY: contract of `Simd`.
            unsafe { sum_of_eight(_mm256_add_ps(a.0, a.1)) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
    }
}
