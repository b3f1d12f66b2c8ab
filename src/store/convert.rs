//! Between float32 in memory and the number format on disk. Little-endian, round to nearest even.

use crate::trial::StoreDtype;
use half::{bf16, f16, slice::HalfFloatSliceExt};

// Rows are cast to and from bytes as they lie in memory.
const _: () =
    assert!(cfg!(target_endian = "little"), "stores are read and written on little-endian machines");

/// Converts rows to stored bytes, keeping its buffer.
pub(super) struct Encoder {
    dtype: StoreDtype,
    halves: Vec<u16>,
}

impl Encoder {
    pub(super) fn new(dtype: StoreDtype) -> Self {
        Self { dtype, halves: Vec::new() }
    }

    /// The stored form of `values`.
    pub(super) fn encode<'a>(&'a mut self, values: &'a [f32]) -> &'a [u8] {
        if self.dtype != StoreDtype::Float32 {
            self.halves.resize(values.len(), 0);
        }
        match self.dtype {
            StoreDtype::Float32 => return bytemuck::cast_slice(values),
            StoreDtype::Float16 => {
                bytemuck::cast_slice_mut::<u16, f16>(&mut self.halves).convert_from_f32_slice(values);
            }
            StoreDtype::Bfloat16 => {
                bytemuck::cast_slice_mut::<u16, bf16>(&mut self.halves).convert_from_f32_slice(values);
            }
        }
        bytemuck::cast_slice(&self.halves)
    }
}

/// Converts stored bytes, aligned to their number format, to `out.len()` numbers.
pub(super) fn decode(dtype: StoreDtype, stored: &[u8], out: &mut [f32]) {
    match dtype {
        StoreDtype::Float32 => bytemuck::cast_slice_mut(out).copy_from_slice(stored),
        StoreDtype::Float16 => bytemuck::cast_slice::<u8, f16>(stored).convert_to_f32_slice(out),
        StoreDtype::Bfloat16 => bytemuck::cast_slice::<u8, bf16>(stored).convert_to_f32_slice(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(dtype: StoreDtype, values: &[f32]) -> Vec<f32> {
        let mut encoder = Encoder::new(dtype);
        let mut out = vec![0.0; values.len()];
        decode(dtype, encoder.encode(values), &mut out);
        out
    }

    #[test]
    fn float32_is_exact() {
        let values = [1.0, -0.1, f32::MIN_POSITIVE, f32::MAX, 1e-42];
        assert_eq!(round_trip(StoreDtype::Float32, &values), values);
    }

    #[test]
    fn halves_round_as_their_scalars_do() {
        for len in [0, 1, 7, 8, 9, 31, 1000] {
            let values: Vec<f32> =
                (0..len).map(|i| (i as f32 - 3.3) * 1.7e-3 * 1.05_f32.powi(i % 300)).collect();
            let expected: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
            assert_eq!(round_trip(StoreDtype::Float16, &values), expected);
            let expected: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
            assert_eq!(round_trip(StoreDtype::Bfloat16, &values), expected);
        }
    }
}
