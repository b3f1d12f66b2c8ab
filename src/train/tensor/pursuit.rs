//! The matching pursuit step: latents one after the other, all tokens at once.
//!
//! Each choice is one product of what is left of the batch with all decoder rows; how much of a row is taken then
//! comes from the row itself, in single precision even where products are not. Tokens that are done take nothing
//! more. The way back undoes the choices, last one first, so residuals are not kept; like the kernels, it follows
//! the gradients by reconstruction and residual as the one difference `h` in which they occur.

use super::{
    dense::{Context, Found},
    params::TensorParams,
    select::{comparable, first_largest},
    values::{above_zero, filled, not_zero},
};
use crate::kernels::MatchingPursuitStep;
use candle_core::{DType, Result, Tensor};

/// After so many choices the host asks whether any token is left, for which it has to wait.
const ASK_EVERY: usize = 8;

/// See `kernels::reference::matching_pursuit_step`.
pub(super) fn matching_pursuit(context: &Context<'_>, step: &MatchingPursuitStep) -> Result<Found> {
    let (w_dec, b_dec) = (&context.params.w_dec, &context.params.b_dec);
    let Pursued { chosen, residual } = pursue(context, step)?;
    let (n_tokens, d_sae) = (residual.dim(0)?, w_dec.dim(0)?);
    let no_latents = Tensor::zeros((n_tokens, d_sae), DType::F32, residual.device())?;

    let of_choices = |part: fn(&Choice) -> &Tensor| {
        let columns: Vec<&Tensor> = chosen.iter().map(part).collect();
        Tensor::cat(&columns, 1)
    };
    let acts = no_latents.scatter_add(
        &of_choices(|choice| &choice.latent)?,
        &of_choices(|choice| &choice.value)?,
        1,
    )?;
    let is_active = not_zero(&acts)?;
    // a b_dec + sum of v_t d_i, without another product.
    let reconstruction = (&context.batch.x - &residual)?;
    let (errors, g) = context.batch.compare(&reconstruction)?;

    // h_T = g;  dv_t = h_(t+1) . d_i;  h_t = h_(t+1) - dv_t d_i;  dd_i += v_t h_(t+1) + dv_t r_t
    let (mut h, mut residual) = (g, residual);
    let mut d_rows = w_dec.zeros_like()?;
    for Choice { latent, value } in chosen.iter().rev() {
        let row = rows(w_dec, latent)?;
        residual = (residual + row.broadcast_mul(value)?)?;
        let d_value = ((&h * &row)?.sum_keepdim(1)? * not_zero(value)?)?;
        let d_row = (h.broadcast_mul(value)? + residual.broadcast_mul(&d_value)?)?;
        // As in TopK: a product with a mask is quicker than rows added up one after the other.
        let mask = no_latents.scatter_add(latent, &value.ones_like()?, 1)?;
        d_rows = (d_rows + context.outer(&mask, &d_row)?)?;
        h = (h - row.broadcast_mul(&d_value)?)?;
    }

    // r_0 = x - a b_dec
    let d_bias = if step.apply_b_dec_to_input { h.sum(0)? } else { b_dec.zeros_like()? };
    let grads = TensorParams {
        b_dec: d_bias,
        w_dec: d_rows,
        w_enc: None,
        b_enc: context.params.b_enc.zeros_like()?,
        threshold: None,
        r_mag: None,
        b_mag: None,
    };
    Ok(Found {
        grads,
        reconstruction,
        errors,
        sparsity: Vec::new(),
        auxiliary: Vec::new(),
        fired: is_active.sum(0)?,
        least: None,
        active: Some(is_active.sum(1)?),
    })
}

/// A choice of every token.
struct Choice {
    /// (B, 1).
    latent: Tensor,
    /// (B, 1) how much of its row is taken; 0 where a token was done before.
    value: Tensor,
}

struct Pursued {
    chosen: Vec<Choice>,
    /// (B, D) what is left in the end.
    residual: Tensor,
}

fn pursue(context: &Context<'_>, step: &MatchingPursuitStep) -> Result<Pursued> {
    let pursuit = &step.pursuit;
    let w_dec = &context.params.w_dec;
    let all_rows = context.products.factor(w_dec)?.t()?;
    let mut residual = context.x_in()?;
    let mut chosen: Vec<Choice> = Vec::new();
    // (B, 1): 1 for a token that is not done.
    let mut goes_on = Tensor::ones((residual.dim(0)?, 1), DType::F32, residual.device())?;
    for nth in 1..=pursuit.iterations(residual.dim(1)?) {
        let latent = first_largest(&comparable(&context.products.of(&residual, &all_rows)?)?)?;
        let row = rows(w_dec, &latent)?;
        let product = (&residual * &row)?.sum_keepdim(1)?;
        // Products, not choices, so that NaN gets through to the loss.
        let value = ((&product * above_zero(&product)?)? * &goes_on)?;
        residual = (residual - row.broadcast_mul(&value)?)?;

        goes_on = (goes_on * not_zero(&value)?)?;
        if pursuit.stop_on_duplicate_support {
            let before: Vec<&Tensor> = chosen.iter().map(|choice| &choice.latent).collect();
            if !before.is_empty() {
                let again = Tensor::cat(&before, 1)?.broadcast_eq(&latent)?.to_dtype(DType::F32)?;
                goes_on = (goes_on * again.sum_keepdim(1)?.eq(0_f32)?.to_dtype(DType::F32)?)?;
            }
        }
        if pursuit.residual_threshold > 0.0 {
            let norm = residual.sqr()?.sum_keepdim(1)?.sqrt()?;
            let is_left = norm.ge(&filled(&norm, pursuit.residual_threshold as f32)?)?;
            goes_on = (goes_on * is_left.to_dtype(DType::F32)?)?;
        }
        chosen.push(Choice { latent, value });
        if nth % ASK_EVERY == 0 && goes_on.sum_all()?.to_scalar::<f32>()? == 0.0 {
            break;
        }
    }
    Ok(Pursued { chosen, residual })
}

/// The rows (B, D) of latents (B, 1).
fn rows(w_dec: &Tensor, latent: &Tensor) -> Result<Tensor> {
    w_dec.index_select(&latent.flatten_all()?, 0)
}
