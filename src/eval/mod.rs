//! Evaluation of a trained SAE on the held-out part of its store.
//!
//! [`evaluate`] gives the metrics of `metric.rs` under SAELens' names. Special tokens count unless
//! `eval.exclude_special_tokens` says otherwise; then they keep their own activations and are left out of
//! every mean, as in SAELens 6.54 (`get_downstream_reconstruction_metrics`, `get_sparsity_and_variance_metrics`).
//! Read [`evaluate`] first; `tests/it/eval_golden.rs` holds it to what SAELens finds.

mod behaviour;
mod density;
mod evaluate;
mod latents;
mod reconstruction;
mod recovery;

pub use density::{DENSITY_BINS, log10_histogram, share_above};
pub use evaluate::{BATCH_ROWS, BATCH_SEQUENCES, EvalError, Evaluation, evaluate};
pub use reconstruction::{BatchSums, ReconstructionSums};
pub use recovery::recovery;
