//! The auxiliary loss of the TopK family: dead latents make up for what the reconstruction left.

use super::{
    dense::Context,
    select::{Among, comparable, largest},
    values::not_zero,
};
use crate::kernels::{NO_VARIANCE, TopKStep};
use candle_core::{Device, Result, Tensor};

/// Dead latents that make up for something.
#[derive(Debug)]
pub(super) struct Dead {
    n: usize,
    /// At most so many are used for a token.
    half: usize,
    /// (n) which they are.
    latents: Tensor,
    /// (F) the place of each latent among them, `n` if it is none.
    places: Tensor,
}

impl Dead {
    /// Those of the flagged latents that are in a range; none where they could not do anything. `half` is half the
    /// target's width.
    pub(super) fn of(
        flags: &[bool],
        range: std::ops::Range<usize>,
        half: usize,
        device: &Device,
    ) -> Result<Option<Self>> {
        let latents: Vec<u32> = range.filter(|&f| flags[f]).map(|f| f as u32).collect();
        let n = latents.len();
        if n.min(half) == 0 {
            return Ok(None);
        }
        let mut places = vec![n as u32; flags.len()];
        latents.iter().enumerate().for_each(|(place, &f)| places[f as usize] = place as u32);
        let latents = Tensor::from_vec(latents, n, device)?;
        Ok(Some(Self { n, half, latents, places: Tensor::from_vec(places, flags.len(), device)? }))
    }

    /// Their columns of `pre` and of `order`, the numbers they are chosen by, both (B, F).
    pub(super) fn columns(&self, pre: &Tensor, order: &Tensor) -> Result<[Tensor; 2]> {
        let columns = |of: &Tensor| of.contiguous()?.index_select(&self.latents, 1);
        Ok([columns(pre)?, columns(order)?])
    }

    /// The loss, for the columns `pre` and `order`, after an error (B, D) of the reconstruction, which is held
    /// constant.
    pub(super) fn make_up(
        &self,
        context: &Context<'_>,
        step: &TopKStep,
        [pre, order]: [Tensor; 2],
        error: &Tensor,
    ) -> Result<MadeUp> {
        let k = self.half.min(self.n);
        let z = if k == self.n {
            pre
        } else {
            // Not a choice but a product, so that NaN gets through to the loss.
            (pre * largest(&comparable(&order)?, k, Among::Row)?)?
        };
        let rows = context.params.w_dec.index_select(&self.latents, 0)?;
        let residual = (error + context.products.of(&z, &rows)?)?;
        let weight = self.weight(step, error, context.batch.scale)?;
        let loss = residual.sqr()?.sum(1)?.broadcast_mul(&weight)?;
        let g = residual.broadcast_mul(&(weight * (2.0 * context.batch.scale))?)?;
        let d_pre = (context.products.of(&g, &rows.t()?)? * not_zero(&z)?)?;
        let d_rows = context.outer(&z, &g)?;
        Ok(MadeUp { loss, d_pre: self.spread(&d_pre, 1)?, w_dec: self.spread(&d_rows, 0)? })
    }

    /// Puts what belongs to dead latents, along one axis, where they are among all, with zeros between. A gather of
    /// places, so that no two writes meet.
    fn spread(&self, values: &Tensor, axis: usize) -> Result<Tensor> {
        values.pad_with_zeros(axis, 0, 1)?.contiguous()?.index_select(&self.places, axis)
    }

    /// Weight of the loss, (1); see `kernels::reference`.
    fn weight(&self, step: &TopKStep, error: &Tensor, scale: f64) -> Result<Tensor> {
        let c = step.aux_loss_coefficient;
        if !step.normalize_aux_loss {
            let weight = c * (self.n as f64 / self.half as f64).min(1.0);
            return Tensor::from_slice(&[weight as f32], 1, error.device());
        }
        let total = |squares: Tensor| squares.sum(1)?.sum_keepdim(0)? * scale;
        let mean = (error.sum_keepdim(0)? * scale)?;
        let variance = total(error.broadcast_sub(&mean)?.sqr()?)?;
        let least = (total(error.sqr()?)? * NO_VARIANCE)?;
        let weight = (variance.recip()? * c)?;
        variance.gt(&least)?.where_cond(&weight, &weight.zeros_like()?)
    }
}

/// What an auxiliary loss comes to.
#[derive(Debug)]
pub(super) struct MadeUp {
    /// (B), to be averaged.
    pub(super) loss: Tensor,
    /// (B, F).
    pub(super) d_pre: Tensor,
    /// (F, D).
    pub(super) w_dec: Tensor,
}
