//! How often each latent fires, as a histogram over the logarithm of its frequency.

/// Bins of the histogram: half decades from 1e-10 to 1.
pub const DENSITY_BINS: usize = 20;

/// Histogram of log10 firing frequency. `fires` counts, per latent, the tokens on which it was active out of
/// `tokens`. Bin i holds frequencies in [10^(-10 + i/2), 10^(-10 + (i+1)/2)); the first bin also takes latents
/// that never fired, the last one those that always did.
pub fn log10_histogram(fires: &[u64], tokens: u64) -> Vec<u64> {
    let mut bins = vec![0; DENSITY_BINS];
    for &count in fires {
        // The offset is SAELens', so a latent that never fired lands at -10.
        let log = (count as f64 / tokens.max(1) as f64 + 1e-10).log10();
        let bin = ((log + 10.0) * 2.0).floor().clamp(0.0, (DENSITY_BINS - 1) as f64);
        bins[bin as usize] += 1;
    }
    bins
}

/// Share of latents that fire on more than `frequency` of the tokens.
pub fn share_above(fires: &[u64], tokens: u64, frequency: f64) -> f64 {
    let above = fires.iter().filter(|&&count| count as f64 > frequency * tokens as f64).count();
    above as f64 / fires.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latent_lands_in_the_bin_of_its_frequency() {
        let bins = log10_histogram(&[0, 1000, 10, 500], 1000);
        assert_eq!(bins.iter().sum::<u64>(), 4);
        assert_eq!((bins[0], bins[16], bins[19]), (1, 1, 2));
    }

    #[test]
    fn dense_latents_are_those_strictly_above() {
        assert_eq!(share_above(&[100, 101, 0, 1000], 1000, 0.1), 0.5);
    }
}
