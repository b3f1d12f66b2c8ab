//! Statistics of the stored rows that normalisation needs, and `stats.safetensors` that holds them.
//!
//! They are taken from the rows as stored, so that they describe what trials read, and after the last shard
//! is written, so that interruptions cannot change them. The mean is summed in float64. The covariance is
//! made of float32 products of centred rows, summed over a block of rows in float32 and over blocks in
//! float64: centring first keeps the error near 1e-6 of the variances whatever the mean. One thread, fixed
//! order; the last bits depend on the instruction set that `gemm` finds.

use super::{error::StoreError, mapped::MappedRows};
use gemm::{Parallelism, gemm};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;

/// Rows at most, from the first on, that the mean vector and the covariance are taken from.
pub const STATS_ROWS: u64 = 262_144;

/// Statistics of the training rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Mean L2 norm of all rows.
    pub mean_norm: f64,
    /// Mean row (D), over the first `rows_seen` rows.
    pub mean: Vec<f64>,
    /// Covariance (D, D), over the same rows, divided by their number less one; zero for a single row. Empty
    /// where rows are a transcoder's, whose activations are not whitened.
    pub covariance: Vec<f64>,
    /// Rows that `mean` and `covariance` are taken from, at most [`STATS_ROWS`].
    pub rows_seen: u64,
    /// Mean L2 norms of the inputs and of the outputs of all rows, where rows are a transcoder's.
    pub norms: Option<[f64; 2]>,
}

/// Mean and covariance of the first rows.
pub(super) struct Moments {
    pub(super) mean: Vec<f64>,
    pub(super) covariance: Vec<f64>,
}

/// Columns of the covariance that are computed at a time; what lies below the diagonal is not computed.
const PANEL: usize = 512;

impl Moments {
    /// Takes them from the first `limit` rows, the covariance only `with_covariance`.
    pub(super) fn of(rows: &MappedRows, limit: u64, with_covariance: bool) -> (Self, u64) {
        let d = rows.width();
        let seen = rows.rows().min(limit);
        let block_rows = ((1 << 22) / d).clamp(64, 4096);
        let mut block = vec![0_f32; block_rows * d];
        let blocks = || {
            (0..seen)
                .step_by(block_rows)
                .map(move |start| (start, (seen - start).min(block_rows as u64) as usize))
        };

        let mut mean = vec![0_f64; d];
        for (start, len) in blocks() {
            rows.read(start, &mut block[..len * d]);
            for row in block[..len * d].chunks_exact(d) {
                for (sum, &value) in mean.iter_mut().zip(row) {
                    *sum += f64::from(value);
                }
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= seen as f64);
        if !with_covariance {
            return (Self { mean, covariance: Vec::new() }, seen);
        }

        let mut covariance = vec![0_f64; d * d];
        let mut panel = vec![0_f32; d * PANEL.min(d)];
        for (start, len) in blocks() {
            let centred = &mut block[..len * d];
            rows.read(start, centred);
            for row in centred.chunks_exact_mut(d) {
                for (value, &mean) in row.iter_mut().zip(&mean) {
                    *value = (f64::from(*value) - mean) as f32;
                }
            }
            for first in (0..d).step_by(PANEL) {
                let columns = PANEL.min(d - first);
                let up_to = first + columns;
                cross_products(centred, d, first, columns, &mut panel);
                for (i, products) in panel[..up_to * columns].chunks_exact(columns).enumerate() {
                    let sums = &mut covariance[i * d + first..i * d + up_to];
                    for (sum, &product) in sums.iter_mut().zip(products) {
                        *sum += f64::from(product);
                    }
                }
            }
        }
        let divisor = seen.saturating_sub(1).max(1) as f64;
        for i in 0..d {
            for j in i..d {
                let value = covariance[i * d + j] / divisor;
                covariance[i * d + j] = value;
                covariance[j * d + i] = value;
            }
        }
        (Self { mean, covariance }, seen)
    }
}

/// Mean L2 norms of the first `d_in` numbers of every row and of the rest.
pub(super) fn mean_norms(rows: &MappedRows, d_in: usize) -> [f64; 2] {
    let d = rows.width();
    let block_rows = ((1 << 22) / d).clamp(64, 4096) as u64;
    let mut block = Vec::new();
    let mut sums = [0.0; 2];
    for start in (0..rows.rows()).step_by(block_rows as usize) {
        block.resize((rows.rows() - start).min(block_rows) as usize * d, 0.0);
        rows.read(start, &mut block);
        for row in block.chunks_exact(d) {
            let (input, output) = row.split_at(d_in);
            for (sum, part) in sums.iter_mut().zip([input, output]) {
                *sum += part.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            }
        }
    }
    sums.map(|sum| sum / rows.rows() as f64)
}

/// Writes x[:, ..first + columns]^T x[:, first..first + columns] into `out`, row by row, for x of shape
/// (rows, d).
fn cross_products(x: &[f32], d: usize, first: usize, columns: usize, out: &mut [f32]) {
    let rows = x.len() / d;
    let up_to = first + columns;
    assert!(rows * d == x.len() && up_to <= d && up_to * columns <= out.len());
    // SAFETY: the assertion holds every index that the shapes and strides below can reach: row r < rows and
    // column < up_to <= d of x at r * d + column, row i < up_to and column < columns of out at
    // i * columns + column. `out` is borrowed mutably, so it does not overlap x.
    unsafe {
        gemm(
            up_to,
            columns,
            rows,
            out.as_mut_ptr(),
            1,
            columns as isize,
            false,
            x.as_ptr(),
            d as isize,
            1,
            x.as_ptr().add(first),
            1,
            d as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

impl Stats {
    /// The bytes of `stats.safetensors`.
    pub(super) fn render(&self) -> Vec<u8> {
        let d = self.mean.len();
        let scalars = [self.mean_norm];
        let rows_seen = [self.rows_seen];
        let view = |dtype, shape: Vec<usize>, bytes| {
            TensorView::new(dtype, shape, bytes).expect("invariant: shapes and lengths agree")
        };
        let mut tensors = vec![
            ("mean", view(Dtype::F64, vec![d], bytemuck::cast_slice(&self.mean))),
            ("mean_norm", view(Dtype::F64, vec![1], bytemuck::cast_slice(&scalars))),
            ("rows_seen", view(Dtype::U64, vec![1], bytemuck::cast_slice(&rows_seen))),
        ];
        match &self.norms {
            Some(norms) => tensors.push(("norms", view(Dtype::F64, vec![2], bytemuck::cast_slice(norms)))),
            None => tensors
                .push(("covariance", view(Dtype::F64, vec![d, d], bytemuck::cast_slice(&self.covariance)))),
        }
        safetensors::serialize(tensors, None).expect("invariant: four small tensors serialise")
    }

    /// Reads the bytes of `stats.safetensors` of rows of width `d`, which are a transcoder's or not; `path` is for
    /// messages.
    pub(super) fn parse(
        path: &Path,
        bytes: &[u8],
        d: usize,
        of_transcoder: bool,
    ) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadPart { path: path.to_path_buf(), reason };
        let file = SafeTensors::deserialize(bytes).map_err(|error| bad(error.to_string()))?;
        let data = |name: &str, dtype: Dtype, shape: &[usize]| {
            let tensor = file.tensor(name).map_err(|error| bad(error.to_string()))?;
            if tensor.dtype() != dtype || tensor.shape() != shape {
                let (found, sizes) = (tensor.dtype(), tensor.shape());
                return Err(bad(format!(
                    "tensor `{name}` is {found:?} {sizes:?}, expected {dtype:?} {shape:?}"
                )));
            }
            Ok(tensor.data())
        };
        let floats = |name: &str, shape: &[usize]| {
            data(name, Dtype::F64, shape).map(bytemuck::pod_collect_to_vec::<u8, f64>)
        };
        Ok(Self {
            mean_norm: floats("mean_norm", &[1])?[0],
            mean: floats("mean", &[d])?,
            covariance: if of_transcoder { Vec::new() } else { floats("covariance", &[d, d])? },
            norms: if of_transcoder {
                let norms = floats("norms", &[2])?;
                Some([norms[0], norms[1]])
            } else {
                None
            },
            rows_seen: bytemuck::pod_read_unaligned(data("rows_seen", Dtype::U64, &[1])?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{disk, header::ShardEntry},
        *,
    };
    use crate::trial::StoreDtype;

    fn mapped(values: &[f32], d: usize) -> (tempfile::TempDir, MappedRows) {
        let dir = tempfile::tempdir().unwrap();
        let entry = disk::write_file(dir.path().join("rows"), bytemuck::cast_slice(values)).unwrap();
        let shard = ShardEntry { entry, rows: (values.len() / d) as u64, norm_sum: 0.0 };
        let rows = MappedRows::open(dir.path(), [&shard].into_iter(), d, StoreDtype::Float32).unwrap();
        (dir, rows)
    }

    #[test]
    fn moments_equal_their_definition() {
        for (rows, d, limit) in [(1, 3, 99), (2, 1, 99), (70, 5, 99), (300, 67, 200), (40, 530, 99)] {
            // Means far from zero: a covariance from raw moments would lose most of its digits.
            let values: Vec<f32> = (0..rows * d)
                .map(|i| 100.0 + (i % d) as f32 + ((i * 7919 + i / d * 31) % 1013) as f32 / 1013.0)
                .collect();
            let (_dir, table) = mapped(&values, d);
            let (moments, seen) = Moments::of(&table, limit, true);
            let n = rows.min(limit as usize);
            assert_eq!(seen, n as u64);
            let column = |j: usize| (0..n).map(move |r| (r, j));
            let at = |(r, j): (usize, usize)| f64::from(values[r * d + j]);
            let mean: Vec<f64> = (0..d).map(|j| column(j).map(at).sum::<f64>() / n as f64).collect();
            for i in 0..d {
                assert!((moments.mean[i] - mean[i]).abs() < 1e-9);
                for j in 0..d {
                    let sum: f64 = (0..n).map(|r| (at((r, i)) - mean[i]) * (at((r, j)) - mean[j])).sum();
                    let expected = if n > 1 { sum / (n - 1) as f64 } else { 0.0 };
                    let found = moments.covariance[i * d + j];
                    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
                    assert_eq!(found, moments.covariance[j * d + i]);
                }
            }
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let stats = Stats {
            mean_norm: 1.5,
            mean: vec![0.1, 0.2],
            covariance: vec![1.0, 0.3, 0.3, 2.0],
            rows_seen: 9,
            norms: None,
        };
        let bytes = stats.render();
        assert_eq!(Stats::parse(Path::new("s"), &bytes, 2, false).unwrap(), stats);
        let message = Stats::parse(Path::new("s"), &bytes, 3, false).unwrap_err().to_string();
        assert_eq!(message, "`s` is not usable: tensor `mean` is F64 [2], expected F64 [3]");
        assert!(Stats::parse(Path::new("s"), &bytes[1..], 2, false).is_err());
        // A transcoder's have norms in place of a covariance.
        let pair = Stats { covariance: Vec::new(), norms: Some([1.25, 0.5]), ..stats };
        assert_eq!(Stats::parse(Path::new("s"), &pair.render(), 2, true).unwrap(), pair);
        assert!(Stats::parse(Path::new("s"), &pair.render(), 2, false).is_err());
        assert!(Stats::parse(Path::new("s"), &bytes, 2, true).is_err());
    }

    #[test]
    fn norms_are_of_the_parts_of_all_rows() {
        let (_dir, table) = mapped(&[3.0, 4.0, 1.0, 0.0, 5.0, -2.0], 3);
        assert_eq!(mean_norms(&table, 2), [5.0, 1.5]);
        assert_eq!(mean_norms(&table, 1), [1.5, (17.0_f64.sqrt() + 29.0_f64.sqrt()) / 2.0]);
    }
}
