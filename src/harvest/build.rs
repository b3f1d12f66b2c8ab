//! Building a store, or finding it built.

use super::{
    ContentHashes, HarvestError,
    forward::Forward,
    held_out::held_out_part,
    identity::{model_and_data, store_identity_cached},
    tokens::Tokenise,
};
use crate::{
    data::{self, Encode, Packed},
    model::Model,
    store::{Store, StoreError, StoreLabel, StoreWriter, WriterStart},
    trial::{DataConfig, TrialConfig},
};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HarvestProgress {
    /// What is being done.
    pub phase: HarvestPhase,
    /// Tokens this is done for.
    pub rows_done: u64,
    /// Tokens in all; 0 where that cannot be said.
    pub rows_total: u64,
}

/// The parts of a build, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HarvestPhase {
    /// Model and data are hashed.
    Hashing,
    /// The model is read.
    Loading,
    /// The data is packed into sequences.
    Tokenising,
    /// Training sequences go through the model.
    Harvesting,
    /// Held-out sequences go through the model, whole and ablated.
    Evaluating,
}

/// Sees to it that the store a trial needs exists; returns its key and its folder.
///
/// A store that is whole is returned at once. Otherwise the model is run over the data and the store is written
/// shard by shard; a build that was broken off goes on after its last whole shard, and two processes that need
/// the same store build it once. The caller sees how far it is and may stop it by `Break`.
///
/// # Errors
/// See [`HarvestError`]; [`HarvestError::Interrupted`] when the caller stopped it.
pub fn ensure_store(
    stores: &Path,
    model_path: &Path,
    data_files: &[PathBuf],
    cfg: &TrialConfig,
    progress: &mut dyn FnMut(HarvestProgress) -> ControlFlow<()>,
) -> Result<(String, PathBuf), HarvestError> {
    let mut watch = Watch::new(progress);
    let (model_cfg, data_cfg) = model_and_data(cfg)?;
    watch.tell(HarvestPhase::Hashing, 0, 0)?;
    let identity = store_identity_cached(&mut ContentHashes::open(stores), model_path, data_files, cfg)?;
    let key = identity.key();
    match Store::open(stores, &key) {
        Ok(store) => {
            check_rows(store.rows(), cfg)?;
            return Ok((key, store.dir().to_owned()));
        }
        Err(StoreError::Missing { .. } | StoreError::Incomplete { .. }) => {}
        Err(error) => return Err(error.into()),
    }

    // What only needs the configuration is found out before the weights are read.
    let header = Model::header(model_path)?;
    let hook = header.hook(&model_cfg.hook)?;
    let context_size = data_cfg.context_size;
    if context_size > header.n_ctx {
        let model = model_cfg.name.clone();
        return Err(HarvestError::ContextTooLong { context_size, model, n_ctx: header.n_ctx });
    }
    watch.tell(HarvestPhase::Loading, 0, 0)?;
    let model = Model::load(model_path)?;
    let packed = pack(&model, data_files, data_cfg, cfg.store.tokens, &mut watch)?;
    let rows = packed.train.len() as u64;
    check_rows(rows, cfg)?;

    let forward = Forward { model: &model, hook, width: header.hook_width(&hook), context_size };
    let label = StoreLabel {
        model: model_cfg.name.clone(),
        hook: model_cfg.hook.clone(),
        dataset: data_cfg.dataset.clone(),
    };
    let mut writer = match StoreWriter::create(stores, &identity, &label, forward.width, packed.n_train())? {
        WriterStart::AlreadyWhole(folder) => return Ok((key, folder)),
        WriterStart::Build(writer) => writer,
    };
    let mut shard = Vec::new();
    while let Some(plan) = writer.next_shard() {
        shard.clear();
        shard.reserve_exact(plan.sequences.len() * context_size * forward.width);
        let done = writer.rows_done();
        for sequences in plan.sequences.chunks(forward.batch()) {
            let in_shard = (shard.len() / forward.width) as u64;
            watch.tell(HarvestPhase::Harvesting, done + in_shard, rows)?;
            forward.append_rows(&tokens_of(&packed, sequences), &mut shard)?;
        }
        writer.write_shard(&plan, &shard)?;
    }
    drop(shard);
    let special_ids = model.tokenizer().map(|tokenizer| tokenizer.special_ids()).unwrap_or_default();
    let eval = held_out_part(&forward, packed.eval, special_ids.into_iter().collect(), &mut watch)?;
    Ok((key, writer.finish(eval)?))
}

/// The caller's view of the build.
pub(crate) struct Watch<'a> {
    progress: &'a mut dyn FnMut(HarvestProgress) -> ControlFlow<()>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(progress: &'a mut dyn FnMut(HarvestProgress) -> ControlFlow<()>) -> Self {
        Self { progress }
    }

    /// Tells the caller how far it is.
    pub(crate) fn tell(
        &mut self,
        phase: HarvestPhase,
        rows_done: u64,
        rows_total: u64,
    ) -> Result<(), HarvestError> {
        match (self.progress)(HarvestProgress { phase, rows_done, rows_total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(HarvestError::Interrupted),
        }
    }
}

fn pack(
    model: &Model,
    data_files: &[PathBuf],
    data_cfg: &DataConfig,
    rows: u64,
    watch: &mut Watch<'_>,
) -> Result<Packed, HarvestError> {
    let wanted = usize::try_from(rows.div_ceil(data_cfg.context_size.max(1) as u64)).unwrap_or(usize::MAX);
    let rows_wanted = rows.saturating_add(data_cfg.eval_max_tokens as u64);
    let tokenise = model.tokenizer().map(|tokenizer| Tokenise::new(tokenizer, watch, rows_wanted));
    let encode = tokenise.as_ref().map(|tokenise| tokenise as &dyn Encode);
    let packed = data::pack(data_files, data_cfg, wanted, encode, model.config().vocab_size);
    if tokenise.is_some_and(|tokenise| tokenise.interrupted.get()) {
        return Err(HarvestError::Interrupted);
    }
    Ok(packed?)
}

pub(crate) fn check_rows(rows: u64, cfg: &TrialConfig) -> Result<(), HarvestError> {
    let batch_size = cfg.train.batch_size;
    if rows < batch_size as u64 { Err(HarvestError::TooFewRows { rows, batch_size }) } else { Ok(()) }
}

/// The tokens of some training sequences, one after the other.
fn tokens_of(packed: &Packed, sequences: &[usize]) -> Vec<u32> {
    let n = packed.context_size;
    sequences
        .iter()
        .flat_map(|sequence| packed.train[sequence * n..(sequence + 1) * n].iter().copied())
        .collect()
}
