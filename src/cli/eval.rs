//! `saesweep eval`: SAEs from anywhere on the held-out part of a store, beside the trials of a run.

use super::{
    CliError, Exit,
    args::{EvalArgs, Format, Shared},
    console::Console,
    facts::{RunFacts, cores},
    progress::DownloadBars,
    report::find_run,
    show,
    sweep::default_stores,
};
use crate::{
    eval,
    hub::{self, HubOptions},
    kernels::Pool,
    metric::Goal,
    model,
    rundir::{RunDir, read_job, read_result},
    sae::{self, Origin, Sae},
    store::{SourceIdentity, Store, hash_files},
    table::Objective,
    trial::{EvalConfig, NormalizeActivations, TrialStatus},
};
use serde_json::{Value, json};
use std::{
    cmp::Ordering,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Metrics of the table for people, as far as there are any; the JSON has all.
const COLUMNS: [&str; 8] = [
    "ce_loss_score",
    "explained_variance",
    "mse",
    "cossim",
    "l0",
    "dense_share",
    "recovered_share",
    "dead_share",
];

/// One SAE in the table.
struct Row {
    /// Trial id, or the folder as it was given.
    name: String,
    is_trial: bool,
    architecture: String,
    d_sae: usize,
    metrics: BTreeMap<String, f64>,
}

/// An SAE to be evaluated.
struct Candidate {
    folder: PathBuf,
    sae: Sae,
    origin: Origin,
}

/// What is known of the run that the SAEs are compared with.
struct Compared {
    objective: Objective,
    /// Its finished trials on the store, and how they were evaluated.
    trials: Vec<(Row, EvalConfig)>,
}

/// Evaluates and shows.
pub(super) fn eval(shared: &Shared, args: &EvalArgs, console: &Console) -> Result<Exit, CliError> {
    let run = args.run.as_ref().map(|run| find_run(shared, run)).transpose()?;
    let facts = run.as_ref().map(read_facts).transpose()?;
    let key = store_key(args, facts.as_ref())?;
    let stores = match &args.stores {
        Some(stores) => stores.clone(),
        None => default_stores(shared)?,
    };
    let store = Store::open(&stores, &key)?;
    let _in_use = store.mark_used()?;
    // Everything that can be wrong comes before the work.
    let saes = args.saes.iter().map(|folder| candidate(folder, &store)).collect::<Result<Vec<_>, _>>()?;
    let mut compared = match (&run, &facts) {
        (Some(run), Some(facts)) => Some(compared(run, facts, &key)?),
        _ => None,
    };
    let settings = settings(args, compared.as_ref())?;
    let model = model_path(args, &store, console)?;

    let pool = Pool::new(if args.threads == 0 { cores() } else { args.threads });
    let mut rows = Vec::new();
    for candidate in &saes {
        note_differences(candidate, &store, console);
        let evaluation = eval::evaluate(model.as_deref(), &store, &candidate.sae, &settings, &pool)?;
        rows.push(Row {
            name: candidate.folder.display().to_string(),
            is_trial: false,
            architecture: candidate.sae.cfg.architecture.name().to_owned(),
            d_sae: candidate.sae.cfg.d_sae,
            metrics: evaluation.metrics,
        });
    }
    if let Some(compared) = &mut compared {
        let trials = std::mem::take(&mut compared.trials);
        let n_trials = trials.len();
        rows.extend(trials.into_iter().filter(|(_, own)| *own == settings).map(|(row, _)| row));
        let n_left_out = n_trials - rows.iter().filter(|row| row.is_trial).count();
        if n_left_out > 0 {
            let trials = show::plural(n_left_out, "trial");
            console.note(&format!("{trials} left out: eval.exclude_special_tokens is another there"));
        }
        rank(&mut rows, &compared.objective);
    }
    match args.format {
        Format::Table => print(&rows, compared.as_ref().map(|compared| &compared.objective))?,
        Format::Json => show::print_json(&json!({
            "store": key,
            "run": run.as_ref().map(RunDir::root),
            "exclude_special_tokens": settings.exclude_special_tokens,
            "rows": rows.iter().map(row_json).collect::<Vec<_>>(),
        }))?,
    }
    Ok(Exit::Ok)
}

fn read_facts(run: &RunDir) -> Result<RunFacts, CliError> {
    RunFacts::read(run)?.ok_or_else(|| {
        CliError::Usage(format!("`{}` is no run folder: it has no run.json", run.root().display()))
    })
}

/// The store that was asked for, or the only one of the run.
fn store_key(args: &EvalArgs, facts: Option<&RunFacts>) -> Result<String, CliError> {
    if let Some(key) = &args.store {
        return Ok(key.clone());
    }
    let lines = facts.map(RunFacts::store_lines).unwrap_or_default();
    match lines.as_slice() {
        [line] => Ok(line.key.clone()),
        [] => Err(CliError::Usage("the run has no store yet; give --store KEY".to_owned())),
        several => {
            let keys: Vec<String> = several
                .iter()
                .map(|line| format!("{} ({} of {})", line.key, line.hook, line.model))
                .collect();
            let keys = keys.join(", ");
            Err(CliError::Usage(format!("the run has several stores; give --store KEY, one of {keys}")))
        }
    }
}

fn candidate(folder: &Path, store: &Store) -> Result<Candidate, CliError> {
    let (sae, origin) = sae::load_with_origin(folder)?;
    if sae.d_in != store.width() {
        return Err(CliError::Usage(format!(
            "`{}` is {} x {} (d_in x d_sae), and the store {} holds {} activations of width {}",
            folder.display(),
            sae.d_in,
            sae.cfg.d_sae,
            store.header().key,
            show::count(store.rows()),
            store.width()
        )));
    }
    Ok(Candidate { folder: folder.to_owned(), sae, origin })
}

fn compared(run: &RunDir, facts: &RunFacts, key: &str) -> Result<Compared, CliError> {
    let mut trials = Vec::new();
    for id in &facts.trials {
        let dir = run.trial(id);
        let (Some(job), Some(result)) = (read_job(&dir)?, read_result(&dir)?) else { continue };
        if result.status == TrialStatus::Done && result.store_key == key {
            let row = Row {
                name: id.to_string(),
                is_trial: true,
                architecture: job.config.sae.architecture.name().to_owned(),
                d_sae: job.config.sae.d_sae,
                metrics: result.metrics,
            };
            trials.push((row, job.config.eval));
        }
    }
    Ok(Compared { objective: facts.objective(), trials })
}

/// As asked, or as the trials were evaluated.
fn settings(args: &EvalArgs, compared: Option<&Compared>) -> Result<EvalConfig, CliError> {
    if let Some(exclude_special_tokens) = args.exclude_special_tokens {
        return Ok(EvalConfig { exclude_special_tokens });
    }
    let trials = compared.map(|compared| compared.trials.as_slice()).unwrap_or_default();
    let Some((_, first)) = trials.first() else { return Ok(EvalConfig { exclude_special_tokens: false }) };
    if trials.iter().any(|(_, other)| other != first) {
        return Err(CliError::Usage(
            "the run's trials differ in eval.exclude_special_tokens; give --exclude-special-tokens true or false"
                .to_owned(),
        ));
    }
    Ok(first.clone())
}

/// The model that the store is of, by its content; `None` for a store that is of none.
fn model_path(args: &EvalArgs, store: &Store, console: &Console) -> Result<Option<PathBuf>, CliError> {
    let header = store.header();
    let SourceIdentity::Model(identity) = &header.identity.source else { return Ok(None) };
    let name = args.model.as_deref().unwrap_or(&header.label.model);
    let path = if Path::new(name).exists() {
        PathBuf::from(name)
    } else {
        hub::fetch_model(name, &HubOptions::from_env(), &mut DownloadBars::new(console)).map_err(|error| {
            match &args.model {
                Some(_) => CliError::Hub(error),
                None => CliError::Usage(format!(
                    "the store is of the model `{name}`, which is not to be found here; give --model ({error})"
                )),
            }
        })?
    };
    let found = hash_files(&model::model_files(&path)?)?;
    if found != identity.model_hash {
        return Err(CliError::Usage(format!(
            "`{}` is not the model of store {}: its content has the hash {found}, the store's model {}",
            path.display(),
            header.key,
            identity.model_hash
        )));
    }
    Ok(Some(path))
}

/// Says what makes an SAE look bad that may be fine elsewhere.
fn note_differences(candidate: &Candidate, store: &Store, console: &Console) {
    let name = candidate.folder.display();
    if let (Some(hook), SourceIdentity::Model(identity)) =
        (&candidate.origin.hook, &store.header().identity.source)
        && *hook != identity.hook
    {
        console.note(&format!("note: `{name}` was trained at {hook}, the store is of {}", identity.hook));
    }
    let mode = candidate.sae.cfg.normalize_activations;
    if matches!(mode, NormalizeActivations::ExpectedAverageOnlyIn | NormalizeActivations::CovarianceWhitening)
    {
        let mode = json!(mode);
        console.note(&format!(
            "note: `{name}` says normalize_activations = {mode}; it is evaluated on activations as they are, as \
             SAELens does"
        ));
    }
}

/// Best first; those without the metric last.
fn rank(rows: &mut [Row], objective: &Objective) {
    let value = |row: &Row| row.metrics.get(&objective.metric).copied();
    rows.sort_by(|a, b| match (value(a), value(b)) {
        (Some(a), Some(b)) if objective.goal == Goal::Minimize => a.total_cmp(&b),
        (Some(a), Some(b)) => b.total_cmp(&a),
        (a, b) => b.is_some().cmp(&a.is_some()).then(Ordering::Equal),
    });
}

fn print(rows: &[Row], objective: Option<&Objective>) -> Result<(), CliError> {
    let first = objective.map(|objective| objective.metric.as_str());
    let others = COLUMNS.into_iter().filter(|name| Some(*name) != first);
    let metrics: Vec<&str> = first
        .into_iter()
        .chain(others)
        .filter(|name| rows.iter().any(|row| row.metrics.contains_key(*name)))
        .collect();
    let mut header = ["sae", "from", "architecture", "d_sae"].map(str::to_owned).to_vec();
    header.extend(metrics.iter().map(|name| (*name).to_owned()));
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let from = if row.is_trial { "trial" } else { "folder" };
            let mut cells =
                vec![row.name.clone(), from.to_owned(), row.architecture.clone(), row.d_sae.to_string()];
            cells.extend(
                metrics
                    .iter()
                    .map(|name| row.metrics.get(*name).map_or("–".to_owned(), |x| show::number(*x))),
            );
            cells
        })
        .collect();
    show::print_table(&header, &rows)
}

fn row_json(row: &Row) -> Value {
    json!({
        "name": row.name,
        "from": if row.is_trial { "trial" } else { "folder" },
        "architecture": row.architecture,
        "d_sae": row.d_sae,
        "metrics": row.metrics,
    })
}
