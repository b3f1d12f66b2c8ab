//! How activations are scaled before an SAE sees them, in all of SAELens' modes.
//!
//! Three modes are one map for all rows ([`Normalizer::Identity`], [`Normalizer::Scale`],
//! [`Normalizer::Whiten`]); training happens in the mapped space and the map is folded into the weights at
//! the end. Two are computed from each row and undone on its reconstruction, so that the loss is measured on
//! the row as it came ([`Normalizer::ConstantNorm`], [`Normalizer::LayerNorm`]); they stay with the SAE.

use super::{
    dense::{self, Side},
    eigen,
};
use crate::{kernels::Pool, trial::NormalizeActivations};

/// Added to the covariance's eigenvalues before their inverse root is taken.
const WHITENING_EPS: f64 = 1e-3;

/// Added to a row's standard deviation before it divides.
const LAYER_NORM_EPS: f32 = 1e-5;

/// A whitening `z = (x - mean) M`, undone by `x = z M⁻¹ + mean`, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    /// (D) mean activation.
    pub mean: Vec<f64>,
    /// (D, D) M, row-major.
    pub matrix: Vec<f64>,
    /// (D, D) its inverse, row-major.
    pub inverse: Vec<f64>,
}

impl Whitening {
    /// From the mean (D) and the covariance (D, D) of activations. `None` when the covariance is not finite.
    pub fn from_covariance(mean: &[f64], covariance: &[f64]) -> Option<Self> {
        let d = mean.len();
        let eigen = eigen::symmetric(covariance, d)?;
        let (mut matrix, mut inverse) = (vec![0.0; d * d], vec![0.0; d * d]);
        for (i, &value) in eigen.values.iter().enumerate() {
            // Rounding can leave a singular covariance with slightly negative eigenvalues.
            let root = (value.max(0.0) + WHITENING_EPS).sqrt();
            for j in 0..d {
                matrix[j * d + i] = eigen.vectors[i * d + j] / root;
                inverse[i * d + j] = eigen.vectors[i * d + j] * root;
            }
        }
        Some(Self { mean: mean.to_vec(), matrix, inverse })
    }

    /// The map back: `x = (z - m) M⁻¹` with `m = -mean M`.
    pub fn inverted(&self) -> Self {
        let d = self.mean.len();
        let mean =
            (0..d).map(|j| -(0..d).map(|i| self.mean[i] * self.matrix[i * d + j]).sum::<f64>()).collect();
        Self { mean, matrix: self.inverse.clone(), inverse: self.matrix.clone() }
    }
}

/// A way to scale activations; see the module's page.
#[derive(Debug, Clone, PartialEq)]
pub enum Normalizer {
    /// Activations as they are.
    Identity,
    /// Every activation times one number.
    Scale(f64),
    /// Whitened, with the map also in the f32 that rows are computed in.
    Whiten {
        /// The map.
        whitening: Box<Whitening>,
        /// (D) mean in f32.
        mean: Vec<f32>,
        /// (D, D) M in f32.
        matrix: Vec<f32>,
    },
    /// Every row to norm sqrt(D).
    ConstantNorm,
    /// Every row to mean 0 and (unbiased) standard deviation 1.
    LayerNorm,
}

/// What a run-time mode took from each row and gives back to its reconstruction: `x = z · spread + shift`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowScales {
    /// (B) factor.
    pub spread: Vec<f32>,
    /// (B) offset, empty when the mode has none.
    pub shift: Vec<f32>,
}

impl Normalizer {
    /// From a setting and the statistics of the activations it is for. `None` when the statistics cannot
    /// serve: a mean norm that is not positive, a covariance that is not finite.
    pub fn new(
        mode: NormalizeActivations,
        d_in: usize,
        mean_norm: f64,
        mean: &[f64],
        covariance: &[f64],
    ) -> Option<Self> {
        Some(match mode {
            NormalizeActivations::None => Self::Identity,
            NormalizeActivations::ExpectedAverageOnlyIn => {
                let factor = (d_in as f64).sqrt() / mean_norm;
                return (factor.is_finite() && factor > 0.0).then_some(Self::Scale(factor));
            }
            NormalizeActivations::ConstantNormRescale => Self::ConstantNorm,
            NormalizeActivations::LayerNorm => Self::LayerNorm,
            NormalizeActivations::CovarianceWhitening => {
                Self::whiten(Whitening::from_covariance(mean, covariance)?)
            }
        })
    }

    /// Whitening by a given map.
    pub fn whiten(whitening: Whitening) -> Self {
        let mean = whitening.mean.iter().map(|&x| x as f32).collect();
        let matrix = whitening.matrix.iter().map(|&x| x as f32).collect();
        Self::Whiten { whitening: Box::new(whitening), mean, matrix }
    }

    /// The mode that an SAE keeps for inference: a folded or absent map needs none.
    pub fn run_time(mode: NormalizeActivations) -> Self {
        match mode {
            NormalizeActivations::ConstantNormRescale => Self::ConstantNorm,
            NormalizeActivations::LayerNorm => Self::LayerNorm,
            NormalizeActivations::None
            | NormalizeActivations::ExpectedAverageOnlyIn
            | NormalizeActivations::CovarianceWhitening => Self::Identity,
        }
    }

    /// Whether each row is scaled by itself, and its reconstruction scaled back.
    pub fn is_per_row(&self) -> bool {
        matches!(self, Self::ConstantNorm | Self::LayerNorm)
    }

    /// Writes the scaled rows of `x` (B, D) to `z` (B, D). In the per-row modes `scales` gets what
    /// [`Normalizer::undo`] needs; in the others it is left empty.
    pub fn apply(&self, pool: &Pool, x: &[f32], d: usize, z: &mut [f32], scales: &mut RowScales) {
        assert_eq!(x.len(), z.len());
        scales.spread.clear();
        scales.shift.clear();
        match self {
            Self::Identity => z.copy_from_slice(x),
            Self::Scale(factor) => {
                let factor = *factor as f32;
                z.iter_mut().zip(x).for_each(|(z, x)| *z = x * factor);
            }
            Self::Whiten { mean, matrix, .. } => {
                let centred: Vec<f32> =
                    x.chunks_exact(d).flat_map(|row| row.iter().zip(mean).map(|(x, m)| x - m)).collect();
                dense::rows_times(pool, &centred, matrix, Side::Plain, d, z);
            }
            Self::ConstantNorm => {
                let target = (d as f32).sqrt();
                for (x, z) in x.chunks_exact(d).zip(z.chunks_exact_mut(d)) {
                    let norm = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
                    // A row of zeros stays one, in and out.
                    let factor = if norm > 0.0 { target / norm } else { 0.0 };
                    z.iter_mut().zip(x).for_each(|(z, x)| *z = x * factor);
                    scales.spread.push(if norm > 0.0 { 1.0 / factor } else { 0.0 });
                }
            }
            Self::LayerNorm => {
                for (x, z) in x.chunks_exact(d).zip(z.chunks_exact_mut(d)) {
                    let mean = (x.iter().map(|&x| f64::from(x)).sum::<f64>() / d as f64) as f32;
                    z.iter_mut().zip(x).for_each(|(z, x)| *z = x - mean);
                    // The unbiased deviation of the centred row, whose own mean is 0 up to rounding.
                    let rest = z.iter().map(|&z| f64::from(z)).sum::<f64>() / d as f64;
                    let squares: f64 = z.iter().map(|&z| (f64::from(z) - rest).powi(2)).sum();
                    let std = (squares / (d as f64 - 1.0)).sqrt() as f32;
                    z.iter_mut().for_each(|z| *z /= std + LAYER_NORM_EPS);
                    scales.spread.push(std);
                    scales.shift.push(mean);
                }
            }
        }
    }

    /// Undoes a per-row mode on reconstructions (B, D); the other modes are not undone here but folded.
    pub fn undo(&self, scales: &RowScales, d: usize, z: &mut [f32]) {
        if !self.is_per_row() {
            return;
        }
        for (i, row) in z.chunks_exact_mut(d).enumerate() {
            let spread = scales.spread[i];
            let shift = scales.shift.get(i).copied().unwrap_or(0.0);
            row.iter_mut().for_each(|z| *z = *z * spread + shift);
        }
    }

    /// In the per-row modes: the target of the loss in the scaled space, written to `target` (B, D), and the
    /// weight of each row, so that `weight · ||z_hat - target||²` is the loss of the row as it came.
    /// Returns whether there is one.
    pub fn targets(
        &self,
        z: &[f32],
        scales: &RowScales,
        d: usize,
        target: &mut [f32],
        weight: &mut Vec<f32>,
    ) -> bool {
        if !self.is_per_row() {
            return false;
        }
        weight.clear();
        weight.extend(scales.spread.iter().map(|s| s * s));
        target.copy_from_slice(z);
        if matches!(self, Self::LayerNorm) {
            // The input was divided by the deviation plus epsilon, the output is multiplied by it alone.
            for (row, &std) in target.chunks_exact_mut(d).zip(&scales.spread) {
                let factor = if std > 0.0 { (std + LAYER_NORM_EPS) / std } else { 0.0 };
                row.iter_mut().for_each(|t| *t *= factor);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize, d: usize) -> Vec<f32> {
        (0..n * d).map(|i| ((i * 37 % 101) as f32 / 25.0 - 2.0) * (1.0 + (i % d) as f32)).collect()
    }

    fn scaled(normalizer: &Normalizer, x: &[f32], d: usize) -> (Vec<f32>, RowScales) {
        let (mut z, mut scales) = (vec![0.0; x.len()], RowScales::default());
        normalizer.apply(&Pool::new(1), x, d, &mut z, &mut scales);
        (z, scales)
    }

    #[test]
    fn the_average_mode_gives_the_mean_norm_of_the_width() {
        let d = 8;
        let x = rows(50, d);
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let mean_norm = x.chunks(d).map(norm).sum::<f64>() / 50.0;
        let normalizer =
            Normalizer::new(NormalizeActivations::ExpectedAverageOnlyIn, d, mean_norm, &[], &[]).unwrap();
        let (z, _) = scaled(&normalizer, &x, d);
        let after = z.chunks(d).map(norm).sum::<f64>() / 50.0;
        assert!((after - (d as f64).sqrt()).abs() < 1e-6, "{after}");
        assert!(Normalizer::new(NormalizeActivations::ExpectedAverageOnlyIn, d, 0.0, &[], &[]).is_none());
    }

    #[test]
    fn per_row_modes_are_undone() {
        let d = 6;
        let mut x = rows(9, d);
        x[..d].fill(0.0); // a row without a norm
        x[d..2 * d].fill(2.5); // a row without a deviation
        for normalizer in [Normalizer::ConstantNorm, Normalizer::LayerNorm] {
            let (mut z, scales) = scaled(&normalizer, &x, d);
            assert!(z.iter().all(|z| z.is_finite()));
            let (mut target, mut weight) = (vec![0.0; z.len()], Vec::new());
            assert!(normalizer.targets(&z, &scales, d, &mut target, &mut weight));
            normalizer.undo(&scales, d, &mut target);
            normalizer.undo(&scales, d, &mut z);
            for (got, want) in target.iter().zip(&x) {
                assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
            for (got, want) in z.iter().zip(&x) {
                assert!((got - want).abs() < 1e-3, "{got} {want}");
            }
            assert_eq!(weight[3], scales.spread[3] * scales.spread[3]);
        }
    }

    #[test]
    fn whitened_rows_have_mean_zero_and_covariance_one() {
        let (n, d) = (200, 4);
        let x: Vec<f32> = (0..n * d)
            .map(|i| {
                let row = (i / d) as f32;
                (row * 0.7).sin() * 3.0
                    + ((i * i % 97) as f32 / 20.0) * (i % d) as f32
                    + (i % 7 % 3) as f32 * 1.5
                    + 4.0
            })
            .collect();
        let mean: Vec<f64> =
            (0..d).map(|j| (0..n).map(|i| f64::from(x[i * d + j])).sum::<f64>() / n as f64).collect();
        let covariance = |x: &[f32], mean: &[f64]| -> Vec<f64> {
            (0..d * d)
                .map(|at| {
                    let (j, k) = (at / d, at % d);
                    (0..n)
                        .map(|i| (f64::from(x[i * d + j]) - mean[j]) * (f64::from(x[i * d + k]) - mean[k]))
                        .sum::<f64>()
                        / (n - 1) as f64
                })
                .collect()
        };
        let whitening = Whitening::from_covariance(&mean, &covariance(&x, &mean)).unwrap();
        for at in 0..d * d {
            let (i, j) = (at / d, at % d);
            let entry: f64 = (0..d).map(|k| whitening.matrix[i * d + k] * whitening.inverse[k * d + j]).sum();
            assert!((entry - f64::from(u8::from(i == j))).abs() < 1e-10);
        }
        let (z, _) = scaled(&Normalizer::whiten(whitening), &x, d);
        for (at, got) in covariance(&z, &vec![0.0; d]).into_iter().enumerate() {
            let want = f64::from(u8::from(at / d == at % d));
            assert!((got - want).abs() < 0.01, "{at}: {got}");
        }
    }
}
