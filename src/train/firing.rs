//! Which latents fire how often, and which are dead.

/// Counts per latent, as SAELens keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firing {
    /// (F) steps since the latent last fired on any token of a batch.
    pub steps_since_fired: Vec<u64>,
    /// (F) tokens on which the latent fired since the sampling window began.
    pub fired_in_window: Vec<u64>,
    /// Tokens since the sampling window began.
    pub tokens_in_window: u64,
}

impl Firing {
    /// Nothing has happened yet.
    pub fn new(d_sae: usize) -> Self {
        Self { steps_since_fired: vec![0; d_sae], fired_in_window: vec![0; d_sae], tokens_in_window: 0 }
    }

    /// To be called before a step, with the steps done so far: begins a new window after every
    /// `sampling_window` of them. The last window of a run is therefore never empty.
    pub fn begin_step(&mut self, steps_done: u64, sampling_window: u64) {
        if steps_done > 0 && sampling_window > 0 && steps_done.is_multiple_of(sampling_window) {
            self.fired_in_window.fill(0);
            self.tokens_in_window = 0;
        }
    }

    /// Counts a step: `fired` (F) is the number of the batch's tokens on which each latent fired.
    pub fn count(&mut self, fired: &[u32], batch: usize) {
        for ((since, in_window), &fired) in
            self.steps_since_fired.iter_mut().zip(&mut self.fired_in_window).zip(fired)
        {
            *since = if fired > 0 { 0 } else { *since + 1 };
            *in_window += u64::from(fired);
        }
        self.tokens_in_window += batch as u64;
    }

    /// Writes to `flags` (F) whether each latent is dead: silent for more than `window` steps.
    pub fn dead<'a>(&self, window: u64, flags: &'a mut Vec<bool>) -> &'a [bool] {
        flags.clear();
        flags.extend(self.steps_since_fired.iter().map(|&since| since > window));
        flags
    }

    /// Number of dead latents.
    pub fn n_dead(&self, window: u64) -> u64 {
        self.steps_since_fired.iter().filter(|&&since| since > window).count() as u64
    }

    /// Mean steps since latents last fired.
    pub fn mean_steps_since_fired(&self) -> f64 {
        self.steps_since_fired.iter().sum::<u64>() as f64 / self.steps_since_fired.len() as f64
    }

    /// (F) log10 of the firing frequency in the window plus 1e-10, as `sparsity.safetensors` holds it.
    pub fn log10_frequency(&self) -> Vec<f32> {
        let tokens = self.tokens_in_window.max(1) as f32;
        self.fired_in_window.iter().map(|&fired| (fired as f32 / tokens + 1e-10).log10()).collect()
    }

    /// Mean latents per token over the window.
    pub fn l0(&self) -> f64 {
        self.fired_in_window.iter().sum::<u64>() as f64 / self.tokens_in_window.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latent_is_dead_after_more_than_the_window() {
        let mut firing = Firing::new(2);
        for _ in 0..3 {
            firing.count(&[1, 0], 8);
        }
        let mut flags = Vec::new();
        assert_eq!(firing.dead(3, &mut flags), [false, false]);
        firing.count(&[0, 0], 8);
        assert_eq!(firing.steps_since_fired, [1, 4]);
        assert_eq!(firing.dead(3, &mut flags), [false, true]);
        assert_eq!(firing.n_dead(3), 1);
        firing.count(&[0, 5], 8);
        assert_eq!(firing.n_dead(3), 0);
    }

    #[test]
    fn the_window_starts_anew_and_the_last_one_is_kept() {
        let mut firing = Firing::new(1);
        for step in 0..4 {
            firing.begin_step(step, 2);
            firing.count(&[step as u32 + 1], 10);
        }
        // Steps 2 and 3; a run of 4 steps ends with a full window.
        assert_eq!((firing.fired_in_window[0], firing.tokens_in_window), (7, 20));
        assert_eq!(firing.log10_frequency(), [(0.35_f32 + 1e-10).log10()]);
        assert_eq!(firing.l0(), 0.35);
    }

    #[test]
    fn a_silent_latent_has_the_floor() {
        let mut firing = Firing::new(1);
        firing.count(&[0], 10);
        assert_eq!(firing.log10_frequency(), [-10.0]);
    }
}
