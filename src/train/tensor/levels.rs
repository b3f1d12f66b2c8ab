//! The BatchTopK step and the Matryoshka step, which is the same with several levels: every prefix of the latents
//! reconstructs the input.
//!
//! A token may have any number of a batch's largest, so there are no lists of equal length to gather rows by, and the
//! host would have to ask for the longest. Decoding is a dense product, as the encoder's is.

use super::{
    auxiliary::Dead,
    dense::{Context, Found},
    select::{Among, MORE, comparable, largest},
    topk::order,
    values::{above_zero, filled},
};
use crate::kernels::BatchTopKStep;
use candle_core::{Result, Tensor, bail};

/// The number of values that are chosen is counted in single precision.
const MOST_KEPT: usize = 1 << 24;

/// Dead latents, and the level whose error they make up for.
pub(super) type DeadOfLevel = (usize, Dead);

/// See `kernels::reference::matryoshka_step`; with one level it is `batch_topk_step`. `widths` rise to F.
pub(super) fn levels(
    context: &Context<'_>,
    step: &BatchTopKStep,
    widths: &[usize],
    dead: &[DeadOfLevel],
) -> Result<Found> {
    let (topk, scale) = (step.as_topk(0), context.batch.scale);
    let x_in = context.x_in()?;
    let pre = context.pre_activations(&x_in)?;
    let order = order(context, &topk, &pre)?;
    let of_dead = dead.iter().map(|(_, dead)| dead.columns(&pre, &order)).collect::<Result<Vec<_>>>()?;
    let Choice { mask, least } = choice(step.kept_of(context.batch.n_tokens()?), &order)?;
    drop(order);
    // A product, not a choice, so that NaN gets through to the loss.
    let acts = (pre * &mask)?;

    // Each level from what the one before came to.
    let mut made = context.params.b_dec.broadcast_as(context.batch.x.shape())?.contiguous()?;
    let (mut levels, mut losses) = (Vec::new(), Vec::new());
    let (mut sparsity, mut made_up) = (Vec::new(), Vec::new());
    let mut of_dead = of_dead.into_iter().zip(dead).peekable();
    let mut first = 0;
    for (nth, &width) in widths.iter().enumerate() {
        let part = acts.narrow(1, first, width - first)?.contiguous()?;
        let rows = context.params.w_dec.narrow(0, first, width - first)?;
        made = (made + context.products.of(&part, &rows)?)?;
        let (errors, g) = context.batch.compare(&made)?;
        losses.push(errors);
        levels.push((part, rows, g));
        while let Some((columns, (_, dead))) = of_dead.next_if(|(_, (level, _))| *level == nth) {
            let found = dead.make_up(context, &topk, columns, &context.batch.error(&made)?)?;
            sparsity.push((found.loss, scale));
            made_up.push((found.d_pre, found.w_dec));
        }
        first = width;
    }
    drop(acts);

    // A latent is pulled by the errors of all levels it belongs to: the sums of their gradients, from the last down.
    let mut g_sum = made.zeros_like()?;
    let (mut pulls, mut outers) = (Vec::new(), Vec::new());
    let mut on_bias = context.params.b_dec.zeros_like()?;
    for (part, rows, g) in levels.iter().rev() {
        g_sum = (g_sum + g)?;
        on_bias = (on_bias + g.sum(0)?)?;
        pulls.push(context.products.of(&g_sum, &rows.t()?)?);
        outers.push(context.outer(part, &g_sum)?);
    }
    pulls.reverse();
    outers.reverse();
    let mut d_pre = (Tensor::cat(&pulls, 1)? * &mask)?;
    let mut w_dec = Tensor::cat(&outers, 0)?;
    for (more, more_rows) in made_up {
        d_pre = (d_pre + more)?;
        w_dec = (w_dec + more_rows)?;
    }
    let Some(errors) = losses.pop() else { bail!("there is no level") };
    Ok(Found {
        grads: context.gradients(&x_in, &d_pre, None, w_dec, on_bias)?,
        reconstruction: made,
        errors,
        sparsity,
        auxiliary: losses.into_iter().map(|errors| (errors, scale)).collect(),
        fired: mask.sum(0)?,
        least: Some(least),
        active: None,
    })
}

/// Which values are kept.
struct Choice {
    /// (B, F).
    mask: Tensor,
    /// (B) the least of each token.
    least: Tensor,
}

/// The `n` largest of `order` (B, F), as far as they are positive.
fn choice(n: usize, order: &Tensor) -> Result<Choice> {
    let order = comparable(order)?;
    let n = n.min(order.elem_count());
    if n >= MOST_KEPT {
        bail!(
            "{n} activations are kept of one batch, of which a GPU can count fewer than {MOST_KEPT}: take smaller batches"
        )
    }
    let mask =
        if n == 0 { order.zeros_like()? } else { (largest(&order, n, Among::Rows)? * above_zero(&order)?)? };
    let least = mask.ne(0_f32)?.where_cond(&order, &filled(&order, MORE)?)?.min(1)?;
    Ok(Choice { mask, least })
}
