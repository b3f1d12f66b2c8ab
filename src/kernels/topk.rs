//! The TopK SAE's training step.

use super::params::Params;
use super::pool::Pool;
use super::reference;
use super::workspace::{StepLosses, Workspace};

/// Settings of one TopK step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopKStep {
    /// Latents kept per token; more than F means all.
    pub k: usize,
    /// Weight of the auxiliary loss on dead latents.
    pub aux_loss_coefficient: f64,
    /// Whether the k largest are chosen by `pre * |W_dec,i|`.
    pub rescale_acts_by_decoder_norm: bool,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
}

/// Losses of one batch and their gradients. `x` is (B, D) with 1 <= B <= `shape.batch`; `dead` has one flag
/// per latent, as it stood before this step.
pub fn topk_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &TopKStep,
    dead: &[bool],
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    let _ = pool.threads();
    let x64: Vec<f64> = x.iter().map(|&value| f64::from(value)).collect();
    let outcome = reference::topk_step(&params.to_f64(), step, dead, &x64);
    ws.record(&outcome);
    *grads = outcome.grads.to_f32();
    outcome.losses
}
