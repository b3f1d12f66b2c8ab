//! The JumpReLU SAE's training step: latents above a threshold of their own, which is learnt.

use super::decode::{Begin, DecodeOut, DecodePass};
use super::gather::Gather;
use super::jumps::{Jumps, Sparsity, is_active, is_near};
use super::lists::{TILE, TileLists};
use super::memory::Disjoint;
use super::params::Params;
use super::pool::Pool;
use super::weights::{EntryLoss, Pull, WeightPass};
use super::workspace::{StepLosses, Workspace};
use std::ops::Range;

/// Settings of one JumpReLU step. Thresholds are parameters; the caller keeps them from falling below 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JumpReluStep {
    /// The sparsity loss.
    pub mode: SparsityMode,
    /// Its weight at this step, after its schedule.
    pub l0_coefficient: f64,
    /// Width of the estimator around every threshold, above 0.
    pub bandwidth: f64,
    /// Weight of the loss on pre-activations of dead latents; 0 for none.
    pub pre_act_loss_coefficient: f64,
    /// Whether the estimator passes gradient to the pre-activations, too, not to the thresholds alone.
    pub ste_to_input: bool,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
}

/// The sparsity loss of a JumpReLU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SparsityMode {
    /// L0: the number of active latents (Rajamanoharan et al. 2024).
    Step,
    /// `tanh(scale f |W_dec|)`, summed over latents (Conerly et al. 2025).
    Tanh {
        /// How soon it saturates.
        scale: f64,
    },
    /// `2 / target (L0 - target)^2` (Gemma Scope 2).
    Quadratic {
        /// The number of active latents to aim at.
        target_l0: f64,
    },
}

/// Losses of one batch and their gradients, as [`super::reference::jumprelu_step`] defines them.
///
/// `x` is (B, D) with 1 <= B <= `shape.batch`; `dead` has one flag per latent, as it stood before this step,
/// and is read only for the loss on dead latents; `grads` is overwritten. A NaN anywhere shows in the losses.
///
/// # Panics
/// When a length does not fit the workspace's shape.
pub fn jumprelu_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &JumpReluStep,
    dead: &[bool],
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    assert_eq!(params.threshold.len(), ws.shape.d_sae, "threshold has one value per latent");
    assert_eq!(grads.threshold.len(), ws.shape.d_sae, "threshold has one gradient per latent");
    assert_eq!(dead.len(), ws.shape.d_sae, "dead has one flag per latent");
    let n_tokens = ws.check(params, x, grads);
    let (d_in, with_bias) = (params.d_in(), step.apply_b_dec_to_input);
    let scale = 1.0 / n_tokens as f64;
    let has_pre_act = step.pre_act_loss_coefficient != 0.0 && dead.contains(&true);
    let pre_act = has_pre_act.then_some(((step.pre_act_loss_coefficient * scale) as f32, dead));
    let bandwidth = step.bandwidth as f32;
    ws.limit_above(params, bandwidth, pre_act.map(|(_, dead)| dead));
    let parts = ws.parts(pool, params, with_bias, x, 1, |ws, tiles| ws.gather_at(pool, params, tiles));
    let lambda = step.l0_coefficient * scale;
    let (mut n_active, mut sparsity_loss, mut tanh_sum, mut pre_act_sum) = (0, 0.0, 0.0, 0.0);
    ws.aim.begin(x.len());
    for (tokens, part) in parts.iter() {
        let range = tokens.start * d_in..tokens.end * d_in;
        let x = &x[range.clone()];
        ws.take_in(pool, params, with_bias, x);
        ws.gather_above(pool, params, bandwidth, pre_act.map(|(_, dead)| dead));
        let n_active_here = ws.lists.count();
        n_active += n_active_here;
        ws.count_fired();

        let aim = ws.aim.now();
        ws.g.resize(x.len());
        let pass = DecodePass {
            isa: ws.isa,
            params,
            order: &ws.order,
            lists: &ws.lists,
            n_tokens: tokens.len(),
            begin: Begin::Bias,
            target: aim.map_or(x, |aim| &aim.target[range.clone()]),
            weight: aim.map(|aim| &aim.weight[tokens.clone()]),
            g_scale: (2.0 * scale) as f32,
            lp_norm: None,
        };
        let losses = &mut ws.token_losses[tokens.clone()];
        let out = DecodeOut { reconstruction: &mut ws.reconstruction[range], g: &mut ws.g, losses };
        pass.run(pool, &mut ws.decode_space, out);

        let sparsity = match step.mode {
            SparsityMode::Step => {
                sparsity_loss += lambda * n_active_here as f64;
                Sparsity::Step(lambda as f32)
            }
            SparsityMode::Tanh { scale } => Sparsity::Tanh { weight: lambda as f32, scale: scale as f32 },
            SparsityMode::Quadratic { target_l0 } => {
                let counts = &mut ws.token_slopes;
                counts.clear();
                counts.resize(tokens.len(), 0.0);
                for &token in ws.lists.tiles.iter().flat_map(|tile| &tile.token) {
                    // Exact: counts are far below 2^24.
                    counts[token as usize] += 1.0;
                }
                for count in counts.iter_mut() {
                    let above = f64::from(*count) - target_l0;
                    sparsity_loss += lambda * 2.0 / target_l0 * above * above;
                    *count = (lambda * 4.0 / target_l0 * above) as f32;
                }
                Sparsity::StepOfToken(counts)
            }
        };
        let jumps = Jumps {
            threshold: &params.threshold,
            bandwidth,
            ste_to_input: step.ste_to_input,
            sparsity,
            pre_act,
        };
        let active = Pull { lists: &ws.lists, g: &ws.g, decoded: true, loss: Some(EntryLoss::Jumps(jumps)) };
        let pass = WeightPass {
            isa: ws.isa,
            params,
            order: &ws.order,
            x_in: if with_bias { &ws.x_in } else { x },
            pulls: &[active, Pull { lists: &ws.aux[0].lists, decoded: false, ..active }],
            bias_in_input: with_bias,
            pulls_on_bias: 1,
            part,
        };
        let sums = pass.run(pool, &mut ws.weight_space, grads);
        tanh_sum += sums.sparsity;
        pre_act_sum += sums.pre_act;
        ws.grad_squares = sums.squares;
    }
    ws.n_tokens = n_tokens;

    let mse = scale * ws.token_losses.iter().map(|losses| losses[0]).sum::<f64>();
    let sparsity = sparsity_loss + lambda * tanh_sum;
    let auxiliary = step.pre_act_loss_coefficient * scale * pre_act_sum;
    let overall = mse + sparsity + auxiliary;
    StepLosses { overall, mse, sparsity, auxiliary, l0: scale * n_active as f64 }
}

impl Workspace {
    /// Sets the limits that [`Self::gather_above`] gathers at.
    fn limit_above(&mut self, params: &Params, bandwidth: f32, all_below: Option<&[bool]>) {
        let below = |latent: usize| all_below.is_some_and(|flags| flags[latent]);
        self.latent_limits.clear();
        self.latent_limits.extend(params.threshold.iter().enumerate().map(|(latent, &theta)| {
            // Lower by more than rounding moves the edge; what is too much is left out below.
            let low = theta - 0.5 * bandwidth - 1e-6 * (theta.abs() + bandwidth);
            if below(latent) || low.is_nan() { f32::NEG_INFINITY } else { low }
        }));
    }

    /// Fills the lists with the pre-activations above their thresholds, and the auxiliary lists with those
    /// not above but less than half a bandwidth below, for the latents flagged in `all_below` with all below.
    fn gather_above(&mut self, pool: &Pool, params: &Params, bandwidth: f32, all_below: Option<&[bool]>) {
        let below = |latent: usize| all_below.is_some_and(|flags| flags[latent]);
        self.gather_at(pool, params, 0..self.lists.tiles.len());
        let (lists, others) =
            (Disjoint::new(&mut self.lists.tiles), Disjoint::new(&mut self.aux[0].lists.tiles));
        pool.run(self.order.len().div_ceil(TILE), &|index| {
            // SAFETY: one tile per task.
            let (lists, others) = unsafe { (lists.at(index), others.at(index)) };
            let latents = index * TILE..((index + 1) * TILE).min(params.d_sae());
            split(lists, others, latents, |latent, pre| {
                let theta = params.threshold[latent];
                if is_active(pre, theta) {
                    Kept::Active
                } else if is_near(pre, theta, bandwidth) || (below(latent) && pre < theta) {
                    Kept::Other
                } else {
                    Kept::Not
                }
            });
        });
    }

    /// Fills the lists with the pre-activations above thresholds, for inference.
    pub(super) fn gather_active(&mut self, pool: &Pool, params: &Params) {
        self.latent_limits.clear();
        // What follows a threshold is the first to be above it.
        self.latent_limits.extend(params.threshold.iter().map(|theta| theta.max(0.0).next_up()));
        self.gather_at(pool, params, 0..self.lists.tiles.len());
    }

    /// Fills the lists of some tiles with what reaches `latent_limits`.
    fn gather_at(&mut self, pool: &Pool, params: &Params, tiles: Range<usize>) {
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
            latent_limits: Some(&self.latent_limits),
            by_magnitude: false,
        };
        gather.run(pool, &self.gather_spares, tiles, &mut self.lists);
    }
}

/// Where an entry belongs.
enum Kept {
    Active,
    Other,
    Not,
}

/// Keeps the active entries of one tile, whose latents these are, and moves the others.
fn split(
    lists: &mut TileLists,
    others: &mut TileLists,
    latents: std::ops::Range<usize>,
    kind: impl Fn(usize, f32) -> Kept,
) {
    let (mut kept, mut first) = (0, 0);
    others.restart();
    for (place, latent) in latents.enumerate() {
        let last = lists.start[place + 1] as usize;
        for entry in first..last {
            let (token, value) = (lists.token[entry], lists.value[entry]);
            match kind(latent, value) {
                Kept::Active => {
                    lists.token[kept] = token;
                    lists.value[kept] = value;
                    kept += 1;
                }
                Kept::Other => {
                    others.token.push(token);
                    others.value.push(value);
                }
                Kept::Not => {}
            }
        }
        first = last;
        lists.start[place + 1] = kept as u32;
        others.start.push(others.token.len() as u32);
    }
    lists.token.truncate(kept);
    lists.value.truncate(kept);
    others.trim();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::isa::Isa;
    use super::super::reference;
    use super::super::testing::{
        Problem, SHAPES, SHIFTS, bits, check_close, check_grads, check_loss, jumprelu_problem as problem,
    };
    use super::*;

    const MODES: [SparsityMode; 3] =
        [SparsityMode::Step, SparsityMode::Tanh { scale: 0.5 }, SparsityMode::Quadratic { target_l0: 3.5 }];

    fn run(
        problem: &Problem,
        step: &JumpReluStep,
        dead: &[bool],
        threads: usize,
        isa: Isa,
    ) -> (StepLosses, Params, Workspace) {
        run_in(None, problem, step, dead, threads, isa)
    }

    /// In so many parts.
    fn run_in(
        parts: Option<usize>,
        problem: &Problem,
        step: &JumpReluStep,
        dead: &[bool],
        threads: usize,
        isa: Isa,
    ) -> (StepLosses, Params, Workspace) {
        let pool = Pool::new(threads);
        let mut ws = problem.workspace(&pool, isa);
        ws.forced_parts = parts;
        let mut grads = problem.dirty_grads();
        let losses = jumprelu_step(&pool, &mut ws, &problem.params, step, dead, &problem.x, &mut grads);
        (losses, grads, ws)
    }

    fn check(problem: &Problem, step: &JumpReluStep, dead: &[bool]) {
        let expected = reference::jumprelu_step(&problem.params.to_f64(), step, dead, &problem.x64());
        let cases =
            Isa::available().into_iter().flat_map(|isa| [None, Some(2), Some(3)].map(|parts| (isa, parts)));
        for (isa, parts) in cases {
            let what = format!("{:?} {step:?} {} {parts:?} parts", problem.shape, isa.name());
            let (losses, grads, ws) = run_in(parts, problem, step, dead, 1, isa);
            check_loss(&format!("{what} mse"), losses.mse, expected.losses.mse);
            check_loss(&format!("{what} sparsity"), losses.sparsity, expected.losses.sparsity);
            check_loss(&format!("{what} auxiliary"), losses.auxiliary, expected.losses.auxiliary);
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
                let (other_losses, other_grads, other_ws) = run_in(parts, problem, step, dead, threads, isa);
                assert_eq!(losses, other_losses, "{what} {threads} threads");
                assert_eq!(bits(&grads), bits(&other_grads), "{what} {threads} threads");
                assert_eq!(ws.grad_norm().to_bits(), other_ws.grad_norm().to_bits());
            }
        }
    }

    #[test]
    fn equals_the_reference_on_awkward_shapes_at_all_densities() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            for (nth, shift) in SHIFTS.into_iter().enumerate() {
                let (problem, dead) = problem(d_in, d_sae, batch, shift, seed as u64);
                for variant in 0..4 {
                    let step = JumpReluStep {
                        mode: MODES[(seed + nth + variant) % 3],
                        l0_coefficient: 0.3,
                        bandwidth: if nth == 2 { 3.0 } else { 0.7 },
                        pre_act_loss_coefficient: if variant % 2 == 0 { 0.0 } else { 0.2 },
                        ste_to_input: variant >= 2,
                        apply_b_dec_to_input: seed % 2 == 0,
                    };
                    check(&problem, &step, &dead);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_the_reference_on_any_shape(
            d_in in 4_usize..70, d_sae in 16_usize..210, batch in 1_usize..70, shift in -5_i32..5,
            seed in 0_u64..1000, mode in 0_usize..3, ste_to_input in any::<bool>(), pre_act in any::<bool>()
        ) {
            let (problem, dead) = problem(d_in, d_sae, batch, shift as f32, seed);
            let step = JumpReluStep {
                mode: MODES[mode],
                l0_coefficient: 0.5,
                bandwidth: 1.3,
                pre_act_loss_coefficient: if pre_act { 0.4 } else { 0.0 },
                ste_to_input,
                apply_b_dec_to_input: ste_to_input,
            };
            check(&problem, &step, &dead);
        }
    }

    #[test]
    fn nan_shows_in_the_loss() {
        let step = JumpReluStep {
            mode: SparsityMode::Step,
            l0_coefficient: 0.1,
            bandwidth: 0.1,
            pre_act_loss_coefficient: 0.0,
            ste_to_input: false,
            apply_b_dec_to_input: false,
        };
        for isa in Isa::available() {
            let (mut broken, dead) = problem(17, 97, 33, -1000.0, 1);
            broken.x[40] = f32::NAN;
            assert!(run(&broken, &step, &dead, 1, isa).0.overall.is_nan());
            let (mut broken, dead) = problem(17, 97, 33, 0.0, 1);
            broken.params.threshold[5] = f32::NAN;
            let (losses, _, ws) = run(&broken, &step, &dead, 1, isa);
            // Nothing is above a threshold that is no number: the latent is dead, and the loss what it is.
            assert!(losses.overall.is_finite());
            assert_eq!(ws.fired()[5], 0);
        }
    }
}
