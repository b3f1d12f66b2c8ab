//! `saesweep plan`: what `run` would do. Changes nothing, fetches nothing.

use super::{
    CliError, Exit,
    args::{Format, PlanArgs, Shared},
    inputs::Inputs,
    show,
    stores::{StoreGroup, groups},
    sweep::Sweep,
};
use crate::{
    hub::{HubError, HubOptions},
    spec::{DEFAULTS_TOML, Plan},
    trial::ActivationSource,
};
use serde_json::{Value, json};
use std::path::Path;

/// Shows the plan of a sweep, or the defaults.
pub(super) fn plan(shared: &Shared, args: &PlanArgs) -> Result<Exit, CliError> {
    let Some(path) = args.sweep.as_ref().filter(|_| !args.defaults) else {
        show::print(DEFAULTS_TOML)?;
        return Ok(Exit::Ok);
    };
    let sweep = Sweep::load(path, &args.overrides.set)?;
    sweep.template()?;
    let stores = sweep.stores(shared)?;
    // What is not on this machine yet is left for the run to fetch.
    let here = HubOptions { offline: true, ..HubOptions::from_env() };
    let inputs = match Inputs::find(&sweep.plan, &here, &mut ()) {
        Ok(inputs) => Ok(inputs),
        Err(CliError::Hub(error @ HubError::NotCached { .. })) => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    let needs: Vec<Need<'_>> = groups(&sweep.plan)
        .into_iter()
        .map(|group| Need::new(group, inputs.as_ref().ok()))
        .collect::<Result<_, _>>()?;
    match args.format {
        Format::Json => show::print_json(&plan_json(&sweep.plan, &needs, &stores))?,
        Format::Table => {
            print_plan(&sweep.plan, &needs, &stores)?;
            if let Err(missing) = inputs {
                show::print(&format!("\nTo be fetched first: {missing}\n"))?;
            }
        }
    }
    Ok(if sweep.plan.trials.is_empty() { Exit::NothingToDo } else { Exit::Ok })
}

/// A store that the sweep needs.
struct Need<'a> {
    group: StoreGroup<'a>,
    /// Width of the activations and bytes on disk at most, when the model is on this machine.
    size: Option<(usize, u64)>,
}

impl<'a> Need<'a> {
    fn new(group: StoreGroup<'a>, inputs: Option<&Inputs>) -> Result<Self, CliError> {
        let size = match inputs {
            None => None,
            Some(inputs) => {
                let width = inputs.width(group.config)?;
                let store = &group.config.store;
                let held_out = match &group.config.source {
                    ActivationSource::Model { data, .. } => data.eval_max_tokens,
                    ActivationSource::Toy(toy) => toy.eval_rows,
                    ActivationSource::Files(files) => files.eval_rows,
                };
                // Training rows in their format, held-out rows in float32.
                let train = store.tokens.saturating_mul((width * store.dtype.bytes()) as u64);
                let held_out = (held_out as u64).saturating_mul(4 * width as u64);
                Some((width, train.saturating_add(held_out)))
            }
        };
        Ok(Self { group, size })
    }
}

fn print_plan(plan: &Plan, needs: &[Need<'_>], stores: &Path) -> Result<(), CliError> {
    let sweep = &plan.spec.sweep;
    let tokens: u64 = plan.trials.iter().map(|trial| trial.config.train.tokens).sum();
    show::print(&format!(
        "{}: {} ({}), {} training tokens in all\n",
        sweep.name,
        show::plural(plan.trials.len(), "trial"),
        sweep.strategy.word(),
        show::count(tokens)
    ))?;
    for note in &plan.notes {
        show::print(&format!("note: {note}\n"))?;
    }
    show::print("\n")?;
    let mut header = vec!["trial".to_owned()];
    header.extend(plan.varied_keys.iter().map(|key| show::short_key(key).to_owned()));
    header.extend(["tokens", "steps"].map(str::to_owned));
    let rows: Vec<Vec<String>> = plan
        .trials
        .iter()
        .map(|trial| {
            let value = |key: &String| trial.varied.get(key).map_or(String::new(), show::setting);
            let mut row = vec![trial.id.to_string()];
            row.extend(plan.varied_keys.iter().map(value));
            row.extend([show::count(trial.config.train.tokens), show::count(trial.config.train.steps())]);
            row
        })
        .collect();
    show::print_table(&header, &rows)?;
    show::print(&format!("\nActivation stores in {}:\n\n", stores.display()))?;
    let header =
        ["model", "hook", "data", "tokens", "width", "dtype", "disk at most", "trials"].map(str::to_owned);
    let rows: Vec<Vec<String>> = needs
        .iter()
        .map(|need| {
            let config = need.group.config;
            let names = names(&config.source);
            let (width, bytes) = match need.size {
                Some((width, bytes)) => (width.to_string(), show::bytes(bytes)),
                None => ("?".to_owned(), "?".to_owned()),
            };
            vec![
                names[0].clone(),
                names[1].clone(),
                names[2].clone(),
                show::count(config.store.tokens),
                width,
                show::setting(
                    &serde_json::to_value(config.store.dtype).expect("invariant: a dtype is a word"),
                ),
                bytes,
                need.group.trials.len().to_string(),
            ]
        })
        .collect();
    show::print_table(&header, &rows)
}

/// Model, hook and data set, or what stands in their place.
fn names(source: &ActivationSource) -> [String; 3] {
    match source {
        ActivationSource::Model { model, data } => {
            [model.name.clone(), model.hook.clone(), data.dataset.clone()]
        }
        ActivationSource::Toy(toy) => {
            let features = format!("{} features, {} active", toy.n_features, toy.mean_active);
            ["toy data".to_owned(), String::new(), features]
        }
        ActivationSource::Files(files) => ["files".to_owned(), files.tensor.clone(), files.files.join(", ")],
    }
}

fn plan_json(plan: &Plan, needs: &[Need<'_>], stores: &Path) -> Value {
    let trials: Vec<Value> = plan
        .trials
        .iter()
        .map(|trial| {
            json!({
                "id": trial.id,
                "varied": trial.varied,
                "settings": crate::spec::flat(&trial.config),
                "steps": trial.config.train.steps(),
            })
        })
        .collect();
    let needs: Vec<Value> = needs
        .iter()
        .map(|need| {
            let source = &need.group.config.source;
            let [model, hook, dataset] = names(source);
            json!({
                "source": source.name(),
                "model": model,
                "hook": hook,
                "dataset": dataset,
                "tokens": need.group.config.store.tokens,
                "width": need.size.map(|(width, _)| width),
                "bytes_at_most": need.size.map(|(_, bytes)| bytes),
                "trials": need.group.trials,
            })
        })
        .collect();
    json!({
        "name": plan.spec.sweep.name,
        "varied_keys": plan.varied_keys,
        "notes": plan.notes,
        "trials": trials,
        "stores_folder": stores,
        "stores": needs,
    })
}
