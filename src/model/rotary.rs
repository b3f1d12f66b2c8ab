//! Rotary positions: each head's dimensions i and i + h/2 are turned as a pair by an angle that grows with the
//! position. Su et al. 2021, arXiv:2104.09864, in the split-half form of GPT-NeoX and Llama.

use std::f64::consts::TAU;

use super::{DecoderConfig, Positions, RotaryScaling};

/// Cosines and sines of the angles at the first positions; (P, h/2) each, row-major.
pub(crate) struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// The angles of a model with rotary positions; `None` for others.
    pub(crate) fn new(cfg: &DecoderConfig, positions: usize) -> Option<Self> {
        let Positions::Rotary { theta, scaling } = &cfg.positions else { return None };
        let frequencies = frequencies(cfg.d_head, *theta, scaling);
        // The product is taken in f32 as the reference implementations do, so that far positions agree.
        let angle = |position: usize| frequencies.iter().map(move |frequency| position as f32 * frequency);
        let angles: Vec<f32> = (0..positions).flat_map(angle).collect();
        Some(Self {
            half: frequencies.len(),
            cos: angles.iter().map(|angle| angle.cos()).collect(),
            sin: angles.iter().map(|angle| angle.sin()).collect(),
        })
    }

    /// Turns one head at one position: `out` and `head` have h numbers.
    pub(crate) fn rotate(&self, position: usize, head: &[f32], out: &mut [f32]) {
        let row = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let (first, second) = head.split_at(self.half);
        let (out_first, out_second) = out.split_at_mut(self.half);
        for i in 0..self.half {
            out_first[i] = first[i] * cos[i] - second[i] * sin[i];
            out_second[i] = second[i] * cos[i] + first[i] * sin[i];
        }
    }
}

/// Turns per position in radians, h/2 of them.
fn frequencies(d_head: usize, theta: f64, scaling: &RotaryScaling) -> Vec<f32> {
    let plain = (0..d_head / 2).map(|i| theta.powf(-((2 * i) as f64) / d_head as f64));
    match scaling {
        RotaryScaling::None => plain.map(|frequency| frequency as f32).collect(),
        RotaryScaling::Factors(factors) => {
            plain.zip(factors).map(|(frequency, factor)| (frequency / f64::from(*factor)) as f32).collect()
        }
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let scale = |frequency: f64| {
                let waves = *original_context as f64 * frequency / TAU;
                if waves > *high_freq_factor {
                    frequency
                } else if waves < *low_freq_factor {
                    frequency / factor
                } else {
                    let smooth = (waves - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            plain.map(|frequency| scale(frequency) as f32).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::tests::tiny_llama;

    #[test]
    fn turning_keeps_lengths_and_depends_on_distance_only() {
        let angles = Angles::new(&tiny_llama(), 20).unwrap();
        let turn = |position: usize, head: [f32; 4]| {
            let mut out = [0.0; 4];
            angles.rotate(position, &head, &mut out);
            out
        };
        let dot = |a: [f32; 4], b: [f32; 4]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (a, b) = ([0.3, -1.0, 0.7, 2.0], [1.1, 0.4, -0.2, 0.5]);
        assert_eq!(turn(0, a), a);
        assert!((dot(turn(13, a), turn(13, a)) - dot(a, a)).abs() < 1e-5);
        assert!((dot(turn(3, a), turn(9, b)) - dot(turn(10, a), turn(16, b))).abs() < 1e-5);
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_slows_long_ones() {
        let scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let plain = frequencies(64, 500_000.0, &RotaryScaling::None);
        let scaled = frequencies(64, 500_000.0, &scaling);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 8.0);
        let between = |i: usize| scaled[i] < plain[i] && scaled[i] > plain[i] / 8.0;
        assert!((0..32).any(between));
        let factors: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
        let by_factors = frequencies(64, 500_000.0, &RotaryScaling::Factors(factors));
        assert!(by_factors.iter().zip(&scaled).all(|(a, b)| (a / b - 1.0).abs() < 1e-6));
    }
}
