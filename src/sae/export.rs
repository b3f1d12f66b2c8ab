//! An SAE for other programs: the folder that SAELens would have left, or one that dictionary_learning's
//! classes take.

use super::{
    config_json::SAE_LENS_VERSION,
    fold::fold_decoder_norms,
    format::{CONFIG_FILE, SPARSITY_FILE, SaeError, WEIGHTS_FILE, load, replace, transposed},
    inference::Sae,
    normalize::Normalizer,
    runner_json,
    start::shift_encoder_bias,
};
use crate::{
    kernels::Params,
    trial::{Architecture, TrialConfig, TrialId},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Name of the file with SAELens' training configuration.
pub const RUNNER_FILE: &str = "runner_cfg.json";
/// Name of the weights for dictionary_learning. Its own `ae.pt` is a Python pickle.
pub const DICTIONARY_FILE: &str = "ae.safetensors";
/// Name of dictionary_learning's settings.
pub const DICTIONARY_CONFIG_FILE: &str = "config.json";

/// Everything that an export can write.
const FILES: [&str; 6] =
    [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE, RUNNER_FILE, DICTIONARY_FILE, DICTIONARY_CONFIG_FILE];

/// For which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// SAELens 6.
    SaeLens,
    /// dictionary_learning.
    DictionaryLearning,
}

/// What is said about the SAE beside its weights.
#[derive(Debug, Clone, Copy)]
pub struct ExportInfo<'a> {
    /// The trial that trained it.
    pub trial: &'a TrialId,
    /// Key of the activation store it was trained on.
    pub store_key: &'a str,
    /// The trial's configuration.
    pub config: &'a TrialConfig,
    /// Its metrics.
    pub metrics: &'a BTreeMap<String, f64>,
}

/// An export that was not made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Reading or writing an SAE folder failed.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// Something is in the way.
    #[error("`{}` is not empty; --force replaces an earlier export", dir.display())]
    NotEmpty {
        /// The folder.
        dir: PathBuf,
    },
    /// Something is in the way that no export wrote, and that replacing the folder would remove.
    #[error("`{}` holds `{entry}`, which no export writes; choose another folder", dir.display())]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// What is in it.
        entry: String,
    },
    /// The target is where the SAE comes from.
    #[error("`{}` is the trial's own folder or in it; choose another folder", dir.display())]
    Source {
        /// The folder.
        dir: PathBuf,
    },
    /// The format cannot say what the SAE does.
    #[error("{format} has no way to say {what}")]
    Inexpressible {
        /// The format.
        format: &'static str,
        /// What it cannot say.
        what: String,
    },
}

impl ExportError {
    /// Whether something else was asked for than can be done, and nothing was touched.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Sae(_))
    }
}

/// Writes the SAE of the trial folder's `sae` to `to`, whole or not at all; returns the names of the files.
///
/// A folder that holds something is refused; with `force`, one that holds nothing but an earlier export is
/// replaced.
pub fn export(
    sae: &Path,
    to: &Path,
    format: ExportFormat,
    info: &ExportInfo<'_>,
    force: bool,
) -> Result<Vec<&'static str>, ExportError> {
    let to = std::path::absolute(to).map_err(io_error(to))?;
    check_target(sae, &to, force)?;
    // Loading is the check that the folder is whole.
    let loaded = load(sae)?;
    let files = match format {
        ExportFormat::SaeLens => sae_lens(sae, &loaded, info)?,
        ExportFormat::DictionaryLearning => dictionary_learning(loaded, info)?,
    };
    replace(&to, |folder| {
        for (name, bytes) in &files {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(io_error(&path))?;
        }
        Ok(())
    })?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

fn check_target(sae: &Path, to: &Path, force: bool) -> Result<(), ExportError> {
    let entries = match fs::read_dir(to) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(io_error(to)(err).into()),
    };
    let real = |path: &Path| fs::canonicalize(path).map_err(io_error(path));
    let own = sae.parent().unwrap_or(sae);
    let own = if own.as_os_str().is_empty() { Path::new(".") } else { own };
    if real(to)?.starts_with(real(own)?) {
        return Err(ExportError::Source { dir: to.to_owned() });
    }
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        names.push(entry.map_err(io_error(to))?.file_name().to_string_lossy().into_owned());
    }
    if names.is_empty() {
        return Ok(());
    }
    if !force {
        return Err(ExportError::NotEmpty { dir: to.to_owned() });
    }
    names.sort_unstable();
    match names.into_iter().find(|name| !FILES.contains(&name.as_str())) {
        Some(entry) => Err(ExportError::Foreign { dir: to.to_owned(), entry }),
        None => Ok(()),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SaeError + use<> {
    let path = path.to_owned();
    |source| SaeError::Io { path, source }
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// The trained SAE lies in SAELens' format already: its files, and the configuration of the run.
fn sae_lens(sae: &Path, loaded: &Sae, info: &ExportInfo<'_>) -> Result<Files, SaeError> {
    let mut files: Files = Vec::new();
    for name in [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE] {
        let path = sae.join(name);
        match fs::read(&path) {
            Ok(bytes) => files.push((name, bytes)),
            Err(err) if err.kind() == io::ErrorKind::NotFound && name == SPARSITY_FILE => {}
            Err(err) => return Err(io_error(&path)(err)),
        }
    }
    if let Some(text) = runner_json::write(info.config, loaded.d_in) {
        files.push((RUNNER_FILE, text.into_bytes()));
    }
    Ok(files)
}

/// The same function in the parameters of `AutoEncoder` or `AutoEncoderTopK`.
fn dictionary_learning(mut sae: Sae, info: &ExportInfo<'_>) -> Result<Files, ExportError> {
    const FORMAT: &str = "dictionary_learning";
    if Normalizer::run_time(sae.cfg.normalize_activations).is_per_row() {
        let mode = json!(sae.cfg.normalize_activations);
        return Err(ExportError::Inexpressible {
            format: FORMAT,
            what: format!("sae.normalize_activations = {mode}, which scales every row on its own"),
        });
    }
    if sae.threshold.is_some() {
        return Err(ExportError::Inexpressible { format: FORMAT, what: "thresholds of latents".to_owned() });
    }
    let (d, f) = (sae.d_in, sae.cfg.d_sae);
    if let Architecture::TopK { rescale_acts_by_decoder_norm: true, .. } = sae.cfg.architecture {
        // There the largest pre-activations are chosen as they are.
        fold_decoder_norms(&mut sae.params, d);
    }
    if !sae.cfg.apply_b_dec_to_input {
        // There the decoder's bias is always subtracted first.
        shift_encoder_bias(&mut sae.params, d, 1.0);
    }
    let Params { w_enc, w_dec, b_enc, b_dec } = &sae.params;
    let decoder = transposed(w_dec, f, d);
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, &[u8])> = vec![
        ("decoder.weight", Dtype::F32, vec![d, f], bytemuck::cast_slice(&decoder)),
        ("encoder.bias", Dtype::F32, vec![f], bytemuck::cast_slice(b_enc)),
        ("encoder.weight", Dtype::F32, vec![f, d], bytemuck::cast_slice(w_enc)),
    ];
    let b_dec = bytemuck::cast_slice(b_dec);
    let (k, threshold): ([i32; 1], [f32; 1]);
    let mut trainer = trainer(info.config, d);
    match sae.cfg.architecture {
        Architecture::Standard { .. } => tensors.push(("bias", Dtype::F32, vec![d], b_dec)),
        Architecture::TopK { k: latents, .. } => {
            k = [i32::try_from(latents).unwrap_or(i32::MAX)];
            // Below 0 it says that there is none.
            threshold = [-1.0];
            tensors.push(("b_dec", Dtype::F32, vec![d], b_dec));
            tensors.push(("k", Dtype::I32, vec![], bytemuck::cast_slice(&k)));
            tensors.push(("threshold", Dtype::F32, vec![], bytemuck::cast_slice(&threshold)));
            trainer["k"] = json!(latents);
        }
    }
    let path = Path::new(DICTIONARY_FILE);
    let broken = |source| SaeError::Safetensors { path: path.to_owned(), source };
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .into_iter()
        .map(|(name, dtype, shape, data)| Ok((name, TensorView::new(dtype, shape, data).map_err(broken)?)))
        .collect::<Result<_, SaeError>>()?;
    let weights = safetensors::serialize(views, None).map_err(broken)?;
    let metrics: BTreeMap<_, _> = info.metrics.iter().filter(|(_, value)| value.is_finite()).collect();
    let config = json!({
        "buffer": {
            "ctx_len": info.config.source.model().map(|(_, data)| data.context_size),
            "d_submodule": d,
        },
        "saesweep": {
            "metrics": metrics,
            "sae_lens_version": SAE_LENS_VERSION,
            "store": info.store_key,
            "trial": info.trial,
            "version": env!("CARGO_PKG_VERSION"),
        },
        "trainer": trainer,
    });
    let mut text = serde_json::to_string_pretty(&config).expect("invariant: JSON values serialize");
    text.push('\n');
    Ok(vec![(DICTIONARY_CONFIG_FILE, text.into_bytes()), (DICTIONARY_FILE, weights)])
}

/// Its description of the training run, of the trainers whose mathematics this was.
fn trainer(config: &TrialConfig, d_in: usize) -> Value {
    let train = &config.train;
    let hook = config.source.model().map(|(model, _)| model.hook.as_str());
    let layer = hook.and_then(|hook| hook.split('.').nth(1)?.parse::<u64>().ok());
    let mut value = json!({
        "activation_dim": d_in,
        "decay_start": (train.lr_decay_steps > 0).then(|| train.schedule_steps().saturating_sub(train.lr_decay_steps)),
        "device": "cpu",
        "dict_size": config.sae.d_sae,
        "layer": layer,
        "lm_name": config.source.model().map(|(model, _)| &model.name),
        "lr": train.lr,
        "seed": train.seed,
        "steps": train.steps(),
        "submodule_name": hook,
        "wandb_name": null,
        "warmup_steps": train.lr_warm_up_steps,
    });
    match config.sae.architecture {
        Architecture::Standard { l1_coefficient, l1_warm_up_steps, .. } => {
            value["dict_class"] = json!("AutoEncoder");
            value["trainer_class"] = json!("StandardTrainerAprilUpdate");
            value["l1_penalty"] = json!(l1_coefficient);
            value["sparsity_warmup_steps"] = json!(l1_warm_up_steps);
        }
        Architecture::TopK { aux_loss_coefficient, .. } => {
            value["dict_class"] = json!("AutoEncoderTopK");
            value["trainer_class"] = json!("TopKTrainer");
            value["auxk_alpha"] = json!(aux_loss_coefficient);
        }
    }
    value
}
