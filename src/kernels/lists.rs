//! Active latents of a batch, twice: by latent ([`Lists`], what weight gradients need) and by token
//! ([`Rows`], what decoding needs).

use super::memory::Disjoint;
use super::pool::Pool;
use std::ops::Range;

/// Latents in one tile: the unit of work of everything that goes by latent.
pub(super) const TILE: usize = 96;

/// Entries of the latents of one tile; per latent in rising order of token.
#[derive(Default)]
pub(super) struct TileLists {
    /// Where each latent's entries begin, and where the last ones end.
    pub(super) start: Vec<u32>,
    pub(super) token: Vec<u32>,
    pub(super) value: Vec<f32>,
}

impl TileLists {
    /// Empties the lists for about `expected` entries. Memory grows with some room, so that batches of about
    /// equal density need no more of it, and is given back once it is mostly idle, as it is when the dense
    /// first steps of a training are over.
    pub(super) fn clear(&mut self, expected: usize) {
        self.restart();
        let room = expected + expected / 8;
        if self.token.capacity() < expected || self.token.capacity() / 8 > room + TILE {
            self.token = Vec::with_capacity(room);
            self.value = Vec::with_capacity(room);
        }
    }

    /// Empties the lists, whose new length only shows as they are filled; to be followed by [`Self::trim`].
    pub(super) fn restart(&mut self) {
        self.start.clear();
        self.start.push(0);
        self.token.clear();
        self.value.clear();
    }

    /// Gives memory back that is mostly idle, as [`Self::clear`] does.
    pub(super) fn trim(&mut self) {
        let room = self.token.len() + self.token.len() / 8;
        if self.token.capacity() / 8 > room + TILE {
            self.token.shrink_to(room);
            self.value.shrink_to(room);
        }
    }

    /// The entries of one latent of the tile.
    #[inline]
    pub(super) fn latent(&self, place: usize) -> std::ops::Range<usize> {
        match self.start.get(place + 1) {
            Some(&end) => self.start[place] as usize..end as usize,
            None => 0..0,
        }
    }

    /// The number of entries of some latents of the tile, as far as it has so many.
    #[inline]
    pub(super) fn count(&self, places: std::ops::Range<usize>) -> usize {
        let at = |place: usize| self.start.get(place).or(self.start.last()).map_or(0, |&at| at as usize);
        at(places.end) - at(places.start)
    }
}

/// Entries of all latents, tile by tile. Position `i` of tile `t` is the latent `order[t * TILE + i]`.
pub(super) struct Lists {
    pub(super) tiles: Vec<TileLists>,
}

impl Lists {
    pub(super) fn new(d_sae: usize) -> Self {
        let n_tiles = d_sae.div_ceil(TILE);
        let mut tiles = Vec::with_capacity(n_tiles);
        tiles.resize_with(n_tiles, TileLists::default);
        Self { tiles }
    }

    /// Number of entries.
    pub(super) fn count(&self) -> usize {
        self.tiles.iter().map(|tile| tile.token.len()).sum()
    }

    /// Copies the entries of some tokens, which `to` counts from the first of them, and of the latents that `wanted` says;
    /// it gets the latent's position.
    pub(super) fn copy_some(
        &self,
        pool: &Pool,
        tokens: &Range<usize>,
        wanted: &(impl Fn(usize) -> bool + Sync),
        to: &mut Self,
    ) {
        let (begin, end) = (tokens.start as u32, tokens.end as u32);
        let tiles = Disjoint::new(&mut to.tiles);
        pool.run(self.tiles.len(), &|index| {
            // SAFETY: one tile per task.
            let (from, to) = (&self.tiles[index], unsafe { tiles.at(index) });
            to.restart();
            for (place, range) in from.start.windows(2).enumerate() {
                if wanted(index * TILE + place) {
                    let first = range[0] as usize;
                    let of_latent = &from.token[first..range[1] as usize];
                    let at = |limit| first + of_latent.partition_point(|&token| token < limit);
                    let entries = at(begin)..at(end);
                    to.token.extend(from.token[entries.clone()].iter().map(|token| token - begin));
                    to.value.extend_from_slice(&from.value[entries]);
                }
                to.start.push(to.token.len() as u32);
            }
            to.trim();
        });
    }
}

/// The same entries by token, per token in the order of the tiles.
#[derive(Default)]
pub(super) struct Rows {
    /// Where each token's entries begin, and where the last ones end.
    pub(super) start: Vec<u32>,
    pub(super) latent: Vec<u32>,
    pub(super) value: Vec<f32>,
    next: Vec<u32>,
    /// The most entries since the batch began.
    most: usize,
}

impl Rows {
    /// Begins a batch. Memory that the one before hardly used is given back: now and not between the rounds of a
    /// selection, the first of which is large in every step.
    pub(super) fn begin(&mut self) {
        if self.latent.len() / 8 > self.most + self.next.len() {
            (self.latent, self.value) = (Vec::new(), Vec::new());
        }
        self.most = 0;
    }

    /// Transposes the entries of the tiles for which `wanted` says so.
    pub(super) fn fill(
        &mut self,
        lists: &Lists,
        order: &[u32],
        n_tokens: usize,
        wanted: impl Fn(usize) -> bool,
    ) {
        self.next.clear();
        self.next.resize(n_tokens + 1, 0);
        let mut total = 0;
        for (_, tile) in lists.tiles.iter().enumerate().filter(|&(index, _)| wanted(index)) {
            total += tile.token.len();
            for &token in &tile.token {
                self.next[token as usize + 1] += 1;
            }
        }
        for token in 0..n_tokens {
            self.next[token + 1] += self.next[token];
        }
        self.start.clear();
        self.start.extend_from_slice(&self.next);
        self.most = self.most.max(total);
        if self.latent.len() < total {
            let room = total + total / 8;
            // What there was goes first.
            (self.latent, self.value) = (Vec::new(), Vec::new());
            (self.latent, self.value) = (vec![0; room], vec![0.0; room]);
        }
        for (index, tile) in lists.tiles.iter().enumerate().filter(|&(index, _)| wanted(index)) {
            for (range, &latent) in tile.start.windows(2).zip(&order[index * TILE..]) {
                for entry in range[0] as usize..range[1] as usize {
                    let next = &mut self.next[tile.token[entry] as usize];
                    let to = *next as usize;
                    *next += 1;
                    self.latent[to] = latent;
                    self.value[to] = tile.value[entry];
                }
            }
        }
    }

    /// The entries of one token.
    #[inline]
    pub(super) fn token(&self, token: usize) -> std::ops::Range<usize> {
        self.start[token] as usize..self.start[token + 1] as usize
    }
}
