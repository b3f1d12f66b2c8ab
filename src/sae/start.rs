//! A trial that starts from an SAE that is there already: its weights, so that the trial's first step computes
//! the function that was loaded.

use super::{
    fold::{fold_decoder_norms, fold_scale, fold_whitening},
    inference::Sae,
    normalize::Normalizer,
};
use crate::{
    kernels::{Params, Pool},
    trial::{Architecture, NormalizeActivations, SaeConfig},
};
use serde_json::json;

/// Why a trial cannot start from an SAE.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum StartProblem {
    /// Architecture or sizes differ.
    #[error("it is {found}, the trial's SAE is {expected}")]
    Shape {
        /// Of the SAE: architecture, d_in x d_sae.
        found: String,
        /// Of the trial.
        expected: String,
    },
    /// It scales activations in a way that the trial's weights cannot make up for.
    #[error("it has normalize_activations = {found}, the trial {expected}; {why}")]
    Normalization {
        /// Of the SAE.
        found: String,
        /// Of the trial.
        expected: String,
        /// What cannot be.
        why: &'static str,
    },
    /// It chooses the k largest by another measure.
    #[error(
        "it does not measure latents by their decoder rows, which have different norms, and the trial has \
         rescale_acts_by_decoder_norm = true: other latents would be the k largest"
    )]
    Rescaling,
    /// Its latents have thresholds of their own.
    #[error("its latents have thresholds from {least} to {most}, the trial's {architecture} has one for all")]
    Thresholds {
        /// The least threshold.
        least: f32,
        /// The greatest.
        most: f32,
        /// The trial's architecture.
        architecture: &'static str,
    },
}

/// What training starts with.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// Weights for scaled activations.
    pub params: Params,
    /// Where a BatchTopK's threshold starts; 0 otherwise.
    pub topk_threshold: f64,
}

impl From<Params> for Start {
    fn from(params: Params) -> Self {
        Self { params, topk_threshold: 0.0 }
    }
}

/// Whether a trial with settings `cfg`, of activations of width `d_in`, can start from `sae`.
///
/// What was trained as a BatchTopK, Matryoshka or not, is a JumpReLU whose latents share one threshold: trials
/// of these architectures start from such a JumpReLU, and theirs starts at that value.
pub fn check_start(sae: &Sae, cfg: &SaeConfig, d_in: usize) -> Result<(), StartProblem> {
    let (theirs, ours) = (sae.cfg.architecture.name(), cfg.architecture.name());
    let needed = if has_one_threshold(cfg) { "jumprelu" } else { ours };
    if (theirs, sae.d_in, sae.cfg.d_sae) != (needed, d_in, cfg.d_sae) {
        let shape =
            |name: &str, d_in: usize, d_sae: usize| format!("{name}, {d_in} x {d_sae} (d_in x d_sae)");
        let ours =
            if needed == ours { ours.to_owned() } else { format!("{ours}, which starts from a {needed}") };
        return Err(StartProblem::Shape {
            found: shape(theirs, sae.d_in, sae.cfg.d_sae),
            expected: shape(&ours, d_in, cfg.d_sae),
        });
    }
    if has_one_threshold(cfg) {
        let (least, most) = range(sae.params.threshold.iter().copied());
        if least < most {
            return Err(StartProblem::Thresholds { least, most, architecture: ours });
        }
    }
    let (theirs, ours) = (sae.cfg.normalize_activations, cfg.normalize_activations);
    let refused = |why| {
        let (found, expected) = (json!(theirs).to_string(), json!(ours).to_string());
        Err(StartProblem::Normalization { found, expected, why })
    };
    match theirs {
        NormalizeActivations::ExpectedAverageOnlyIn | NormalizeActivations::CovarianceWhitening => {
            return refused("its weights are for scaled activations, and by how much is not in its folder");
        }
        NormalizeActivations::ConstantNormRescale | NormalizeActivations::LayerNorm if theirs != ours => {
            return refused("what is done to each row on its own is no part of the weights");
        }
        NormalizeActivations::None if Normalizer::run_time(ours).is_per_row() => {
            return refused("what is done to each row on its own is no part of the weights");
        }
        _ => {}
    }
    if rescales(cfg) && !rescales(&sae.cfg) {
        // As far as equality can be told in f32.
        let (least, most) = range(decoder_norms(sae));
        if f64::from(most) - f64::from(least) > 1e-5 * f64::from(most) {
            return Err(StartProblem::Rescaling);
        }
    }
    Ok(())
}

/// Whether all latents have the threshold that training keeps beside the weights.
fn has_one_threshold(cfg: &SaeConfig) -> bool {
    matches!(cfg.architecture, Architecture::BatchTopK { .. } | Architecture::MatryoshkaBatchTopK { .. })
}

/// Whether latents are measured in units of decoder norms.
fn rescales(cfg: &SaeConfig) -> bool {
    matches!(cfg.architecture.clone().rescale_acts_by_decoder_norm(), Some(true))
}

fn range(values: impl Iterator<Item = f32>) -> (f32, f32) {
    values
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)))
}

/// L2 norms of decoder rows.
fn decoder_norms(sae: &Sae) -> impl Iterator<Item = f32> {
    let norm = |row: &[f32]| row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt() as f32;
    sae.params.w_dec.chunks_exact(sae.d_in).map(norm)
}

/// Weights with which a trial that [`check_start`] lets start from `sae` computes what `sae` computes:
/// whatever `normalizer` does to activations before the trial sees them is undone.
pub fn start(mut sae: Sae, cfg: &SaeConfig, normalizer: &Normalizer, pool: &Pool) -> Start {
    let d = sae.d_in;
    if rescales(&sae.cfg) {
        fold_decoder_norms(&mut sae.params, d);
    }
    let params = &mut sae.params;
    match (sae.cfg.apply_b_dec_to_input, cfg.apply_b_dec_to_input) {
        (false, true) => shift_encoder_bias(params, d, 1.0),
        (true, false) => shift_encoder_bias(params, d, -1.0),
        _ => {}
    }
    match normalizer {
        Normalizer::Scale(factor) => fold_scale(params, 1.0 / factor),
        Normalizer::Whiten { whitening, .. } => {
            fold_whitening(pool, params, &whitening.inverted(), cfg.apply_b_dec_to_input);
        }
        Normalizer::Identity | Normalizer::ConstantNorm | Normalizer::LayerNorm => {}
    }
    let mut topk_threshold = 0.0;
    if has_one_threshold(cfg) {
        // Beside the weights it is in the units in which latents are chosen.
        let unit = if rescales(cfg) { range(decoder_norms(&sae)).1 } else { 1.0 };
        let thresholds = std::mem::take(&mut sae.params.threshold);
        topk_threshold = f64::from(thresholds.first().copied().unwrap_or(0.0)) * f64::from(unit);
    }
    Start { params: sae.params, topk_threshold }
}

/// `b_enc += factor · W_enc b_dec`: what the encoder sees when the decoder's bias is subtracted before it, or
/// is not any more. Magnitudes of a gated SAE read the same product times `exp(r_mag)`.
pub(super) fn shift_encoder_bias(params: &mut Params, d: usize, factor: f64) {
    let shifts: Vec<f64> = params
        .w_enc
        .chunks_exact(d)
        .map(|row| row.iter().zip(&params.b_dec).map(|(w, b)| f64::from(*w) * f64::from(*b)).sum::<f64>())
        .map(|product| factor * product)
        .collect();
    for (bias, shift) in params.b_enc.iter_mut().zip(&shifts) {
        *bias = (f64::from(*bias) + shift) as f32;
    }
    for ((bias, r_mag), shift) in params.b_mag.iter_mut().zip(&params.r_mag).zip(&shifts) {
        *bias = (f64::from(*bias) + shift * f64::from(*r_mag).exp()) as f32;
    }
}
