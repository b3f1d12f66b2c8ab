//! Times whole training steps of the standard SAE on a problem read from a file, for comparisons with other
//! trainers: `against_saelens.py` beside this file writes the problem, runs this program and SAELens on it in
//! one go, and prints the ratio. Prints one JSON object.
//!
//! Usage: `step PROBLEM.safetensors --threads N --lr LR --l1 L1`, where the file holds `batches` (S, B, D), one
//! batch per step, and the initial `w_enc` (F, D), `w_dec` (F, D), `b_enc` (F), `b_dec` (D), all float32.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use saesweep::kernels::{AdamStep, Params, Pool, Shape, StandardStep, Workspace, adam, standard_step};
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
    let mut params = Params {
        w_enc: floats(&file, "w_enc").1,
        w_dec: floats(&file, "w_dec").1,
        b_enc: floats(&file, "b_enc").1,
        b_dec: floats(&file, "b_dec").1,
    };
    let d_sae = params.b_enc.len();
    let zeros = || Params {
        w_enc: vec![0.0; d_sae * d_in],
        w_dec: vec![0.0; d_sae * d_in],
        b_enc: vec![0.0; d_sae],
        b_dec: vec![0.0; d_in],
    };
    let (mut grads, mut m, mut v) = (zeros(), zeros(), zeros());
    let pool = Pool::new(threads);
    let mut workspace = Workspace::new(Shape { d_in, d_sae, batch }, &pool);
    let step = StandardStep { l1_coefficient, lp_norm: 1.0, apply_b_dec_to_input: false };

    let (mut secs, mut losses, mut l0) = (Vec::new(), Vec::new(), Vec::new());
    for t in 0..n_steps {
        let x = &batches[t * batch * d_in..(t + 1) * batch * d_in];
        let started = Instant::now();
        let out = standard_step(&pool, &mut workspace, &params, &step, x, &mut grads);
        let settings =
            AdamStep { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: t as u64 + 1, max_grad_norm: 1.0 };
        adam(&pool, &mut params, &grads, &mut m, &mut v, &settings, workspace.grad_norm());
        secs.push(started.elapsed().as_secs_f64());
        losses.push(out.overall);
        l0.push(out.l0);
    }
    println!("{}", serde_json::json!({ "secs": secs, "losses": losses, "l0": l0, "threads": threads }));
}
