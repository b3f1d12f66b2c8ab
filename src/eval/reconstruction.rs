//! Metrics of a reconstruction alone: slices of activations in, numbers out.
//!
//! Formulas and guards are those of SAELens 6.54's `run_evals` (groups reconstruction_quality, shrinkage and
//! sparsity), all on activations in the model's own scale. Sums run in f64 in the order of the tokens.

use std::collections::BTreeMap;

/// Running sums over held-out tokens. Feed it batches, then ask for [`Self::metrics`].
#[derive(Debug)]
pub struct ReconstructionSums {
    d_in: usize,
    tokens: u64,
    sum_x: Vec<f64>,
    sum_x_norm2: f64,
    sum_residual2: f64,
    sum_cossim: f64,
    sum_l2_ratio: f64,
    sum_legacy: f64,
    /// One value per batch, as SAELens averages this metric over batches.
    bias_of_batches: Vec<f64>,
    sum_l0: u64,
    sum_l1: f64,
}

/// Norms below this count as 1 in the L2 ratio, so that a zero activation does not make it infinite.
const SMALL_NORM: f64 = 1e-4;
/// Variances below this are none: the explained variance is then 1 or 0 by the error alone.
const NO_VARIANCE: f64 = 1e-10;

impl ReconstructionSums {
    /// Sums over activations of width `d_in`.
    pub fn new(d_in: usize) -> Self {
        Self {
            d_in,
            tokens: 0,
            sum_x: vec![0.0; d_in],
            sum_x_norm2: 0.0,
            sum_residual2: 0.0,
            sum_cossim: 0.0,
            sum_l2_ratio: 0.0,
            sum_legacy: 0.0,
            bias_of_batches: Vec::new(),
            sum_l0: 0,
            sum_l1: 0.0,
        }
    }

    /// Adds one batch: `x` and `x_hat` are (B, d_in); `keep` says which tokens count; `l0` and `l1` are the
    /// number of active latents and the sum of their absolute values, per token.
    pub fn add_batch(&mut self, x: &[f32], x_hat: &[f32], keep: &[bool], l0: &[u32], l1: &[f64]) {
        let d = self.d_in;
        assert!(x.len() == keep.len() * d && x_hat.len() == x.len(), "invariant: one row per token");
        let kept: Vec<usize> = (0..keep.len()).filter(|&b| keep[b]).collect();
        if kept.is_empty() {
            return;
        }
        let mut mean = vec![0.0_f64; d];
        for &b in &kept {
            for (sum, value) in mean.iter_mut().zip(&x[b * d..(b + 1) * d]) {
                *sum += f64::from(*value);
            }
        }
        for (total, sum) in self.sum_x.iter_mut().zip(&mut mean) {
            *total += *sum;
            *sum /= kept.len() as f64;
        }
        let (mut batch_hat2, mut batch_dot) = (0.0, 0.0);
        for &b in &kept {
            let (row, row_hat) = (&x[b * d..(b + 1) * d], &x_hat[b * d..(b + 1) * d]);
            let (mut x2, mut hat2, mut dot, mut residual2, mut spread2) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for ((&value, &hat), &center) in row.iter().zip(row_hat).zip(&mean) {
                let (value, hat) = (f64::from(value), f64::from(hat));
                x2 += value * value;
                hat2 += hat * hat;
                dot += value * hat;
                residual2 += (hat - value) * (hat - value);
                spread2 += (value - center) * (value - center);
            }
            self.sum_x_norm2 += x2;
            self.sum_residual2 += residual2;
            self.sum_cossim += dot / (x2.sqrt() * hat2.sqrt());
            let norm = if x2.sqrt() < SMALL_NORM { 1.0 } else { x2.sqrt() };
            self.sum_l2_ratio += hat2.sqrt() / norm;
            self.sum_legacy += 1.0 - residual2 / spread2;
            batch_hat2 += hat2;
            batch_dot += dot;
            self.sum_l0 += u64::from(l0[b]);
            self.sum_l1 += l1[b];
        }
        self.bias_of_batches.push(batch_hat2 / batch_dot);
        self.tokens += kept.len() as u64;
    }

    /// Tokens that counted.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The metrics by name. One that is not a number is left out.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let n = self.tokens as f64;
        let mse = self.sum_residual2 / n;
        let mean_norm2: f64 = self.sum_x.iter().map(|sum| (sum / n) * (sum / n)).sum();
        let variance = self.sum_x_norm2 / n - mean_norm2;
        let explained_variance = if variance >= NO_VARIANCE {
            1.0 - mse / variance
        } else if mse < NO_VARIANCE {
            1.0
        } else {
            0.0
        };
        let bias = self.bias_of_batches.iter().sum::<f64>() / self.bias_of_batches.len() as f64;
        [
            ("explained_variance", explained_variance),
            ("explained_variance_legacy", self.sum_legacy / n),
            ("mse", mse),
            ("cossim", self.sum_cossim / n),
            ("l2_ratio", self.sum_l2_ratio / n),
            ("relative_reconstruction_bias", bias),
            ("l0", self.sum_l0 as f64 / n),
            ("l1", self.sum_l1 / n),
        ]
        .into_iter()
        .filter(|(_, value)| value.is_finite())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics_of(x: &[f32], x_hat: &[f32], keep: &[bool]) -> BTreeMap<String, f64> {
        let mut sums = ReconstructionSums::new(2);
        sums.add_batch(x, x_hat, keep, &vec![3; keep.len()], &vec![1.5; keep.len()]);
        sums.metrics()
    }

    #[test]
    fn a_perfect_reconstruction_scores_one() {
        let x = [1.0, 2.0, -1.0, 0.5, 3.0, 1.0];
        let metrics = metrics_of(&x, &x, &[true; 3]);
        for name in
            ["explained_variance", "explained_variance_legacy", "l2_ratio", "relative_reconstruction_bias"]
        {
            assert!((metrics[name] - 1.0).abs() < 1e-12, "{name}");
        }
        assert!((metrics["cossim"] - 1.0).abs() < 1e-12);
        assert_eq!(metrics["mse"], 0.0);
        assert_eq!((metrics["l0"], metrics["l1"]), (3.0, 1.5));
    }

    #[test]
    fn the_mean_explains_no_variance() {
        let x = [1.0, 0.0, 3.0, 0.0, 5.0, 0.0];
        let metrics = metrics_of(&x, &[3.0, 0.0, 3.0, 0.0, 3.0, 0.0], &[true; 3]);
        assert!(metrics["explained_variance"].abs() < 1e-12);
        assert!((metrics["mse"] - 8.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn left_out_tokens_do_not_count() {
        let x = [1.0, 2.0, 1e6, 1e6, 3.0, 1.0];
        let with = metrics_of(&x, &[1.0, 2.0, 0.0, 0.0, 2.0, 1.0], &[true, false, true]);
        let without = metrics_of(&[1.0, 2.0, 3.0, 1.0], &[1.0, 2.0, 2.0, 1.0], &[true; 2]);
        assert_eq!(with, without);
    }

    #[test]
    fn a_zero_reconstruction_has_no_cosine() {
        let metrics = metrics_of(&[1.0, 2.0, 2.0, 1.0], &[0.0; 4], &[true; 2]);
        assert!(!metrics.contains_key("cossim"));
        assert_eq!(metrics["l2_ratio"], 0.0);
    }
}
