//! The pursuit of one block of tokens; see [`super::pursuit`].

use super::matching_pursuit::Pursuit;
use super::memory::Buffer;
use super::product::GROUP;
use super::row_bytes::{RowBytes, TokenBytes};
use super::row_panels::{RowPanels, pack_groups};
use super::rows::{add_scaled, products_with_rows, square_of_row};
use super::simd::{Kernel, LANES, Simd};

/// Tokens of one task: whole groups.
pub(super) const TOKENS: usize = 4 * GROUP;
/// Values under one maximum.
pub(super) const CHUNK: usize = 16 * LANES;

/// What a task needs; borrowed from [`Spares`].
#[derive(Default)]
pub(super) struct BlockSpace {
    /// Tokens in groups, and some decoder rows.
    groups: Buffer,
    panel: Buffer,
    bytes: TokenBytes,
    /// Their products with all decoder rows, or the centres of their bounds, in whole chunks.
    products: Buffer,
    /// Maxima of one token's chunks, by lane.
    tops: Buffer,
    /// Latents that may have the largest product, and their products.
    candidates: Vec<u32>,
    candidate_products: Vec<f32>,
    /// For each token a bit for each latent that was chosen.
    chosen: Vec<u64>,
    /// Choices: token of the block, latent, value.
    pub(super) taken: Vec<(u32, u32, f32)>,
    /// For [`super::pursuit::Choices`], (F).
    pub(super) sums: Vec<f32>,
    active: Vec<Token>,
}

/// A token that is not done.
#[derive(Clone, Copy)]
struct Token {
    /// Its place in the block.
    nth: usize,
    n_chosen: usize,
}

/// Half the distance of 1 from the next larger number.
const UNIT: f32 = 1.0 / (1_u32 << 24) as f32;

/// What all tasks share.
pub(super) struct Pursue<'a> {
    pub(super) w_dec: &'a [f32],
    pub(super) d_in: usize,
    pub(super) d_sae: usize,
    pub(super) finder: Finder<'a>,
    /// Norms of decoder rows, (F), and the largest of them.
    pub(super) norms: &'a [f32],
    pub(super) largest_norm: f32,
    /// Distance of one token's products from the next one's.
    pub(super) columns: usize,
    pub(super) pursuit: &'a Pursuit,
    pub(super) iterations: usize,
}

/// What finds the latents that may have the largest product.
pub(super) enum Finder<'a> {
    Products(RowPanels<'a>),
    Bytes(&'a RowBytes),
}

/// One block of tokens.
pub(super) struct PursueBlock<'a> {
    pub(super) task: &'a Pursue<'a>,
    pub(super) residual: &'a mut [f32],
    pub(super) space: &'a mut BlockSpace,
}

impl Kernel for PursueBlock<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { task, residual, space } = self;
        let d_in = task.d_in;
        let n_tokens = residual.len() / d_in;
        space.taken.clear();
        space.active.clear();
        space.products.resize(TOKENS * task.columns);
        space.tops.resize(task.columns / CHUNK * LANES);
        let words = task.d_sae.div_ceil(64);
        space.chosen.clear();
        space.chosen.resize(n_tokens * words, 0);
        for (nth, token) in residual.chunks_exact(d_in).enumerate() {
            // SAFETY: this runs with the instructions of `S`; the row has D values.
            let size = unsafe { square_of_row::<S>(token.as_ptr(), d_in) }.sqrt();
            if size.is_finite() && task.largest_norm.is_finite() {
                space.active.push(Token { nth, n_chosen: 0 });
            } else {
                let broken = task.norms.iter().position(|norm| !norm.is_finite());
                space.taken.push((nth as u32, broken.unwrap_or(0) as u32, f32::NAN));
            }
        }
        while !space.active.is_empty() {
            task.multiply::<S>(residual, space);
            let mut kept = 0;
            for place in 0..space.active.len() {
                let mut token = space.active[place];
                if task.choose::<S>(residual, space, place, &mut token) {
                    space.active[kept] = token;
                    kept += 1;
                }
            }
            space.active.truncate(kept);
        }
    }
}

impl Pursue<'_> {
    /// Products of active tokens with all decoder rows, or the centres of their bounds.
    #[inline(always)]
    fn multiply<S: Simd>(&self, residual: &[f32], space: &mut BlockSpace) {
        let (d_in, d_sae, columns) = (self.d_in, self.d_sae, self.columns);
        let BlockSpace { groups, panel, bytes, products, active, .. } = space;
        let tokens = active.iter().map(|token| &residual[token.nth * d_in..][..d_in]);
        let n_tokens = tokens.len();
        match &self.finder {
            Finder::Products(rows) => {
                pack_groups(tokens, d_in, groups);
                // SAFETY: this runs with the instructions of `S`; rows hold whole panels, and there is one for each
                // member of a group, since a block is whole groups.
                unsafe { rows.products::<S>(groups, panel, products.as_mut_ptr(), columns) };
                for row in products.chunks_exact_mut(columns).take(n_tokens) {
                    row[d_sae..].fill(f32::NEG_INFINITY);
                }
            }
            Finder::Bytes(rows) => {
                rows.centers(tokens, bytes, &mut products[..n_tokens * columns], columns);
            }
        }
    }

    /// Makes one choice for the active token at `place`. Returns whether it goes on.
    #[inline(always)]
    fn choose<S: Simd>(
        &self,
        residual: &mut [f32],
        space: &mut BlockSpace,
        place: usize,
        token: &mut Token,
    ) -> bool {
        let (d_in, columns) = (self.d_in, self.columns);
        if token.n_chosen == self.iterations {
            return false;
        }
        let rest = &mut residual[token.nth * d_in..][..d_in];
        let BlockSpace { bytes, products, tops, candidates, candidate_products, .. } = space;
        let products = &products[place * columns..(place + 1) * columns];
        let latent = match &self.finder {
            Finder::Products(_) => {
                let largest = find_tops::<S>(products, tops);
                collect::<S>(products, tops, largest, candidates);
                candidates.first().copied()
            }
            Finder::Bytes(rows) => {
                rows.candidates(bytes, place, products, candidates);
                if candidates.len() > 1 {
                    // SAFETY: this runs with the instructions of `S`; the row has D values.
                    let size = unsafe { square_of_row::<S>(rest.as_ptr(), d_in) }.sqrt();
                    self.largest_of::<S>(rest, size, candidates, candidate_products)
                } else {
                    candidates.first().copied()
                }
            }
        };
        let Some(latent) = latent else { return false };
        let direction = &self.w_dec[latent as usize * d_in..][..d_in];
        let mut value = [0.0];
        // SAFETY: this runs with the instructions of `S`; both rows have D values.
        unsafe { products_with_rows::<S>(rest.as_ptr(), direction.as_ptr(), d_in, &[0], &mut value) };
        let [value] = value;
        if value <= 0.0 {
            return false;
        }
        space.taken.push((token.nth as u32, latent, value));
        token.n_chosen += 1;
        let word = token.nth * self.d_sae.div_ceil(64) + latent as usize / 64;
        let bit = 1 << (latent % 64);
        let again = space.chosen[word] & bit != 0;
        space.chosen[word] |= bit;
        // SAFETY: this runs with the instructions of `S`; both rows have D values.
        let left = unsafe {
            add_scaled::<S>(rest.as_mut_ptr(), -value, direction.as_ptr(), d_in);
            square_of_row::<S>(rest.as_ptr(), d_in).sqrt()
        };
        let threshold = self.pursuit.residual_threshold;
        let near = threshold > 0.0 && f64::from(left) < threshold;
        !(near || (again && self.pursuit.stop_on_duplicate_support) || !left.is_finite())
    }

    /// The latent with the largest product, computed as the tile does it; of equal ones the lowest. `latents` rise, and
    /// those that cannot be it are removed. Products added up sixteen terms at a time, which is many times faster, tell
    /// almost always.
    #[inline(always)]
    fn largest_of<S: Simd>(
        &self,
        rest: &[f32],
        size: f32,
        latents: &mut Vec<u32>,
        products: &mut Vec<f32>,
    ) -> Option<u32> {
        let d_in = rest.len();
        products.clear();
        products.resize(latents.len(), 0.0);
        // SAFETY: this runs with the instructions of `S`; latents are below F.
        unsafe {
            products_with_rows::<S>(rest.as_ptr(), self.w_dec.as_ptr(), d_in, latents, products);
        }
        // A product of D terms, added up in whatever order, is off by at most D units of its factors' norms; twice
        // for two orders, and twice that for norms that are rounded themselves.
        let bound = 4.0 * UNIT * self.largest_norm * size * (d_in + 4) as f32;
        let limit = products.iter().copied().fold(f32::NEG_INFINITY, f32::max) - bound;
        let mut place = 0;
        latents.retain(|_| {
            place += 1;
            products[place - 1] >= limit
        });
        if latents.len() > 1 { self.largest_anew::<S>(rest, latents) } else { latents.first().copied() }
    }

    /// The same from all of them.
    #[inline(always)]
    fn largest_anew<S: Simd>(&self, rest: &[f32], latents: &[u32]) -> Option<u32> {
        let d_in = rest.len();
        let mut best: Option<(f32, u32)> = None;
        for latents in latents.chunks(LANES) {
            let mut products = [0.0; LANES];
            // SAFETY: this runs with the instructions of `S`.
            unsafe {
                let mut sums = S::splat(0.0);
                for (k, &r) in rest.iter().enumerate() {
                    let mut weights = [0.0; LANES];
                    for (weight, &latent) in weights.iter_mut().zip(latents) {
                        *weight = self.w_dec[latent as usize * d_in + k];
                    }
                    // As the tile does it.
                    sums = S::fma(S::load(weights.as_ptr()), S::splat(r), sums);
                }
                S::store(products.as_mut_ptr(), sums);
            }
            for (&latent, product) in latents.iter().zip(products) {
                if best.is_none_or(|(value, _)| product > value) {
                    best = Some((product, latent));
                }
            }
        }
        best.map(|(_, latent)| latent)
    }
}

/// The largest product, and by lane those of every chunk in `tops`. Lengths are whole chunks.
#[inline(always)]
fn find_tops<S: Simd>(products: &[f32], tops: &mut [f32]) -> f32 {
    let n_chunks = products.len() / CHUNK;
    assert!(products.len() == n_chunks * CHUNK && tops.len() >= n_chunks * LANES, "whole chunks");
    let mut lanes = [0.0; LANES];
    // SAFETY: this runs with the instructions of `S`; all offsets lie inside the arrays, by the assertion.
    unsafe {
        let mut all = S::splat(f32::NEG_INFINITY);
        for chunk in 0..n_chunks {
            let mut top = S::splat(f32::NEG_INFINITY);
            let from = products.as_ptr().add(chunk * CHUNK);
            for at in (0..CHUNK).step_by(LANES) {
                top = S::max(top, S::load(from.add(at)));
            }
            S::store(tops.as_mut_ptr().add(chunk * LANES), top);
            all = S::max(all, top);
        }
        S::store(lanes.as_mut_ptr(), all);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The places of all products that reach `limit`, in rising order.
#[inline(always)]
fn collect<S: Simd>(products: &[f32], tops: &[f32], limit: f32, places: &mut Vec<u32>) {
    places.clear();
    // What lies beyond the last latent is -inf.
    let limit = limit.max(f32::MIN);
    for (chunk, values) in products.chunks_exact(CHUNK).enumerate() {
        // SAFETY: this runs with the instructions of `S`; both arrays hold whole vectors.
        unsafe {
            if S::not_below(S::load(tops[chunk * LANES..][..LANES].as_ptr()), S::splat(limit)) == 0 {
                continue;
            }
            for at in (0..CHUNK).step_by(LANES) {
                let mut reached = S::not_below(S::load(values[at..][..LANES].as_ptr()), S::splat(limit));
                while reached != 0 {
                    places.push((chunk * CHUNK + at) as u32 + reached.trailing_zeros());
                    reached &= reached - 1;
                }
            }
        }
    }
}
