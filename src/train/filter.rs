//! Leaving out activations of an outlying norm, such as those of attention sinks.
//!
//! A batch without them is a smaller batch: losses, gradients, choices over the batch and firing counts are those of
//! the rows that stay, and means are over those. The batches themselves remain as the store gives them.

/// Rows whose norms tell the store's median.
pub(super) const MEDIAN_ROWS: usize = 1 << 16;

/// Keeps rows up to a norm.
#[derive(Debug)]
pub(super) struct NormFilter {
    limit: f64,
    kept: Vec<f32>,
}

impl NormFilter {
    /// Keeps rows whose L2 norm is at most `limit`.
    pub(super) fn new(limit: f64) -> Self {
        Self { limit, kept: Vec::new() }
    }

    /// The rows of `x` (B, D) that stay, in their order. A row that is not finite stays, so that the step sees it.
    pub(super) fn keep(&mut self, x: &[f32], d_in: usize) -> &[f32] {
        self.kept.clear();
        for row in x.chunks_exact(d_in) {
            let norm = norm(row);
            if norm <= self.limit || !norm.is_finite() {
                self.kept.extend_from_slice(row);
            }
        }
        &self.kept
    }

    /// The rows that stayed of the last batch.
    pub(super) fn kept(&self) -> &[f32] {
        &self.kept
    }
}

/// L2 norm of a row.
pub(super) fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// The middle of the values, the upper one of two; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_above_the_limit_are_left_out() {
        let mut filter = NormFilter::new(5.0);
        let x = [3.0, 4.0, 3.0, 4.1, 0.0, 0.0, f32::NAN, 0.0, -60.0, 0.0, 1.0, 2.0];
        let kept = filter.keep(&x, 2).to_vec();
        assert_eq!(kept[..4], [3.0, 4.0, 0.0, 0.0]);
        assert!(kept[4].is_nan());
        assert_eq!(kept[5..], [0.0, 1.0, 2.0]);
        assert_eq!(filter.keep(&[9.0, 9.0], 2), [0.0; 0]);
        assert_eq!(filter.kept(), [0.0; 0]);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 5.0, 7.0]), 7.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
