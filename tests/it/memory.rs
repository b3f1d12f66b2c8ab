//! What training takes beside parameters, gradients and moments: at most a fifth of these, while half of all
//! latents fire as they do in the first steps, and when few do. Counted by the allocator, so it depends on no machine's
//! system.

use super::{allocations::most_bytes_of, small_trial::small_trial};
use saesweep::{
    kernels::Pool,
    sae::{self, Normalizer},
    train::Trainer,
    trial::{NormalizeActivations, SaeConfig},
};
use serde_json::{Value, json};

/// Sizes in the proportions of those that are trained.
const D_IN: usize = 512;
const D_SAE: usize = 8192;
const BATCH: usize = 512;

/// What training may take, over 16 bytes for each parameter: a parameter, its gradient and two moments.
const BOUND: f64 = 1.2;

/// Steps with half of the latents open, then one with few.
const DENSE_STEPS: usize = 4;

/// What training takes at most, over 16 bytes for each parameter; and L0 in the first and the last step.
fn measure(architecture: &Value) -> (f64, [f64; 2]) {
    let mut trial = small_trial();
    trial.sae = SaeConfig {
        d_sae: D_SAE,
        apply_b_dec_to_input: true,
        architecture: serde_json::from_value(architecture.clone()).unwrap(),
        ..trial.sae
    };
    // What is silent for two steps is dead, so that auxiliary losses have something to do.
    (trial.train.batch_size, trial.train.dead_feature_window, trial.train.lr) = (BATCH, 1, 1e-6);
    let mut state = 1_u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let (mut n_params, mut l0) = (0, [0.0; 2]);
    let bytes = most_bytes_of(|| {
        let mut params = sae::init(&trial.sae, D_IN, 3);
        n_params = params.arrays().iter().map(|array| array.len()).sum();
        let is_tied = params.w_enc.is_empty();
        if !is_tied {
            // Some never fire.
            params.b_enc.iter_mut().step_by(5).for_each(|bias| *bias = -1e3);
        }
        let x: Vec<f32> = (0..BATCH * D_IN).map(|_| number()).collect();
        let pool = Pool::new(1);
        let normalizer = Normalizer::run_time(NormalizeActivations::None);
        let mut trainer = Trainer::new(&trial.sae, &trial.train, D_IN, params, normalizer, &pool);
        for step in 0..=DENSE_STEPS {
            if step == DENSE_STEPS && !is_tied {
                // Pre-activations are about 0.06 large.
                trainer.params.b_enc.iter_mut().for_each(|bias| *bias -= 0.15);
            }
            assert!(trainer.step(&pool, &x).unwrap().is_finite());
            l0[usize::from(step > 0)] = trainer.losses.l0;
        }
    });
    (bytes as f64 / (16 * n_params) as f64, l0)
}

#[test]
fn training_takes_a_fifth_more_than_parameters_gradients_and_moments_at_most() {
    let topk = json!({
        "architecture": "topk", "k": 32, "aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": true,
    });
    let with = |changes: Value| {
        let mut settings = topk.clone();
        for (key, value) in changes.as_object().unwrap() {
            settings[key] = value.clone();
        }
        settings
    };
    let dense = [
        json!({ "architecture": "standard", "l1_coefficient": 1.0, "lp_norm": 1.0, "l1_warm_up_steps": 0 }),
        json!({ "architecture": "gated", "l1_coefficient": 1.0, "l1_warm_up_steps": 0 }),
        json!({
            "architecture": "jumprelu", "jumprelu_init_threshold": 0.01, "jumprelu_bandwidth": 0.05,
            "jumprelu_sparsity_loss_mode": "step", "l0_coefficient": 1.0, "l0_warm_up_steps": 0,
            "pre_act_loss_coefficient": 0.0, "jumprelu_tanh_scale": 4.0, "jumprelu_ste_to_input": false,
            "target_l0": 0.0,
        }),
    ];
    let sparse = [
        topk.clone(),
        with(json!({ "architecture": "abstopk" })),
        with(json!({ "architecture": "batchtopk", "topk_threshold_lr": 0.01 })),
        with(json!({
            "architecture": "matryoshka_batchtopk", "topk_threshold_lr": 0.01,
            "matryoshka_widths": [1024, 4096, 8192], "use_matryoshka_aux_loss": false,
        })),
        json!({
            "architecture": "matching_pursuit", "residual_threshold": 0.01, "max_iterations": 8,
            "stop_on_duplicate_support": false,
        }),
    ];
    let all =
        dense.iter().map(|settings| (settings, true)).chain(sparse.iter().map(|settings| (settings, false)));
    let mut beyond = Vec::new();
    for (settings, is_dense) in all {
        let (share, [first, last]) = measure(settings);
        let name = settings["architecture"].as_str().unwrap();
        println!("{name:22} {share:.3} of parameters, gradients and moments, L0 {first:.0} and {last:.0}");
        if is_dense {
            assert!(first > 0.3 * D_SAE as f64 && last < 0.1 * D_SAE as f64, "{name}: {first} {last}");
        }
        assert!(last > 0.0, "{name}: latents are active");
        if share > BOUND {
            beyond.push((name, share));
        }
    }
    assert!(beyond.is_empty(), "more than they may: {beyond:?}");
}
