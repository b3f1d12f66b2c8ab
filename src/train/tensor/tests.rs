//! Every architecture's step against the reference, on the problems that the kernels are tested with.

mod largest;
mod pursuit;
mod states;

use super::*;
use crate::kernels::{
    GatedStep, JumpReluStep, SparsityMode, StandardStep,
    reference::{self, StepOutcome},
    testing::{
        Problem, SHAPES, SHIFTS, check_close, check_grads, check_loss, gated_problem, jumprelu_problem,
    },
};

const SETTINGS: Settings = Settings { autocast: false, unit_rows: false, aux_width: 0 };

/// Adam that moves nothing.
const AT_REST: AdamStep = AdamStep { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 1, max_grad_norm: 1.0 };

fn trainer(params: &Params, autocast: bool) -> TensorTrainer {
    let zeros = params.zeros_like();
    let settings = Settings { autocast, aux_width: params.d_in(), ..SETTINGS };
    TensorTrainer::new([params, &zeros, &zeros], settings, &Device::Cpu).unwrap()
}

/// Gradients of one step, and the step.
fn run(
    problem: &Problem,
    step: &Step<'_>,
    dead: &[bool],
    aim: Option<(Aim<'_>, usize)>,
) -> (Params, TensorStep, TensorTrainer) {
    let mut trainer = trainer(&problem.params, false);
    if let Some((_, width)) = aim {
        trainer.settings.aux_width = width;
    }
    let aim = aim.map(|(aim, _)| aim);
    let batch = Batch::upload(&problem.x, problem.shape.d_in, aim, &Device::Cpu).unwrap();
    let mut grads = problem.dirty_grads();
    trainer.gradients(step, &batch, dead).unwrap().grads.download(&mut grads).unwrap();
    trainer.stage(&problem.x, aim).unwrap();
    trainer.launch(step, &AT_REST, dead).unwrap();
    let found = trainer.end().unwrap();
    (grads, found, trainer)
}

/// Gradients, losses and counts of one step against the reference's.
fn check(
    problem: &Problem,
    step: &Step<'_>,
    dead: &[bool],
    aim: Option<(Aim<'_>, usize)>,
    expected: &StepOutcome,
) -> TensorStep {
    let what = format!("{:?} {step:?}, aimed {}", problem.shape, aim.is_some());
    let (grads, found, trainer) = run(problem, step, dead, aim);
    check_grads(&what, problem, step.apply_b_dec_to_input(), &grads, expected);
    let squares: f64 = expected.grads.arrays().iter().flat_map(|a| a.iter()).map(|g| g * g).sum();
    for (name, found, expected) in [
        ("overall", found.losses.overall, expected.losses.overall),
        ("mse", found.losses.mse, expected.losses.mse),
        ("sparsity", found.losses.sparsity, expected.losses.sparsity),
        ("auxiliary", found.losses.auxiliary, expected.losses.auxiliary),
        ("l0", found.losses.l0, expected.losses.l0),
        ("norm", found.grad_norm, squares.sqrt()),
    ] {
        check_loss(&format!("{what} {name}"), found, expected);
    }
    check_close(
        &format!("{what} reconstruction"),
        &trainer.reconstruction().unwrap(),
        &expected.reconstruction,
    );
    let d_sae = problem.shape.d_sae;
    for (f, &fired) in found.fired.iter().enumerate() {
        let count = expected.acts.iter().skip(f).step_by(d_sae).filter(|&&act| act != 0.0).count();
        assert_eq!(fired as usize, count, "{what}: fired[{f}]");
    }
    found
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn standard(lp_norm: f64, apply_b_dec_to_input: bool) -> StandardStep {
    StandardStep { l1_coefficient: 0.3, lp_norm, apply_b_dec_to_input }
}

fn check_standard(problem: &Problem, step: StandardStep, aim: Option<Aim<'_>>) {
    let wide_aim = aim.map(|aim| (wide(aim.target), wide(aim.weight)));
    let width = problem.shape.d_in;
    let wide_aim = wide_aim.as_ref().map(|(target, weight)| reference::Aim { target, weight, width });
    let expected = reference::aimed_standard_step(&problem.params.to_f64(), &step, &problem.x64(), wide_aim);
    check(problem, &Step::Standard(step), &[], aim.map(|aim| (aim, width)), &expected);
}

#[test]
fn standard_equals_the_reference_on_awkward_shapes_at_all_densities() {
    for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
        for shift in SHIFTS {
            let problem = Problem::new(d_in, d_sae, batch, shift, seed as u64);
            for apply_b_dec_to_input in [false, true] {
                check_standard(&problem, standard(1.0, apply_b_dec_to_input), None);
                check_standard(&problem, standard(2.0, apply_b_dec_to_input), None);
            }
        }
    }
}

#[test]
fn standard_equals_the_reference_for_other_norms_and_aims_and_rows_of_zeros() {
    for shift in SHIFTS {
        let mut problem = Problem::new(19, 101, 35, shift, 5);
        problem.params.w_dec[19..3 * 19].fill(0.0);
        let target: Vec<f32> = problem.x.iter().map(|x| 1.2 * x + 0.1).collect();
        let weight: Vec<f32> = (0..35).map(|b| b as f32 / 9.0).collect();
        for lp_norm in [0.5, 1.0, 1.3, 2.0] {
            check_standard(&problem, standard(lp_norm, true), None);
            check_standard(
                &problem,
                standard(lp_norm, false),
                Some(Aim { target: &target, weight: &weight }),
            );
        }
        check_standard(&problem, StandardStep { l1_coefficient: 0.0, ..standard(0.5, true) }, None);
    }
}

#[test]
fn gated_equals_the_reference_on_awkward_shapes_at_all_densities() {
    for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
        for shift in SHIFTS {
            let problem = gated_problem(d_in, d_sae, batch, shift, seed as u64);
            for apply_b_dec_to_input in [false, true] {
                let step = GatedStep { l1_coefficient: 0.3, apply_b_dec_to_input };
                let expected = reference::gated_step(&problem.params.to_f64(), &step, &problem.x64());
                check(&problem, &Step::Gated(step), &[], None, &expected);
            }
        }
    }
}

#[test]
fn jumprelu_equals_the_reference_on_awkward_shapes_at_all_densities() {
    let modes =
        [SparsityMode::Step, SparsityMode::Tanh { scale: 0.5 }, SparsityMode::Quadratic { target_l0: 3.5 }];
    for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
        for (nth, shift) in SHIFTS.into_iter().enumerate() {
            let (problem, dead) = jumprelu_problem(d_in, d_sae, batch, shift, seed as u64);
            let target: Vec<f32> = problem.x.iter().rev().map(|x| 0.9 * x - 0.2).collect();
            let weight: Vec<f32> = (0..batch).map(|b| (b % 3) as f32).collect();
            let (target64, weight64) = (wide(&target), wide(&weight));
            for variant in 0..4 {
                let step = JumpReluStep {
                    mode: modes[(seed + nth + variant) % 3],
                    l0_coefficient: 0.3,
                    bandwidth: if nth == 2 { 3.0 } else { 0.7 },
                    pre_act_loss_coefficient: if variant % 2 == 0 { 0.0 } else { 0.2 },
                    ste_to_input: variant >= 2,
                    apply_b_dec_to_input: seed % 2 == 0,
                };
                let (params, x) = (problem.params.to_f64(), problem.x64());
                let expected = reference::jumprelu_step(&params, &step, &dead, &x);
                check(&problem, &Step::JumpRelu(step), &dead, None, &expected);
                // What aims do to the bias of so narrow a target may nearly cancel.
                if d_in > 2 && !step.apply_b_dec_to_input {
                    let aim = reference::Aim { target: &target64, weight: &weight64, width: d_in };
                    let expected = reference::aimed_jumprelu_step(&params, &step, &dead, &x, Some(aim));
                    let aim = Aim { target: &target, weight: &weight };
                    check(&problem, &Step::JumpRelu(step), &dead, Some((aim, d_in)), &expected);
                }
            }
        }
    }
}

/// Below 0 a threshold would let negative pre-activations through.
#[test]
fn thresholds_are_raised_to_0() {
    let (mut problem, dead) = jumprelu_problem(15, 95, 31, 0.0, 2);
    let raised = problem.params.threshold.clone();
    problem.params.threshold.iter_mut().filter(|theta| **theta == 0.0).for_each(|theta| *theta = -0.25);
    assert_ne!(problem.params.threshold, raised);
    let step = JumpReluStep {
        mode: SparsityMode::Step,
        l0_coefficient: 0.1,
        bandwidth: 0.5,
        pre_act_loss_coefficient: 0.0,
        ste_to_input: false,
        apply_b_dec_to_input: false,
    };
    let (_, _, trainer) = run(&problem, &Step::JumpRelu(step), &dead, None);
    let mut after = Params::default();
    trainer.state.params.download(&mut after).unwrap();
    assert_eq!(after.threshold, raised);
}
