//! Dead latents begin anew as what the SAE reconstructs worst (Bricken et al. 2023, "Towards Monosemanticity",
//! appendix "Neuron Resampling").
//!
//! Of the original, the inputs come from the batch of the step rather than from a large sample of their own, as
//! `dictionary_learning` has it, and none is taken twice: with more dead latents than inputs, the rest waits for the
//! next time. "Input" is the encoder's, so less `b_dec` where the SAE subtracts that. What the paper's SAE
//! does not have starts as it does in a new SAE: thresholds, and the magnitudes of a gated SAE.

use super::{run::TrainError, trainer::Trainer};
use crate::{
    kernels::Params,
    trial::{Architecture, TrainOptions},
};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Norm of a new encoder row in mean norms of those that live.
const ENCODER_SHARE: f64 = 0.2;

impl Trainer {
    /// Resamples after a step, if it is time. Which inputs are drawn follows from `train.data_seed` and the step alone.
    /// In a run on a device, weights and moments come to the host for that and go back.
    pub(super) fn resample_if_due(&mut self) -> Result<(), TrainError> {
        if !is_due(&self.train.options, self.steps) {
            return Ok(());
        }
        self.download()?;
        let d_in = self.params.d_in();
        let losses = self.losses_of_rows()?;
        let mut inputs = self.scaled.clone();
        if self.sae.apply_b_dec_to_input {
            for row in inputs.chunks_exact_mut(d_in) {
                row.iter_mut().zip(&self.params.b_dec).for_each(|(x, b)| *x -= b);
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.train.data_seed);
        rng.set_stream(self.steps);
        let first_threshold = match self.sae.architecture {
            Architecture::JumpRelu { jumprelu_init_threshold, .. } => jumprelu_init_threshold as f32,
            _ => 0.0,
        };
        let Self { firing, dead, params, train, .. } = self;
        let dead = firing.dead(train.dead_feature_window, dead);
        let anew = begin_anew(params, dead, &inputs, &losses, first_threshold, &mut rng);
        for latent in anew {
            self.m.clear_latent(latent);
            self.v.clear_latent(latent);
            self.firing.steps_since_fired[latent] = 0;
        }
        let Self { tensors, params, m, v, .. } = self;
        tensors.as_mut().map_or(Ok(()), |tensors| tensors.upload([params, m, v]))
    }

    /// Squared error of each row of the last step, as its loss counts it.
    fn losses_of_rows(&self) -> Result<Vec<f64>, TrainError> {
        let d_in = self.params.d_in();
        let reconstruction = self.last_reconstruction()?;
        let (target, weight) = self.last_aim();
        let rows = target.chunks_exact(d_in).zip(reconstruction.chunks_exact(d_in));
        let losses = rows
            .enumerate()
            .map(|(nth, (target, made))| {
                let square: f64 = target.iter().zip(made).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                square * weight.get(nth).map_or(1.0, |&weight| f64::from(weight))
            })
            .collect();
        Ok(losses)
    }
}

fn is_due(options: &TrainOptions, steps_done: u64) -> bool {
    let (every, until) = (options.resample_every_steps, options.resample_until_step);
    every > 0 && steps_done.is_multiple_of(every) && (until == 0 || steps_done <= until)
}

/// Gives dead latents new weights and returns those that got some, the first ones where inputs do not suffice.
/// `inputs` are (B, D); the chance of each is in proportion to the square of its loss.
fn begin_anew(
    params: &mut Params,
    dead: &[bool],
    inputs: &[f32],
    losses: &[f64],
    first_threshold: f32,
    rng: &mut impl RngCore,
) -> Vec<usize> {
    let d_in = params.d_in();
    let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let norms: Vec<f64> = inputs.chunks_exact(d_in).map(norm).collect();
    // An input of zeros has no direction.
    let chances: Vec<f64> =
        losses.iter().zip(&norms).map(|(loss, norm)| if *norm > 0.0 { loss * loss } else { 0.0 }).collect();
    let latents: Vec<usize> = (0..dead.len()).filter(|&latent| dead[latent]).collect();
    let encoder_norm = ENCODER_SHARE * mean_norm_of_living(params, dead);
    let drawn = draw(chances, latents.len(), rng);
    for (&latent, &row) in latents.iter().zip(&drawn) {
        let input = &inputs[row * d_in..][..d_in];
        let weights = params.w_dec[latent * d_in..][..d_in].iter_mut();
        for ((decoder, encoder), &x) in weights.zip(&mut params.w_enc[latent * d_in..][..d_in]).zip(input) {
            let unit = f64::from(x) / norms[row];
            *decoder = unit as f32;
            *encoder = (encoder_norm * unit) as f32;
        }
        params.b_enc[latent] = 0.0;
        for (array, first) in
            [(&mut params.threshold, first_threshold), (&mut params.r_mag, 0.0), (&mut params.b_mag, 0.0)]
        {
            array.get_mut(latent).into_iter().for_each(|value| *value = first);
        }
    }
    latents[..drawn.len()].to_vec()
}

/// Mean norm of the living latents' encoder rows; of all, where none lives.
fn mean_norm_of_living(params: &Params, dead: &[bool]) -> f64 {
    let none_lives = dead.iter().all(|&is_dead| is_dead);
    let rows = params.w_enc.chunks_exact(params.d_in()).zip(dead);
    let norms: Vec<f64> = rows
        .filter(|(_, is_dead)| none_lives || !**is_dead)
        .map(|(row, _)| row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt())
        .collect();
    norms.iter().sum::<f64>() / norms.len() as f64
}

/// Draws at most `n` places one after the other, none twice, each with a chance in proportion to its number among
/// those that are left. Places with 0 are never drawn.
fn draw(mut chances: Vec<f64>, n: usize, rng: &mut impl RngCore) -> Vec<usize> {
    let mut drawn = Vec::new();
    while drawn.len() < n {
        // Summed anew every time, so that what was taken out leaves no rounding.
        let total: f64 = chances.iter().sum();
        if !(total > 0.0 && total.is_finite()) {
            break;
        }
        let mut left = total * ((rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64);
        let mut place = None;
        for (nth, &chance) in chances.iter().enumerate().filter(|(_, chance)| **chance > 0.0) {
            place = Some(nth);
            left -= chance;
            if left < 0.0 {
                break;
            }
        }
        let Some(place) = place else { break };
        chances[place] = 0.0;
        drawn.push(place);
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    // Both of the above have one.
    use rand::RngCore;

    /// A generator that gives these numbers between 0 and 1.
    struct Given(Vec<f64>);

    impl RngCore for Given {
        fn next_u64(&mut self) -> u64 {
            (self.0.remove(0) * (1_u64 << 53) as f64) as u64 * (1 << 11)
        }
        fn next_u32(&mut self) -> u32 {
            unreachable!("draws take 64 bits")
        }
        fn fill_bytes(&mut self, _: &mut [u8]) {
            unreachable!("draws take 64 bits")
        }
    }

    #[test]
    fn draws_by_hand() {
        let chances = vec![1.0, 0.0, 2.0, 5.0];
        // 0.5 of 8 is 4, beyond 1 and 3; then 0.1 of 3 lies in the first; then the third is all there is.
        assert_eq!(draw(chances.clone(), 9, &mut Given(vec![0.5, 0.1, 0.999])), [3, 0, 2]);
        assert_eq!(draw(chances.clone(), 1, &mut Given(vec![0.125])), [2]);
        assert_eq!(draw(chances, 0, &mut Given(Vec::new())), [0; 0]);
        assert_eq!(draw(vec![0.0, 0.0], 2, &mut Given(Vec::new())), [0; 0]);
        assert_eq!(draw(vec![f64::NAN, 1.0], 2, &mut Given(Vec::new())), [0; 0]);
    }

    #[test]
    fn frequencies_are_the_chances() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut counts = [0_u32; 4];
        for _ in 0..40_000 {
            counts[draw(vec![1.0, 2.0, 0.0, 5.0], 1, &mut rng)[0]] += 1;
        }
        for (count, expected) in counts.into_iter().zip([5000.0, 10_000.0, 0.0, 25_000.0]) {
            // Four standard deviations and more.
            assert!((f64::from(count) - expected).abs() <= 400.0, "{counts:?}");
        }
    }

    #[test]
    fn weights_by_hand() {
        let mut params = Params {
            w_enc: vec![3.0, 4.0, 9.0, 9.0, 0.0, 1.0],
            w_dec: vec![1.0; 6],
            b_enc: vec![7.0; 3],
            b_dec: vec![0.5; 2],
            threshold: vec![2.0; 3],
            r_mag: vec![2.0; 3],
            b_mag: vec![2.0; 3],
        };
        let inputs = [0.0, 0.0, 8.0, -6.0, 1.0, 1.0];
        // The first input has no direction, the last no loss: whatever is drawn is the second.
        let dead = [false, true, false];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let anew = begin_anew(&mut params, &dead, &inputs, &[5.0, 1.0, 0.0], 0.25, &mut rng);
        assert_eq!(anew, [1]);
        assert_eq!(params.w_dec, [1.0, 1.0, 0.8, -0.6, 1.0, 1.0]);
        // 0.2 times the mean of 5 and 1.
        assert_eq!(params.w_enc[..2], [3.0, 4.0]);
        assert!((params.w_enc[2] - 0.48).abs() < 1e-6 && (params.w_enc[3] + 0.36).abs() < 1e-6);
        assert_eq!(params.w_enc[4..], [0.0, 1.0]);
        assert_eq!(params.b_enc, [7.0, 0.0, 7.0]);
        assert_eq!(params.b_dec, [0.5, 0.5]);
        assert_eq!(params.threshold, [2.0, 0.25, 2.0]);
        assert_eq!((&params.r_mag, &params.b_mag), (&vec![2.0, 0.0, 2.0], &vec![2.0, 0.0, 2.0]));

        // More dead latents than inputs: the first come first.
        let anew = begin_anew(&mut params, &[true; 3], &inputs, &[5.0, 1.0, 0.0], 0.25, &mut rng);
        assert_eq!(anew, [0]);
        assert_eq!(params.w_dec, [0.8, -0.6, 0.8, -0.6, 1.0, 1.0]);
    }

    #[test]
    fn the_time_is_every_so_many_steps_until_the_last() {
        let due = |every, until| -> Vec<u64> {
            let options = TrainOptions {
                resample_every_steps: every,
                resample_until_step: until,
                ..TrainOptions::default()
            };
            (1..=10).filter(|&step| is_due(&options, step)).collect()
        };
        assert_eq!(due(0, 0), [0; 0]);
        assert_eq!(due(3, 0), [3, 6, 9]);
        assert_eq!(due(3, 6), [3, 6]);
        assert_eq!(due(5, 7), [5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn only_dead_latents_change_and_no_input_is_taken_twice(
            d_in in 1_usize..8, dead in proptest::collection::vec(any::<bool>(), 1..30), n_rows in 1_usize..20,
            seed in 0_u64..1000
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut number = || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let mut before = Params::zeros(d_in, dead.len());
            before.arrays_mut().into_iter().flatten().for_each(|x| *x = number());
            let inputs: Vec<f32> = (0..n_rows * d_in).map(|_| number()).collect();
            let losses: Vec<f64> = (0..n_rows).map(|_| f64::from(number().max(0.0))).collect();
            let mut after = before.clone();
            let anew = begin_anew(&mut after, &dead, &inputs, &losses, 0.0, &mut rng);

            let n_dead = dead.iter().filter(|&&is_dead| is_dead).count();
            prop_assert_eq!(anew.len(), n_dead.min(losses.iter().filter(|&&loss| loss > 0.0).count()));
            prop_assert!(anew.iter().all(|&latent| dead[latent]));
            let row = |array: &[f32], f: usize| array[f * d_in..][..d_in].to_vec();
            let mut taken = Vec::new();
            for f in 0..dead.len() {
                if !anew.contains(&f) {
                    prop_assert_eq!(row(&after.w_dec, f), row(&before.w_dec, f));
                    prop_assert_eq!(row(&after.w_enc, f), row(&before.w_enc, f));
                    prop_assert_eq!(after.b_enc[f], before.b_enc[f]);
                    continue;
                }
                // The input whose direction it is, in plain f64.
                let is_of = |nth: &usize| {
                    let input: Vec<f64> = row(&inputs, *nth).into_iter().map(f64::from).collect();
                    let norm = input.iter().map(|x| x * x).sum::<f64>().sqrt();
                    losses[*nth] > 0.0
                        && row(&after.w_dec, f).iter().zip(&input).all(|(&w, x)| (f64::from(w) - x / norm).abs() < 1e-6)
                };
                let Some(nth) = (0..n_rows).filter(|nth| !taken.contains(nth)).find(is_of) else {
                    return Err(TestCaseError::fail("an input of its own"));
                };
                taken.push(nth);
            }
        }
    }
}
