//! The standard SAE's training step: ReLU latents, L1 weighted by decoder norms.

use super::decode::{Begin, DecodeOut, DecodePass};
use super::gather::{ABOVE_ZERO, Gather, pack_batch};
use super::lists::TILE;
use super::params::Params;
use super::phase;
use super::pool::Pool;
use super::select::decoder_norms;
use super::weights::{EntryLoss, L1, Pull, WeightPass};
use super::workspace::{StepLosses, Workspace};
use std::ops::Range;

/// Settings of one standard step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StandardStep {
    /// Weight of the L1 loss at this step, after its schedule.
    pub l1_coefficient: f64,
    /// Norm of the sparsity loss, positive and finite; 1 is the usual one.
    pub lp_norm: f64,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
}

/// Losses of one batch and their gradients, as [`super::reference::standard_step`] defines them.
///
/// `x` is (B, D) with 1 <= B <= `shape.batch`; `grads` is overwritten. A NaN anywhere shows in the losses.
///
/// # Panics
/// When a length does not fit the workspace's shape.
pub fn standard_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &StandardStep,
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    let n_tokens = ws.check(params, x, grads);
    let (d_in, with_bias) = (params.d_in(), step.apply_b_dec_to_input);
    let scale = 1.0 / n_tokens as f64;
    let has_l1 = step.l1_coefficient != 0.0;
    let plain_l1 = step.lp_norm == 1.0;
    let parts = ws.parts(pool, params, with_bias, x, 1, |ws, tiles| ws.gather_positive(pool, params, tiles));
    if has_l1 && !plain_l1 {
        decoder_norms(pool, ws.isa, params, &mut ws.norms);
    }
    let (mut n_active, mut l1_sum) = (0, 0.0);
    ws.aim.begin(x.len());
    for (tokens, part) in parts.iter() {
        let range = tokens.start * d_in..tokens.end * d_in;
        let x = &x[range.clone()];
        ws.take_in(pool, params, with_bias, x);
        ws.gather_positive(pool, params, 0..ws.lists.tiles.len());
        n_active += ws.lists.count();
        ws.count_fired();

        let aim = ws.aim.now();
        ws.g.resize(x.len());
        let token_losses = &mut ws.token_losses[tokens.clone()];
        let pass = DecodePass {
            isa: ws.isa,
            params,
            order: &ws.order,
            lists: &ws.lists,
            n_tokens: tokens.len(),
            begin: Begin::Bias,
            target: aim.map_or(x, |aim| &aim.target[range.clone()]),
            weight: aim.map(|aim| &aim.weight[tokens]),
            g_scale: (2.0 * scale) as f32,
            lp_norm: (has_l1 && !plain_l1).then_some((&*ws.norms, step.lp_norm)),
        };
        let out = DecodeOut {
            reconstruction: &mut ws.reconstruction[range],
            g: &mut ws.g,
            losses: &mut *token_losses,
        };
        pass.run(pool, &mut ws.decode_space, out);

        let l1 = L1 { scale: (step.l1_coefficient * scale) as f32, p: step.lp_norm, norms: token_losses };
        let loss = has_l1.then_some(EntryLoss::L1(l1));
        let pass = WeightPass {
            isa: ws.isa,
            params,
            order: &ws.order,
            x_in: if with_bias { &ws.x_in } else { x },
            pulls: &[Pull { lists: &ws.lists, g: &ws.g, decoded: true, loss }],
            bias_in_input: with_bias,
            pulls_on_bias: 1,
            part,
        };
        let sums = pass.run(pool, &mut ws.weight_space, grads);
        l1_sum += sums.sparsity;
        ws.grad_squares = sums.squares;
    }
    ws.n_tokens = n_tokens;

    let sum = |nth: usize| ws.token_losses.iter().map(|losses| losses[nth]).sum::<f64>();
    let norms = if plain_l1 { l1_sum } else { sum(1) };
    let (mse, sparsity) = (scale * sum(0), step.l1_coefficient * scale * norms);
    StepLosses { overall: mse + sparsity, mse, sparsity, auxiliary: 0.0, l0: scale * n_active as f64 }
}

impl Workspace {
    /// Checks lengths and clears what a step adds up. Returns B.
    pub(super) fn check(&mut self, params: &Params, x: &[f32], grads: &Params) -> usize {
        let d_in = self.shape.d_in;
        params.check(d_in, self.shape.d_sae);
        grads.check(d_in, self.shape.d_sae);
        assert!(!params.is_tied() && !grads.is_tied(), "the encoder has weights of its own");
        let n_tokens = self.count_tokens(x);
        self.fired.fill(0);
        self.token_losses.clear();
        self.token_losses.resize(n_tokens, [0.0; 2]);
        n_tokens
    }

    /// Packs a batch or a part of it for the encoder, and keeps what the encoder reads. Returns the number of tokens.
    pub(super) fn take_in(
        &mut self,
        pool: &Pool,
        params: &Params,
        apply_b_dec_to_input: bool,
        x: &[f32],
    ) -> usize {
        self.keep_input(params, apply_b_dec_to_input, x);
        self.load(pool, params, apply_b_dec_to_input, x)
    }

    /// Keeps what the encoder reads, where that is not `x` itself.
    pub(super) fn keep_input(&mut self, params: &Params, apply_b_dec_to_input: bool, x: &[f32]) {
        if !apply_b_dec_to_input {
            return;
        }
        let d_in = self.shape.d_in;
        self.x_in.resize(x.len());
        for (row, from) in self.x_in.chunks_exact_mut(d_in).zip(x.chunks_exact(d_in)) {
            for ((to, value), bias) in row.iter_mut().zip(from).zip(&params.b_dec) {
                *to = value - bias;
            }
        }
    }

    fn count_tokens(&self, x: &[f32]) -> usize {
        let d_in = self.shape.d_in;
        let n_tokens = x.len() / d_in;
        assert_eq!(x.len(), n_tokens * d_in, "x is (B, D)");
        assert!((1..=self.shape.batch).contains(&n_tokens), "a batch has 1 to shape.batch tokens");
        n_tokens
    }

    /// Packs a batch for the encoder. Returns B.
    pub(super) fn load(
        &mut self,
        pool: &Pool,
        params: &Params,
        apply_b_dec_to_input: bool,
        x: &[f32],
    ) -> usize {
        let (d_in, n_tokens) = (self.shape.d_in, self.count_tokens(x));
        let _phase = phase::pack();
        let subtract = apply_b_dec_to_input.then_some(params.b_dec.as_slice());
        pack_batch(pool, x, d_in, subtract, &mut self.panels);
        self.screen.load(pool, x, subtract, params);
        self.rows.begin();
        self.n_tokens = n_tokens;
        n_tokens
    }

    /// Counts the tokens on which each latent is active, on top of those of earlier parts.
    pub(super) fn count_fired(&mut self) {
        for (lists, latents) in self.lists.tiles.iter().zip(self.order.chunks(TILE)) {
            for (range, &latent) in lists.start.windows(2).zip(latents) {
                self.fired[latent as usize] += range[1] - range[0];
            }
        }
    }

    /// Fills the lists of some tiles with all positive pre-activations of the loaded batch.
    pub(super) fn gather_positive(&mut self, pool: &Pool, params: &Params, tiles: Range<usize>) {
        self.limits.fill(ABOVE_ZERO);
        self.order.clear();
        self.order.extend(0..self.shape.d_sae as u32);
        let gather = Gather {
            isa: self.isa,
            params,
            order: &self.order,
            panels: &self.panels,
            screen: self.screen.loaded(),
            n_tokens: self.n_tokens,
            scale: None,
            limits: &self.limits,
            other_limits: &self.limits,
            first_other: usize::MAX,
            latent_limits: None,
            by_magnitude: false,
        };
        gather.run(pool, &self.gather_spares, tiles, &mut self.lists);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::isa::Isa;
    use super::super::reference;
    use super::super::testing::{Problem, SHAPES, SHIFTS, bits, check_close, check_grads, check_loss};
    use super::*;

    fn run(
        problem: &Problem,
        step: &StandardStep,
        threads: usize,
        isa: Isa,
    ) -> (StepLosses, Params, Workspace) {
        run_in(None, problem, step, threads, isa)
    }

    /// In so many parts.
    fn run_in(
        parts: Option<usize>,
        problem: &Problem,
        step: &StandardStep,
        threads: usize,
        isa: Isa,
    ) -> (StepLosses, Params, Workspace) {
        let pool = Pool::new(threads);
        let mut ws = problem.workspace(&pool, isa);
        ws.forced_parts = parts;
        let mut grads = problem.dirty_grads();
        let losses = standard_step(&pool, &mut ws, &problem.params, step, &problem.x, &mut grads);
        (losses, grads, ws)
    }

    fn check(problem: &Problem, step: &StandardStep) {
        let expected = reference::standard_step(&problem.params.to_f64(), step, &problem.x64());
        let cases =
            Isa::available().into_iter().flat_map(|isa| [None, Some(2), Some(3)].map(|parts| (isa, parts)));
        for (isa, parts) in cases {
            let what = format!("{:?} {step:?} {} {parts:?} parts", problem.shape, isa.name());
            let (losses, grads, ws) = run_in(parts, problem, step, 1, isa);
            check_loss(&format!("{what} mse"), losses.mse, expected.losses.mse);
            check_loss(&format!("{what} sparsity"), losses.sparsity, expected.losses.sparsity);
            check_loss(&format!("{what} overall"), losses.overall, expected.losses.overall);
            check_loss(&format!("{what} l0"), losses.l0, expected.losses.l0);
            check_close(&format!("{what} reconstruction"), ws.reconstruction(), &expected.reconstruction);
            check_grads(&what, problem, step.apply_b_dec_to_input, &grads, &expected);
            let squares: f64 = expected.grads.arrays().iter().flat_map(|a| a.iter()).map(|g| g * g).sum();
            check_loss(&format!("{what} norm"), ws.grad_norm(), squares.sqrt());
            for (f, &fired) in ws.fired().iter().enumerate() {
                let d_sae = problem.shape.d_sae;
                let count = expected.acts.iter().skip(f).step_by(d_sae).filter(|&&act| act != 0.0).count();
                assert_eq!(fired as usize, count, "{what} fired[{f}]");
            }
            for threads in [2, 3] {
                let (other_losses, other_grads, other_ws) = run_in(parts, problem, step, threads, isa);
                assert_eq!(losses, other_losses, "{what} {threads} threads");
                assert_eq!(bits(&grads), bits(&other_grads), "{what} {threads} threads");
                assert_eq!(ws.reconstruction(), other_ws.reconstruction(), "{what} {threads} threads");
                assert_eq!(
                    ws.grad_norm().to_bits(),
                    other_ws.grad_norm().to_bits(),
                    "{what} {threads} threads"
                );
            }
        }
    }

    #[test]
    fn equals_the_reference_on_awkward_shapes_at_all_densities() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            for shift in SHIFTS {
                let problem = Problem::new(d_in, d_sae, batch, shift, seed as u64);
                for apply_b_dec_to_input in [false, true] {
                    let step = StandardStep { l1_coefficient: 0.3, lp_norm: 1.0, apply_b_dec_to_input };
                    check(&problem, &step);
                }
            }
        }
    }

    #[test]
    fn a_large_batch_goes_in_parts_while_it_is_dense() {
        for shift in SHIFTS {
            let problem = Problem::new(20, 480, 600, shift, 6);
            let step = StandardStep { l1_coefficient: 0.3, lp_norm: 1.0, apply_b_dec_to_input: true };
            check(&problem, &step);
            let pool = Pool::new(2);
            let mut ws = problem.workspace(&pool, Isa::detect());
            let (params, x) = (&problem.params, &problem.x);
            let gather = |ws: &mut Workspace, tiles| ws.gather_positive(&pool, params, tiles);
            let parts = ws.parts(&pool, params, true, x, 1, gather).iter().count();
            assert!(if shift >= 0.0 { parts > 1 } else { shift > -1000.0 || parts == 1 }, "{shift}: {parts}");
        }
    }

    #[test]
    fn equals_the_reference_for_other_norms_and_without_sparsity() {
        for (l1_coefficient, lp_norm) in [(0.5, 2.0), (0.5, 1.3), (0.5, 0.5), (0.0, 1.0), (0.0, 0.5)] {
            for shift in SHIFTS {
                let problem = Problem::new(19, 101, 35, shift, 5);
                check(&problem, &StandardStep { l1_coefficient, lp_norm, apply_b_dec_to_input: true });
            }
        }
    }

    #[test]
    fn fused_levels_give_the_same_bits() {
        if !Isa::available().contains(&Isa::Avx512) {
            return;
        }
        for (shift, lp_norm) in [(-4.0, 1.0), (0.0, 1.0), (-1.0, 2.0)] {
            let problem = Problem::new(67, 131, 37, shift, 9);
            let step = StandardStep { l1_coefficient: 0.3, lp_norm, apply_b_dec_to_input: true };
            let (losses, grads, _) = run(&problem, &step, 1, Isa::Avx512);
            let (other_losses, other_grads, _) = run(&problem, &step, 1, Isa::Avx2);
            assert_eq!(losses, other_losses);
            assert_eq!(bits(&grads), bits(&other_grads));
        }
    }

    #[test]
    fn a_workspace_can_be_used_again_with_smaller_and_denser_batches() {
        let pool = Pool::new(2);
        let step = StandardStep { l1_coefficient: 0.3, lp_norm: 1.0, apply_b_dec_to_input: false };
        let big = Problem::new(17, 97, 33, 0.0, 1);
        let mut ws = big.workspace(&pool, Isa::detect());
        let mut grads = big.dirty_grads();
        for (batch, shift) in [(33, 0.0), (5, -2.0), (33, 1000.0), (1, -1000.0), (32, -1.0)] {
            let problem = Problem::new(17, 97, batch, shift, 2);
            standard_step(&pool, &mut ws, &problem.params, &step, &problem.x, &mut grads);
            let (_, fresh, fresh_ws) = run(&problem, &step, 1, Isa::detect());
            assert_eq!(bits(&grads), bits(&fresh));
            assert_eq!(ws.reconstruction(), fresh_ws.reconstruction());
            assert_eq!(ws.fired(), fresh_ws.fired());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_the_reference_on_any_shape(
            (d_in, d_sae, batch) in (4_usize..70, 16_usize..220, 1_usize..70),
            shift in -6.0_f32..6.0,
            (l1_coefficient, lp_norm) in (0.0_f64..2.0, prop_oneof![Just(1.0_f64), 0.7_f64..3.0]),
            apply_b_dec_to_input: bool,
            seed: u64,
        ) {
            // Grid steps keep pre-activations exact.
            let shift = (shift * 64.0).round() / 64.0;
            let problem = Problem::new(d_in, d_sae, batch, shift, seed);
            check(&problem, &StandardStep { l1_coefficient, lp_norm, apply_b_dec_to_input });
        }
    }

    #[test]
    fn nan_shows_in_the_loss() {
        let step = StandardStep { l1_coefficient: 0.3, lp_norm: 1.0, apply_b_dec_to_input: false };
        for isa in Isa::available() {
            let mut in_input = Problem::new(17, 97, 33, -1000.0, 1);
            in_input.x[40] = f32::NAN;
            assert!(run(&in_input, &step, 1, isa).0.overall.is_nan());
            let mut in_weights = Problem::new(17, 97, 33, -1000.0, 1);
            in_weights.params.w_enc.fill(f32::NAN);
            assert!(run(&in_weights, &step, 1, isa).0.overall.is_nan());
        }
    }
}
