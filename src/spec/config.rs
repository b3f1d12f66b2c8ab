//! Checked settings to the plain data that the rest of the program works with.

use super::{
    axes::Axis,
    check::View,
    keys::{MODE, Used, trial_keys},
    sections::Fixed,
    setting::Setting,
};
use crate::{
    metric::Goal,
    slot::DeviceKind,
    trial::{OnFailure, RunConfig, TrialConfig},
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// How trials are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Every combination of the axes.
    Grid,
    /// Draws from the axes.
    Random,
    /// The `[[trial]]` tables alone.
    List,
}

/// What the best trial is best at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objective {
    /// Name of a metric; see `metric.rs`.
    pub metric: String,
    /// The better direction.
    pub goal: Goal,
}

/// `[sweep]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepSection {
    /// Names the run folder.
    pub name: String,
    /// How trials are chosen.
    pub strategy: Strategy,
    /// Draws of the random strategy.
    pub trials: Option<usize>,
    /// Seed of the random strategy.
    pub seed: u64,
    /// A sweep of more trials is refused.
    pub max_trials: usize,
    /// What the best trial is best at.
    pub objective: Objective,
}

/// `[devices]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// Kinds to use; empty is GPUs if any are visible, else the processor.
    pub r#use: Vec<DeviceKind>,
    /// Trials at a time on the processor; 0 is chosen from the cores.
    pub cpu_slots: usize,
    /// Threads of a trial on the processor; 0 shares the cores out.
    pub threads_per_trial: usize,
}

/// `[report]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportSection {
    /// A template that replaces the built-in one.
    pub template: Option<String>,
    /// How many of the best trials are listed.
    pub top: usize,
}

/// A sweep after all layers, apart from its trials.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepSpec {
    /// `[sweep]`.
    pub sweep: SweepSection,
    /// `[run]`.
    pub run: RunConfig,
    /// `[devices]`.
    pub devices: Devices,
    /// `[report]`.
    pub report: ReportSection,
    /// `store.dir`, where one is given.
    pub stores_dir: Option<String>,
    /// The axes as they were written, in the order of the file.
    pub axes: Vec<Axis>,
    /// Folder of the sweep file, where relative paths start.
    pub source_dir: PathBuf,
    /// The sweep as TOML after all layers.
    pub(crate) resolved: String,
    /// Texts given by environment or `--set`, which are paths from the working directory.
    pub(crate) given_outside: BTreeSet<String>,
}

/// What the name of a model or a data set can mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalName {
    /// A file or folder and nothing else: by its form it cannot be a hub id.
    Path(PathBuf),
    /// This file or folder if it exists, else the hub id that the name is.
    PathOrHub(PathBuf),
}

/// Endings of files that hold models or data.
const FILE_ENDINGS: &[&str] = &["gguf", "parquet", "jsonl", "csv", "txt", "safetensors", "json"];

impl SweepSpec {
    /// The path that a text of this sweep means. A relative one starts at the sweep file's folder, or at the
    /// working directory when it was given by an environment variable or `--set`. `home` stands for `~`.
    pub fn path(&self, text: &str, home: Option<&Path>) -> PathBuf {
        match (text.strip_prefix("~/"), home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ if self.given_outside.contains(text) => PathBuf::from(text),
            _ => self.source_dir.join(text),
        }
    }

    /// What a model's or data set's name means, by its form alone; whether a file exists is for the caller to
    /// see. Paths are those of [`Self::path`].
    pub fn local_path(&self, name: &str, home: Option<&Path>) -> LocalName {
        let path = self.path(name, home);
        if is_hub_id(name) { LocalName::PathOrHub(path) } else { LocalName::Path(path) }
    }
}

/// `name` or `org/name`, optionally `@revision`, that does not end like a file.
fn is_hub_id(name: &str) -> bool {
    let (id, revision) = name.split_once('@').map_or((name, None), |(id, revision)| (id, Some(revision)));
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    let is_file = Path::new(id)
        .extension()
        .is_some_and(|ending| FILE_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)));
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(is_part) && !is_file && revision != Some("")
}

/// The configuration of a trial whose settings are complete and checked.
pub(crate) fn trial_config(view: View<'_>) -> TrialConfig {
    let mut sections: Map<String, Value> = Map::new();
    for key in trial_keys() {
        // What only another architecture or source uses is no part of the configuration; what its schedule or
        // sparsity loss does not read is, with its default.
        let is_foreign = match key.used {
            Used::Architectures(_) | Used::Sources(_) | Used::With(_) => !view.uses(key.name),
            Used::Modes(_) | Used::DrawnJumpRelus => !view.uses(MODE),
            Used::Schedulers(_) | Used::Starts(_) | Used::Always => false,
        };
        let (Some(setting), false) = (view.resolved(key.name), is_foreign) else { continue };
        let (section, name) = key.name.split_once('.').expect("invariant: settings have sections");
        let fields = sections.entry(section).or_insert_with(|| Value::Object(Map::new()));
        fields
            .as_object_mut()
            .expect("invariant: sections are tables")
            .insert(name.to_owned(), setting.to_json());
    }
    serde_json::from_value(Value::Object(sections))
        .expect("invariant: checked settings fit the configuration")
}

/// `[run]`, once checked.
pub(crate) fn run_config(fixed: &Fixed) -> RunConfig {
    RunConfig {
        retries: u32::try_from(int(fixed, "run.retries")).expect("invariant: within its range"),
        on_failure: match text(fixed, "run.on_failure").as_str() {
            "stop" => OnFailure::Stop,
            _ => OnFailure::Continue,
        },
        log_every_steps: int(fixed, "run.log_every_steps"),
        checkpoint_every_steps: int(fixed, "run.checkpoint_every_steps"),
        checkpoint_every_minutes: float(fixed, "run.checkpoint_every_minutes"),
        grace_secs: float(fixed, "run.grace_secs"),
    }
}

/// `[devices]`, once checked.
pub(crate) fn devices(fixed: &Fixed) -> Devices {
    let words = match fixed.get("devices.use") {
        Some(Setting::Words(words)) => words.clone(),
        _ => Vec::new(),
    };
    let kinds = words.iter().filter_map(|word| match word.as_str() {
        "cpu" => Some(DeviceKind::Cpu),
        "cuda" => Some(DeviceKind::Cuda),
        "metal" => Some(DeviceKind::Metal),
        _ => None,
    });
    Devices {
        r#use: kinds.collect(),
        cpu_slots: size(fixed, "devices.cpu_slots"),
        threads_per_trial: size(fixed, "devices.threads_per_trial"),
    }
}

/// `[report]`, once checked.
pub(crate) fn report_section(fixed: &Fixed) -> ReportSection {
    ReportSection { template: optional_text(fixed, "report.template"), top: size(fixed, "report.top") }
}

/// A text where "" stands for none.
pub(crate) fn optional_text(fixed: &Fixed, name: &str) -> Option<String> {
    Some(text(fixed, name)).filter(|text| !text.is_empty())
}

pub(crate) fn int(fixed: &Fixed, name: &str) -> u64 {
    let value = fixed.get(name).and_then(Setting::as_int).expect("invariant: a checked whole number");
    u64::try_from(value).expect("invariant: no setting is negative")
}

pub(crate) fn size(fixed: &Fixed, name: &str) -> usize {
    usize::try_from(int(fixed, name)).expect("invariant: sizes fit the machine")
}

fn float(fixed: &Fixed, name: &str) -> f64 {
    fixed.get(name).and_then(Setting::as_float).expect("invariant: a checked number")
}

pub(crate) fn text(fixed: &Fixed, name: &str) -> String {
    fixed.get(name).and_then(Setting::as_text).expect("invariant: a checked text").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_by_their_form() {
        for hub in
            ["roneneldan/TinyStories", "org/name@v1.0", "gpt2", "Qwen/Qwen2.5-1.5B", "quickstart/model"]
        {
            assert!(is_hub_id(hub), "{hub}");
        }
        for path in [
            "./model",
            "../model",
            "/models/a",
            "~/a",
            "a/b/c",
            "model.gguf",
            "org/stories.jsonl",
            "data.parquet",
            "a b/c",
            "C:\\models",
            "org/name@",
            "stories.JSONL",
        ] {
            assert!(!is_hub_id(path), "{path}");
        }
    }
}
