//! Encoding and decoding without gradients.

use super::isa::Isa;
use super::matching_pursuit::{Pursuit, encode_by_pursuit};
use super::memory::Disjoint;
use super::params::Params;
use super::pool::Pool;
use super::rows::sum_of_rows;
use super::simd::{Kernel, Simd};
use super::topk::Choice;
use super::workspace::Workspace;

/// Which latents of a token are active.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// All with a positive pre-activation.
    Relu,
    /// All with a positive pre-activation above the latent's threshold.
    JumpRelu,
    /// Those whose gate is open and whose magnitude is positive, which is their value.
    Gated,
    /// The k largest; of equal values the lower index wins.
    TopK {
        /// Latents kept per token.
        k: usize,
        /// Whether the largest are chosen by `pre * |W_dec,i|`. The values given are `pre` either way, so
        /// that [`decode`] needs to know nothing of it.
        rescale: bool,
        /// Whether they are the largest by magnitude and keep their signs; if not, only those that are positive
        /// are active.
        by_magnitude: bool,
    },
    /// Those that a pursuit chooses, with a tied encoder.
    MatchingPursuit(Pursuit),
}

/// Activations of some tokens, the zeros left out; per token in rising order of latent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SparseActs {
    /// Where each token's entries begin, and at last where they end: B + 1 numbers.
    pub row_start: Vec<usize>,
    /// Latent of each entry.
    pub latent: Vec<u32>,
    /// Value of each entry.
    pub value: Vec<f32>,
}

impl SparseActs {
    /// B: number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.row_start.len().saturating_sub(1)
    }

    /// The active latents of one token and their values.
    pub fn row(&self, token: usize) -> (&[u32], &[f32]) {
        let range = self.row_start[token]..self.row_start[token + 1];
        (&self.latent[range.clone()], &self.value[range])
    }
}

/// Encodes `x` (B, D), any B, also 0.
///
/// # Panics
/// When a length does not fit the workspace's shape.
pub fn encode(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    activation: &Activation,
    apply_b_dec_to_input: bool,
    x: &[f32],
) -> SparseActs {
    params.check(ws.shape.d_in, ws.shape.d_sae);
    assert_eq!(x.len() % ws.shape.d_in, 0, "x is (B, D)");
    if let Activation::MatchingPursuit(pursuit) = activation {
        return encode_by_pursuit(pool, ws, params, pursuit, apply_b_dec_to_input, x);
    }
    assert!(!params.is_tied(), "the encoder has weights of its own");
    let mut acts = SparseActs { row_start: vec![0], ..SparseActs::default() };
    for x in x.chunks(ws.shape.batch * ws.shape.d_in) {
        let n_tokens = ws.load(pool, params, apply_b_dec_to_input, x);
        match *activation {
            Activation::Relu => ws.gather_positive(pool, params, 0..ws.lists.tiles.len()),
            Activation::JumpRelu => ws.gather_active(pool, params),
            Activation::Gated => ws.gather_gated(pool, params),
            Activation::MatchingPursuit(_) => unreachable!("dealt with above"),
            Activation::TopK { k, rescale, by_magnitude } => {
                ws.gather_largest(pool, params, Choice::OfToken { k, by_magnitude }, rescale, &[]);
            }
        }
        let total = ws.lists.count();
        ws.rows.fill(&ws.lists, &ws.order, n_tokens, |_| true);
        let before = acts.latent.len();
        acts.latent.extend_from_slice(&ws.rows.latent[..total]);
        acts.value.extend_from_slice(&ws.rows.value[..total]);
        acts.row_start.extend(ws.rows.start[1..].iter().map(|&end| before + end as usize));
    }
    acts
}

/// `out = acts W_dec + b_dec`, (B, D), or without the bias.
///
/// # Panics
/// When `out` has another length, or a latent is not below F.
pub fn decode(pool: &Pool, params: &Params, acts: &SparseActs, with_bias: bool, out: &mut [f32]) {
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    params.check(d_in, d_sae);
    assert_eq!(out.len(), acts.n_tokens() * d_in, "out is (B, D)");
    assert!(acts.latent.iter().all(|&latent| (latent as usize) < d_sae), "every latent is below F");
    let isa = Isa::detect();
    let shared = Disjoint::new(out);
    pool.run(acts.n_tokens(), &|token| {
        let (latents, values) = acts.row(token);
        // SAFETY: one row per task.
        let out = unsafe { shared.part(token * d_in, d_in) };
        if with_bias {
            out.copy_from_slice(&params.b_dec);
        } else {
            out.fill(0.0);
        }
        isa.run(DecodeRow { w_dec: &params.w_dec, latents, values, out });
    });
}

struct DecodeRow<'a> {
    w_dec: &'a [f32],
    latents: &'a [u32],
    values: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for DecodeRow<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let d_in = self.out.len();
        // SAFETY: this runs with the instructions of `S`; every latent is below F, as `decode` checks.
        unsafe {
            let (out, rows) = (self.out.as_mut_ptr(), self.w_dec.as_ptr());
            sum_of_rows::<S>(out, true, rows, d_in, self.latents, self.values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::{Problem, SHAPES, SHIFTS, check_close};
    use super::*;

    fn dense(acts: &SparseActs, d_sae: usize) -> Vec<f32> {
        let mut out = vec![0.0; acts.n_tokens() * d_sae];
        for token in 0..acts.n_tokens() {
            let (latents, values) = acts.row(token);
            assert!(latents.is_sorted_by(|a, b| a < b), "latents rise");
            for (&latent, &value) in latents.iter().zip(values) {
                out[token * d_sae + latent as usize] = value;
            }
        }
        out
    }

    /// Workspaces of other batch sizes than the input's cut it differently; the bits stay.
    fn check(problem: &Problem, activation: Activation, expected: &[f64]) {
        let Problem { shape, params, x } = problem;
        let d_sae = shape.d_sae;
        let mut first: Option<SparseActs> = None;
        for (threads, batch) in [(1, shape.batch), (2, 1), (3, shape.batch + 9)] {
            let pool = Pool::new(threads);
            let mut ws = Workspace::new(crate::kernels::Shape { batch, ..*shape }, &pool);
            let acts = encode(&pool, &mut ws, params, &activation, true, x);
            check_close("acts", &dense(&acts, d_sae), expected);
            let mut out = vec![f32::NAN; x.len()];
            decode(&pool, params, &acts, true, &mut out);
            check_close("decoded", &out, &reference::decoded(&params.to_f64(), expected, acts.n_tokens()));
            assert_eq!(first.get_or_insert_with(|| acts.clone()), &acts);
        }
    }

    #[test]
    fn equals_the_reference() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            for shift in SHIFTS {
                let problem = Problem::new(d_in, d_sae, batch, shift, seed as u64);
                let params = problem.params.to_f64();
                let pre = reference::pre_activations(
                    &params,
                    &reference::encoder_input(&params, true, &problem.x64()),
                );
                let relu: Vec<f64> = pre.iter().map(|value| value.max(0.0)).collect();
                check(&problem, Activation::Relu, &relu);
                let mut with_thresholds = problem.params.clone();
                with_thresholds.threshold = (0..d_sae).map(|f| [-1.0, 0.0, 0.7, 1e9][f % 4]).collect();
                let theta = &with_thresholds.threshold;
                let above: Vec<f64> = (0..relu.len())
                    .map(|i| if relu[i] > f64::from(theta[i % d_sae]) { relu[i] } else { 0.0 })
                    .collect();
                let jumping = Problem { params: with_thresholds, x: problem.x.clone(), ..problem };
                check(&jumping, Activation::JumpRelu, &above);
                let k = d_sae / 3 + 1;
                let mut largest = vec![0.0; relu.len()];
                for b in 0..batch {
                    for f in reference::largest(&pre[b * d_sae..][..d_sae], k, |_| true) {
                        largest[b * d_sae + f] = relu[b * d_sae + f];
                    }
                }
                check(&problem, Activation::TopK { k, rescale: false, by_magnitude: false }, &largest);
                let magnitudes: Vec<f64> = pre.iter().map(|value| value.abs()).collect();
                let mut signed = vec![0.0; pre.len()];
                for b in 0..batch {
                    for f in reference::largest(&magnitudes[b * d_sae..][..d_sae], k, |_| true) {
                        signed[b * d_sae + f] = pre[b * d_sae + f];
                    }
                }
                check(&problem, Activation::TopK { k, rescale: false, by_magnitude: true }, &signed);
            }
        }
    }

    #[test]
    fn no_tokens_are_no_problem() {
        let problem = Problem::new(5, 7, 3, 0.0, 1);
        let pool = Pool::new(1);
        let mut ws = Workspace::new(problem.shape, &pool);
        let acts = encode(&pool, &mut ws, &problem.params, &Activation::Relu, false, &[]);
        assert_eq!(acts.n_tokens(), 0);
        decode(&pool, &problem.params, &acts, true, &mut []);
    }
}
