//! An SAE against the features that its data were made from.

use crate::{kernels::Pool, store::TruthView};
use std::{collections::BTreeMap, sync::Mutex};

/// A feature counts as recovered when some latent's direction has a cosine with it above this.
const RECOVERED: f32 = 0.9;

/// Features that one task compares with all latents.
const FEATURES_PER_TASK: usize = 32;

/// `mmcs`, `recovered_share`, `uniqueness` and `true_l0`, as `metric.rs` defines them.
///
/// `w_dec` is (F, D); `fires` says how often each latent was active on held-out rows. A latent without a
/// direction (a decoder row of zeros) has cosine 0 with everything.
pub fn recovery(truth: &TruthView<'_>, w_dec: &[f32], fires: &[u64], pool: &Pool) -> BTreeMap<String, f64> {
    let n_latents = fires.len();
    let d = w_dec.len() / n_latents.max(1);
    let directions = directions(w_dec, d);
    let n_features = truth.norms.len();
    let n_tasks = n_features.div_ceil(FEATURES_PER_TASK);
    let parts: Vec<Mutex<Part>> = (0..n_tasks).map(|_| Mutex::new(Part::default())).collect();
    pool.run(n_tasks, &|task| {
        let first = task * FEATURES_PER_TASK;
        let end = (first + FEATURES_PER_TASK).min(n_features);
        let part = Part::of(&truth.features[first * d..end * d], first, &directions, d);
        *parts[task].lock().expect("invariant: no task panics while it holds its part") = part;
    });

    // The best cosine of each feature, and the best feature of each latent.
    let mut of_feature = Vec::with_capacity(n_features);
    let mut of_latent = vec![(f32::NEG_INFINITY, 0_usize); n_latents];
    for part in parts {
        let part = part.into_inner().expect("invariant: no task panicked");
        of_feature.extend(part.of_feature);
        for (best, found) in of_latent.iter_mut().zip(part.of_latent) {
            // In the order of the features, so that a tie goes to the first.
            if found.0 > best.0 {
                *best = found;
            }
        }
    }
    let mean = |values: &mut dyn Iterator<Item = f64>, n: usize| values.sum::<f64>() / n as f64;
    let n_recovered = of_feature.iter().filter(|cosine| **cosine > RECOVERED).count();
    let matched: Vec<usize> =
        of_latent.iter().zip(fires).filter(|(_, fires)| **fires > 0).map(|(best, _)| best.1).collect();
    let distinct: std::collections::BTreeSet<usize> = matched.iter().copied().collect();
    let eval_rows = truth.eval_active.len();
    [
        ("mmcs", mean(&mut of_feature.iter().map(|cosine| f64::from(*cosine)), n_features)),
        ("recovered_share", n_recovered as f64 / n_features as f64),
        ("uniqueness", distinct.len() as f64 / matched.len() as f64),
        ("true_l0", mean(&mut truth.eval_active.iter().map(|active| f64::from(*active)), eval_rows)),
    ]
    .into_iter()
    .filter(|(_, value)| value.is_finite())
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Rows scaled to norm 1; rows of zeros stay.
fn directions(rows: &[f32], d: usize) -> Vec<f32> {
    let mut directions = rows.to_vec();
    for row in directions.chunks_exact_mut(d) {
        let norm = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
    }
    directions
}

/// Some features against all latents.
#[derive(Debug, Default)]
struct Part {
    /// The largest cosine of each feature.
    of_feature: Vec<f32>,
    /// For each latent its largest cosine and with which feature.
    of_latent: Vec<(f32, usize)>,
}

impl Part {
    fn of(features: &[f32], first: usize, latents: &[f32], d: usize) -> Self {
        let n_features = features.len() / d;
        let mut part = Self {
            of_feature: vec![f32::NEG_INFINITY; n_features],
            of_latent: Vec::with_capacity(latents.len() / d),
        };
        // Latent by latent: the few features of a task stay in the cache.
        for latent in latents.chunks_exact(d) {
            let mut best = (f32::NEG_INFINITY, first);
            for (i, feature) in features.chunks_exact(d).enumerate() {
                let cosine = dot(latent, feature);
                part.of_feature[i] = part.of_feature[i].max(cosine);
                if cosine > best.0 {
                    best = (cosine, first + i);
                }
            }
            part.of_latent.push(best);
        }
        part
    }
}

/// In eight interleaved sums, so that it need not wait for each addition.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(w_dec: &[f32], fires: &[u64], expected: [f64; 3]) {
        // Three features in the plane and one out of it.
        let features = [1.0, 0.0, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0];
        let truth = TruthView {
            features: &features,
            norms: &[1.0, 2.0, 0.5],
            probabilities: &[0.5; 3],
            eval_active: &[1, 2, 3, 0],
        };
        let metrics = recovery(&truth, w_dec, fires, &Pool::new(1));
        for (name, expected) in ["mmcs", "recovered_share", "uniqueness"].into_iter().zip(expected) {
            assert!((metrics[name] - expected).abs() < 1e-6, "{name}: {} {expected}", metrics[name]);
        }
        assert_eq!(metrics["true_l0"], 1.5);
    }

    #[test]
    fn cosines_are_taken_between_directions() {
        // Both features of the plane found, the third one not at all; lengths do not matter.
        check(&[0.5, 0.0, 0.0, 6.0, 8.0, 0.0], &[1, 1], [2.0 / 3.0, 2.0 / 3.0, 1.0]);
        // Two latents on one feature: half of them would do. The cosine of the second feature is 0.6.
        check(&[1.0, 0.0, 0.0, 2.0, 0.0, 0.0], &[1, 1], [1.6 / 3.0, 1.0 / 3.0, 0.5]);
        // A latent that never fires matches nothing; its direction still counts as there.
        check(&[1.0, 0.0, 0.0, 2.0, 0.0, 0.0], &[1, 0], [1.6 / 3.0, 1.0 / 3.0, 1.0]);
        // The opposite direction is not the feature.
        check(&[-1.0, 0.0, 0.0], &[1], [(-1.0 - 0.6 + 0.0) / 3.0, 0.0, 1.0]);
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let d = 19;
        let wave = |i: usize| ((i * i % 1013) as f32).sin();
        let features = directions(&(0..100 * d).map(wave).collect::<Vec<_>>(), d);
        let truth = TruthView {
            features: &features,
            norms: &[1.0; 100],
            probabilities: &[0.1; 100],
            eval_active: &[1],
        };
        let w_dec: Vec<f32> = (0..150 * d).map(|i| wave(i + 7)).collect();
        let with = |threads| recovery(&truth, &w_dec, &[1; 150], &Pool::new(threads));
        assert_eq!(with(1), with(3));
    }
}
