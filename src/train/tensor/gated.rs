//! The gated step: gates decide which latents are active, magnitudes by how much. Dense throughout.

use super::{
    dense::{Context, Found},
    params::TensorParams,
    values::above_zero,
};
use crate::kernels::GatedStep;
use candle_core::{Result, Tensor, bail};

/// See `kernels::reference::gated_step`.
pub(super) fn gated(context: &Context<'_>, step: &GatedStep) -> Result<Found> {
    let scale = context.batch.scale;
    let TensorParams { r_mag: Some(r_mag), b_mag: Some(b_mag), .. } = context.params else {
        bail!("a gated SAE has magnitudes")
    };
    let stretch = r_mag.exp()?;
    let x_in = context.x_in()?;
    let h = context.projected(&x_in)?;
    let pi = h.broadcast_add(&context.params.b_enc)?;
    let magnitude = h.broadcast_mul(&stretch)?.broadcast_add(b_mag)?;
    let open = above_zero(&pi)?;
    let active = (&open * above_zero(&magnitude)?)?;
    // Products, not a choice, so that NaN gets through to the losses.
    let gates = (pi * &open)?;
    let acts = (magnitude * &active)?;

    let reconstruction = context.decoded(&acts)?;
    let (errors, g) = context.batch.compare(&reconstruction)?;
    let (errors_of_gates, g_gates) = context.batch.compare(&context.decoded(&gates)?)?;

    let norms = context.params.decoder_norms()?;
    let lambda = step.l1_coefficient * scale;
    let d_gate = (context.pulled(&g_gates)?.broadcast_add(&(&norms * lambda)?)? * open)?;
    let d_magnitude = (context.pulled(&g)? * &active)?;
    let d_h = (&d_gate + d_magnitude.broadcast_mul(&stretch)?)?;
    let w_dec = ((context.outer(&acts, &g)? + context.outer(&gates, &g_gates)?)?
        + context.params.through_norms(&(gates.sum(0)? * lambda)?, &norms)?)?;
    let g_sum = (g.sum(0)? + g_gates.sum(0)?)?;
    let grads = TensorParams {
        r_mag: Some(((&d_magnitude * h)?.sum(0)? * stretch)?),
        b_mag: Some(d_magnitude.sum(0)?),
        ..context.gradients(&x_in, &d_h, Some(d_gate.sum(0)?), w_dec, g_sum)?
    };
    let l1: Tensor = gates.matmul(&norms.unsqueeze(1)?)?.squeeze(1)?;
    Ok(Found {
        grads,
        reconstruction,
        errors,
        sparsity: vec![(l1, lambda)],
        auxiliary: vec![(errors_of_gates, scale)],
        fired: active.sum(0)?,
        least: None,
        active: None,
    })
}
