//! The activation stores that a sweep's trials need: which, how big, and building them.

use super::{CliError, console::Console, inputs::Inputs, progress::StoreBar, show, work::StopFlag};
use crate::{
    harvest::{self, HarvestError},
    spec::Plan,
    store::Store,
    table::StoreLine,
    trial::{TrialConfig, TrialId},
};
use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

/// Trials that share a store: those that agree on where activations come from and on store settings.
#[derive(Debug)]
pub(super) struct StoreGroup<'a> {
    /// The configuration of one of them.
    pub(super) config: &'a TrialConfig,
    /// All of them, in plan order.
    pub(super) trials: Vec<&'a TrialId>,
}

/// The trials of a plan by the store they need, in the order of their first trials.
pub(super) fn groups(plan: &Plan) -> Vec<StoreGroup<'_>> {
    let mut by_settings: BTreeMap<String, usize> = BTreeMap::new();
    let mut groups: Vec<StoreGroup<'_>> = Vec::new();
    for trial in &plan.trials {
        let TrialConfig { source, store, .. } = &trial.config;
        let settings = serde_json::to_string(&(source, store)).expect("invariant: settings are plain data");
        let idx = *by_settings.entry(settings).or_insert_with(|| {
            groups.push(StoreGroup { config: &trial.config, trials: Vec::new() });
            groups.len() - 1
        });
        groups[idx].trials.push(&trial.id);
    }
    groups
}

/// The stores of a sweep, built.
#[derive(Debug)]
pub(super) struct BuiltStores {
    /// Key of each trial's store.
    pub(super) keys: BTreeMap<TrialId, String>,
    /// What is in them, in the order of their first trials.
    pub(super) lines: Vec<StoreLine>,
}

/// Builds what is missing.
///
/// # Errors
/// [`CliError::Interrupted`] when `stop` is set meanwhile; the next build continues.
pub(super) fn build(
    plan: &Plan,
    inputs: &Inputs,
    stores: &Path,
    console: &Console,
    stop: &StopFlag,
) -> Result<BuiltStores, CliError> {
    let mut built = BuiltStores { keys: BTreeMap::new(), lines: Vec::new() };
    for group in groups(plan) {
        let (config, files) = (group.config, inputs.files(group.config));
        let name = config.source.model().map_or(config.source.name(), |(model, _)| &model.hook);
        let mut bar = StoreBar::new(console, name);
        let mut progress = |progress| {
            bar.show(&progress);
            if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let made = match inputs.model(config) {
            Some(model) => harvest::ensure_store(stores, model, files, config, &mut progress),
            None => harvest::ensure_row_store(stores, files, config, &mut progress),
        };
        let was_built = bar.finish();
        let (key, _) = match made {
            Err(_) if stop.is_set() => return Err(CliError::Interrupted),
            made => made?,
        };
        let line = line(&Store::open(stores, &key)?);
        check_batches(plan, &group, line.rows)?;
        console.note(&format!(
            "store {key} {}: {} activations of width {}, {}",
            if was_built { "built" } else { "is there" },
            show::count(line.rows),
            line.width,
            show::bytes(line.bytes)
        ));
        if !built.lines.iter().any(|known| known.key == line.key) {
            built.lines.push(line);
        }
        built.keys.extend(group.trials.into_iter().map(|id| (id.clone(), key.clone())));
    }
    Ok(built)
}

/// Every trial must find one batch in its store; the build looks at one trial alone.
fn check_batches(plan: &Plan, group: &StoreGroup<'_>, rows: u64) -> Result<(), HarvestError> {
    let trials = plan.trials.iter().filter(|trial| group.trials.contains(&&trial.id));
    let largest = trials.map(|trial| trial.config.train.batch_size).max().unwrap_or(0);
    if largest as u64 > rows {
        return Err(HarvestError::TooFewRows { rows, batch_size: largest });
    }
    Ok(())
}

fn line(store: &Store) -> StoreLine {
    let header = store.header();
    StoreLine {
        key: header.key.clone(),
        model: header.label.model.clone(),
        hook: header.label.hook.clone(),
        dataset: header.label.dataset.clone(),
        rows: header.rows,
        width: header.width,
        context_size: header.identity.context_size(),
        dtype: show::setting(&serde_json::to_value(header.dtype).expect("invariant: a dtype is a word")),
        bytes: header.bytes(),
    }
}
