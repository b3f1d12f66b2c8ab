//! `saesweep store`: build, list, check and remove activation stores.

use super::{
    CliError, Exit,
    args::{Format, Shared, StoreArgs, StoreCommand, SweepArgs},
    console::Console,
    inputs::Inputs,
    progress::DownloadBars,
    show, stores,
    sweep::{Sweep, default_stores},
    work::{OnInterrupt, StopFlag, on_thread},
};
use crate::{
    failpoint,
    hub::HubOptions,
    sched::Interrupts,
    store::{self, StoreInfo, StoreState},
};
use serde_json::{Value, json};
use std::{path::Path, time::SystemTime};

/// Does one of the store commands.
pub(super) fn store(shared: &Shared, args: &StoreArgs, console: &Console) -> Result<Exit, CliError> {
    let folder = || match &args.stores {
        Some(folder) => Ok(folder.clone()),
        None => default_stores(shared),
    };
    match &args.command {
        StoreCommand::Build(sweep) => build(shared, sweep, args.stores.as_deref(), console),
        StoreCommand::Ls { format } => list(&folder()?, *format),
        StoreCommand::Verify { keys, format } => verify(&folder()?, keys, *format),
        StoreCommand::Rm { keys } => {
            let folder = folder()?;
            for key in keys {
                store::remove(&folder, key)?;
                console.note(&format!("removed store {key}"));
            }
            Ok(Exit::Ok)
        }
    }
}

fn build(
    shared: &Shared,
    args: &SweepArgs,
    folder: Option<&Path>,
    console: &Console,
) -> Result<Exit, CliError> {
    failpoint::set_role(failpoint::Role::Coordinator);
    let sweep = Sweep::load(&args.sweep, &args.overrides.set)?;
    let folder = match folder {
        Some(folder) => folder.to_owned(),
        None => sweep.stores(shared)?,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let built = runtime.block_on(async {
        let (stop, mut interrupts) = (StopFlag::default(), Interrupts::by_signals()?);
        let (there, plan) = (console.clone(), sweep.plan);
        let (inputs, plan) = on_thread(&mut interrupts, console, &stop, OnInterrupt::CutOff, move || {
            let inputs = Inputs::find(&plan, &HubOptions::from_env(), &mut DownloadBars::new(&there))?;
            Ok((inputs, plan))
        })
        .await?;
        let (there, stop_there) = (console.clone(), stop.clone());
        on_thread(&mut interrupts, console, &stop, OnInterrupt::Ask, move || {
            stores::build(&plan, &inputs, &folder, &there, &stop_there)
        })
        .await
    })?;
    for line in &built.lines {
        show::print(&format!("{}\n", line.key))?;
    }
    Ok(Exit::Ok)
}

fn list(folder: &Path, format: Format) -> Result<Exit, CliError> {
    let stores = store::list(folder)?;
    if format == Format::Json {
        show::print_json(&stores.iter().map(store_json).collect())?;
        return Ok(Exit::Ok);
    }
    let header = ["store", "state", "size", "tokens", "width", "dtype", "model", "hook", "data", "last use"]
        .map(str::to_owned);
    let rows: Vec<Vec<String>> = stores
        .iter()
        .map(|store| {
            let mut row = vec![store.key.clone(), state(store), show::bytes(store.bytes)];
            match &store.content {
                Some(content) => row.extend([
                    show::count(content.rows),
                    content.width.to_string(),
                    dtype(content.dtype),
                    content.label.model.clone(),
                    content.label.hook.clone(),
                    content.label.dataset.clone(),
                ]),
                None => row.extend(std::iter::repeat_n(String::new(), 6)),
            }
            row.push(last_use(store));
            row
        })
        .collect();
    show::print_table(&header, &rows)?;
    Ok(Exit::Ok)
}

fn state(store: &StoreInfo) -> String {
    let state = match &store.state {
        StoreState::Whole => "whole".to_owned(),
        StoreState::Partial { shards_done, shards } => format!("partial, {shards_done} of {shards} shards"),
        StoreState::Broken(why) => format!("broken: {why}"),
    };
    if store.in_use { format!("{state}, in use") } else { state }
}

fn dtype(dtype: crate::trial::StoreDtype) -> String {
    show::setting(&serde_json::to_value(dtype).expect("invariant: a dtype is a word"))
}

fn last_use(store: &StoreInfo) -> String {
    let Some(at) = store.last_used.and_then(|at| jiff::Timestamp::try_from(at).ok()) else {
        return String::new();
    };
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}

fn store_json(store: &StoreInfo) -> Value {
    let unix_secs =
        store.last_used.and_then(|at| Some(at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs()));
    let content = store.content.as_ref().map(|content| {
        json!({
            "model": content.label.model,
            "hook": content.label.hook,
            "dataset": content.label.dataset,
            "rows": content.rows,
            "width": content.width,
            "dtype": dtype(content.dtype),
        })
    });
    let (word, detail) = match &store.state {
        StoreState::Whole => ("whole", Value::Null),
        StoreState::Partial { shards_done, shards } => {
            ("partial", json!({"shards_done": shards_done, "shards": shards}))
        }
        StoreState::Broken(why) => ("broken", json!(why)),
    };
    json!({
        "key": store.key,
        "folder": store.dir,
        "state": word,
        "detail": detail,
        "bytes": store.bytes,
        "in_use": store.in_use,
        "last_used_unix_secs": unix_secs,
        "content": content,
    })
}

fn verify(folder: &Path, keys: &[String], format: Format) -> Result<Exit, CliError> {
    let known = store::list(folder)?;
    if let Some(unknown) = keys.iter().find(|key| known.iter().all(|store| store.key != **key)) {
        let folder = folder.display();
        return Err(CliError::Usage(format!("there is no store `{unknown}` in `{folder}`")));
    }
    let wanted =
        known.iter().filter(|store| keys.is_empty() || keys.contains(&store.key)).collect::<Vec<_>>();
    let mut is_intact = true;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for store in wanted {
        let problems: Vec<String> = match &store.state {
            StoreState::Whole => {
                store::verify(&store.dir)?.problems.iter().map(ToString::to_string).collect()
            }
            StoreState::Partial { .. } => vec![format!("{}; a run that needs it completes it", state(store))],
            StoreState::Broken(why) => vec![why.clone()],
        };
        // What is not complete yet is not damaged.
        is_intact &= problems.is_empty() || matches!(store.state, StoreState::Partial { .. });
        let word = if problems.is_empty() { "intact".to_owned() } else { problems.join("; ") };
        rows.push(vec![store.key.clone(), show::bytes(store.bytes), word]);
        values.push(json!({"key": store.key, "bytes": store.bytes, "problems": problems}));
    }
    match format {
        Format::Table => show::print_table(&["store", "size", "finding"].map(str::to_owned), &rows)?,
        Format::Json => show::print_json(&Value::Array(values))?,
    }
    Ok(if is_intact { Exit::Ok } else { Exit::Error })
}
