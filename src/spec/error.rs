//! What can be wrong with a sweep file, and how it is told.
//!
//! A sweep file is checked as a whole: every [`Problem`] is collected, sorted by place and printed in one
//! uniform layout by [`SpecErrors`]. A problem names its place, the full key, what was found, what was
//! expected, and a hint where there is one.

use std::fmt;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the sweep file; without a line when something is absent.
    File {
        /// The file's name as the user gave it.
        path: String,
        /// Line, from 1.
        line: Option<usize>,
    },
    /// In an environment variable of this name.
    Env(String),
    /// In a `--set key=value`.
    Override(String),
    /// Nowhere: it is the built-in default.
    Default,
}

impl Place {
    /// The layer's height: a higher layer wins.
    pub(crate) fn height(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Env(_) => 2,
            Self::Override(_) => 3,
        }
    }

    /// Where it is, for the middle of a sentence.
    pub(crate) fn phrase(&self) -> String {
        match self {
            Self::File { line: Some(line), .. } => format!("line {line}"),
            Self::File { line: None, .. } => "the sweep file".to_owned(),
            Self::Env(name) => format!("the environment variable {name}"),
            Self::Override(text) => format!("--set {text}"),
            Self::Default => "the default".to_owned(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{path}:{line}"),
            Self::File { path, line: None } => f.write_str(path),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Override(text) => write!(f, "--set {text}"),
            Self::Default => f.write_str("built-in default"),
        }
    }
}

/// The kind of a problem; its text goes on from the key's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// The text is not TOML.
    #[error("cannot be read as TOML")]
    Syntax,
    /// A `--set` without `=`.
    #[error("is no assignment")]
    NoAssignment,
    /// One key, two values.
    #[error("is given twice")]
    GivenTwice,
    /// No such section.
    #[error("is no section of a sweep file")]
    UnknownSection,
    /// No such setting.
    #[error("is no setting")]
    UnknownKey,
    /// A setting without a default that nothing sets.
    #[error("is missing")]
    Missing,
    /// Text for a number, and the like.
    #[error("has the wrong type")]
    WrongType,
    /// A number outside its range.
    #[error("is out of range")]
    OutOfRange,
    /// Text that must say something and does not.
    #[error("is empty")]
    Empty,
    /// A name that cannot be a folder's.
    #[error("cannot name a folder")]
    BadName,
    /// A word outside its list.
    #[error("has an unknown value")]
    UnknownValue,
    /// An axis over a setting that all trials share.
    #[error("cannot differ between trials")]
    NotPerTrial,
    /// An axis that says nothing, or too much.
    #[error("is no axis as it stands")]
    BadAxis,
    /// Columns of a zip that do not match.
    #[error("does not fit the other columns of its [[zip]]")]
    UnevenZip,
    /// An expression that cannot be compiled.
    #[error("is no expression")]
    BadExpression,
    /// An expression that fails for a trial's settings.
    #[error("cannot be evaluated")]
    FailedExpression,
    /// Settings that exclude each other.
    #[error("contradicts another setting")]
    Contradiction,
    /// A setting that no trial uses.
    #[error("has no effect")]
    NoEffect,
    /// Two trials with one configuration.
    #[error("makes two trials alike")]
    Alike,
    /// More trials than allowed.
    #[error("is exceeded")]
    TooMany,
    /// No trial at all.
    #[error("leaves no trial")]
    NothingLeft,
    /// A strategy and settings of another one.
    #[error("does not go with the strategy")]
    OtherStrategy,
}

/// One thing that is wrong with a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Full dotted key, `sae.d_sae`; empty when the file itself cannot be read.
    pub key: String,
    /// What kind.
    pub fault: Fault,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// What to try.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            writeln!(f, "{}: {}", self.place, self.fault)?;
        } else {
            writeln!(f, "{}: `{}` {}", self.place, self.key, self.fault)?;
        }
        writeln!(f, "    found: {}", self.found)?;
        write!(f, "    expected: {}", self.expected)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n    hint: {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a sweep, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct SpecErrors {
    /// Name of the sweep file.
    pub path: String,
    /// At least one problem.
    pub problems: Vec<Problem>,
}

impl SpecErrors {
    pub(crate) fn new(path: &str, mut problems: Vec<Problem>) -> Self {
        // Stable: problems of one line stay in the order in which they were found.
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        problems.dedup();
        Self { path: path.to_owned(), problems }
    }
}

impl std::error::Error for SpecErrors {}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n_problems = self.problems.len();
        let plural = if n_problems == 1 { "" } else { "s" };
        write!(f, "{} has {n_problems} problem{plural}", self.path)?;
        for problem in &self.problems {
            write!(f, "\n\n{problem}")?;
        }
        Ok(())
    }
}
