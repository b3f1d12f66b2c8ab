//! The BatchTopK SAE's training step: the largest pre-activations of the whole batch, however they fall to
//! its tokens.

use super::gather::ABOVE_ZERO;
use super::lists::{Lists, TILE};
use super::params::Params;
use super::pool::Pool;
use super::select::{rank, value_of};
use super::topk::{Choice, TopKStep, largest_step};
use super::workspace::{StepLosses, Workspace};

/// Settings of one BatchTopK step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchTopKStep {
    /// Latents kept per token on average.
    pub k: f64,
    /// Weight of the auxiliary loss on dead latents.
    pub aux_loss_coefficient: f64,
    /// As in [`TopKStep`].
    pub normalize_aux_loss: bool,
    /// Whether the largest are chosen by `pre * |W_dec,i|`.
    pub rescale_acts_by_decoder_norm: bool,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
}

impl BatchTopKStep {
    /// How many values of a batch are kept.
    pub(crate) fn kept_of(&self, n_tokens: usize) -> usize {
        (self.k * n_tokens as f64) as usize
    }

    /// The settings that both kinds share, with another `k`.
    pub(crate) fn as_topk(&self, k: usize) -> TopKStep {
        TopKStep {
            k,
            aux_loss_coefficient: self.aux_loss_coefficient,
            normalize_aux_loss: self.normalize_aux_loss,
            rescale_acts_by_decoder_norm: self.rescale_acts_by_decoder_norm,
            apply_b_dec_to_input: self.apply_b_dec_to_input,
        }
    }
}

/// Losses of one batch and their gradients, as [`super::reference::batch_topk_step`] defines them;
/// [`Workspace::smallest_kept`] is then the least value kept.
///
/// `x` is (B, D) with 1 <= B <= `shape.batch`; `dead` has one flag per latent, as it stood before this step;
/// `grads` is overwritten. Of equal values the earlier token's wins, then the lower latent's. A NaN anywhere
/// shows in the losses.
///
/// # Panics
/// When a length does not fit the workspace's shape.
pub fn batch_topk_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &BatchTopKStep,
    dead: &[bool],
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    let n = step.kept_of(x.len() / ws.shape.d_in);
    largest_step(pool, ws, params, &step.as_topk(0), Choice::OfBatch { n }, dead, x, grads)
}

impl Workspace {
    /// The least value that the last BatchTopK step kept, in the units they were compared in.
    pub fn smallest_kept(&self) -> Option<f32> {
        self.batch_selection.smallest()
    }
}

/// The best of the batch so far. Exact for the same reason as a choice for every token is: a limit only
/// excludes what enough better values already beat.
pub(super) struct BatchSelection {
    d_sae: u32,
    n: usize,
    /// Ranks kept.
    kept: Vec<u64>,
    /// What a rank must reach.
    cut: u64,
    /// What a value must reach.
    pub(super) limit: f32,
}

impl BatchSelection {
    pub(super) fn new(d_sae: usize) -> Self {
        let d_sae = u32::try_from(d_sae).expect("invariant: a workspace has less than 2^32 activations");
        Self { d_sae, n: 0, kept: Vec::new(), cut: 0, limit: 0.0 }
    }

    /// Begins anew: the n largest positive values are wanted.
    pub(super) fn begin(&mut self, n: usize) {
        self.n = n;
        self.kept.clear();
        self.cut = if n == 0 { u64::MAX } else { rank(ABOVE_ZERO, u32::MAX) };
        self.limit = if n == 0 { f32::INFINITY } else { ABOVE_ZERO };
    }

    /// Takes in what a round of tiles gathered.
    pub(super) fn take(
        &mut self,
        lists: &Lists,
        round: std::ops::Range<usize>,
        order: &[u32],
        scale: Option<&[f32]>,
    ) {
        if self.n == 0 {
            return;
        }
        for index in round {
            let tile = &lists.tiles[index];
            for (place, &latent) in order[index * TILE..].iter().take(TILE).enumerate() {
                let factor = scale.map_or(1.0, |scale| scale[latent as usize]);
                for entry in tile.latent(place) {
                    let rank = self.rank(tile.token[entry], tile.value[entry] * factor, latent);
                    if rank >= self.cut {
                        self.kept.push(rank);
                    }
                }
            }
            // Now and then, so that the list stays short.
            if self.kept.len() >= 2 * self.n {
                self.shorten();
            }
        }
        if self.kept.len() >= self.n {
            self.shorten();
        }
    }

    /// Reduces what is kept to the n best.
    fn shorten(&mut self) {
        // The n largest come first, the smallest of them last.
        let (_, worst, _) = self.kept.select_nth_unstable_by(self.n - 1, |a, b| b.cmp(a));
        self.cut = *worst;
        self.limit = value_of(self.cut);
        self.kept.truncate(self.n);
    }

    /// Whether a value is among the chosen, once all rounds are over.
    #[inline]
    pub(super) fn chosen(&self, token: u32, value: f32, latent: u32) -> bool {
        self.rank(token, value, latent) >= self.cut
    }

    fn rank(&self, token: u32, value: f32, latent: u32) -> u64 {
        // Below 2^32: a workspace has fewer activations.
        rank(value, token * self.d_sae + latent)
    }

    fn smallest(&self) -> Option<f32> {
        self.kept.iter().min().map(|&rank| value_of(rank))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::isa::Isa;
    use super::super::reference;
    use super::super::testing::{
        Numbers, Problem, SHAPES, SHIFTS, bits, check_close, check_grads, check_loss,
    };
    use super::super::topk::abs_topk_step;
    use super::*;

    /// Which of the two steps.
    #[derive(Debug, Clone, Copy)]
    enum Kind {
        Batch(f64),
        Magnitude(usize),
    }

    fn run(
        problem: &Problem,
        (kind, step): (Kind, &BatchTopKStep),
        dead: &[bool],
        threads: usize,
        isa: Isa,
    ) -> (StepLosses, Params, Workspace) {
        let pool = Pool::new(threads);
        let mut ws = problem.workspace(&pool, isa);
        let mut grads = problem.dirty_grads();
        let (params, x) = (&problem.params, &problem.x);
        let losses = match kind {
            Kind::Batch(k) => {
                let step = BatchTopKStep { k, ..*step };
                batch_topk_step(&pool, &mut ws, params, &step, dead, x, &mut grads)
            }
            Kind::Magnitude(k) => {
                abs_topk_step(&pool, &mut ws, params, &step.as_topk(k), dead, x, &mut grads)
            }
        };
        (losses, grads, ws)
    }

    fn check(problem: &Problem, kind: Kind, step: &BatchTopKStep, dead: &[bool]) {
        let (params, x) = (problem.params.to_f64(), problem.x64());
        let expected = match kind {
            Kind::Batch(k) => reference::batch_topk_step(&params, &BatchTopKStep { k, ..*step }, dead, &x),
            Kind::Magnitude(k) => reference::abs_topk_step(&params, &step.as_topk(k), dead, &x),
        };
        for isa in Isa::available() {
            let what = format!("{:?} {kind:?} {step:?} {}", problem.shape, isa.name());
            let (losses, grads, ws) = run(problem, (kind, step), dead, 1, isa);
            check_loss(&format!("{what} mse"), losses.mse, expected.losses.mse);
            check_loss(&format!("{what} aux"), losses.sparsity, expected.losses.sparsity);
            check_loss(&format!("{what} l0"), losses.l0, expected.losses.l0);
            check_close(&format!("{what} reconstruction"), ws.reconstruction(), &expected.reconstruction);
            check_grads(&what, problem, step.apply_b_dec_to_input, &grads, &expected);
            let d_sae = problem.shape.d_sae;
            for (f, &fired) in ws.fired().iter().enumerate() {
                let count = expected.acts.iter().skip(f).step_by(d_sae).filter(|&&act| act != 0.0).count();
                assert_eq!(fired as usize, count, "{what} fired[{f}]");
            }
            if let Kind::Batch(_) = kind {
                let norms = reference::decoder_norms(&params);
                let unit = |i: usize| if step.rescale_acts_by_decoder_norm { norms[i % d_sae] } else { 1.0 };
                let acts = expected.acts.iter().enumerate().map(|(i, act)| act * unit(i));
                let least = acts.filter(|&act| act > 0.0).reduce(f64::min);
                assert_eq!(ws.smallest_kept().is_some(), least.is_some(), "{what}");
                if let (Some(found), Some(least)) = (ws.smallest_kept(), least) {
                    check_loss(&format!("{what} smallest"), f64::from(found), least);
                }
            }
            for threads in [2, 3] {
                let (other_losses, other_grads, other_ws) = run(problem, (kind, step), dead, threads, isa);
                assert_eq!(losses, other_losses, "{what} {threads} threads");
                assert_eq!(bits(&grads), bits(&other_grads), "{what} {threads} threads");
                assert_eq!(ws.grad_norm().to_bits(), other_ws.grad_norm().to_bits());
            }
        }
    }

    fn step(rescale_acts_by_decoder_norm: bool, apply_b_dec_to_input: bool) -> BatchTopKStep {
        BatchTopKStep {
            k: 0.0,
            aux_loss_coefficient: 0.5,
            normalize_aux_loss: false,
            rescale_acts_by_decoder_norm,
            apply_b_dec_to_input,
        }
    }

    /// The same with the auxiliary loss normalised, for problems without a shift: that drives the errors of all tokens
    /// the same way, and what is left of their variance would be rounding.
    fn normalized(step: BatchTopKStep) -> BatchTopKStep {
        BatchTopKStep { normalize_aux_loss: true, ..step }
    }

    /// On the grid many pre-activations are equal, so this also holds the rule for ties.
    #[test]
    fn equals_the_reference_on_awkward_shapes() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            let mut numbers = Numbers(seed as u64);
            for (nth, (k, share_dead)) in
                [(1.0, 0), (2.7, 1), (8.0, 4), (0.4, 7), (500.0, 8), (0.0, 3)].into_iter().enumerate()
            {
                let shift = SHIFTS[(seed + nth) % SHIFTS.len()];
                let problem = Problem::new(d_in, d_sae, batch, shift, seed as u64);
                let dead: Vec<bool> = (0..d_sae).map(|_| numbers.next() % 8 < share_dead).collect();
                for rescale in [false, true] {
                    let step = step(rescale, nth % 2 == 0);
                    let step = if shift == 0.0 { normalized(step) } else { step };
                    check(&problem, Kind::Batch(k), &step, &dead);
                    check(&problem, Kind::Magnitude(k as usize), &step, &dead);
                }
            }
        }
    }

    #[test]
    fn equals_the_reference_over_many_rounds() {
        let problem = Problem::new(20, 2000, 40, 0.0, 3);
        let dead: Vec<bool> = (0..2000).map(|latent| latent % 3 == 0).collect();
        for kind in [Kind::Batch(3.5), Kind::Batch(30.0), Kind::Magnitude(4), Kind::Magnitude(30)] {
            check(&problem, kind, &step(true, false), &dead);
            check(&problem, kind, &normalized(step(true, false)), &dead);
            check(&problem, kind, &step(false, true), &[false; 2000]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_the_reference_on_any_shape(
            d_in in 4_usize..70, d_sae in 16_usize..210, batch in 1_usize..70, shift in -5_i32..5,
            seed in 0_u64..1000, k in 0.0_f64..20.0, rescale in any::<bool>(), share_dead in 0_u64..8
        ) {
            let problem = Problem::new(d_in, d_sae, batch, shift as f32, seed).with_exact_norms(seed);
            let mut numbers = Numbers(seed);
            let dead: Vec<bool> = (0..d_sae).map(|_| numbers.next() % 8 < share_dead).collect();
            check(&problem, Kind::Batch(k), &step(rescale, rescale), &dead);
            check(&problem, Kind::Magnitude(k as usize), &step(rescale, !rescale), &dead);
            let problem = Problem::new(d_in, d_sae, batch, 0.0, seed).with_exact_norms(seed);
            check(&problem, Kind::Batch(k), &normalized(step(rescale, rescale)), &dead);
            check(&problem, Kind::Magnitude(k as usize), &normalized(step(rescale, !rescale)), &dead);
        }
    }

    #[test]
    fn nan_shows_in_the_loss() {
        for isa in Isa::available() {
            let mut problem = Problem::new(17, 97, 33, 0.0, 1);
            problem.params.w_enc[50] = f32::NAN;
            for kind in [Kind::Batch(3.0), Kind::Magnitude(3)] {
                let (losses, ..) = run(&problem, (kind, &step(false, false)), &[false; 97], 1, isa);
                assert!(losses.overall.is_nan());
            }
        }
    }
}
