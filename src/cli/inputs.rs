//! The model and data files that a sweep's names stand for.

use super::CliError;
use crate::{
    data,
    hub::{self, HubOptions, Progress},
    model::{DecoderConfig, Model},
    spec::{LocalName, Plan},
    trial::TrialConfig,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// The files behind the names of a sweep.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    models: BTreeMap<String, PathBuf>,
    headers: BTreeMap<String, DecoderConfig>,
    data: BTreeMap<String, Vec<PathBuf>>,
}

impl Inputs {
    /// Finds them, on this machine or on the hub, and checks every trial's hook against its model.
    pub(super) fn find(plan: &Plan, hub: &HubOptions, progress: &mut dyn Progress) -> Result<Self, CliError> {
        let mut inputs = Self { models: BTreeMap::new(), headers: BTreeMap::new(), data: BTreeMap::new() };
        for name in names(plan, |config| &config.model.name) {
            let path = match local(plan, &name) {
                LocalName::PathOrHub(path) if !path.exists() => hub::fetch_model(&name, hub, progress)?,
                LocalName::Path(path) | LocalName::PathOrHub(path) => absolute(&path)?,
            };
            inputs.headers.insert(name.clone(), Model::header(&path)?);
            inputs.models.insert(name, path);
        }
        // A wrong hook is told before data is fetched.
        for trial in &plan.trials {
            inputs.width(&trial.config)?;
        }
        for name in names(plan, |config| &config.data.dataset) {
            let files = match local(plan, &name) {
                LocalName::PathOrHub(path) if !path.exists() => hub::fetch_dataset(&name, hub, progress)?,
                LocalName::Path(path) | LocalName::PathOrHub(path) => data::resolve(&absolute(&path)?)?,
            };
            inputs.data.insert(name, files);
        }
        Ok(inputs)
    }

    /// Folder or file of a trial's model.
    pub(super) fn model(&self, config: &TrialConfig) -> &Path {
        self.models.get(&config.model.name).expect("invariant: every model was found")
    }

    /// The model's configuration.
    pub(super) fn header(&self, config: &TrialConfig) -> &DecoderConfig {
        self.headers.get(&config.model.name).expect("invariant: every model was found")
    }

    /// Files of a trial's data set.
    pub(super) fn data(&self, config: &TrialConfig) -> &[PathBuf] {
        self.data.get(&config.data.dataset).expect("invariant: every data set was found")
    }

    /// Width of the activations that a trial learns.
    pub(super) fn width(&self, config: &TrialConfig) -> Result<usize, CliError> {
        let header = self.header(config);
        let hook = header.hook(&config.model.hook)?;
        Ok(header.hook_width(&hook))
    }
}

fn names(plan: &Plan, name: impl Fn(&TrialConfig) -> &String) -> BTreeSet<String> {
    plan.trials.iter().map(|trial| name(&trial.config).clone()).collect()
}

fn local(plan: &Plan, name: &str) -> LocalName {
    plan.spec.local_path(name, dirs::home_dir().as_deref())
}

/// Trials are told where things are, and must find them from any folder.
fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|source| CliError::Read { path: path.to_owned(), source })
}
