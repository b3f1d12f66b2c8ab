//! A trained SAE or transcoder in use.

use super::{
    normalize::{Normalizer, RowScales},
    transcoder::{resized, transcoder_name},
};
use crate::{
    kernels::{self, Activation, Params, Pool, Pursuit, SparseActs, Workspace},
    trial::{Architecture, SaeConfig},
};

/// A trained SAE, or a trained transcoder. Its weights take activations as the model makes them: whatever could
/// be folded is.
#[derive(Debug, Clone, PartialEq)]
pub struct Sae {
    /// What it is. `normalize_activations` names a mode only if that mode works at run time.
    pub cfg: SaeConfig,
    /// Activation width D; of a transcoder, that of its input.
    pub d_in: usize,
    /// Width of the activations that a transcoder computes; `None` for an SAE, which computes those it reads.
    pub d_out: Option<usize>,
    /// Weights, both matrices (F, D); of a transcoder, (F, [`Sae::width`]) with zeros beyond `d_in` and `d_out`.
    pub params: Params,
}

impl Sae {
    /// Width of weights in memory.
    pub fn width(&self) -> usize {
        self.d_in.max(self.out_width())
    }

    /// Width of a reconstruction.
    pub fn out_width(&self) -> usize {
        self.d_out.unwrap_or(self.d_in)
    }

    /// Its name in `cfg.json`.
    pub fn architecture_name(&self) -> &'static str {
        let name = self.cfg.architecture.name();
        if self.d_out.is_some() { transcoder_name(&self.cfg.architecture).unwrap_or(name) } else { name }
    }

    /// Its sizes for people.
    pub fn sizes(&self) -> String {
        match self.d_out {
            None => format!("{} x {} (d_in x d_sae)", self.d_in, self.cfg.d_sae),
            Some(d_out) => format!("{} x {} x {d_out} (d_in x d_sae x d_out)", self.d_in, self.cfg.d_sae),
        }
    }

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

    /// Latents of activations `x` (B, D). The workspace's width is [`Sae::width`].
    pub fn encode(&self, pool: &Pool, ws: &mut Workspace, x: &[f32]) -> SparseActs {
        self.scaled(pool, x, |z| self.encode_scaled(pool, ws, z)).0
    }

    /// Reconstruction from latents in the SAE's own space, `out` (B, [`Sae::out_width`]). A per-row normalisation needs the
    /// rows that it came from and is undone by [`Sae::reconstruct`] only; without one the two agree.
    pub fn decode(&self, pool: &Pool, acts: &SparseActs, out: &mut [f32]) {
        // What a pursuit takes apart has b_dec in it only if that was subtracted before.
        let is_pursuit = matches!(self.cfg.architecture, Architecture::MatchingPursuit { .. });
        let with_bias = !is_pursuit || self.cfg.apply_b_dec_to_input;
        let (width, out_width) = (self.width(), self.out_width());
        if width == out_width {
            kernels::decode(pool, &self.params, acts, with_bias, out);
        } else {
            let mut wide = vec![0.0; acts.n_tokens() * width];
            kernels::decode(pool, &self.params, acts, with_bias, &mut wide);
            out.copy_from_slice(&resized(&wide, width, out_width));
        }
    }

    /// Encodes `x` (B, D) and writes its reconstruction to `out` (B, [`Sae::out_width`]); returns the latents.
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
        let x = &*resized(x, self.d_in, self.width());
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
