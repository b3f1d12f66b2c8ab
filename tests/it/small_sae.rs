//! SAEs of made-up weights, and what they compute.

use saesweep::{
    kernels::{Pool, Shape, SparseActs, Workspace},
    sae::Sae,
};

/// Numbers without a pattern in [-size, size), the same ones for the same seed.
pub(crate) fn noise(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0) * size
        })
        .collect()
}

/// Latents (B, F) and reconstruction (B, D) of rows `x` (B, D).
pub(crate) fn forward(sae: &Sae, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let pool = Pool::new(1);
    let shape = Shape { d_in: sae.d_in, d_sae: sae.cfg.d_sae, batch: x.len() / sae.d_in };
    let mut out = vec![0.0; x.len()];
    let acts = sae.reconstruct(&pool, &mut Workspace::new(shape, &pool), x, &mut out);
    (dense(&acts, sae.cfg.d_sae), out)
}

fn dense(acts: &SparseActs, d_sae: usize) -> Vec<f32> {
    let mut out = vec![0.0; acts.n_tokens() * d_sae];
    for token in 0..acts.n_tokens() {
        let (latents, values) = acts.row(token);
        for (latent, value) in latents.iter().zip(values) {
            out[token * d_sae + *latent as usize] = *value;
        }
    }
    out
}
