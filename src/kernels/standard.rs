//! The standard SAE's training step.

use super::params::Params;
use super::pool::Pool;
use super::reference;
use super::workspace::{StepLosses, Workspace};

/// Settings of one standard step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StandardStep {
    /// Weight of the L1 loss at this step, after its schedule.
    pub l1_coefficient: f64,
    /// Norm of the sparsity loss, positive and finite; 1 is the usual one.
    pub lp_norm: f64,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
}

/// Losses of one batch and their gradients. `x` is (B, D) with 1 <= B <= `shape.batch`.
pub fn standard_step(
    pool: &Pool,
    ws: &mut Workspace,
    params: &Params,
    step: &StandardStep,
    x: &[f32],
    grads: &mut Params,
) -> StepLosses {
    let _ = pool.threads();
    let x64: Vec<f64> = x.iter().map(|&value| f64::from(value)).collect();
    let outcome = reference::standard_step(&params.to_f64(), step, &x64);
    ws.record(&outcome);
    *grads = outcome.grads.to_f32();
    outcome.losses
}
