//! Decoding a batch, and its error: `out = begin + acts W_dec`, `g = scale (out - target)`.
//!
//! Two ways, chosen per block of 384 latents by its density, which is the same for any number of threads.
//! Sparse: a task owns some tokens and columns, as much as fits in the second-level cache, and walks all
//! latents once; a stretch of a decoder row stays in registers while it is added to the tokens on which its
//! latent is active. So the decoder is read from memory once, in order. Dense: the activations of 32 tokens
//! are laid out and go through the same product as the encoder.
//!
//! Rejected: token by token, a weighted sum of whole decoder rows. It reads rows in random order from memory
//! (64 MB at 1024 by 16384): 160 ms instead of 54 at 500 active latents per token, 18 instead of 21 at 60
//! (one Zen 4 core, 1024 tokens). Blocks of 512 tokens by 256 columns were 10 to 20 % slower than 1024 by 128.

use super::isa::Isa;
use super::lists::{Lists, TILE};
use super::memory::{Buffer, Disjoint, Spares};
use super::params::Params;
use super::phase;
use super::pool::Pool;
use super::product::{GROUP, PANEL, Start, tile};
use super::rows::add_to_rows;
use super::simd::{Kernel, LANES, Simd};

/// Tokens and columns of one task of the sparse way.
const TOKENS: usize = 1024;
const COLUMNS: usize = 128;
/// Decoder rows are asked for this many latents before they are needed.
const AHEAD: usize = 8;
/// Tokens per task when errors are taken.
const ERROR_TOKENS: usize = 16;
/// Tiles in a block of the dense way.
const BLOCK: usize = 4;
/// Share of activations from which on a block is decoded densely: where the two ways cost the same on Zen 4
/// (measured at 1024 by 16384 and 576 by 4608).
const DENSE_SHARE: f64 = 0.3;

/// One decoding of a batch. All (B, D) arrays are row-major.
pub(super) struct DecodePass<'a> {
    pub(super) isa: Isa,
    pub(super) params: &'a Params,
    pub(super) order: &'a [u32],
    pub(super) lists: &'a Lists,
    pub(super) n_tokens: usize,
    pub(super) begin: Begin<'a>,
    pub(super) target: &'a [f32],
    /// How much the squared error of each token counts; `None` for once each.
    pub(super) weight: Option<&'a [f32]>,
    /// `g = g_scale * weight * error`
    pub(super) g_scale: f32,
    /// Where wanted, the decoder norms and p for the p-norm of every token's activations.
    pub(super) lp_norm: Option<(&'a [f32], f64)>,
}

/// What a reconstruction begins with.
#[derive(Clone, Copy)]
pub(super) enum Begin<'a> {
    /// The decoder bias.
    Bias,
    /// Another reconstruction, (B, D).
    From(&'a [f32]),
}

/// Where a pass writes.
pub(super) struct DecodeOut<'a> {
    pub(super) reconstruction: &'a mut [f32],
    pub(super) g: &'a mut [f32],
    /// Per token: squared error, p-norm of the activations weighted by decoder norms.
    pub(super) losses: &'a mut [[f64; 2]],
}

/// Memory of decoding, kept between steps.
#[derive(Default)]
pub(super) struct DecodeSpace {
    dense_blocks: Vec<usize>,
    is_dense: Vec<bool>,
    /// Sum over the dense blocks, transposed: (D in whole groups, B in whole panels).
    sums: Buffer,
    /// Decoder rows of one block in groups of columns, and those of the next.
    packed: [Buffer; 2],
    spares: Spares<Buffer>,
}

impl DecodePass<'_> {
    pub(super) fn run(&self, pool: &Pool, space: &mut DecodeSpace, out: DecodeOut<'_>) {
        let _phase = phase::decode();
        self.choose(space);
        let any_dense = !space.dense_blocks.is_empty();
        if any_dense {
            self.dense_sums(pool, space);
        }
        let out = SharedOut {
            reconstruction: Disjoint::new(out.reconstruction),
            g: Disjoint::new(out.g),
            losses: Disjoint::new(out.losses),
        };
        let d_in = self.params.d_in();
        let sums = if any_dense { &*space.sums } else { &[] };
        // Columns in parts of about equal width, each of whole vectors.
        let width = d_in.div_ceil(d_in.div_ceil(COLUMNS)).next_multiple_of(LANES);
        let n_parts = d_in.div_ceil(width);
        pool.run(self.n_tokens.div_ceil(TOKENS) * n_parts, &|index| {
            let (part, first) = (index % n_parts, index / n_parts * TOKENS);
            let columns = part * width..((part + 1) * width).min(d_in);
            let tokens = first..(first + TOKENS).min(self.n_tokens);
            let (pass, is_dense, out) = (self, &*space.is_dense, &out);
            space.spares.with(|block| {
                self.isa.run(SparseBlock { pass, is_dense, sums, out, tokens, columns, width, block });
            });
        });
        pool.run(self.n_tokens.div_ceil(ERROR_TOKENS), &|index| {
            let tokens = index * ERROR_TOKENS..((index + 1) * ERROR_TOKENS).min(self.n_tokens);
            self.isa.run(Errors { pass: self, out: &out, tokens });
        });
        if let Some((norms, p)) = self.lp_norm {
            self.p_norms(norms, p, &out);
        }
    }

    fn choose(&self, space: &mut DecodeSpace) {
        space.dense_blocks.clear();
        space.is_dense.clear();
        for (index, tiles) in self.lists.tiles.chunks(BLOCK).enumerate() {
            let entries: usize = tiles.iter().map(|tile| tile.token.len()).sum();
            let latents = tiles.len() * TILE;
            let dense = entries as f64 > DENSE_SHARE * (latents * self.n_tokens) as f64;
            space.is_dense.push(dense);
            if dense {
                space.dense_blocks.push(index);
            }
        }
    }

    /// Adds up the dense blocks, one after the other; while one is multiplied, the next is packed.
    fn dense_sums(&self, pool: &Pool, space: &mut DecodeSpace) {
        let d_in = self.params.d_in();
        let n_groups = d_in.div_ceil(GROUP);
        let n_panels = self.n_tokens.div_ceil(PANEL);
        let stride = n_panels * PANEL;
        let DecodeSpace { sums, packed: [now, next], dense_blocks, spares, .. } = space;
        sums.resize(n_groups * GROUP * stride);
        sums.fill(0.0);
        for buffer in [&mut *now, &mut *next] {
            buffer.resize(BLOCK * TILE * n_groups * GROUP);
        }
        let pack = |block: usize, nth: usize, out: &Disjoint<'_, f32>| {
            // One task packs the columns of one group.
            let depth = BLOCK * TILE;
            // SAFETY: one group per task.
            let group = unsafe { out.part(nth * depth * GROUP, depth * GROUP) };
            let columns = nth * GROUP..((nth + 1) * GROUP).min(d_in);
            let latents = self.latents_of(block);
            group[latents.len() * GROUP..].fill(0.0);
            for (to, &latent) in group.chunks_exact_mut(GROUP).zip(latents) {
                let row = &self.params.w_dec[latent as usize * d_in..][..d_in];
                to.fill(0.0);
                to[..columns.len()].copy_from_slice(&row[columns.clone()]);
            }
        };
        {
            let out = Disjoint::new(now);
            pool.run(n_groups, &|nth| pack(dense_blocks[0], nth, &out));
        }
        for (nth, &block) in dense_blocks.iter().enumerate() {
            let following = dense_blocks.get(nth + 1);
            {
                let to = Disjoint::new(next);
                let shared = Disjoint::new(sums);
                pool.run(n_panels + following.map_or(0, |_| n_groups), &|task| match following {
                    Some(&following) if task >= n_panels => pack(following, task - n_panels, &to),
                    _ => spares.with(|acts| {
                        self.isa.run(DensePanel {
                            pass: self,
                            block,
                            panel: task,
                            packed: now,
                            acts,
                            sums: &shared,
                            stride,
                        });
                    }),
                });
            }
            std::mem::swap(now, next);
        }
    }

    fn latents_of(&self, block: usize) -> &[u32] {
        let first = block * BLOCK * TILE;
        &self.order[first..(first + BLOCK * TILE).min(self.order.len())]
    }

    /// Adds the p-norms to the losses. Rarely wanted, so it is plain.
    fn p_norms(&self, norms: &[f32], p: f64, out: &SharedOut<'_>) {
        for (tile, latents) in self.lists.tiles.iter().zip(self.order.chunks(TILE)) {
            for (place, &latent) in latents.iter().enumerate() {
                for entry in tile.latent(place) {
                    let y = f64::from(tile.value[entry]) * f64::from(norms[latent as usize]);
                    // SAFETY: one thread does all of this.
                    let losses = unsafe { out.losses.at(tile.token[entry] as usize) };
                    losses[1] += if y == 0.0 { 0.0 } else { y.powf(p) };
                }
            }
        }
        for token in 0..self.n_tokens {
            // SAFETY: one thread does all of this.
            let losses = unsafe { out.losses.at(token) };
            losses[1] = losses[1].powf(1.0 / p);
        }
    }
}

struct SharedOut<'a> {
    reconstruction: Disjoint<'a, f32>,
    g: Disjoint<'a, f32>,
    losses: Disjoint<'a, [f64; 2]>,
}

/// Some columns of some tokens.
struct SparseBlock<'a> {
    pass: &'a DecodePass<'a>,
    is_dense: &'a [bool],
    /// Transposed sums of the dense blocks, or nothing.
    sums: &'a [f32],
    out: &'a SharedOut<'a>,
    tokens: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    /// Distance of rows in `block`.
    width: usize,
    block: &'a mut Buffer,
}

impl Kernel for SparseBlock<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { pass, is_dense, sums, out, tokens, columns, width, block } = self;
        let d_in = pass.params.d_in();
        block.resize(tokens.len() * width);
        for (row, token) in block.chunks_exact_mut(width).zip(tokens.clone()) {
            let begin = match pass.begin {
                Begin::Bias => &pass.params.b_dec[columns.clone()],
                Begin::From(rest) => &rest[token * d_in..][columns.clone()],
            };
            row[..columns.len()].copy_from_slice(begin);
            row[columns.len()..].fill(0.0);
        }
        let whole_batch = tokens.len() == pass.n_tokens;
        for (index, tile) in pass.lists.tiles.iter().enumerate() {
            if is_dense[index / BLOCK] {
                continue;
            }
            let latents = &pass.order[index * TILE..((index + 1) * TILE).min(pass.order.len())];
            for (place, &latent) in latents.iter().enumerate() {
                if let Some(&ahead) = latents.get(place + AHEAD) {
                    let row = &pass.params.w_dec[ahead as usize * d_in..][columns.clone()];
                    for line in row.chunks(LANES) {
                        // SAFETY: this runs with the instructions of `S`.
                        unsafe { S::prefetch(line.as_ptr()) };
                    }
                }
                let mut range = tile.latent(place);
                if !whole_batch {
                    let listed = &tile.token[range.clone()];
                    let first = listed.partition_point(|&token| (token as usize) < tokens.start);
                    let count = listed[first..].partition_point(|&token| (token as usize) < tokens.end);
                    range = range.start + first..range.start + first + count;
                }
                if range.is_empty() {
                    continue;
                }
                let row = &pass.params.w_dec[latent as usize * d_in..][columns.clone()];
                let (tokens_of, values) = (&tile.token[range.clone()], &tile.value[range]);
                // SAFETY: this runs with the instructions of `S`; the listed tokens are those of the block.
                unsafe { add_to_rows::<S>(block, width, tokens.start as u32, row, tokens_of, values) };
            }
        }
        let stride = pass.n_tokens.next_multiple_of(PANEL);
        for (row, token) in block.chunks_exact(width).zip(tokens) {
            // SAFETY: these columns of this token belong to this task.
            let to = unsafe { out.reconstruction.part(token * d_in + columns.start, columns.len()) };
            to.copy_from_slice(&row[..columns.len()]);
            if !sums.is_empty() {
                for (value, column) in to.iter_mut().zip(columns.clone()) {
                    *value += sums[column * stride + token];
                }
            }
        }
    }
}

/// Errors of some tokens, once all their columns are there.
struct Errors<'a> {
    pass: &'a DecodePass<'a>,
    out: &'a SharedOut<'a>,
    tokens: std::ops::Range<usize>,
}

impl Kernel for Errors<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let d_in = self.pass.params.d_in();
        for token in self.tokens {
            let at = token * d_in;
            // SAFETY: each token belongs to one task.
            let (row, g, losses) = unsafe {
                (self.out.reconstruction.part(at, d_in), self.out.g.part(at, d_in), self.out.losses.at(token))
            };
            let target = &self.pass.target[at..at + d_in];
            let weight = self.pass.weight.map_or(1.0, |weight| weight[token]);
            let squared = error::<S>(row, target, self.pass.g_scale * weight, g);
            *losses = [f64::from(weight) * squared, 0.0];
        }
    }
}

/// `g = scale * (row - target)`; returns the squared error, summed in double precision.
#[inline(always)]
pub(super) fn error<S: Simd>(row: &[f32], target: &[f32], scale: f32, g: &mut [f32]) -> f64 {
    let d_in = row.len();
    let mut lanes = [0.0_f64; LANES];
    let whole = d_in / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let (row, target, g) = (&row[at..at + LANES], &target[at..at + LANES], &mut g[at..at + LANES]);
        for lane in 0..LANES {
            let error = row[lane] - target[lane];
            g[lane] = scale * error;
            lanes[lane] += f64::from(error) * f64::from(error);
        }
    }
    for at in whole..d_in {
        let error = row[at] - target[at];
        g[at] = scale * error;
        lanes[at - whole] += f64::from(error) * f64::from(error);
    }
    lanes.iter().sum()
}

/// One panel of tokens times one block of latents.
struct DensePanel<'a> {
    pass: &'a DecodePass<'a>,
    block: usize,
    panel: usize,
    packed: &'a [f32],
    acts: &'a mut Buffer,
    sums: &'a Disjoint<'a, f32>,
    stride: usize,
}

impl Kernel for DensePanel<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { pass, block, panel, packed, acts, sums, stride } = self;
        let depth = BLOCK * TILE;
        acts.resize(depth * PANEL);
        acts.fill(0.0);
        let first_token = (panel * PANEL) as u32;
        let tiles = &pass.lists.tiles[block * BLOCK..((block + 1) * BLOCK).min(pass.lists.tiles.len())];
        for (nth, tile) in tiles.iter().enumerate() {
            for place in 0..tile.start.len().saturating_sub(1) {
                let range = tile.latent(place);
                let tokens = &tile.token[range.clone()];
                let from = tokens.partition_point(|&token| token < first_token);
                let to = &mut acts[(nth * TILE + place) * PANEL..][..PANEL];
                for (&token, &value) in tokens[from..].iter().zip(&tile.value[range][from..]) {
                    let Some(to) = to.get_mut((token - first_token) as usize) else { break };
                    *to = value;
                }
            }
        }
        for group in 0..pass.params.d_in().div_ceil(GROUP) {
            // SAFETY: this runs with the instructions of `S`; acts and packed hold whole panels and groups of
            // the block's depth; the tile of sums belongs to this panel and so to this task.
            unsafe {
                let corner = sums.pointer(group * GROUP * stride + panel * PANEL);
                let right = packed.as_ptr().add(group * depth * GROUP);
                tile::<S>(depth, acts.as_ptr(), right, Start::Out, corner, stride);
            }
        }
    }
}
