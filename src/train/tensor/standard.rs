//! The standard step: ReLU, and an L1 weighted by decoder norms. Dense throughout.

use super::{
    dense::{Context, Found},
    values::{above_zero, zero_as_one},
};
use crate::kernels::StandardStep;
use candle_core::{Result, Tensor};

/// See `kernels::reference::standard_step`.
pub(super) fn standard(context: &Context<'_>, step: &StandardStep) -> Result<Found> {
    let scale = context.batch.scale;
    let x_in = context.x_in()?;
    let pre = context.pre_activations(&x_in)?;
    let active = above_zero(&pre)?;
    // A product, not a maximum, so that NaN gets through to the loss.
    let acts = (pre * &active)?;
    let reconstruction = context.decoded(&acts)?;
    let (errors, g) = context.batch.compare(&reconstruction)?;

    let w_norms = context.params.decoder_norms()?;
    let Penalty { norms, d_acts, d_w_norms } =
        penalty(&acts, &w_norms, step.l1_coefficient * scale, step.lp_norm)?;
    let d_pre = (context.pulled(&g)?.broadcast_add(&d_acts)? * &active)?;
    let w_dec = (context.outer(&acts, &g)? + context.params.through_norms(&d_w_norms, &w_norms)?)?;
    Ok(Found {
        grads: context.gradients(&x_in, &d_pre, None, w_dec, g.sum(0)?)?,
        reconstruction,
        errors,
        sparsity: vec![(norms, step.l1_coefficient * scale)],
        auxiliary: Vec::new(),
        fired: active.sum(0)?,
        least: None,
        active: None,
    })
}

/// The sparsity loss `lambda sum_b |f_b n|_p`, of activations f (B, F) and decoder norms n (F).
struct Penalty {
    /// (B) the p-norms, without lambda.
    norms: Tensor,
    /// (B, F) or (1, F): derivative by the activations, where they are active.
    d_acts: Tensor,
    /// (F) derivative by the decoder norms.
    d_w_norms: Tensor,
}

fn penalty(acts: &Tensor, w_norms: &Tensor, lambda: f64, p: f64) -> Result<Penalty> {
    if p == 1.0 {
        return Ok(Penalty {
            norms: acts.matmul(&w_norms.unsqueeze(1)?)?.squeeze(1)?,
            d_acts: (w_norms.unsqueeze(0)? * lambda)?,
            d_w_norms: (acts.sum(0)? * lambda)?,
        });
    }
    // With y = f n: d|y|_p / dy_i = (y_i / |y|_p)^(p - 1), and 0 where y_i = 0.
    let y = acts.broadcast_mul(w_norms)?;
    let norms = y.powf(p)?.sum_keepdim(1)?.powf(1.0 / p)?;
    let share = y.broadcast_div(&zero_as_one(&norms)?)?;
    let slope = ((zero_as_one(&share)?.powf(p - 1.0)? * above_zero(&share)?)? * lambda)?;
    Ok(Penalty {
        norms: norms.squeeze(1)?,
        d_acts: slope.broadcast_mul(w_norms)?,
        d_w_norms: (slope * acts)?.sum(0)?,
    })
}
