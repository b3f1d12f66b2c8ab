//! The JumpReLU step: latents above thresholds of their own. Dense throughout.

use super::{
    dense::{Context, Found},
    params::TensorParams,
    values::{above_zero, filled},
};
use crate::kernels::{JumpReluStep, SparsityMode};
use candle_core::{DType, Result, Tensor, bail};

/// Below 0 a threshold would let negative pre-activations through.
pub(super) fn raise_thresholds(params: &mut TensorParams) -> Result<()> {
    if let Some(threshold) = &mut params.threshold {
        *threshold = threshold.lt(0_f32)?.where_cond(&filled(threshold, 0.0)?, threshold)?;
    }
    Ok(())
}

/// See `kernels::reference::jumprelu_step`; `dead` has one flag per latent.
pub(super) fn jumprelu(context: &Context<'_>, step: &JumpReluStep, dead: &[bool]) -> Result<Found> {
    let scale = context.batch.scale;
    let Some(theta) = &context.params.threshold else { bail!("a JumpReLU has thresholds") };
    let x_in = context.x_in()?;
    let pre = context.pre_activations(&x_in)?;
    let from_edge = pre.broadcast_sub(theta)?;
    let active = above_zero(&from_edge)?;
    // A product, not a choice, so that NaN gets through to the loss.
    let acts = (&pre * &active)?;
    let reconstruction = context.decoded(&acts)?;
    let (errors, g) = context.batch.compare(&reconstruction)?;

    let norms = context.params.decoder_norms()?;
    let lambda = step.l0_coefficient * scale;
    let mut d_act = context.pulled(&g)?;
    let mut d_norms = None;
    // By how much the loss rises with the step function of any latent of a token: a number, or (B, 1).
    let mut d_step = Jump::Number(0.0);
    let sparsity = match step.mode {
        SparsityMode::Step => {
            d_step = Jump::Number(lambda);
            (active.sum(1)?, lambda)
        }
        SparsityMode::Quadratic { target_l0 } => {
            let above = (active.sum_keepdim(1)? - target_l0)?;
            d_step = Jump::OfToken((&above * (lambda * 4.0 / target_l0))?);
            (above.sqr()?.squeeze(1)?, lambda * 2.0 / target_l0)
        }
        SparsityMode::Tanh { scale } => {
            let tanh = (acts.broadcast_mul(&norms)? * scale)?.tanh()?;
            let slope = ((1.0 - tanh.sqr()?)? * (lambda * scale))?;
            d_act = (d_act + slope.broadcast_mul(&norms)?)?;
            d_norms = Some((slope * &acts)?.sum(0)?);
            (tanh.sum(1)?, lambda)
        }
    };

    // jump = (theta d_act + d_step) / bandwidth, within half a bandwidth of the threshold.
    let near = from_edge.abs()?.lt((0.5 * step.bandwidth) as f32)?.to_dtype(DType::F32)?;
    let jump = d_act.broadcast_mul(theta)?;
    let jump = match &d_step {
        Jump::Number(d_step) => (jump + *d_step)?,
        Jump::OfToken(d_step) => jump.broadcast_add(d_step)?,
    };
    let jump = ((jump * near)? / step.bandwidth)?;
    let mut d_threshold = jump.sum(0)?.neg()?;
    let mut d_pre = (d_act * &active)?;
    if step.ste_to_input {
        d_pre = (d_pre + jump)?;
    }

    let mut auxiliary = Vec::new();
    if step.pre_act_loss_coefficient != 0.0 && dead.contains(&true) {
        // c mean_b sum_i relu(theta_i - pre_bi) dead_i n_i
        let weight = step.pre_act_loss_coefficient * scale;
        let flags: Vec<f32> = dead.iter().map(|&is_dead| f32::from(u8::from(is_dead))).collect();
        let flags = Tensor::from_slice(&flags, (1, flags.len()), pre.device())?;
        let hit = from_edge.lt(0_f32)?.to_dtype(DType::F32)?.broadcast_mul(&flags)?;
        let below = (from_edge * &hit)?.neg()?;
        d_pre = (d_pre - hit.broadcast_mul(&(&norms * weight)?)?)?;
        d_threshold = (d_threshold + (hit.sum(0)? * (&norms * weight)?)?)?;
        let more = (below.sum(0)? * weight)?;
        d_norms = Some(match d_norms {
            Some(d_norms) => (d_norms + more)?,
            None => more,
        });
        auxiliary.push((below.matmul(&norms.unsqueeze(1)?)?.squeeze(1)?, weight));
    }

    let mut w_dec = context.outer(&acts, &g)?;
    if let Some(d_norms) = d_norms {
        w_dec = (w_dec + context.params.through_norms(&d_norms, &norms)?)?;
    }
    let grads = TensorParams {
        threshold: Some(d_threshold),
        ..context.gradients(&x_in, &d_pre, None, w_dec, g.sum(0)?)?
    };
    Ok(Found {
        grads,
        reconstruction,
        errors,
        sparsity: vec![sparsity],
        auxiliary,
        fired: active.sum(0)?,
        least: None,
        active: None,
    })
}

/// What a step function's rise by 1 adds to the loss.
enum Jump {
    Number(f64),
    /// (B, 1).
    OfToken(Tensor),
}
