//! Evaluation of a trained SAE on the held-out part of its store.
//!
//! [`evaluate`] gives the metrics of `metric.rs` under SAELens' names. Special tokens count unless
//! `eval.exclude_special_tokens` says otherwise; then they keep their own activations and are left out of
//! every mean, as in SAELens 6.54 (`get_downstream_reconstruction_metrics`, `get_sparsity_and_variance_metrics`).

mod behaviour;
mod density;
mod reconstruction;

pub use density::{DENSITY_BINS, log10_histogram, share_above};
pub use reconstruction::ReconstructionSums;

use crate::{
    kernels::{Pool, Shape, Workspace},
    model::{Model, ModelError},
    sae::Sae,
    store::{Store, StoreError},
    trial::TrialConfig,
};
use behaviour::BehaviourSums;
use std::{collections::BTreeMap, path::Path};

/// Tokens whose reconstructions are in memory at once; logits take (tokens × vocabulary × 4) bytes twice.
const TOKENS_AT_ONCE: usize = 1024;

/// A latent that fires on more than this share of tokens is dense.
const DENSE_FREQUENCY: f64 = 0.1;

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Metrics by name; those that are not numbers are absent.
    pub metrics: BTreeMap<String, f64>,
    /// Latents per half decade of firing frequency, see [`log10_histogram`].
    pub log10_density: Vec<u64>,
}

/// Why an evaluation could not be done.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tensor operation failed.
    #[error("tensor operation failed in the evaluation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The SAE was trained on something else.
    #[error("the SAE takes activations of width {sae}, the store holds width {store}")]
    Width {
        /// `d_in` of the SAE.
        sae: usize,
        /// Width of the stored activations.
        store: usize,
    },
}

/// Evaluates `sae` on the held-out part of `store`, running the model at `model_path` from the hook on.
///
/// # Errors
/// When the model, the store or the SAE cannot be used, or their widths differ.
pub fn evaluate(
    model_path: &Path,
    store: &Store,
    sae: &Sae,
    cfg: &TrialConfig,
    pool: &Pool,
) -> Result<Evaluation, EvalError> {
    if sae.d_in != store.width() {
        return Err(EvalError::Width { sae: sae.d_in, store: store.width() });
    }
    let model = Model::load(model_path)?;
    let hook = model.config().hook(&cfg.model.hook)?;
    let held_out = store.eval()?;
    let (context, width) = (held_out.context_size, held_out.width);
    let n_sequences = held_out.tokens.len() / context;
    let at_once = (TOKENS_AT_ONCE / context).clamp(1, n_sequences);

    let mut workspace =
        Workspace::new(Shape { d_in: width, d_sae: sae.cfg.d_sae, batch: at_once * context }, pool);
    let mut reconstruction = ReconstructionSums::new(width);
    let mut behaviour = BehaviourSums::default();
    let mut fires = vec![0_u64; sae.cfg.d_sae];
    let mut x_hat = vec![0.0_f32; at_once * context * width];
    for first in (0..n_sequences).step_by(at_once) {
        let n = at_once.min(n_sequences - first);
        let rows = first * context..(first + n) * context;
        let keep: Vec<bool> = held_out.tokens[rows.clone()]
            .iter()
            .map(|token| !(cfg.eval.exclude_special_tokens && held_out.special_ids.contains(token)))
            .collect();
        let x = &held_out.acts[rows.start * width..rows.end * width];
        let x_hat = &mut x_hat[..x.len()];
        let acts = sae.reconstruct(pool, &mut workspace, x, x_hat);

        let mut l0 = vec![0_u32; keep.len()];
        let mut l1 = vec![0.0_f64; keep.len()];
        for token in (0..keep.len()).filter(|&token| keep[token]) {
            for entry in acts.row_start[token]..acts.row_start[token + 1] {
                if acts.value[entry] != 0.0 {
                    l0[token] += 1;
                    l1[token] += f64::from(acts.value[entry].abs());
                    fires[acts.latent[entry] as usize] += 1;
                }
            }
        }
        reconstruction.add_batch(x, x_hat, &keep, &l0, &l1);
        behaviour.add_sequences(&model, &hook, &held_out, first, x_hat, &keep)?;
    }

    let tokens = reconstruction.tokens();
    let mut metrics = reconstruction.metrics();
    metrics.append(&mut behaviour.metrics());
    metrics.insert("dense_share".to_owned(), share_above(&fires, tokens, DENSE_FREQUENCY));
    Ok(Evaluation { metrics, log10_density: log10_histogram(&fires, tokens) })
}
