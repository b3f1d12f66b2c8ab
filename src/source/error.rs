//! What can be wrong with files of activations.

use std::path::PathBuf;

/// Why rows cannot be had. Every message is complete by itself.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such file or folder.
    #[error("activations `{}` do not exist", .0.display())]
    NotFound(PathBuf),
    /// A file of a kind that cannot be read.
    #[error("activation file `{}` is neither .safetensors nor .npy", .0.display())]
    UnknownFormat(PathBuf),
    /// A folder without files of activations.
    #[error("folder `{}` holds no .safetensors or .npy file", .0.display())]
    EmptyFolder(PathBuf),
    /// The operating system refused.
    #[error("cannot read `{}`: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// A file that is not what its ending says.
    #[error("`{}` is not readable: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The tensor is not there.
    #[error("`{}` has no tensor `{tensor}`; it has: {}", path.display(), listed(names))]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        tensor: String,
        /// What there is.
        names: Vec<String>,
    },
    /// Several tensors, and none was asked for.
    #[error("`{}` has {} tensors; set `activations.tensor` to one of: {}", path.display(), names.len(), listed(names))]
    WhichTensor {
        /// The file.
        path: PathBuf,
        /// What there is.
        names: Vec<String>,
    },
    /// Numbers of another kind.
    #[error("`{}` holds {found}; expected {expected}", path.display())]
    NumberFormat {
        /// The file.
        path: PathBuf,
        /// Its number format.
        found: String,
        /// What can be read.
        expected: &'static str,
    },
    /// Neither a matrix nor a stack of them.
    #[error("`{}` has shape {shape:?}; expected [rows, d] or [documents, rows, d], none of them 0", path.display())]
    Rank {
        /// The file.
        path: PathBuf,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Two files that do not go together.
    #[error(transparent)]
    Different(Box<Difference>),
    /// Nothing would be left to train on.
    #[error("the files hold {units} {what}; at least two are needed, one to train on and one to hold out")]
    TooFew {
        /// How many there are.
        units: usize,
        /// Rows or documents.
        what: &'static str,
    },
    /// NaN, an infinity, or a float64 beyond float32.
    #[error("`{}` holds {value} in row {row}, dimension {dimension} (counted from 0)", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Row of the file; documents one after the other.
        row: usize,
        /// Dimension of the row.
        dimension: usize,
        /// The number, as float32.
        value: f32,
    },
}

/// Two files whose arrays do not go together.
#[derive(Debug, thiserror::Error)]
#[error("`{}` has shape {shape:?} and `{}` {other_shape:?}: {what}", path.display(), other.display())]
pub struct Difference {
    /// What differs.
    pub what: &'static str,
    /// A file.
    pub path: PathBuf,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The first file.
    pub other: PathBuf,
    /// Its shape.
    pub other_shape: Vec<usize>,
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
