//! Small functions of tensors, and products.

use candle_core::{DType, Result, Tensor};

/// What the big products are computed in. Everything else is in single precision, and so are parameters and moments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Products {
    /// Of the factors; a device adds up in single precision, where it can, and rounds the sum to it.
    dtype: DType,
}

impl Products {
    /// In bfloat16 with `autocast`, as `torch.autocast` does, else in single precision.
    pub(super) fn new(autocast: bool) -> Self {
        Self { dtype: if autocast { DType::BF16 } else { DType::F32 } }
    }

    /// A factor of several products, in the precision that they need.
    pub(super) fn factor(self, values: &Tensor) -> Result<Tensor> {
        values.to_dtype(self.dtype)
    }

    /// `a b`, of two matrices or of two batches of them. Both may be views with the last two axes swapped.
    pub(super) fn of(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.factor(a)?.matmul(&self.factor(b)?)?.to_dtype(DType::F32)
    }
}

/// 1 where a value is above 0, else 0.
pub(super) fn above_zero(values: &Tensor) -> Result<Tensor> {
    values.gt(0_f32)?.to_dtype(values.dtype())
}

/// 1 where a value is not 0, else 0.
pub(super) fn not_zero(values: &Tensor) -> Result<Tensor> {
    values.ne(0_f32)?.to_dtype(values.dtype())
}

/// The values, with 1 in place of every 0.
pub(super) fn zero_as_one(values: &Tensor) -> Result<Tensor> {
    values + values.eq(0_f32)?.to_dtype(values.dtype())?
}

/// A view of one number in the shape of `like`.
pub(super) fn filled(like: &Tensor, value: f32) -> Result<Tensor> {
    Tensor::full(value, (), like.device())?.broadcast_as(like.shape())
}

/// `new` where the flag (1) is up, else `old`, whatever `new` is then.
pub(super) fn keep(flag: &Tensor, new: &Tensor, old: &Tensor) -> Result<Tensor> {
    flag.broadcast_as(new.shape())?.where_cond(new, old)
}
