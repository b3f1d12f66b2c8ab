//! Eigenvalues and eigenvectors of a symmetric matrix in f64, for whitening.
//!
//! Householder reflections make the matrix tridiagonal, then QL steps with implicit shifts make it
//! diagonal. Every inner loop runs along contiguous rows; the order of operations is fixed, so a covariance
//! always gives the same vectors.

/// QL steps one eigenvalue may take. A handful is usual.
const MAX_QL_STEPS: usize = 60;

/// Eigenvalues in ascending order, and their vectors as rows of an (n, n) matrix.
pub(super) struct Eigen {
    /// (n) ascending.
    pub(super) values: Vec<f64>,
    /// (n, n): row i belongs to `values[i]`, has norm 1 and is orthogonal to the others.
    pub(super) vectors: Vec<f64>,
}

/// Decomposes symmetric `a` (n, n). `None` when it does not converge, as with NaN or infinite entries.
pub(super) fn symmetric(a: &[f64], n: usize) -> Option<Eigen> {
    assert_eq!(a.len(), n * n);
    if n == 0 || !a.iter().all(|x| x.is_finite()) {
        return (n == 0).then(|| Eigen { values: Vec::new(), vectors: Vec::new() });
    }
    let (mut diagonal, mut off, mut rows) = tridiagonal(a.to_vec(), n);
    diagonalize(&mut diagonal, &mut off, &mut rows, n)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[i].total_cmp(&diagonal[j]));
    let mut vectors = Vec::with_capacity(n * n);
    for &i in &order {
        vectors.extend_from_slice(&rows[i * n..(i + 1) * n]);
    }
    Some(Eigen { values: order.iter().map(|&i| diagonal[i]).collect(), vectors })
}

/// `a = Qᵀ T Q` with T tridiagonal: returns T's diagonal, T's off-diagonal (off[i] stands between i and
/// i + 1, off[n - 1] = 0) and Q, whose rows are the basis.
fn tridiagonal(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut off = vec![0.0; n];
    // (start, scale, vector) of each reflection H = 1 - scale · v vᵀ, acting on indices start..n.
    let mut reflections: Vec<(usize, f64, Vec<f64>)> = Vec::new();
    let mut p = vec![0.0; n];
    for k in 0..n.saturating_sub(2) {
        let start = k + 1;
        // Column k below the diagonal equals row k right of it: the trailing block is kept whole.
        let mut v: Vec<f64> = a[k * n + start..(k + 1) * n].to_vec();
        let tail = v[1..].iter().map(|x| x * x).sum::<f64>();
        if tail == 0.0 {
            off[k] = v[0];
            continue;
        }
        let norm = (v[0] * v[0] + tail).sqrt();
        // The sign that adds magnitudes: no cancellation in v[0].
        let image = if v[0] > 0.0 { -norm } else { norm };
        v[0] -= image;
        let scale = 2.0 / (v[0] * v[0] + tail);
        off[k] = image;
        let p = &mut p[start..];
        for (i, p) in p.iter_mut().enumerate() {
            let row = &a[(start + i) * n + start..(start + i + 1) * n];
            *p = scale * dot(row, &v);
        }
        let half = 0.5 * scale * dot(p, &v);
        p.iter_mut().zip(&v).for_each(|(p, v)| *p -= half * v);
        for (i, (&vi, &pi)) in v.iter().zip(p.iter()).enumerate() {
            let row = &mut a[(start + i) * n + start..(start + i + 1) * n];
            for ((a, v), p) in row.iter_mut().zip(&v).zip(p.iter()) {
                *a -= vi * p + pi * v;
            }
        }
        reflections.push((start, scale, v));
    }
    if n >= 2 {
        off[n - 2] = a[(n - 2) * n + n - 1];
    }
    let diagonal = (0..n).map(|i| a[i * n + i]).collect();

    let mut q = vec![0.0; n * n];
    (0..n).for_each(|i| q[i * n + i] = 1.0);
    // From the last reflection to the first, each touches only the block that is not yet the identity's.
    for (start, scale, v) in reflections.iter().rev() {
        for row in q.chunks_exact_mut(n).skip(*start) {
            let row = &mut row[*start..];
            let amount = scale * dot(row, v);
            row.iter_mut().zip(v).for_each(|(x, v)| *x -= amount * v);
        }
    }
    (diagonal, off, q)
}

/// QL with implicit shifts on the tridiagonal (d, e), carrying the rows of `z` along.
fn diagonalize(d: &mut [f64], e: &mut [f64], z: &mut [f64], n: usize) -> Option<()> {
    for l in 0..n {
        let mut steps = 0;
        loop {
            // The first negligible off-diagonal at or after l splits the matrix.
            let m = (l..n - 1)
                .find(|&m| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs()))
                .unwrap_or(n - 1);
            if m == l {
                break;
            }
            steps += 1;
            if steps > MAX_QL_STEPS {
                return None;
            }
            let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let r = g.hypot(1.0);
            g = d[m] - d[l] + e[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut split = None;
            for i in (l..m).rev() {
                let f = s * e[i];
                let b = c * e[i];
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    split = Some(());
                    break;
                }
                s = f / r;
                c = g / r;
                let shifted = d[i + 1] - p;
                let t = (d[i] - shifted) * s + 2.0 * c * b;
                p = s * t;
                d[i + 1] = shifted + p;
                g = c * t - b;
                let (low, high) = z[i * n..(i + 2) * n].split_at_mut(n);
                for (x, y) in low.iter_mut().zip(high) {
                    let old = *y;
                    *y = s * *x + c * old;
                    *x = c * *x - s * old;
                }
            }
            if split.is_none() {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
    Some(())
}

/// Inner product over eight running sums, in an order that depends on the length alone.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(a: &[f64], n: usize) {
        let size = a.iter().fold(1e-300_f64, |m, x| m.max(x.abs()));
        let Eigen { values, vectors } = symmetric(a, n).unwrap();
        assert!(values.windows(2).all(|w| w[0] <= w[1]));
        for i in 0..n {
            for j in 0..n {
                let inner: f64 = (0..n).map(|k| vectors[i * n + k] * vectors[j * n + k]).sum();
                assert!((inner - f64::from(u8::from(i == j))).abs() < 1e-12 * n as f64, "{i} {j} {inner}");
                let entry: f64 = (0..n).map(|k| vectors[k * n + i] * values[k] * vectors[k * n + j]).sum();
                assert!((entry - a[i * n + j]).abs() < 1e-12 * size * n as f64, "{i} {j}");
            }
        }
    }

    fn symmetrized(n: usize, entries: &[f64]) -> Vec<f64> {
        (0..n * n).map(|at| entries[(at / n) * n + at % n] + entries[(at % n) * n + at / n]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_symmetric_matrix_is_put_together_again(
            (n, entries) in (1_usize..14).prop_flat_map(|n| (Just(n), prop::collection::vec(-3.0..3.0, n * n)))
        ) {
            check(&symmetrized(n, &entries), n);
        }
    }

    #[test]
    fn degenerate_matrices_are_no_trouble() {
        check(&[0.0; 16], 4);
        check(&[4.0], 1);
        check(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3);
        check(&[1.0; 25], 5);
        check(&[2.0, 1e-160, 1e-160, 1e-300], 2);
    }

    #[test]
    fn a_larger_covariance_with_a_wide_spectrum() {
        let n = 60;
        let entries: Vec<f64> = (0..n * n)
            .map(|at| {
                ((at * 2_654_435_761_usize) % 1_000) as f64 / 1_000.0 * 10_f64.powi(-((at % n) as i32) / 6)
            })
            .collect();
        let mut gram = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] = (0..n).map(|k| entries[k * n + i] * entries[k * n + j]).sum();
            }
        }
        check(&gram, n);
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        assert!(symmetric(&[1.0, f64::NAN, f64::NAN, 1.0], 2).is_none());
    }
}
