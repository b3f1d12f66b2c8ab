//! The TopK step and the AbsTopK step: so many latents of every token, whose decoder rows are gathered.
//!
//! Gradients of weights are dense products of the activations, put back where they belong in a (B, F) array: candle
//! adds gathered rows up one after the other (`index_add` walks its indices in one thread for each column), and a
//! product is what GPUs are made for.

use super::{
    auxiliary::{Dead, MadeUp},
    dense::{Context, Found},
    select::{comparable, largest_columns},
    values::{above_zero, not_zero},
};
use crate::kernels::TopKStep;
use candle_core::{DType, Result, Tensor};

/// Numbers of gathered decoder rows at a time, 64 MiB of them in single precision.
const GATHERED: usize = 1 << 24;

/// The step of the `k` largest pre-activations, by their magnitudes in an AbsTopK; see
/// `kernels::reference::topk_step` and `abs_topk_step`.
pub(super) fn topk(
    context: &Context<'_>,
    step: &TopKStep,
    by_magnitude: bool,
    dead: Option<&Dead>,
) -> Result<Found> {
    let x_in = context.x_in()?;
    let pre = context.pre_activations(&x_in)?;
    let (shape, device) = (pre.shape().clone(), pre.device().clone());
    let zeros = || Tensor::zeros(&shape, DType::F32, &device);
    let k = step.k.min(pre.dim(1)?);
    let order = order(context, step, &pre)?;
    let order = if by_magnitude { order.abs()? } else { order };
    let of_dead = dead.map(|dead| dead.columns(&pre, &order)).transpose()?;

    let lists = if k == 0 {
        None
    } else {
        let latents = largest_columns(&comparable(&order)?, k)?;
        let values = pre.contiguous()?.gather(&latents, 1)?;
        // Products, not choices, so that NaN gets through to the loss.
        let values = if by_magnitude { values } else { (&values * above_zero(&values)?)? };
        Some((latents, values))
    };
    drop((order, pre));

    let (acts, mut d_pre, Decoded { reconstruction, errors, g, .. }) = match lists {
        None => {
            let reconstruction = context.params.b_dec.broadcast_as(context.batch.x.shape())?.contiguous()?;
            let (errors, g) = context.batch.compare(&reconstruction)?;
            (zeros()?, zeros()?, Decoded { reconstruction, errors, g, pulls: Vec::new() })
        }
        Some((latents, values)) => {
            let decoded = decode(context, &latents, &values)?;
            let pulls = (Tensor::cat(&decoded.pulls, 0)? * not_zero(&values)?)?;
            (zeros()?.scatter_add(&latents, &values, 1)?, zeros()?.scatter_add(&latents, &pulls, 1)?, decoded)
        }
    };
    let fired = not_zero(&acts)?.sum(0)?;
    let mut w_dec = context.outer(&acts, &g)?;
    drop(acts);
    let mut sparsity = Vec::new();
    if let (Some(dead), Some(columns)) = (dead, of_dead) {
        let error = context.batch.error(&reconstruction)?;
        let made_up = dead.make_up(context, step, columns, &error)?;
        let MadeUp { loss, d_pre: more, w_dec: more_rows } = made_up;
        d_pre = (d_pre + more)?;
        w_dec = (w_dec + more_rows)?;
        sparsity.push((loss, context.batch.scale));
    }
    Ok(Found {
        grads: context.gradients(&x_in, &d_pre, None, w_dec, g.sum(0)?)?,
        reconstruction,
        errors,
        sparsity,
        auxiliary: Vec::new(),
        fired,
        least: None,
        active: None,
    })
}

/// What pre-activations are chosen by, (B, F).
pub(super) fn order(context: &Context<'_>, step: &TopKStep, pre: &Tensor) -> Result<Tensor> {
    if step.rescale_acts_by_decoder_norm {
        pre.broadcast_mul(&context.params.decoder_norms()?)
    } else {
        Ok(pre.clone())
    }
}

/// Reconstructions by gathered rows.
struct Decoded {
    reconstruction: Tensor,
    errors: Tensor,
    g: Tensor,
    /// (b, k) parts of the gradient by the activations.
    pulls: Vec<Tensor>,
}

/// Decodes activations `values` of `latents`, both (B, k), so many tokens at a time that their rows fit into
/// [`GATHERED`]. A token's error needs no other token, so the rows are gathered once for its reconstruction and for
/// its activations' gradients.
fn decode(context: &Context<'_>, latents: &Tensor, values: &Tensor) -> Result<Decoded> {
    let (products, batch) = (context.products, context.batch);
    let (n_tokens, k) = latents.dims2()?;
    let d = context.params.b_dec.dim(0)?;
    let w_dec = products.factor(&context.params.w_dec)?;
    let most = (GATHERED / (k * d)).max(1);
    let (mut reconstructions, mut errors, mut g, mut pulls) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for first in (0..n_tokens).step_by(most) {
        let n = most.min(n_tokens - first);
        let which = latents.narrow(0, first, n)?.contiguous()?.flatten_all()?;
        let rows = w_dec.index_select(&which, 0)?.reshape((n, k, d))?;
        let values = values.narrow(0, first, n)?.contiguous()?.unsqueeze(1)?;
        let made = products.of(&values, &rows)?.squeeze(1)?.broadcast_add(&context.params.b_dec)?;
        let (error, slope) = batch.part(first, n)?.compare(&made)?;
        pulls.push(products.of(&rows, &slope.contiguous()?.unsqueeze(2)?)?.squeeze(2)?);
        reconstructions.push(made);
        errors.push(error);
        g.push(slope);
    }
    Ok(Decoded {
        reconstruction: Tensor::cat(&reconstructions, 0)?,
        errors: Tensor::cat(&errors, 0)?,
        g: Tensor::cat(&g, 0)?,
        pulls,
    })
}
