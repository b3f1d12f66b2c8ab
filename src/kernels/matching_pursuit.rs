//! The matching pursuit SAE's training step: latents are chosen one after the other, and the encoder is the
//! decoder's transpose.
//!
//! A token is decoded from its activations while their decoder rows are near, and its error is sent back through
//! the chain of residuals at once. With g the gradient by the reconstruction and rho that by a residual, as
//! [`super::reference`] has them, the two only occur as h = g - rho:
//!
//! h_T = g;  dv_t = h_(t+1) . d_i;  h_t = h_(t+1) - dv_t d_i;  dd_i += v_t h_(t+1) + dv_t r_t
//!
//! and what is left for `b_dec` is h_0. [`super::pursuit_grads`] adds up the rows' gradients.

use super::decode::error;
use super::infer::SparseActs;
use super::memory::{Disjoint, Spares};
use super::params::Params;
use super::phase;
use super::pool::Pool;
use super::pursuit::Choices;
use super::pursuit_grads::PursuitGradients;
use super::rows::{add_scaled, products_with_rows, sum_of_rows};
use super::simd::{Kernel, Simd};
use super::workspace::{StepLosses, Workspace};

/// How latents are chosen, and when a token is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pursuit {
    /// L2 norm of what is left below which a token is done; 0 for no such end.
    pub residual_threshold: f64,
    /// The most choices for a token; 0 for D.
    pub max_iterations: usize,
    /// Whether a token is also done once a latent was chosen that had been chosen before.
    pub stop_on_duplicate_support: bool,
}

impl Pursuit {
    /// The most choices for a token of width D.
    pub fn iterations(&self, d_in: usize) -> usize {
        if self.max_iterations == 0 { d_in } else { self.max_iterations }
    }
}

/// Settings of one step of a matching pursuit SAE.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatchingPursuitStep {
    /// How latents are chosen.
    pub pursuit: Pursuit,
    /// Whether `b_dec` is subtracted from the input before the pursuit; only then is it added to what comes of it.
    pub apply_b_dec_to_input: bool,
}

/// What a pursuit came to, as SAELens logs it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PursuitSummary {
    /// The most active latents of a token.
    pub max_l0: usize,
    /// The fewest.
    pub min_l0: usize,
    /// Mean L2 norm of the errors of reconstructions.
    pub residual_norm: f64,
    /// Share of the tokens whose error is below the threshold.
    pub converged: f64,
}

impl PursuitSummary {
    /// Of the tokens of a batch: how many latents are active, and what its squared error is.
    pub fn of(tokens: impl Iterator<Item = (usize, f64)>, residual_threshold: f64) -> Self {
        let (mut n_tokens, mut norms, mut converged) = (0, 0.0, 0);
        let (mut max_l0, mut min_l0) = (0, usize::MAX);
        for (active, error) in tokens {
            let norm = error.sqrt();
            (max_l0, min_l0) = (max_l0.max(active), min_l0.min(active));
            n_tokens += 1;
            norms += norm;
            converged += usize::from(norm < residual_threshold);
        }
        let n_tokens = f64::from(n_tokens);
        Self {
            max_l0,
            min_l0: min_l0.min(max_l0),
            residual_norm: norms / n_tokens,
            converged: converged as f64 / n_tokens,
        }
    }
}

/// Losses of one batch and their gradients, as [`super::reference::matching_pursuit_step`] defines them.
///
/// `params` and `grads` are tied: they have no encoder weights. `x` is (B, D) with 1 <= B <= `shape.batch`; `grads` is
/// overwritten. Of equal products the lower latent wins. A NaN anywhere shows in the losses.
///
/// # Panics
/// When a length does not fit the workspace's shape, or the encoder has weights of its own.
pub fn matching_pursuit_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &MatchingPursuitStep,
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    let (d_in, d_sae) = (ws.shape.d_in, ws.shape.d_sae);
    params.check(d_in, d_sae);
    grads.check(d_in, d_sae);
    assert!(params.is_tied() && grads.is_tied(), "the encoder has no weights of its own");
    let with_bias = step.apply_b_dec_to_input;
    let n_tokens = ws.pursue_batch(pool, params, &step.pursuit, with_bias, x);
    ws.count_pursued();

    let scale = 1.0 / n_tokens as f64;
    let aim = ws.aim.take(x.len());
    ws.g.resize(x.len());
    ws.token_losses.clear();
    ws.token_losses.resize(n_tokens, [0.0; 2]);
    let task = DecodeChoices {
        params,
        with_bias,
        target: aim.map_or(x, |aim| &aim.target),
        weight: aim.map(|aim| aim.weight.as_slice()),
        g_scale: (2.0 * scale) as f32,
        reconstruction: Disjoint::new(&mut ws.reconstruction),
        g: Disjoint::new(&mut ws.g),
        losses: Disjoint::new(&mut ws.token_losses),
    };
    let (isa, spares) = (ws.isa, &ws.pursuit.rows);
    let decoding = phase::decode();
    let blocks = Disjoint::new(&mut ws.pursuit.blocks);
    pool.run(blocks.len(), &|index| {
        // SAFETY: one block per task.
        let block = unsafe { blocks.at(index) };
        spares.with(|h| isa.run(DecodeBlock { task: &task, block, h }));
    });
    drop(decoding);

    let pass = PursuitGradients {
        isa,
        w_dec: &params.w_dec,
        d_in,
        blocks: &ws.pursuit.blocks,
        fired: &ws.fired,
        residual: &ws.pursuit.residual,
        g: &ws.g,
        with_bias,
    };
    ws.grad_squares = pass.run(pool, &mut ws.pursuit.squares, grads);

    let mse = scale * ws.token_losses.iter().map(|losses| losses[0]).sum::<f64>();
    let n_active: usize = ws.pursuit.blocks.iter().map(|block| block.act.len()).sum();
    StepLosses { overall: mse, mse, sparsity: 0.0, auxiliary: 0.0, l0: scale * n_active as f64 }
}

/// Encodes `x` (B, D), any B, without gradients.
pub(super) fn encode_by_pursuit(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    pursuit: &Pursuit,
    apply_b_dec_to_input: bool,
    x: &[f32],
) -> SparseActs {
    let mut acts = SparseActs { row_start: vec![0], ..SparseActs::default() };
    let mut sorted = Vec::new();
    for x in x.chunks(ws.shape.batch * ws.shape.d_in) {
        ws.pursue_batch(pool, params, pursuit, apply_b_dec_to_input, x);
        for block in &ws.pursuit.blocks {
            for nth in 0..block.n_tokens() {
                sorted.clear();
                sorted.extend(block.acts(nth).map(|at| (block.act_latent[at], block.act[at])));
                sorted.sort_unstable_by_key(|&(latent, _)| latent);
                acts.latent.extend(sorted.iter().map(|&(latent, _)| latent));
                acts.value.extend(sorted.iter().map(|&(_, value)| value));
                acts.row_start.push(acts.latent.len());
            }
        }
    }
    acts
}

impl Workspace {
    /// Chooses latents for a batch. Returns B.
    fn pursue_batch(
        &mut self,
        pool: &Pool,
        params: &Params,
        pursuit: &Pursuit,
        apply_b_dec_to_input: bool,
        x: &[f32],
    ) -> usize {
        let d_in = self.shape.d_in;
        let n_tokens = x.len() / d_in;
        assert_eq!(x.len(), n_tokens * d_in, "x is (B, D)");
        assert!((1..=self.shape.batch).contains(&n_tokens), "a batch has 1 to shape.batch tokens");
        let residual = &mut self.pursuit.residual;
        residual.resize(x.len());
        residual.copy_from_slice(x);
        if apply_b_dec_to_input {
            for row in residual.chunks_exact_mut(d_in) {
                row.iter_mut().zip(&params.b_dec).for_each(|(value, bias)| *value -= bias);
            }
        }
        self.pursue(pool, params, pursuit, n_tokens);
        n_tokens
    }

    fn count_pursued(&mut self) {
        self.fired.fill(0);
        for latent in self.pursuit.blocks.iter().flat_map(|block| &block.act_latent) {
            self.fired[*latent as usize] += 1;
        }
    }

    /// What the pursuit of the last step came to, with its threshold.
    pub fn pursuit_summary(&self, residual_threshold: f64) -> PursuitSummary {
        let blocks = self.pursuit.blocks.iter();
        let active = blocks.flat_map(|block| (0..block.n_tokens()).map(|nth| block.acts(nth).len()));
        let errors = self.token_losses.iter().map(|losses| losses[0]);
        PursuitSummary::of(active.zip(errors), residual_threshold)
    }
}

/// What all tasks share that decode.
struct DecodeChoices<'a> {
    params: &'a Params,
    with_bias: bool,
    target: &'a [f32],
    /// How much the squared error of each token counts; `None` for once each.
    weight: Option<&'a [f32]>,
    /// `g = g_scale * weight * error`
    g_scale: f32,
    reconstruction: Disjoint<'a, f32>,
    g: Disjoint<'a, f32>,
    losses: Disjoint<'a, [f64; 2]>,
}

/// Decodes a block of tokens and finds the gradients of its values.
struct DecodeBlock<'a> {
    task: &'a DecodeChoices<'a>,
    block: &'a mut Choices,
    h: &'a mut Vec<f32>,
}

impl Kernel for DecodeBlock<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { task, block, h } = self;
        let d_in = task.params.d_in();
        let rows = task.params.w_dec.as_ptr();
        for nth in 0..block.n_tokens() {
            let token = block.first + nth;
            let at = token * d_in;
            // SAFETY: each token belongs to one task.
            let (row, g, losses) =
                unsafe { (task.reconstruction.part(at, d_in), task.g.part(at, d_in), task.losses.at(token)) };
            if task.with_bias {
                row.copy_from_slice(&task.params.b_dec);
            } else {
                row.fill(0.0);
            }
            let acts = block.acts(nth);
            // SAFETY: this runs with the instructions of `S`; latents are below F.
            unsafe {
                let (latents, values) = (&block.act_latent[acts.clone()], &block.act[acts]);
                sum_of_rows::<S>(row.as_mut_ptr(), true, rows, d_in, latents, values);
            }
            let weight = task.weight.map_or(1.0, |weight| weight[token]);
            let squared = error::<S>(row, &task.target[at..at + d_in], task.g_scale * weight, g);
            *losses = [f64::from(weight) * squared, 0.0];

            h.clear();
            h.extend_from_slice(g);
            for choice in block.token(nth).rev() {
                let latent = block.latent[choice];
                let pull = &mut block.pull[choice..=choice];
                // SAFETY: this runs with the instructions of `S`; latents are below F, and `h` has D values.
                unsafe {
                    products_with_rows::<S>(h.as_ptr(), rows, d_in, &[latent], pull);
                    add_scaled::<S>(h.as_mut_ptr(), -pull[0], rows.add(latent as usize * d_in), d_in);
                }
            }
        }
    }
}

/// Rows of D values that tasks borrow.
pub(super) type RowSpares = Spares<Vec<f32>>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::isa::Isa;
    use super::super::reference;
    use super::super::testing::{
        Numbers, Problem, SHAPES, bits, check_close, check_loss, check_tied, is_far_from_ties, tied_problem,
    };
    use super::super::{Activation, Shape, encode};
    use super::*;

    /// How the largest product is found, where the machine has both ways.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Way {
        Products,
        Bytes,
    }

    fn run(
        problem: &Problem,
        step: &MatchingPursuitStep,
        threads: usize,
        isa: Isa,
        way: Way,
    ) -> (StepLosses, Params, Workspace) {
        let pool = Pool::new(threads);
        let mut ws = problem.workspace(&pool, isa);
        ws.pursuit.no_bytes = way == Way::Products;
        let mut grads = problem.dirty_grads();
        let losses = matching_pursuit_step(&pool, &mut ws, &problem.params, step, &problem.x, &mut grads);
        (losses, grads, ws)
    }

    fn check(problem: &Problem, step: &MatchingPursuitStep) {
        let expected = reference::matching_pursuit_step(&problem.params.to_f64(), step, &problem.x64());
        let d_sae = problem.shape.d_sae;
        for isa in Isa::available() {
            let what = format!("{:?} {step:?} {}", problem.shape, isa.name());
            let (losses, grads, mut ws) = run(problem, step, 1, isa, Way::Products);
            assert_eq!(losses.overall, losses.mse);
            check_loss(&format!("{what} l0"), losses.l0, expected.losses.l0);
            check_close(&format!("{what} reconstruction"), ws.reconstruction(), &expected.reconstruction);
            check_tied(&what, problem, (losses.mse, &grads), &expected);
            let squares: f64 =
                grads.arrays().iter().flat_map(|a| a.iter()).map(|&g| f64::from(g).powi(2)).sum();
            check_loss(&format!("{what} norm"), ws.grad_norm(), squares.sqrt());
            for (f, &fired) in ws.fired().iter().enumerate() {
                let count = expected.acts.iter().skip(f).step_by(d_sae).filter(|&&act| act != 0.0).count();
                assert_eq!(fired as usize, count, "{what} fired[{f}]");
            }
            for (threads, way) in [(1, Way::Bytes), (2, Way::Products), (3, Way::Bytes)] {
                let (other_losses, other_grads, other_ws) = run(problem, step, threads, isa, way);
                assert_eq!(losses, other_losses, "{what} {threads} threads, {way:?}");
                assert_eq!(bits(&grads), bits(&other_grads), "{what} {threads} threads, {way:?}");
                assert_eq!(ws.grad_norm().to_bits(), other_ws.grad_norm().to_bits());
            }

            let pool = Pool::new(2);
            let activation = Activation::MatchingPursuit(step.pursuit);
            let acts =
                encode(&pool, &mut ws, &problem.params, &activation, step.apply_b_dec_to_input, &problem.x);
            let mut dense = vec![0.0; expected.acts.len()];
            for token in 0..acts.n_tokens() {
                let (latents, values) = acts.row(token);
                assert!(latents.is_sorted_by(|a, b| a < b), "latents rise");
                for (&latent, &value) in latents.iter().zip(values) {
                    dense[token * d_sae + latent as usize] = value;
                }
            }
            check_close(&format!("{what} inference"), &dense, &expected.acts);
        }
    }

    fn pursuit(residual_threshold: f64, max_iterations: usize, stop_on_duplicate_support: bool) -> Pursuit {
        Pursuit { residual_threshold, max_iterations, stop_on_duplicate_support }
    }

    #[test]
    fn equals_the_reference_on_awkward_shapes_with_all_ends() {
        let mut checked = 0;
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            for pursuit in [
                pursuit(1e-2, 0, true),
                pursuit(1.0, 0, false),
                pursuit(0.0, 7, false),
                pursuit(0.0, 1, true),
            ] {
                for apply_b_dec_to_input in [false, true] {
                    let step = MatchingPursuitStep { pursuit, apply_b_dec_to_input };
                    let problem = tied_problem(d_in, d_sae, batch, seed as u64);
                    if is_far_from_ties(&problem, &step) {
                        check(&problem, &step);
                        checked += 1;
                    }
                }
            }
        }
        assert!(checked > 50, "{checked} of 72 were far from ties");
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_global_rejects: 4096, ..ProptestConfig::with_cases(64) })]
        #[test]
        fn equals_the_reference_on_any_shape(
            d_in in 4_usize..70, d_sae in 16_usize..210, batch in 1_usize..70, seed in 0_u64..1000,
            threshold in 0_u32..3, max_iterations in 0_usize..20, stop_on_duplicate_support in any::<bool>(),
            apply_b_dec_to_input in any::<bool>()
        ) {
            let pursuit = pursuit(f64::from(threshold), max_iterations, stop_on_duplicate_support);
            let step = MatchingPursuitStep { pursuit, apply_b_dec_to_input };
            let problem = tied_problem(d_in, d_sae, batch, seed);
            prop_assume!(is_far_from_ties(&problem, &step));
            check(&problem, &step);
        }
    }

    /// Long pursuits, where little is left in the end, on numbers that give ties.
    #[test]
    fn both_ways_choose_the_same_to_the_bit() {
        for (seed, grid) in [(1, 1 << 20), (2, 4), (3, 2)] {
            let mut problem = Problem::new(24, 700, 50, 0.0, seed);
            problem.params.w_enc = Vec::new();
            problem.params.b_enc.fill(0.0);
            let mut numbers = Numbers(seed);
            for row in problem.params.w_dec.chunks_exact_mut(24) {
                row.fill_with(|| numbers.grid(grid));
                let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt().max(0.1);
                row.iter_mut().for_each(|w| *w /= norm);
            }
            for pursuit in [pursuit(0.0, 300, false), pursuit(1e-5, 0, true)] {
                let step = MatchingPursuitStep { pursuit, apply_b_dec_to_input: true };
                for isa in Isa::available() {
                    let (losses, grads, _) = run(&problem, &step, 1, isa, Way::Products);
                    let (by_bytes, other_grads, _) = run(&problem, &step, 2, isa, Way::Bytes);
                    assert!(losses.overall.is_finite());
                    assert_eq!(losses, by_bytes, "grid {grid}, {}", isa.name());
                    assert_eq!(bits(&grads), bits(&other_grads), "grid {grid}, {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn aimed_steps_equal_the_reference_and_the_aim_holds_once() {
        let step = MatchingPursuitStep { pursuit: pursuit(0.5, 6, true), apply_b_dec_to_input: true };
        let problem = tied_problem(19, 101, 35, 4);
        assert!(is_far_from_ties(&problem, &step));
        let target: Vec<f32> = problem.x.iter().map(|x| 1.2 * x + 0.1).collect();
        let weight: Vec<f32> = (0..35).map(|b| b as f32 / 9.0).collect();
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (target64, weight64) = (wide(&target), wide(&weight));
        let aim = reference::Aim { target: &target64, weight: &weight64, width: problem.shape.d_in };
        let (params, x) = (problem.params.to_f64(), problem.x64());
        let pool = Pool::new(2);
        let mut ws = problem.workspace(&pool, Isa::detect());
        let mut grads = problem.dirty_grads();
        ws.aim_at(&target, &weight);
        for aim in [Some(aim), None] {
            let losses =
                matching_pursuit_step(&pool, &mut ws, &problem.params, &step, &problem.x, &mut grads);
            let want = reference::aimed_matching_pursuit_step(&params, &step, &x, aim);
            check_tied("aimed", &problem, (losses.mse, &grads), &want);
        }
    }

    #[test]
    fn a_later_batch_may_be_smaller_and_choose_other_latents() {
        let step = MatchingPursuitStep { pursuit: pursuit(0.5, 6, true), apply_b_dec_to_input: true };
        let pool = Pool::new(2);
        let mut ws = Workspace::new(Shape { d_in: 19, d_sae: 101, batch: 60 }, &pool);
        let mut grads = Params::tied_zeros(19, 101);
        for (seed, batch) in [(7, 60), (8, 3), (9, 49)] {
            let mut seeds = (seed..).step_by(10).map(|seed| tied_problem(19, 101, batch, seed));
            let problem = seeds.find(|problem| is_far_from_ties(problem, &step)).unwrap();
            let losses =
                matching_pursuit_step(&pool, &mut ws, &problem.params, &step, &problem.x, &mut grads);
            let want = reference::matching_pursuit_step(&problem.params.to_f64(), &step, &problem.x64());
            check_tied("later", &problem, (losses.mse, &grads), &want);
            let counts: Vec<usize> =
                want.acts.chunks(101).map(|acts| acts.iter().filter(|&&act| act != 0.0).count()).collect();
            let summary = ws.pursuit_summary(0.5);
            assert_eq!(Some(&summary.max_l0), counts.iter().max());
            assert_eq!(Some(&summary.min_l0), counts.iter().min());
        }
    }

    #[test]
    fn nan_shows_in_the_loss() {
        let step = MatchingPursuitStep { pursuit: pursuit(1e-2, 0, true), apply_b_dec_to_input: false };
        for isa in Isa::available() {
            for way in [Way::Products, Way::Bytes] {
                let mut in_input = tied_problem(17, 97, 33, 1);
                in_input.x[40] = f32::NAN;
                assert!(run(&in_input, &step, 1, isa, way).0.overall.is_nan());
                let mut in_decoder = tied_problem(17, 97, 33, 1);
                in_decoder.params.w_dec[3 * 17 + 2] = f32::NAN;
                assert!(run(&in_decoder, &step, 1, isa, way).0.overall.is_nan());
            }
        }
    }
}
