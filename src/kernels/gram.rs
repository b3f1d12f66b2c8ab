//! Products of decoder rows with tokens and with each other, for matching pursuit.
//!
//! Both go through the tile of [`super::product`], with decoder rows as panels and tokens, or other decoder rows,
//! as groups. So each product is one chain of fused operations in rising k, whatever it is computed with.
//!
//! The matrix of all products of decoder rows is symmetric: only blocks on and above its diagonal are computed,
//! and written twice. Its rows are an odd number of cache lines apart, or all rows would share a few cache sets.

use super::isa::Isa;
use super::memory::{Buffer, Disjoint, Spares};
use super::phase;
use super::pool::Pool;
use super::product::{GROUP, PANEL, Start, pack_group, tile};
use super::simd::{Kernel, LANES, Simd};

/// Decoder rows in one task: 8 groups, and whole panels.
const ROWS: usize = 96;

/// Decoder rows in panels of 32.
#[derive(Clone, Copy)]
pub(super) struct RowPanels<'a> {
    pub(super) panels: &'a [f32],
    pub(super) d_in: usize,
    pub(super) d_sae: usize,
}

impl RowPanels<'_> {
    /// `out[j * stride + f] = rows[j] . W_dec,f` for at most 12 rows per group of `groups`, which is what they are
    /// packed to. Columns up to the next whole panel are written, and rows up to the next whole group.
    ///
    /// # Safety
    /// Instructions of `S` enabled; all of those places of `out` writable, and nobody else uses them.
    #[inline(always)]
    pub(super) unsafe fn products<S: Simd>(&self, groups: &[f32], out: *mut f32, stride: usize) {
        let d_in = self.d_in;
        let n_panels = self.d_sae.div_ceil(PANEL);
        assert!(self.panels.len() >= n_panels * PANEL * d_in, "decoder rows are packed");
        let zeros = [0.0_f32; GROUP];
        for panel in 0..n_panels {
            for (nth, group) in groups.chunks_exact(GROUP * d_in).enumerate() {
                // SAFETY: panels and groups are whole, and the places of `out` those that the caller promises.
                unsafe {
                    tile::<S>(
                        d_in,
                        self.panels.as_ptr().add(panel * PANEL * d_in),
                        group.as_ptr(),
                        Start::Bias(zeros.as_ptr()),
                        out.add(nth * GROUP * stride + panel * PANEL),
                        stride,
                    );
                }
            }
        }
    }
}

/// Packs rows of D values by groups of 12, one after the other.
pub(super) fn pack_groups<'a>(
    mut rows: impl ExactSizeIterator<Item = &'a [f32]>,
    d_in: usize,
    groups: &mut Buffer,
) {
    groups.resize(rows.len().div_ceil(GROUP) * GROUP * d_in);
    for group in groups.chunks_exact_mut(GROUP * d_in) {
        let mut members: [&[f32]; GROUP] = [&[]; GROUP];
        let mut count = 0;
        for (member, row) in members.iter_mut().zip(&mut rows) {
            *member = row;
            count += 1;
        }
        pack_group(&members[..count], d_in, group);
    }
}

/// All products of decoder rows with each other, (F, stride).
#[derive(Default)]
pub(super) struct Gram {
    values: Buffer,
    stride: usize,
    spares: Spares<[Buffer; 2]>,
}

impl Gram {
    /// Distance of rows that hold `columns` values each.
    fn stride_of(columns: usize) -> usize {
        (columns.div_ceil(LANES) | 1) * LANES
    }

    /// Bytes for F latents, `columns` values a row.
    pub(super) fn bytes(d_sae: usize, columns: usize) -> usize {
        4 * d_sae * Self::stride_of(columns)
    }

    /// The products of decoder row `latent`.
    #[inline(always)]
    pub(super) fn row(&self, latent: u32) -> &[f32] {
        &self.values[latent as usize * self.stride..][..self.stride]
    }

    /// Computes all products. Rows get `columns` values, F in whole panels or more; those beyond F are 0.
    pub(super) fn fill(&mut self, pool: &Pool, isa: Isa, rows: RowPanels<'_>, w_dec: &[f32], columns: usize) {
        let _phase = phase::gram();
        assert!(columns >= rows.d_sae.next_multiple_of(PANEL), "rows hold whole panels");
        self.stride = Self::stride_of(columns);
        self.values.resize(rows.d_sae * self.stride);
        let out = Disjoint::new(&mut self.values);
        let (stride, spares) = (self.stride, &self.spares);
        pool.run(rows.d_sae.div_ceil(ROWS), &|index| {
            let first = index * ROWS;
            let count = ROWS.min(rows.d_sae - first);
            spares.with(|[groups, block]| {
                isa.run(GramRows { rows, w_dec, out: &out, stride, first, count, groups, block });
            });
        });
    }
}

/// Some rows of the matrix from the diagonal on, and the columns that mirror them.
struct GramRows<'a> {
    rows: RowPanels<'a>,
    w_dec: &'a [f32],
    out: &'a Disjoint<'a, f32>,
    stride: usize,
    first: usize,
    count: usize,
    groups: &'a mut Buffer,
    block: &'a mut Buffer,
}

impl Kernel for GramRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { rows, w_dec, out, stride, first, count, groups, block } = self;
        let (d_in, d_sae) = (rows.d_in, rows.d_sae);
        pack_groups(w_dec[first * d_in..][..count * d_in].chunks_exact(d_in), d_in, groups);
        block.resize(ROWS * PANEL);
        let zeros = [0.0_f32; GROUP];
        for panel in first / PANEL..d_sae.div_ceil(PANEL) {
            for (nth, group) in groups.chunks_exact(GROUP * d_in).enumerate() {
                // SAFETY: this runs with the instructions of `S`; panels, groups and the block are whole.
                unsafe {
                    tile::<S>(
                        d_in,
                        rows.panels[panel * PANEL * d_in..][..PANEL * d_in].as_ptr(),
                        group.as_ptr(),
                        Start::Bias(zeros.as_ptr()),
                        block.as_mut_ptr().add(nth * GROUP * PANEL),
                        PANEL,
                    );
                }
            }
            for (place, from) in block.chunks_exact(PANEL).enumerate().take(count) {
                // SAFETY: from the diagonal block on, these rows belong to this task.
                let to = unsafe { out.part((first + place) * stride + panel * PANEL, PANEL) };
                to.copy_from_slice(from);
            }
            if panel * PANEL < first + ROWS {
                continue;
            }
            for i in 0..PANEL.min(d_sae - panel * PANEL) {
                // SAFETY: below the diagonal block, these columns belong to this task.
                let to = unsafe { out.part((panel * PANEL + i) * stride + first, count) };
                for (place, to) in to.iter_mut().enumerate() {
                    *to = block[place * PANEL + i];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gather::pack_batch;
    use super::super::testing::{check_close, tied_problem};
    use super::*;

    #[test]
    fn every_product_is_there_and_the_matrix_symmetric_to_the_bit() {
        for (d_in, d_sae) in [(1, 1), (5, 31), (16, 96), (17, 97), (33, 290)] {
            let problem = tied_problem(d_in, d_sae, 1, 3);
            let w_dec = &problem.params.w_dec;
            for isa in Isa::available() {
                let pool = Pool::new(2);
                let mut panels = Buffer::default();
                pack_batch(&pool, w_dec, d_in, None, &mut panels);
                let rows = RowPanels { panels: &panels, d_in, d_sae };
                let mut gram = Gram::default();
                let columns = d_sae.next_multiple_of(PANEL) + LANES;
                gram.fill(&pool, isa, rows, w_dec, columns);
                for i in 0..d_sae {
                    let wide = |f: usize| w_dec[f * d_in..][..d_in].iter().map(|&w| f64::from(w));
                    let expected: Vec<f64> =
                        (0..d_sae).map(|j| wide(i).zip(wide(j)).map(|(a, b)| a * b).sum()).collect();
                    check_close("products", &gram.row(i as u32)[..d_sae], &expected);
                    assert!(gram.row(i as u32)[d_sae..].iter().all(|&value| value == 0.0));
                    for j in 0..i {
                        let (a, b) = (gram.row(i as u32)[j], gram.row(j as u32)[i]);
                        assert_eq!(a.to_bits(), b.to_bits());
                    }
                }
            }
        }
    }
}
