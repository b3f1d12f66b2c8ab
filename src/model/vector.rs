//! Arithmetic on rows of f32 that candle does one number at a time: exponentials and what is made of them.
//!
//! Each function is a plain loop that the compiler turns into vector code, compiled twice: for what every
//! machine has and for AVX2, which is taken where the machine has it. The system's `exp` costs several times
//! the polynomial used here, because it takes one number a call.

/// Calls a function compiled for AVX2 where the machine has it, else as it is. A macro, because the function must be
/// inlined into one that is marked for AVX2, which a closure handed to a common one is not.
macro_rules! widest {
    ($plain:ident($($name:ident: $kind:ty),*) -> $result:ty) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn avx2($($name: $kind),*) -> $result {
                $plain($($name),*)
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the machine has what the function was compiled for.
                return unsafe { avx2($($name),*) };
            }
        }
        $plain($($name),*)
    }};
}

/// How many partial results a reduction keeps. Fixed, so that a sum has one order on every machine.
const LANES: usize = 16;

/// Turns scores into `exp(score - max)` in place and returns the sum of the results, by which the caller divides.
pub(crate) fn exp_row(row: &mut [f32]) -> f32 {
    #[inline(always)]
    fn plain(row: &mut [f32]) -> f32 {
        let max = max(row);
        let mut sums = [0f32; LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (value, sum) in chunk.iter_mut().zip(&mut sums) {
                *value = exp(*value - max);
                *sum += *value;
            }
        }
        for (value, sum) in rest.iter_mut().zip(&mut sums) {
            *value = exp(*value - max);
            *sum += *value;
        }
        sums.iter().sum()
    }
    widest!(plain(row: &mut [f32]) -> f32)
}

/// `ln(sum(exp(row)))`; parts of the sum are gathered in f64.
pub(crate) fn log_sum_exp(row: &[f32]) -> f64 {
    #[inline(always)]
    fn plain(row: &[f32]) -> f64 {
        const PART: usize = 1024;
        let max = max(row);
        let part_sum = |part: &[f32]| {
            let mut sums = [0f32; LANES];
            let (chunks, rest) = part.as_chunks::<LANES>();
            for chunk in chunks {
                for (value, sum) in chunk.iter().zip(&mut sums) {
                    *sum += exp(*value - max);
                }
            }
            for (value, sum) in rest.iter().zip(&mut sums) {
                *sum += exp(*value - max);
            }
            f64::from(sums.iter().sum::<f32>())
        };
        f64::from(max) + row.chunks(PART).map(part_sum).sum::<f64>().ln()
    }
    widest!(plain(row: &[f32]) -> f64)
}

/// KL divergence in nats of the distributions that two rows of logits stand for, `sum(P (ln P - ln Q))`.
///
/// With e = exp(p - max p): sum(e (p - max p - q + max q)) / sum(e) - ln(sum(e)) + ln(sum(exp(q - max q))). Parts of
/// the sums are gathered in f64; a result that rounding left below zero is zero. NaN in either row gives NaN.
pub(crate) fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    const PART: usize = 1024;
    /// Its exponential is far below the rounding of a sum that holds a 1.
    const NOTHING: f32 = -80.0;
    #[inline(always)]
    fn plain(p: &[f32], q: &[f32]) -> f64 {
        let (max_p, max_q) = (max(p), max(q));
        let mut sums = [0f64; 3];
        for (p, q) in p.chunks(PART).zip(q.chunks(PART)) {
            let mut lanes = [[0f32; LANES]; 3];
            for (p, q) in p.chunks(LANES).zip(q.chunks(LANES)) {
                for (lane, (&p, &q)) in p.iter().zip(q).enumerate() {
                    let (p, q) = (p - max_p, q - max_q);
                    let e = exp(p);
                    lanes[0][lane] += e;
                    lanes[1][lane] += exp(q);
                    // A token that p rules out adds nothing, however impossible q finds it.
                    lanes[2][lane] += if p < NOTHING { 0.0 } else { e * (p - q) };
                }
            }
            for (sum, lanes) in sums.iter_mut().zip(&lanes) {
                *sum += f64::from(lanes.iter().sum::<f32>());
            }
        }
        let [sum_p, sum_q, weighted] = sums;
        let divergence = weighted / sum_p - sum_p.ln() + sum_q.ln();
        // Not `max`, which would make a zero of NaN.
        if divergence < 0.0 { 0.0 } else { divergence }
    }
    widest!(plain(p: &[f32], q: &[f32]) -> f64)
}

/// `x sigmoid(x)` of each number, times the number in `gated` if there is one.
pub(crate) fn silu_row(out: &mut [f32], x: &[f32], gated: Option<&[f32]>) {
    #[inline(always)]
    fn plain(out: &mut [f32], x: &[f32], gated: Option<&[f32]>) {
        activate(out, x, gated, |x| -x);
    }
    widest!(plain(out: &mut [f32], x: &[f32], gated: Option<&[f32]>) -> ())
}

/// GELU by its tanh approximation, `x sigmoid(2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`.
pub(crate) fn gelu_tanh_row(out: &mut [f32], x: &[f32], gated: Option<&[f32]>) {
    #[inline(always)]
    fn plain(out: &mut [f32], x: &[f32], gated: Option<&[f32]>) {
        const MINUS_TWO_SQRT_TWO_OVER_PI: f32 = -1.595_769;
        activate(out, x, gated, |x| MINUS_TWO_SQRT_TWO_OVER_PI * (x + 0.044_715 * x * x * x));
    }
    widest!(plain(out: &mut [f32], x: &[f32], gated: Option<&[f32]>) -> ())
}

/// `x / (1 + exp(inner(x)))`, and the product with the gated numbers.
#[inline(always)]
fn activate(out: &mut [f32], x: &[f32], gated: Option<&[f32]>, inner: impl Fn(f32) -> f32) {
    match gated {
        None => {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = x / (1.0 + exp(inner(x)));
            }
        }
        Some(gated) => {
            for ((out, &x), &gated) in out.iter_mut().zip(x).zip(gated) {
                *out = x / (1.0 + exp(inner(x))) * gated;
            }
        }
    }
}

#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(value, *lane);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(value, *lane);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// The exponential to within two units in the last place, between 2^-126 and 2^127; NaN stays NaN.
///
/// `x = n ln 2 + r`; `exp(r)` by a polynomial (the coefficients are Cephes'), times 2^n by adding n to the
/// exponent's bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1000) as f32 * 0.02 - 10.0).collect()
    }

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - truth).abs() / truth);
        }
        assert!(worst < 2.5e-7, "{worst:e}");
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1000.0) < 2e-38 && exp(1000.0) > 1e38);
    }

    #[test]
    fn softmax_agrees_with_f64_at_awkward_lengths() {
        for n in [1, 2, 15, 16, 17, 31, 100, 1025] {
            let row = values(n);
            let truth: Vec<f64> = row.iter().map(|&v| f64::from(v).exp()).collect();
            let total: f64 = truth.iter().sum();
            let mut got = row.clone();
            let sum = exp_row(&mut got);
            for (got, truth) in got.iter().zip(&truth) {
                assert!((f64::from(got / sum) - truth / total).abs() < 1e-6, "{n}");
            }
            assert!((log_sum_exp(&row) - total.ln()).abs() < 1e-6, "{n}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn divergence_is_what_its_formula_says(
            pairs in proptest::collection::vec((-20_f32..20.0, -20_f32..20.0), 1..70),
            shift in -1000_f32..1000.0,
        ) {
            let (p, q): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let log_probabilities = |logits: &[f32]| {
                let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                logits.iter().map(|x| f64::from(*x) - sum.ln()).collect::<Vec<_>>()
            };
            let terms = log_probabilities(&p).into_iter().zip(log_probabilities(&q));
            let expected: f64 = terms.map(|(p, q)| p.exp() * (p - q)).sum();
            prop_assert!((kl_divergence(&p, &q) - expected).abs() < 5e-5 * (1.0 + expected));
            // Logits mean the same when all of them are moved, and then must not overflow.
            let moved: Vec<f32> = q.iter().map(|q| q + shift).collect();
            prop_assert!((kl_divergence(&p, &moved) - expected).abs() < 1e-2 * (1.0 + expected));
        }
    }

    #[test]
    fn divergence_from_itself_is_zero_and_tokens_ruled_out_add_nothing() {
        assert!(kl_divergence(&[1.0, 2.0, -3.0], &[1.0, 2.0, -3.0]) < 1e-6);
        let half = kl_divergence(&[0.0, f32::NEG_INFINITY], &[0.0, 0.0]);
        assert!((half - std::f64::consts::LN_2).abs() < 1e-6, "{half}");
    }

    #[test]
    fn nonlinearities_agree_with_f64() {
        let x = values(1000);
        let gated = values(1000).into_iter().rev().collect::<Vec<_>>();
        let (mut silu, mut gelu, mut product) = (vec![0.0; 1000], vec![0.0; 1000], vec![0.0; 1000]);
        silu_row(&mut silu, &x, None);
        gelu_tanh_row(&mut gelu, &x, None);
        silu_row(&mut product, &x, Some(&gated));
        for i in 0..1000 {
            let v = f64::from(x[i]);
            let truth_silu = v / (1.0 + (-v).exp());
            let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            let truth_gelu = 0.5 * v * (1.0 + u.tanh());
            assert!((f64::from(silu[i]) - truth_silu).abs() < 1e-6 * (1.0 + v.abs()));
            assert!((f64::from(gelu[i]) - truth_gelu).abs() < 1e-6 * (1.0 + v.abs()));
            let truth = truth_silu * f64::from(gated[i]);
            assert!((f64::from(product[i]) - truth).abs() < 1e-6 * (1.0 + truth.abs()));
        }
    }

    #[test]
    fn a_row_with_nan_stays_visible() {
        let mut row = vec![0.0, f32::NAN, 1.0];
        assert!(exp_row(&mut row).is_nan());
        assert!(log_sum_exp(&[0.0, f32::NAN]).is_nan());
        for place in [0, 1, 20] {
            let (good, mut bad) = (values(33), values(33));
            bad[place] = f32::NAN;
            assert!(kl_divergence(&good, &bad).is_nan() && kl_divergence(&bad, &good).is_nan());
        }
    }
}
