//! The model, data and activation files that a sweep's names stand for.

use super::CliError;
use crate::{
    data,
    hub::{self, HubOptions, Progress},
    model::{DecoderConfig, Model},
    sae,
    source::{self, RowFiles, RowSource as _},
    spec::{LocalName, Plan},
    trial::{ActivationSource, DataConfig, ModelConfig, TrialConfig},
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
    /// By `activations.files`: the files, and the width of their rows for each tensor.
    rows: BTreeMap<Vec<String>, Vec<PathBuf>>,
    widths: BTreeMap<(Vec<String>, String), usize>,
    /// By `sae.init_from`.
    starts: BTreeMap<String, Start>,
}

/// An SAE that trials start from.
#[derive(Debug, Clone)]
struct Start {
    folder: PathBuf,
    blake3: String,
}

impl Inputs {
    /// Finds them, on this machine or on the hub, and checks every trial's hook against its model.
    pub(super) fn find(plan: &Plan, hub: &HubOptions, progress: &mut dyn Progress) -> Result<Self, CliError> {
        let mut inputs = Self {
            models: BTreeMap::new(),
            headers: BTreeMap::new(),
            data: BTreeMap::new(),
            rows: BTreeMap::new(),
            widths: BTreeMap::new(),
            starts: BTreeMap::new(),
        };
        for trial in &plan.trials {
            inputs.find_rows(plan, &trial.config)?;
        }
        for name in names(plan, |model, _| &model.name) {
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
        inputs.find_starts(plan)?;
        for name in names(plan, |_, data| &data.dataset) {
            let files = match local(plan, &name) {
                LocalName::PathOrHub(path) if !path.exists() => hub::fetch_dataset(&name, hub, progress)?,
                LocalName::Path(path) | LocalName::PathOrHub(path) => data::resolve(&absolute(&path)?)?,
            };
            inputs.data.insert(name, files);
        }
        Ok(inputs)
    }

    /// Finds the activation files of a trial that has some, once.
    fn find_rows(&mut self, plan: &Plan, config: &TrialConfig) -> Result<(), CliError> {
        let ActivationSource::Files(files) = &config.source else { return Ok(()) };
        if !self.rows.contains_key(&files.files) {
            let path = |text: &String| absolute(&plan.spec.path(text, dirs::home_dir().as_deref()));
            let paths: Vec<PathBuf> = files.files.iter().map(path).collect::<Result<_, _>>()?;
            self.rows.insert(files.files.clone(), source::resolve(&paths)?);
        }
        let key = (files.files.clone(), files.tensor.clone());
        if !self.widths.contains_key(&key) {
            let width = RowFiles::open(&self.rows[&files.files], files, config.store.tokens)?.width();
            self.widths.insert(key, width);
        }
        Ok(())
    }

    /// Finds the SAEs that trials start from, and checks that each trial can.
    fn find_starts(&mut self, plan: &Plan) -> Result<(), CliError> {
        let names: BTreeSet<&str> =
            plan.trials.iter().map(|trial| trial.config.sae.init_from.as_str()).collect();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            let folder = absolute(&plan.spec.path(name, dirs::home_dir().as_deref()))?;
            let wrong = |problem: &dyn std::fmt::Display| {
                CliError::Usage(format!(
                    "sae.init_from = \"{name}\", the folder `{}`: {problem}",
                    folder.display()
                ))
            };
            let sae = sae::load(&folder).map_err(|error| wrong(&error))?;
            for trial in plan.trials.iter().filter(|trial| trial.config.sae.init_from == name) {
                let width = self.width(&trial.config)?;
                sae::check_start(&sae, &trial.config.sae, width).map_err(|problem| wrong(&problem))?;
            }
            let blake3 = sae::weights_blake3(&folder)?;
            self.starts.insert(name.to_owned(), Start { folder, blake3 });
        }
        Ok(())
    }

    /// Folder of the SAE that a trial starts from, where it starts from one.
    pub(super) fn start(&self, config: &TrialConfig) -> Option<&Path> {
        Some(&self.starts.get(&config.sae.init_from)?.folder)
    }

    /// BLAKE3 of the weights that trials start from, by `sae.init_from`.
    pub(super) fn start_hashes(&self) -> BTreeMap<String, String> {
        self.starts.iter().map(|(name, start)| (name.clone(), start.blake3.clone())).collect()
    }

    /// Folder or file of a trial's model, where it has one.
    pub(super) fn model(&self, config: &TrialConfig) -> Option<&Path> {
        let (model, _) = config.source.model()?;
        Some(self.models.get(&model.name).expect("invariant: every model was found"))
    }

    /// Files of a trial's data set, or of its activations.
    pub(super) fn files(&self, config: &TrialConfig) -> &[PathBuf] {
        match &config.source {
            ActivationSource::Model { data, .. } => {
                self.data.get(&data.dataset).expect("invariant: every data set was found")
            }
            ActivationSource::Files(files) => {
                self.rows.get(&files.files).expect("invariant: every activation file was found")
            }
            ActivationSource::Toy(_) => &[],
        }
    }

    /// Width of the activations that a trial learns.
    pub(super) fn width(&self, config: &TrialConfig) -> Result<usize, CliError> {
        match &config.source {
            ActivationSource::Model { model, .. } => {
                let header = self.headers.get(&model.name).expect("invariant: every model was found");
                Ok(header.hook_width(&header.hook(&model.hook)?))
            }
            ActivationSource::Toy(toy) => Ok(toy.d_in),
            ActivationSource::Files(files) => {
                let key = (files.files.clone(), files.tensor.clone());
                Ok(*self.widths.get(&key).expect("invariant: every activation file was found"))
            }
        }
    }
}

fn names(
    plan: &Plan,
    name: impl for<'a> Fn(&'a ModelConfig, &'a DataConfig) -> &'a String,
) -> BTreeSet<String> {
    let models = plan.trials.iter().filter_map(|trial| trial.config.source.model());
    models.map(|(model, data)| name(model, data).clone()).collect()
}

fn local(plan: &Plan, name: &str) -> LocalName {
    plan.spec.local_path(name, dirs::home_dir().as_deref())
}

/// Trials are told where things are, and must find them from any folder.
fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|source| CliError::Read { path: path.to_owned(), source })
}
