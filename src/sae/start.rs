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
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
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
        "it has rescale_acts_by_decoder_norm = false and decoder rows of different norms, the trial true: other \
         latents would be the k largest"
    )]
    Rescaling,
}

/// Whether a trial with settings `cfg`, of activations of width `d_in`, can start from `sae`.
pub fn check_start(sae: &Sae, cfg: &SaeConfig, d_in: usize) -> Result<(), StartProblem> {
    let name = cfg.architecture.name();
    if (sae.architecture(), sae.d_in, sae.cfg.d_sae) != (name, d_in, cfg.d_sae) {
        let shape =
            |name: &str, d_in: usize, d_sae: usize| format!("{name}, {d_in} x {d_sae} (d_in x d_sae)");
        return Err(StartProblem::Shape {
            found: shape(sae.architecture(), sae.d_in, sae.cfg.d_sae),
            expected: shape(name, d_in, cfg.d_sae),
        });
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
    let rescales = |cfg: &SaeConfig| {
        matches!(cfg.architecture, Architecture::TopK { rescale_acts_by_decoder_norm: true, .. })
    };
    if rescales(cfg) && !rescales(&sae.cfg) && !has_equal_norms(sae) {
        return Err(StartProblem::Rescaling);
    }
    Ok(())
}

/// Whether all decoder rows have the same norm, as far as that can be told in f32.
fn has_equal_norms(sae: &Sae) -> bool {
    let norms = sae
        .params
        .w_dec
        .chunks_exact(sae.d_in)
        .map(|row| row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt());
    let (low, high) = norms.fold((f64::INFINITY, 0.0_f64), |(low, high), n| (low.min(n), high.max(n)));
    high - low <= 1e-5 * high
}

/// Weights with which a trial that [`check_start`] lets start from `sae` computes what `sae` computes:
/// whatever `normalizer` does to activations before the trial sees them is undone.
pub fn start(mut sae: Sae, cfg: &SaeConfig, normalizer: &Normalizer, pool: &Pool) -> Params {
    let d = sae.d_in;
    if matches!(sae.cfg.architecture, Architecture::TopK { rescale_acts_by_decoder_norm: true, .. }) {
        fold_decoder_norms(&mut sae.params, d);
    }
    let mut params = sae.params;
    match (sae.cfg.apply_b_dec_to_input, cfg.apply_b_dec_to_input) {
        (false, true) => shift_encoder_bias(&mut params, d, 1.0),
        (true, false) => shift_encoder_bias(&mut params, d, -1.0),
        _ => {}
    }
    match normalizer {
        Normalizer::Scale(factor) => fold_scale(&mut params, 1.0 / factor),
        Normalizer::Whiten { whitening, .. } => {
            fold_whitening(pool, &mut params, &whitening.inverted(), cfg.apply_b_dec_to_input);
        }
        Normalizer::Identity | Normalizer::ConstantNorm | Normalizer::LayerNorm => {}
    }
    params
}

/// `b_enc += factor · W_enc b_dec`: what the encoder sees when the decoder's bias is subtracted before it, or
/// is not any more.
pub(super) fn shift_encoder_bias(params: &mut Params, d: usize, factor: f64) {
    for (bias, row) in params.b_enc.iter_mut().zip(params.w_enc.chunks_exact(d)) {
        let shift: f64 = row.iter().zip(&params.b_dec).map(|(w, b)| f64::from(*w) * f64::from(*b)).sum();
        *bias = (f64::from(*bias) + factor * shift) as f32;
    }
}
