//! The matching pursuit step, where no choice is so near a tie that rounding decides it.

use super::*;
use crate::kernels::{
    Isa, MatchingPursuitStep, Pool, Pursuit, matching_pursuit_step,
    testing::{check_tied, is_far_from_ties, tied_problem},
};
use proptest::prelude::*;

fn pursuit(residual_threshold: f64, max_iterations: usize, stop_on_duplicate_support: bool) -> Pursuit {
    Pursuit { residual_threshold, max_iterations, stop_on_duplicate_support }
}

fn check_pursuit(problem: &Problem, step: MatchingPursuitStep, aim: Option<Aim<'_>>) {
    let what = format!("{:?} {step:?}, aimed {}", problem.shape, aim.is_some());
    let wide_aim = aim.map(|aim| (wide(aim.target), wide(aim.weight)));
    let width = problem.shape.d_in;
    let wide_aim = wide_aim.as_ref().map(|(target, weight)| reference::Aim { target, weight, width });
    let (params, x) = (problem.params.to_f64(), problem.x64());
    let expected = reference::aimed_matching_pursuit_step(&params, &step, &x, wide_aim);

    let aim = aim.map(|aim| (aim, width));
    let (grads, found, trainer) = run(problem, &Step::MatchingPursuit(step), &[], aim);
    check_tied(&what, problem, (found.losses.mse, &grads), &expected);
    assert_eq!(found.losses.overall, found.losses.mse, "{what}");
    assert_eq!((found.losses.sparsity, found.losses.auxiliary), (0.0, 0.0), "{what}");
    check_loss(&what, found.losses.l0, expected.losses.l0);
    check_close(&what, &trainer.reconstruction().unwrap(), &expected.reconstruction);

    let by_token: Vec<usize> = expected
        .acts
        .chunks(problem.shape.d_sae)
        .map(|acts| acts.iter().filter(|&&act| act != 0.0).count())
        .collect();
    for (latent, &fired) in found.fired.iter().enumerate() {
        let on = expected.acts.iter().skip(latent).step_by(problem.shape.d_sae);
        assert_eq!(fired as usize, on.filter(|&&act| act != 0.0).count(), "{what}: fired[{latent}]");
    }
    let summary = found.pursuit.unwrap();
    assert_eq!(Some(&summary.max_l0), by_token.iter().max(), "{what}");
    assert_eq!(Some(&summary.min_l0), by_token.iter().min(), "{what}");
}

#[test]
fn it_equals_the_reference_on_awkward_shapes_with_all_ends() {
    let mut checked = 0;
    for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
        for pursuit in
            [pursuit(1e-2, 0, true), pursuit(1.0, 0, false), pursuit(0.0, 7, false), pursuit(0.0, 1, true)]
        {
            for apply_b_dec_to_input in [false, true] {
                let step = MatchingPursuitStep { pursuit, apply_b_dec_to_input };
                let problem = tied_problem(d_in, d_sae, batch, seed as u64);
                if is_far_from_ties(&problem, &step) {
                    check_pursuit(&problem, step, None);
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 50, "{checked} of 72 were far from ties");
}

#[test]
fn aimed_steps_equal_the_reference() {
    let problem = tied_problem(19, 101, 35, 4);
    let target: Vec<f32> = problem.x.iter().map(|x| 1.2 * x + 0.1).collect();
    let weight: Vec<f32> = (0..35).map(|b| b as f32 / 9.0).collect();
    for apply_b_dec_to_input in [false, true] {
        let step = MatchingPursuitStep { pursuit: pursuit(0.5, 6, true), apply_b_dec_to_input };
        assert!(is_far_from_ties(&problem, &step));
        check_pursuit(&problem, step, Some(Aim { target: &target, weight: &weight }));
    }
}

/// Tokens that end soon and tokens that end late, in pursuits during which the host asks several times.
#[test]
fn it_equals_the_kernels_in_a_long_pursuit() {
    let step = MatchingPursuitStep { pursuit: pursuit(0.4, 0, false), apply_b_dec_to_input: false };
    let mut problems = (1..).map(|seed| {
        let mut problem = tied_problem(32, 300, 40, seed);
        problem.x.chunks_exact_mut(32).enumerate().for_each(|(token, x)| {
            let size = 0.02 * (token * token) as f32;
            x.iter_mut().for_each(|x| *x *= size);
        });
        problem
    });
    let problem = problems.find(|problem| is_far_from_ties(problem, &step)).unwrap();
    check_pursuit(&problem, step, None);

    let pool = Pool::new(1);
    let (mut ws, mut grads) = (problem.workspace(&pool, Isa::detect()), problem.dirty_grads());
    matching_pursuit_step(&pool, &mut ws, &problem.params, &step, &problem.x, &mut grads);
    let expected = ws.pursuit_summary(0.4);
    let (_, found, _) = run(&problem, &Step::MatchingPursuit(step), &[], None);
    let found = found.pursuit.unwrap();
    assert!(expected.max_l0 > 16 && expected.min_l0 == 0, "{expected:?}");
    assert_eq!((found.max_l0, found.min_l0), (expected.max_l0, expected.min_l0));
    assert_eq!(found.converged, expected.converged);
    check_loss("residual norm", found.residual_norm, expected.residual_norm);
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 4096, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn it_equals_the_reference_on_any_shape(
        d_in in 4_usize..40, d_sae in 16_usize..210, batch in 1_usize..40, seed in 0_u64..1000,
        threshold in 0_u32..3, max_iterations in 0_usize..20, stop_on_duplicate_support: bool,
        apply_b_dec_to_input: bool
    ) {
        let pursuit = pursuit(f64::from(threshold), max_iterations, stop_on_duplicate_support);
        let step = MatchingPursuitStep { pursuit, apply_b_dec_to_input };
        let problem = tied_problem(d_in, d_sae, batch, seed);
        prop_assume!(is_far_from_ties(&problem, &step));
        check_pursuit(&problem, step, None);
    }
}
