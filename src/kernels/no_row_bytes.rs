//! What stands in for [`row_bytes`](super::row_bytes) on machines whose products of bytes it does not know.

use super::isa::Isa;
use super::pool::Pool;

/// Never loaded.
#[derive(Default)]
pub(super) struct RowBytes;

/// Never used.
#[derive(Default)]
pub(super) struct TokenBytes;

impl RowBytes {
    pub(super) fn can_load(_isa: Isa, _d_in: usize) -> bool {
        false
    }

    pub(super) fn load(&mut self, _pool: &Pool, _x: &[f32], _w_dec: &[f32], _d_in: usize) {}

    pub(super) fn centers<'a>(
        &self,
        _tokens: impl Iterator<Item = &'a [f32]>,
        _space: &mut TokenBytes,
        _out: &mut [f32],
        _columns: usize,
    ) {
    }

    pub(super) fn candidates(
        &self,
        _space: &TokenBytes,
        _place: usize,
        _centers: &[f32],
        _candidates: &mut Vec<u32>,
    ) {
    }
}
