//! A safetensors file from which single tensors are read, each straight into f32.
//!
//! It is read and not mapped: the pages of a mapping are memory of the process for as long as the mapping is there, and
//! a tensor would be in memory twice while it is copied.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use candle_core::safetensors::Load as _;
use candle_core::{Device, Result, Tensor};
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensorError};

/// The longest header that the format allows, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// Bytes that are read at once.
const PART: usize = 1 << 20;

/// An open file and its header.
pub(crate) struct TensorFile {
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

impl TensorFile {
    /// Reads the header of a file and holds it against the file's length.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => SafeTensorError::HeaderTooSmall,
            _ => error.into(),
        })?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER {
            return Err(SafeTensorError::HeaderTooLarge.into());
        }
        let start = length + 8;
        if start > size {
            return Err(SafeTensorError::InvalidHeaderLength.into());
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        if start + header.data_len() as u64 != size {
            return Err(SafeTensorError::MetadataIncompleteBuffer.into());
        }
        Ok(Self { file, header, start })
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Reads a tensor, and makes f32 of it where candle can.
    pub(crate) fn read(&mut self, name: &str) -> Result<Tensor> {
        let Self { file, header, start } = self;
        let info = header.info(name).ok_or_else(|| SafeTensorError::TensorNotFound(name.to_owned()))?;
        let (first, end) = info.data_offsets;
        file.seek(SeekFrom::Start(*start + first as u64))?;
        let bytes = end - first;
        match info.dtype {
            Dtype::F32 => in_parts(file, bytes, info, |bytes: [u8; 4]| f32::from_le_bytes(bytes)),
            Dtype::F16 => in_parts(file, bytes, info, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => in_parts(file, bytes, info, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F64 => in_parts(file, bytes, info, |bytes| f64::from_le_bytes(bytes) as f32),
            dtype => {
                let mut data = vec![0; bytes];
                file.read_exact(&mut data)?;
                let view = TensorView::new(dtype, info.shape.clone(), &data)?;
                view.load(&Device::Cpu)?.to_dtype(candle_core::DType::F32)
            }
        }
    }
}

/// Reads numbers of N bytes each, and no more of them at once than are soon made f32.
fn in_parts<const N: usize>(
    file: &mut File,
    bytes: usize,
    info: &TensorInfo,
    number: impl Fn([u8; N]) -> f32,
) -> Result<Tensor> {
    let mut values = Vec::with_capacity(bytes / N);
    let mut part = vec![0; PART.min(bytes)];
    let mut left = bytes;
    while left > 0 {
        let part = &mut part[..PART.min(left)];
        file.read_exact(part)?;
        values.extend(part.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)));
        left -= part.len();
    }
    Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, safetensors::save};

    use super::*;

    #[test]
    fn every_type_of_number_is_read_as_candle_reads_it_in_one_part_or_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        for n in [0, 1, 7, PART / 2 + 3] {
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 50.0).collect();
            let tensor = Tensor::from_vec(values, (1, n), &Device::Cpu).unwrap();
            let types = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::U8];
            let tensors = types.iter().map(|dtype| (dtype.as_str(), tensor.to_dtype(*dtype).unwrap()));
            let tensors: std::collections::HashMap<_, _> = tensors.collect();
            save(&tensors, &path).unwrap();
            let mut file = TensorFile::open(&path).unwrap();
            assert_eq!(file.names().len(), types.len());
            for dtype in types {
                let name = dtype.as_str();
                let tensor = &tensors[name];
                let numbers =
                    |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
                assert!(file.contains(name));
                let read = file.read(name).unwrap();
                assert_eq!(read.dtype(), DType::F32, "{name}");
                assert_eq!(numbers(&read), numbers(tensor), "{name}");
            }
            assert!(!file.contains("other"));
            assert!(file.read("other").unwrap_err().to_string().contains("other"));
        }
    }

    #[test]
    fn a_damaged_file_is_refused_whatever_is_left_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let tensor = Tensor::zeros((3, 5), DType::F32, &Device::Cpu).unwrap();
        save(&std::collections::HashMap::from([("a", tensor)]), &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(TensorFile::open(&path).is_err(), "{length} of {} bytes", bytes.len());
        }
        std::fs::write(&path, [0xFF; 64]).unwrap();
        assert!(TensorFile::open(&path).is_err());
    }
}
