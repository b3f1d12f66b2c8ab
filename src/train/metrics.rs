//! The lines of `metrics.jsonl`, under the names that SAELens logs.
//!
//! A line says nothing about when it was written, so that an interrupted and continued trial leaves the
//! same bytes as an undisturbed one.

use crate::failpoint;
use serde_json::{Map, Value};
use std::{
    borrow::Cow,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

/// Name of the file with one line every `run.log_every_steps` steps, in the trial's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One line: values of one step, measured on the batch as the SAE saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Steps done.
    pub step: u64,
    /// Sum of the losses.
    pub overall_loss: f64,
    /// Mean over tokens of ||x - x_hat||².
    pub mse_loss: f64,
    /// Names and values of the architecture's own losses, coefficients included.
    pub own_losses: Vec<(Cow<'static, str>, f64)>,
    /// How well the batch is reconstructed.
    pub explained: ExplainedVariance,
    /// Mean active latents per token.
    pub l0: f64,
    /// Mean steps since latents last fired.
    pub mean_passes_since_fired: f64,
    /// Number of dead latents.
    pub dead_features: u64,
    /// Learning rate of the step to come, as SAELens logs it.
    pub learning_rate: f64,
    /// Tokens trained on.
    pub n_training_samples: u64,
    /// What else the architecture has: its sparsity loss' coefficient in the step to come, its threshold.
    pub own_details: Vec<(Cow<'static, str>, f64)>,
}

impl LogLine {
    /// Names and values in the order of the file. What is not finite is left out.
    pub fn values(&self) -> Vec<(Cow<'static, str>, f64)> {
        let losses = [("losses/overall_loss", self.overall_loss), ("losses/mse_loss", self.mse_loss)];
        let rest = [
            ("metrics/explained_variance", self.explained.pooled),
            ("metrics/explained_variance_legacy", self.explained.legacy),
            ("metrics/explained_variance_legacy_std", self.explained.legacy_std),
            ("metrics/l0", self.l0),
            ("sparsity/mean_passes_since_fired", self.mean_passes_since_fired),
            ("sparsity/dead_features", self.dead_features as f64),
            ("details/current_learning_rate", self.learning_rate),
            ("details/n_training_samples", self.n_training_samples as f64),
        ];
        let named = |(name, value): (&'static str, f64)| (Cow::Borrowed(name), value);
        (losses.into_iter().map(named))
            .chain(self.own_losses.iter().cloned())
            .chain(rest.into_iter().map(named))
            .chain(self.own_details.iter().cloned())
            .filter(|(_, value)| value.is_finite())
            .collect()
    }

    /// The line, newline included.
    pub fn to_json(&self) -> String {
        let mut map = Map::new();
        map.insert("step".to_owned(), self.step.into());
        for (name, value) in self.values() {
            // Counts are written as whole numbers.
            let whole = matches!(&*name, "sparsity/dead_features" | "details/n_training_samples");
            let value = if whole { Value::from(value as u64) } else { Value::from(value) };
            map.insert(name.into_owned(), value);
        }
        let mut line = Value::Object(map).to_string();
        line.push('\n');
        line
    }
}

/// How much of a batch's variance the reconstruction keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExplainedVariance {
    /// 1 - mean residual / mean variance.
    pub pooled: f64,
    /// Mean over tokens of 1 - residual / variance.
    pub legacy: f64,
    /// Unbiased standard deviation of the same; NaN of less than two tokens, as the others are of none.
    pub legacy_std: f64,
}

impl ExplainedVariance {
    /// Of reconstructions `x_hat` of `x`, both (B, D); the variance of a token is its squared distance from
    /// the batch's mean.
    pub fn of(x: &[f32], x_hat: &[f32], d: usize) -> Self {
        let n = (x.len() / d) as f64;
        let mut mean = vec![0.0_f64; d];
        for row in x.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(m, &x)| *m += f64::from(x));
        }
        mean.iter_mut().for_each(|m| *m /= n);
        let tokens: Vec<(f64, f64)> = x
            .chunks_exact(d)
            .zip(x_hat.chunks_exact(d))
            .map(|(x, x_hat)| {
                let residual = x.iter().zip(x_hat).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                let variance = x.iter().zip(&mean).map(|(&x, m)| (f64::from(x) - m).powi(2)).sum::<f64>();
                (residual, variance)
            })
            .collect();
        let residual: f64 = tokens.iter().map(|t| t.0).sum();
        let variance: f64 = tokens.iter().map(|t| t.1).sum();
        let shares = || tokens.iter().map(|(residual, variance)| 1.0 - residual / variance);
        let legacy = shares().sum::<f64>() / n;
        let squares: f64 = shares().map(|share| (share - legacy).powi(2)).sum();
        Self { pooled: 1.0 - residual / variance, legacy, legacy_std: (squares / (n - 1.0).max(0.0)).sqrt() }
    }
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub(super) struct MetricsFile {
    file: File,
    bytes: u64,
}

impl MetricsFile {
    /// Opens the file cut back to its first `bytes` bytes, which it must have.
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.set_len(bytes)?;
        Ok(Self { file, bytes })
    }

    /// Appends a line in one write.
    pub(super) fn append(&mut self, line: &LogLine) -> io::Result<()> {
        let text = line.to_json();
        if failpoint::armed() {
            let (first, rest) = text.as_bytes().split_at(text.len() / 2);
            self.file.write_all(first)?;
            failpoint::hit("metrics: half a line");
            self.file.write_all(rest)?;
        } else {
            self.file.write_all(text.as_bytes())?;
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Makes what was appended durable and returns the file's length.
    pub(super) fn sync(&mut self) -> io::Result<u64> {
        self.file.sync_all()?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explained_variance_by_hand() {
        // Two tokens of width 1 at 0 and 4: mean 2, variances 4 and 4; residuals 1 and 0.
        let explained = ExplainedVariance::of(&[0.0, 4.0], &[1.0, 4.0], 1);
        assert_eq!(explained.pooled, 1.0 - 1.0 / 8.0);
        assert_eq!(explained.legacy, (0.75 + 1.0) / 2.0);
        assert!((explained.legacy_std - (2.0 * 0.125_f64.powi(2)).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_line_is_one_object_without_what_is_not_finite() {
        let line = LogLine {
            step: 30,
            overall_loss: 1.5,
            mse_loss: 1.25,
            own_losses: vec![("losses/l1_loss".into(), 0.25)],
            explained: ExplainedVariance { pooled: 0.5, legacy: 0.25, legacy_std: f64::NAN },
            l0: 3.0,
            mean_passes_since_fired: 0.0,
            dead_features: 2,
            learning_rate: 1e-4,
            n_training_samples: 960,
            own_details: vec![("details/l1_coefficient".into(), 5.0)],
        };
        assert_eq!(
            line.to_json(),
            "{\"step\":30,\"losses/overall_loss\":1.5,\"losses/mse_loss\":1.25,\"losses/l1_loss\":0.25,\
             \"metrics/explained_variance\":0.5,\"metrics/explained_variance_legacy\":0.25,\"metrics/l0\":3.0,\
             \"sparsity/mean_passes_since_fired\":0.0,\"sparsity/dead_features\":2,\
             \"details/current_learning_rate\":0.0001,\"details/n_training_samples\":960,\
             \"details/l1_coefficient\":5.0}\n"
        );
    }
}
