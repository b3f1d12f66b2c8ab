//! Initial weights, drawn from a seed of the configuration and nothing else.

use super::transcoder::resized;
use crate::{
    kernels::Params,
    trial::{Architecture, SaeConfig},
};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Decoder rows uniform in ±sqrt(6 / D) (Kaiming), each scaled to `decoder_init_norm` unless that is 0; the
/// encoder starts as the decoder's transpose, or has no weights of its own where it stays that; both biases are 0. Thresholds start where the settings say.
///
/// Uniform numbers are made here from raw random bits, so that a later version of the random-number
/// library cannot change what a seed means.
pub fn init(cfg: &SaeConfig, d_in: usize, seed: u64) -> Params {
    let w_dec = rows(cfg, d_in, &mut ChaCha8Rng::seed_from_u64(seed));
    with(cfg, w_dec.clone(), w_dec, d_in)
}

/// As [`init`] for a transcoder of inputs of width `d_in` and outputs of width `d_out`: what a latent reads and
/// what it writes are directions of two spaces, so the encoder is drawn on its own, after the decoder and in
/// the same way. Rows are as wide as the wider of both, filled up with zeros.
pub fn init_transcoder(cfg: &SaeConfig, d_in: usize, d_out: usize, seed: u64) -> Params {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let width = d_in.max(d_out);
    let w_dec = resized(&rows(cfg, d_out, &mut rng), d_out, width).into_owned();
    let w_enc = resized(&rows(cfg, d_in, &mut rng), d_in, width).into_owned();
    with(cfg, w_enc, w_dec, width)
}

/// One row per latent.
fn rows(cfg: &SaeConfig, d: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let bound = (6.0 / d as f64).sqrt();
    let mut rows: Vec<f32> = (0..cfg.d_sae * d)
        .map(|_| {
            let unit = f64::from(rng.next_u32() >> 8) / f64::from(1_u32 << 24);
            ((2.0 * unit - 1.0) * bound) as f32
        })
        .collect();
    if cfg.decoder_init_norm > 0.0 {
        for row in rows.chunks_exact_mut(d) {
            let norm = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
            // A row of exact zeros has no direction; it cannot be drawn in practice, and stays.
            let factor = if norm > 0.0 { cfg.decoder_init_norm / norm } else { 0.0 };
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        }
    }
    rows
}

/// These weights with everything else at its start.
fn with(cfg: &SaeConfig, w_enc: Vec<f32>, w_dec: Vec<f32>, width: usize) -> Params {
    let threshold = match cfg.architecture {
        Architecture::JumpRelu { jumprelu_init_threshold, .. } => {
            vec![jumprelu_init_threshold as f32; cfg.d_sae]
        }
        Architecture::Standard { .. }
        | Architecture::Gated { .. }
        | Architecture::TopK { .. }
        | Architecture::BatchTopK { .. }
        | Architecture::MatryoshkaBatchTopK { .. }
        | Architecture::AbsTopK { .. }
        | Architecture::MatchingPursuit { .. } => Vec::new(),
    };
    let magnitudes = match cfg.architecture {
        Architecture::Gated { .. } => vec![0.0; cfg.d_sae],
        _ => Vec::new(),
    };
    let is_tied = matches!(cfg.architecture, Architecture::MatchingPursuit { .. });
    Params {
        w_enc: if is_tied { Vec::new() } else { w_enc },
        w_dec,
        b_enc: vec![0.0; cfg.d_sae],
        b_dec: vec![0.0; width],
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
    fn a_transcoder_s_halves_are_drawn_apart_and_padded_with_zeros() {
        for (d_in, d_out) in [(5, 8), (8, 5), (6, 6)] {
            let params = init_transcoder(&config(0.1), d_in, d_out, 3);
            let width = d_in.max(d_out);
            for (rows, d) in [(&params.w_enc, d_in), (&params.w_dec, d_out)] {
                assert_eq!(rows.len(), 300 * width);
                for row in rows.chunks_exact(width) {
                    let norm = row[..d].iter().map(|w| w * w).sum::<f32>().sqrt();
                    assert!((norm - 0.1).abs() < 1e-6, "{norm}");
                    assert!(row[d..].iter().all(|&w| w == 0.0));
                }
            }
            assert_ne!(params.w_enc, params.w_dec);
            // The decoder is the one that an SAE of that width and seed has.
            let sae = init(&config(0.1), d_out, 3);
            assert!(
                sae.w_dec
                    .iter()
                    .zip(params.w_dec.chunks_exact(width).flat_map(|row| &row[..d_out]))
                    .all(|(a, b)| a == b)
            );
        }
    }

    #[test]
    fn a_seed_is_a_set_of_weights() {
        let cfg = config(0.1);
        assert_eq!(init(&cfg, 20, 3).w_dec, init(&cfg, 20, 3).w_dec);
        assert_ne!(init(&cfg, 20, 3).w_dec, init(&cfg, 20, 4).w_dec);
    }
}
