//! Times whole training steps, the bookkeeping of firing latents included, on a problem read from files, for
//! comparisons with other trainers: `peers.py` beside this file writes the problem, runs this program and the
//! others on it in one go, and prints ratios. Prints one JSON object.
//!
//! `step PROBLEM.safetensors SETTINGS.json --threads N` trains: the problem holds `batches` (S, B, D), one batch per
//! step, and the initial parameters under their names in `kernels::Params`, all float32 and (F, D) where they are
//! matrices; the settings are those of a trial, `{"sae": {…}, "train": {…}}`.
//!
//! `--profile` adds the mean seconds of each phase of a step, measured in steps of their own after the others.
//!
//! `step --limits D_IN D_SAE BATCH --threads N [--matrices 2]` measures the two parts of a step's floor on this machine
//! instead: one dense encoder product, and one pass over an optimiser's state of so many matrices.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod limits;
mod phases;

use saesweep::{
    kernels::{Isa, Params, Pool, Shape},
    sae::Normalizer,
    train::Trainer,
    trial::{SaeConfig, TrainConfig},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::time::Instant;

fn floats(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    // A parameter that an architecture does not have is empty.
    file.tensor(name).map_or_else(
        |_missing| (vec![0], Vec::new()),
        |view| (view.shape().to_vec(), bytemuck::pod_collect_to_vec(view.data())),
    )
}

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let threads = number(&mut args, "--threads", 1);
    let matrices = number(&mut args, "--matrices", 2);
    let profiled = args.iter().position(|arg| arg == "--profile").map(|at| args.remove(at)).is_some();
    let result = match &args[..] {
        [flag, shape @ ..] if flag == "--limits" => measure_limits(shape, matrices, threads),
        [problem, settings] => time_steps(problem, settings, threads, profiled),
        _ => return, // `cargo bench` without arguments: nothing to compare with
    };
    println!("{result}");
}

/// The number after a flag, taken out of the arguments.
fn number(args: &mut Vec<String>, flag: &str, default: usize) -> usize {
    let Some(at) = args.iter().position(|arg| arg == flag) else { return default };
    let value = args.drain(at..at + 2).nth(1).and_then(|n| n.parse().ok());
    value.unwrap_or_else(|| panic!("`{flag}` takes a number"))
}

fn measure_limits(shape: &[String], matrices: usize, threads: usize) -> Value {
    let numbers: Vec<usize> = shape.iter().map(|n| n.parse().expect("sizes are numbers")).collect();
    let [d_in, d_sae, batch] = numbers[..] else { panic!("`--limits` takes D_IN D_SAE BATCH") };
    let (rate, bandwidth) = (limits::product_rate(threads), limits::bandwidth(threads));
    let [product_secs, state_secs] =
        limits::floor(Shape { d_in, d_sae, batch }, matrices as f64, rate, bandwidth);
    json!({
        "product_gflops": rate / 1e9,
        "bandwidth_gb": bandwidth / 1e9,
        "product_secs": product_secs,
        "state_secs": state_secs,
        "isa": Isa::detect().name(),
    })
}

fn time_steps(problem: &str, settings: &str, threads: usize, profiled: bool) -> Value {
    let bytes = std::fs::read(problem).expect("the problem file can be read");
    let file = SafeTensors::deserialize(&bytes).expect("the problem is a safetensors file");
    let (shape, batches) = floats(&file, "batches");
    let [_, batch, d_in] = shape[..] else { panic!("`batches` must be (S, B, D)") };
    let get = |name| floats(&file, name).1;
    let params = Params {
        w_enc: get("w_enc"),
        w_dec: get("w_dec"),
        b_enc: get("b_enc"),
        b_dec: get("b_dec"),
        threshold: get("threshold"),
        r_mag: get("r_mag"),
        b_mag: get("b_mag"),
    };
    let settings: Value = serde_json::from_slice(&std::fs::read(settings).expect("the settings can be read"))
        .expect("the settings are JSON");
    let sae: SaeConfig = serde_json::from_value(settings["sae"].clone()).expect("these are SAE settings");
    let train: TrainConfig =
        serde_json::from_value(settings["train"].clone()).expect("these are training settings");
    let pool = Pool::new(threads);
    let normalizer = Normalizer::run_time(sae.normalize_activations);
    let mut trainer = Trainer::new(&sae, &train, d_in, params, normalizer, &pool);

    let batches = || batches.chunks_exact(batch * d_in);
    let mut step = |x| trainer.step(&pool, x).expect("steps on the CPU cannot fail").losses;
    let (mut secs, mut losses, mut l0) = (Vec::new(), Vec::new(), Vec::new());
    for x in batches() {
        let started = Instant::now();
        let out = step(x);
        secs.push(started.elapsed().as_secs_f64());
        losses.push(out.overall);
        l0.push(out.l0);
    }
    let mut result = json!({ "secs": secs, "losses": losses, "l0": l0, "threads": threads });
    if profiled {
        let phases = phases::Phases::default();
        for x in batches() {
            phases.measure(|| {
                step(x);
            });
        }
        let means = phases.seconds().into_iter().map(|(phase, sum)| (phase, sum / secs.len() as f64));
        result["phases"] = means.collect();
    }
    result
}
