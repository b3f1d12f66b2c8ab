//! Benchmarks of the kernels: whole training steps against what this machine could do at best.
//!
//! `cargo bench --bench kernels` measures two limits first: the rate of a large f32 product with the `gemm`
//! crate, and the memory bandwidth of a pass that reads and writes three arrays. The floor of a step is one
//! dense encoder product at that rate plus one pass over the optimiser's state (parameters and two moments,
//! read and written: 24 bytes a parameter). After the benchmarks comes a table of step times over floors.
//! Where the encoder screens with bytes, a step may stay below its floor: fewer products are computed in full. Cases
//! marked "not screened" are the same steps without. The column "memory" is the process' peak over 16 bytes a
//! parameter (parameters, gradients and two moments), which no trainer with Adam can do without.
//!
//! A word after `--` filters, as always with divan: `cargo bench --bench kernels -- standard`.
//!
//! Numbers are drawn so that about L0 latents per token are active: inputs and weights are roughly normal,
//! and `b_enc` is shifted by a quantile of the pre-activations.

#![expect(clippy::print_stdout, reason = "a benchmark's table is its output")]

mod limits;
mod memory;

use limits::{bandwidth, product_rate};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use divan::Bencher;
use saesweep::kernels::{
    Activation, AdamStep, BatchTopKStep, GatedStep, Isa, JumpReluStep, MatchingPursuitStep, Params, Pool,
    Pursuit, Shape, SparsityMode, StandardStep, TopKStep, Workspace, abs_topk_step, adam, batch_topk_step,
    decode, encode, gated_step, jumprelu_step, matching_pursuit_step, matryoshka_step, standard_step,
    topk_step,
};

/// Seconds of the fastest run of each case, and the process' peak memory over that of parameters, gradients and
/// moments (16 bytes a parameter), where the system tells.
static FASTEST: Mutex<BTreeMap<Case, (f64, Option<f64>)>> = Mutex::new(BTreeMap::new());

/// Counts allocations: a step in the steady state makes none.
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
    print_ratios();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Standard,
    /// TopK with this percentage of dead latents.
    TopK(usize),
    BatchTopK,
    /// With this many levels.
    Matryoshka(usize),
    AbsTopK,
    JumpRelu,
    Gated,
    /// With L0 choices for every token.
    MatchingPursuit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    kind: Kind,
    d_in: usize,
    d_sae: usize,
    batch: usize,
    l0: usize,
    threads: usize,
    /// Whether the encoder may screen with bytes, where the machine multiplies them fast.
    screened: bool,
}

impl Case {
    fn shape(&self) -> Shape {
        Shape { d_in: self.d_in, d_sae: self.d_sae, batch: self.batch }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Standard => write!(f, "standard")?,
            Kind::TopK(dead) => write!(f, "topk, {dead} % dead")?,
            Kind::BatchTopK => write!(f, "batchtopk")?,
            Kind::Matryoshka(levels) => write!(f, "matryoshka_batchtopk, {levels} levels")?,
            Kind::AbsTopK => write!(f, "abstopk")?,
            Kind::JumpRelu => write!(f, "jumprelu")?,
            Kind::Gated => write!(f, "gated")?,
            Kind::MatchingPursuit => write!(f, "matching_pursuit")?,
        }
        let Self { d_in, d_sae, batch, l0, threads, .. } = self;
        write!(f, ", ({d_in}, {d_sae}, {batch}), L0 {l0}, {threads} thread")?;
        if *threads > 1 {
            write!(f, "s")?;
        }
        if self.screened { Ok(()) } else { write!(f, ", not screened") }
    }
}

const SHAPES: [(usize, usize, usize); 4] =
    [(576, 4608, 1024), (1024, 16384, 1024), (1024, 16384, 4096), (1536, 24576, 2048)];

const MIDDLE: Case =
    Case { kind: Kind::Standard, d_in: 1024, d_sae: 16384, batch: 1024, l0: 60, threads: 1, screened: true };

fn cases(kind: Kind, l0s: &[usize]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (d_in, d_sae, batch) in SHAPES {
        for &l0 in l0s {
            for threads in [1, 2] {
                cases.push(Case { kind, d_in, d_sae, batch, l0, threads, screened: true });
            }
        }
    }
    cases
}

/// As training begins: half of all latents are active.
fn dense_cases(kind: Kind) -> impl Iterator<Item = Case> {
    SHAPES.into_iter().map(move |(d_in, d_sae, batch)| Case {
        kind,
        d_in,
        d_sae,
        batch,
        l0: d_sae / 2,
        threads: 1,
        screened: true,
    })
}

fn standard_cases() -> Vec<Case> {
    let mut cases = cases(Kind::Standard, &[10, 60, 500]);
    cases.extend(dense_cases(Kind::Standard));
    cases.push(Case { l0: 8192, threads: 2, ..MIDDLE });
    cases.extend([10, 60, 500, 8192].map(|l0| Case { l0, screened: false, ..MIDDLE }));
    cases
}

fn topk_cases() -> Vec<Case> {
    let mut cases = cases(Kind::TopK(0), &[60, 500]);
    cases.extend(SHAPES.map(|(d_in, d_sae, batch)| Case {
        kind: Kind::TopK(20),
        d_in,
        d_sae,
        batch,
        ..MIDDLE
    }));
    cases.push(Case { kind: Kind::TopK(0), screened: false, ..MIDDLE });
    cases
}

fn other_cases() -> Vec<Case> {
    [Kind::BatchTopK, Kind::Matryoshka(4), Kind::AbsTopK, Kind::JumpRelu, Kind::Gated]
        .into_iter()
        .flat_map(|kind| {
            let shapes = SHAPES.into_iter().flat_map(|shape| [60, 500].map(|l0| (shape, l0)));
            let cases =
                shapes.map(move |((d_in, d_sae, batch), l0)| Case { kind, d_in, d_sae, batch, l0, ..MIDDLE });
            cases.chain([Case { kind, screened: false, ..MIDDLE }])
        })
        .chain([Kind::JumpRelu, Kind::Gated].into_iter().flat_map(dense_cases))
        .collect()
}

fn pursuit_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (d_in, d_sae, batch) in [(576, 4608, 1024), (1024, 16384, 1024)] {
        for l0 in [4, 60, 180] {
            cases.push(Case { kind: Kind::MatchingPursuit, d_in, d_sae, batch, l0, ..MIDDLE });
        }
    }
    cases.push(Case { threads: 2, ..cases[1] });
    cases.extend([cases[1], cases[4]].map(|case| Case { screened: false, ..case }));
    cases
}

/// A whole step of the standard SAE: losses, gradients, clip and Adam.
#[divan::bench(args = standard_cases(), sample_count = 5, sample_size = 1)]
fn standard(bencher: Bencher<'_, '_>, case: &Case) {
    bench_step(bencher, case);
}

/// A whole step of the TopK SAE.
#[divan::bench(args = topk_cases(), sample_count = 5, sample_size = 1)]
fn topk(bencher: Bencher<'_, '_>, case: &Case) {
    bench_step(bencher, case);
}

/// Whole steps of the other architectures.
#[divan::bench(args = other_cases(), sample_count = 5, sample_size = 1)]
fn others(bencher: Bencher<'_, '_>, case: &Case) {
    bench_step(bencher, case);
}

/// A whole step of the matching pursuit SAE.
#[divan::bench(args = pursuit_cases(), sample_count = 3, sample_size = 1)]
fn matching_pursuit(bencher: Bencher<'_, '_>, case: &Case) {
    bench_step(bencher, case);
}

fn bench_step(bencher: Bencher<'_, '_>, case: &Case) {
    memory::forget_peak();
    let mut problem = Problem::new(case);
    // The first steps grow the workspace.
    problem.step();
    bencher.counter(divan::counter::ItemsCount::new(case.batch)).bench_local(|| {
        let start = Instant::now();
        problem.step();
        let secs = start.elapsed().as_secs_f64();
        let mut fastest = FASTEST.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = fastest.entry(*case).or_insert((secs, None));
        entry.0 = entry.0.min(secs);
    });
    let bytes_of_parameters: usize = problem.params.arrays().iter().map(|array| 4 * array.len()).sum();
    let share = memory::peak().map(|peak| peak / (4 * bytes_of_parameters) as f64);
    if let Some(entry) = FASTEST.lock().unwrap_or_else(PoisonError::into_inner).get_mut(case) {
        entry.1 = share;
    }
}

/// Adam alone, every row with a gradient.
#[divan::bench(args = [1, 2], sample_count = 5, sample_size = 1)]
fn adam_alone(bencher: Bencher<'_, '_>, threads: usize) {
    let pool = Pool::new(threads);
    let mut params = Params::zeros(1024, 16384);
    params.w_enc.fill(0.5);
    let (grads, mut m, mut v) = (params.clone(), params.clone(), params.clone());
    let mut t = 0;
    bencher.bench_local(|| {
        t += 1;
        adam(&pool, &mut params, &grads, &mut m, &mut v, &adam_step(t), 1.0);
    });
}

/// Inference: encoding and decoding one batch.
#[divan::bench(args = [1, 2], sample_count = 5, sample_size = 1)]
fn encode_and_decode(bencher: Bencher<'_, '_>, threads: usize) {
    let case = Case { threads, ..MIDDLE };
    let Problem { pool, mut ws, params, x, .. } = Problem::new(&case);
    let mut out = vec![0.0; x.len()];
    bencher.bench_local(|| {
        let acts = encode(&pool, &mut ws, &params, &Activation::Relu, false, &x);
        decode(&pool, &params, &acts, true, &mut out);
    });
}

struct Problem {
    kind: Kind,
    l0: usize,
    pool: Pool,
    ws: Workspace,
    params: Params,
    grads: Params,
    m: Params,
    v: Params,
    x: Vec<f32>,
    dead: Vec<bool>,
    t: u64,
}

impl Problem {
    fn new(case: &Case) -> Self {
        let Case { kind, d_in, d_sae, batch, l0, threads, screened } = *case;
        let pool = Pool::new(threads);
        let mut numbers = Numbers(7);
        let x: Vec<f32> = (0..batch * d_in).map(|_| numbers.normal()).collect();
        let mut params = Params::zeros(d_in, d_sae);
        let scale = 1.0 / (d_in as f32).sqrt();
        params.w_dec.fill_with(|| scale * numbers.normal());
        params.w_enc.copy_from_slice(&params.w_dec);
        let shift = -quantile(&params, &x[..8 * d_in], 1.0 - l0 as f64 / d_sae as f64);
        params.b_enc.fill(shift);
        match kind {
            Kind::JumpRelu => {
                params.threshold = vec![0.01; d_sae];
                params.b_enc.fill(shift + 0.01);
            }
            Kind::MatchingPursuit => {
                (params.w_enc, params.b_enc) = (Vec::new(), vec![0.0; d_sae]);
            }
            Kind::Gated => (params.r_mag, params.b_mag) = (vec![0.0; d_sae], vec![0.0; d_sae]),
            _ => {}
        }
        let best = Isa::detect();
        let share_dead = if let Kind::TopK(percent) = kind { percent } else { 0 };
        Self {
            kind,
            l0,
            ws: Workspace::with_isa(case.shape(), &pool, if screened { best } else { best.min(Isa::Avx512) }),
            pool,
            grads: params.zeros_like(),
            m: params.zeros_like(),
            v: params.zeros_like(),
            params,
            x,
            dead: (0..d_sae).map(|latent| latent * 7 % 100 < share_dead).collect(),
            t: 0,
        }
    }

    /// One step with a learning rate of 0, so that every step does the same.
    fn step(&mut self) {
        let Self { pool, ws, params, grads, .. } = self;
        match self.kind {
            Kind::Standard => {
                let step = StandardStep { l1_coefficient: 5.0, lp_norm: 1.0, apply_b_dec_to_input: false };
                standard_step(pool, ws, params, &step, &self.x, grads);
            }
            Kind::TopK(_) => {
                let step = TopKStep {
                    k: self.l0,
                    aux_loss_coefficient: 1.0,
                    normalize_aux_loss: false,
                    rescale_acts_by_decoder_norm: true,
                    apply_b_dec_to_input: false,
                };
                topk_step(pool, ws, params, &step, &self.dead, &self.x, grads);
            }
            Kind::AbsTopK => {
                let step = TopKStep {
                    k: self.l0,
                    aux_loss_coefficient: 1.0,
                    normalize_aux_loss: false,
                    rescale_acts_by_decoder_norm: true,
                    apply_b_dec_to_input: false,
                };
                abs_topk_step(pool, ws, params, &step, &self.dead, &self.x, grads);
            }
            Kind::BatchTopK | Kind::Matryoshka(_) => {
                let step = BatchTopKStep {
                    k: self.l0 as f64,
                    aux_loss_coefficient: 1.0,
                    normalize_aux_loss: false,
                    rescale_acts_by_decoder_norm: true,
                    apply_b_dec_to_input: false,
                };
                if let Kind::Matryoshka(levels) = self.kind {
                    let widths: Vec<usize> = (0..levels).rev().map(|n| params.d_sae() >> (2 * n)).collect();
                    matryoshka_step(pool, ws, params, &step, &widths, true, &self.dead, &self.x, grads);
                } else {
                    batch_topk_step(pool, ws, params, &step, &self.dead, &self.x, grads);
                }
            }
            Kind::JumpRelu => {
                let step = JumpReluStep {
                    mode: SparsityMode::Step,
                    l0_coefficient: 0.1,
                    bandwidth: 0.05,
                    pre_act_loss_coefficient: 0.0,
                    ste_to_input: false,
                    apply_b_dec_to_input: false,
                };
                jumprelu_step(pool, ws, params, &step, &self.dead, &self.x, grads);
            }
            Kind::Gated => {
                let step = GatedStep { l1_coefficient: 5.0, apply_b_dec_to_input: false };
                gated_step(pool, ws, params, &step, &self.x, grads);
            }
            Kind::MatchingPursuit => {
                let pursuit = Pursuit {
                    residual_threshold: 0.0,
                    max_iterations: self.l0,
                    stop_on_duplicate_support: false,
                };
                let step = MatchingPursuitStep { pursuit, apply_b_dec_to_input: true };
                matching_pursuit_step(pool, ws, params, &step, &self.x, grads);
            }
        }
        self.t += 1;
        adam(pool, params, grads, &mut self.m, &mut self.v, &adam_step(self.t), ws.grad_norm());
    }
}

fn adam_step(t: u64) -> AdamStep {
    AdamStep { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, t, max_grad_norm: 1.0 }
}

/// The share `q` of the pre-activations of `x` lies below the result.
fn quantile(params: &Params, x: &[f32], q: f64) -> f32 {
    let d_in = params.d_in();
    let mut pre: Vec<f32> = x
        .chunks_exact(d_in)
        .flat_map(|token| {
            params.w_enc.chunks_exact(d_in).map(move |row| row.iter().zip(token).map(|(w, x)| w * x).sum())
        })
        .collect();
    pre.sort_by(f32::total_cmp);
    pre[(q * (pre.len() - 1) as f64) as usize]
}

/// Pseudo-random numbers (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// About normal: the sum of twelve uniform numbers less its mean.
    fn normal(&mut self) -> f32 {
        let mut sum = -6.0;
        for _ in 0..3 {
            let bits = self.next();
            for part in 0..4 {
                sum += ((bits >> (16 * part)) & 0xFFFF) as f32 / 65536.0;
            }
        }
        sum
    }
}

fn print_ratios() {
    let fastest = FASTEST.lock().unwrap_or_else(PoisonError::into_inner);
    if fastest.is_empty() {
        return;
    }
    println!("\ninstructions: {}", Isa::detect().name());
    let limits: Vec<(f64, f64)> = [1, 2].map(|threads| (product_rate(threads), bandwidth(threads))).to_vec();
    for (threads, (rate, bytes)) in (1..).zip(&limits) {
        println!(
            "{threads} thread(s): f32 product {:.0} GFlop/s, reading and writing {:.1} GB/s",
            rate / 1e9,
            bytes / 1e9
        );
    }
    println!("\n  step ms  floor ms  ratio  memory  case");
    for (case, (secs, memory)) in &*fastest {
        let (rate, bytes) = limits[case.threads - 1];
        // A matching pursuit SAE has no encoder of its own.
        let matrices = if case.kind == Kind::MatchingPursuit { 1.0 } else { 2.0 };
        let floor: f64 = limits::floor(case.shape(), matrices, rate, bytes).iter().sum();
        let memory = memory.map_or_else(|| "-".to_owned(), |share| format!("{share:.2}"));
        println!("{:9.1} {:9.1} {:6.2} {memory:>7}  {case}", secs * 1e3, floor * 1e3, secs / floor);
    }
}
