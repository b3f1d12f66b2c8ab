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
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let aim = ws.aim.take(x.len()).map(|aim| (wide(&aim.target), wide(&aim.weight)));
    let aim = aim.as_ref().map(|(target, weight)| reference::Aim { target, weight });
    let outcome = reference::aimed_topk_step(&params.to_f64(), step, dead, &x64, aim);
    ws.n_tokens = x.len() / ws.shape.d_in;
    for (to, from) in ws.reconstruction.iter_mut().zip(&outcome.reconstruction) {
        *to = *from as f32;
    }
    ws.fired.fill(0);
    for row in outcome.acts.chunks_exact(ws.shape.d_sae) {
        for (count, &act) in ws.fired.iter_mut().zip(row) {
            *count += u32::from(act != 0.0);
        }
    }
    *grads = outcome.grads.to_f32();
    outcome.losses
}
