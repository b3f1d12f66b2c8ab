//! Active latents of a batch, twice: by latent ([`Lists`], what weight gradients need) and by token
//! ([`Rows`], what decoding needs).

use super::memory::Disjoint;

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
    pub(super) fn clear(&mut self) {
        self.start.clear();
        self.start.push(0);
        self.token.clear();
        self.value.clear();
    }

    /// The entries of one latent of the tile.
    #[inline]
    pub(super) fn latent(&self, place: usize) -> std::ops::Range<usize> {
        match self.start.get(place + 1) {
            Some(&end) => self.start[place] as usize..end as usize,
            None => 0..0,
        }
    }
}

/// Entries of all latents, tile by tile. Position `i` of tile `t` is the latent `order[t * TILE + i]`.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) tiles: Vec<TileLists>,
    /// Number of entries before each tile, and at last of all of them.
    pub(super) base: Vec<u32>,
    /// Gradient of each entry's pre-activation, in the order of the lists.
    pub(super) d_pre: Vec<f32>,
}

impl Lists {
    pub(super) fn new(d_sae: usize) -> Self {
        let n_tiles = d_sae.div_ceil(TILE);
        let mut tiles = Vec::with_capacity(n_tiles);
        tiles.resize_with(n_tiles, TileLists::default);
        Self { tiles, base: Vec::with_capacity(n_tiles + 1), d_pre: Vec::new() }
    }

    /// Counts the entries after the tiles were filled. Returns how many there are.
    pub(super) fn count(&mut self) -> usize {
        let mut total = 0;
        self.base.clear();
        self.base.push(0);
        for tile in &self.tiles {
            total += tile.token.len();
            self.base
                .push(u32::try_from(total).expect("invariant: a workspace has less than 2^32 activations"));
        }
        total
    }

    /// Makes room for one gradient per entry.
    pub(super) fn reserve_gradients(&mut self) {
        let total = self.base.last().map_or(0, |&total| total as usize);
        if self.d_pre.len() < total {
            self.d_pre.resize(total, 0.0);
        }
    }
}

/// The same entries by token, in the order of the lists.
#[derive(Default)]
pub(super) struct Rows {
    /// Where each token's entries begin, and where the last ones end.
    pub(super) start: Vec<u32>,
    pub(super) latent: Vec<u32>,
    pub(super) value: Vec<f32>,
    /// Place of each entry in the order of the lists.
    pub(super) slot: Vec<u32>,
    next: Vec<u32>,
}

impl Rows {
    /// Transposes the entries of some tiles.
    pub(super) fn fill(
        &mut self,
        lists: &Lists,
        tiles: std::ops::Range<usize>,
        order: &[u32],
        n_tokens: usize,
    ) {
        self.next.clear();
        self.next.resize(n_tokens + 1, 0);
        let mut total = 0;
        for tile in &lists.tiles[tiles.clone()] {
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
        if self.latent.len() < total {
            self.latent.resize(total, 0);
            self.value.resize(total, 0.0);
            self.slot.resize(total, 0);
        }
        let mut slot = lists.base.get(tiles.start).copied().unwrap_or(0);
        for index in tiles {
            let tile = &lists.tiles[index];
            for (place, range) in tile.start.windows(2).enumerate() {
                let latent = order[index * TILE + place];
                for entry in range[0] as usize..range[1] as usize {
                    let next = &mut self.next[tile.token[entry] as usize];
                    let to = *next as usize;
                    *next += 1;
                    self.latent[to] = latent;
                    self.value[to] = tile.value[entry];
                    self.slot[to] = slot;
                    slot += 1;
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

/// A way for tile tasks to fill their own lists at once.
pub(super) fn shared_tiles(lists: &mut Lists) -> Disjoint<'_, TileLists> {
    Disjoint::new(&mut lists.tiles)
}
