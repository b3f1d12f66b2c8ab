//! Where the decoder's bias can start: at the middle of the first activations.

/// Activations whose middle it is.
pub(super) const CENTRE_ROWS: usize = 8192;

/// Weiszfeld's iteration ends after so many rounds, as SAELens 5 had it,
const MAX_ROUNDS: usize = 100;

/// or when a round moves the point by less than this share of the mean distance.
const NO_MOVE: f64 = 1e-7;

/// Points nearer than this share of the mean distance count as that far away, where the iteration would divide by 0.
const NEAREST: f64 = 1e-9;

/// (D) mean of rows (N, D), N > 0.
pub(super) fn mean(rows: &[f32], d_in: usize) -> Vec<f64> {
    weighted_mean(rows, d_in, |_| 1.0)
}

/// (D) geometric median of rows (N, D), N > 0: the point whose distances from all rows have the least sum, by
/// Weiszfeld's iteration `y <- sum_i x_i / |x_i - y| / sum_i 1 / |x_i - y|` from the mean.
pub(super) fn geometric_median(rows: &[f32], d_in: usize) -> Vec<f64> {
    let mut y = mean(rows, d_in);
    let n_rows = (rows.len() / d_in) as f64;
    let mean_distance = rows.chunks_exact(d_in).map(|row| distance(row, &y)).sum::<f64>() / n_rows;
    if mean_distance <= 0.0 {
        return y;
    }
    for _ in 0..MAX_ROUNDS {
        let next = weighted_mean(rows, d_in, |row| 1.0 / distance(row, &y).max(NEAREST * mean_distance));
        let moved = next.iter().zip(&y).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        y = next;
        if moved <= NO_MOVE * mean_distance {
            break;
        }
    }
    y
}

fn weighted_mean(rows: &[f32], d_in: usize, weight: impl Fn(&[f32]) -> f64) -> Vec<f64> {
    let (mut sum, mut total) = (vec![0.0; d_in], 0.0);
    for row in rows.chunks_exact(d_in) {
        let weight = weight(row);
        total += weight;
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
    }
    sum.iter_mut().for_each(|sum| *sum /= total);
    sum
}

fn distance(row: &[f32], from: &[f64]) -> f64 {
    row.iter().zip(from).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(got: &[f64], want: &[f64], tolerance: f64) {
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < tolerance), "{got:?} {want:?}");
    }

    #[test]
    fn by_hand() {
        assert_eq!(mean(&[0.0, 1.0, 4.0, 3.0], 2), [2.0, 2.0]);
        // Of the corners of a convex quadrangle: where the diagonals y = x and x + y = 2 cross.
        close(&geometric_median(&[0.0, 0.0, 3.0, 3.0, 0.0, 2.0, 4.0, -2.0], 2), &[1.0, 1.0], 1e-5);
        // On a line, and far from a mean that an outlier carries off.
        close(&geometric_median(&[0.0, 1.0, 2.0, 3.0, 1000.0], 1), &[2.0], 1e-3);
        // Most points in one place: there.
        close(&geometric_median(&[5.0, 1.0, 5.0, 1.0, 5.0, 1.0, -7.0, 9.0], 2), &[5.0, 1.0], 1e-6);
        assert_eq!(geometric_median(&[2.0, 3.0, 2.0, 3.0], 2), [2.0, 3.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The sum of distances is convex: no point near or far has a smaller one.
        #[test]
        fn no_other_point_is_nearer(
            rows in proptest::collection::vec(-9.0_f32..9.0, 15..90), scale in 1e-3_f64..10.0,
            towards in proptest::collection::vec(-1.0_f64..1.0, 3)
        ) {
            let rows = &rows[..rows.len() / 3 * 3];
            let sum = |y: &[f64]| rows.chunks_exact(3).map(|row| distance(row, y)).sum::<f64>();
            let y = geometric_median(rows, 3);
            let other: Vec<f64> = y.iter().zip(&towards).map(|(y, t)| y + scale * t).collect();
            prop_assert!(sum(&y) <= sum(&other) * (1.0 + 1e-5), "{} {}", sum(&y), sum(&other));
        }
    }
}
