//! A decoder whose rows are kept at norm 1 (Bricken et al. 2023): what of a gradient only changes a row's length
//! is left out, and the length is set right after the update.
//!
//! Sums are in double precision and plain code, so results are the same with any instructions. Both passes are
//! bound by memory, a small part of a step; nothing is gained by fusing them with the optimiser's.

use super::adam::norm_of_gradients;
use super::lists::TILE;
use super::memory::Disjoint;
use super::params::Params;
use super::pool::Pool;
use super::weights::has_no_gradient;

/// Sums taken side by side.
const LANES: usize = 8;

/// From each decoder row's gradient g takes the part along the row w, `g - (g · w / w · w) w`, and returns the
/// total L2 norm of all gradients that are left. A row of zeros has no direction, its gradient stays.
///
/// # Panics
/// When the arrays are not those of one SAE.
pub fn remove_parallel(pool: &Pool, params: &Params, grads: &mut Params) -> f64 {
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    params.check(d_in, d_sae);
    grads.check(d_in, d_sae);
    let Params { w_dec: gradients, b_enc, .. } = &mut *grads;
    over_rows(pool, d_in, gradients, &|latent, g| {
        if has_no_gradient(b_enc[latent]) {
            return;
        }
        let row = &params.w_dec[latent * d_in..][..d_in];
        let square = dot(row, row);
        if square > 0.0 {
            let along = dot(g, row) / square;
            g.iter_mut().zip(row).for_each(|(g, &w)| *g = (f64::from(*g) - along * f64::from(w)) as f32);
        }
    });
    norm_of_gradients(pool, grads)
}

/// Scales each row of the decoder to norm 1. A row of zeros stays one.
pub fn set_unit_rows(pool: &Pool, params: &mut Params) {
    let d_in = params.d_in();
    over_rows(pool, d_in, &mut params.w_dec, &|_, row| {
        let norm = dot(row, row).sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|w| *w = (f64::from(*w) / norm) as f32);
        }
    });
}

/// Does something to every row of an (F, D) array, a tile of rows a task.
fn over_rows(pool: &Pool, d_in: usize, rows: &mut [f32], each: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let n_rows = rows.len() / d_in;
    let shared = Disjoint::new(rows);
    pool.run(n_rows.div_ceil(TILE), &|index| {
        let first = index * TILE;
        let count = TILE.min(n_rows - first);
        // SAFETY: one part per task.
        let part = unsafe { shared.part(first * d_in, count * d_in) };
        part.chunks_exact_mut(d_in).enumerate().for_each(|(place, row)| each(first + place, row));
    });
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder()).map(|(&a, &b)| f64::from(a) * f64::from(b));
    let rest: f64 = rest.sum();
    for (a, b) in a.zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reference;
    use super::super::testing::{Numbers, bits};
    use super::super::weights::NO_GRADIENT;
    use super::*;

    fn numbers(d_in: usize, d_sae: usize, seed: u64) -> (Params, Params) {
        let mut numbers = Numbers(seed);
        let mut filled = || {
            let mut params = Params::zeros(d_in, d_sae);
            params.arrays_mut().into_iter().flatten().for_each(|x| *x = numbers.grid(1000));
            params
        };
        (filled(), filled())
    }

    #[test]
    fn by_hand() {
        let params = Params { w_dec: vec![3.0, 4.0, 0.0, 0.0], ..Params::zeros(2, 2) };
        let mut grads = Params { w_dec: vec![1.0, 0.0, 5.0, 6.0], ..Params::zeros(2, 2) };
        // 1 along (0.6, 0.8) is 0.6 of it, that is (0.36, 0.48).
        let norm = remove_parallel(&Pool::new(1), &params, &mut grads);
        assert_eq!(grads.w_dec, [0.64, -0.48, 5.0, 6.0]);
        assert!((norm - (0.64 + 61.0_f64).sqrt()).abs() < 1e-6, "{norm}");
        let mut params = params;
        set_unit_rows(&Pool::new(1), &mut params);
        assert_eq!(params.w_dec, [0.6, 0.8, 0.0, 0.0]);
    }

    #[test]
    fn a_latent_without_gradient_is_not_read() {
        let (params, mut grads) = numbers(5, 3, 1);
        grads.b_enc[1] = NO_GRADIENT;
        grads.w_dec[5..10].fill(f32::NAN);
        grads.w_enc[5..10].fill(f32::NAN);
        assert!(remove_parallel(&Pool::new(1), &params, &mut grads).is_finite());
        grads.w_dec[0] = f32::NAN;
        assert!(remove_parallel(&Pool::new(1), &params, &mut grads).is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_the_reference(d_in in 1_usize..40, d_sae in 1_usize..150, seed in 0_u64..1000) {
            let (params, mut grads) = numbers(d_in, d_sae, seed);
            let mut wanted = grads.to_f64();
            let wanted_norm = reference::remove_parallel(&params.to_f64(), &mut wanted);
            let mut on_three = grads.clone();
            let norm = remove_parallel(&Pool::new(1), &params, &mut grads);
            remove_parallel(&Pool::new(3), &params, &mut on_three);
            prop_assert_eq!(bits(&grads), bits(&on_three));
            prop_assert!((norm - wanted_norm).abs() < 1e-5 * (1.0 + wanted_norm), "{norm} {wanted_norm}");
            for (got, want) in grads.arrays().into_iter().flatten().zip(wanted.arrays().into_iter().flatten()) {
                prop_assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}");
            }

            let mut unit = params.clone();
            set_unit_rows(&Pool::new(2), &mut unit);
            for (row, before) in unit.w_dec.chunks_exact(d_in).zip(params.w_dec.chunks_exact(d_in)) {
                let (norm, norm_before) = (dot(row, row).sqrt(), dot(before, before).sqrt());
                prop_assert!(norm_before == 0.0 || (norm - 1.0).abs() < 1e-6, "{norm}");
                prop_assert!((dot(row, before) - norm_before).abs() < 1e-5, "the direction is kept");
            }
        }
    }
}
