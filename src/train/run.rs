//! The loop: batches in, metrics lines and checkpoints out, from wherever the last checkpoint left it.

use super::{
    checkpoint::{self, CHECKPOINT_FOLDER},
    device::{Backend, gpu_only},
    metrics::{LogLine, METRICS_FILE, MetricsFile},
    output::Output,
    prepare::prepare,
    trainer::{Begun, Trained, Trainer},
};
use crate::{
    kernels::Pool,
    sae::{self, Normalizer, Sae, Start, StartProblem},
    spec::contradictions_in,
    store::{BatchOrder, Store, StoreError},
    trial::{NormalizeActivations, TrialConfig, TrialJob},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What the loop asks of its caller.
pub struct Hooks<'a> {
    /// Called once, before the first step, with the steps done according to the checkpoint.
    pub on_start: &'a mut dyn FnMut(u64),
    /// Called with every line that goes to `metrics.jsonl`.
    pub on_log: &'a mut dyn FnMut(&LogLine),
    /// Asked before every step. When it says yes, the loop checkpoints and returns.
    pub should_stop: &'a dyn Fn() -> bool,
    /// Seconds from any fixed point, for the time between checkpoints.
    pub now_secs: &'a dyn Fn() -> f64,
}

/// How training ended.
#[derive(Debug)]
pub enum TrainOutcome {
    /// All steps are done.
    Finished {
        /// What came of it.
        trained: Box<Trained>,
        /// Steps of the whole run.
        steps: u64,
        /// Steps that an earlier attempt had already done.
        from_step: u64,
        /// Seconds in the loop, this attempt.
        train_secs: f64,
    },
    /// A loss or a gradient became NaN or infinite.
    Diverged {
        /// The step it happened in, counted from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Steps that an earlier attempt had already done.
        from_step: u64,
        /// Seconds in the loop, this attempt.
        train_secs: f64,
    },
    /// The caller asked to stop; a checkpoint is written.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

/// A trial that could not be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store cannot serve the trial.
    #[error("the store {key} has {problem}")]
    Unfit {
        /// The store's key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It cannot start from the SAE it is to start from.
    #[error("the trial cannot start from the SAE of sae.init_from: {0}")]
    Start(#[from] StartProblem),
    /// Settings that do not go together.
    #[error("{0}")]
    Setting(String),
    /// The slot's device is not there.
    #[error("`{device}` cannot be used: {problem}")]
    Unavailable {
        /// The slot.
        device: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The device failed in the middle.
    #[error("`{device}` failed: {source}")]
    Device {
        /// The device.
        device: String,
        /// How.
        source: Box<candle_core::Error>,
    },
    /// The trial's folder cannot be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// What was being written.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Trains the trial of `folder` on `store`, from its checkpoint if it has one; the first time from `start`, or
/// from weights drawn by the trial's seed.
///
/// The same trial on the same store leaves the same weights and the same `metrics.jsonl`, however often it
/// was interrupted, as long as it runs with the same instruction set, or on the same kind of GPU.
pub fn train(
    folder: &Path,
    job: &TrialJob,
    store: &Store,
    start: Option<Sae>,
    pool: &Pool,
    backend: &Backend,
    hooks: Hooks<'_>,
) -> Result<TrainOutcome, TrainError> {
    let config = &job.config;
    check(config)?;
    let d_in = store.d_in();
    let order = BatchOrder::new(store.rows(), config.train.batch_size, config.train.data_seed)?;
    let output = output(store, config, &job.store_key)?;
    let normalizer = match output {
        Some(_) => Normalizer::Identity,
        None => normalizer(store, config, &job.store_key)?,
    };
    let read = |step: u64, out: &mut [f32]| -> Result<(), TrainError> {
        store.read_batch(&order, step, out);
        Ok(())
    };
    let start = match (start, &output) {
        (Some(_), Some(_)) => {
            return Err(TrainError::Setting("a transcoder starts from weights that are drawn".to_owned()));
        }
        (None, Some(output)) => {
            sae::init_transcoder(&config.sae, output.d_in, output.d_out, config.train.seed).into()
        }
        (Some(sae), None) => {
            sae::check_start(&sae, &config.sae, d_in)?;
            sae::start(sae, &config.sae, &normalizer, pool)
        }
        (None, None) => sae::init(&config.sae, d_in, config.train.seed).into(),
    };
    run(folder, job, Source { start, normalizer, output, read: &read }, pool, backend, hooks)
}

/// Settings that no step could honour. A plan has none, but a configuration may come from elsewhere.
fn check(config: &TrialConfig) -> Result<(), TrainError> {
    let told = contradictions_in(config);
    if told.is_empty() { Ok(()) } else { Err(TrainError::Setting(told.join("; "))) }
}

fn normalizer(store: &Store, config: &TrialConfig, key: &str) -> Result<Normalizer, TrainError> {
    let mode = config.sae.normalize_activations;
    let unfit = |problem: String| TrainError::Unfit { key: key.to_owned(), problem };
    match mode {
        NormalizeActivations::ExpectedAverageOnlyIn | NormalizeActivations::CovarianceWhitening => {
            let stats = store.stats()?;
            Normalizer::new(mode, store.width(), stats.mean_norm, &stats.mean, &stats.covariance).ok_or_else(
                || unfit(format!("statistics that cannot scale activations (mean norm {})", stats.mean_norm)),
            )
        }
        other => Ok(Normalizer::run_time(other)),
    }
}

/// How the rows of a transcoder's store are taken apart; `None` in a store for SAEs.
fn output(store: &Store, config: &TrialConfig, key: &str) -> Result<Option<Output>, TrainError> {
    let unfit = |problem: String| TrainError::Unfit { key: key.to_owned(), problem };
    let Some(d_out) = store.d_out() else {
        return if config.source.is_of_two_hooks() {
            Err(unfit("the activations of one hook, not a transcoder's two".to_owned()))
        } else {
            Ok(None)
        };
    };
    let d_in = store.d_in();
    let scales = match config.sae.normalize_activations {
        NormalizeActivations::None => [1.0, 1.0],
        NormalizeActivations::ExpectedAverageOnlyIn => {
            let norms = store.stats()?.norms.unwrap_or_default();
            let scales = [(d_in as f64).sqrt() / norms[0], (d_out as f64).sqrt() / norms[1]];
            if !scales.iter().all(|scale| scale.is_finite() && *scale > 0.0) {
                return Err(unfit(format!(
                    "statistics that cannot scale activations (mean norms {norms:?})"
                )));
            }
            scales
        }
        other => {
            return Err(TrainError::Setting(format!(
                "a transcoder's activations are scaled by none or expected_average_only_in, not {other:?}"
            )));
        }
    };
    Ok(Some(Output { d_in, d_out, scale_in: scales[0], scale_out: scales[1] }))
}

/// Reads the batch of a step.
pub(super) type ReadBatch<'a> = dyn Fn(u64, &mut [f32]) -> Result<(), TrainError> + 'a;

/// What a run is fed with.
pub(super) struct Source<'a> {
    pub(super) start: Start,
    pub(super) normalizer: Normalizer,
    /// In a transcoder's run.
    pub(super) output: Option<Output>,
    pub(super) read: &'a ReadBatch<'a>,
}

/// [`train`] with batches and a start from anywhere.
pub(super) fn run(
    folder: &Path,
    job: &TrialJob,
    source: Source<'_>,
    pool: &Pool,
    backend: &Backend,
    hooks: Hooks<'_>,
) -> Result<TrainOutcome, TrainError> {
    let Source { start, normalizer, output, read: read_batch } = source;
    let (sae, train) = (&job.config.sae, &job.config.train);
    let d_in = start.params.d_in();
    let mut trainer = Trainer::new(sae, train, d_in, start.params, normalizer, pool);
    if let Some(output) = output {
        trainer = trainer.with_output(output);
    }
    trainer.topk_threshold = start.topk_threshold;
    let mut metrics = resume(folder, job, &mut trainer)?;
    prepare(&mut trainer, read_batch, pool)?;
    match backend {
        Backend::Tensors(device) => trainer.move_to(device)?,
        Backend::Kernels => {
            if let Some(what) = gpu_only(train) {
                return Err(TrainError::Setting(format!(
                    "{what} is for GPUs only, and this trial is on the CPU; set it to false, or devices.use to a GPU's kind"
                )));
            }
        }
    }
    let (from_step, total_steps) = (trainer.steps, train.steps());
    (hooks.on_start)(from_step);

    let started = (hooks.now_secs)();
    let mut saved = Saved { step: from_step, secs: started };
    let mut batch = vec![0.0; train.batch_size * output.map_or(d_in, |output| output.row_width())];
    // The batch of the next step, where one is read while a step runs.
    let mut ahead = if trainer.stages() { batch.clone() } else { Vec::new() };
    let mut is_ahead = false;
    while trainer.steps < total_steps {
        if (hooks.should_stop)() {
            if saved.step < trainer.steps {
                save(folder, job, &mut trainer, &mut metrics)?;
            }
            return Ok(TrainOutcome::Stopped { step: trainer.steps });
        }
        if is_ahead {
            std::mem::swap(&mut batch, &mut ahead);
        } else {
            read_batch(trainer.steps, &mut batch)?;
        }
        let step = trainer.steps + 1;
        let report = match trainer.begin_step(pool, &batch)? {
            Begun::Ended(report) => report,
            Begun::Launched => {
                is_ahead = trainer.stages() && step < total_steps;
                if is_ahead {
                    read_batch(step, &mut ahead)?;
                    trainer.stage(pool, &ahead)?;
                }
                trainer.end_step()?
            }
        };
        if !report.is_finite() {
            let train_secs = (hooks.now_secs)() - started;
            return Ok(TrainOutcome::Diverged { step, loss: report.losses.overall, from_step, train_secs });
        }
        let every = job.run.log_every_steps.max(1);
        if step.is_multiple_of(every) || step == total_steps {
            let line = trainer.log_line(&batch)?;
            metrics.append(&line).map_err(io_error(&folder.join(METRICS_FILE)))?;
            (hooks.on_log)(&line);
        }
        let now = (hooks.now_secs)();
        if step < total_steps && saved.is_due(job, step, now) {
            save(folder, job, &mut trainer, &mut metrics)?;
            saved = Saved { step, secs: (hooks.now_secs)() };
        }
    }
    let train_secs = (hooks.now_secs)() - started;
    metrics.sync().map_err(io_error(&folder.join(METRICS_FILE)))?;
    let trained = Box::new(trainer.finish(pool)?);
    Ok(TrainOutcome::Finished { trained, steps: total_steps, from_step, train_secs })
}

/// When the last checkpoint was written.
struct Saved {
    step: u64,
    secs: f64,
}

impl Saved {
    fn is_due(&self, job: &TrialJob, step: u64, now_secs: f64) -> bool {
        let (steps, minutes) = (job.run.checkpoint_every_steps, job.run.checkpoint_every_minutes);
        (steps > 0 && step - self.step >= steps) || (minutes > 0.0 && now_secs - self.secs >= 60.0 * minutes)
    }
}

/// Brings a fresh trainer to the checkpoint and cuts `metrics.jsonl` back to it.
fn resume(folder: &Path, job: &TrialJob, trainer: &mut Trainer) -> Result<MetricsFile, TrainError> {
    let path = folder.join(METRICS_FILE);
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => 0,
        Err(err) => return Err(io_error(&path)(err)),
    };
    let bytes = checkpoint::load(folder, job, trainer, length);
    MetricsFile::open(&path, bytes).map_err(io_error(&path))
}

fn save(
    folder: &Path,
    job: &TrialJob,
    trainer: &mut Trainer,
    metrics: &mut MetricsFile,
) -> Result<(), TrainError> {
    trainer.download()?;
    // The lines must be on disk before a checkpoint counts on them.
    let bytes = metrics.sync().map_err(io_error(&folder.join(METRICS_FILE)))?;
    checkpoint::save(folder, job, trainer, bytes).map_err(|err| {
        let source = match err {
            checkpoint::WriteError::Io(source) => source,
            checkpoint::WriteError::Safetensors(source) => io::Error::other(source),
        };
        TrainError::Io { path: folder.join(CHECKPOINT_FOLDER), source }
    })
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> TrainError + use<'_> {
    |source| TrainError::Io { path: path.to_owned(), source }
}
