//! Initial weights, drawn from a seed of the configuration and nothing else.

use crate::{
    kernels::Params,
    trial::{Architecture, SaeConfig},
};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Decoder rows uniform in ±sqrt(6 / D) (Kaiming), each scaled to `decoder_init_norm` unless that is 0; the
/// encoder starts as the decoder's transpose; both biases are 0. Thresholds start where the settings say.
///
/// Uniform numbers are made here from raw random bits, so that a later version of the random-number
/// library cannot change what a seed means.
pub fn init(cfg: &SaeConfig, d_in: usize, seed: u64) -> Params {
    let bound = (6.0 / d_in as f64).sqrt();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut w_dec: Vec<f32> = (0..cfg.d_sae * d_in)
        .map(|_| {
            let unit = f64::from(rng.next_u32() >> 8) / f64::from(1_u32 << 24);
            ((2.0 * unit - 1.0) * bound) as f32
        })
        .collect();
    if cfg.decoder_init_norm > 0.0 {
        for row in w_dec.chunks_exact_mut(d_in) {
            let norm = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
            // A row of exact zeros has no direction; it cannot be drawn in practice, and stays.
            let factor = if norm > 0.0 { cfg.decoder_init_norm / norm } else { 0.0 };
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        }
    }
    let threshold = match cfg.architecture {
        Architecture::JumpRelu { jumprelu_init_threshold, .. } => {
            vec![jumprelu_init_threshold as f32; cfg.d_sae]
        }
        Architecture::Standard { .. }
        | Architecture::Gated { .. }
        | Architecture::TopK { .. }
        | Architecture::BatchTopK { .. }
        | Architecture::MatryoshkaBatchTopK { .. }
        | Architecture::AbsTopK { .. } => Vec::new(),
    };
    let magnitudes = match cfg.architecture {
        Architecture::Gated { .. } => vec![0.0; cfg.d_sae],
        _ => Vec::new(),
    };
    let (b_enc, b_dec) = (vec![0.0; cfg.d_sae], vec![0.0; d_in]);
    Params {
        w_enc: w_dec.clone(),
        w_dec,
        b_enc,
        b_dec,
        threshold,
        r_mag: magnitudes.clone(),
        b_mag: magnitudes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::NormalizeActivations;

    fn config(decoder_init_norm: f64) -> SaeConfig {
        SaeConfig {
            d_sae: 300,
            apply_b_dec_to_input: false,
            normalize_activations: NormalizeActivations::None,
            decoder_init_norm,
            init_from: String::new(),
            architecture: Architecture::Standard { l1_coefficient: 1.0, lp_norm: 1.0, l1_warm_up_steps: 0 },
        }
    }

    #[test]
    fn rows_have_the_norm_and_the_encoder_is_the_transpose() {
        let params = init(&config(0.1), 20, 3);
        for row in params.w_dec.chunks_exact(20) {
            let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
            assert!((norm - 0.1).abs() < 1e-6, "{norm}");
        }
        assert_eq!(params.w_enc, params.w_dec);
        assert!(params.b_enc.iter().chain(&params.b_dec).all(|&b| b == 0.0));
    }

    #[test]
    fn without_a_norm_entries_fill_the_kaiming_range() {
        let params = init(&config(0.0), 24, 3);
        let bound = 0.5_f32;
        let (mut low, mut high, mut sum) = (f32::MAX, f32::MIN, 0.0_f64);
        for &w in &params.w_dec {
            low = low.min(w);
            high = high.max(w);
            sum += f64::from(w);
        }
        assert!(low >= -bound && low < -0.49 && high <= bound && high > 0.49, "{low} {high}");
        assert!((sum / params.w_dec.len() as f64).abs() < 0.02);
    }

    #[test]
    fn a_seed_is_a_set_of_weights() {
        let cfg = config(0.1);
        assert_eq!(init(&cfg, 20, 3).w_dec, init(&cfg, 20, 3).w_dec);
        assert_ne!(init(&cfg, 20, 3).w_dec, init(&cfg, 20, 4).w_dec);
    }
}
