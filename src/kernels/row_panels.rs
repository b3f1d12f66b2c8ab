//! Products of decoder rows with what is left of tokens, for matching pursuit: through the tile of [`super::product`],
//! with decoder rows as panels and tokens as groups. So each product is one chain of fused operations in rising k.

use super::memory::Buffer;
use super::product::{GROUP, PANEL, Start, pack_group, pack_panel, tile};
use super::simd::Simd;

/// Decoder rows, (F, D).
#[derive(Clone, Copy)]
pub(super) struct RowPanels<'a> {
    pub(super) w_dec: &'a [f32],
    pub(super) d_in: usize,
    pub(super) d_sae: usize,
}

impl RowPanels<'_> {
    /// `out[j * stride + f] = rows[j] . W_dec,f` for at most 12 rows per group of `groups`, which is what they are
    /// packed to. Columns up to the next whole panel are written, and rows up to the next whole group. Decoder rows are
    /// packed one panel at a time, to `panel`.
    ///
    /// # Safety
    /// Instructions of `S` enabled; all of those places of `out` writable, and nobody else uses them.
    #[inline(always)]
    pub(super) unsafe fn products<S: Simd>(
        &self,
        groups: &[f32],
        panel: &mut Buffer,
        out: *mut f32,
        stride: usize,
    ) {
        let d_in = self.d_in;
        let zeros = [0.0_f32; GROUP];
        panel.resize(PANEL * d_in);
        for (index, rows) in self.w_dec[..self.d_sae * d_in].chunks(PANEL * d_in).enumerate() {
            pack_panel(rows, d_in, None, panel);
            for (nth, group) in groups.chunks_exact(GROUP * d_in).enumerate() {
                // SAFETY: panel and groups are whole, and the places of `out` those that the caller promises.
                unsafe {
                    tile::<S>(
                        d_in,
                        panel.as_ptr(),
                        group.as_ptr(),
                        Start::Bias(zeros.as_ptr()),
                        out.add(nth * GROUP * stride + index * PANEL),
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

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::super::simd::Kernel;
    use super::super::testing::{check_close, tied_problem};
    use super::*;

    struct Products<'a> {
        rows: RowPanels<'a>,
        groups: &'a [f32],
        out: &'a mut [f32],
        stride: usize,
    }

    impl Kernel for Products<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            // SAFETY: this runs with the instructions of `S`; `out` has whole groups of whole panels.
            unsafe {
                let panel = &mut Buffer::default();
                self.rows.products::<S>(self.groups, panel, self.out.as_mut_ptr(), self.stride);
            }
        }
    }

    #[test]
    fn every_product_is_there() {
        for (d_in, d_sae, batch) in [(1, 1, 1), (5, 31, 12), (16, 96, 13), (17, 97, 30), (33, 290, 7)] {
            let problem = tied_problem(d_in, d_sae, batch, 3);
            let (w_dec, x) = (&problem.params.w_dec, &problem.x);
            let stride = d_sae.next_multiple_of(PANEL) + 16;
            for isa in Isa::available() {
                let mut groups = Buffer::default();
                pack_groups(x.chunks_exact(d_in), d_in, &mut groups);
                let mut out = vec![0.0; batch.next_multiple_of(GROUP) * stride];
                let rows = RowPanels { w_dec, d_in, d_sae };
                isa.run(Products { rows, groups: &groups, out: &mut out, stride });
                for (token, products) in x.chunks_exact(d_in).zip(out.chunks_exact(stride)) {
                    let product = |row: &[f32]| {
                        row.iter().zip(token).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>()
                    };
                    let expected: Vec<f64> = w_dec.chunks_exact(d_in).map(product).collect();
                    check_close("products", &products[..d_sae], &expected);
                }
            }
        }
    }
}
