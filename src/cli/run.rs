//! `saesweep run`: from the sweep file to the report.
//!
//! Everything that can be wrong is looked at first: the sweep, the devices, the template, the model's hooks.
//! Then the run folder is taken, stores are built, and the scheduler runs what has no verdict yet.

use super::{
    CliError, Exit,
    args::{Format, RunArgs, Shared},
    console::Console,
    facts::{RunFacts, cores, host_name, this_host},
    inputs::Inputs,
    outputs::remove_temporaries,
    prepare::{Prepared, prepare},
    progress::{DownloadBars, SweepProgress, TrialLabel},
    run_data::{read_state, run_data},
    run_host::{LiveReport, RunHost, unix_secs},
    show, stores,
    sweep::Sweep,
    work::{OnInterrupt, StopFlag, on_thread},
};
use crate::{
    event::{Event, JOURNAL_VERSION},
    failpoint,
    hub::HubOptions,
    rundir::{Journal, RunDir, write_atomic},
    sched::{Core, FinishReason, Interrupts, Policy, SlotPlan, SlotRequest, find_slots, run as schedule},
    spec::{self, Plan, PlannedTrial},
    table::{Outcome, RunData, best_trials},
    train,
    trial::{TrialConfig, TrialId},
};
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

/// Runs or continues a sweep.
pub(super) fn run(shared: &Shared, args: &RunArgs, console: &Console) -> Result<Exit, CliError> {
    failpoint::set_role(failpoint::Role::Coordinator);
    let sweep = Sweep::load(&args.sweep.sweep, &args.sweep.overrides.set)?;
    if sweep.plan.trials.is_empty() {
        console.note("the sweep has no trials");
        return Ok(Exit::NothingToDo);
    }
    // The event loop stays on this thread: trials die with the thread that started them.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let (data, finished) = runtime.block_on(coordinate(shared, args, console, sweep))?;
    print_best(&data, args.format, &RunDir::new(&data.folder))?;
    Ok(exit(&data, finished, console))
}

async fn coordinate(
    shared: &Shared,
    args: &RunArgs,
    console: &Console,
    sweep: Sweep,
) -> Result<(RunData, FinishReason), CliError> {
    let (stop, mut interrupts) = (StopFlag::default(), Interrupts::by_signals()?);
    let template = sweep.template()?;
    // The number of slots follows from the trials that still run; what cannot be at all is told now.
    slots(&sweep.plan, sweep.plan.trials.len())?;
    let store_folder = std::path::absolute(sweep.stores(shared)?).map_err(CliError::Runtime)?;
    let plan = Arc::new(sweep.plan);

    let inputs = {
        let (plan, console_there) = (Arc::clone(&plan), console.clone());
        on_thread(&mut interrupts, console, &stop, OnInterrupt::CutOff, move || {
            Inputs::find(&plan, &HubOptions::from_env(), &mut DownloadBars::new(&console_there))
        })
        .await?
    };

    let run_dir = RunDir::new(shared.results.join(&plan.spec.sweep.name));
    let host = this_host();
    let mut facts = RunFacts::new(&plan, template, &host);
    let (mut journal, _) = Journal::open(&run_dir, &host_name(), std::process::id())?;
    remove_temporaries(&run_dir)?;
    write_atomic(&run_dir.sweep_toml(), sweep.text.as_bytes())?;
    write_atomic(&run_dir.resolved_toml(), spec::resolved_toml(&plan).as_bytes())?;
    facts.write(&run_dir)?;
    let started = Event::RunStarted {
        version: JOURNAL_VERSION,
        saesweep: host.saesweep.clone(),
        host: host_name(),
        pid: std::process::id(),
    };
    journal.append(unix_secs(), &started)?;
    journal.append(unix_secs(), &Event::Planned { trials: facts.trials.clone() })?;

    let built = {
        let (plan, console_there, stop_there) = (Arc::clone(&plan), console.clone(), stop.clone());
        let (inputs, folder) = (inputs.clone(), store_folder.clone());
        on_thread(&mut interrupts, console, &stop, OnInterrupt::Ask, move || {
            stores::build(&plan, &inputs, &folder, &console_there, &stop_there)
        })
        .await
    };
    // A build may have ended just before it could be stopped.
    let built = match built {
        Ok(_) if stop.is_set() => Err(CliError::Interrupted),
        built => built,
    };
    let built = match built {
        Ok(built) => built,
        Err(error) => {
            journal.append(unix_secs(), &Event::RunEnded { complete: false })?;
            return Err(error);
        }
    };
    facts.set_stores(&built.lines);
    facts.write(&run_dir)?;

    let state = read_state(&run_dir)?;
    let spec = &plan.spec;
    let prepared = prepare(
        &run_dir,
        &plan.trials,
        &built.keys,
        &inputs.start_hashes(),
        &spec.run,
        &state,
        args.retry_failed,
    )?;
    for event in &prepared.unrecorded {
        journal.append(unix_secs(), event)?;
    }
    tell(&plan, &prepared, console);

    let SlotPlan { slots, note } = slots(&plan, prepared.to_run.len())?;
    if let Some(note) = note {
        console.note(&note);
    }
    let policy = Policy {
        retries: spec.run.retries,
        on_failure: spec.run.on_failure,
        grace_secs: spec.run.grace_secs,
    };
    let core = Core::new(policy, slots, prepared.to_run.clone());
    let progress =
        SweepProgress::new(console, labels(&plan, &prepared.to_run), prepared.kept.len(), Instant::now());
    let model = |trial: &PlannedTrial| Some((trial.id.clone(), inputs.model(&trial.config)?.to_owned()));
    let models: BTreeMap<TrialId, PathBuf> = plan.trials.iter().filter_map(model).collect();
    let start = |trial: &PlannedTrial| Some((trial.id.clone(), inputs.start(&trial.config)?.to_owned()));
    let starts: BTreeMap<TrialId, PathBuf> = plan.trials.iter().filter_map(start).collect();
    let mut host = RunHost {
        run: run_dir.clone(),
        facts,
        journal,
        progress,
        console: console.clone(),
        stores: store_folder,
        models,
        starts,
        report: LiveReport::default(),
    };
    let finished = schedule(core, &mut host, &mut interrupts).await;
    host.progress.finish();
    host.write_outputs()?;
    let data = run_data(&run_dir, &host.facts, &read_state(&run_dir)?, false)?;
    Ok((data, finished?))
}

fn slots(plan: &Plan, n_trials: usize) -> Result<SlotPlan, CliError> {
    let devices = &plan.spec.devices;
    let gpu_only = plan.trials.iter().find_map(|trial| train::gpu_only(&trial.config.train));
    let request = SlotRequest {
        kinds: &devices.r#use,
        cpu_slots: devices.cpu_slots,
        threads_per_trial: devices.threads_per_trial,
        cores: cores(),
        n_trials,
        gpu_only: gpu_only.as_deref(),
    };
    Ok(find_slots(&request, &train::probe)?)
}

/// Says what this run will do.
fn tell(plan: &Plan, prepared: &Prepared, console: &Console) {
    for note in &plan.notes {
        console.note(&format!("note: {note}"));
    }
    for (id, why) in &prepared.anew {
        console.note(&format!("trial {id} runs anew: {why}"));
    }
    if !prepared.left_plan.is_empty() {
        let ids: Vec<&str> = prepared.left_plan.iter().map(|id| id.0.as_str()).collect();
        console.note(&format!(
            "{} of earlier runs left the plan and stay in the run folder: {}",
            show::plural(ids.len(), "trial"),
            ids.join(" ")
        ));
    }
    let mut text = show::plural(plan.trials.len(), "trial");
    let parts = [
        (prepared.kept.len(), "ended before"),
        (prepared.n_continued, "continued from a checkpoint"),
        (prepared.to_run.len(), "to run"),
    ];
    for (n, words) in parts.into_iter().filter(|(n, _)| *n > 0) {
        text = format!("{text}, {n} {words}");
    }
    console.note(&text);
}

fn labels(plan: &Plan, to_run: &[TrialId]) -> BTreeMap<TrialId, TrialLabel> {
    let wanted: std::collections::BTreeSet<&TrialId> = to_run.iter().collect();
    let trials = plan.trials.iter().filter(|trial| wanted.contains(&trial.id));
    trials
        .map(|trial| {
            let label = TrialLabel { settings: settings_text(plan, trial), cost: cost(&trial.config) };
            (trial.id.clone(), label)
        })
        .collect()
}

/// `l1_coefficient=2.0 lr=1e-4`.
fn settings_text(plan: &Plan, trial: &PlannedTrial) -> String {
    let varied = plan.varied_keys.iter().filter_map(|key| Some((key, trial.varied.get(key)?)));
    varied
        .map(|(key, value)| format!("{}={}", show::short_key(key), show::setting(value)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Work of a trial, up to a factor that all share: its tokens times its latents.
fn cost(config: &TrialConfig) -> f64 {
    config.train.tokens as f64 * config.sae.d_sae as f64
}

/// Shows the best trials and where the report is.
fn print_best(data: &RunData, format: Format, run: &RunDir) -> Result<(), CliError> {
    let best = best_trials(data);
    let objective = data.objective.metric.as_str();
    let mut metrics = vec![objective];
    metrics.extend(
        ["ce_loss_score", "explained_variance", "recovered_share", "l0", "dead_share"]
            .into_iter()
            .filter(|name| *name != objective)
            .filter(|name| data.trials.iter().any(|trial| trial.metric(name).is_some())),
    );
    if format == Format::Json {
        let best: Vec<_> = best
            .iter()
            .map(|trial| json!({"id": trial.id, "settings": trial.settings, "metrics": trial.metrics}))
            .collect();
        let counts: BTreeMap<&str, usize> =
            counts(data).into_iter().map(|(outcome, n)| (outcome.as_str(), n)).collect();
        return show::print_json(&json!({"report": run.report(), "counts": counts, "best": best}));
    }
    if !best.is_empty() {
        let keys: Vec<&String> = data.varied_keys.iter().collect();
        let mut header = vec!["trial".to_owned()];
        header.extend(keys.iter().map(|key| show::short_key(key).to_owned()));
        header.extend(metrics.iter().map(|name| (*name).to_owned()));
        let rows: Vec<Vec<String>> = best
            .iter()
            .map(|trial| {
                let mut row = vec![trial.id.to_string()];
                row.extend(
                    keys.iter().map(|key| trial.settings.get(*key).map_or(String::new(), show::setting)),
                );
                row.extend(metrics.iter().map(|name| trial.metric(name).map_or(String::new(), show::number)));
                row
            })
            .collect();
        show::print(&format!("Best trials by {objective}:\n\n"))?;
        show::print_table(&header, &rows)?;
        show::print("\n")?;
    }
    show::print(&format!("Report: {}\n", run.report().display()))
}

fn counts(data: &RunData) -> Vec<(Outcome, usize)> {
    let count = |outcome| data.trials.iter().filter(|trial| trial.outcome == outcome).count();
    Outcome::ALL.into_iter().map(|outcome| (outcome, count(outcome))).collect()
}

fn exit(data: &RunData, finished: FinishReason, console: &Console) -> Exit {
    let remaining = data.trials.iter().filter(|trial| !trial.outcome.is_final()).count();
    let bad = data
        .trials
        .iter()
        .filter(|trial| matches!(trial.outcome, Outcome::Failed | Outcome::Diverged))
        .count();
    if bad > 0 {
        let (trials, verb) = (show::plural(bad, "trial"), "failed or diverged");
        console.note(&format!("{trials} {verb}; see the report, and `--retry-failed` to run them again"));
    }
    match finished {
        FinishReason::Complete if bad == 0 => Exit::Ok,
        FinishReason::Complete => Exit::SomeFailed,
        FinishReason::StoppedOnFailure => {
            let trials = show::plural(remaining, "trial");
            console.note(&format!("stopped after a failure as `run.on_failure` says; {trials} did not end"));
            Exit::SomeFailed
        }
        FinishReason::Interrupted => {
            let trials = show::plural(remaining, "trial");
            let same = show::shell_words(std::env::args().skip(1));
            console.note(&format!("interrupted: {trials} to go; continue with `saesweep {same}`"));
            Exit::Interrupted
        }
    }
}
