//! The parameters of an SAE on a device.

use super::values::{keep, zero_as_one};
use crate::kernels::{AdamStep, Params};
use candle_core::{Device, Error, Result, Tensor};

/// One tensor per parameter of an SAE, in the order of [`Params::NAMES`]; the weights are (F, D).
#[derive(Debug, Clone)]
pub(super) struct TensorParams {
    pub(super) b_dec: Tensor,
    pub(super) w_dec: Tensor,
    /// None where the encoder is the decoder's transpose.
    pub(super) w_enc: Option<Tensor>,
    pub(super) b_enc: Tensor,
    /// (F) in a JumpReLU.
    pub(super) threshold: Option<Tensor>,
    /// (F) in a gated SAE.
    pub(super) r_mag: Option<Tensor>,
    /// (F) in a gated SAE.
    pub(super) b_mag: Option<Tensor>,
}

impl TensorParams {
    pub(super) fn upload(params: &Params, device: &Device) -> Result<Self> {
        let (f, d) = (params.d_sae(), params.d_in());
        let weights = |values: &[f32]| Tensor::from_slice(values, (f, d), device);
        let of_latents = |values: &[f32]| match values {
            [] => Ok(None),
            values => Tensor::from_slice(values, f, device).map(Some),
        };
        Ok(Self {
            b_dec: Tensor::from_slice(&params.b_dec, d, device)?,
            w_dec: weights(&params.w_dec)?,
            w_enc: if params.is_tied() { None } else { Some(weights(&params.w_enc)?) },
            b_enc: Tensor::from_slice(&params.b_enc, f, device)?,
            threshold: of_latents(&params.threshold)?,
            r_mag: of_latents(&params.r_mag)?,
            b_mag: of_latents(&params.b_mag)?,
        })
    }

    pub(super) fn download(&self, params: &mut Params) -> Result<()> {
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let if_any = |tensor: &Option<Tensor>| tensor.as_ref().map_or(Ok(Vec::new()), flat);
        params.b_dec = flat(&self.b_dec)?;
        params.w_dec = flat(&self.w_dec)?;
        params.w_enc = if_any(&self.w_enc)?;
        params.b_enc = flat(&self.b_enc)?;
        params.threshold = if_any(&self.threshold)?;
        params.r_mag = if_any(&self.r_mag)?;
        params.b_mag = if_any(&self.b_mag)?;
        Ok(())
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &Tensor> {
        let own = [&self.threshold, &self.r_mag, &self.b_mag].into_iter().flatten();
        [&self.b_dec, &self.w_dec].into_iter().chain(&self.w_enc).chain([&self.b_enc]).chain(own)
    }

    fn each_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let own = [&mut self.threshold, &mut self.r_mag, &mut self.b_mag].into_iter().flatten();
        let of_decoder = [&mut self.b_dec, &mut self.w_dec].into_iter();
        of_decoder.chain(&mut self.w_enc).chain([&mut self.b_enc]).chain(own)
    }

    /// `|W_dec,i|` for every latent, (F).
    pub(super) fn decoder_norms(&self) -> Result<Tensor> {
        norms_of_rows(&self.w_dec)
    }

    /// What gradients of decoder norms (F) come to in the rows, (F, D): a norm's gradient is its row divided by it,
    /// and 0 for a row of zeros.
    pub(super) fn through_norms(&self, d_norms: &Tensor, norms: &Tensor) -> Result<Tensor> {
        self.w_dec.broadcast_mul(&(d_norms / zero_as_one(norms)?)?.unsqueeze(1)?)
    }

    /// (F, D) the encoder's weights.
    ///
    /// # Errors
    /// It has none of its own.
    pub(super) fn w_enc(&self) -> Result<&Tensor> {
        self.w_enc.as_ref().ok_or_else(|| Error::msg("the encoder has no weights of its own"))
    }

    /// L2 norm of everything together, (1).
    pub(super) fn norm(&self) -> Result<Tensor> {
        let mut squares = Vec::new();
        for tensor in self.each() {
            let rows = if tensor.rank() == 2 { tensor.sqr()?.sum(1)? } else { tensor.sqr()? };
            squares.push(rows.sum_keepdim(0)?);
        }
        Tensor::cat(&squares, 0)?.sum_keepdim(0)?.sqrt()
    }

    /// Gradients without the part of each decoder row's that only changes the length of its row in `params`.
    pub(super) fn without_parallel(mut self, params: &Self) -> Result<Self> {
        let along = (&self.w_dec * &params.w_dec)?.sum_keepdim(1)?;
        let squares = params.w_dec.sqr()?.sum_keepdim(1)?;
        let along = (along / zero_as_one(&squares)?)?;
        self.w_dec = (&self.w_dec - params.w_dec.broadcast_mul(&along)?)?;
        Ok(self)
    }
}

/// The parameters in training.
#[derive(Debug)]
pub(super) struct State {
    pub(super) params: TensorParams,
    pub(super) m: TensorParams,
    pub(super) v: TensorParams,
}

impl State {
    /// Clips and updates, as `torch.nn.utils.clip_grad_norm_` and `torch.optim.Adam` do, where `ok` (1), a flag,
    /// is up; else nothing changes. `grad_norm` is (1). The host need not know either number for that. With
    /// `unit_rows` the decoder's rows are of norm 1 afterwards.
    pub(super) fn update(
        &mut self,
        adam: &AdamStep,
        grads: &TensorParams,
        grad_norm: &Tensor,
        ok: &Tensor,
        unit_rows: bool,
    ) -> Result<()> {
        // min(1, max / (norm + 1e-6))
        let clip = ((grad_norm + 1e-6)?.recip()? * adam.max_grad_norm)?.minimum(1_f32)?;
        let bias1 = 1.0 - adam.beta1.powf(adam.t as f64);
        let bias2 = (1.0 - adam.beta2.powf(adam.t as f64)).sqrt();
        let state = self.params.each_mut().zip(self.m.each_mut()).zip(self.v.each_mut());
        for (nth, (((param, m), v), grad)) in state.zip(grads.each()).enumerate() {
            let grad = grad.broadcast_mul(&clip)?;
            let m_new = ((&*m * adam.beta1)? + (&grad * (1.0 - adam.beta1))?)?;
            let v_new = ((&*v * adam.beta2)? + (grad.sqr()? * (1.0 - adam.beta2))?)?;
            let denominator = ((v_new.sqrt()? / bias2)? + adam.eps)?;
            let mut new = (&*param - ((&m_new / denominator)? * (adam.lr / bias1))?)?;
            if unit_rows && nth == W_DEC {
                new = new.broadcast_div(&zero_as_one(&norms_of_rows(&new)?)?.unsqueeze(1)?)?;
            }
            *param = keep(ok, &new, param)?;
            *m = keep(ok, &m_new, m)?;
            *v = keep(ok, &v_new, v)?;
        }
        Ok(())
    }
}

/// Place of the decoder's weights among the parameters.
const W_DEC: usize = 1;

fn norms_of_rows(rows: &Tensor) -> Result<Tensor> {
    rows.sqr()?.sum(1)?.sqrt()
}
