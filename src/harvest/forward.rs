//! Sequences through the model to the hook.

use super::HarvestError;
use crate::model::{HookState, Hooks, Model};
use candle_core::{Device, Tensor};

/// Tokens in one pass through the model: enough for large matrix products, little enough to stay in memory.
const TOKENS_PER_FORWARD: usize = 4096;

/// A model with the place in it, or the two places.
pub(crate) struct Forward<'a> {
    pub(crate) model: &'a Model,
    pub(crate) hooks: Hooks,
    /// Of a row: the activations at the input hook, then those at the output hook, where there is one.
    pub(crate) width: usize,
    pub(crate) context_size: usize,
}

impl Forward<'_> {
    /// Sequences in one pass.
    pub(crate) fn batch(&self) -> usize {
        (TOKENS_PER_FORWARD / self.context_size).max(1)
    }

    /// Tokens of whole sequences, one after the other, as (B, P).
    pub(crate) fn tokens(&self, tokens: &[u32]) -> Result<Tensor, HarvestError> {
        let shape = (tokens.len() / self.context_size, self.context_size);
        Ok(Tensor::from_slice(tokens, shape, &Device::Cpu)?)
    }

    /// Rows (B, P, width), and the state at the hook where reconstructions are put in, all from one pass.
    pub(crate) fn to_hook(&self, tokens: &Tensor) -> Result<(Tensor, HookState), HarvestError> {
        let (rows, state) = match &self.hooks.output {
            None => {
                let state = self.model.run_to_hook(tokens, &self.hooks.input)?;
                (state.acts.clone(), state)
            }
            Some(output) => {
                let (input, state) = self.model.run_to_hooks(tokens, &self.hooks.input, output)?;
                (Tensor::cat(&[&input, &state.acts], 2)?, state)
            }
        };
        let (sequences, positions) = tokens.dims2()?;
        debug_assert_eq!(rows.dims(), [sequences, positions, self.width]);
        Ok((rows, state))
    }

    /// Appends the activations of these sequences, row after row.
    pub(crate) fn append_rows(&self, tokens: &[u32], rows: &mut Vec<f32>) -> Result<(), HarvestError> {
        append(&self.to_hook(&self.tokens(tokens)?)?.0, rows)
    }
}

/// Appends the numbers of a tensor in their order.
pub(crate) fn append(tensor: &Tensor, out: &mut Vec<f32>) -> Result<(), HarvestError> {
    out.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}
