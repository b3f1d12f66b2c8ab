//! The learning rate and the coefficient of the sparsity loss as functions of the step, equal to SAELens' schedulers.
//!
//! Steps are counted from 0. Schedules are laid out over `floor(tokens / batch)` steps; when the tokens do
//! not divide, the run has one step more, which the formulas cover too.

use crate::trial::{LrScheduler, TrainConfig, TrainOptions};
use std::f64::consts::PI;

/// Learning rate of step `t`: linear warm-up that ends at the peak with its last step, the main shape, and
/// a linear decay towards 0 whose last step is one decay step short of it.
pub fn learning_rate(cfg: &TrainConfig, t: u64) -> f64 {
    let total = cfg.schedule_steps();
    let (warm_up, decay) = (cfg.lr_warm_up_steps, cfg.lr_decay_steps);
    if t < warm_up {
        return cfg.lr * ((t + 1) as f64 / warm_up as f64);
    }
    let decay_start = total.saturating_sub(decay);
    if decay > 0 && t >= decay_start {
        let from = match cfg.lr_scheduler_name {
            LrScheduler::Constant => cfg.lr,
            LrScheduler::CosineAnnealing | LrScheduler::CosineAnnealingWarmRestarts => cfg.lr_end,
        };
        let done = (t - decay_start).min(decay);
        return from * (1.0 - done as f64 / decay as f64);
    }
    let main_steps = decay_start.saturating_sub(warm_up);
    let cosine = |done: u64, of: u64| {
        let share = done as f64 / of.max(1) as f64;
        cfg.lr_end + (cfg.lr - cfg.lr_end) * (1.0 + (PI * share).cos()) / 2.0
    };
    let done = t - warm_up;
    match cfg.lr_scheduler_name {
        LrScheduler::Constant => cfg.lr,
        LrScheduler::CosineAnnealing => cosine(done, main_steps),
        LrScheduler::CosineAnnealingWarmRestarts => {
            let cycle = (main_steps / cfg.n_restart_cycles.max(1)).max(1);
            cosine(done % cycle, cycle)
        }
    }
}

/// Coefficient of the sparsity loss of step `t`: 0 in the first step of a warm-up, `last` from step `warm_up_steps` on.
pub fn sparsity_coefficient(last: f64, warm_up_steps: u64, t: u64) -> f64 {
    if t < warm_up_steps { last * (t as f64 / warm_up_steps as f64) } else { last }
}

/// k of step `t`, as `dictionary_learning` anneals it: from its start, the width of activations unless that is
/// set, down to `k` in a line that ends with step `k_anneal_steps`. It never lies below `k` or above `d_sae`.
pub fn annealed_k(options: &TrainOptions, k: f64, d_in: usize, d_sae: usize, t: u64) -> f64 {
    if t >= options.k_anneal_steps {
        return k;
    }
    let start = if options.k_start == 0 { d_in as f64 } else { options.k_start as f64 };
    let done = t as f64 / options.k_anneal_steps as f64;
    (start * (1.0 - done) + k * done).min(d_sae as f64).max(k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(name: LrScheduler, steps: u64, warm_up: u64, decay: u64) -> TrainConfig {
        TrainConfig {
            tokens: steps * 4,
            batch_size: 4,
            lr: 1e-3,
            lr_end: 1e-4,
            lr_scheduler_name: name,
            lr_warm_up_steps: warm_up,
            lr_decay_steps: decay,
            n_restart_cycles: 2,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            seed: 0,
            data_seed: 0,
            dead_feature_window: 10,
            feature_sampling_window: 10,
            options: TrainOptions::default(),
        }
    }

    #[test]
    fn the_constant_schedule_rises_stays_and_falls() {
        let cfg = config(LrScheduler::Constant, 20, 4, 5);
        let lr: Vec<f64> = (0..21).map(|t| learning_rate(&cfg, t) / cfg.lr).collect();
        assert_eq!(lr[0], 0.25);
        assert_eq!(lr[3..=15], [1.0; 13]);
        assert!((lr[19] - 0.2).abs() < 1e-12);
        assert_eq!(lr[20], 0.0);
    }

    #[test]
    fn the_first_step_of_a_warm_up_has_no_l1() {
        let l1: Vec<f64> = (0..5).map(|t| sparsity_coefficient(6.0, 3, t)).collect();
        assert_eq!(l1, [0.0, 2.0, 4.0, 6.0, 6.0]);
        assert_eq!(sparsity_coefficient(6.0, 0, 0), 6.0);
    }

    #[test]
    fn k_falls_in_a_line() {
        let ks = |options: TrainOptions| -> Vec<f64> {
            (0..6).map(|t| annealed_k(&options, 4.0, 12, 16, t)).collect()
        };
        let annealed = |k_start| ks(TrainOptions { k_anneal_steps: 4, k_start, ..TrainOptions::default() });
        assert_eq!(annealed(0), [12.0, 10.0, 8.0, 6.0, 4.0, 4.0]);
        assert_eq!(annealed(10), [10.0, 8.5, 7.0, 5.5, 4.0, 4.0]);
        // No more than there are, no less than k.
        assert_eq!(annealed(20), [16.0, 16.0, 12.0, 8.0, 4.0, 4.0]);
        assert_eq!(annealed(2), [4.0; 6]);
        assert_eq!(ks(TrainOptions::default()), [4.0; 6]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rates_stay_between_zero_and_the_peak(
            which in 0..3_usize, steps in 1_u64..200, warm_up in 0_u64..50, decay in 0_u64..50
        ) {
            let name = [
                LrScheduler::Constant,
                LrScheduler::CosineAnnealing,
                LrScheduler::CosineAnnealingWarmRestarts,
            ][which];
            let cfg = config(name, steps, warm_up, decay);
            for t in 0..=steps {
                let lr = learning_rate(&cfg, t);
                prop_assert!((0.0..=cfg.lr).contains(&lr), "{t}: {lr}");
            }
        }
    }
}
