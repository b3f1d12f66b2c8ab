//! A sweep file from the disk, with the environment and `--set` above it.

use super::{CliError, args::Shared};
use crate::spec::{self, Plan, SpecSource};
use std::path::{Path, PathBuf};

/// A sweep as it was given, and its plan.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The file's text.
    pub(super) text: String,
    /// What it means.
    pub(super) plan: Plan,
}

impl Sweep {
    /// Reads and expands a sweep file.
    pub(super) fn load(path: &Path, overrides: &[String]) -> Result<Self, CliError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CliError::Read { path: path.to_owned(), source })?;
        let source = SpecSource {
            path: path.display().to_string(),
            text: text.clone(),
            // What is not text cannot name a setting.
            env: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            overrides: overrides.to_vec(),
        };
        let plan = spec::load(&source)?;
        Ok(Self { text, plan })
    }

    /// The folder of the activation stores: the sweep's own, else the cache's.
    pub(super) fn stores(&self, shared: &Shared) -> Result<PathBuf, CliError> {
        let Some(own) = &self.plan.spec.stores_dir else { return default_stores(shared) };
        Ok(match self.plan.spec.local_path(own, dirs::home_dir().as_deref()) {
            spec::LocalName::Path(path) | spec::LocalName::PathOrHub(path) => path,
        })
    }

    /// The text of the report's template, where the sweep names one.
    pub(super) fn template(&self) -> Result<Option<String>, CliError> {
        let Some(name) = &self.plan.spec.report.template else { return Ok(None) };
        let (spec::LocalName::Path(path) | spec::LocalName::PathOrHub(path)) =
            self.plan.spec.local_path(name, dirs::home_dir().as_deref());
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(source) => Err(CliError::Read { path, source }),
        }
    }
}

/// The folder of the activation stores in the cache.
pub(super) fn default_stores(shared: &Shared) -> Result<PathBuf, CliError> {
    let cache = match &shared.cache {
        Some(cache) => cache.clone(),
        None => dirs::cache_dir()
            .ok_or_else(|| {
                CliError::Usage("there is no home folder for the cache; give --cache DIR".to_owned())
            })?
            .join("saesweep"),
    };
    Ok(cache.join("stores"))
}
