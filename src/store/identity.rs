//! What makes a store the store it is, and the key that follows from it.
//!
//! Two runs that agree on a [`StoreIdentity`] share one store; anything that can change a byte of the stored
//! rows is part of it, anything else (paths, names, devices, threads) is not.

use super::error::StoreError;
use crate::trial::{SequenceSeparator, StoreDtype, ToyConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Hexadecimal digits of a store key.
const KEY_DIGITS: usize = 16;

/// Everything that made a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// Version of the store format.
    pub format_version: u32,
    /// Where the rows come from.
    #[serde(flatten)]
    pub source: SourceIdentity,
    /// Training rows asked for.
    pub tokens: u64,
    /// Number format of the rows.
    pub dtype: StoreDtype,
    /// Rows shuffled together.
    pub shuffle_buffer_rows: usize,
    /// Seed of the shuffle.
    pub shuffle_seed: u64,
}

/// What the rows of a store are, up to their number and format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SourceIdentity {
    /// Activations of a language model.
    Model(ModelIdentity),
    /// Toy data.
    Toy {
        /// All of its settings.
        toy: ToyConfig,
    },
    /// Rows from files.
    Files {
        /// [`hash_files`] of each file, in the order in which they are read.
        files: Vec<String>,
        /// Tensor of safetensors files that was asked for; empty for the only one.
        tensor: String,
        /// Share that is held out.
        eval_fraction: f64,
        /// Held-out rows at most.
        eval_rows: usize,
    },
}

/// What the activations of a language model are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// [`hash_files`] of the model's configuration, weights and tokenizer.
    pub model_hash: String,
    /// TransformerLens hook name.
    pub hook: String,
    /// [`hash_files`] of the data files.
    pub data_hash: String,
    /// Column that was read.
    pub column: String,
    /// Tokens in one sequence.
    pub context_size: usize,
    /// Whether every sequence starts with the BOS token.
    pub prepend_bos: bool,
    /// What stands between two documents of one sequence.
    pub separator: SequenceSeparator,
    /// Whether every sequence holds one document.
    pub disable_concat: bool,
    /// Share of the documents that is held out.
    pub eval_fraction: f64,
    /// Held-out tokens at most.
    pub eval_max_tokens: usize,
}

impl StoreIdentity {
    /// Rows in one sequence; rows that belong to no sequence are sequences of one.
    pub fn context_size(&self) -> usize {
        match &self.source {
            SourceIdentity::Model(model) => model.context_size,
            SourceIdentity::Toy { .. } | SourceIdentity::Files { .. } => 1,
        }
    }

    /// Whether the rows are a language model's activations.
    pub fn is_of_model(&self) -> bool {
        matches!(self.source, SourceIdentity::Model(_))
    }

    /// The name of the store: the first 16 hexadecimal digits of the BLAKE3 hash of the canonical form, which
    /// is this struct as JSON without white space, fields in the order of their declaration.
    pub fn key(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("invariant: an identity is plain data");
        let mut key = blake3::hash(&canonical).to_hex().to_string();
        key.truncate(KEY_DIGITS);
        key
    }
}

/// Names for people, shown by `store ls`. Not part of the identity: the same model may lie in two places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLabel {
    /// The model as the sweep names it.
    pub model: String,
    /// The hook.
    pub hook: String,
    /// The data set as the sweep names it.
    pub dataset: String,
}

/// Hashes files by name and content: BLAKE3, 64 hexadecimal digits. Folders do not count, and neither does
/// the order in which the files are given.
pub fn hash_files(files: &[PathBuf]) -> Result<String, StoreError> {
    let mut entries = Vec::with_capacity(files.len());
    for file in files {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
        entries.push((name, *content_hash(file)?.as_bytes()));
    }
    entries.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, content) in &entries {
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(content);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// BLAKE3 of a file's bytes.
fn content_hash(path: &Path) -> Result<blake3::Hash, StoreError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).map_err(StoreError::io("read", path))?;
    Ok(hasher.finalize())
}

/// Refuses what cannot be a key, before it becomes part of a path.
pub(super) fn check_key(key: &str) -> Result<(), StoreError> {
    if is_key(key) { Ok(()) } else { Err(StoreError::BadKey { key: key.to_owned() }) }
}

/// Whether a name has the form of a key.
pub(super) fn is_key(name: &str) -> bool {
    name.len() == KEY_DIGITS && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
pub(super) fn sample_identity() -> StoreIdentity {
    StoreIdentity {
        format_version: super::FORMAT_VERSION,
        source: SourceIdentity::Model(sample_model_identity()),
        tokens: 1_000_000,
        dtype: StoreDtype::Float32,
        shuffle_buffer_rows: 8,
        shuffle_seed: 7,
    }
}

#[cfg(test)]
fn sample_model_identity() -> ModelIdentity {
    ModelIdentity {
        model_hash: "aa".repeat(32),
        hook: "blocks.0.hook_mlp_out".to_owned(),
        data_hash: "bb".repeat(32),
        column: "text".to_owned(),
        context_size: 4,
        prepend_bos: true,
        separator: SequenceSeparator::Bos,
        disable_concat: false,
        eval_fraction: 0.02,
        eval_max_tokens: 1000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_pinned() {
        // A change here orphans every store on disk: raise the format version instead.
        assert_eq!(sample_identity().key(), "642652f2e3781bbd");
    }

    #[test]
    fn every_field_changes_the_key() {
        let (base, model) = (sample_identity(), sample_model_identity());
        let of_model = |model| StoreIdentity { source: SourceIdentity::Model(model), ..sample_identity() };
        let variants = [
            StoreIdentity { format_version: 2, ..base.clone() },
            of_model(ModelIdentity { model_hash: "ab".repeat(32), ..model.clone() }),
            of_model(ModelIdentity { hook: "blocks.1.hook_mlp_out".to_owned(), ..model.clone() }),
            of_model(ModelIdentity { data_hash: "bc".repeat(32), ..model.clone() }),
            of_model(ModelIdentity { column: "story".to_owned(), ..model.clone() }),
            of_model(ModelIdentity { context_size: 8, ..model.clone() }),
            of_model(ModelIdentity { prepend_bos: false, ..model.clone() }),
            of_model(ModelIdentity { separator: SequenceSeparator::Eos, ..model.clone() }),
            of_model(ModelIdentity { disable_concat: true, ..model.clone() }),
            of_model(ModelIdentity { eval_fraction: 0.05, ..model.clone() }),
            of_model(ModelIdentity { eval_max_tokens: 1001, ..model.clone() }),
            StoreIdentity { tokens: 1_000_001, ..base.clone() },
            StoreIdentity { dtype: StoreDtype::Bfloat16, ..base.clone() },
            StoreIdentity { shuffle_buffer_rows: 9, ..base.clone() },
            StoreIdentity { shuffle_seed: 8, ..base.clone() },
        ];
        let keys: std::collections::BTreeSet<_> =
            variants.iter().map(StoreIdentity::key).chain([base.key()]).collect();
        assert_eq!(keys.len(), variants.len() + 1);
    }

    #[test]
    fn only_keys_pass_as_keys() {
        assert!(check_key(&sample_identity().key()).is_ok());
        for bad in ["", "..", "../0123456789abc", "0123456789ABCDEF", "0123456789abcdef0", "0123456789abcde/"]
        {
            assert!(matches!(check_key(bad), Err(StoreError::BadKey { .. })), "{bad}");
        }
    }

    #[test]
    fn hash_covers_names_and_contents_only() {
        let dir = tempfile::tempdir().unwrap();
        let write = |sub: &str, name: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
            let path = dir.path().join(sub).join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (a, b) = (write("x", "a", "one"), write("x", "b", "two"));
        let hash = hash_files(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(hash, hash_files(&[b.clone(), a.clone()]).unwrap());
        assert_eq!(hash, hash_files(&[write("y", "a", "one"), b.clone()]).unwrap());
        assert_ne!(hash, hash_files(&[write("z", "a", "oné"), b.clone()]).unwrap());
        assert_ne!(hash, hash_files(&[write("z", "c", "one"), b]).unwrap());
        assert_ne!(hash, hash_files(&[a]).unwrap());
        let missing = dir.path().join("nothing");
        let message = hash_files(std::slice::from_ref(&missing)).unwrap_err().to_string();
        assert!(message.contains("nothing"), "{message}");
    }
}
