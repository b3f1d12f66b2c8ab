//! The gated SAE's training step: gates decide which latents are active, magnitudes by how much.

use super::decode::{Begin, DecodeOut, DecodePass};
use super::lists::{TILE, TileLists};
use super::memory::Disjoint;
use super::params::Params;
use super::pool::Pool;
use super::weights::{EntryLoss, L1, Pull, WeightPass};
use super::workspace::{StepLosses, Workspace};

/// Settings of one step of a gated SAE.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedStep {
    /// Weight of the L1 loss on gates at this step, after its schedule.
    pub l1_coefficient: f64,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
}

/// Losses of one batch and their gradients, as [`super::reference::gated_step`] defines them.
///
/// `x` is (B, D) with 1 <= B <= `shape.batch`; `grads` is overwritten. A NaN anywhere shows in the losses.
///
/// # Panics
/// When a length does not fit the workspace's shape.
pub fn gated_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &GatedStep,
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    for array in [&params.r_mag, &params.b_mag, &grads.r_mag, &grads.b_mag] {
        assert_eq!(array.len(), ws.shape.d_sae, "magnitudes have a scale and a bias for each latent");
    }
    let n_tokens = ws.check(params, x, grads);
    let (d_in, with_bias) = (params.d_in(), step.apply_b_dec_to_input);
    let scale = 1.0 / n_tokens as f64;
    let parts = ws.parts(pool, params, with_bias, x, 2, |ws, tiles| ws.gather_positive(pool, params, tiles));
    ws.aux_losses.clear();
    ws.aux_losses.resize(n_tokens, [0.0; 2]);
    let (mut n_active, mut l1_sum) = (0, 0.0);
    for (tokens, part) in parts.iter() {
        let range = tokens.start * d_in..tokens.end * d_in;
        let x = &x[range.clone()];
        ws.take_in(pool, params, with_bias, x);
        ws.gather_gated(pool, params);
        n_active += ws.lists.count();
        ws.count_fired();

        let aux_g = ws.screen.scratch();
        for buffer in [&mut ws.g, &mut ws.panels, &mut *aux_g] {
            buffer.resize(x.len());
        }
        let pass = DecodePass {
            isa: ws.isa,
            params,
            order: &ws.order,
            lists: &ws.lists,
            n_tokens: tokens.len(),
            begin: Begin::Bias,
            target: x,
            weight: None,
            g_scale: (2.0 * scale) as f32,
            lp_norm: None,
        };
        let losses = &mut ws.token_losses[tokens.clone()];
        let out = DecodeOut { reconstruction: &mut ws.reconstruction[range], g: &mut ws.g, losses };
        pass.run(pool, &mut ws.decode_space, out);
        let losses = &mut ws.aux_losses[tokens];
        let out = DecodeOut { reconstruction: &mut ws.panels, g: &mut *aux_g, losses };
        DecodePass { lists: &ws.aux[0].lists, ..pass }.run(pool, &mut ws.decode_space, out);

        let l1 = L1 { scale: (step.l1_coefficient * scale) as f32, p: 1.0, norms: &[] };
        let magnitudes =
            Pull { lists: &ws.lists, g: &ws.g, decoded: true, loss: Some(EntryLoss::Magnitudes) };
        let gates = Pull { lists: &ws.aux[0].lists, g: aux_g, decoded: true, loss: Some(EntryLoss::L1(l1)) };
        let pass = WeightPass {
            isa: ws.isa,
            params,
            order: &ws.order,
            x_in: if with_bias { &ws.x_in } else { x },
            pulls: &[magnitudes, gates],
            bias_in_input: with_bias,
            pulls_on_bias: 2,
            part,
        };
        let sums = pass.run(pool, &mut ws.weight_space, grads);
        l1_sum += sums.sparsity;
        ws.grad_squares = sums.squares;
    }
    ws.n_tokens = n_tokens;

    let mean = |losses: &[[f64; 2]]| scale * losses.iter().map(|losses| losses[0]).sum::<f64>();
    let (mse, auxiliary) = (mean(&ws.token_losses), mean(&ws.aux_losses));
    let sparsity = step.l1_coefficient * scale * l1_sum;
    let overall = mse + sparsity + auxiliary;
    StepLosses { overall, mse, sparsity, auxiliary, l0: scale * n_active as f64 }
}

impl Workspace {
    /// Fills the auxiliary lists with the open gates of the loaded batch, and the lists with the positive
    /// magnitudes behind them.
    pub(super) fn gather_gated(&mut self, pool: &Pool, params: &Params) {
        self.gather_positive(pool, params, 0..self.lists.tiles.len());
        let (lists, gates) =
            (Disjoint::new(&mut self.lists.tiles), Disjoint::new(&mut self.aux[0].lists.tiles));
        pool.run(self.order.len().div_ceil(TILE), &|index| {
            // SAFETY: one tile per task.
            let (lists, gates) = unsafe { (lists.at(index), gates.at(index)) };
            gates.clear(lists.token.len());
            gates.start.clone_from(&lists.start);
            gates.token.extend_from_slice(&lists.token);
            gates.value.extend_from_slice(&lists.value);
            magnitudes(lists, params, index * TILE..((index + 1) * TILE).min(params.d_sae()));
        });
    }
}

/// Replaces the gates of one tile by their magnitudes, as far as these are positive.
fn magnitudes(lists: &mut TileLists, params: &Params, latents: std::ops::Range<usize>) {
    let (mut kept, mut first) = (0, 0);
    for (place, latent) in latents.enumerate() {
        let last = lists.start[place + 1] as usize;
        let (scale, bias) = (params.r_mag[latent].exp(), params.b_mag[latent]);
        for entry in first..last {
            let magnitude = (lists.value[entry] - params.b_enc[latent]) * scale + bias;
            // NaN passes.
            if magnitude > 0.0 || magnitude.is_nan() {
                lists.token[kept] = lists.token[entry];
                lists.value[kept] = magnitude;
                kept += 1;
            }
        }
        first = last;
        lists.start[place + 1] = kept as u32;
    }
    lists.token.truncate(kept);
    lists.value.truncate(kept);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::infer::{Activation, encode};
    use super::super::isa::Isa;
    use super::super::reference;
    use super::super::testing::{
        Problem, SHAPES, SHIFTS, bits, check_close, check_grads, check_loss, gated_problem as problem,
    };
    use super::*;

    fn run(problem: &Problem, step: &GatedStep, threads: usize, isa: Isa) -> (StepLosses, Params, Workspace) {
        run_in(None, problem, step, threads, isa)
    }

    /// In so many parts.
    fn run_in(
        parts: Option<usize>,
        problem: &Problem,
        step: &GatedStep,
        threads: usize,
        isa: Isa,
    ) -> (StepLosses, Params, Workspace) {
        let pool = Pool::new(threads);
        let mut ws = problem.workspace(&pool, isa);
        ws.forced_parts = parts;
        let mut grads = problem.dirty_grads();
        let losses = gated_step(&pool, &mut ws, &problem.params, step, &problem.x, &mut grads);
        (losses, grads, ws)
    }

    fn check(problem: &Problem, step: &GatedStep) {
        let expected = reference::gated_step(&problem.params.to_f64(), step, &problem.x64());
        let d_sae = problem.shape.d_sae;
        let cases =
            Isa::available().into_iter().flat_map(|isa| [None, Some(2), Some(3)].map(|parts| (isa, parts)));
        for (isa, parts) in cases {
            let what = format!("{:?} {step:?} {} {parts:?} parts", problem.shape, isa.name());
            let (losses, grads, mut ws) = run_in(parts, problem, step, 1, isa);
            check_loss(&format!("{what} mse"), losses.mse, expected.losses.mse);
            check_loss(&format!("{what} sparsity"), losses.sparsity, expected.losses.sparsity);
            check_loss(&format!("{what} auxiliary"), losses.auxiliary, expected.losses.auxiliary);
            check_loss(&format!("{what} l0"), losses.l0, expected.losses.l0);
            check_close(&format!("{what} reconstruction"), ws.reconstruction(), &expected.reconstruction);
            check_grads(&what, problem, step.apply_b_dec_to_input, &grads, &expected);
            let squares: f64 = expected.grads.arrays().iter().flat_map(|a| a.iter()).map(|g| g * g).sum();
            check_loss(&format!("{what} norm"), ws.grad_norm(), squares.sqrt());
            for (f, &fired) in ws.fired().iter().enumerate() {
                let count = expected.acts.iter().skip(f).step_by(d_sae).filter(|&&act| act != 0.0).count();
                assert_eq!(fired as usize, count, "{what} fired[{f}]");
            }
            for threads in [2, 3] {
                let (other_losses, other_grads, other_ws) = run_in(parts, problem, step, threads, isa);
                assert_eq!(losses, other_losses, "{what} {threads} threads");
                assert_eq!(bits(&grads), bits(&other_grads), "{what} {threads} threads");
                assert_eq!(ws.grad_norm().to_bits(), other_ws.grad_norm().to_bits());
            }
            let (pool, activation) = (Pool::new(2), Activation::Gated);
            let acts =
                encode(&pool, &mut ws, &problem.params, &activation, step.apply_b_dec_to_input, &problem.x);
            let mut dense = vec![0.0; expected.acts.len()];
            for token in 0..acts.n_tokens() {
                let (latents, values) = acts.row(token);
                for (&latent, &value) in latents.iter().zip(values) {
                    dense[token * d_sae + latent as usize] = value;
                }
            }
            check_close(&format!("{what} inference"), &dense, &expected.acts);
        }
    }

    #[test]
    fn equals_the_reference_on_awkward_shapes_at_all_densities() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            for shift in SHIFTS {
                let problem = problem(d_in, d_sae, batch, shift, seed as u64);
                for apply_b_dec_to_input in [false, true] {
                    check(&problem, &GatedStep { l1_coefficient: 0.3, apply_b_dec_to_input });
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_the_reference_on_any_shape(
            d_in in 4_usize..70, d_sae in 16_usize..210, batch in 1_usize..70, shift in -5_i32..5,
            seed in 0_u64..1000, apply_b_dec_to_input in any::<bool>()
        ) {
            let problem = problem(d_in, d_sae, batch, shift as f32, seed);
            check(&problem, &GatedStep { l1_coefficient: 0.5, apply_b_dec_to_input });
        }
    }

    #[test]
    fn nan_shows_in_the_loss() {
        let step = GatedStep { l1_coefficient: 0.3, apply_b_dec_to_input: false };
        for isa in Isa::available() {
            let mut in_input = problem(17, 97, 33, -1000.0, 1);
            in_input.x[40] = f32::NAN;
            assert!(run(&in_input, &step, 1, isa).0.overall.is_nan());
            let mut in_magnitudes = problem(17, 97, 33, 0.0, 1);
            in_magnitudes.params.r_mag[3] = f32::NAN;
            assert!(run(&in_magnitudes, &step, 1, isa).0.overall.is_nan());
        }
    }
}
