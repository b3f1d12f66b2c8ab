//! What can go wrong with a model, each with the values that are needed to put it right.

use std::path::{Path, PathBuf};

/// A model that cannot be loaded or run as asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The path leads to nothing that looks like a model.
    #[error(
        "`{}` is no model: expected a folder with config.json and weights, or a .gguf file",
        path.display()
    )]
    NotAModel {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A file that the model needs isn't there.
    #[error("`{}` lacks {wanted}", folder.display())]
    MissingFile {
        /// Where it was looked for.
        folder: PathBuf,
        /// The file, or the choice of files.
        wanted: String,
    },
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file isn't what it should be.
    #[error("cannot understand `{}`: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        source: serde_json::Error,
    },
    /// A file of weights is damaged or of an unknown kind.
    #[error("cannot read the weights in `{}`: {source}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        source: candle_core::Error,
    },
    /// The model's family isn't one of those that the decoder knows.
    #[error(
        "`{}` is of the family `{found}`, which is not supported; supported: {supported}",
        path.display()
    )]
    UnsupportedFamily {
        /// The configuration.
        path: PathBuf,
        /// `model_type`, or a GGUF's architecture.
        found: String,
        /// The families that are known.
        supported: String,
    },
    /// The configuration asks for something that the decoder doesn't do.
    #[error(
        "`{}` sets {key} = {found}, which is not supported; supported: {supported}",
        path.display()
    )]
    UnsupportedSetting {
        /// The configuration.
        path: PathBuf,
        /// The setting's name.
        key: String,
        /// Its value.
        found: String,
        /// What would work.
        supported: String,
    },
    /// A setting that every such model has is missing, or of the wrong type.
    #[error("`{}` has no usable `{key}`", path.display())]
    MissingSetting {
        /// The configuration.
        path: PathBuf,
        /// The setting's name.
        key: String,
    },
    /// Numbers of the configuration that don't go together.
    #[error("`{}` contradicts itself: {message}", path.display())]
    Contradiction {
        /// The configuration.
        path: PathBuf,
        /// Which numbers.
        message: String,
    },
    /// Tensors that the configuration calls for are not among the weights.
    #[error("the weights in `{}` lack {} tensor(s): {}", path.display(), names.len(), some_of(names))]
    MissingTensors {
        /// The model.
        path: PathBuf,
        /// All that are missing.
        names: Vec<String>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` in `{}` has shape {found:?}, the configuration says {expected:?}", path.display())]
    TensorShape {
        /// The model.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// The tokenizer could not be read or made.
    #[error("cannot make the tokenizer of `{}`: {message}", path.display())]
    Tokenizer {
        /// The file it was read from.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// The tokenizer could not deal with a text or with tokens.
    #[error("the tokenizer failed: {message}")]
    Tokenization {
        /// The reason.
        message: String,
    },
    /// A transcoder's output is there before its input.
    #[error(
        "model.hook_out = `{output}` does not come after model.hook = `{input}` in the forward pass; a transcoder \
         computes a later hook's activations from an earlier one's"
    )]
    HookOrder {
        /// The hook that is read.
        input: String,
        /// The hook that is computed.
        output: String,
    },
    /// A run was to start before the part of the model that is loaded.
    #[error("the model is loaded from `{from}` on only; no run can start at `{hook}`")]
    NotLoaded {
        /// Where it was to start.
        hook: String,
        /// Where it may start.
        from: String,
    },
    /// The model has no hook of this name.
    #[error("the model has no hook `{name}`{}; its hooks: {valid}", did_you_mean(suggestion.as_deref()))]
    UnknownHook {
        /// The name as it was given.
        name: String,
        /// The valid name that is most like it.
        suggestion: Option<String>,
        /// All valid names, folded over the layers.
        valid: String,
    },
    /// A token that the embedding has no row for.
    #[error("token {token} is outside the model's vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// The number of rows of the embedding.
        vocab_size: usize,
    },
    /// A sequence of no tokens, or of more than the model has positions for.
    #[error("a sequence of {positions} tokens does not fit the model, which takes 1 to {n_ctx}")]
    ContextLength {
        /// The length asked for.
        positions: usize,
        /// The longest that works.
        n_ctx: usize,
    },
    /// A tensor given by the caller has the wrong shape.
    #[error("{what} has shape {found:?}, expected {expected}")]
    InputShape {
        /// Which tensor.
        what: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape in words.
        expected: String,
    },
    /// An operation on tensors failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Ties a reader's error to the file it came from.
    pub(crate) fn weights(path: &Path) -> impl FnOnce(candle_core::Error) -> Self + '_ {
        move |source| Self::Weights { path: path.to_owned(), source }
    }

    /// Ties an input or output error to its file.
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    /// Ties a JSON error to its file.
    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self + '_ {
        move |source| Self::Json { path: path.to_owned(), source }
    }
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let mut text = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}
