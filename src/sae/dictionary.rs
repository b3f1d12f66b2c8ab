//! An SAE in the parameters of dictionary_learning's classes (0.1.0), computing the same function.

use super::{
    config_json::SAE_LENS_VERSION,
    export::{ExportError, ExportInfo, Files},
    fold::fold_decoder_norms,
    format::{SaeError, transposed},
    inference::Sae,
    normalize::Normalizer,
    start::shift_encoder_bias,
};
use crate::trial::{Architecture, TrialConfig};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Name of the weights for dictionary_learning. Its own `ae.pt` is a Python pickle.
pub const DICTIONARY_FILE: &str = "ae.safetensors";
/// Name of dictionary_learning's settings.
pub const DICTIONARY_CONFIG_FILE: &str = "config.json";

/// Its classes, with what only they have.
enum Class {
    AutoEncoder,
    Gated,
    TopK { k: usize },
    JumpRelu,
    BatchTopK { k: usize, threshold: f32 },
    Matryoshka { k: usize, threshold: f32, group_sizes: Vec<i64> },
}

impl Class {
    /// The class of what an SAE is now and was trained as.
    fn of(sae: &Sae, trained_as: &Architecture) -> Result<Self, ExportError> {
        let mode = sae.cfg.normalize_activations;
        if Normalizer::run_time(mode).is_per_row() {
            let mode = json!(mode);
            return Err(inexpressible(format!(
                "sae.normalize_activations = {mode}, which scales every row on its own"
            )));
        }
        let shared = sae.params.threshold.first().copied();
        let shared = shared.filter(|first| sae.params.threshold.iter().all(|other| other == first));
        match (&sae.cfg.architecture, trained_as, shared) {
            (Architecture::Standard { .. }, ..) => Ok(Self::AutoEncoder),
            (Architecture::Gated { .. }, ..) => Ok(Self::Gated),
            (Architecture::TopK { k, .. }, ..) => Ok(Self::TopK { k: *k }),
            (Architecture::JumpRelu { .. }, Architecture::BatchTopK { k, .. }, Some(threshold))
                if is_count(*k) =>
            {
                Ok(Self::BatchTopK { k: *k as usize, threshold })
            }
            (
                Architecture::JumpRelu { .. },
                Architecture::MatryoshkaBatchTopK { k, matryoshka_widths, .. },
                Some(threshold),
            ) if is_count(*k) => Ok(Self::Matryoshka {
                k: *k as usize,
                threshold,
                group_sizes: group_sizes(matryoshka_widths),
            }),
            // With a k that is no whole number, which those two classes do not take, it is this one still.
            (Architecture::JumpRelu { .. }, ..) => Ok(Self::JumpRelu),
            (
                Architecture::AbsTopK { .. }
                | Architecture::BatchTopK { .. }
                | Architecture::MatryoshkaBatchTopK { .. },
                ..,
            ) => {
                let name = sae.cfg.architecture.name();
                Err(inexpressible(format!(
                    "sae.architecture = \"{name}\"; none of its classes computes that"
                )))
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::AutoEncoder => "AutoEncoder",
            Self::Gated => "GatedAutoEncoder",
            Self::TopK { .. } => "AutoEncoderTopK",
            Self::JumpRelu => "JumpReluAutoEncoder",
            Self::BatchTopK { .. } => "BatchTopKSAE",
            Self::Matryoshka { .. } => "MatryoshkaBatchTopKSAE",
        }
    }

    /// Whether it subtracts the decoder's bias from the input; a file cannot say otherwise.
    fn applies_b_dec_to_input(&self) -> bool {
        !matches!(self, Self::JumpRelu)
    }
}

fn is_count(k: f64) -> bool {
    k.fract() == 0.0 && k >= 1.0 && k <= f64::from(i32::MAX)
}

/// Latents that each level adds to the one before.
fn group_sizes(widths: &[usize]) -> Vec<i64> {
    let before = [0].iter().chain(widths);
    widths.iter().zip(before).map(|(width, before)| width.saturating_sub(*before) as i64).collect()
}

fn inexpressible(what: String) -> ExportError {
    ExportError::Inexpressible { format: "dictionary_learning", what }
}

/// A tensor that is still to be written.
struct Tensor<'a> {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    fn floats(name: &'static str, shape: &[usize], data: &'a [f32]) -> Self {
        Self {
            name,
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: Cow::Borrowed(bytemuck::cast_slice(data)),
        }
    }

    fn float(name: &'static str, value: f32) -> Self {
        Self { name, dtype: Dtype::F32, shape: Vec::new(), bytes: value.to_le_bytes().to_vec().into() }
    }

    /// What PyTorch calls an int.
    fn int(name: &'static str, value: usize) -> Self {
        let value = i32::try_from(value).unwrap_or(i32::MAX);
        Self { name, dtype: Dtype::I32, shape: Vec::new(), bytes: value.to_le_bytes().to_vec().into() }
    }

    fn longs(name: &'static str, data: &'a [i64]) -> Self {
        Self {
            name,
            dtype: Dtype::I64,
            shape: vec![data.len()],
            bytes: Cow::Borrowed(bytemuck::cast_slice(data)),
        }
    }
}

/// The files for dictionary_learning.
pub(super) fn files(mut sae: Sae, info: &ExportInfo<'_>) -> Result<Files, ExportError> {
    let class = Class::of(&sae, &info.config.sae.architecture)?;
    let d = sae.d_in;
    if let Some(true) = sae.cfg.architecture.rescale_acts_by_decoder_norm() {
        // There the largest pre-activations are chosen as they are.
        fold_decoder_norms(&mut sae.params, d);
    }
    match (sae.cfg.apply_b_dec_to_input, class.applies_b_dec_to_input()) {
        (false, true) => shift_encoder_bias(&mut sae.params, d, 1.0),
        (true, false) => shift_encoder_bias(&mut sae.params, d, -1.0),
        _ => {}
    }
    let weights = weights(&sae, &class)?;
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
        "trainer": trainer(info.config, d, &class),
    });
    let mut text = serde_json::to_string_pretty(&config).expect("invariant: JSON values serialize");
    text.push('\n');
    Ok(vec![(DICTIONARY_CONFIG_FILE, text.into_bytes()), (DICTIONARY_FILE, weights)])
}

/// The class's state as a safetensors file.
fn weights(sae: &Sae, class: &Class) -> Result<Vec<u8>, SaeError> {
    let (d, f, params) = (sae.d_in, sae.cfg.d_sae, &sae.params);
    let turned;
    let mut tensors = match class {
        // Linear layers of PyTorch are (out, in).
        Class::AutoEncoder | Class::TopK { .. } | Class::BatchTopK { .. } | Class::Gated => {
            turned = transposed(&params.w_dec, f, d);
            vec![
                Tensor::floats("decoder.weight", &[d, f], &turned),
                Tensor::floats("encoder.weight", &[f, d], &params.w_enc),
            ]
        }
        Class::JumpRelu | Class::Matryoshka { .. } => {
            turned = transposed(&params.w_enc, f, d);
            vec![
                Tensor::floats("W_dec", &[f, d], &params.w_dec),
                Tensor::floats("W_enc", &[d, f], &turned),
                Tensor::floats("b_dec", &[d], &params.b_dec),
                Tensor::floats("b_enc", &[f], &params.b_enc),
            ]
        }
    };
    match class {
        Class::AutoEncoder => tensors.extend([
            Tensor::floats("bias", &[d], &params.b_dec),
            Tensor::floats("encoder.bias", &[f], &params.b_enc),
        ]),
        Class::Gated => tensors.extend([
            Tensor::floats("decoder_bias", &[d], &params.b_dec),
            Tensor::floats("gate_bias", &[f], &params.b_enc),
            Tensor::floats("mag_bias", &[f], &params.b_mag),
            Tensor::floats("r_mag", &[f], &params.r_mag),
        ]),
        Class::TopK { k } => tensors.extend([
            Tensor::floats("b_dec", &[d], &params.b_dec),
            Tensor::floats("encoder.bias", &[f], &params.b_enc),
            Tensor::int("k", *k),
            // Below 0 it says that there is none.
            Tensor::float("threshold", -1.0),
        ]),
        Class::BatchTopK { k, threshold } => tensors.extend([
            Tensor::floats("b_dec", &[d], &params.b_dec),
            Tensor::floats("encoder.bias", &[f], &params.b_enc),
            Tensor::int("k", *k),
            Tensor::float("threshold", *threshold),
        ]),
        Class::Matryoshka { k, threshold, group_sizes } => tensors.extend([
            Tensor::longs("group_sizes", group_sizes),
            Tensor::int("k", *k),
            Tensor::float("threshold", *threshold),
        ]),
        Class::JumpRelu => tensors.push(Tensor::floats("threshold", &[f], &params.threshold)),
    }
    let broken = |source| SaeError::Safetensors { path: Path::new(DICTIONARY_FILE).to_owned(), source };
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|tensor| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
            Ok((tensor.name, view.map_err(broken)?))
        })
        .collect::<Result<_, SaeError>>()?;
    safetensors::serialize(views, None).map_err(broken)
}

/// Its description of the training run, of the trainers whose mathematics this was.
fn trainer(config: &TrialConfig, d_in: usize, class: &Class) -> Value {
    let train = &config.train;
    let hook = config.source.model().map(|(model, _)| model.hook.as_str());
    let layer = hook.and_then(|hook| hook.split('.').nth(1)?.parse::<u64>().ok());
    let mut value = json!({
        "activation_dim": d_in,
        "decay_start": (train.lr_decay_steps > 0).then(|| train.schedule_steps().saturating_sub(train.lr_decay_steps)),
        "device": "cpu",
        "dict_class": class.name(),
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
    let own = match &config.sae.architecture {
        Architecture::Standard { l1_coefficient, l1_warm_up_steps, .. } => json!({
            "trainer_class": "StandardTrainerAprilUpdate",
            "l1_penalty": l1_coefficient,
            "sparsity_warmup_steps": l1_warm_up_steps,
        }),
        Architecture::Gated { l1_coefficient, l1_warm_up_steps } => json!({
            "trainer_class": "GatedSAETrainer",
            "l1_penalty": l1_coefficient,
            "sparsity_warmup_steps": l1_warm_up_steps,
        }),
        Architecture::TopK { k, aux_loss_coefficient, .. } => json!({
            "trainer_class": "TopKTrainer",
            "auxk_alpha": aux_loss_coefficient,
            "k": k,
        }),
        // It has no such trainer.
        Architecture::AbsTopK { .. } => json!({}),
        Architecture::BatchTopK { topk_threshold_lr, aux_loss_coefficient, .. } => json!({
            "trainer_class": "BatchTopKTrainer",
            "auxk_alpha": aux_loss_coefficient,
            "k": latents_kept(config),
            "threshold_beta": 1.0 - topk_threshold_lr,
        }),
        Architecture::MatryoshkaBatchTopK {
            topk_threshold_lr,
            aux_loss_coefficient,
            matryoshka_widths,
            ..
        } => json!({
            "trainer_class": "MatryoshkaBatchTopKTrainer",
            "auxk_alpha": aux_loss_coefficient,
            "group_sizes": group_sizes(matryoshka_widths),
            "k": latents_kept(config),
            "threshold_beta": 1.0 - topk_threshold_lr,
        }),
        Architecture::JumpRelu {
            jumprelu_bandwidth, l0_coefficient, l0_warm_up_steps, target_l0, ..
        } => {
            json!({
                "trainer_class": "JumpReluTrainer",
                "bandwidth": jumprelu_bandwidth,
                "sparsity_penalty": l0_coefficient,
                "sparsity_warmup_steps": l0_warm_up_steps,
                "target_l0": (*target_l0 > 0.0).then_some(target_l0),
            })
        }
    };
    if let (Value::Object(value), Value::Object(own)) = (&mut value, own) {
        value.extend(own);
    }
    value
}

/// A batch's k as a whole number where it is one, which those classes insist on.
fn latents_kept(config: &TrialConfig) -> Value {
    json!(config.sae.architecture)["k"].clone()
}
