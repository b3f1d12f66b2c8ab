//! What a change at a hook does to the model's predictions.
//!
//! Both runs end in residuals; logits are made of some rows of them at a time, so that (B, P, V) arrays never exist.

use candle_core::Tensor;

use super::loss::{losses_of_rows, next_tokens};
use super::{HookPoint, HookState, Model, ModelError, per_token_kl};

/// Logits of each run that are in memory at once: 64 MiB.
const LOGITS_AT_ONCE: usize = 1 << 24;

/// What one run predicts beside another.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Next-token cross-entropy of the other run in nats, (B, P-1); see [`super::per_token_loss`].
    pub loss: Vec<f32>,
    /// KL(clean || other) in nats, (B, P); see [`per_token_kl`].
    pub kl: Vec<f32>,
}

impl Model {
    /// Goes on from a hook to the end with two states of the same `tokens` (B, P) of u32, and compares the predictions.
    ///
    /// # Errors
    /// As [`Model::run_from_hook`]; or a token is none of the model's, or there are not as many as the states have.
    pub fn compare_from_hook(
        &self,
        clean: &HookState,
        other: &HookState,
        hook: &HookPoint,
        tokens: &Tensor,
    ) -> Result<Comparison, ModelError> {
        let (clean, other) = (self.residual_from_hook(clean, hook)?, self.residual_from_hook(other, hook)?);
        for residual in [&clean, &other] {
            if residual.dims()[..2] != *tokens.dims() {
                return Err(ModelError::InputShape {
                    what: "the tensor of tokens".to_owned(),
                    found: tokens.dims().to_vec(),
                    expected: format!("{:?}, as the states have", &residual.dims()[..2]),
                });
            }
        }
        let vocab_size = self.config().vocab_size;
        let (n_rows, targets) = (tokens.elem_count(), next_tokens(tokens, vocab_size)?);
        // In parts of about equal size: products with a single row may be summed in another order.
        let n_parts = n_rows.div_ceil((LOGITS_AT_ONCE / vocab_size).max(1));
        let rows_at_once = n_rows.div_ceil(n_parts);
        let (clean, other) = (clean.flatten(0, 1)?.unsqueeze(0)?, other.flatten(0, 1)?.unsqueeze(0)?);
        let mut comparison = Comparison { loss: Vec::new(), kl: Vec::new() };
        for first in (0..n_rows).step_by(rows_at_once) {
            let count = rows_at_once.min(n_rows - first);
            let logits = |residual: &Tensor| self.logits(&residual.narrow(1, first, count)?);
            let (clean, other) = (logits(&clean)?, logits(&other)?);
            let here = targets[first..first + count].iter().flatten();
            let here = here.map(|&(row, token)| (row - first, token)).collect();
            comparison.loss.extend(losses_of_rows(&other, here)?.to_vec1::<f32>()?);
            comparison.kl.extend(per_token_kl(&clean, &other)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(comparison)
    }
}
