//! Building a store, shard by shard. Start with [`StoreWriter`].

use super::{
    disk::{self, NewFile},
    error::StoreError,
    header::{
        EVAL_FILE, FORMAT_VERSION, HEADER_FILE, MAGIC, STATS_FILE, ShardEntry, StoreHeader, TRUTH_FILE,
        no_seal, shard_file,
    },
    held_out::EvalPart,
    identity::{StoreIdentity, StoreLabel},
    lock::{Mode, Patience, StoreLock},
    manifest::{MANIFEST_FILE, Manifest, partial_folder},
    mapped::MappedRows,
    order::sequence_order,
    reader::Store,
    shard::{ShardPlan, write_rows},
    stats::{Moments, STATS_ROWS, Stats},
    truth::TruthPart,
};
use crate::failpoint;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// More shards than this would exhaust what a process may map.
const MOST_SHARDS: usize = 10_000;

/// A build in progress; the only one of its key, by the lock it holds. Dropping it keeps what is written.
#[derive(Debug)]
pub struct StoreWriter {
    stores: PathBuf,
    key: String,
    partial: PathBuf,
    manifest: Manifest,
    sequence_order: Vec<u32>,
    sequences_per_shard: usize,
    lock: StoreLock,
}

/// What came of asking for a build.
#[derive(Debug)]
pub enum WriterStart {
    /// The store is there, whole, in this folder.
    AlreadyWhole(PathBuf),
    /// It is to be built, from the start or from where an earlier build stopped.
    Build(Box<StoreWriter>),
}

impl StoreWriter {
    /// Starts or continues the build of a store of `sequences` training sequences; waits while another
    /// process builds the same one.
    pub fn create(
        stores: &Path,
        identity: &StoreIdentity,
        label: &StoreLabel,
        width: usize,
        sequences: usize,
    ) -> Result<WriterStart, StoreError> {
        if let Some(start) = Self::try_create(stores, identity, label, width, sequences)? {
            return Ok(start);
        }
        tracing::info!("waiting for another process that builds store {}", identity.key());
        let manifest = plan(identity, label, width, sequences)?;
        Self::start(stores, manifest, Patience::Wait)
            .map(|start| start.expect("invariant: who waits gets the lock"))
    }

    /// As [`StoreWriter::create`], but gives `None` at once while another process builds the same store.
    pub fn try_create(
        stores: &Path,
        identity: &StoreIdentity,
        label: &StoreLabel,
        width: usize,
        sequences: usize,
    ) -> Result<Option<WriterStart>, StoreError> {
        let manifest = plan(identity, label, width, sequences)?;
        fs::create_dir_all(stores).map_err(StoreError::io("create", stores))?;
        Self::start(stores, manifest, Patience::Try)
    }

    fn start(stores: &Path, fresh: Manifest, patience: Patience) -> Result<Option<WriterStart>, StoreError> {
        let key = fresh.identity.key();
        // A whole store is looked for before the lock too: trials that use it share the lock for hours.
        if let Some(dir) = whole(stores, &key)? {
            return Ok(Some(WriterStart::AlreadyWhole(dir)));
        }
        let Some(lock) = StoreLock::take(stores, &key, Mode::Alone, patience)? else { return Ok(None) };
        if let Some(dir) = whole(stores, &key)? {
            return Ok(Some(WriterStart::AlreadyWhole(dir)));
        }
        let partial = partial_folder(stores, &key);
        if Store::open_dir(&partial).is_ok_and(|store| store.header().key == key) {
            return Ok(Some(WriterStart::AlreadyWhole(give_final_name(stores, &key)?)));
        }
        let sequences_per_shard = sequences_per_shard(&fresh.identity);
        let sequence_order = sequence_order(fresh.identity.shuffle_seed, fresh.sequences);
        let manifest = resume(&partial, fresh)?;
        Ok(Some(WriterStart::Build(Box::new(Self {
            stores: stores.to_path_buf(),
            key,
            partial,
            manifest,
            sequence_order,
            sequences_per_shard,
            lock,
        }))))
    }

    /// The key of the store.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Shards in all.
    pub fn shards(&self) -> usize {
        self.manifest.shards.len()
    }

    /// Rows already written, by this build or the one that it continues.
    pub fn rows_done(&self) -> u64 {
        self.manifest.shards.iter().flatten().map(|shard| shard.rows).sum()
    }

    /// Rows in all.
    pub fn rows_total(&self) -> u64 {
        self.manifest.sequences as u64 * self.manifest.identity.context_size() as u64
    }

    /// The first shard that is yet to be written.
    pub fn next_shard(&self) -> Option<ShardPlan> {
        let index = self.manifest.next()?;
        let first = index * self.sequences_per_shard;
        let end = (first + self.sequences_per_shard).min(self.sequence_order.len());
        let sequences = self.sequence_order[first..end].iter().map(|&sequence| sequence as usize).collect();
        Some(ShardPlan { index, sequences })
    }

    /// Writes the next shard: `rows` holds (sequences, context, width) in the order of the plan, and is
    /// shuffled, converted and hashed on its way to disk.
    pub fn write_shard(&mut self, plan: &ShardPlan, rows: &[f32]) -> Result<(), StoreError> {
        if self.next_shard().as_ref() != Some(plan) {
            let expected = self.next_shard().map_or("none".to_owned(), |due| due.index.to_string());
            return Err(StoreError::OutOfTurn { found: plan.index, expected });
        }
        let Manifest { identity, width, .. } = &self.manifest;
        let n_rows = plan.sequences.len() * identity.context_size();
        if rows.len() != n_rows * width {
            let what = format!("shard {}", plan.index);
            return Err(StoreError::Shape { what, found: rows.len(), expected: n_rows * width });
        }
        let mut file = NewFile::create(self.partial.join(shard_file(plan.index)))?;
        let norm_sum = write_rows(&mut file, identity, *width, plan, rows)?;
        let entry = file.finish()?;
        self.manifest.shards[plan.index] = Some(ShardEntry { entry, rows: n_rows as u64, norm_sum });
        self.manifest.write(&self.partial)
    }

    /// Adds the held-out part, takes the statistics and gives the store its name.
    pub fn finish(self, eval: EvalPart) -> Result<PathBuf, StoreError> {
        self.finish_with(eval, None)
    }

    /// As [`Self::finish`], with the true features where they are known.
    pub fn finish_with(self, eval: EvalPart, truth: Option<TruthPart>) -> Result<PathBuf, StoreError> {
        let Manifest { label, identity, width, sequences, shards, .. } = &self.manifest;
        let missing = shards.iter().filter(|shard| shard.is_none()).count();
        if missing > 0 {
            return Err(StoreError::Unfinished { missing, shards: shards.len() });
        }
        let shards: Vec<ShardEntry> = shards.iter().flatten().cloned().collect();
        let eval_shape = eval.shape(identity.context_size(), *width, identity.is_of_model())?;
        let truth_bytes = truth.map(|truth| truth.render(*width, eval_shape.sequences)).transpose()?;
        let eval_bytes = eval.render(eval_shape);
        drop(eval);
        let eval = disk::write_file(self.partial.join(EVAL_FILE), &eval_bytes)?;
        drop(eval_bytes);

        let table = MappedRows::open(&self.partial, shards.iter(), *width, identity.dtype)?;
        let mean_norm = shards.iter().map(|shard| shard.norm_sum).sum::<f64>() / table.rows() as f64;
        let (Moments { mean, covariance }, rows_seen) = Moments::of(&table, STATS_ROWS);
        let stats = Stats { mean_norm, mean, covariance, rows_seen };
        let stats = disk::write_file(self.partial.join(STATS_FILE), &stats.render())?;

        let truth = match truth_bytes {
            Some(bytes) => Some(disk::write_file(self.partial.join(TRUTH_FILE), &bytes)?),
            None => None,
        };

        let header = StoreHeader {
            checksum: no_seal(),
            magic: MAGIC.to_owned(),
            version: FORMAT_VERSION,
            saesweep: env!("CARGO_PKG_VERSION").to_owned(),
            key: self.key.clone(),
            label: label.clone(),
            identity: identity.clone(),
            dtype: identity.dtype,
            width: *width,
            sequences: *sequences,
            rows: table.rows(),
            mean_norm,
            eval_sequences: eval_shape.sequences,
            eval,
            stats,
            truth,
            shards,
        };
        disk::write_file(self.partial.join(HEADER_FILE), &header.render())?;
        let dir = give_final_name(&self.stores, &self.key)?;
        self.lock.touch();
        Ok(dir)
    }
}

/// The manifest of a build that has done nothing yet; refuses what cannot be built.
fn plan(
    identity: &StoreIdentity,
    label: &StoreLabel,
    width: usize,
    sequences: usize,
) -> Result<Manifest, StoreError> {
    if identity.format_version != FORMAT_VERSION {
        let (found, expected) = (identity.format_version, FORMAT_VERSION);
        return Err(StoreError::VersionNotWritten { found, expected });
    }
    for (number, what) in [
        (width, "activation width"),
        (sequences, "training sequences"),
        (identity.context_size(), "tokens in a sequence"),
    ] {
        if number == 0 {
            return Err(StoreError::Empty { what });
        }
    }
    let shards = sequences.div_ceil(sequences_per_shard(identity));
    if shards > MOST_SHARDS {
        return Err(StoreError::TooManyShards {
            shuffle_buffer_rows: identity.shuffle_buffer_rows,
            rows: sequences as u64 * identity.context_size() as u64,
            shards,
            most: MOST_SHARDS,
        });
    }
    Ok(Manifest::new(identity, label, width, sequences, shards))
}

fn sequences_per_shard(identity: &StoreIdentity) -> usize {
    (identity.shuffle_buffer_rows / identity.context_size()).max(1)
}

/// The folder of the store if it is there. One that is there and not whole is an error: its name says it is.
fn whole(stores: &Path, key: &str) -> Result<Option<PathBuf>, StoreError> {
    if !stores.join(key).exists() {
        return Ok(None);
    }
    Store::open(stores, key).map(|store| Some(store.dir().to_path_buf()))
}

/// Renames a partial folder that has everything.
fn give_final_name(stores: &Path, key: &str) -> Result<PathBuf, StoreError> {
    let (partial, dir) = (partial_folder(stores, key), stores.join(key));
    let manifest = partial.join(MANIFEST_FILE);
    if manifest.exists() {
        fs::remove_file(&manifest).map_err(StoreError::io("remove", &manifest))?;
    }
    disk::remove_temporaries(&partial)?;
    disk::sync_folder_of(&manifest)?;
    failpoint::hit("store: whole without its name");
    fs::rename(&partial, &dir).map_err(StoreError::io("rename to", &dir))?;
    disk::sync_folder_of(&dir)?;
    failpoint::hit("store: named");
    Ok(dir)
}

/// Goes on with what an earlier build left, or makes the folder anew.
fn resume(partial: &Path, fresh: Manifest) -> Result<Manifest, StoreError> {
    if partial.exists() {
        match Manifest::read(partial) {
            Ok(mut manifest) if manifest.fits(&fresh) => {
                disk::remove_temporaries(partial)?;
                for shard in &mut manifest.shards {
                    // Reading it again costs little beside making it, and what is kept is kept for good.
                    let broken =
                        shard.as_ref().and_then(|s| disk::check(partial, &s.entry, &mut |_| ()).err());
                    if let Some(error) = broken {
                        tracing::warn!("a shard of an unfinished store is made again: {error}");
                        *shard = None;
                    }
                }
                manifest.label = fresh.label;
                return Ok(manifest);
            }
            Ok(_other) => tracing::warn!(
                "`{}` was begun with other data of the same key and starts over",
                partial.display()
            ),
            // Killed before its first manifest, or damaged: either way there is nothing to rely on.
            Err(error) => tracing::warn!("an unfinished store starts over: {error}"),
        }
        fs::remove_dir_all(partial).map_err(StoreError::io("remove", partial))?;
    }
    fs::create_dir(partial).map_err(StoreError::io("create", partial))?;
    failpoint::hit("store: partial folder made");
    disk::sync_folder_of(partial)?;
    fresh.write(partial)?;
    Ok(fresh)
}
