//! The loop: batches in, metrics lines and checkpoints out, from wherever the last checkpoint left it.

use super::{
    checkpoint::{self, CHECKPOINT_FOLDER},
    device::Backend,
    metrics::{LogLine, METRICS_FILE, MetricsFile},
    prepare::prepare,
    trainer::{Trained, Trainer},
};
use crate::{
    kernels::Pool,
    sae::{self, Normalizer, Sae, Start, StartProblem},
    store::{BatchOrder, Store, StoreError},
    trial::{Architecture, NormalizeActivations, SparsityLossMode, TrialConfig, TrialJob},
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
    let d_in = store.width();
    let order = BatchOrder::new(store.rows(), config.train.batch_size, config.train.data_seed)?;
    let normalizer = normalizer(store, config, &job.store_key)?;
    let read = |step: u64, out: &mut [f32]| -> Result<(), TrainError> {
        store.read_batch(&order, step, out);
        Ok(())
    };
    let start = match start {
        Some(sae) => {
            sae::check_start(&sae, &config.sae, d_in)?;
            sae::start(sae, &config.sae, &normalizer, pool)
        }
        None => sae::init(&config.sae, d_in, config.train.seed).into(),
    };
    run(folder, job, Source { start, normalizer, read: &read }, pool, backend, hooks)
}

/// Settings that no step could honour.
fn check(config: &TrialConfig) -> Result<(), TrainError> {
    let per_row = Normalizer::run_time(config.sae.normalize_activations).is_per_row();
    let (k, aux_loss_coefficient) = match config.sae.architecture {
        Architecture::Standard { .. } => return Ok(()),
        Architecture::Gated { .. } if per_row => {
            return Err(TrainError::Setting(
                "the reconstruction by gates is not defined for sae.normalize_activations = layer_norm or \
                 constant_norm_rescale"
                    .to_owned(),
            ));
        }
        Architecture::Gated { .. } => return Ok(()),
        Architecture::JumpRelu { jumprelu_sparsity_loss_mode: mode, target_l0, .. } => {
            if mode == SparsityLossMode::Quadratic && target_l0 <= 0.0 {
                return Err(TrainError::Setting(format!(
                    "sae.target_l0 is {target_l0}, expected a number above 0"
                )));
            }
            return Ok(());
        }
        Architecture::TopK { k, aux_loss_coefficient, .. }
        | Architecture::AbsTopK { k, aux_loss_coefficient, .. } => (k as f64, aux_loss_coefficient),
        Architecture::BatchTopK { k, aux_loss_coefficient, .. } => (k, aux_loss_coefficient),
        Architecture::MatryoshkaBatchTopK { k, ref matryoshka_widths, .. } => {
            let rise = matryoshka_widths.is_sorted_by(|a, b| a < b) && matryoshka_widths.first() != Some(&0);
            if !rise || matryoshka_widths.last() != Some(&config.sae.d_sae) {
                return Err(TrainError::Setting(format!(
                    "sae.matryoshka_widths are {matryoshka_widths:?}, expected rising widths that end at \
                     sae.d_sae = {}",
                    config.sae.d_sae
                )));
            }
            // Every level's error is measured on the input as it came to the SAE.
            (k, 1.0)
        }
    };
    if !(k > 0.0 && k <= config.sae.d_sae as f64) {
        return Err(TrainError::Setting(format!(
            "sae.k is {k}, expected a number above 0 and at most sae.d_sae = {}",
            config.sae.d_sae
        )));
    }
    if per_row && aux_loss_coefficient != 0.0 {
        return Err(TrainError::Setting(
            "the auxiliary loss on dead latents is not defined for sae.normalize_activations = layer_norm or \
             constant_norm_rescale; set sae.aux_loss_coefficient = 0"
                .to_owned(),
        ));
    }
    Ok(())
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

/// Reads the batch of a step.
pub(super) type ReadBatch<'a> = dyn Fn(u64, &mut [f32]) -> Result<(), TrainError> + 'a;

/// What a run is fed with.
pub(super) struct Source<'a> {
    pub(super) start: Start,
    pub(super) normalizer: Normalizer,
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
    let Source { start, normalizer, read: read_batch } = source;
    let (sae, train) = (&job.config.sae, &job.config.train);
    let d_in = start.params.d_in();
    let mut trainer = Trainer::new(sae, train, d_in, start.params, normalizer, pool);
    trainer.topk_threshold = start.topk_threshold;
    let mut metrics = resume(folder, job, &mut trainer)?;
    prepare(&mut trainer, read_batch, pool)?;
    if let Backend::Tensors(device) = backend {
        trainer.move_to(device)?;
    }
    let (from_step, total_steps) = (trainer.steps, train.steps());
    (hooks.on_start)(from_step);

    let started = (hooks.now_secs)();
    let mut saved = Saved { step: from_step, secs: started };
    let mut batch = vec![0.0; train.batch_size * d_in];
    while trainer.steps < total_steps {
        if (hooks.should_stop)() {
            if saved.step < trainer.steps {
                save(folder, job, &mut trainer, &mut metrics)?;
            }
            return Ok(TrainOutcome::Stopped { step: trainer.steps });
        }
        read_batch(trainer.steps, &mut batch)?;
        let step = trainer.steps + 1;
        let report = trainer.step(pool, &batch)?;
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
