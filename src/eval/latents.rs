//! Which latents are active, token by token.

use crate::{
    kernels::{Activation, SparseActs},
    sae::Sae,
};

/// How often latents fire.
pub(crate) struct LatentCounts {
    /// (F) tokens on which each latent was active.
    pub(crate) fires: Vec<u64>,
    /// (F) what a latent's activation is measured in, where that is not 1.
    units: Option<Vec<f64>>,
}

impl LatentCounts {
    pub(crate) fn new(sae: &Sae) -> Self {
        // SAELens' activations are then the numbers the k largest are chosen by.
        let rescaled = matches!(sae.activation(), Activation::TopK { rescale: true, .. });
        let norm = |row: &[f32]| row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
        let units = rescaled.then(|| sae.params.w_dec.chunks_exact(sae.width()).map(norm).collect());
        Self { fires: vec![0; sae.cfg.d_sae], units }
    }

    /// Counts the tokens that `keep` lets count; returns L0 and L1 of each token.
    pub(crate) fn add(&mut self, acts: &SparseActs, keep: &[bool]) -> (Vec<u32>, Vec<f64>) {
        let (mut l0, mut l1) = (vec![0_u32; keep.len()], vec![0.0_f64; keep.len()]);
        for token in (0..keep.len()).filter(|&token| keep[token]) {
            let (latents, values) = acts.row(token);
            for (&latent, &value) in latents.iter().zip(values).filter(|(_, value)| **value != 0.0) {
                let unit = self.units.as_ref().map_or(1.0, |units| units[latent as usize]);
                l0[token] += 1;
                l1[token] += f64::from(value.abs()) * unit;
                self.fires[latent as usize] += 1;
            }
        }
        (l0, l1)
    }
}
