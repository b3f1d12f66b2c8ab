//! Tests of options beyond SAELens in a training run.

use super::{
    prepare::prepare,
    resume_tests::{
        Call, D, STEPS, batch, batch_topk_sae, gated_sae, job, jumprelu_sae, matryoshka_sae, topk_sae,
        undisturbed,
    },
    trainer::{Begun, Trainer},
};
use crate::{
    kernels::{AdamStep, Params, Pool, StandardStep, reference},
    sae::{self, Normalizer},
    trial::{Architecture, BDecInit, NormalizeActivations, SaeConfig, TrainConfig, TrainOptions},
};
use candle_core::Device;

/// Every option that the architecture can have, but for products in bfloat16, which the kernels have not.
fn all_on() -> TrainOptions {
    TrainOptions {
        resample_every_steps: 3,
        resample_until_step: 15,
        normalize_sae_decoder: true,
        b_dec_init_method: BDecInit::GeometricMedian,
        normalize_aux_loss: true,
        k_anneal_steps: 6,
        k_start: 5,
        max_norm_multiple: 1.1,
        topk_threshold_bias_correction: true,
        autocast: false,
    }
}

fn abs_topk_sae() -> SaeConfig {
    let architecture =
        Architecture::AbsTopK { k: 2, aux_loss_coefficient: 1.0, rescale_acts_by_decoder_norm: false };
    SaeConfig { architecture, ..topk_sae() }
}

fn all_saes() -> Vec<SaeConfig> {
    vec![
        job().config.sae,
        topk_sae(),
        abs_topk_sae(),
        batch_topk_sae(),
        matryoshka_sae(),
        jumprelu_sae(),
        gated_sae(),
    ]
}

/// A trainer of batches of 8, `batch_size` of them if there are others.
fn trainer(sae: &SaeConfig, options: &TrainOptions, batch_size: usize) -> Trainer {
    let train = TrainConfig { batch_size, options: options.clone(), ..job().config.train };
    trainer_of(sae, &train, Normalizer::Identity)
}

fn trainer_of(sae: &SaeConfig, train: &TrainConfig, normalizer: Normalizer) -> Trainer {
    let params = sae::init(sae, D, 3);
    Trainer::new(sae, train, D, params, normalizer, &Pool::new(1))
}

fn batch_of(step: u64) -> Vec<f32> {
    let mut x = vec![0.0; 8 * D];
    batch(step, &mut x);
    x
}

#[test]
fn a_killed_run_continues_to_the_same_bits() {
    for sae in all_saes() {
        let mut job = job();
        job.config.sae = sae;
        job.config.train.dead_feature_window = 1;
        let plain = undisturbed(&job);
        job.config.train.options = all_on();
        let whole = undisturbed(&job);
        assert_ne!(whole, plain);
        for at in 1..STEPS {
            let temp = tempfile::tempdir().unwrap();
            let mut call = Call::new(temp.path(), &job);
            call.run_until_killed(at);
            assert_eq!(call.finish(), whole, "{} killed at {at}", job.config.sae.architecture.name());
            assert_eq!(call.from_step, at / 4 * 4);
        }
    }
}

#[test]
fn every_option_alone_changes_a_run_that_can_have_it() {
    let mut job = job();
    job.config.sae = batch_topk_sae();
    job.config.train.dead_feature_window = 1;
    let plain = undisturbed(&job);
    let off = TrainOptions::default();
    let alone = [
        TrainOptions { resample_every_steps: 3, ..off.clone() },
        TrainOptions { normalize_sae_decoder: true, ..off.clone() },
        TrainOptions { b_dec_init_method: BDecInit::Mean, ..off.clone() },
        TrainOptions { b_dec_init_method: BDecInit::GeometricMedian, ..off.clone() },
        TrainOptions { normalize_aux_loss: true, ..off.clone() },
        TrainOptions { k_anneal_steps: 6, ..off.clone() },
        TrainOptions { max_norm_multiple: 1.1, ..off.clone() },
        TrainOptions { topk_threshold_bias_correction: true, ..off.clone() },
    ];
    for options in alone {
        job.config.train.options = options.clone();
        assert_ne!(undisturbed(&job).0.sae, plain.0.sae, "{options:?}");
    }
    // A multiple that nothing exceeds.
    job.config.train.options = TrainOptions { max_norm_multiple: 1e9, ..off };
    assert_eq!(undisturbed(&job), plain);
}

/// A step in plain f64: gradients without what is along a row, clip, Adam, rows of norm 1.
#[test]
fn rows_of_the_decoder_keep_their_norm() {
    let sae = job().config.sae;
    let options = TrainOptions { normalize_sae_decoder: true, ..TrainOptions::default() };
    let train = TrainConfig { lr_warm_up_steps: 0, lr_decay_steps: 0, options, ..job().config.train };
    let mut trainer = trainer_of(&sae, &train, Normalizer::Identity);
    let unit = |params: &mut Params<f64>| {
        for row in params.w_dec.chunks_exact_mut(D) {
            let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
            row.iter_mut().for_each(|w| *w /= norm);
        }
    };
    let mut params = sae::init(&sae, D, 3).to_f64();
    unit(&mut params);
    let (mut m, mut v) = (params.zeros_like(), params.zeros_like());
    for t in 0..6_u64 {
        let x = batch_of(t);
        let report = trainer.step(&Pool::new(1), &x).unwrap();
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let l1_coefficient = super::sparsity_coefficient(3.0, 5, t);
        let step = StandardStep { l1_coefficient, lp_norm: 1.0, apply_b_dec_to_input: true };
        let mut outcome = reference::standard_step(&params, &step, &x);
        let norm = reference::remove_parallel(&params, &mut outcome.grads);
        assert!((report.grad_norm - norm).abs() < 1e-5 * norm, "{} {norm}", report.grad_norm);
        let adam = AdamStep { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: t + 1, max_grad_norm: 1.0 };
        reference::clip_and_adam(&mut params, &outcome.grads, &mut m, &mut v, &adam);
        unit(&mut params);
        for (got, want) in
            trainer.params.arrays().into_iter().flatten().zip(params.arrays().into_iter().flatten())
        {
            assert!((f64::from(*got) - want).abs() < 1e-4, "step {t}: {got} {want}");
        }
    }
}

/// Leaving rows out is the same as their not being there.
#[test]
fn outliers_might_as_well_not_be_there() {
    let pool = Pool::new(1);
    let options = TrainOptions { max_norm_multiple: 2.0, ..TrainOptions::default() };
    for mode in [NormalizeActivations::None, NormalizeActivations::LayerNorm] {
        for sae in all_saes() {
            let has_no_row_mode =
                !matches!(sae.architecture, Architecture::Standard { .. } | Architecture::JumpRelu { .. });
            if mode == NormalizeActivations::LayerNorm && has_no_row_mode {
                continue;
            }
            let sae = SaeConfig { normalize_activations: mode, ..sae };
            let train = |batch_size, options: &TrainOptions| TrainConfig {
                batch_size,
                options: options.clone(),
                ..job().config.train
            };
            let mut with = trainer_of(&sae, &train(8, &options), Normalizer::run_time(mode));
            let few = TrainConfig { tokens: STEPS * 6, ..train(6, &TrainOptions::default()) };
            let mut without = trainer_of(&sae, &few, Normalizer::run_time(mode));
            let outliers = [1, 6];
            let with_outliers = |step: u64| {
                let mut x = batch_of(step);
                for row in outliers {
                    x[row * D..][..D].iter_mut().for_each(|x| *x = 100.0 + 7.0 * *x);
                }
                x
            };
            prepare(
                &mut with,
                &|step, out| {
                    out.copy_from_slice(&with_outliers(step));
                    Ok(())
                },
                &pool,
            )
            .unwrap();
            for step in 0..STEPS {
                let x = with_outliers(step);
                let rest: Vec<f32> = (0..8)
                    .filter(|row| !outliers.contains(row))
                    .flat_map(|row| x[row * D..][..D].to_vec())
                    .collect();
                assert_eq!(with.step(&pool, &x).unwrap(), without.step(&pool, &rest).unwrap());
                let (mut line, other) = (with.log_line(&x).unwrap(), without.log_line(&rest).unwrap());
                // All have been read.
                assert_eq!(line.n_training_samples, (step + 1) * 8);
                line.n_training_samples = other.n_training_samples;
                assert_eq!(line.to_json(), other.to_json());
            }
            assert_eq!(with.params, without.params);
            assert_eq!(with.firing, without.firing);
        }
    }
}

#[test]
fn a_batch_of_nothing_but_outliers_is_a_step_without_one() {
    let pool = Pool::new(1);
    let options = TrainOptions { max_norm_multiple: 2.0, ..TrainOptions::default() };
    let mut trainer = trainer(&topk_sae(), &options, 8);
    let read = |step: u64, out: &mut [f32]| {
        batch(step, out);
        Ok(())
    };
    prepare(&mut trainer, &read, &pool).unwrap();
    trainer.step(&pool, &batch_of(0)).unwrap();
    let (params, firing) = (trainer.params.clone(), trainer.firing.clone());
    let far = vec![50.0; 8 * D];
    let report = trainer.step(&pool, &far).unwrap();
    assert!(report.is_finite() && report.grad_norm == 0.0);
    assert_eq!((trainer.steps, &trainer.params, &trainer.firing), (2, &params, &firing));
    assert!(!trainer.log_line(&far).unwrap().to_json().contains("explained_variance"));
    trainer.step(&pool, &batch_of(2)).unwrap();
    assert_ne!(trainer.params, params);
}

#[test]
fn dead_latents_begin_anew_when_it_is_time() {
    let pool = Pool::new(1);
    for sae in all_saes() {
        let options = TrainOptions { resample_every_steps: 4, ..TrainOptions::default() };
        let train = TrainConfig { dead_feature_window: 2, options, ..job().config.train };
        let mut with = trainer_of(&sae, &train, Normalizer::Identity);
        let none = TrainConfig { options: TrainOptions::default(), ..train };
        let mut without = trainer_of(&sae, &none, Normalizer::Identity);
        // Two latents that never fire by themselves: they lie far below 0, and where signs do not count, at 0.
        for trainer in [&mut with, &mut without] {
            for latent in [2, 7] {
                trainer.params.clear_latent(latent);
                if !matches!(sae.architecture, Architecture::AbsTopK { .. }) {
                    trainer.params.b_enc[latent] = -50.0;
                    trainer.params.b_mag.get_mut(latent).into_iter().for_each(|b| *b = -50.0);
                }
            }
        }
        for step in 0..4 {
            assert_eq!(with.params, without.params, "nothing before it is time");
            with.step(&pool, &batch_of(step)).unwrap();
            without.step(&pool, &batch_of(step)).unwrap();
        }
        let name = sae.architecture.name();
        let mut flags = Vec::new();
        let dead = without.firing.dead(2, &mut flags);
        assert!(dead[2] && dead[7], "{name}");
        assert_eq!(with.firing.n_dead(2), 0, "{name}");
        let norm = |row: &[f32]| row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
        let living: Vec<f64> =
            (0..10).filter(|&f| !dead[f]).map(|f| norm(&without.params.w_enc[f * D..][..D])).collect();
        let share = 0.2 * living.iter().sum::<f64>() / living.len() as f64;
        for (f, &is_dead) in dead.iter().enumerate() {
            let row = f * D..(f + 1) * D;
            if is_dead {
                let (enc, dec) = (&with.params.w_enc[row.clone()], &with.params.w_dec[row.clone()]);
                assert!((norm(dec) - 1.0).abs() < 1e-6 && (norm(enc) - share).abs() < 1e-6, "{name}");
                assert_eq!((with.params.b_enc[f], with.m.b_enc[f], with.v.b_enc[f]), (0.0, 0.0, 0.0));
                assert!(with.m.w_dec[row.clone()].iter().chain(&with.v.w_enc[row]).all(|&x| x == 0.0));
            } else {
                assert_eq!(with.params.w_dec[row.clone()], without.params.w_dec[row.clone()]);
                assert_eq!(with.v.w_enc[row.clone()], without.v.w_enc[row]);
            }
        }
        assert_eq!(with.params.b_dec, without.params.b_dec);
    }
}

#[test]
fn k_falls_while_it_is_annealed() {
    let options = TrainOptions { k_anneal_steps: 4, k_start: 10, ..TrainOptions::default() };
    let mut trainer = trainer(&abs_topk_sae(), &options, 8);
    for (step, k) in [10.0, 8.0, 6.0, 4.0, 2.0, 2.0].into_iter().enumerate() {
        let x = batch_of(step as u64);
        let to_come = trainer.log_line(&x).unwrap().own_details;
        assert_eq!(to_come, [("details/k".into(), k)]);
        assert_eq!(trainer.step(&Pool::new(1), &x).unwrap().losses.l0, k);
    }
}

#[test]
fn a_corrected_threshold_does_not_remember_its_start() {
    let pool = Pool::new(1);
    for sae in [batch_topk_sae(), matryoshka_sae()] {
        let correct = TrainOptions { topk_threshold_bias_correction: true, ..TrainOptions::default() };
        let mut corrected = trainer(&sae, &correct, 8);
        let mut plain = trainer(&sae, &TrainOptions::default(), 8);
        for step in 0..3 {
            corrected.step(&pool, &batch_of(step)).unwrap();
            plain.step(&pool, &batch_of(step)).unwrap();
            let share = 1.0 - 0.9_f64.powi(step as i32 + 1);
            assert!(plain.threshold_now() > 0.0);
            assert!((corrected.threshold_now() - plain.threshold_now() / share).abs() < 1e-12);
        }
        let wanted = corrected.threshold_now();
        let params = corrected.finish(&pool).unwrap().sae.params;
        assert!(params.threshold.iter().all(|&threshold| threshold == wanted as f32));
    }
}

#[test]
fn the_bias_starts_in_the_middle_of_what_is_trained_on() {
    let pool = Pool::new(1);
    // 3 rows of 8 each batch lie elsewhere: a mean goes along, a median hardly does.
    let read = |_: u64, out: &mut [f32]| {
        for (row, out) in out.chunks_exact_mut(D).enumerate() {
            out.fill(if row < 3 { 9.0 } else { 1.0 });
        }
        Ok(())
    };
    let start = |options: &TrainOptions, steps: u64| {
        let train = TrainConfig { options: options.clone(), ..job().config.train };
        let mut trainer = trainer_of(&topk_sae(), &train, Normalizer::Scale(0.5));
        trainer.steps = steps;
        prepare(&mut trainer, &read, &pool).unwrap();
        trainer.params.b_dec
    };
    let of = |b_dec_init_method| TrainOptions { b_dec_init_method, ..TrainOptions::default() };
    assert_eq!(start(&of(BDecInit::Zeros), 0), [0.0; D]);
    assert_eq!(start(&of(BDecInit::Mean), 0), [2.0; D]);
    let median = start(&of(BDecInit::GeometricMedian), 0);
    assert!(median.iter().all(|&b| (b - 0.5).abs() < 1e-4), "{median:?}");
    // What is left out is left out here, too; and a run that goes on has its bias already.
    let filtered = TrainOptions { max_norm_multiple: 2.0, ..of(BDecInit::Mean) };
    assert_eq!(start(&filtered, 0), [0.5; D]);
    assert_eq!(start(&of(BDecInit::Mean), 4), [0.0; D]);
}

/// With every option on, and with batches read ahead or not.
#[test]
fn tensors_have_them_too() {
    let pool = Pool::new(1);
    for sae in all_saes() {
        for max_norm_multiple in [0.0, 1.1] {
            let options = TrainOptions { max_norm_multiple, ..all_on() };
            let train = TrainConfig { dead_feature_window: 1, options, ..job().config.train };
            let read = |step: u64, out: &mut [f32]| {
                batch(step, out);
                Ok(())
            };
            let [mut kernels, mut tensors, mut ahead] = [(); 3].map(|()| {
                let mut trainer = trainer_of(&sae, &train, Normalizer::Identity);
                prepare(&mut trainer, &read, &pool).unwrap();
                trainer
            });
            tensors.move_to(&Device::Cpu).unwrap();
            ahead.move_to(&Device::Cpu).unwrap();
            assert_eq!(ahead.stages(), max_norm_multiple == 0.0);
            let name = sae.architecture.name();
            for step in 0..STEPS {
                let x = batch_of(step);
                let report = tensors.step(&pool, &x).unwrap();
                let wanted = kernels.step(&pool, &x).unwrap();
                let off = (report.losses.overall - wanted.losses.overall).abs();
                assert!(off < 1e-4 * wanted.losses.overall, "{name}, step {step}: {report:?} {wanted:?}");
                let Begun::Launched = ahead.begin_step(&pool, &x).unwrap() else { continue };
                if ahead.stages() {
                    ahead.stage(&pool, &batch_of(step + 1)).unwrap();
                }
                assert_eq!(ahead.end_step().unwrap(), report, "{name}, step {step}");
                assert_eq!(
                    ahead.log_line(&x).unwrap().to_json(),
                    tensors.log_line(&x).unwrap().to_json(),
                    "{name}, step {step}"
                );
            }
            tensors.download().unwrap();
            let pairs = tensors.params.arrays().into_iter().zip(kernels.params.arrays());
            for (found, wanted) in pairs.flat_map(|(found, wanted)| found.iter().zip(wanted)) {
                assert!((found - wanted).abs() < 1e-4, "{name}: {found} {wanted}");
            }
            assert_eq!(tensors.firing, kernels.firing, "{name}");
        }
    }
}
