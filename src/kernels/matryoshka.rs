//! The Matryoshka BatchTopK SAE's training step: every prefix of the latents reconstructs the input.
//!
//! Levels are decoded one after the other, each from what the one before came to. A latent is pulled by the
//! errors of all levels it belongs to, that is, by the sum of their gradients: those sums are taken once, from
//! the last level down, and each level's own latents are one pull.

use super::aux_weight::aux_weight;
use super::batch_topk::BatchTopKStep;
use super::decode::{Begin, DecodeOut, DecodePass};
use super::lists::Lists;
use super::memory::Buffer;
use super::params::Params;
use super::parts::{Part, Parts};
use super::pool::Pool;
use super::select::AuxEntries;
use super::topk::Choice;
use super::weights::{Pull, WeightPass};
use super::workspace::{StepLosses, Workspace};
use std::ops::Range;

/// Memory of the levels.
#[derive(Default)]
pub(super) struct Levels {
    /// Flags of the dead latents of each level, (F).
    dead: Vec<Vec<bool>>,
    /// Entries of the latents that each level adds to the one before.
    lists: Vec<Lists>,
    /// Gradient by each level's reconstruction, and by those of the auxiliary losses, (B, D).
    g: Vec<Buffer>,
    aux_g: Vec<Buffer>,
    losses: Vec<f64>,
    /// Empty vectors that keep their memory from step to step.
    aux: Vec<Aux>,
    sets: Vec<(usize, &'static [bool])>,
    pulls: Vec<Pull<'static>>,
}

/// An auxiliary loss: on which level's residual, and of how many dead latents.
struct Aux {
    level: usize,
    n_dead: usize,
}

/// Losses of one batch and their gradients, as [`super::reference::matryoshka_step`] defines them;
/// [`Workspace::level_losses`] then holds the errors of all levels but the last, and
/// [`Workspace::smallest_kept`] the least value kept.
///
/// `x` is (B, D) with 1 <= B <= `shape.batch`; `widths` rise to F; `dead` has one flag per latent, as it stood
/// before this step; `grads` is overwritten. A NaN anywhere shows in the losses.
///
/// # Panics
/// When a length does not fit the workspace's shape, or the widths do not rise to F.
#[expect(clippy::too_many_arguments, reason = "those of a step, and two settings that are no numbers")]
pub fn matryoshka_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &BatchTopKStep,
    widths: &[usize],
    aux_by_level: bool,
    dead: &[bool],
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    let (d_in, d_sae) = (ws.shape.d_in, ws.shape.d_sae);
    assert_eq!(dead.len(), d_sae, "dead has one flag per latent");
    assert!(
        widths.first().is_some_and(|&width| width > 0) && widths.last() == Some(&d_sae),
        "widths end at F"
    );
    assert!(widths.is_sorted_by(|a, b| a < b), "widths rise");
    let n_tokens = ws.check(params, x, grads);
    let scale = 1.0 / n_tokens as f64;
    let mut levels = std::mem::take(&mut ws.levels);

    // Which latents are dead where, and what they are to make up for.
    let n_sets = if aux_by_level { widths.len() } else { 1 };
    levels.dead.resize_with(n_sets, Vec::new);
    let mut aux = std::mem::take(&mut levels.aux);
    let mut sets: Vec<(usize, &[bool])> = recycled(std::mem::take(&mut levels.sets));
    aux.clear();
    for (nth, flags) in levels.dead.iter_mut().enumerate() {
        let (level, latents) =
            if aux_by_level { (nth, level_of(widths, nth)) } else { (widths.len() - 1, 0..d_sae) };
        flags.clear();
        flags.extend(dead.iter().enumerate().map(|(latent, &is_dead)| is_dead && latents.contains(&latent)));
        let n_dead = flags.iter().filter(|&&is_dead| is_dead).count();
        let k_aux = if step.aux_loss_coefficient == 0.0 { 0 } else { (d_in / 2).min(n_dead) };
        if k_aux > 0 {
            aux.push(Aux { level, n_dead });
            sets.push((k_aux, flags.as_slice()));
        }
    }
    let choice = Choice::OfBatch { n: step.kept_of(n_tokens) };
    let (with_bias, rescale) = (step.apply_b_dec_to_input, step.rescale_acts_by_decoder_norm);
    ws.gather_largest_of_batch(pool, params, with_bias, x, choice, rescale, &sets);
    levels.sets = recycled(sets);
    let n_active = ws.lists.count();
    ws.count_fired();
    // The weight of a normalised auxiliary loss depends on the errors of the whole batch.
    let parts = if step.normalize_aux_loss && !aux.is_empty() {
        Parts::one(n_tokens)
    } else {
        ws.parts_of_chosen(n_tokens, 1 + widths.len() + aux.len(), 2.0 * step.k)
    };
    levels.losses.clear();
    levels.losses.resize(widths.len(), 0.0);
    let mut sparsity = 0.0;
    for (tokens, part) in parts.iter() {
        let range = tokens.start * d_in..tokens.end * d_in;
        ws.keep_input(params, with_bias, &x[range.clone()]);
        ws.take_part_lists(pool, &tokens, part, (false, aux.len()));
        sparsity += decode_levels(pool, ws, &mut levels, (params, step), widths, &aux, (x, &tokens, part));

        for nth in (0..widths.len() - 1).rev() {
            let (to, from) = levels.g.split_at_mut(nth + 1);
            to[nth].iter_mut().zip(&*from[0]).for_each(|(sum, g)| *sum += g);
        }
        let mut pulls: Vec<Pull<'_>> = recycled(std::mem::take(&mut levels.pulls));
        pulls.extend(
            (levels.lists.iter().zip(&levels.g))
                .chain(
                    (0..aux.len())
                        .map(|nth| aux_lists((&ws.aux, &ws.part_lists), nth, part))
                        .zip(&levels.aux_g),
                )
                .map(|(lists, g)| Pull { lists, g, decoded: true, loss: None }),
        );
        let pass = WeightPass {
            isa: ws.isa,
            params,
            order: &ws.order,
            x_in: if with_bias { &ws.x_in } else { &x[range] },
            pulls: &pulls,
            bias_in_input: with_bias,
            pulls_on_bias: 1,
            part,
        };
        ws.grad_squares = pass.run(pool, &mut ws.weight_space, grads).squares;
        levels.pulls = recycled(pulls);
    }
    levels.aux = aux;

    let mse = levels.losses.pop().expect("invariant: there is a level");
    let auxiliary = levels.losses.iter().sum::<f64>();
    ws.levels = levels;
    let overall = mse + sparsity + auxiliary;
    StepLosses { overall, mse, sparsity, auxiliary, l0: scale * n_active as f64 }
}

/// Decodes all levels of a part of a batch, and the auxiliary reconstructions: leaves the gradient by each of them, the
/// entries of each level's own latents, and the last level's reconstruction where it is looked for, and adds to the
/// losses of the levels. Returns the auxiliary loss.
fn decode_levels(
    pool: &Pool,
    ws: &mut Workspace,
    levels: &mut Levels,
    (params, step): (&Params, &BatchTopKStep),
    widths: &[usize],
    aux: &[Aux],
    (x, tokens, part): (&[f32], &Range<usize>, Part),
) -> f64 {
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    let scale = d_in as f64 / x.len() as f64;
    let range = tokens.start * d_in..tokens.end * d_in;
    let x = &x[range.clone()];
    levels.lists.resize_with(widths.len(), || Lists::new(d_sae));
    for (nth, of_level) in levels.lists.iter_mut().enumerate() {
        let (level, order) = (level_of(widths, nth), &ws.order);
        ws.lists.copy_some(pool, tokens, &|at| level.contains(&(order[at] as usize)), of_level);
    }
    levels.g.resize_with(widths.len(), Buffer::default);
    levels.aux_g.resize_with(levels.aux_g.len().max(aux.len()), Buffer::default);
    // Reconstructions of one level and the next take turns, so that the last is where it is looked for.
    let other = ws.screen.scratch();
    for buffer in levels.g.iter_mut().chain(&mut levels.aux_g).chain([&mut ws.panels, &mut *other]) {
        buffer.resize(x.len());
    }
    let mut auxiliary = 0.0;
    for nth in 0..widths.len() {
        let (whole, other) = (&mut ws.reconstruction[range.clone()], &mut other[..]);
        let (to, before) = if (widths.len() - nth) % 2 == 1 { (whole, other) } else { (other, whole) };
        let losses = &mut ws.token_losses[tokens.clone()];
        let pass = DecodePass {
            isa: ws.isa,
            params,
            order: &ws.order,
            lists: &levels.lists[nth],
            n_tokens: tokens.len(),
            begin: if nth == 0 { Begin::Bias } else { Begin::From(before) },
            target: x,
            weight: None,
            g_scale: (2.0 * scale) as f32,
            lp_norm: None,
        };
        let out = DecodeOut { reconstruction: to, g: &mut levels.g[nth], losses: &mut *losses };
        pass.run(pool, &mut ws.decode_space, out);
        levels.losses[nth] += scale * losses.iter().map(|losses| losses[0]).sum::<f64>();
        for (nth_aux, aux) in aux.iter().enumerate().filter(|(_, aux)| aux.level == nth) {
            let weight = aux_weight(&step.as_topk(0), aux.n_dead, d_in / 2, d_in, x, to);
            ws.aux_losses.clear();
            ws.aux_losses.resize(tokens.len(), [0.0; 2]);
            let pass = DecodePass {
                lists: aux_lists((&ws.aux, &ws.part_lists), nth_aux, part),
                begin: Begin::From(to),
                g_scale: (2.0 * weight * scale) as f32,
                ..pass
            };
            let (reconstruction, g) = (&mut ws.panels, &mut levels.aux_g[nth_aux]);
            pass.run(pool, &mut ws.decode_space, DecodeOut { reconstruction, g, losses: &mut ws.aux_losses });
            auxiliary += weight * scale * ws.aux_losses.iter().map(|losses| losses[0]).sum::<f64>();
        }
    }
    auxiliary
}

/// Entries for the nth auxiliary loss: of the whole batch, or of a part.
fn aux_lists<'a>((whole, of_part): (&'a [AuxEntries], &'a [Lists]), nth: usize, part: Part) -> &'a Lists {
    if part.is_whole() { &whole[nth].lists } else { &of_part[1 + nth] }
}

impl Workspace {
    /// Mean squared errors of all levels but the last, of the last Matryoshka step.
    pub fn level_losses(&self) -> &[f64] {
        &self.levels.losses
    }
}

/// The memory of a vector for other items of the same layout: a vector collected from its own iterator stays in place.
fn recycled<A, B>(mut items: Vec<A>) -> Vec<B> {
    items.clear();
    items.into_iter().map(|_item| unreachable!("invariant: there are no items")).collect()
}

/// The latents that a level adds to the one before.
fn level_of(widths: &[usize], nth: usize) -> std::ops::Range<usize> {
    let first = if nth == 0 { 0 } else { widths[nth - 1] };
    first..widths[nth]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::isa::Isa;
    use super::super::reference;
    use super::super::testing::{
        Numbers, Problem, SHAPES, SHIFTS, bits, check_close, check_grads, check_loss,
    };
    use super::*;

    struct Setting {
        step: BatchTopKStep,
        widths: Vec<usize>,
        aux_by_level: bool,
        dead: Vec<bool>,
    }

    impl Setting {
        fn new(
            d_sae: usize,
            k: f64,
            n_widths: usize,
            aux_by_level: bool,
            share_dead: u64,
            seed: u64,
        ) -> Self {
            let mut numbers = Numbers(seed);
            let mut widths: Vec<usize> =
                (1..n_widths).map(|_| 1 + (numbers.next() % d_sae as u64) as usize).chain([d_sae]).collect();
            widths.sort_unstable();
            widths.dedup();
            let step = BatchTopKStep {
                k,
                aux_loss_coefficient: 0.5,
                normalize_aux_loss: false,
                rescale_acts_by_decoder_norm: seed.is_multiple_of(2),
                apply_b_dec_to_input: seed.is_multiple_of(3),
            };
            let dead = (0..d_sae).map(|_| numbers.next() % 8 < share_dead).collect();
            Self { step, widths, aux_by_level, dead }
        }

        /// Of problems without a shift: that drives the errors of all tokens the same way, and what is left of their
        /// variance would be rounding.
        fn normalized(self) -> Self {
            Self { step: BatchTopKStep { normalize_aux_loss: true, ..self.step }, ..self }
        }

        fn run(
            &self,
            parts: Option<usize>,
            problem: &Problem,
            threads: usize,
            isa: Isa,
        ) -> (StepLosses, Params, Workspace) {
            let pool = Pool::new(threads);
            let mut ws = problem.workspace(&pool, isa);
            ws.forced_parts = parts;
            let mut grads = problem.dirty_grads();
            let Self { step, widths, aux_by_level, dead } = self;
            let (params, x) = (&problem.params, &problem.x);
            let losses =
                matryoshka_step(&pool, &mut ws, params, step, widths, *aux_by_level, dead, x, &mut grads);
            (losses, grads, ws)
        }

        fn check(&self, problem: &Problem) {
            let Self { step, widths, aux_by_level, dead } = self;
            let (params, x) = (problem.params.to_f64(), problem.x64());
            let (expected, inner) =
                reference::matryoshka_step(&params, step, widths, *aux_by_level, dead, &x);
            let cases = Isa::available()
                .into_iter()
                .flat_map(|isa| [None, Some(2), Some(3)].map(|parts| (isa, parts)));
            for (isa, parts) in cases {
                let (shape, isa_name) = (problem.shape, isa.name());
                let what = format!("{shape:?} {step:?} {widths:?} {aux_by_level} {isa_name} {parts:?} parts");
                let (losses, grads, ws) = self.run(parts, problem, 1, isa);
                check_loss(&format!("{what} mse"), losses.mse, expected.losses.mse);
                check_loss(&format!("{what} aux"), losses.sparsity, expected.losses.sparsity);
                check_loss(&format!("{what} overall"), losses.overall, expected.losses.overall);
                check_loss(&format!("{what} l0"), losses.l0, expected.losses.l0);
                assert_eq!(ws.level_losses().len(), inner.len());
                for (found, expected) in ws.level_losses().iter().zip(&inner) {
                    check_loss(&format!("{what} inner"), *found, *expected);
                }
                check_close(&format!("{what} reconstruction"), ws.reconstruction(), &expected.reconstruction);
                check_grads(&what, problem, step.apply_b_dec_to_input, &grads, &expected);
                let squares: f64 = expected.grads.arrays().iter().flat_map(|a| a.iter()).map(|g| g * g).sum();
                check_loss(&format!("{what} norm"), ws.grad_norm(), squares.sqrt());
                for threads in [2, 3] {
                    let (other_losses, other_grads, other_ws) = self.run(parts, problem, threads, isa);
                    assert_eq!(losses, other_losses, "{what} {threads} threads");
                    assert_eq!(bits(&grads), bits(&other_grads), "{what} {threads} threads");
                    assert_eq!(ws.grad_norm().to_bits(), other_ws.grad_norm().to_bits());
                }
            }
        }
    }

    #[test]
    fn equals_the_reference_on_awkward_shapes() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            for (nth, (k, n_widths, share_dead)) in
                [(1.0, 2, 0), (2.7, 3, 2), (8.0, 5, 4), (500.0, 3, 8), (0.0, 2, 3)].into_iter().enumerate()
            {
                let shift = SHIFTS[(seed + nth) % SHIFTS.len()];
                let seed = (seed + nth) as u64;
                let problem = Problem::new(d_in, d_sae, batch, shift, seed);
                for aux_by_level in [false, true] {
                    let setting = Setting::new(d_sae, k, n_widths, aux_by_level, share_dead, seed);
                    if shift == 0.0 { setting.normalized() } else { setting }.check(&problem);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_the_reference_on_any_shape(
            d_in in 4_usize..70, d_sae in 16_usize..210, batch in 1_usize..70, shift in -5_i32..5,
            seed in 0_u64..1000, k in 0.0_f64..20.0, n_widths in 1_usize..6, aux_by_level in any::<bool>(),
            share_dead in 0_u64..8
        ) {
            let problem = Problem::new(d_in, d_sae, batch, shift as f32, seed).with_exact_norms(seed);
            Setting::new(d_sae, k, n_widths, aux_by_level, share_dead, seed).check(&problem);
            let problem = Problem::new(d_in, d_sae, batch, 0.0, seed).with_exact_norms(seed);
            Setting::new(d_sae, k, n_widths, aux_by_level, share_dead, seed).normalized().check(&problem);
        }
    }

    #[test]
    fn nan_shows_in_the_loss() {
        for isa in Isa::available() {
            let mut problem = Problem::new(17, 97, 33, 0.0, 1);
            problem.params.w_enc[50] = f32::NAN;
            let setting = Setting::new(97, 3.0, 3, true, 2, 1);
            assert!(setting.run(None, &problem, 1, isa).0.overall.is_nan());
        }
    }
}
