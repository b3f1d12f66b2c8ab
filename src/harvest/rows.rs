//! Building the stores of rows that no language model has to be run for.

use super::{
    ContentHashes, HarvestError,
    build::{HarvestPhase, HarvestProgress, Watch, check_rows},
};
use crate::{
    source::{RowFiles, RowSource, Toy},
    store::{
        self, EvalPart, SourceIdentity, Store, StoreError, StoreIdentity, StoreLabel, StoreWriter, TruthPart,
        WriterStart,
    },
    trial::{ActivationSource, TrialConfig},
};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Rows made or read between two words to the caller.
const ROWS_AT_ONCE: usize = 4096;

/// As [`super::ensure_store`], for activations that come from no language model. `files` are those of
/// `activations.files`, in their order; toy data needs none.
///
/// # Errors
/// See [`HarvestError`]; [`HarvestError::Interrupted`] when the caller stopped it.
pub fn ensure_row_store(
    stores: &Path,
    files: &[PathBuf],
    cfg: &TrialConfig,
    progress: &mut dyn FnMut(HarvestProgress) -> ControlFlow<()>,
) -> Result<(String, PathBuf), HarvestError> {
    let mut watch = Watch::new(progress);
    watch.tell(HarvestPhase::Hashing, 0, 0)?;
    let identity = identity(stores, files, cfg)?;
    let key = identity.key();
    match Store::open(stores, &key) {
        Ok(store) => {
            check_rows(store.rows(), cfg)?;
            return Ok((key, store.dir().to_owned()));
        }
        Err(StoreError::Missing { .. } | StoreError::Incomplete { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let folder = match &cfg.source {
        ActivationSource::Model { .. } => return Err(HarvestError::NeedsModel),
        ActivationSource::Toy(toy) => {
            let rows = Toy::new(toy, usize::try_from(cfg.store.tokens).unwrap_or(usize::MAX));
            let label = StoreLabel {
                model: "toy data".to_owned(),
                hook: String::new(),
                dataset: format!("{} features, {} active", toy.n_features, toy.mean_active),
            };
            build(stores, &identity, &label, cfg, &rows, &mut watch, || {
                let truth = rows.truth();
                Some(TruthPart {
                    features: truth.features,
                    norms: truth.norms,
                    probabilities: truth.probabilities,
                    eval_active: truth.eval_active,
                })
            })?
        }
        ActivationSource::Files(config) => {
            let rows = RowFiles::open(files, config, cfg.store.tokens)?;
            let label = StoreLabel {
                model: "files".to_owned(),
                hook: config.tensor.clone(),
                dataset: config.files.join(", "),
            };
            build(stores, &identity, &label, cfg, &rows, &mut watch, || None)?
        }
    };
    Ok((key, folder))
}

fn identity(stores: &Path, files: &[PathBuf], cfg: &TrialConfig) -> Result<StoreIdentity, HarvestError> {
    let source = match &cfg.source {
        ActivationSource::Model { .. } => return Err(HarvestError::NeedsModel),
        ActivationSource::Toy(toy) => SourceIdentity::Toy { toy: toy.clone() },
        ActivationSource::Files(config) => {
            let mut hashes = ContentHashes::open(stores);
            let each = files.iter().map(|file| hashes.of(std::slice::from_ref(file)));
            SourceIdentity::Files {
                files: each.collect::<Result<_, _>>()?,
                tensor: config.tensor.clone(),
                eval_fraction: config.eval_fraction,
                eval_rows: config.eval_rows,
            }
        }
    };
    Ok(StoreIdentity {
        format_version: store::FORMAT_VERSION,
        source,
        tokens: cfg.store.tokens,
        dtype: cfg.store.dtype,
        shuffle_buffer_rows: cfg.store.shuffle_buffer_rows,
        shuffle_seed: cfg.store.shuffle_seed,
    })
}

fn build(
    stores: &Path,
    identity: &StoreIdentity,
    label: &StoreLabel,
    cfg: &TrialConfig,
    rows: &dyn RowSource,
    watch: &mut Watch<'_>,
    truth: impl FnOnce() -> Option<TruthPart>,
) -> Result<PathBuf, HarvestError> {
    let (width, n_rows) = (rows.width(), rows.train_rows());
    check_rows(n_rows as u64, cfg)?;
    let mut writer = match StoreWriter::create(stores, identity, label, width, n_rows)? {
        WriterStart::AlreadyWhole(folder) => return Ok(folder),
        WriterStart::Build(writer) => writer,
    };
    let mut shard = Vec::new();
    while let Some(plan) = writer.next_shard() {
        shard.clear();
        shard.reserve_exact(plan.sequences.len() * width);
        let done = writer.rows_done();
        for numbers in plan.sequences.chunks(ROWS_AT_ONCE) {
            watch.tell(HarvestPhase::Harvesting, done + (shard.len() / width) as u64, n_rows as u64)?;
            rows.append_train(numbers, &mut shard)?;
        }
        writer.write_shard(&plan, &shard)?;
    }
    drop(shard);
    watch.tell(HarvestPhase::Evaluating, 0, rows.eval_rows() as u64)?;
    let mut acts = Vec::with_capacity(rows.eval_rows() * width);
    rows.append_eval(&mut acts)?;
    Ok(writer.finish_with(EvalPart::of_rows(acts), truth())?)
}
