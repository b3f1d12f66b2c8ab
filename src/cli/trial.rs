//! `saesweep trial`: one trial, from its `config.toml` to its `result.json`.
//!
//! The process speaks to its coordinator in JSON lines on stdout and to people in its log. Its result is
//! written last of all its files. Everything but times, slot and threads follows from configuration and
//! store alone, however often the trial was interrupted.

use super::{CliError, Exit, args::TrialArgs, prepare::remove_spent_checkpoint, show, work::StopFlag};
use crate::{
    eval,
    event::TrialMessage,
    failpoint,
    kernels::Pool,
    rundir::{RunDirError, TrialDir, read_job, read_result, write_atomic},
    sae::{self, Sae, SaveInfo},
    store::Store,
    train::{self, Backend, Hooks, LogLine, TrainOutcome, Trained},
    trial::{RESULT_VERSION, TrialJob, TrialResult, TrialStatus, TrialTiming},
};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, TryLockError},
    time::{Duration, Instant},
};

/// Environment variable with the process id of the coordinator that started the trial.
pub(super) const COORDINATOR: &str = "SAESWEEP_COORDINATOR";

/// Runs a trial, from its checkpoint if it has one.
pub(super) fn trial(args: &TrialArgs) -> Result<Exit, CliError> {
    failpoint::set_role(failpoint::Role::Trial);
    if !die_with_coordinator() {
        return Ok(Exit::Stopped);
    }
    let stop = stop_on_signals()?;
    let dir = TrialDir::new(&args.folder);
    let job = read_job(&dir)?.ok_or_else(|| {
        CliError::Usage(format!("`{}` is no trial folder: it has no config.toml", args.folder.display()))
    })?;
    let Some(_lock) = lock(&dir, &stop)? else { return Ok(Exit::Stopped) };
    if let Some(result) = read_result(&dir)?.filter(|result| result.store_key == job.store_key) {
        tracing::info!("trial {} has its result already", job.id);
        return end(&dir, result);
    }
    let result = match run(args, &dir, &job, &stop) {
        Ok(Some(result)) => result,
        Ok(None) => {
            tracing::info!("stopped on request, with a checkpoint");
            return Ok(Exit::Stopped);
        }
        // An error that we can name is a verdict: it would come again.
        Err(error) => {
            tracing::error!("{error}");
            let failed =
                Unmeasured { status: TrialStatus::Failed, reason: error.to_string(), steps: 0, d_in: 0 };
            failed.result(args, &job)
        }
    };
    end(&dir, result)
}

/// Writes the verdict, if it is not there yet, and what follows from it.
fn end(dir: &TrialDir, result: TrialResult) -> Result<Exit, CliError> {
    if !dir.result().exists() {
        let mut text = serde_json::to_string_pretty(&result).expect("invariant: a result is plain data");
        text.push('\n');
        write_atomic(&dir.result(), text.as_bytes())?;
    }
    failpoint::hit("trial: has its result");
    remove_spent_checkpoint(dir, result.status)?;
    let exit = if result.status == TrialStatus::Done { Exit::Ok } else { Exit::SomeFailed };
    say(&TrialMessage::Ended { result: Box::new(result) });
    Ok(exit)
}

/// Trains and evaluates; `None` when it was stopped on request.
fn run(
    args: &TrialArgs,
    dir: &TrialDir,
    job: &TrialJob,
    stop: &StopFlag,
) -> Result<Option<TrialResult>, CliError> {
    let backend = Backend::open(&args.slot)?;
    let store = Store::open(&args.stores, &job.store_key)?;
    let _in_use = store.mark_used()?;
    let pool = Pool::new(args.threads);
    let start = start_weights(args, job)?;
    match train(dir, job, &store, start, &pool, &backend, stop)? {
        TrainOutcome::Stopped { .. } => Ok(None),
        TrainOutcome::Diverged { step, loss, from_step, train_secs } => {
            let diverged = Unmeasured {
                status: TrialStatus::Diverged,
                reason: format!("the loss became {loss} in step {step}"),
                steps: step.saturating_sub(1),
                d_in: store.d_in(),
            };
            let mut result = diverged.result(args, job);
            result.timing = timing(args, job, train_secs, step - from_step, 0.0);
            Ok(Some(result))
        }
        TrainOutcome::Finished { trained, steps, from_step, train_secs } => {
            if stop.is_set() {
                return Ok(None);
            }
            say(&TrialMessage::Evaluating);
            let eval_start = Instant::now();
            let (metrics, log10_density) = measure(args, job, &store, &trained, &pool)?;
            let eval_secs = eval_start.elapsed().as_secs_f64();
            failpoint::hit("trial: evaluated");
            let info = SaveInfo {
                trial: job.id.clone(),
                store_key: job.store_key.clone(),
                config: job.config.clone(),
                l0: Some(trained.l0),
                num_dead_features: Some(trained.n_dead),
                metrics: metrics.clone(),
            };
            sae::save(&dir.sae(), &trained.sae, Some(&trained.sparsity), &info)?;
            failpoint::hit("trial: saved");
            Ok(Some(TrialResult {
                version: RESULT_VERSION,
                id: job.id.clone(),
                store_key: job.store_key.clone(),
                init_blake3: job.init_blake3.clone(),
                status: TrialStatus::Done,
                reason: None,
                steps,
                d_in: store.d_in(),
                metrics,
                log10_density,
                timing: timing(args, job, train_secs, steps - from_step, eval_secs),
            }))
        }
    }
}

/// Time between two progress messages.
const MESSAGE_EVERY: Duration = Duration::from_millis(100);

fn train(
    dir: &TrialDir,
    job: &TrialJob,
    store: &Store,
    start_weights: Option<Sae>,
    pool: &Pool,
    backend: &Backend,
    stop: &StopFlag,
) -> Result<TrainOutcome, CliError> {
    let start = Instant::now();
    let batch_size = job.config.train.batch_size as f64;
    let mut begin = (0, start);
    let mut last_message = None;
    let started = std::cell::Cell::new(None);
    let steps = job.config.train.steps();
    let mut on_start = |from_step: u64| {
        started.set(Some((from_step, Instant::now())));
        if from_step > 0 {
            tracing::info!("continues at step {from_step} of {steps}");
        }
    };
    let mut on_log = |line: &LogLine| {
        failpoint::hit("trial: logged");
        let now = Instant::now();
        if let Some((from_step, at)) = started.take() {
            begin = (from_step, at);
            say(&TrialMessage::Started { from_step, steps });
        }
        if last_message.is_some_and(|last| now - last < MESSAGE_EVERY) {
            return;
        }
        last_message = Some(now);
        let (from_step, since) = begin;
        let tokens = line.step.saturating_sub(from_step) as f64 * batch_size;
        say(&TrialMessage::Progress {
            step: line.step,
            loss: line.overall_loss,
            l0: line.l0,
            tokens_per_sec: tokens / (now - since).as_secs_f64().max(1e-9),
        });
    };
    let hooks = Hooks {
        on_start: &mut on_start,
        on_log: &mut on_log,
        should_stop: &|| stop.is_set(),
        now_secs: &|| start.elapsed().as_secs_f64(),
    };
    Ok(train::train(dir.root(), job, store, start_weights, pool, backend, hooks)?)
}

/// The SAE that the trial starts from, the very one that it was planned with.
fn start_weights(args: &TrialArgs, job: &TrialJob) -> Result<Option<Sae>, CliError> {
    let init_from = &job.config.sae.init_from;
    if init_from.is_empty() {
        return Ok(None);
    }
    let folder = args.init.as_ref().ok_or_else(|| {
        CliError::Usage(format!("the trial starts from the SAE `{init_from}`; give its folder by --init DIR"))
    })?;
    let found = Some(sae::weights_blake3(folder)?);
    if found != job.init_blake3 {
        let hash = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "none".to_owned());
        return Err(CliError::Usage(format!(
            "the weights of `{}` have the hash {}, the trial was planned with {}",
            folder.display(),
            hash(&found),
            hash(&job.init_blake3)
        )));
    }
    Ok(Some(sae::load(folder)?))
}

type Measured = (BTreeMap<String, f64>, Vec<u64>);

fn measure(
    args: &TrialArgs,
    job: &TrialJob,
    store: &Store,
    trained: &Trained,
    pool: &Pool,
) -> Result<Measured, CliError> {
    let evaluation = eval::evaluate(args.model.as_deref(), store, &trained.sae, &job.config.eval, pool)?;
    let mut metrics = evaluation.metrics;
    metrics.insert("train_loss".to_owned(), trained.losses.overall);
    metrics.insert("dead_share".to_owned(), trained.dead_share());
    metrics.retain(|_, value| value.is_finite());
    Ok((metrics, evaluation.log10_density))
}

/// A verdict without metrics.
struct Unmeasured {
    status: TrialStatus,
    reason: String,
    steps: u64,
    d_in: usize,
}

impl Unmeasured {
    fn result(self, args: &TrialArgs, job: &TrialJob) -> TrialResult {
        TrialResult {
            version: RESULT_VERSION,
            id: job.id.clone(),
            store_key: job.store_key.clone(),
            init_blake3: job.init_blake3.clone(),
            status: self.status,
            reason: Some(self.reason),
            steps: self.steps,
            d_in: self.d_in,
            metrics: BTreeMap::new(),
            log10_density: Vec::new(),
            timing: timing(args, job, 0.0, 0, 0.0),
        }
    }
}

fn timing(args: &TrialArgs, job: &TrialJob, train_secs: f64, steps: u64, eval_secs: f64) -> TrialTiming {
    let tokens = steps as f64 * job.config.train.batch_size as f64;
    TrialTiming {
        train_secs,
        eval_secs,
        tokens_per_sec: if train_secs > 0.0 { tokens / train_secs } else { 0.0 },
        slot: args.slot.to_string(),
        threads: args.threads,
        isa: Backend::name(args.slot.kind),
    }
}

/// Says something to the coordinator. One that does not listen any more is no reason to stop, and no verdict on the
/// trial: a coordinator that is killed closes its pipe a little before the system ends its trials.
fn say(message: &TrialMessage) {
    let mut line = serde_json::to_string(message).expect("invariant: messages are plain data");
    line.push('\n');
    if let Err(error) = show::print(&line) {
        tracing::debug!("{error}");
    }
}

/// Makes sure that this process does not outlive its coordinator: two processes must not work on one trial.
/// `false` when the coordinator is gone already.
fn die_with_coordinator() -> bool {
    let Some(coordinator) = std::env::var(COORDINATOR).ok().and_then(|pid| pid.parse::<i32>().ok()) else {
        // Started by hand or by a queue.
        return true;
    };
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
    {
        tracing::warn!("this trial may outlive its coordinator: {error}");
    }
    // It may have died before we asked.
    if !is_child_of(coordinator) {
        return false;
    }
    #[cfg(not(target_os = "linux"))]
    die_after(coordinator);
    true
}

fn is_child_of(coordinator: i32) -> bool {
    rustix::process::getppid().is_some_and(|parent| parent.as_raw_nonzero().get() == coordinator)
}

/// Ends this process soon after its coordinator, where the system cannot be asked to.
#[cfg(not(target_os = "linux"))]
fn die_after(coordinator: i32) {
    use rustix::process::{Signal, getpid, kill_process};
    std::thread::spawn(move || {
        while is_child_of(coordinator) {
            std::thread::sleep(Duration::from_millis(200));
        }
        if let Err(error) = kill_process(getpid(), Signal::KILL) {
            tracing::error!("this trial has outlived its coordinator: {error}");
        }
    });
}

/// A flag that SIGTERM and SIGINT set.
fn stop_on_signals() -> Result<StopFlag, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = StopFlag::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(CliError::Runtime)?;
    // The handlers are in place before this function returns.
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        let listen = |kind| signal(kind).map_err(CliError::Runtime);
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?)
    };
    let flag = stop.clone();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            loop {
                let open = tokio::select! { got = terminate.recv() => got, got = interrupt.recv() => got };
                if open.is_none() {
                    return;
                }
                flag.set();
            }
        });
    });
    Ok(stop)
}

/// Takes the trial's folder. Another process that still has it is waited for; `None` when we are stopped
/// meanwhile.
fn lock(dir: &TrialDir, stop: &StopFlag) -> Result<Option<File>, CliError> {
    let path = dir.lock();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(RunDirError::io("open", &path))?;
    let mut is_told = false;
    while !stop.is_set() {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(source)) => return Err(RunDirError::io("lock", &path)(source).into()),
            Err(TryLockError::WouldBlock) => {
                if !is_told {
                    tracing::warn!("another process works on this trial; waiting for it");
                    is_told = true;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
    Ok(None)
}
