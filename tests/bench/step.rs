//! Times whole training steps of the standard SAE, the bookkeeping of firing latents included, on a problem read
//! from a file, for comparisons with other trainers: `against_saelens.py` beside this file writes the problem, runs
//! this program and SAELens on it in one go, and prints the ratio. Prints one JSON object.
//!
//! Usage: `step PROBLEM.safetensors --threads N --lr LR --l1 L1`, where the file holds `batches` (S, B, D), one
//! batch per step, and the initial `w_enc` (F, D), `w_dec` (F, D), `b_enc` (F), `b_dec` (D), all float32.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use saesweep::{
    kernels::{Params, Pool},
    sae::Normalizer,
    train::Trainer,
    trial::{NormalizeActivations, SaeConfig, TrainConfig},
};
use safetensors::SafeTensors;
use std::time::Instant;

fn floats(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    let view = file.tensor(name).unwrap_or_else(|err| panic!("tensor `{name}`: {err}"));
    (view.shape().to_vec(), bytemuck::pod_collect_to_vec(view.data()))
}

/// Value of the option `--name`.
fn option<T: std::str::FromStr>(args: &[String], name: &str, default: T) -> T {
    let value = args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("`{name} {value}` is no number")))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = args.first().filter(|arg| !arg.starts_with("--")) else {
        return; // `cargo bench` without arguments: nothing to compare with
    };
    let threads: usize = option(&args, "--threads", 1);
    let lr: f64 = option(&args, "--lr", 5e-5);
    let l1_coefficient: f64 = option(&args, "--l1", 5.0);

    let bytes = std::fs::read(path).expect("the problem file can be read");
    let file = SafeTensors::deserialize(&bytes).expect("the problem is a safetensors file");
    let (shape, batches) = floats(&file, "batches");
    let [n_steps, batch, d_in] = shape[..] else { panic!("`batches` must be (S, B, D)") };
    let params = Params {
        w_enc: floats(&file, "w_enc").1,
        w_dec: floats(&file, "w_dec").1,
        b_enc: floats(&file, "b_enc").1,
        b_dec: floats(&file, "b_dec").1,
        ..Params::default()
    };
    let tokens = (n_steps * batch) as u64;
    let settings = serde_json::json!({
        "sae": {
            "d_sae": params.b_enc.len(), "apply_b_dec_to_input": false, "normalize_activations": "none",
            "decoder_init_norm": 0.1, "architecture": "standard", "l1_coefficient": l1_coefficient,
            "lp_norm": 1.0, "l1_warm_up_steps": 0,
        },
        "train": {
            "tokens": tokens, "batch_size": batch, "lr": lr, "lr_end": lr / 10.0,
            "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr_decay_steps": 0,
            "n_restart_cycles": 1, "adam_beta1": 0.9, "adam_beta2": 0.999, "seed": 0, "data_seed": 0,
            "dead_feature_window": 1000, "feature_sampling_window": 1000,
        },
    });
    let sae: SaeConfig = serde_json::from_value(settings["sae"].clone()).expect("these are SAE settings");
    let train: TrainConfig =
        serde_json::from_value(settings["train"].clone()).expect("these are training settings");
    let pool = Pool::new(threads);
    let normalizer = Normalizer::run_time(NormalizeActivations::None);
    let mut trainer = Trainer::new(&sae, &train, d_in, params, normalizer, &pool);

    let (mut secs, mut losses, mut l0) = (Vec::new(), Vec::new(), Vec::new());
    for x in batches.chunks_exact(batch * d_in) {
        let started = Instant::now();
        let out = trainer.step(&pool, x).expect("steps on the CPU cannot fail").losses;
        secs.push(started.elapsed().as_secs_f64());
        losses.push(out.overall);
        l0.push(out.l0);
    }
    println!("{}", serde_json::json!({ "secs": secs, "losses": losses, "l0": l0, "threads": threads }));
}
