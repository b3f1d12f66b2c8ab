//! Encoding and decoding without gradients.

use super::params::Params;
use super::pool::Pool;
use super::reference;
use super::workspace::Workspace;

/// Which latents of a token are active.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// All with a positive pre-activation.
    Relu,
    /// The k largest, as far as they are positive; of equal values the lower index wins.
    TopK {
        /// Latents kept per token.
        k: usize,
        /// Whether the largest are chosen by `pre * |W_dec,i|`. The values given are `pre` either way, so
        /// that [`decode`] needs to know nothing of it.
        rescale: bool,
    },
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

/// Encodes `x` (B, D), any B.
pub fn encode(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    activation: &Activation,
    apply_b_dec_to_input: bool,
    x: &[f32],
) -> SparseActs {
    let _ = (pool.threads(), ws.isa());
    let x64: Vec<f64> = x.iter().map(|&value| f64::from(value)).collect();
    let params = params.to_f64();
    let pre =
        reference::pre_activations(&params, &reference::encoder_input(&params, apply_b_dec_to_input, &x64));
    let norms = reference::decoder_norms(&params);
    let mut acts = SparseActs { row_start: vec![0], ..SparseActs::default() };
    for row in pre.chunks_exact(params.d_sae()) {
        let chosen = match *activation {
            Activation::Relu => (0..row.len()).collect(),
            Activation::TopK { k, rescale } => {
                let order: Vec<f64> =
                    (0..row.len()).map(|f| if rescale { row[f] * norms[f] } else { row[f] }).collect();
                reference::largest(&order, k, |_| true)
            }
        };
        for f in chosen {
            if !(row[f] <= 0.0) {
                acts.latent.push(f as u32);
                acts.value.push(row[f] as f32);
            }
        }
        acts.row_start.push(acts.latent.len());
    }
    acts
}

/// `out = acts W_dec + b_dec`, (B, D).
pub fn decode(pool: &Pool, params: &Params, acts: &SparseActs, out: &mut [f32]) {
    let _ = pool.threads();
    let d_in = params.d_in();
    assert_eq!(out.len(), acts.n_tokens() * d_in, "out is (B, D)");
    for (token, row) in out.chunks_exact_mut(d_in).enumerate() {
        row.copy_from_slice(&params.b_dec);
        let (latents, values) = acts.row(token);
        for (&latent, &value) in latents.iter().zip(values) {
            let direction = &params.w_dec[latent as usize * d_in..][..d_in];
            row.iter_mut().zip(direction).for_each(|(sum, weight)| *sum += value * weight);
        }
    }
}
