//! An SAE for other programs: the folder that SAELens would have left, or one that dictionary_learning's
//! classes take.

use super::{
    dictionary::{self, DICTIONARY_CONFIG_FILE, DICTIONARY_FILE},
    format::{CONFIG_FILE, SPARSITY_FILE, SaeError, WEIGHTS_FILE, load, replace},
    inference::Sae,
    runner_json,
};
use crate::trial::{TrialConfig, TrialId};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Name of the file with SAELens' training configuration.
pub const RUNNER_FILE: &str = "runner_cfg.json";

/// Everything that an export can write.
const FILES: [&str; 6] =
    [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE, RUNNER_FILE, DICTIONARY_FILE, DICTIONARY_CONFIG_FILE];

/// For which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// SAELens 6.
    SaeLens,
    /// dictionary_learning.
    DictionaryLearning,
}

/// What is said about the SAE beside its weights.
#[derive(Debug, Clone, Copy)]
pub struct ExportInfo<'a> {
    /// The trial that trained it.
    pub trial: &'a TrialId,
    /// Key of the activation store it was trained on.
    pub store_key: &'a str,
    /// The trial's configuration.
    pub config: &'a TrialConfig,
    /// Its metrics.
    pub metrics: &'a BTreeMap<String, f64>,
}

/// An export that was not made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Reading or writing an SAE folder failed.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// Something is in the way.
    #[error("`{}` is not empty; --force replaces an earlier export", dir.display())]
    NotEmpty {
        /// The folder.
        dir: PathBuf,
    },
    /// Something is in the way that no export wrote, and that replacing the folder would remove.
    #[error("`{}` holds `{entry}`, which no export writes; choose another folder", dir.display())]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// What is in it.
        entry: String,
    },
    /// The target is where the SAE comes from.
    #[error("`{}` is the trial's own folder or in it; choose another folder", dir.display())]
    Source {
        /// The folder.
        dir: PathBuf,
    },
    /// The format cannot say what the SAE does.
    #[error("{format} has no way to say {what}")]
    Inexpressible {
        /// The format.
        format: &'static str,
        /// What it cannot say.
        what: String,
    },
}

impl ExportError {
    /// Whether something else was asked for than can be done, and nothing was touched.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Sae(_))
    }
}

/// Writes the SAE of the trial folder's `sae` to `to`, whole or not at all; returns the names of the files.
///
/// A folder that holds something is refused; with `force`, one that holds nothing but an earlier export is
/// replaced.
pub fn export(
    sae: &Path,
    to: &Path,
    format: ExportFormat,
    info: &ExportInfo<'_>,
    force: bool,
) -> Result<Vec<&'static str>, ExportError> {
    let to = std::path::absolute(to).map_err(io_error(to))?;
    check_target(sae, &to, force)?;
    // Loading is the check that the folder is whole.
    let loaded = load(sae)?;
    let files = match format {
        ExportFormat::SaeLens => sae_lens(sae, &loaded, info)?,
        ExportFormat::DictionaryLearning => dictionary::files(loaded, info)?,
    };
    replace(&to, |folder| {
        for (name, bytes) in &files {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(io_error(&path))?;
        }
        Ok(())
    })?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

fn check_target(sae: &Path, to: &Path, force: bool) -> Result<(), ExportError> {
    let entries = match fs::read_dir(to) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(io_error(to)(err).into()),
    };
    let real = |path: &Path| fs::canonicalize(path).map_err(io_error(path));
    let own = sae.parent().unwrap_or(sae);
    let own = if own.as_os_str().is_empty() { Path::new(".") } else { own };
    if real(to)?.starts_with(real(own)?) {
        return Err(ExportError::Source { dir: to.to_owned() });
    }
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        names.push(entry.map_err(io_error(to))?.file_name().to_string_lossy().into_owned());
    }
    if names.is_empty() {
        return Ok(());
    }
    if !force {
        return Err(ExportError::NotEmpty { dir: to.to_owned() });
    }
    names.sort_unstable();
    match names.into_iter().find(|name| !FILES.contains(&name.as_str())) {
        Some(entry) => Err(ExportError::Foreign { dir: to.to_owned(), entry }),
        None => Ok(()),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SaeError + use<> {
    let path = path.to_owned();
    |source| SaeError::Io { path, source }
}

/// Names and contents of the files of an export.
pub(super) type Files = Vec<(&'static str, Vec<u8>)>;

/// The trained SAE lies in SAELens' format already, with everything folded as SAELens itself folds it, and what
/// was trained as a BatchTopK as the JumpReLU that it has become: its files, and the configuration of the run.
fn sae_lens(sae: &Path, loaded: &Sae, info: &ExportInfo<'_>) -> Result<Files, SaeError> {
    let mut files: Files = Vec::new();
    for name in [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE] {
        let path = sae.join(name);
        match fs::read(&path) {
            Ok(bytes) => files.push((name, bytes)),
            Err(err) if err.kind() == io::ErrorKind::NotFound && name == SPARSITY_FILE => {}
            Err(err) => return Err(io_error(&path)(err)),
        }
    }
    if let Some(text) = runner_json::write(info.config, loaded.d_in) {
        files.push((RUNNER_FILE, text.into_bytes()));
    }
    Ok(files)
}
