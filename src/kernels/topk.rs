//! The TopK SAE's training step, with the auxiliary loss on dead latents.

use super::aux_weight::aux_weight;
use super::decode::{Begin, DecodeOut, DecodePass};
use super::gather::Gather;
use super::lists::TILE;
use super::memory::Disjoint;
use super::params::Params;
use super::parts::Parts;
use super::phase;
use super::pool::Pool;
use super::product::PANEL;
use super::select::{AuxEntries, copy_chosen, decoder_norms, keep_chosen, rounds};
use super::weights::{Pull, WeightPass};
use super::workspace::{StepLosses, Workspace};

/// Settings of one TopK step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopKStep {
    /// Latents kept per token; more than F means all.
    pub k: usize,
    /// Weight of the auxiliary loss on dead latents.
    pub aux_loss_coefficient: f64,
    /// Whether that loss is divided by the variance of the error it makes up for (Gao et al. 2024); otherwise it
    /// grows with the number of dead latents, as SAELens has it.
    pub normalize_aux_loss: bool,
    /// Whether the k largest are chosen by `pre * |W_dec,i|`.
    pub rescale_acts_by_decoder_norm: bool,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
}

/// Losses of one batch and their gradients, as [`super::reference::topk_step`] defines them.
///
/// `x` is (B, D) with 1 <= B <= `shape.batch`; `dead` has one flag per latent, as it stood before this step;
/// `grads` is overwritten. Of equal values the lower latent wins. A NaN anywhere shows in the losses.
///
/// # Panics
/// When a length does not fit the workspace's shape.
pub fn topk_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &TopKStep,
    dead: &[bool],
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    largest_step(pool, ws, params, step, Choice::OfToken { k: step.k, by_magnitude: false }, dead, x, grads)
}

/// The same, but the k largest are chosen by magnitude, for the auxiliary loss, too, and keep their signs; as
/// [`super::reference::abs_topk_step`] defines it.
///
/// # Panics
/// When a length does not fit the workspace's shape.
pub fn abs_topk_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &TopKStep,
    dead: &[bool],
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    largest_step(pool, ws, params, step, Choice::OfToken { k: step.k, by_magnitude: true }, dead, x, grads)
}

/// Which pre-activations are kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    /// The k largest of every token; without magnitude, as far as they are positive.
    OfToken { k: usize, by_magnitude: bool },
    /// The n largest positive ones of the batch.
    OfBatch { n: usize },
}

/// Bytes that choosing a token's entries takes for each of them: candidates, by latent and by token, and their ranks.
const CHOSEN: f64 = 120.0;

/// A step that keeps what `choice` says.
#[expect(clippy::too_many_arguments, reason = "those of a step and the choice")]
pub(super) fn largest_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &TopKStep,
    choice: Choice,
    dead: &[bool],
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    let half = ws.aux_width / 2;
    assert_eq!(dead.len(), ws.shape.d_sae, "dead has one flag per latent");
    let n_tokens = ws.check(params, x, grads);
    let (with_bias, rescale) = (step.apply_b_dec_to_input, step.rescale_acts_by_decoder_norm);
    let n_dead = dead.iter().filter(|&&is_dead| is_dead).count();
    let k_aux = if step.aux_loss_coefficient == 0.0 { 0 } else { half.min(n_dead) };
    let aux = [(k_aux, dead)];
    let aux = if k_aux > 0 { &aux[..] } else { &[] };
    // The weight of a normalised auxiliary loss depends on the errors of the whole batch.
    let in_parts = k_aux == 0 || !step.normalize_aux_loss;
    let chosen_in_parts = in_parts && matches!(choice, Choice::OfToken { .. });
    let parts = match choice {
        _ if !in_parts => Parts::one(n_tokens),
        Choice::OfToken { k, .. } => ws.parts_of_entries(n_tokens, CHOSEN * (k + k_aux) as f64),
        Choice::OfBatch { n } => {
            let entries = n as f64 / n_tokens as f64 + k_aux as f64;
            ws.parts_of_chosen(n_tokens, 2 + usize::from(k_aux > 0), entries)
        }
    };
    let mut n_active = 0;
    if !chosen_in_parts {
        ws.gather_largest_of_batch(pool, params, with_bias, x, choice, rescale, aux);
        n_active = ws.lists.count();
        ws.count_fired();
    }

    let (d_in, scale) = (params.d_in(), 1.0 / n_tokens as f64);
    let mut auxiliary = 0.0;
    ws.aim.begin(x.len());
    for (tokens, part) in parts.iter() {
        let range = tokens.start * d_in..tokens.end * d_in;
        let x = &x[range.clone()];
        ws.keep_input(params, with_bias, x);
        if chosen_in_parts {
            ws.load(pool, params, with_bias, x);
            ws.gather_largest(pool, params, choice, rescale, aux);
            n_active += ws.lists.count();
            ws.count_fired();
        } else {
            ws.take_part_lists(pool, &tokens, part, (true, aux.len()));
        }
        let (lists, aux_lists) = match &ws.part_lists[..] {
            [lists, aux @ ..] if !part.is_whole() && !chosen_in_parts => (lists, aux.first()),
            _ => (&ws.lists, ws.aux.first().map(|entries| &entries.lists)),
        };
        let aim = ws.aim.now();
        ws.g.resize(x.len());
        let g = &mut *ws.g;
        let pass = DecodePass {
            isa: ws.isa,
            params,
            order: &ws.order,
            lists,
            n_tokens: tokens.len(),
            begin: Begin::Bias,
            target: aim.map_or(x, |aim| &aim.target[range.clone()]),
            weight: aim.map(|aim| &aim.weight[tokens.clone()]),
            g_scale: (2.0 * scale) as f32,
            lp_norm: None,
        };
        let (reconstruction, losses) = (&mut ws.reconstruction[range], &mut ws.token_losses[tokens.clone()]);
        pass.run(pool, &mut ws.decode_space, DecodeOut { reconstruction: &mut *reconstruction, g, losses });

        let main = Pull { lists, g, decoded: true, loss: None };
        let mut pulls = [main, main];
        let mut n_pulls = 1;
        // The auxiliary reconstruction starts from what the main one left: its error is z W_dec - (x - xhat).
        let aux_g = ws.screen.scratch();
        if let (true, Some(lists)) = (k_aux > 0, aux_lists) {
            let weight = aux_weight(step, n_dead, half, d_in, pass.target, reconstruction);
            for buffer in [&mut *aux_g, &mut ws.panels] {
                buffer.resize(x.len());
            }
            ws.aux_losses.clear();
            ws.aux_losses.resize(tokens.len(), [0.0; 2]);
            let pass = DecodePass {
                lists,
                begin: Begin::From(reconstruction),
                weight: None,
                g_scale: (2.0 * weight * scale) as f32,
                ..pass
            };
            let losses = &mut ws.aux_losses[..];
            let out = DecodeOut { reconstruction: &mut ws.panels, g: &mut *aux_g, losses };
            pass.run(pool, &mut ws.decode_space, out);
            auxiliary += weight * scale * ws.aux_losses.iter().map(|losses| losses[0]).sum::<f64>();
            pulls[1] = Pull { lists, g: aux_g, ..main };
            n_pulls = 2;
        }

        let pass = WeightPass {
            isa: ws.isa,
            params,
            order: &ws.order,
            x_in: if with_bias { &ws.x_in } else { x },
            pulls: &pulls[..n_pulls],
            bias_in_input: with_bias,
            pulls_on_bias: 1,
            part,
        };
        ws.grad_squares = pass.run(pool, &mut ws.weight_space, grads).squares;
    }
    ws.n_tokens = n_tokens;

    let mse = scale * ws.token_losses.iter().map(|losses| losses[0]).sum::<f64>();
    StepLosses {
        overall: mse + auxiliary,
        mse,
        sparsity: auxiliary,
        auxiliary: 0.0,
        l0: scale * n_active as f64,
    }
}

impl Workspace {
    /// Packs a whole batch where its reconstruction will be, and chooses.
    #[expect(clippy::too_many_arguments, reason = "those of packing and those of choosing")]
    pub(super) fn gather_largest_of_batch(
        &mut self,
        pool: &Pool,
        params: &Params,
        apply_b_dec_to_input: bool,
        x: &[f32],
        choice: Choice,
        rescale: bool,
        aux: &[(usize, &[bool])],
    ) {
        std::mem::swap(&mut self.panels, &mut self.reconstruction);
        self.load(pool, params, apply_b_dec_to_input, x);
        self.gather_largest(pool, params, choice, rescale, aux);
        std::mem::swap(&mut self.panels, &mut self.reconstruction);
        self.reconstruction.resize(self.shape.batch * self.shape.d_in);
    }

    /// Fills the lists with the chosen pre-activations of the loaded batch, and the auxiliary ones, for each
    /// number and set of latents in `aux`, with so many largest of that set.
    pub(super) fn gather_largest(
        &mut self,
        pool: &Pool,
        params: &Params,
        choice: Choice,
        rescale: bool,
        aux: &[(usize, &[bool])],
    ) {
        let _phase = phase::select();
        let (n_tokens, d_sae) = (self.n_tokens, self.shape.d_sae);
        // The rounds of a batch's choice begin as small as if every token had its share.
        let (k, by_magnitude) = match choice {
            Choice::OfToken { k, by_magnitude } => (k.min(d_sae), by_magnitude),
            Choice::OfBatch { n } => (n.div_ceil(n_tokens).min(d_sae), false),
        };
        if rescale {
            decoder_norms(pool, self.isa, params, &mut self.norms);
        }
        let scale = rescale.then_some(&*self.norms);
        match choice {
            Choice::OfToken { .. } => self.selection.begin(k, n_tokens, by_magnitude),
            Choice::OfBatch { n } => self.batch_selection.begin(n),
        }

        // Latents of auxiliary losses come last, so that they share tiles and a limit of their own.
        let in_aux = |latent: &u32| aux.iter().any(|(_, set)| set[*latent as usize]);
        self.order.clear();
        self.order.extend((0..d_sae as u32).filter(|latent| !in_aux(latent)));
        let n_alive = self.order.len();
        self.order.extend((0..d_sae as u32).filter(in_aux));
        let k_aux = aux.iter().map(|&(k, _)| k).max().unwrap_or(0);
        self.aux.resize_with(self.aux.len().max(aux.len()), || AuxEntries::new(d_sae));
        for (entries, &(k, _)) in self.aux.iter_mut().zip(aux) {
            entries.selection.begin(k, n_tokens, by_magnitude);
        }
        self.dead_limits.resize(n_tokens.next_multiple_of(PANEL));

        let n_tiles = self.lists.tiles.len();
        let tiles_alive = n_alive.div_ceil(TILE);
        for round in rounds(k, 0..tiles_alive).chain(rounds(k.max(k_aux), tiles_alive..n_tiles)) {
            let limits = match choice {
                Choice::OfToken { .. } => &*self.selection.limits,
                Choice::OfBatch { .. } => {
                    self.limits.fill(self.batch_selection.limit);
                    &*self.limits
                }
            };
            self.dead_limits.copy_from_slice(&limits[..n_tokens.next_multiple_of(PANEL)]);
            for entries in &self.aux[..aux.len()] {
                for (to, &limit) in self.dead_limits.iter_mut().zip(&*entries.selection.limits) {
                    *to = to.min(limit);
                }
            }
            let gather = Gather {
                isa: self.isa,
                params,
                order: &self.order,
                panels: &self.panels,
                screen: self.screen.loaded(),
                n_tokens,
                scale,
                limits,
                other_limits: &self.dead_limits,
                first_other: n_alive,
                latent_limits: None,
                by_magnitude,
            };
            gather.run(pool, &self.gather_spares, round.clone(), &mut self.lists);
            if !aux.is_empty() || matches!(choice, Choice::OfToken { .. }) {
                self.rows.fill(&self.lists, &self.order, n_tokens, |tile| round.contains(&tile));
            }
            match choice {
                Choice::OfToken { .. } => {
                    self.selection.take(pool, &self.rank_spares, &self.rows, scale, None);
                }
                Choice::OfBatch { .. } => {
                    self.batch_selection.take(&self.lists, round, &self.order, scale);
                }
            }
            for (entries, (_, set)) in self.aux.iter_mut().zip(aux) {
                entries.selection.take(pool, &self.rank_spares, &self.rows, scale, Some(set));
            }
        }

        let order = &self.order;
        let latents_of = |index: usize| &order[index * TILE..((index + 1) * TILE).min(d_sae)];
        for (AuxEntries { selection, lists }, (_, set)) in self.aux.iter_mut().zip(aux) {
            let to = Disjoint::new(&mut lists.tiles);
            pool.run(n_tiles, &|index| {
                // SAFETY: one tile per task.
                let to = unsafe { to.at(index) };
                copy_chosen(&self.lists.tiles[index], to, (selection, set), latents_of(index), scale);
            });
        }
        let lists = Disjoint::new(&mut self.lists.tiles);
        pool.run(n_tiles, &|index| {
            // SAFETY: one tile per task.
            let lists = unsafe { lists.at(index) };
            let latents = latents_of(index);
            // The relu comes after the choice; NaN passes.
            match choice {
                Choice::OfToken { by_magnitude: false, .. } => {
                    keep_chosen(lists, latents, scale, |token, value, latent, compared| {
                        (value > 0.0 || value.is_nan()) && self.selection.chosen(token, compared, latent)
                    });
                }
                Choice::OfToken { by_magnitude: true, .. } => {
                    keep_chosen(lists, latents, scale, |token, value, latent, compared| {
                        value != 0.0 && self.selection.chosen(token, compared, latent)
                    });
                }
                Choice::OfBatch { .. } => {
                    keep_chosen(lists, latents, scale, |token, _, latent, compared| {
                        self.batch_selection.chosen(token, compared, latent)
                    });
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::isa::Isa;
    use super::super::reference;
    use super::super::testing::{Numbers, Problem, SHAPES, bits, check_close, check_grads, check_loss};
    use super::*;

    fn run(
        problem: &Problem,
        step: &TopKStep,
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
        step: &TopKStep,
        dead: &[bool],
        threads: usize,
        isa: Isa,
    ) -> (StepLosses, Params, Workspace) {
        let pool = Pool::new(threads);
        let mut ws = problem.workspace(&pool, isa);
        ws.forced_parts = parts;
        let mut grads = problem.dirty_grads();
        let losses = topk_step(&pool, &mut ws, &problem.params, step, dead, &problem.x, &mut grads);
        (losses, grads, ws)
    }

    fn check(problem: &Problem, step: &TopKStep, dead: &[bool]) {
        let expected = reference::topk_step(&problem.params.to_f64(), step, dead, &problem.x64());
        let cases =
            Isa::available().into_iter().flat_map(|isa| [None, Some(2), Some(3)].map(|parts| (isa, parts)));
        for (isa, parts) in cases {
            let what = format!("{:?} {step:?} {} {parts:?} parts", problem.shape, isa.name());
            let (losses, grads, ws) = run_in(parts, problem, step, dead, 1, isa);
            check_loss(&format!("{what} mse"), losses.mse, expected.losses.mse);
            check_loss(&format!("{what} aux"), losses.sparsity, expected.losses.sparsity);
            check_loss(&format!("{what} overall"), losses.overall, expected.losses.overall);
            check_loss(&format!("{what} l0"), losses.l0, expected.losses.l0);
            check_close(&format!("{what} reconstruction"), ws.reconstruction(), &expected.reconstruction);
            check_grads(&what, problem, step.apply_b_dec_to_input, &grads, &expected);
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

    /// On the grid many pre-activations are equal, so this also holds the rule for ties.
    #[test]
    fn equals_the_reference_on_awkward_shapes() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            let mut numbers = Numbers(seed as u64);
            for (k, share_dead) in [(1, 0), (3, 1), (8, 4), (8, 7), (500, 8), (0, 3)] {
                let problem = Problem::new(d_in, d_sae, batch, 0.0, seed as u64);
                let dead: Vec<bool> = (0..d_sae).map(|_| numbers.next() % 8 < share_dead).collect();
                for rescale_acts_by_decoder_norm in [false, true] {
                    let step = TopKStep {
                        k,
                        aux_loss_coefficient: 0.5,
                        normalize_aux_loss: k == 8,
                        rescale_acts_by_decoder_norm,
                        apply_b_dec_to_input: k != 3,
                    };
                    check(&problem, &step, &dead);
                }
            }
        }
    }

    #[test]
    fn equals_the_reference_over_many_rounds() {
        let problem = Problem::new(20, 2000, 40, 0.0, 3);
        let dead: Vec<bool> = (0..2000).map(|latent| latent % 3 == 0).collect();
        for (k, aux_loss_coefficient) in [(4, 1.0), (30, 0.03), (30, 0.0)] {
            let step = TopKStep {
                k,
                aux_loss_coefficient,
                normalize_aux_loss: aux_loss_coefficient < 1.0,
                rescale_acts_by_decoder_norm: true,
                apply_b_dec_to_input: false,
            };
            check(&problem, &step, &dead);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_the_reference_on_any_shape(
            (d_in, d_sae, batch) in (4_usize..70, 16_usize..400, 1_usize..70),
            (k, one_in) in (0_usize..60, 1_u64..9),
            aux_loss_coefficient in 0.0_f64..2.0,
            apply_b_dec_to_input: bool,
            seed: u64,
        ) {
            let problem = Problem::new(d_in, d_sae, batch, 0.0, seed);
            let mut numbers = Numbers(seed);
            let dead: Vec<bool> = (0..d_sae).map(|_| numbers.next().is_multiple_of(one_in)).collect();
            let step = TopKStep {
                k,
                aux_loss_coefficient,
                normalize_aux_loss: seed.is_multiple_of(2),
                rescale_acts_by_decoder_norm: false,
                apply_b_dec_to_input,
            };
            check(&problem, &step, &dead);
        }
    }

    #[test]
    fn nan_shows_in_the_loss() {
        let step = TopKStep {
            k: 3,
            aux_loss_coefficient: 0.5,
            normalize_aux_loss: false,
            rescale_acts_by_decoder_norm: false,
            apply_b_dec_to_input: false,
        };
        for isa in Isa::available() {
            let mut problem = Problem::new(17, 97, 33, 0.0, 1);
            problem.params.w_enc[50] = f32::NAN;
            assert!(run(&problem, &step, &[false; 97], 1, isa).0.overall.is_nan());
        }
    }
}
