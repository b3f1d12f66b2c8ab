//! The way of the held-out part through SAE and model, piece by piece.

use super::{
    behaviour::BehaviourSums,
    density::{log10_histogram, share_above},
    latents::LatentCounts,
    reconstruction::ReconstructionSums,
    recovery::recovery,
};
use crate::{
    kernels::{Pool, Shape, Workspace},
    model::{Model, ModelError},
    sae::{self, Sae},
    store::{EvalView, SourceIdentity, Store, StoreError},
    trial::EvalConfig,
};
use std::{borrow::Cow, collections::BTreeMap, ops::Range, path::Path};

/// Sequences of a batch, as far as metrics depend on batches: SAELens' default (`store_batch_size_prompts`).
/// How much is in memory at once is another matter, so that no metric depends on it.
pub const BATCH_SEQUENCES: usize = 32;

/// The same for rows that belong to no sequence: as many as that many sequences of usual length hold.
pub const BATCH_ROWS: usize = 4096;

/// Tokens whose latents, reconstructions and residuals are in memory at once.
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
    /// The store needs a model.
    #[error("the activations are a language model's, and no model was given")]
    NoModel,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tensor operation failed.
    #[error("tensor operation failed in the evaluation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The SAE was trained on something else.
    #[error("the SAE takes activations of width {sae}, the store holds width {store}")]
    Width {
        /// `d_in` of the SAE, and `d_out` of a transcoder.
        sae: String,
        /// Width of the stored activations, or widths.
        store: String,
    },
}

/// Evaluates `sae` on the held-out part of `store`; a transcoder's reconstructions are held against its outputs and
/// take their place in the model. Where its rows are a language model's, that model at
/// `model_path` is run from the hook on; where true features are known, the SAE is held against them.
///
/// # Errors
/// When the model, the store or the SAE cannot be used, or their widths differ.
pub fn evaluate(
    model_path: Option<&Path>,
    store: &Store,
    sae: &Sae,
    settings: &EvalConfig,
    pool: &Pool,
) -> Result<Evaluation, EvalError> {
    if (sae.d_in, sae.d_out) != (store.d_in(), store.d_out()) {
        let (sae, store) = (widths(sae.d_in, sae.d_out), widths(store.d_in(), store.d_out()));
        return Err(EvalError::Width { sae, store });
    }
    let model = match &store.header().identity.source {
        SourceIdentity::Model(identity) => {
            let path = model_path.ok_or(EvalError::NoModel)?;
            let hooks = Model::header(path)?.hooks_of(&identity.hook, identity.hook_out.as_deref())?;
            let hook = hooks.replaced();
            Some((Model::load_from(path, &hook)?, hook))
        }
        SourceIdentity::Toy { .. } | SourceIdentity::Files { .. } => None,
    };
    let held_out = store.eval()?;
    let (context, n_sequences) = (held_out.context_size, held_out.sequences);
    let rows = Rows { held_out: &held_out, d_out: sae.d_out };
    let width = sae.out_width();
    let batch_sequences = batch_sequences(&held_out);
    let at_once = sequences_at_once(context).min(batch_sequences).min(n_sequences).max(1);

    let mut workspace =
        Workspace::new(Shape { d_in: sae.width(), d_sae: sae.cfg.d_sae, batch: at_once * context }, pool);
    let mut reconstruction = ReconstructionSums::new(width);
    let mut behaviour = BehaviourSums::default();
    let mut latents = LatentCounts::new(sae);
    let mut x_hat = vec![0.0_f32; at_once * context * width];
    for batch_first in (0..n_sequences).step_by(batch_sequences) {
        let batch_end = (batch_first + batch_sequences).min(n_sequences);
        let is_special =
            |row: usize| held_out.tokens.get(row).is_some_and(|token| held_out.special_ids.contains(token));
        let keep: Vec<bool> = (batch_first * context..batch_end * context)
            .map(|row| !(settings.exclude_special_tokens && is_special(row)))
            .collect();
        let targets = rows.outputs(batch_first, batch_end);
        let mut batch = reconstruction.batch(batch_end - batch_first, &targets, &keep);
        for first in (batch_first..batch_end).step_by(at_once) {
            let end = (first + at_once).min(batch_end);
            let keep = &keep[(first - batch_first) * context..(end - batch_first) * context];
            let (x, target) = (rows.inputs(first, end), rows.outputs(first, end));
            let x_hat = &mut x_hat[..target.len()];
            let acts = sae.reconstruct(pool, &mut workspace, &x, x_hat);
            let (l0, l1) = latents.add(&acts, keep);
            batch.add(&target, x_hat, keep, &l0, &l1);
            if let Some((model, hook)) = &model {
                behaviour.add_sequences(model, hook, &held_out, first, &target, x_hat, keep)?;
            }
        }
        batch.finish();
    }

    let fires = latents.fires;
    let tokens = reconstruction.tokens();
    let mut metrics = reconstruction.metrics();
    if model.is_some() {
        metrics.append(&mut behaviour.metrics());
    }
    if let Some(truth) = store.truth()? {
        metrics.append(&mut recovery(&truth, &sae.params.w_dec, &fires, pool));
    }
    metrics.insert("dense_share".to_owned(), share_above(&fires, tokens, DENSE_FREQUENCY));
    Ok(Evaluation { metrics, log10_density: log10_histogram(&fires, tokens) })
}

fn widths(d_in: usize, d_out: Option<usize>) -> String {
    d_out.map_or_else(|| d_in.to_string(), |d_out| format!("{d_in} -> {d_out}"))
}

/// The held-out rows, which are a transcoder's where there is a width of outputs.
struct Rows<'a> {
    held_out: &'a EvalView<'a>,
    d_out: Option<usize>,
}

impl Rows<'_> {
    /// What is read in some sequences, row after row.
    fn inputs(&self, from: usize, to: usize) -> Cow<'_, [f32]> {
        self.part(from, to, 0..self.held_out.width - self.d_out.unwrap_or(0))
    }

    /// What is to be reconstructed there.
    fn outputs(&self, from: usize, to: usize) -> Cow<'_, [f32]> {
        self.part(from, to, self.d_out.map_or(0, |d_out| self.held_out.width - d_out)..self.held_out.width)
    }

    fn part(&self, from: usize, to: usize, part: Range<usize>) -> Cow<'_, [f32]> {
        let EvalView { context_size, width, acts, .. } = *self.held_out;
        let rows = &acts[from * context_size * width..to * context_size * width];
        if part.len() == width {
            return Cow::Borrowed(rows);
        }
        let mut out = Vec::new();
        sae::columns(rows, width, part.clone(), part.len(), &mut out);
        Cow::Owned(out)
    }
}

/// Sequences of a batch. Rows that belong to no sequence come in batches of [`BATCH_ROWS`].
fn batch_sequences(held_out: &EvalView<'_>) -> usize {
    if held_out.tokens.is_empty() { BATCH_ROWS } else { BATCH_SEQUENCES }
}

/// Sequences that go through SAE and model together; more than a batch never do.
fn sequences_at_once(context: usize) -> usize {
    (TOKENS_AT_ONCE / context).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::metric;

    #[test]
    fn memory_is_bounded_and_never_less_than_a_sequence() {
        assert_eq!(sequences_at_once(16), 64);
        assert_eq!(sequences_at_once(128), 8);
        assert_eq!(sequences_at_once(4096), 1);
    }

    #[test]
    fn definitions_say_how_large_a_batch_is() {
        for name in ["explained_variance_legacy", "relative_reconstruction_bias"] {
            let definition = metric(name).expect("invariant: a metric of the evaluation").definition;
            assert!(definition.contains(&format!("{BATCH_SEQUENCES} sequences")), "{definition}");
        }
    }
}
