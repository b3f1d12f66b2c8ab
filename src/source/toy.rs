//! Superposition data with known features. What a row is, [`ToyConfig`] says.
//!
//! Row r is drawn from a random stream of its own, so it does not depend on which other rows are made, when,
//! or by how many threads. Random numbers are made here from raw random bits, so that a later version of the
//! random-number library cannot change what a seed means.

use super::{RowSource, SourceError};
use crate::trial::ToyConfig;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The stream that features are drawn from; rows have the streams below, held-out rows those from
/// [`FIRST_EVAL_STREAM`] on.
const FEATURE_STREAM: u64 = u64::MAX;
const FIRST_EVAL_STREAM: u64 = 1 << 63;

/// Toy data.
#[derive(Debug, Clone)]
pub struct Toy {
    config: ToyConfig,
    train_rows: usize,
    rng: ChaCha8Rng,
    /// (N, D), of norm 1.
    features: Vec<f32>,
    norms: Vec<f64>,
    probabilities: Vec<f64>,
    /// A feature is active when 32 random bits fall below this.
    thresholds: Vec<u64>,
}

/// What is true of toy data, as far as an SAE may be asked to find it.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// Directions of norm 1 (N, D).
    pub features: Vec<f32>,
    /// Norms in the rows (N).
    pub norms: Vec<f32>,
    /// Firing probabilities (N).
    pub probabilities: Vec<f32>,
    /// Active features of each held-out row.
    pub eval_active: Vec<u32>,
}

impl Toy {
    /// The data of these settings, with so many training rows.
    pub fn new(config: &ToyConfig, train_rows: usize) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        let mut features_rng = rng.clone();
        features_rng.set_stream(FEATURE_STREAM);
        let mut features = Vec::with_capacity(config.n_features * config.d_in);
        let mut direction = vec![0.0; config.d_in];
        for _ in 0..config.n_features {
            direction.fill(0.0);
            add_normals(&mut features_rng, 1.0, &mut direction);
            let norm = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
            features.extend(direction.iter().map(|x| (x / norm) as f32));
        }
        let probabilities = config.probabilities();
        let thresholds = probabilities.iter().map(|p| threshold(*p)).collect();
        let norms = config.norms();
        Self { config: config.clone(), train_rows, rng, features, norms, probabilities, thresholds }
    }

    /// The true features. Makes all held-out rows once more to count what is active in them.
    pub fn truth(&self) -> Truth {
        let mut row = vec![0.0; self.config.d_in];
        let mut count = |idx: usize| self.write_row(FIRST_EVAL_STREAM + idx as u64, &mut row);
        Truth {
            eval_active: (0..self.config.eval_rows).map(&mut count).collect(),
            features: self.features.clone(),
            norms: self.norms.iter().map(|norm| *norm as f32).collect(),
            probabilities: self.probabilities.iter().map(|p| *p as f32).collect(),
        }
    }

    /// Writes the row of a stream; returns how many features are active in it.
    fn write_row(&self, stream: u64, row: &mut [f64]) -> u32 {
        let ToyConfig { d_in, spread, correlation, group_size, noise, .. } = self.config;
        let mut rng = self.rng.clone();
        rng.set_stream(stream);
        let joint = threshold(correlation.sqrt());
        row.fill(0.0);
        let mut n_active = 0;
        for first in (0..self.thresholds.len()).step_by(group_size) {
            let shared = if joint > 0 { rng.next_u32() } else { 0 };
            for i in first..(first + group_size).min(self.thresholds.len()) {
                let mut bits = rng.next_u32();
                if joint > 0 && u64::from(rng.next_u32()) < joint {
                    bits = shared;
                }
                if u64::from(bits) < self.thresholds[i] {
                    n_active += 1;
                    let strength = self.norms[i] * (1.0 + spread * (2.0 * uniform(&mut rng) - 1.0));
                    let feature = &self.features[i * d_in..(i + 1) * d_in];
                    for (x, f) in row.iter_mut().zip(feature) {
                        *x += strength * f64::from(*f);
                    }
                }
            }
        }
        if noise > 0.0 {
            add_normals(&mut rng, noise, row);
        }
        n_active
    }

    /// Appends the rows of these streams, shared out among the machine's cores.
    fn append(&self, streams: &[u64], out: &mut Vec<f32>) {
        let d_in = self.config.d_in;
        let first = out.len();
        out.resize(first + streams.len() * d_in, 0.0);
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let each = streams.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for (streams, rows) in streams.chunks(each).zip(out[first..].chunks_mut(each * d_in)) {
                scope.spawn(move || {
                    let mut row = vec![0.0; d_in];
                    for (stream, out) in streams.iter().zip(rows.chunks_exact_mut(d_in)) {
                        self.write_row(*stream, &mut row);
                        for (out, x) in out.iter_mut().zip(&row) {
                            *out = *x as f32;
                        }
                    }
                });
            }
        });
    }
}

impl RowSource for Toy {
    fn width(&self) -> usize {
        self.config.d_in
    }

    fn train_rows(&self) -> usize {
        self.train_rows
    }

    fn eval_rows(&self) -> usize {
        self.config.eval_rows
    }

    fn append_train(&self, rows: &[usize], out: &mut Vec<f32>) -> Result<(), SourceError> {
        let streams: Vec<u64> = rows.iter().map(|row| *row as u64).collect();
        self.append(&streams, out);
        Ok(())
    }

    fn append_eval(&self, out: &mut Vec<f32>) -> Result<(), SourceError> {
        let streams: Vec<u64> =
            (0..self.config.eval_rows as u64).map(|row| FIRST_EVAL_STREAM + row).collect();
        self.append(&streams, out);
        Ok(())
    }
}

/// 32 random bits fall below this with probability `p`.
fn threshold(p: f64) -> u64 {
    (p.clamp(0.0, 1.0) * 2_f64.powi(32)).round() as u64
}

/// Uniform in (0, 1).
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (f64::from(rng.next_u32()) + 0.5) / 2_f64.powi(32)
}

/// Adds normal numbers of this standard deviation (Box and Muller's pairs).
fn add_normals(rng: &mut ChaCha8Rng, deviation: f64, row: &mut [f64]) {
    for pair in row.chunks_mut(2) {
        let radius = deviation * (-2.0 * uniform(rng).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform(rng)).sin_cos();
        for (x, part) in pair.iter_mut().zip([cos, sin]) {
            *x += radius * part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ToyConfig {
        ToyConfig {
            n_features: 40,
            d_in: 16,
            mean_active: 4.0,
            probability_power: 0.5,
            norm_power: 0.25,
            spread: 0.5,
            correlation: 0.0,
            group_size: 4,
            noise: 0.0,
            seed: 7,
            eval_rows: 20_000,
        }
    }

    /// For each held-out row, which features are active: without superposition the rows themselves say so.
    fn activity(config: &ToyConfig) -> (Vec<Vec<bool>>, Toy) {
        let mut toy = Toy::new(config, 10);
        let (n, d) = (config.n_features, config.d_in);
        assert_eq!(n, d);
        toy.features = (0..n * n).map(|at| if at % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let mut rows = Vec::new();
        toy.append_eval(&mut rows).unwrap();
        (rows.chunks_exact(n).map(|row| row.iter().map(|x| *x != 0.0).collect()).collect(), toy)
    }

    fn share(rows: &[Vec<bool>], of: impl Fn(&[bool]) -> bool) -> f64 {
        rows.iter().filter(|row| of(row)).count() as f64 / rows.len() as f64
    }

    #[test]
    fn features_are_active_as_often_as_they_should() {
        for correlation in [0.0, 0.4] {
            let config = ToyConfig { n_features: 40, d_in: 40, correlation, ..config() };
            let (rows, toy) = activity(&config);
            for (i, p) in toy.probabilities.iter().enumerate() {
                let found = share(&rows, |row| row[i]);
                assert!((found - p).abs() < 5.0 * (p / rows.len() as f64).sqrt(), "{i}: {found} {p}");
            }
            let truth = toy.truth();
            let counts: Vec<u32> =
                rows.iter().map(|row| row.iter().filter(|active| **active).count() as u32).collect();
            assert_eq!(truth.eval_active, counts);
            let mean = counts.iter().sum::<u32>() as f64 / counts.len() as f64;
            assert!((mean - 4.0).abs() < 0.1, "{mean}");
        }
    }

    #[test]
    fn groups_are_correlated_and_others_are_not() {
        let config = ToyConfig { d_in: 40, correlation: 0.36, probability_power: 0.0, ..config() };
        let (rows, _) = activity(&config);
        let correlation = |i: usize, j: usize| {
            let (p, q) = (share(&rows, |row| row[i]), share(&rows, |row| row[j]));
            let both = share(&rows, |row| row[i] && row[j]);
            (both - p * q) / (p * (1.0 - p) * q * (1.0 - q)).sqrt()
        };
        for (i, j) in [(0, 1), (4, 7), (37, 39)] {
            assert!((correlation(i, j) - 0.36).abs() < 0.05, "{}", correlation(i, j));
        }
        for (i, j) in [(3, 4), (0, 20)] {
            assert!(correlation(i, j).abs() < 0.03, "{}", correlation(i, j));
        }
    }

    #[test]
    fn rows_depend_on_their_number_alone() {
        let toy = Toy::new(&ToyConfig { noise: 0.1, ..config() }, 100);
        let rows = |numbers: &[usize]| {
            let mut out = Vec::new();
            toy.append_train(numbers, &mut out).unwrap();
            out
        };
        let all = rows(&(0..100).collect::<Vec<_>>());
        assert_eq!(rows(&[99, 3]), [&all[99 * 16..], &all[3 * 16..4 * 16]].concat());
        let other = Toy::new(&ToyConfig { seed: 8, ..toy.config.clone() }, 100);
        assert_ne!(other.features, toy.features);
    }

    #[test]
    fn strengths_norms_and_noise_are_as_described() {
        let toy = Toy::new(&config(), 10);
        for feature in toy.features.chunks_exact(16) {
            let norm = feature.iter().map(|f| f64::from(*f).powi(2)).sum::<f64>();
            assert!((norm - 1.0).abs() < 1e-6);
        }
        assert!((toy.norms[15] - 0.5).abs() < 1e-12);
        // One feature that is always there: rows are its multiples.
        let one = ToyConfig { n_features: 1, mean_active: 1.0, ..config() };
        let mut rows = Vec::new();
        Toy::new(&one, 10).append_eval(&mut rows).unwrap();
        let norms: Vec<f32> =
            rows.chunks_exact(16).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
        let (low, high) = norms.iter().fold((f32::MAX, 0.0_f32), |(l, h), x| (l.min(*x), h.max(*x)));
        assert!(low > 0.4999 && low < 0.51 && high < 1.5001 && high > 1.49, "{low} {high}");
        // Noise alone.
        let noise = ToyConfig { mean_active: 1e-12, noise: 0.3, ..config() };
        let mut rows = Vec::new();
        Toy::new(&noise, 10).append_eval(&mut rows).unwrap();
        let deviation = (rows.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / rows.len() as f64).sqrt();
        assert!((deviation - 0.3).abs() < 0.002, "{deviation}");
    }
}
