//! Architectures of SAEs, each with the settings that it alone has, under SAELens' names.

use serde::{Deserialize, Serialize};

/// `sae.architecture` with its own settings. A setting of another architecture is not part of the
/// configuration, so it cannot make two equal trials look different.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "snake_case")]
pub enum Architecture {
    /// ReLU latents with an L1 penalty weighted by decoder norms.
    Standard {
        /// Weight of the sparsity loss.
        l1_coefficient: f64,
        /// Norm of the sparsity loss.
        lp_norm: f64,
        /// Steps over which the weight rises from 0.
        l1_warm_up_steps: u64,
    },
    /// Gates decide which latents are active, magnitudes by how much (Rajamanoharan et al. 2024).
    Gated {
        /// Weight of the sparsity loss on gates.
        l1_coefficient: f64,
        /// Steps over which the weight rises from 0.
        l1_warm_up_steps: u64,
    },
    /// The k largest pre-activations of every token (Gao et al. 2024).
    #[serde(rename = "topk")]
    TopK {
        /// Latents kept per token.
        k: usize,
        /// Weight of the auxiliary loss on dead latents.
        aux_loss_coefficient: f64,
        /// Whether activations are measured in units of decoder norms.
        rescale_acts_by_decoder_norm: bool,
    },
    /// The largest pre-activations of a batch, k for each token on average (Bussmann et al. 2024). Trained, it is
    /// a JumpReLU whose latents share one threshold.
    #[serde(rename = "batchtopk")]
    BatchTopK {
        /// Latents kept per token on average.
        #[serde(serialize_with = "whole_as_integer")]
        k: f64,
        /// How fast the threshold follows the least value kept.
        topk_threshold_lr: f64,
        /// Weight of the auxiliary loss on dead latents.
        aux_loss_coefficient: f64,
        /// Whether activations are measured in units of decoder norms.
        rescale_acts_by_decoder_norm: bool,
    },
    /// As `batchtopk`, but every prefix of the latents reconstructs, too (Bussmann et al. 2025).
    #[serde(rename = "matryoshka_batchtopk")]
    MatryoshkaBatchTopK {
        /// Latents kept per token on average.
        #[serde(serialize_with = "whole_as_integer")]
        k: f64,
        /// How fast the threshold follows the least value kept.
        topk_threshold_lr: f64,
        /// Weight of the auxiliary loss on dead latents.
        aux_loss_coefficient: f64,
        /// Whether activations are measured in units of decoder norms.
        rescale_acts_by_decoder_norm: bool,
        /// Lengths of the prefixes, rising to `d_sae`.
        matryoshka_widths: Vec<usize>,
        /// Whether dead latents make up for what is left at their own level rather than in the end.
        use_matryoshka_aux_loss: bool,
    },
    /// The k pre-activations of every token that are largest by magnitude, with their signs.
    #[serde(rename = "abstopk")]
    AbsTopK {
        /// Latents kept per token.
        k: usize,
        /// Weight of the auxiliary loss on dead latents.
        aux_loss_coefficient: f64,
        /// Whether activations are measured in units of decoder norms.
        rescale_acts_by_decoder_norm: bool,
    },
    /// Latents above a threshold of their own, which is learnt (Rajamanoharan et al. 2024).
    #[serde(rename = "jumprelu")]
    JumpRelu {
        /// Threshold of every latent at the start.
        jumprelu_init_threshold: f64,
        /// Width around a threshold within which its gradient is estimated.
        jumprelu_bandwidth: f64,
        /// The sparsity loss.
        jumprelu_sparsity_loss_mode: SparsityLossMode,
        /// Weight of the sparsity loss.
        l0_coefficient: f64,
        /// Steps over which the weight rises from 0.
        l0_warm_up_steps: u64,
        /// Weight of the loss on pre-activations of dead latents; 0 for none.
        pre_act_loss_coefficient: f64,
        /// How soon the loss of mode `tanh` saturates.
        jumprelu_tanh_scale: f64,
        /// Whether the estimator passes gradient to the encoder, too.
        jumprelu_ste_to_input: bool,
        /// Latents for each token that mode `quadratic` aims at; 0 in the other modes.
        target_l0: f64,
    },
    /// Latents are chosen one after the other, each the one that points most in the direction of what is left of
    /// the input, until little is left (Mallat and Zhang 1993; as an SAE, Costa et al. 2025). The encoder is the
    /// decoder's transpose.
    MatchingPursuit {
        /// L2 norm of what is left below which a token is done; 0 for no such end.
        residual_threshold: f64,
        /// The most choices for a token; 0 for as many as the activation is wide.
        max_iterations: usize,
        /// Whether a token is also done when a latent is chosen that was chosen before.
        stop_on_duplicate_support: bool,
    },
}

/// So that one k is written one way, whatever the architecture.
fn whole_as_integer<S: serde::Serializer>(k: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if k.fract() == 0.0 && *k < 1e15 {
        serializer.serialize_u64(*k as u64)
    } else {
        serializer.serialize_f64(*k)
    }
}

/// `sae.jumprelu_sparsity_loss_mode`, SAELens' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SparsityLossMode {
    /// The number of active latents.
    Step,
    /// A tanh of the activations.
    Tanh,
    /// The squared distance of the number of active latents from a target.
    Quadratic,
}

impl Architecture {
    /// The SAELens registry name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Standard { .. } => "standard",
            Self::Gated { .. } => "gated",
            Self::TopK { .. } => "topk",
            Self::BatchTopK { .. } => "batchtopk",
            Self::MatryoshkaBatchTopK { .. } => "matryoshka_batchtopk",
            Self::AbsTopK { .. } => "abstopk",
            Self::JumpRelu { .. } => "jumprelu",
            Self::MatchingPursuit { .. } => "matching_pursuit",
        }
    }

    /// A JumpReLU that was trained as something else: its own training settings are all 0.
    pub fn jumprelu_trained_otherwise() -> Self {
        Self::JumpRelu {
            jumprelu_init_threshold: 0.0,
            jumprelu_bandwidth: 0.0,
            jumprelu_sparsity_loss_mode: SparsityLossMode::Step,
            l0_coefficient: 0.0,
            l0_warm_up_steps: 0,
            pre_act_loss_coefficient: 0.0,
            jumprelu_tanh_scale: 0.0,
            jumprelu_ste_to_input: false,
            target_l0: 0.0,
        }
    }

    /// Whether activations are measured in units of decoder norms, where that is a setting.
    pub fn rescale_acts_by_decoder_norm(&mut self) -> Option<&mut bool> {
        match self {
            Self::TopK { rescale_acts_by_decoder_norm, .. }
            | Self::BatchTopK { rescale_acts_by_decoder_norm, .. }
            | Self::MatryoshkaBatchTopK { rescale_acts_by_decoder_norm, .. }
            | Self::AbsTopK { rescale_acts_by_decoder_norm, .. } => Some(rescale_acts_by_decoder_norm),
            Self::Standard { .. }
            | Self::Gated { .. }
            | Self::JumpRelu { .. }
            | Self::MatchingPursuit { .. } => None,
        }
    }
}
