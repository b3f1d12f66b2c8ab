//! The gradient of the decoder bias.

use super::memory::Disjoint;
use super::pool::Pool;
use super::weights::WeightPass;

impl WeightPass<'_> {
    /// Gradient of `b_dec`, in the last part: the column sums of the pulls' `g`, which `columns` hands on from part to
    /// part, less what comes through the encoder's input. Returns the sum of its squares.
    pub(super) fn decoder_bias_gradient(
        &self,
        pool: &Pool,
        tile_bias: &[f32],
        columns: &mut [f64],
        out: &mut [f32],
    ) -> f64 {
        const COLUMNS: usize = 64;
        let (pulls, part) = (&self.pulls[..self.pulls_on_bias], self.part);
        let d_in = out.len();
        let (shared, columns) = (Disjoint::new(out), Disjoint::new(columns));
        pool.run(d_in.div_ceil(COLUMNS), &|index| {
            let first = index * COLUMNS;
            let width = COLUMNS.min(d_in - first);
            let mut sums = [0.0_f64; COLUMNS];
            if !part.is_first {
                // SAFETY: one part per task.
                sums[..width].copy_from_slice(unsafe { columns.part(first, width) });
            }
            for row in pulls.iter().flat_map(|pull| pull.g.chunks_exact(d_in)) {
                for (sum, &value) in sums.iter_mut().zip(&row[first..first + width]) {
                    *sum += f64::from(value);
                }
            }
            if !part.is_last {
                // SAFETY: as above.
                unsafe { columns.part(first, width) }.copy_from_slice(&sums[..width]);
                return;
            }
            for row in tile_bias.chunks_exact(d_in) {
                for (sum, &value) in sums.iter_mut().zip(&row[first..first + width]) {
                    *sum -= f64::from(value);
                }
            }
            // SAFETY: as above.
            let to = unsafe { shared.part(first, width) };
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = sum as f32;
            }
        });
        if part.is_last { out.iter().map(|&value| f64::from(value) * f64::from(value)).sum() } else { 0.0 }
    }
}
