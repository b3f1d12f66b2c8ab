//! The files that a model is made of: a Hugging Face folder, or one GGUF file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ModelError;
use super::byte_pairs::BytePairFiles;

/// A model's files, by what they are for.
pub(crate) enum Layout {
    /// A folder as the Hugging Face hub has it.
    Folder { config: PathBuf, tokenizer: TokenizerFiles },
    /// A GGUF file; a `tokenizer.json` beside it wins over the one inside.
    Gguf { file: PathBuf, tokenizer: TokenizerFiles },
}

/// The tokenizer's files that exist in a folder.
#[derive(Debug, Default)]
pub(crate) struct TokenizerFiles {
    pub(crate) definition: Option<TokenizerDefinition>,
    /// Where the special tokens are named; the first that names one wins.
    pub(crate) special: Vec<PathBuf>,
}

/// How the tokens are written down.
#[derive(Debug)]
pub(crate) enum TokenizerDefinition {
    /// `tokenizer.json`.
    Whole(PathBuf),
    /// The older form, in several files.
    BytePairs(BytePairFiles),
}

/// The weights' files and their format.
#[derive(Debug)]
pub(crate) enum WeightFiles {
    Safetensors(Vec<PathBuf>),
    Pickle(Vec<PathBuf>),
}

/// Lists the files whose content decides what a model computes: configuration, weights and tokenizer.
///
/// # Errors
/// If there is no model at `path`, or one of its files is missing.
pub fn model_files(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let (mut files, tokenizer) = match Layout::of(path)? {
        Layout::Folder { config, tokenizer } => {
            let mut files = vec![config];
            files.extend(WeightFiles::find(path)?.into_paths());
            if let Some(index) = WeightFiles::index(path) {
                files.push(index);
            }
            (files, tokenizer)
        }
        Layout::Gguf { file, tokenizer } => (vec![file], tokenizer),
    };
    match tokenizer.definition {
        Some(TokenizerDefinition::Whole(path)) => files.push(path),
        Some(TokenizerDefinition::BytePairs(parts)) => {
            files.extend([parts.vocab, parts.merges]);
            files.extend(parts.added);
        }
        None => {}
    }
    files.extend(tokenizer.special);
    Ok(files)
}

impl Layout {
    pub(crate) fn of(path: &Path) -> Result<Self, ModelError> {
        let is_gguf = path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"));
        if path.is_file() && is_gguf {
            let folder = path.parent().unwrap_or(Path::new(""));
            return Ok(Self::Gguf { file: path.to_owned(), tokenizer: TokenizerFiles::beside_gguf(folder) });
        }
        if !path.is_dir() {
            return Err(ModelError::NotAModel { path: path.to_owned() });
        }
        let config = path.join("config.json");
        if !config.is_file() {
            return Err(ModelError::MissingFile {
                folder: path.to_owned(),
                wanted: "config.json".to_owned(),
            });
        }
        Ok(Self::Folder { config, tokenizer: TokenizerFiles::of_folder(path) })
    }
}

impl TokenizerFiles {
    /// Finds the tokenizer of a model's folder.
    pub(crate) fn of_folder(folder: &Path) -> Self {
        let existing = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let byte_pairs = || {
            let (vocab, merges) = (existing("vocab.json")?, existing("merges.txt")?);
            let files = BytePairFiles { vocab, merges, added: existing("added_tokens.json") };
            Some(TokenizerDefinition::BytePairs(files))
        };
        Self::with(existing("tokenizer.json").map(TokenizerDefinition::Whole).or_else(byte_pairs), folder)
    }

    /// Finds the `tokenizer.json` that someone has put beside a GGUF file.
    fn beside_gguf(folder: &Path) -> Self {
        let path = Some(folder.join("tokenizer.json")).filter(|path| path.is_file());
        Self::with(path.map(TokenizerDefinition::Whole), folder)
    }

    fn with(definition: Option<TokenizerDefinition>, folder: &Path) -> Self {
        let mut special = Vec::new();
        if definition.is_some() {
            let names = ["tokenizer_config.json", "special_tokens_map.json"];
            special.extend(names.map(|name| folder.join(name)).into_iter().filter(|path| path.is_file()));
        }
        Self { definition, special }
    }
}

/// In the order in which they are looked for.
const SAFETENSORS: &str = "model.safetensors";
const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";
const PICKLE: &str = "pytorch_model.bin";
const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";

impl WeightFiles {
    /// Finds the weights in a model's folder.
    pub(crate) fn find(folder: &Path) -> Result<Self, ModelError> {
        let single = |name: &str| vec![folder.join(name)];
        if folder.join(SAFETENSORS).is_file() {
            return Ok(Self::Safetensors(single(SAFETENSORS)));
        }
        if folder.join(SAFETENSORS_INDEX).is_file() {
            return Ok(Self::Safetensors(shards(folder, SAFETENSORS_INDEX)?));
        }
        if folder.join(PICKLE).is_file() {
            return Ok(Self::Pickle(single(PICKLE)));
        }
        if folder.join(PICKLE_INDEX).is_file() {
            return Ok(Self::Pickle(shards(folder, PICKLE_INDEX)?));
        }
        Err(ModelError::MissingFile {
            folder: folder.to_owned(),
            wanted: format!("weights ({SAFETENSORS}, {SAFETENSORS_INDEX}, {PICKLE} or {PICKLE_INDEX})"),
        })
    }

    fn into_paths(self) -> Vec<PathBuf> {
        match self {
            Self::Safetensors(paths) | Self::Pickle(paths) => paths,
        }
    }

    /// The index that `find` went by, if it went by one.
    fn index(folder: &Path) -> Option<PathBuf> {
        let order = [(SAFETENSORS, false), (SAFETENSORS_INDEX, true), (PICKLE, false), (PICKLE_INDEX, true)];
        let (name, is_index) = order.into_iter().find(|(name, _)| folder.join(name).is_file())?;
        is_index.then(|| folder.join(name))
    }
}

/// The files that an index of shards names.
fn shards(folder: &Path, index: &str) -> Result<Vec<PathBuf>, ModelError> {
    let path = folder.join(index);
    let text = std::fs::read_to_string(&path).map_err(ModelError::read(&path))?;
    let json: Value = serde_json::from_str(&text).map_err(ModelError::json(&path))?;
    let missing_map = || ModelError::MissingSetting { path: path.clone(), key: "weight_map".to_owned() };
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(missing_map)?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let missing: Vec<&str> = names.iter().copied().filter(|name| !folder.join(name).is_file()).collect();
    if !missing.is_empty() {
        let wanted = format!("{}, which {index} names", missing.join(", "));
        return Err(ModelError::MissingFile { folder: folder.to_owned(), wanted });
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
