//! Tests of [`super::screen`]: what is found must be the same, bit for bit, with it and without it.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::isa::Isa;
use super::params::{Params, Shape};
use super::pool::Pool;
use super::screen::PATIENCE;
use super::testing::Numbers;
use super::topk::Choice;
use super::workspace::Workspace;

/// A list of latents, tokens and bits of values for every tile, then those of the auxiliary losses.
type Found = Vec<(Vec<u32>, Vec<u32>, Vec<u32>)>;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Positive,
    AboveThresholds,
    Largest { choice: Choice, rescale: bool, aux: bool },
}

const KINDS: [Kind; 7] = [
    Kind::Positive,
    Kind::AboveThresholds,
    Kind::Largest { choice: Choice::OfToken { k: 3, by_magnitude: false }, rescale: false, aux: false },
    Kind::Largest { choice: Choice::OfToken { k: 9, by_magnitude: false }, rescale: true, aux: true },
    Kind::Largest { choice: Choice::OfToken { k: 2, by_magnitude: true }, rescale: false, aux: true },
    Kind::Largest { choice: Choice::OfToken { k: 7, by_magnitude: true }, rescale: true, aux: false },
    Kind::Largest { choice: Choice::OfBatch { n: 200 }, rescale: true, aux: true },
];

struct Problem {
    params: Params,
    x: Vec<f32>,
    batch: usize,
}

impl Problem {
    /// About normal numbers, and biases that leave about the share `density` of the values positive.
    fn new(d_in: usize, d_sae: usize, batch: usize, density: f64, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let mut normal = || (0..6).map(|_| numbers.grid(1 << 20)).sum::<f32>() / 2.0_f32.sqrt();
        let mut params = Params::zeros(d_in, d_sae);
        params.w_enc.fill_with(|| normal() / (d_in as f32).sqrt());
        params.w_dec.fill_with(&mut normal);
        params.b_dec.fill_with(&mut normal);
        let x: Vec<f32> = (0..batch * d_in).map(|_| normal()).collect();
        let mut pre: Vec<f32> = (0..500)
            .map(|i| chain(0.0, row(&x, d_in, i % batch), row(&params.w_enc, d_in, i * 7 % d_sae)))
            .collect();
        pre.sort_by(f32::total_cmp);
        params.b_enc.fill(-pre[((1.0 - density) * 499.0) as usize]);
        params.threshold = (0..d_sae).map(|latent| [0.0, 0.3, -1.0][latent % 3]).collect();
        Self { params, x, batch }
    }

    fn workspace(&self, isa: Isa, pool: &Pool) -> Workspace {
        let (d_in, d_sae) = (self.params.d_in(), self.params.d_sae());
        Workspace::with_isa(Shape { d_in, d_sae, batch: self.batch }, pool, isa)
    }

    fn find(&self, isa: Isa, threads: usize, kind: Kind) -> Found {
        let pool = Pool::new(threads);
        let mut ws = self.workspace(isa, &pool);
        ws.load(&pool, &self.params, true, &self.x);
        let set: Vec<bool> = (0..self.params.d_sae()).map(|latent| latent % 5 == 1).collect();
        match kind {
            Kind::Positive => ws.gather_positive(&pool, &self.params, 0..ws.lists.tiles.len()),
            Kind::AboveThresholds => ws.gather_active(&pool, &self.params),
            Kind::Largest { choice, rescale, aux } => {
                let aux: &[(usize, &[bool])] = if aux { &[(4, &set)] } else { &[] };
                ws.gather_largest(&pool, &self.params, choice, rescale, aux);
            }
        }
        let tiles = ws.lists.tiles.iter().chain(&ws.aux[0].lists.tiles);
        tiles
            .map(|tile| {
                let bits = tile.value.iter().map(|value| value.to_bits()).collect();
                (tile.start.clone(), tile.token.clone(), bits)
            })
            .collect()
    }

    fn check(&self) {
        if Isa::detect() < Isa::Avx512Vnni {
            return;
        }
        for kind in KINDS {
            let expected = self.find(Isa::Avx512, 1, kind);
            for threads in [1, 3] {
                assert!(expected == self.find(Isa::Avx512Vnni, threads, kind), "{kind:?}");
            }
        }
    }
}

fn row(rows: &[f32], d_in: usize, index: usize) -> &[f32] {
    &rows[index * d_in..][..d_in]
}

fn chain(bias: f32, x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(bias, |sum, (x, w)| x.mul_add(*w, sum))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lists_are_the_same_at_all_shapes_and_densities(
        (d_in, d_sae, batch) in (1_usize..150, 1_usize..250, 1_usize..200),
        density in prop_oneof![0.0..0.02, 0.0..1.0],
        seed: u64,
    ) {
        Problem::new(d_in, d_sae, batch, density, seed).check();
    }

    /// Every row has a size of its own, from where squares vanish to where sums overflow, and a few large entries.
    #[test]
    fn lists_are_the_same_at_all_scales(
        (d_in, d_sae, batch) in (1_usize..70, 50_usize..120, 1_usize..80),
        (range, one_in) in (0_i32..140, 1_u64..80),
        seed: u64,
    ) {
        let mut problem = Problem::new(d_in, d_sae, batch, 0.02, seed);
        let mut numbers = Numbers(seed);
        let mut power = |range: i32| 2.0_f32.powi((numbers.next() % (2 * range as u64 + 1)) as i32 - range);
        let Problem { params, x, .. } = &mut problem;
        for (row, bias) in params.w_enc.chunks_exact_mut(d_in).zip(&mut params.b_enc) {
            let size = power(range);
            row.iter_mut().for_each(|value| *value *= size);
            *bias *= size;
        }
        for row in x.chunks_exact_mut(d_in) {
            let size = power(range);
            row.iter_mut().for_each(|value| *value *= size);
        }
        let mut numbers = Numbers(seed + 1);
        for value in params.w_enc.iter_mut().chain(x) {
            if numbers.next().is_multiple_of(10 * one_in) {
                *value *= 100.0;
            }
        }
        problem.check();
    }

    /// Rows that are bytes times a scale, exactly, and biases that cancel a latent's largest product up to the last
    /// bit: the rounding of the f32 chain alone decides.
    #[test]
    fn lists_are_the_same_where_rounding_decides(
        (d_in, d_sae, batch) in (1_usize..200, 50_usize..120, 40_usize..80),
        seed: u64,
    ) {
        let mut problem = Problem::new(d_in, d_sae, batch, 0.0, seed);
        let mut numbers = Numbers(seed);
        let Problem { params, x, .. } = &mut problem;
        params.b_dec.fill(0.0);
        for row in params.w_enc.chunks_exact_mut(d_in).chain(x.chunks_exact_mut(d_in)) {
            // Seventeen bits times seven.
            let size = 1.0 + (numbers.next() % (1 << 16)) as f32 / (1 << 16) as f32;
            row.fill_with(|| size * ((numbers.next() % 255) as f32 - 127.0));
            row[0] = 127.0 * size;
        }
        for (latent, bias) in params.b_enc.iter_mut().enumerate() {
            let weights = row(&params.w_enc, d_in, latent);
            let products = x.chunks_exact(d_in).map(|x| chain(0.0, x, weights));
            let largest = products.fold(f32::NEG_INFINITY, f32::max);
            *bias = [-largest, -largest.next_up(), -largest.next_down()][latent % 3];
        }
        problem.check();
    }

    #[test]
    fn lists_are_the_same_beside_what_is_no_number(
        (d_in, d_sae, batch) in (1_usize..70, 50_usize..120, 1_usize..80),
        (n_special, seed) in (1_usize..6, any::<u64>()),
    ) {
        let mut problem = Problem::new(d_in, d_sae, batch, 0.02, seed);
        let mut numbers = Numbers(seed);
        let Problem { params, x, .. } = &mut problem;
        for _ in 0..n_special {
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45];
            let special = special[numbers.next() as usize % special.len()];
            let arrays: [&mut [f32]; 5] =
                [x, &mut params.w_enc, &mut params.b_enc, &mut params.w_dec, &mut params.threshold];
            let array = arrays.into_iter().nth(numbers.next() as usize % 5).expect("one of five");
            array[numbers.next() as usize % array.len()] = special;
        }
        problem.check();
    }
}

/// Tiles of few active latents are screened, others not for a while.
#[test]
fn tiles_choose_by_density() {
    if Isa::detect() < Isa::Avx512Vnni {
        return;
    }
    let pool = Pool::new(1);
    for (density, patience) in [(0.002, 0), (0.5, PATIENCE)] {
        let problem = Problem::new(256, 200, 300, density, 1);
        let mut ws = problem.workspace(Isa::Avx512Vnni, &pool);
        for step in 0..=PATIENCE + 1 {
            ws.load(&pool, &problem.params, false, &problem.x);
            ws.gather_positive(&pool, &problem.params, 0..ws.lists.tiles.len());
            for tile in &ws.screen.patience {
                let left = (patience + PATIENCE + 1 - step) % (PATIENCE + 1);
                assert_eq!(tile.load(Ordering::Relaxed), if patience > 0 { left } else { 0 }, "step {step}");
            }
        }
    }
}
