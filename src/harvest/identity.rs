//! Which store a trial needs: the hash of everything that makes it.

use crate::{
    harvest::HarvestError,
    model,
    store::{self, ModelIdentity, SourceIdentity, StoreError, StoreIdentity},
    trial::{DataConfig, ModelConfig, TrialConfig},
};
use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// The identity of the store that a trial needs. Reads the model's and the data's files through once.
///
/// # Errors
/// When one of the files cannot be read.
pub fn store_identity(
    model_path: &Path,
    data_files: &[PathBuf],
    cfg: &TrialConfig,
) -> Result<StoreIdentity, HarvestError> {
    store_identity_cached(&mut ContentHashes::new(), model_path, data_files, cfg)
}

/// As [`store_identity`], without reading again what was read before.
///
/// # Errors
/// When one of the files cannot be read.
pub fn store_identity_cached(
    hashes: &mut ContentHashes,
    model_path: &Path,
    data_files: &[PathBuf],
    cfg: &TrialConfig,
) -> Result<StoreIdentity, HarvestError> {
    let (model, data) = model_and_data(cfg)?;
    let source = ModelIdentity {
        model_hash: hashes.of(&model::model_files(model_path)?)?,
        hook: model.hook.clone(),
        data_hash: hashes.of(data_files)?,
        column: data.column.clone(),
        context_size: data.context_size,
        prepend_bos: data.prepend_bos,
        separator: data.sequence_separator_token,
        disable_concat: data.disable_concat_sequences,
        eval_fraction: data.eval_fraction,
        eval_max_tokens: data.eval_max_tokens,
    };
    Ok(StoreIdentity {
        format_version: store::FORMAT_VERSION,
        source: SourceIdentity::Model(source),
        tokens: cfg.store.tokens,
        dtype: cfg.store.dtype,
        shuffle_buffer_rows: cfg.store.shuffle_buffer_rows,
        shuffle_seed: cfg.store.shuffle_seed,
    })
}

/// Model and data of a trial that has them.
pub(crate) fn model_and_data(cfg: &TrialConfig) -> Result<(&ModelConfig, &DataConfig), HarvestError> {
    cfg.source.model().ok_or_else(|| HarvestError::TakesNoModel(cfg.source.name()))
}

/// Hashes of files that were read before, so that a model of gigabytes is not read through at every start.
///
/// Files are recognised by path, length and time of change. A file changed in the last seconds is always read:
/// another change might get the same time.
#[derive(Debug, Default)]
pub struct ContentHashes {
    file: Option<PathBuf>,
    /// Hash of the contents by the fingerprint of the files.
    known: BTreeMap<String, String>,
}

impl ContentHashes {
    /// Remembers only as long as it lives.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers in a file of the stores' folder. What is there and cannot be read counts as nothing: these are
    /// only memories.
    pub fn open(stores: &Path) -> Self {
        let file = stores.join("content-hashes.json");
        let known =
            fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { file: Some(file), known }
    }

    /// The [`store::hash_files`] of some files.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn of(&mut self, files: &[PathBuf]) -> Result<String, StoreError> {
        let fingerprint = fingerprint(files);
        if let Some(hash) = fingerprint.as_ref().and_then(|fingerprint| self.known.get(fingerprint)) {
            return Ok(hash.clone());
        }
        let hash = store::hash_files(files)?;
        if let Some(fingerprint) = fingerprint {
            self.known.insert(fingerprint, hash.clone());
            if let Err(error) = self.save() {
                tracing::debug!("cannot remember content hashes: {error}");
            }
        }
        Ok(hash)
    }

    fn save(&self) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let folder = file.parent().expect("invariant: the file lies in the stores' folder");
        fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(&serde_json::to_vec_pretty(&self.known)?)?;
        temporary.persist(file)?;
        Ok(())
    }
}

/// What tells these files from others without reading them; `None` when that would not be safe.
fn fingerprint(files: &[PathBuf]) -> Option<String> {
    const SETTLED: Duration = Duration::from_secs(3);
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let path = fs::canonicalize(file).ok()?;
        let meta = fs::metadata(&path).ok()?;
        let modified = meta.modified().ok()?;
        if SystemTime::now().duration_since(modified).ok()? < SETTLED {
            return None;
        }
        let nanos = modified.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos();
        // The hash covers names too, and a link may have another than the file it leads to.
        let name = file.file_name()?.to_string_lossy();
        hasher.update(format!("{}\0{name}\0{}\0{nanos}\0", path.display(), meta.len()).as_bytes());
    }
    Some(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn aged(path: &Path, text: &str, age_secs: u64) {
        fs::write(path, text).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age_secs);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn old_files_are_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let stores = folder.path().join("stores");
        let file = folder.path().join("weights");
        aged(&file, "one", 100);
        let files = [file.clone()];
        let first = ContentHashes::open(&stores).of(&files).unwrap();
        assert_eq!(first, store::hash_files(&files).unwrap());
        // The same length and time stand for the same content: it is not read again, by another process either.
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        assert_eq!(ContentHashes::open(&stores).of(&files).unwrap(), first);
        aged(&file, "two", 50);
        assert_eq!(ContentHashes::open(&stores).of(&files).unwrap(), store::hash_files(&files).unwrap());
    }

    #[test]
    fn young_files_and_broken_memories_are_not_relied_upon() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data");
        let files = [file.clone()];
        fs::write(folder.path().join("content-hashes.json"), "{torn").unwrap();
        let mut hashes = ContentHashes::open(folder.path());
        for text in ["one", "two"] {
            fs::write(&file, text).unwrap();
            assert_eq!(hashes.of(&files).unwrap(), store::hash_files(&files).unwrap());
        }
        assert!(hashes.known.is_empty());
        assert!(hashes.of(&[folder.path().join("none")]).is_err());
    }
}
