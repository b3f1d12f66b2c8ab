//! What a killed trial continues from.
//!
//! The folder holds `state.safetensors` (weights, Adam's moments, firing counts) and `checkpoint.json`
//! (format version, whose it is, step, checksum of the state, length of `metrics.jsonl`). It is replaced as
//! a whole. A checkpoint that is damaged, of another trial, of another store or of another version is not
//! used: the reader says so in the log and the trial starts over, which costs time and nothing else.

use super::trainer::Trainer;
use crate::{
    failpoint,
    kernels::{Params, StepLosses},
    sae::folder,
    trial::{TrialId, TrialJob},
};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

/// Name of the checkpoint's folder in the trial's folder.
pub const CHECKPOINT_FOLDER: &str = "checkpoint";

/// Version of the format; raise it when a field or tensor changes its meaning.
const VERSION: u32 = 2;

const HEADER_FILE: &str = "checkpoint.json";
const STATE_FILE: &str = "state.safetensors";

/// `checkpoint.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    version: u32,
    trial: TrialId,
    store_key: String,
    step: u64,
    tokens_in_window: u64,
    /// Losses of the last step: overall, mse, sparsity, auxiliary, l0.
    losses: [f64; 5],
    /// The bits of a BatchTopK's threshold, so that it comes back as it was.
    topk_threshold_bits: u64,
    /// Steps that have moved it; earlier programs, which did not use the number, did not write it.
    #[serde(default)]
    topk_threshold_updates: u64,
    /// Bytes of `metrics.jsonl` up to this step.
    metrics_bytes: u64,
    /// BLAKE3 of `state.safetensors`.
    state_blake3: String,
}

/// A checkpoint that could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Safetensors(#[from] safetensors::SafeTensorError),
}

/// Why a checkpoint is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its header cannot be read: {0}")]
    Header(#[from] serde_json::Error),
    #[error("it has format version {found}, this program writes {VERSION}")]
    Version { found: u32 },
    #[error("it is of {what} {found}, not {expected}")]
    Other { what: &'static str, found: String, expected: String },
    #[error("it goes with {expected} bytes of metrics, but there are {found}")]
    Metrics { found: u64, expected: u64 },
    #[error("its state does not have the checksum in its header")]
    Checksum,
    #[error("its state cannot be read: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    #[error("its tensor `{name}` does not fit the trial")]
    Tensor { name: String },
}

/// Only the version, which every version of the header has.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// Writes the trainer's state as the checkpoint of the trial folder. `metrics_bytes` is the length of
/// `metrics.jsonl` at this step, already durable.
pub(super) fn save(
    trial_folder: &Path,
    job: &TrialJob,
    trainer: &Trainer,
    metrics_bytes: u64,
) -> Result<(), WriteError> {
    folder::replace(&trial_folder.join(CHECKPOINT_FOLDER), |new| {
        let state = new.join(STATE_FILE);
        safetensors::serialize_to_file(tensors(trainer), None, &state)?;
        failpoint::hit("checkpoint: state without header");
        let losses = trainer.losses;
        let header = Header {
            version: VERSION,
            trial: job.id.clone(),
            store_key: job.store_key.clone(),
            step: trainer.steps,
            tokens_in_window: trainer.firing.tokens_in_window,
            losses: [losses.overall, losses.mse, losses.sparsity, losses.auxiliary, losses.l0],
            topk_threshold_bits: trainer.topk_threshold.to_bits(),
            topk_threshold_updates: trainer.topk_threshold_updates,
            metrics_bytes,
            state_blake3: hash(&state)?,
        };
        let text = serde_json::to_string_pretty(&header).map_err(io::Error::other)?;
        Ok(fs::write(new.join(HEADER_FILE), text)?)
    })
}

/// Brings the trainer to the trial's checkpoint, if there is one that can be used, and returns the length
/// that `metrics.jsonl` had then. Otherwise the trainer is left as it is and the length is 0.
/// `metrics_bytes` is the length of the file now, which must reach as far as the checkpoint says.
pub(super) fn load(trial_folder: &Path, job: &TrialJob, trainer: &mut Trainer, metrics_bytes: u64) -> u64 {
    for candidate in folder::candidates(&trial_folder.join(CHECKPOINT_FOLDER)) {
        if !candidate.exists() {
            continue;
        }
        match read(&candidate, job, trainer, metrics_bytes) {
            Ok(bytes) => return bytes,
            Err(reason) => {
                tracing::warn!(checkpoint = %candidate.display(), %reason, "checkpoint not used");
            }
        }
    }
    0
}

/// Removes the trial folder's checkpoint, once the trial's verdict is written.
pub fn remove(trial_folder: &Path) -> io::Result<()> {
    folder::remove_all(&trial_folder.join(CHECKPOINT_FOLDER))
}

fn read(folder: &Path, job: &TrialJob, trainer: &mut Trainer, metrics_bytes: u64) -> Result<u64, Unusable> {
    let text = fs::read_to_string(folder.join(HEADER_FILE))?;
    let VersionOnly { version } = serde_json::from_str(&text)?;
    if version != VERSION {
        return Err(Unusable::Version { found: version });
    }
    let header: Header = serde_json::from_str(&text)?;
    let same = |what, found: &str, expected: &str| {
        if found == expected {
            return Ok(());
        }
        Err(Unusable::Other { what, found: found.to_owned(), expected: expected.to_owned() })
    };
    same("trial", &header.trial.0, &job.id.0)?;
    same("store", &header.store_key, &job.store_key)?;
    if metrics_bytes < header.metrics_bytes {
        return Err(Unusable::Metrics { found: metrics_bytes, expected: header.metrics_bytes });
    }

    let path: PathBuf = folder.join(STATE_FILE);
    if hash(&path)? != header.state_blake3 {
        return Err(Unusable::Checksum);
    }
    let bytes = fs::read(&path)?;
    let state = SafeTensors::deserialize(&bytes)?;
    // Everything is checked before anything is taken over.
    for (name, flat) in tensors(trainer) {
        let tensor = state.tensor(&name)?;
        if tensor.dtype() != flat.dtype || tensor.shape() != flat.shape {
            return Err(Unusable::Tensor { name });
        }
    }
    for (prefix, params) in [("params", &mut trainer.params), ("m", &mut trainer.m), ("v", &mut trainer.v)] {
        for (name, values) in fields_mut(params) {
            bytemuck::cast_slice_mut(values)
                .copy_from_slice(state.tensor(&format!("{prefix}.{name}"))?.data());
        }
    }
    let firing = &mut trainer.firing;
    for (name, counts) in
        [(STEPS_SINCE_FIRED, &mut firing.steps_since_fired), (FIRED_IN_WINDOW, &mut firing.fired_in_window)]
    {
        bytemuck::cast_slice_mut(counts).copy_from_slice(state.tensor(name)?.data());
    }
    firing.tokens_in_window = header.tokens_in_window;
    let [overall, mse, sparsity, auxiliary, l0] = header.losses;
    trainer.steps = header.step;
    trainer.topk_threshold = f64::from_bits(header.topk_threshold_bits);
    trainer.topk_threshold_updates = header.topk_threshold_updates;
    trainer.losses = StepLosses { overall, mse, sparsity, auxiliary, l0 };
    Ok(header.metrics_bytes)
}

const STEPS_SINCE_FIRED: &str = "firing.steps_since_fired";
const FIRED_IN_WINDOW: &str = "firing.fired_in_window";

/// The arrays that a checkpoint holds: those that the SAE has.
fn fields(params: &Params) -> impl Iterator<Item = (&'static str, &[f32])> {
    let named = <Params>::NAMES.into_iter().zip(params.arrays());
    named.filter(|(_, values)| !values.is_empty())
}

fn fields_mut(params: &mut Params) -> impl Iterator<Item = (&'static str, &mut [f32])> {
    let named = <Params>::NAMES.into_iter().zip(params.arrays_mut());
    named.filter(|(_, values)| !values.is_empty())
}

/// A flat tensor to be written.
struct Flat<'a> {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: &'a [u8],
}

impl View for Flat<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn tensors(trainer: &Trainer) -> Vec<(String, Flat<'_>)> {
    let mut tensors = Vec::new();
    for (prefix, params) in [("params", &trainer.params), ("m", &trainer.m), ("v", &trainer.v)] {
        for (name, values) in fields(params) {
            let flat = Flat { dtype: Dtype::F32, shape: [values.len()], bytes: bytemuck::cast_slice(values) };
            tensors.push((format!("{prefix}.{name}"), flat));
        }
    }
    for (name, counts) in [
        (STEPS_SINCE_FIRED, &trainer.firing.steps_since_fired),
        (FIRED_IN_WINDOW, &trainer.firing.fired_in_window),
    ] {
        let flat = Flat { dtype: Dtype::U64, shape: [counts.len()], bytes: bytemuck::cast_slice(counts) };
        tensors.push((name.to_owned(), flat));
    }
    tensors
}

fn hash(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path)?;
    Ok(hasher.finalize().to_hex().to_string())
}
