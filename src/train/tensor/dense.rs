//! What every architecture's gradients are made of: the encoder before, the gradients of weights after.

use super::{batch::Batch, params::TensorParams, values::Products};
use candle_core::{Result, Tensor};

/// A batch's gradients and what its losses are made of, on the device.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) grads: TensorParams,
    /// (B, D).
    pub(super) reconstruction: Tensor,
    /// (B) weighted squared error of each token.
    pub(super) errors: Tensor,
    /// The sparsity loss is the sum of each of these (any length) times its factor.
    pub(super) sparsity: Vec<(Tensor, f64)>,
    /// The same of the second own loss; in a Matryoshka SAE one for each level but the last.
    pub(super) auxiliary: Vec<(Tensor, f64)>,
    /// (F) tokens on which each latent is active.
    pub(super) fired: Tensor,
    /// (B) the least values kept, or more than any value; where a choice over the batch was made.
    pub(super) least: Option<Tensor>,
    /// (B) latents that are active on each token; where the spread of that is logged.
    pub(super) active: Option<Tensor>,
}

/// What a step needs besides its own settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) products: Products,
    pub(super) params: &'a TensorParams,
    pub(super) batch: &'a Batch,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub(super) apply_b_dec_to_input: bool,
}

impl Context<'_> {
    /// `x - a b_dec`, (B, D).
    pub(super) fn x_in(&self) -> Result<Tensor> {
        let Batch { x, .. } = self.batch;
        if self.apply_b_dec_to_input { x.broadcast_sub(&self.params.b_dec) } else { Ok(x.clone()) }
    }

    /// `x_in W_enc^T`, (B, F).
    pub(super) fn projected(&self, x_in: &Tensor) -> Result<Tensor> {
        self.products.of(x_in, &self.params.w_enc()?.t()?)
    }

    /// `x_in W_enc^T + b_enc`, (B, F).
    pub(super) fn pre_activations(&self, x_in: &Tensor) -> Result<Tensor> {
        self.projected(x_in)?.broadcast_add(&self.params.b_enc)
    }

    /// `acts W_dec + b_dec`, (B, D).
    pub(super) fn decoded(&self, acts: &Tensor) -> Result<Tensor> {
        self.products.of(acts, &self.params.w_dec)?.broadcast_add(&self.params.b_dec)
    }

    /// `g W_dec^T`, (B, F): the gradient by activations of one by their reconstruction.
    pub(super) fn pulled(&self, g: &Tensor) -> Result<Tensor> {
        self.products.of(g, &self.params.w_dec.t()?)
    }

    /// `acts^T g`, (F, D): the gradient of decoder rows.
    pub(super) fn outer(&self, acts: &Tensor, g: &Tensor) -> Result<Tensor> {
        self.products.of(&acts.t()?, g)
    }

    /// All gradients, given that by what the encoder's weights make (B, F), that of its bias (F) where it is not
    /// the sum of the former, the decoder's (F, D), and the sum over tokens of that by the reconstruction (D).
    pub(super) fn gradients(
        &self,
        x_in: &Tensor,
        d_projected: &Tensor,
        d_bias: Option<Tensor>,
        w_dec: Tensor,
        g_sum: Tensor,
    ) -> Result<TensorParams> {
        let d_sum = d_projected.sum(0)?;
        let b_dec = if self.apply_b_dec_to_input {
            // In single precision always: it is one row.
            (g_sum - d_sum.unsqueeze(0)?.matmul(self.params.w_enc()?)?.squeeze(0)?)?
        } else {
            g_sum
        };
        Ok(TensorParams {
            b_dec,
            w_dec,
            w_enc: Some(self.outer(d_projected, x_in)?),
            b_enc: d_bias.unwrap_or(d_sum),
            threshold: None,
            r_mag: None,
            b_mag: None,
        })
    }
}
