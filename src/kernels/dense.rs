//! The dense way through a group of 12 latents: its products with `g`, and its weighted sums of `g` and `x`,
//! as products of whole panels. Entries come from the lists and go back to them; only 12 latents are laid
//! out densely at a time.

use super::gather::pack_batch;
use super::lists::TileLists;
use super::memory::{Buffer, Disjoint};
use super::pool::Pool;
use super::product::{GROUP, PANEL, Start, pack_group, tile};
use super::simd::Simd;

/// A (B, D) gradient packed both ways; empty where no group is dense.
#[derive(Default)]
pub(super) struct DenseBatch {
    /// Panels of 32 tokens, `[k = d][32]`.
    panels: Buffer,
    /// Panels of 32 columns, `[k = b][32]`.
    columns: Buffer,
}

impl DenseBatch {
    pub(super) fn prepare(&mut self, pool: &Pool, g: Option<&[f32]>, d_in: usize) {
        match g {
            Some(g) => {
                pack_batch(pool, g, d_in, None, &mut self.panels);
                pack_columns(pool, g, d_in, &mut self.columns);
            }
            None => *self = Self::default(),
        }
    }

    pub(super) fn columns(&self) -> &[f32] {
        &self.columns
    }
}

/// Packs a (B, D) array by panels of 32 columns.
pub(super) fn pack_columns(pool: &Pool, rows: &[f32], d_in: usize, columns: &mut Buffer) {
    let n_tokens = rows.len() / d_in;
    let n_panels = d_in.div_ceil(PANEL);
    columns.resize(n_panels * n_tokens * PANEL);
    let out = Disjoint::new(columns);
    pool.run(n_panels, &|index| {
        // SAFETY: one part per task.
        let panel = unsafe { out.part(index * n_tokens * PANEL, n_tokens * PANEL) };
        let range = index * PANEL..((index + 1) * PANEL).min(d_in);
        for (to, row) in panel.chunks_exact_mut(PANEL).zip(rows.chunks_exact(d_in)) {
            to[range.len()..].fill(0.0);
            to[..range.len()].copy_from_slice(&row[range.clone()]);
        }
    });
}

/// What one group needs; borrowed with the tile's space.
#[derive(Default)]
pub(super) struct GroupSpace {
    weights: Buffer,
    acts: Buffer,
}

/// The group of latents at `first` of a tile.
pub(super) struct DenseGroup<'a> {
    pub(super) entries: &'a TileLists,
    pub(super) first: usize,
    pub(super) n_tokens: usize,
    pub(super) d_in: usize,
    pub(super) space: &'a mut GroupSpace,
}

impl DenseGroup<'_> {
    /// For each entry of the group: the product of its latent's decoder row with its token's `g`.
    #[inline(always)]
    pub(super) fn products<S: Simd>(&mut self, w_dec: &[&[f32]], batch: &DenseBatch, out: &mut [f32]) {
        let (d_in, entries, n_tokens) = (self.d_in, self.entries, self.n_tokens);
        let weights = &mut self.space.weights;
        weights.resize(d_in * GROUP);
        pack_group(w_dec, d_in, weights);
        let zeros = [0.0_f32; GROUP];
        let mut block = [0.0_f32; GROUP * PANEL];
        let mut next = [0; GROUP];
        for (j, next) in next.iter_mut().enumerate() {
            *next = entries.latent(self.first + j).start;
        }
        assert!(batch.panels.len() >= n_tokens.next_multiple_of(PANEL) * d_in, "g is packed");
        for panel in 0..n_tokens.div_ceil(PANEL) {
            // SAFETY: this runs with the instructions of `S`; panels, weights and block hold whole tiles.
            unsafe {
                let left = batch.panels.as_ptr().add(panel * PANEL * d_in);
                let start = Start::Bias(zeros.as_ptr());
                tile::<S>(d_in, left, weights.as_ptr(), start, block.as_mut_ptr(), PANEL);
            }
            for (j, next) in next.iter_mut().enumerate() {
                let end = entries.latent(self.first + j).end;
                while *next < end {
                    let within = (entries.token[*next] as usize).wrapping_sub(panel * PANEL);
                    if within >= PANEL {
                        break;
                    }
                    out[*next] = block[j * PANEL + within];
                    *next += 1;
                }
            }
        }
    }

    /// Adds to each latent's row the sum over its entries of `coefs` times its token's row of what `columns`
    /// packs. Rows that are not `written` yet are overwritten; latents without entries are left alone.
    ///
    /// # Safety
    /// `rows` has a pointer to D values, not shared with anyone, for each latent with entries.
    #[inline(always)]
    pub(super) unsafe fn sums<S: Simd>(
        &mut self,
        coefs: &[f32],
        columns: &[f32],
        rows: &[*mut f32; GROUP],
        written: &[bool; GROUP],
    ) {
        let (d_in, entries, n_tokens) = (self.d_in, self.entries, self.n_tokens);
        let acts = &mut self.space.acts;
        acts.resize(n_tokens * GROUP);
        acts.fill(0.0);
        for j in 0..GROUP {
            for entry in entries.latent(self.first + j) {
                acts[entries.token[entry] as usize * GROUP + j] = coefs[entry];
            }
        }
        assert!(columns.len() >= d_in.next_multiple_of(PANEL) * n_tokens, "the batch is packed");
        let zeros = [0.0_f32; GROUP];
        let mut block = [0.0_f32; GROUP * PANEL];
        for panel in 0..d_in.div_ceil(PANEL) {
            // SAFETY: this runs with the instructions of `S`; columns, acts and block hold whole tiles.
            unsafe {
                let left = columns.as_ptr().add(panel * PANEL * n_tokens);
                let start = Start::Bias(zeros.as_ptr());
                tile::<S>(n_tokens, left, acts.as_ptr(), start, block.as_mut_ptr(), PANEL);
            }
            let first = panel * PANEL;
            let width = PANEL.min(d_in - first);
            for j in 0..GROUP {
                if entries.latent(self.first + j).is_empty() {
                    continue;
                }
                // SAFETY: the row has D values and nobody else uses it, as the caller promises.
                let to = unsafe { std::slice::from_raw_parts_mut(rows[j].add(first), width) };
                let from = &block[j * PANEL..][..width];
                if written[j] {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                } else {
                    to.copy_from_slice(from);
                }
            }
        }
    }
}
