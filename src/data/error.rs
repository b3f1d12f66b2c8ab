//! What can be wrong with data.

use std::{fmt, path::PathBuf};
use thiserror::Error;

/// Where in the data something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Which document of it.
    pub at: At,
}

/// A document of a file, in the numbers that its readers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Line of a text file, from 1.
    Line(u64),
    /// Row of a table, from 0.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Line(line) => write!(f, "{}, line {line}", self.file.display()),
            At::Row(row) => write!(f, "{}, row {row} (counted from 0)", self.file.display()),
        }
    }
}

/// Why data cannot be turned into sequences.
#[derive(Debug, Error)]
pub enum DataError {
    /// There is no such file or folder.
    #[error("data `{}` does not exist", .0.display())]
    NotFound(PathBuf),
    /// A file of a kind that cannot be read.
    #[error("data file `{}` is none of .parquet, .jsonl, .csv, .txt", .0.display())]
    UnknownFormat(PathBuf),
    /// A folder without data files.
    #[error("folder `{}` holds no .parquet, .jsonl, .csv or .txt file{}", folder.display(), subfolder_hint(subfolders))]
    EmptyFolder {
        /// The folder.
        folder: PathBuf,
        /// Folders inside it, which are not searched.
        subfolders: Vec<String>,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// One document cannot be read.
    #[error("{place}: {reason}")]
    Document {
        /// Which.
        place: Place,
        /// Why.
        reason: String,
    },
    /// The column is not there.
    #[error("{} has no column {wanted}; it has: {}", file.display(), listed(columns))]
    MissingColumn {
        /// The file.
        file: PathBuf,
        /// What was looked for.
        wanted: String,
        /// What there is.
        columns: Vec<String>,
    },
    /// The column holds neither text nor token lists.
    #[error("column `{column}` of {} holds {found}; expected strings, or lists of whole numbers", file.display())]
    ColumnType {
        /// The file.
        file: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
    },
    /// Some files hold text, others tokens.
    #[error("{} holds text and {} holds tokens; one data set holds one of them", text.display(), tokens.display())]
    MixedKinds {
        /// A file with text.
        text: PathBuf,
        /// A file with tokens.
        tokens: PathBuf,
    },
    /// Text, but the model has no tokenizer.
    #[error(
        "{} holds text, and the model has no tokenizer to read it with: put its tokenizer.json beside the weights, \
         or use data with a column `tokens`",
        file.display()
    )]
    NoTokenizer {
        /// A file with text.
        file: PathBuf,
    },
    /// The tokenizer refuses a document.
    #[error("{place}: the tokenizer fails: {reason}")]
    Tokenizer {
        /// Which document.
        place: Place,
        /// Why.
        reason: String,
    },
    /// A token the model does not know.
    #[error(
        "{place}: token {token} at position {position} is outside the model's vocabulary of {vocab_size} \
         (0 to {}); was the data tokenised for another model?",
        vocab_size.saturating_sub(1)
    )]
    OutsideVocabulary {
        /// Which document.
        place: Place,
        /// Where in it.
        position: usize,
        /// The token.
        token: i64,
        /// Tokens the model knows.
        vocab_size: usize,
    },
    /// A tokenised row that does not fill one sequence.
    #[error(
        "{place}: the row has {found} tokens, fewer than data.context_size = {context_size}; tokenised rows are \
         used one by one and must be at least that long"
    )]
    ShortRow {
        /// Which row.
        place: Place,
        /// Its length.
        found: usize,
        /// Tokens of a sequence.
        context_size: usize,
    },
    /// No documents at all.
    #[error("the data is empty: no document in {}", listed(&files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>()))]
    Empty {
        /// The files.
        files: Vec<PathBuf>,
    },
    /// One tokenised row: it cannot be both trained on and held out.
    #[error("the data has one row, and one more is needed to be held out for evaluation")]
    OneRow,
    /// Less than one sequence.
    #[error(
        "the {part} part of the data ({documents} documents, {tokens} tokens) does not fill one sequence of \
         data.context_size = {context_size} tokens{}",
        if *disable_concat { "; with data.disable_concat_sequences, documents shorter than that are dropped" } else { "" }
    )]
    TooFewTokens {
        /// `training` or `held-out`.
        part: &'static str,
        /// Documents in it.
        documents: usize,
        /// Tokens in them.
        tokens: u64,
        /// Tokens of a sequence.
        context_size: usize,
        /// Whether documents are not joined.
        disable_concat: bool,
    },
    /// A sequence needs two tokens for there to be a next one.
    #[error("data.context_size is {0}; a sequence has at least 2 tokens")]
    ContextSize(usize),
    /// Not a share.
    #[error("data.eval_fraction is {0}; expected a number of at least 0 and below 1")]
    EvalFraction(f64),
}

fn subfolder_hint(subfolders: &[String]) -> String {
    if subfolders.is_empty() {
        return String::new();
    }
    format!(" (folders inside it are not searched: {}; name one of them)", listed(subfolders))
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    match names.len() {
        0 => "nothing".to_owned(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}
