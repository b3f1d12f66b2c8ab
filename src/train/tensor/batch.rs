//! A batch on the device, and what a reconstruction of it is compared with.

use candle_core::{Device, Result, Tensor};

/// What the reconstruction of each token is compared with, and how often its error counts, where that is not
/// the input itself and 1.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Aim<'a> {
    /// (B, D).
    pub(in super::super) target: &'a [f32],
    /// (B).
    pub(in super::super) weight: &'a [f32],
}

/// A batch.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// (B, D).
    pub(super) x: Tensor,
    /// (B, D) and (B, 1).
    aim: Option<(Tensor, Tensor)>,
    /// One by the number of tokens of the whole batch.
    pub(super) scale: f64,
}

impl Batch {
    /// Uploads the rows `x` (B, D).
    pub(super) fn upload(x: &[f32], d_in: usize, aim: Option<Aim<'_>>, device: &Device) -> Result<Self> {
        let b = x.len() / d_in;
        let upload = |values: &[f32], width| Tensor::from_slice(values, (b, width), device);
        let aim = match aim {
            Some(Aim { target, weight }) => Some((upload(target, d_in)?, upload(weight, 1)?)),
            None => None,
        };
        Ok(Self { x: upload(x, d_in)?, aim, scale: 1.0 / b as f64 })
    }

    /// Tokens here.
    pub(super) fn n_tokens(&self) -> Result<usize> {
        self.x.dim(0)
    }

    /// Tokens `first..first + n`, whose errors count as they do in the whole.
    pub(super) fn part(&self, first: usize, n: usize) -> Result<Self> {
        let aim = match &self.aim {
            Some((target, weight)) => Some((target.narrow(0, first, n)?, weight.narrow(0, first, n)?)),
            None => None,
        };
        Ok(Self { x: self.x.narrow(0, first, n)?, aim, scale: self.scale })
    }

    /// `xhat - t`, (B, D): how far a reconstruction is off, not weighted.
    pub(super) fn error(&self, reconstruction: &Tensor) -> Result<Tensor> {
        reconstruction - self.aim.as_ref().map_or(&self.x, |(target, _)| target)
    }

    /// `w |xhat - t|^2` of each token (B), and the gradient of their mean by the reconstruction (B, D).
    pub(super) fn compare(&self, reconstruction: &Tensor) -> Result<(Tensor, Tensor)> {
        let error = self.error(reconstruction)?;
        match &self.aim {
            None => Ok((error.sqr()?.sum(1)?, (error * (2.0 * self.scale))?)),
            Some((_, weight)) => {
                let weighted = error.broadcast_mul(weight)?;
                Ok(((&weighted * &error)?.sum(1)?, (weighted * (2.0 * self.scale))?))
            }
        }
    }
}
