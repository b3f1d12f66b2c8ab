//! What stands in for [`screen`](super::screen) on machines whose products of bytes it does not know: nothing is
//! screened.

use super::gather::GatherTile;
use super::isa::Isa;
use super::memory::Buffer;
use super::params::Params;
use super::pool::Pool;

/// Never loaded.
#[derive(Default)]
pub(super) struct Screen {
    scratch: Buffer,
}

impl Screen {
    pub(super) fn new(_isa: Isa, _d_sae: usize) -> Self {
        Self::default()
    }

    pub(super) fn scratch(&mut self) -> &mut Buffer {
        &mut self.scratch
    }

    pub(super) fn load(&mut self, _pool: &Pool, _x: &[f32], _subtract: Option<&[f32]>, _params: &Params) {}

    pub(super) fn loaded(&self) -> Option<&Self> {
        None
    }

    pub(super) fn gather(&self, _tile: &mut GatherTile<'_>) -> bool {
        false
    }
}
