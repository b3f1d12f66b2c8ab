//! Activations that somebody else computed: safetensors and NumPy files, mapped.

use super::{RowSource, SourceError, error::Difference, npy};
use crate::trial::FilesConfig;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

/// Number formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    F16,
    Bf16,
    F32,
    F64,
}

impl Number {
    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Appends little-endian numbers, wherever they lie in memory.
    fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Self::Bf16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F64 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
        }
    }
}

/// One file's array.
#[derive(Debug)]
struct RowFile {
    path: PathBuf,
    map: Mmap,
    /// Where in the file its numbers are.
    data: Range<usize>,
    number: Number,
    /// `[rows, d]` or `[documents, rows, d]`.
    shape: Vec<usize>,
}

impl RowFile {
    fn open(path: &Path, tensor: &str) -> Result<Self, SourceError> {
        let io = |error| SourceError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the file is only read. Should somebody change it meanwhile, numbers change, as with any
        // reading; should somebody cut it short, the process ends with a signal.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (number, shape, data) = match Format::of(path) {
            Some(Format::Npy) => numpy_array(path, &map)?,
            Some(Format::Safetensors) => tensor_of(path, &map, tensor)?,
            None => return Err(SourceError::UnknownFormat(path.to_owned())),
        };
        if !matches!(shape.len(), 2 | 3) || shape.contains(&0) {
            return Err(SourceError::Rank { path: path.to_owned(), shape });
        }
        Ok(Self { path: path.to_owned(), map, data, number, shape })
    }

    fn width(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Rows of a document; a row by itself where there are none.
    fn rows_per_unit(&self) -> usize {
        if self.shape.len() == 3 { self.shape[1] } else { 1 }
    }

    fn rows(&self) -> usize {
        self.shape[0] * self.rows_per_unit()
    }

    fn append_row(&self, row: usize, out: &mut Vec<f32>) -> Result<(), SourceError> {
        let row_bytes = self.width() * self.number.bytes();
        let (from, start) = (self.data.start + row * row_bytes, out.len());
        self.number.decode(&self.map[from..from + row_bytes], out);
        match out[start..].iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(dimension) => {
                let value = out[start + dimension];
                Err(SourceError::NotFinite { path: self.path.clone(), row, dimension, value })
            }
        }
    }
}

/// How a file is read, told by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Npy,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "npy" => Some(Self::Npy),
            "safetensors" => Some(Self::Safetensors),
            _ => None,
        }
    }
}

type Array = (Number, Vec<usize>, Range<usize>);

fn numpy_array(path: &Path, bytes: &[u8]) -> Result<Array, SourceError> {
    let malformed = |reason: String| SourceError::Malformed { path: path.to_owned(), reason };
    let header = npy::parse(bytes).map_err(malformed)?;
    let number = match header.descr.as_str() {
        "<f2" => Number::F16,
        "<f4" => Number::F32,
        "<f8" => Number::F64,
        other => {
            return Err(SourceError::NumberFormat {
                path: path.to_owned(),
                found: format!("numbers of format '{other}'"),
                expected: "'<f2', '<f4' or '<f8' (float16, float32, float64, little-endian)",
            });
        }
    };
    if header.fortran_order {
        let reason = "its array is in Fortran order; save numpy.ascontiguousarray(x)".to_owned();
        return Err(malformed(reason));
    }
    let expected = header
        .shape
        .iter()
        .try_fold(number.bytes(), |bytes, size| bytes.checked_mul(*size))
        .ok_or_else(|| malformed(format!("its shape {:?} is beyond any memory", header.shape)))?;
    let found = bytes.len() - header.data_start;
    if found != expected {
        let shape = header.shape;
        return Err(malformed(format!(
            "it has {found} bytes of numbers, its shape {shape:?} needs {expected}"
        )));
    }
    Ok((number, header.shape, header.data_start..bytes.len()))
}

fn tensor_of(path: &Path, bytes: &[u8], wanted: &str) -> Result<Array, SourceError> {
    let malformed = |reason: String| SourceError::Malformed { path: path.to_owned(), reason };
    let file = SafeTensors::deserialize(bytes).map_err(|error| malformed(error.to_string()))?;
    let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
    names.sort();
    let name = match (wanted, names.as_slice()) {
        ("", [only]) => only.clone(),
        ("", []) => return Err(malformed("it holds no tensor".to_owned())),
        ("", _) => return Err(SourceError::WhichTensor { path: path.to_owned(), names }),
        (wanted, _) if names.iter().any(|name| name == wanted) => wanted.to_owned(),
        (wanted, _) => {
            return Err(SourceError::MissingTensor {
                path: path.to_owned(),
                tensor: wanted.to_owned(),
                names,
            });
        }
    };
    let tensor = file.tensor(&name).map_err(|error| malformed(error.to_string()))?;
    let number = match tensor.dtype() {
        Dtype::F16 => Number::F16,
        Dtype::BF16 => Number::Bf16,
        Dtype::F32 => Number::F32,
        Dtype::F64 => Number::F64,
        other => {
            return Err(SourceError::NumberFormat {
                path: path.to_owned(),
                found: format!("{other:?} in tensor `{name}`"),
                expected: "F16, BF16, F32 or F64",
            });
        }
    };
    let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
    Ok((number, tensor.shape().to_vec(), start..start + tensor.data().len()))
}

/// Rows of several files, one after the other, the last of them held out.
#[derive(Debug)]
pub struct RowFiles {
    files: Vec<RowFile>,
    /// Number of the first row of each file, and after the last one.
    starts: Vec<usize>,
    train_rows: usize,
    eval: Range<usize>,
}

impl RowFiles {
    /// Opens files in the order in which they are given; at most `most_train_rows` rows are trained on, the
    /// first ones.
    ///
    /// # Errors
    /// When a file cannot be read, or they do not go together.
    pub fn open(files: &[PathBuf], config: &FilesConfig, most_train_rows: u64) -> Result<Self, SourceError> {
        let files: Vec<RowFile> =
            files.iter().map(|path| RowFile::open(path, &config.tensor)).collect::<Result<_, _>>()?;
        let Some(first) = files.first() else { return Err(SourceError::TooFew { units: 0, what: "rows" }) };
        for file in &files {
            let what = if file.shape.len() != first.shape.len() {
                "one holds rows, the other documents of rows"
            } else if file.width() != first.width() {
                "the widths of their rows differ"
            } else {
                continue;
            };
            return Err(SourceError::Different(Box::new(Difference {
                what,
                path: file.path.clone(),
                shape: file.shape.clone(),
                other: first.path.clone(),
                other_shape: first.shape.clone(),
            })));
        }
        let units: usize = files.iter().map(|file| file.shape[0]).sum();
        if units < 2 {
            let what = if first.shape.len() == 3 { "documents" } else { "rows" };
            return Err(SourceError::TooFew { units, what });
        }
        let held_out = ((units as f64 * config.eval_fraction).ceil() as usize).clamp(1, units - 1);
        let mut starts = vec![0];
        let (mut n_rows, mut n_kept, mut first_held_out) = (0, units - held_out, 0);
        for file in &files {
            first_held_out += n_kept.min(file.shape[0]) * file.rows_per_unit();
            n_kept -= n_kept.min(file.shape[0]);
            n_rows += file.rows();
            starts.push(n_rows);
        }
        let train_rows = first_held_out.min(usize::try_from(most_train_rows).unwrap_or(usize::MAX));
        let eval = first_held_out..n_rows.min(first_held_out.saturating_add(config.eval_rows));
        Ok(Self { files, starts, train_rows, eval })
    }

    fn append(&self, rows: impl Iterator<Item = usize>, out: &mut Vec<f32>) -> Result<(), SourceError> {
        for row in rows {
            let at = self.starts.partition_point(|start| *start <= row) - 1;
            self.files[at].append_row(row - self.starts[at], out)?;
        }
        Ok(())
    }
}

impl RowSource for RowFiles {
    fn width(&self) -> usize {
        self.files[0].width()
    }

    fn train_rows(&self) -> usize {
        self.train_rows
    }

    fn eval_rows(&self) -> usize {
        self.eval.len()
    }

    fn append_train(&self, rows: &[usize], out: &mut Vec<f32>) -> Result<(), SourceError> {
        self.append(rows.iter().copied(), out)
    }

    fn append_eval(&self, out: &mut Vec<f32>) -> Result<(), SourceError> {
        self.append(self.eval.clone(), out)
    }
}

/// The files that paths stand for: themselves, or those directly inside a folder, sorted by name.
///
/// # Errors
/// When there is nothing at a path, or nothing that can be read.
pub fn resolve(paths: &[PathBuf]) -> Result<Vec<PathBuf>, SourceError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.exists() {
            return Err(SourceError::NotFound(path.clone()));
        }
        if !path.is_dir() {
            if Format::of(path).is_none() {
                return Err(SourceError::UnknownFormat(path.clone()));
            }
            files.push(path.clone());
            continue;
        }
        let io = |error| SourceError::Io { path: path.clone(), error };
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            let entry = entry.map_err(io)?.path();
            let is_hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if !is_hidden && entry.is_file() && Format::of(&entry).is_some() {
                inside.push(entry);
            }
        }
        if inside.is_empty() {
            return Err(SourceError::EmptyFolder(path.clone()));
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}
