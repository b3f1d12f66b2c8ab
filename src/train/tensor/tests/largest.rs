//! The steps that keep the largest pre-activations. On the grid of the problems many are equal, so these tests hold
//! the rule for ties, too.

use super::*;
use crate::kernels::{BatchTopKStep, TopKStep, testing::Numbers};
use proptest::prelude::*;

fn topk(k: usize, rescale_acts_by_decoder_norm: bool, apply_b_dec_to_input: bool) -> TopKStep {
    TopKStep {
        k,
        aux_loss_coefficient: 0.5,
        normalize_aux_loss: false,
        rescale_acts_by_decoder_norm,
        apply_b_dec_to_input,
    }
}

fn batch_topk(k: f64, step: TopKStep) -> BatchTopKStep {
    let TopKStep {
        aux_loss_coefficient,
        normalize_aux_loss,
        rescale_acts_by_decoder_norm,
        apply_b_dec_to_input,
        ..
    } = step;
    BatchTopKStep {
        k,
        aux_loss_coefficient,
        normalize_aux_loss,
        rescale_acts_by_decoder_norm,
        apply_b_dec_to_input,
    }
}

fn check_topk(problem: &Problem, step: TopKStep, dead: &[bool]) {
    let (params, x) = (problem.params.to_f64(), problem.x64());
    let expected = reference::topk_step(&params, &step, dead, &x);
    check(problem, &Step::TopK { step, by_magnitude: false }, dead, None, &expected);
    let expected = reference::abs_topk_step(&params, &step, dead, &x);
    check(problem, &Step::TopK { step, by_magnitude: true }, dead, None, &expected);
}

fn check_batch(problem: &Problem, step: BatchTopKStep, dead: &[bool]) {
    let (params, x) = (problem.params.to_f64(), problem.x64());
    let expected = reference::batch_topk_step(&params, &step, dead, &x);
    let found = check(problem, &Step::BatchTopK(step), dead, None, &expected);
    check_least(&found, &params, step.rescale_acts_by_decoder_norm, &expected);

    let d_sae = problem.shape.d_sae;
    let widths: Vec<usize> = [d_sae / 5, d_sae / 2, d_sae].into_iter().filter(|&width| width > 0).collect();
    let widths = if d_sae < 5 { &widths[widths.len() - 1..] } else { &widths[..] };
    for aux_by_level in [false, true] {
        let (expected, inner) = reference::matryoshka_step(&params, &step, widths, aux_by_level, dead, &x);
        let step = Step::Matryoshka { step, widths, aux_by_level };
        let found = check(problem, &step, dead, None, &expected);
        assert_eq!(found.levels.len(), inner.len());
        for (found, expected) in found.levels.iter().zip(inner) {
            check_loss("level", *found, expected);
        }
    }
}

fn check_least(found: &TensorStep, params: &Params<f64>, rescale: bool, expected: &StepOutcome) {
    let norms = reference::decoder_norms(params);
    let unit = |i: usize| if rescale { norms[i % norms.len()] } else { 1.0 };
    let acts = expected.acts.iter().enumerate().map(|(i, act)| act * unit(i));
    let least = acts.filter(|&act| act > 0.0).reduce(f64::min);
    assert_eq!(found.least.is_some(), least.is_some());
    if let (Some(found), Some(least)) = (found.least, least) {
        check_loss("least", f64::from(found), least);
    }
}

fn dead_of(d_sae: usize, of_8: u64, seed: u64) -> Vec<bool> {
    let mut numbers = Numbers(seed);
    (0..d_sae).map(|_| numbers.next() % 8 < of_8).collect()
}

#[test]
fn topk_equals_the_reference_on_awkward_shapes() {
    for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
        for (k, share_dead) in [(1, 0), (3, 1), (8, 4), (8, 7), (500, 8), (0, 3)] {
            let problem = Problem::new(d_in, d_sae, batch, 0.0, seed as u64);
            let dead = dead_of(d_sae, share_dead, seed as u64);
            for rescale in [false, true] {
                let step = topk(k, rescale, k != 3);
                check_topk(&problem, TopKStep { normalize_aux_loss: k == 8, ..step }, &dead);
            }
        }
    }
}

#[test]
fn batch_topk_and_matryoshka_equal_the_reference_on_awkward_shapes() {
    for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
        let choices = [(1.0, 0), (2.7, 1), (8.0, 4), (0.4, 7), (500.0, 8), (0.0, 3)];
        for (nth, (k, share_dead)) in choices.into_iter().enumerate() {
            let shift = SHIFTS[(seed + nth) % SHIFTS.len()];
            let problem = Problem::new(d_in, d_sae, batch, shift, seed as u64);
            let dead = dead_of(d_sae, share_dead, seed as u64);
            for rescale in [false, true] {
                // With a shift all errors go the same way, and what is left of their variance is rounding.
                let step = topk(0, rescale, nth % 2 == 0);
                let step = TopKStep { normalize_aux_loss: shift == 0.0, ..step };
                check_batch(&problem, batch_topk(k, step), &dead);
            }
        }
    }
}

#[test]
fn many_latents_are_no_different() {
    let problem = Problem::new(20, 2000, 40, 0.0, 3);
    let dead: Vec<bool> = (0..2000).map(|latent| latent % 3 == 0).collect();
    for k in [4, 30] {
        check_topk(&problem, topk(k, true, false), &dead);
        check_topk(&problem, TopKStep { aux_loss_coefficient: 0.0, ..topk(k, false, true) }, &dead);
        check_batch(&problem, batch_topk(k as f64 + 0.5, topk(0, true, true)), &dead);
    }
}

/// More columns than a CUDA block can sort.
#[test]
fn a_wide_sae_is_no_different() {
    let d_sae = 20_011;
    let problem = Problem::new(6, d_sae, 5, 0.0, 4);
    let dead: Vec<bool> = (0..d_sae).map(|latent| latent % 50 == 7).collect();
    check_topk(&problem, topk(64, false, true), &dead);
    check_batch(&problem, batch_topk(64.3, topk(0, false, true)), &dead);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn they_equal_the_reference_on_any_shape(
        d_in in 4_usize..40, d_sae in 16_usize..210, batch in 1_usize..40, seed in 0_u64..1000,
        k in 0.0_f64..20.0, rescale: bool, share_dead in 0_u64..8
    ) {
        let problem = Problem::new(d_in, d_sae, batch, 0.0, seed).with_exact_norms(seed);
        let dead = dead_of(d_sae, share_dead, seed);
        let step = topk(k as usize, rescale, !rescale);
        let step = TopKStep { normalize_aux_loss: seed.is_multiple_of(2), ..step };
        check_topk(&problem, step, &dead);
        check_batch(&problem, batch_topk(k, step), &dead);
    }
}

#[test]
fn aimed_steps_equal_the_reference() {
    for (d_in, width, shift) in [(19, 19, 0.0), (21, 12, -1.0), (9, 4, 0.5)] {
        let problem = Problem::new(d_in, 101, 35, shift, 7);
        let target: Vec<f32> = problem.x.iter().rev().map(|x| 0.9 * x - 0.2).collect();
        let dead = dead_of(101, 2, 3);
        for weight in [vec![1.0; 35], (0..35).map(|b| b as f32 / 9.0).collect::<Vec<f32>>()] {
            let (target64, weight64) = (wide(&target), wide(&weight));
            let wide_aim = reference::Aim { target: &target64, weight: &weight64, width };
            let step = topk(7, false, false);
            let (params, x) = (problem.params.to_f64(), problem.x64());
            let expected = reference::aimed_topk_step(&params, &step, &dead, &x, Some(wide_aim));
            let aim = Aim { target: &target, weight: &weight };
            let step = Step::TopK { step, by_magnitude: false };
            check(&problem, &step, &dead, Some((aim, width)), &expected);
        }
    }
}
