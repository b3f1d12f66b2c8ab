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
    /// Sum over batches, each as often as it has sequences.
    sum_bias: f64,
    sequences: u64,
    sum_l0: u64,
    sum_l1: f64,
}

/// A batch on its way into the sums. Two metrics depend on what is a batch: the legacy explained variance
/// compares tokens with their batch's mean, and the relative reconstruction bias is a mean over batches.
#[derive(Debug)]
pub struct BatchSums<'a> {
    all: &'a mut ReconstructionSums,
    sequences: u64,
    mean: Vec<f64>,
    tokens: u64,
    hat2: f64,
    dot: f64,
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
            sum_bias: 0.0,
            sequences: 0,
            sum_l0: 0,
            sum_l1: 0.0,
        }
    }

    /// Opens a batch of so many sequences with activations `x` (B, d_in); `keep` says which tokens count. Its
    /// reconstructions follow in pieces by [`BatchSums::add`], and [`BatchSums::finish`] ends it.
    pub fn batch(&mut self, sequences: usize, x: &[f32], keep: &[bool]) -> BatchSums<'_> {
        let d = self.d_in;
        assert_eq!(x.len(), keep.len() * d, "invariant: one row per token");
        let mut mean = vec![0.0_f64; d];
        for (row, _) in x.chunks_exact(d).zip(keep).filter(|(_, keep)| **keep) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        let kept = keep.iter().filter(|keep| **keep).count();
        for (total, sum) in self.sum_x.iter_mut().zip(&mut mean) {
            *total += *sum;
            *sum /= kept as f64;
        }
        BatchSums { all: self, sequences: sequences as u64, mean, tokens: 0, hat2: 0.0, dot: 0.0 }
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
        let bias = self.sum_bias / self.sequences as f64;
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

impl BatchSums<'_> {
    /// Adds the next tokens of the batch: `x` and `x_hat` are (B, d_in); `keep` says which tokens count; `l0`
    /// and `l1` are the number of active latents and the sum of their absolute values, per token.
    pub fn add(&mut self, x: &[f32], x_hat: &[f32], keep: &[bool], l0: &[u32], l1: &[f64]) {
        let d = self.mean.len();
        assert!(x.len() == keep.len() * d && x_hat.len() == x.len(), "invariant: one row per token");
        let all = &mut *self.all;
        for b in (0..keep.len()).filter(|&b| keep[b]) {
            let (row, row_hat) = (&x[b * d..(b + 1) * d], &x_hat[b * d..(b + 1) * d]);
            let (mut x2, mut hat2, mut dot, mut residual2, mut spread2) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for ((&value, &hat), &center) in row.iter().zip(row_hat).zip(&self.mean) {
                let (value, hat) = (f64::from(value), f64::from(hat));
                x2 += value * value;
                hat2 += hat * hat;
                dot += value * hat;
                residual2 += (hat - value) * (hat - value);
                spread2 += (value - center) * (value - center);
            }
            all.sum_x_norm2 += x2;
            all.sum_residual2 += residual2;
            all.sum_cossim += dot / (x2.sqrt() * hat2.sqrt());
            let norm = if x2.sqrt() < SMALL_NORM { 1.0 } else { x2.sqrt() };
            all.sum_l2_ratio += hat2.sqrt() / norm;
            all.sum_legacy += 1.0 - residual2 / spread2;
            all.sum_l0 += u64::from(l0[b]);
            all.sum_l1 += l1[b];
            all.tokens += 1;
            self.hat2 += hat2;
            self.dot += dot;
            self.tokens += 1;
        }
    }

    /// Ends the batch. One without a token that counts leaves no trace.
    ///
    /// SAELens' batches are all of one size. A last one that is shorter counts for as many sequences as it has,
    /// so that a few odd tokens cannot move the mean over batches.
    pub fn finish(self) {
        if self.tokens > 0 {
            self.all.sum_bias += self.sequences as f64 * (self.hat2 / self.dot);
            self.all.sequences += self.sequences;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics_of(x: &[f32], x_hat: &[f32], keep: &[bool]) -> BTreeMap<String, f64> {
        metrics_of_batches(&[(x, x_hat, keep)], usize::MAX)
    }

    /// Batches of one sequence a token, each in pieces of at most `at_once` tokens.
    fn metrics_of_batches(batches: &[(&[f32], &[f32], &[bool])], at_once: usize) -> BTreeMap<String, f64> {
        let mut sums = ReconstructionSums::new(2);
        for (x, x_hat, keep) in batches {
            let mut batch = sums.batch(keep.len(), x, keep);
            for first in (0..keep.len()).step_by(at_once) {
                let n = at_once.min(keep.len() - first);
                let rows = first * 2..(first + n) * 2;
                let keep = &keep[first..first + n];
                batch.add(&x[rows.clone()], &x_hat[rows], keep, &vec![3; n], &vec![1.5; n]);
            }
            batch.finish();
        }
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

    #[test]
    fn batches_change_two_metrics_and_pieces_none() {
        let x = [1.0, 2.0, 5.0, -1.0, 3.0, 1.0, 0.5, 4.0, -2.0, 2.0, 1.0, 0.0];
        let x_hat = [1.0, 1.5, 4.0, -1.0, 3.5, 1.0, 0.5, 3.0, -2.0, 1.0, 0.5, 0.0];
        let keep = [true, true, false, true, true, true];
        let whole = metrics_of(&x, &x_hat, &keep);
        assert_eq!(metrics_of_batches(&[(&x, &x_hat, &keep)], 2), whole);
        let halves = [(&x[..6], &x_hat[..6], &keep[..3]), (&x[6..], &x_hat[6..], &keep[3..])];
        let halves = metrics_of_batches(&halves, usize::MAX);
        let changed: Vec<&str> = whole
            .keys()
            .filter(|name| (whole[*name] - halves[*name]).abs() > 1e-12)
            .map(|name| &**name)
            .collect();
        assert_eq!(changed, ["explained_variance_legacy", "relative_reconstruction_bias"]);
    }

    #[test]
    fn a_short_last_batch_weighs_as_much_as_it_has_sequences() {
        let bias = |batches: &[(&[f32], &[f32], &[bool])]| metrics_of_batches(batches, usize::MAX)["relative_reconstruction_bias"];
        let (x, half) = ([2.0, 0.0, 4.0, 0.0, 6.0, 0.0], [1.0, 0.0, 2.0, 0.0, 3.0, 0.0]);
        let (rest, rest_hat) = ([2.0, 0.0], [2.0, 0.0]);
        let both = [(&x[..], &half[..], &[true; 3][..]), (&rest, &rest_hat, &[true])];
        assert!((bias(&both) - (3.0 * 0.5 + 1.0) / 4.0).abs() < 1e-12);
        let empty = [(&x[..], &half[..], &[true; 3][..]), (&rest, &rest_hat, &[false])];
        assert!((bias(&empty) - 0.5).abs() < 1e-12);
    }
}
