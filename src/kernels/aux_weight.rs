//! How much the auxiliary loss on dead latents weighs in a TopK step and its kin.

use super::topk::TopKStep;

/// Variances below this share of the mean square are rounding of an error that is the same for all tokens.
pub(crate) const NO_VARIANCE: f64 = 1e-12;

/// The factor of the mean squared auxiliary error, when `n_dead` latents make up for what the reconstruction left
/// of the target (both (B, D)), whose own width is twice `half`.
///
/// SAELens' is `c min(n_dead / half, 1)`. Normalised (Gao et al. 2024, the form of their published code) it is
/// `c / v`, where `v` is the mean squared distance of a token's error from the batch's mean error: the loss is
/// then 1 for an auxiliary reconstruction that knows the mean error and no more. Without variance there is nothing
/// to make up for, and the factor is 0. As the error itself, `v` is held constant in gradients.
pub(super) fn aux_weight(
    step: &TopKStep,
    n_dead: usize,
    half: usize,
    d_in: usize,
    target: &[f32],
    reconstruction: &[f32],
) -> f64 {
    if step.normalize_aux_loss {
        let [variance, mean_square] = variance_of_error(d_in, target, reconstruction);
        return if variance > NO_VARIANCE * mean_square { step.aux_loss_coefficient / variance } else { 0.0 };
    }
    step.aux_loss_coefficient * (n_dead as f64 / half.max(1) as f64).min(1.0)
}

/// Mean over tokens of `|e - mean e|^2`, and of `|e|^2`, for `e = target - reconstruction`.
fn variance_of_error(d_in: usize, target: &[f32], reconstruction: &[f32]) -> [f64; 2] {
    let n_tokens = (target.len() / d_in) as f64;
    let rows = || target.chunks_exact(d_in).zip(reconstruction.chunks_exact(d_in));
    let mut mean = vec![0.0; d_in];
    for (target, reconstruction) in rows() {
        for ((mean, &a), &b) in mean.iter_mut().zip(target).zip(reconstruction) {
            *mean += f64::from(a) - f64::from(b);
        }
    }
    mean.iter_mut().for_each(|mean| *mean /= n_tokens);
    let (mut variance, mut square) = (0.0, 0.0);
    for (target, reconstruction) in rows() {
        for ((&mean, &a), &b) in mean.iter().zip(target).zip(reconstruction) {
            let error = f64::from(a) - f64::from(b);
            variance += (error - mean) * (error - mean);
            square += error * error;
        }
    }
    [variance / n_tokens, square / n_tokens]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(normalize_aux_loss: bool) -> TopKStep {
        TopKStep {
            k: 1,
            aux_loss_coefficient: 0.5,
            normalize_aux_loss,
            rescale_acts_by_decoder_norm: false,
            apply_b_dec_to_input: false,
        }
    }

    #[test]
    fn by_hand() {
        // Errors (1, 0) and (3, 4): mean (2, 2), each 1 + 4 away from it.
        let (target, reconstruction) = ([2.0, 2.0, 3.0, 5.0], [1.0, 2.0, 0.0, 1.0]);
        assert_eq!(variance_of_error(2, &target, &reconstruction), [5.0, 13.0]);
        assert_eq!(aux_weight(&step(true), 9, 1, 2, &target, &reconstruction), 0.1);
        assert_eq!(aux_weight(&step(false), 9, 1, 2, &target, &reconstruction), 0.5);
        assert_eq!(aux_weight(&step(false), 1, 2, 4, &target, &reconstruction), 0.25);
    }

    #[test]
    fn without_variance_there_is_no_loss() {
        let target = [0.1, 0.7, 0.1, 0.7, 0.1, 0.7];
        assert_eq!(aux_weight(&step(true), 9, 1, 2, &target, &[0.3; 6]), 0.0);
        assert_eq!(aux_weight(&step(true), 9, 1, 2, &target, &target), 0.0);
    }
}
