//! The threshold that a BatchTopK and its kin choose latents by once they are trained.

use super::trainer::Trainer;
use crate::trial::Architecture;

impl Trainer {
    /// How soon the threshold follows; nothing in an architecture that has none.
    fn follow_rate(&self) -> Option<f64> {
        match self.sae.architecture {
            Architecture::BatchTopK { topk_threshold_lr: rate, .. }
            | Architecture::MatryoshkaBatchTopK { topk_threshold_lr: rate, .. } => Some(rate),
            _ => None,
        }
    }

    /// Lets the threshold follow the least value that the step kept, as SAELens does:
    /// `threshold = (1 - rate) threshold + rate least`, from 0. A step that kept nothing leaves it.
    pub(super) fn follow_least_kept(&mut self, least: Option<f32>) {
        if let (Some(rate), Some(least)) = (self.follow_rate(), least) {
            self.topk_threshold = (1.0 - rate) * self.topk_threshold + rate * f64::from(least);
            self.topk_threshold_updates += 1;
        }
    }

    /// The threshold as it stands; 0 in other architectures.
    pub(super) fn threshold_now(&self) -> f64 {
        match self.follow_rate() {
            Some(rate) if self.train.options.topk_threshold_bias_correction => {
                without_start(self.topk_threshold, rate, self.topk_threshold_updates)
            }
            _ => self.topk_threshold,
        }
    }
}

/// The moving average less what its start at 0 still weighs: `average / (1 - (1 - rate)^t)`, as Adam corrects its
/// moments (Kingma & Ba 2015, section 3). After one update it is the first value itself.
fn without_start(average: f64, rate: f64, updates: u64) -> f64 {
    // ln_1p and exp_m1 keep the digits of small rates.
    let weight_of_updates = -(updates as f64 * (-rate).ln_1p()).exp_m1();
    if updates == 0 { 0.0 } else { average / weight_of_updates }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        // 0.1 · 4 = 0.4, then 0.9 · 0.4 + 0.1 · 8 = 1.16; weights 0.09 and 0.1 of the two.
        assert_eq!(without_start(0.0, 0.1, 0), 0.0);
        assert!((without_start(0.4, 0.1, 1) - 4.0).abs() < 1e-12);
        assert!((without_start(1.16, 0.1, 2) - (0.09 * 4.0 + 0.1 * 8.0) / 0.19).abs() < 1e-12);
        assert_eq!(without_start(7.0, 1.0, 3), 7.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// It is the mean of the values with weights that add to 1: what never changes is found at once.
        #[test]
        fn it_is_a_weighted_mean(rate in 1e-6_f64..1.0, values in proptest::collection::vec(-5.0_f64..5.0, 1..40)) {
            let mut average = 0.0;
            for value in &values {
                average = (1.0 - rate) * average + rate * value;
            }
            let n = values.len() as i32;
            let weights: Vec<f64> = (0..n).map(|i| rate * (1.0 - rate).powi(n - 1 - i)).collect();
            let total: f64 = weights.iter().sum();
            let mean = weights.iter().zip(&values).map(|(w, x)| w / total * x).sum::<f64>();
            let found = without_start(average, rate, values.len() as u64);
            prop_assert!((found - mean).abs() < 1e-8, "{found} {mean}");
        }
    }
}
