//! A trained SAE in use.

use super::normalize::{Normalizer, RowScales};
use crate::{
    kernels::{self, Activation, Params, Pool, Pursuit, SparseActs, Workspace},
    trial::{Architecture, SaeConfig},
};

/// A trained SAE. Its weights take activations as the model makes them: whatever could be folded is.
#[derive(Debug, Clone, PartialEq)]
pub struct Sae {
    /// What it is. `normalize_activations` names a mode only if that mode works at run time.
    pub cfg: SaeConfig,
    /// Activation width D.
    pub d_in: usize,
    /// Weights, both matrices (F, D).
    pub params: Params,
}

impl Sae {
    /// The activation function for inference.
    pub fn activation(&self) -> Activation {
        match self.cfg.architecture {
            Architecture::Standard { .. } => Activation::Relu,
            Architecture::Gated { .. } => Activation::Gated,
            Architecture::JumpRelu { .. } => Activation::JumpRelu,
            Architecture::TopK { k, rescale_acts_by_decoder_norm, .. } => {
                Activation::TopK { k, rescale: rescale_acts_by_decoder_norm, by_magnitude: false }
            }
            Architecture::AbsTopK { k, rescale_acts_by_decoder_norm, .. } => {
                Activation::TopK { k, rescale: rescale_acts_by_decoder_norm, by_magnitude: true }
            }
            Architecture::MatchingPursuit {
                residual_threshold,
                max_iterations,
                stop_on_duplicate_support,
            } => Activation::MatchingPursuit(Pursuit {
                residual_threshold,
                max_iterations,
                stop_on_duplicate_support,
            }),
            // Trained, it is a JumpReLU; without thresholds there is only the sign.
            Architecture::BatchTopK { .. } | Architecture::MatryoshkaBatchTopK { .. } => Activation::Relu,
        }
    }

    /// Latents of activations `x` (B, D), where B is at most the workspace's batch.
    pub fn encode(&self, pool: &Pool, ws: &mut Workspace, x: &[f32]) -> SparseActs {
        self.scaled(pool, x, |z| self.encode_scaled(pool, ws, z)).0
    }

    /// Reconstruction from latents in the SAE's own space, `out` (B, D). A per-row normalisation needs the
    /// rows that it came from and is undone by [`Sae::reconstruct`] only; without one the two agree.
    pub fn decode(&self, pool: &Pool, acts: &SparseActs, out: &mut [f32]) {
        // What a pursuit takes apart has b_dec in it only if that was subtracted before.
        let is_pursuit = matches!(self.cfg.architecture, Architecture::MatchingPursuit { .. });
        let with_bias = !is_pursuit || self.cfg.apply_b_dec_to_input;
        kernels::decode(pool, &self.params, acts, with_bias, out);
    }

    /// Encodes `x` (B, D) and writes its reconstruction to `out` (B, D); returns the latents.
    pub fn reconstruct(&self, pool: &Pool, ws: &mut Workspace, x: &[f32], out: &mut [f32]) -> SparseActs {
        let (acts, normalizer, scales) = self.scaled(pool, x, |z| self.encode_scaled(pool, ws, z));
        self.decode(pool, &acts, out);
        normalizer.undo(&scales, self.d_in, out);
        acts
    }

    fn encode_scaled(&self, pool: &Pool, ws: &mut Workspace, z: &[f32]) -> SparseActs {
        kernels::encode(pool, ws, &self.params, &self.activation(), self.cfg.apply_b_dec_to_input, z)
    }

    fn scaled<T>(
        &self,
        pool: &Pool,
        x: &[f32],
        then: impl FnOnce(&[f32]) -> T,
    ) -> (T, Normalizer, RowScales) {
        let normalizer = Normalizer::run_time(self.cfg.normalize_activations);
        let mut scales = RowScales::default();
        let result = if normalizer.is_per_row() {
            let mut z = vec![0.0; x.len()];
            normalizer.apply(pool, x, self.d_in, &mut z, &mut scales);
            then(&z)
        } else {
            then(x)
        };
        (result, normalizer, scales)
    }
}
