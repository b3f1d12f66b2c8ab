//! A batch in parts. While half of all latents fire, as they do when a training begins, the lists of a large batch
//! would be as large as the weights; then its tokens go through a step some at a time, and gradients add up.
//!
//! How many parts it takes is estimated from a few tiles on a few tokens, so it follows from weights and batch alone,
//! and with them every bit of the result. Where lists are small, or the batch is, there is one part and nothing differs.
//!
//! So do batches whose (B, D) arrays are large beside the weights. Where entries are chosen over the whole batch first
//! ([`super::batch_topk`], [`super::matryoshka`]), only decoding and gradients go in parts.

use super::lists::Lists;
use super::params::{Params, Shape};
use super::pool::Pool;
use super::product::PANEL;
use super::workspace::Workspace;
use std::ops::Range;

/// Entries of lists for each parameter of one of the two matrices. Eight bytes each, they come to 6 % of what
/// parameters, gradients and moments take.
const ENTRIES: f64 = 0.24;
/// An entry's bytes, with some room.
const ENTRY: f64 = 9.0;
/// What a batch may take, in bytes for each parameter of one of the two matrices, which both together take 32 with
/// gradients and moments: with its entries, and beside entries that are chosen as a whole. Small things make it a fifth.
const ROOM: f64 = 6.0;
const ROOM_OF_CHOSEN: f64 = 0.8;
/// What any batch may take, in bytes.
const ROOM_OF_ALL: f64 = (32 << 20) as f64;
/// The fewest tokens in a part: with fewer, packing weights would show.
const LEAST: usize = 128;
/// What the estimate is made from.
const SAMPLE_TOKENS: usize = 128;
const SAMPLE_TILES: usize = 4;

/// Where a part stands in its batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

impl Part {
    /// The only one.
    pub(super) const WHOLE: Self = Self { is_first: true, is_last: true };

    pub(super) fn is_whole(self) -> bool {
        self == Self::WHOLE
    }
}

/// How a batch is taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    n_tokens: usize,
    size: usize,
}

impl Parts {
    fn new(n_tokens: usize, number: usize, least: usize) -> Self {
        let size = n_tokens.div_ceil(number.max(1)).next_multiple_of(PANEL).max(least);
        Self { n_tokens, size }
    }

    /// The whole batch at once.
    pub(super) fn one(n_tokens: usize) -> Self {
        Self::new(n_tokens, 1, LEAST)
    }

    /// The tokens of each part.
    pub(super) fn iter(self) -> impl Iterator<Item = (Range<usize>, Part)> {
        let Self { n_tokens, size } = self;
        (0..n_tokens).step_by(size).map(move |first| {
            let end = (first + size).min(n_tokens);
            (first..end, Part { is_first: first == 0, is_last: end == n_tokens })
        })
    }
}

impl Workspace {
    /// In which parts to decode a batch whose entries are chosen as a whole, when a part needs `n_arrays` (B, D) arrays of
    /// its own and has so many entries a token.
    pub(super) fn parts_of_chosen(&self, n_tokens: usize, n_arrays: usize, entries: f64) -> Parts {
        let Shape { d_in, d_sae, .. } = self.shape;
        let of_token = (4 * n_arrays * d_in) as f64 + ENTRY * entries;
        let room = ROOM_OF_CHOSEN * (d_in * d_sae) as f64;
        self.parts_of(n_tokens, room.max(ROOM_OF_ALL / 16.0) / of_token)
    }

    /// In which parts to go through a batch, from its encoding on, when a token's entries take so many bytes.
    pub(super) fn parts_of_entries(&self, n_tokens: usize, bytes: f64) -> Parts {
        self.parts_of(n_tokens, self.tokens_at_once(n_tokens, bytes))
    }

    fn parts_of(&self, n_tokens: usize, most: f64) -> Parts {
        match self.forced_parts {
            Some(number) => Parts::new(n_tokens, number, PANEL),
            None => Parts::new(n_tokens, (n_tokens as f64 / most.max(1.0)).ceil() as usize, LEAST),
        }
    }

    /// How many tokens there is room for. The batch and its reconstruction are whole; of a part there are what the
    /// encoder reads, the same in panels and as bytes, and two gradients.
    fn tokens_at_once(&self, n_tokens: usize, bytes_of_entries: f64) -> f64 {
        let (d_in, d_sae) = (self.shape.d_in as f64, self.shape.d_sae as f64);
        let room = (ROOM * d_sae - 8.0 * n_tokens as f64) * d_in;
        room.max(ROOM_OF_ALL) / (17.0 * d_in + bytes_of_entries)
    }

    /// Copies the entries of a part of a batch to `part_lists`: first those of the step, where they are wanted, then those
    /// for so many auxiliary losses.
    pub(super) fn take_part_lists(
        &mut self,
        pool: &Pool,
        tokens: &Range<usize>,
        part: Part,
        (of_step, n_aux): (bool, usize),
    ) {
        if part.is_whole() {
            return;
        }
        let lists = || Lists::new(self.shape.d_sae);
        self.part_lists.resize_with(self.part_lists.len().max(1 + n_aux), lists);
        let from = [&self.lists].into_iter().chain(self.aux.iter().map(|entries| &entries.lists));
        for (from, to) in from.zip(&mut self.part_lists).take(1 + n_aux).skip(usize::from(!of_step)) {
            from.copy_some(pool, tokens, &|_| true, to);
        }
    }

    /// In which parts to go through `x` (B, D), when a step keeps `n_lists` entries for each that `gather` finds. It
    /// fills the lists of some tiles from the loaded tokens.
    pub(super) fn parts(
        &mut self,
        pool: &Pool,
        params: &Params,
        apply_b_dec_to_input: bool,
        x: &[f32],
        n_lists: usize,
        gather: impl Fn(&mut Self, Range<usize>),
    ) -> Parts {
        let (d_in, d_sae) = (self.shape.d_in, self.shape.d_sae);
        let n_tokens = x.len() / d_in;
        if let Some(number) = self.forced_parts {
            return Parts::new(n_tokens, number, PANEL);
        }
        let values = (n_tokens * d_sae * n_lists) as f64;
        let most = ENTRIES * (d_in * d_sae) as f64;
        if n_tokens <= LEAST || values <= most {
            return Parts::one(n_tokens);
        }
        let tokens = SAMPLE_TOKENS.min(n_tokens);
        self.take_in(pool, params, apply_b_dec_to_input, &x[..tokens * d_in]);
        let n_tiles = self.lists.tiles.len();
        let n_sampled = SAMPLE_TILES.min(n_tiles);
        let (mut found, mut sampled) = (0, 0);
        for nth in 0..n_sampled {
            let tile = nth * n_tiles / n_sampled;
            gather(self, tile..tile + 1);
            let lists = &self.lists.tiles[tile];
            found += lists.token.len();
            sampled += (lists.start.len() - 1) * tokens;
        }
        let expected = values * found as f64 / sampled as f64;
        let entries = expected / n_tokens as f64;
        let at_once = (most / entries).min(self.tokens_at_once(n_tokens, ENTRY * entries));
        self.parts_of(n_tokens, at_once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_batch_once_and_in_order() {
        for (n_tokens, number, least) in
            [(1, 1, 256), (1024, 1, 256), (1024, 3, 256), (1024, 9, 256), (70, 3, 32)]
        {
            let parts: Vec<_> = Parts::new(n_tokens, number, least).iter().collect();
            assert!(parts.len() <= number);
            let mut next = 0;
            for (nth, (tokens, part)) in parts.iter().enumerate() {
                assert_eq!(tokens.start, next);
                assert!(!tokens.is_empty());
                assert_eq!(part.is_first, nth == 0);
                assert_eq!(part.is_last, nth + 1 == parts.len());
                next = tokens.end;
            }
            assert_eq!(next, n_tokens);
        }
        assert_eq!(Parts::new(70, 3, 32).iter().count(), 3);
    }
}
