//! Why there is no store.

use crate::{data::DataError, model::ModelError, source::SourceError, store::StoreError};
use thiserror::Error;

/// What can stop a store from being built.
#[derive(Debug, Error)]
pub enum HarvestError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Rows that need no model.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A model's store was asked for where there is none, or the reverse.
    #[error("activations.source is \"{0}\", which takes no language model")]
    TakesNoModel(&'static str),
    /// See [`Self::TakesNoModel`].
    #[error("activations.source is \"model\", which needs a language model and data")]
    NeedsModel,
    /// A tensor operation.
    #[error("a tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Longer sequences than the model can take.
    #[error(
        "data.context_size is {context_size}, and model `{model}` takes at most {n_ctx} tokens at a time"
    )]
    ContextTooLong {
        /// The setting.
        context_size: usize,
        /// The model as the sweep names it.
        model: String,
        /// Its limit.
        n_ctx: usize,
    },
    /// The data does not fill one batch.
    #[error(
        "the store has {rows} rows, fewer than train.batch_size = {batch_size}; use more data, a larger store.tokens, \
         or a smaller batch"
    )]
    TooFewRows {
        /// Rows of the store.
        rows: u64,
        /// The setting.
        batch_size: usize,
    },
    /// The model computes nonsense on held-out data.
    #[error("the model's loss {what} is {loss} in held-out sequence {sequence} at position {position}")]
    NotFinite {
        /// Which of its runs.
        what: &'static str,
        /// The loss.
        loss: f32,
        /// Index of the sequence.
        sequence: usize,
        /// Position in the sequence.
        position: usize,
    },
    /// The caller asked to stop. Shards that are whole are kept; the next build goes on after them.
    #[error("interrupted")]
    Interrupted,
}
