//! An SAE on disk, in the format that SAELens 6 writes for inference: `cfg.json`,
//! `sae_weights.safetensors`, and optionally `sparsity.safetensors`.
//!
//! The encoder lies there as (D, F); everything else is as in memory. Equal SAEs give equal bytes.

use super::{
    config_json,
    config_read::{self, ConfigProblem, Origin, ReadConfig},
    folder,
    inference::Sae,
};
use crate::{
    kernels::Params,
    trial::{Architecture, SaeConfig},
};
use safetensors::{Dtype, SafeTensors, View, tensor::TensorView};
use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

pub use super::config_json::SaveInfo;

/// Name of the settings' file.
pub const CONFIG_FILE: &str = "cfg.json";
/// Name of the weights' file.
pub const WEIGHTS_FILE: &str = "sae_weights.safetensors";
/// Name of the file with log10 firing frequencies.
pub const SPARSITY_FILE: &str = "sparsity.safetensors";

/// An SAE folder that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SaeError {
    /// The file system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The settings cannot be used.
    #[error("{path} {problem}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: ConfigProblem,
    },
    /// A tensor file is damaged.
    #[error("{path}: {source}", path = path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// The tensors are not those of the architecture.
    #[error("{path} holds the tensors {found:?}, expected {expected:?}", path = path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Sorted names in the file.
        found: Vec<String>,
        /// Sorted names that should be there.
        expected: Vec<&'static str>,
    },
    /// A tensor has the wrong shape.
    #[error("{path}: `{tensor}` has shape {found:?}, but the settings give {expected:?}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor's numbers are of a type that is not read.
    #[error("{path}: `{tensor}` is {found:?}, expected F32, F64, F16 or BF16", path = path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type in the file.
        found: Dtype,
    },
}

impl From<io::Error> for SaeError {
    fn from(source: io::Error) -> Self {
        Self::Io { path: PathBuf::new(), source }
    }
}

/// Writes `sae` to the folder `dir`, which is replaced as a whole. `sparsity` (F) is log10 of the firing
/// frequency of each latent plus 1e-10.
pub fn save(dir: &Path, sae: &Sae, sparsity: Option<&[f32]>, info: &SaveInfo) -> Result<(), SaeError> {
    let (f, d) = (sae.cfg.d_sae, sae.d_in);
    let write = |folder: &Path| {
        let params = &sae.params;
        let w_enc = transposed(&params.w_enc, f, d);
        let mut tensors = vec![
            ("W_dec", F32View { shape: vec![f, d], data: &params.w_dec }),
            ("W_enc", F32View { shape: vec![d, f], data: &w_enc }),
            ("b_dec", F32View { shape: vec![d], data: &params.b_dec }),
        ];
        let mut of_latents = vec![(bias_name(&sae.cfg), &params.b_enc)];
        match sae.cfg.architecture {
            Architecture::JumpRelu { .. } => of_latents.push(("threshold", &params.threshold)),
            Architecture::Gated { .. } => {
                of_latents.extend([("b_mag", &params.b_mag), ("r_mag", &params.r_mag)]);
            }
            _ => {}
        }
        tensors.extend(of_latents.into_iter().map(|(name, data)| (name, F32View { shape: vec![f], data })));
        write_tensors(&folder.join(WEIGHTS_FILE), tensors)?;
        if let Some(sparsity) = sparsity {
            let view = F32View { shape: vec![f], data: sparsity };
            write_tensors(&folder.join(SPARSITY_FILE), [("sparsity", view)])?;
        }
        let path = folder.join(CONFIG_FILE);
        fs::write(&path, config_json::write(sae, info)).map_err(|source| SaeError::Io { path, source })
    };
    replace(dir, write)
}

/// Replaces the folder `dir` as a whole by what `write` puts into the new folder it is given.
pub(super) fn replace(dir: &Path, write: impl FnOnce(&Path) -> Result<(), SaeError>) -> Result<(), SaeError> {
    folder::replace(dir, write).map_err(|err| match err {
        SaeError::Io { path, source } if path.as_os_str().is_empty() => {
            SaeError::Io { path: dir.to_owned(), source }
        }
        other => other,
    })
}

/// Reads an SAE that [`save`] or SAELens wrote, of any architecture but those that only training has.
pub fn load(dir: &Path) -> Result<Sae, SaeError> {
    load_with_origin(dir).map(|(sae, _)| sae)
}

/// As [`load`], with where the SAE says it was trained.
pub fn load_with_origin(dir: &Path) -> Result<(Sae, Origin), SaeError> {
    let path = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(|source| SaeError::Io { path: path.clone(), source })?;
    let ReadConfig { cfg, d_in, is_old, origin } =
        config_read::read(&text).map_err(|problem| SaeError::Config { path, problem })?;
    let (f, d) = (cfg.d_sae, d_in);

    let file = TensorFile::read(dir.join(WEIGHTS_FILE))?;
    let bias = bias_name(&cfg);
    let own: &[&'static str] = match cfg.architecture {
        Architecture::JumpRelu { .. } => &["threshold"],
        Architecture::Gated { .. } => &["b_mag", "r_mag"],
        _ => &[],
    };
    let mut expected = [&["W_dec", "W_enc", "b_dec", bias], own].concat();
    if is_old && file.is_one("scaling_factor")? {
        // A factor that never came to be used.
        expected.push("scaling_factor");
    }
    expected.sort_unstable();
    let tensors = file.tensors(&expected)?;
    let get = |name: &str, shape: &[usize]| file.floats(&tensors, name, shape);
    let own_of_latents = |name| if own.contains(&name) { get(name, &[f]) } else { Ok(Vec::new()) };
    let params = Params {
        w_enc: transposed(&get("W_enc", &[d, f])?, d, f),
        w_dec: get("W_dec", &[f, d])?,
        b_enc: get(bias, &[f])?,
        b_dec: get("b_dec", &[d])?,
        threshold: own_of_latents("threshold")?,
        r_mag: own_of_latents("r_mag")?,
        b_mag: own_of_latents("b_mag")?,
    };
    Ok((Sae { cfg, d_in, params }, origin))
}

/// BLAKE3 of an SAE folder's weights, 64 hexadecimal digits.
pub fn weights_blake3(dir: &Path) -> Result<String, SaeError> {
    let path = dir.join(WEIGHTS_FILE);
    let mut hasher = blake3::Hasher::new();
    match hasher.update_mmap(&path) {
        Ok(hasher) => Ok(hasher.finalize().to_hex().to_string()),
        Err(source) => Err(SaeError::Io { path, source }),
    }
}

/// What SAELens calls the encoder's bias.
fn bias_name(cfg: &SaeConfig) -> &'static str {
    if matches!(cfg.architecture, Architecture::Gated { .. }) { "b_gate" } else { "b_enc" }
}

/// Reads the log10 firing frequencies of an SAE folder of `d_sae` latents, if it has them.
pub fn load_sparsity(dir: &Path, d_sae: usize) -> Result<Option<Vec<f32>>, SaeError> {
    let path = dir.join(SPARSITY_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let file = TensorFile::read(path)?;
    let tensors = file.tensors(&["sparsity"])?;
    file.floats(&tensors, "sparsity", &[d_sae]).map(Some)
}

/// The transpose of `matrix` (rows, cols), in blocks that stay in cache.
pub(super) fn transposed(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let mut out = vec![0.0; matrix.len()];
    for row_start in (0..rows).step_by(BLOCK) {
        for col_start in (0..cols).step_by(BLOCK) {
            for row in row_start..(row_start + BLOCK).min(rows) {
                for col in col_start..(col_start + BLOCK).min(cols) {
                    out[col * rows + row] = matrix[row * cols + col];
                }
            }
        }
    }
    out
}

/// A borrowed f32 tensor to be written.
struct F32View<'a> {
    shape: Vec<usize>,
    data: &'a [f32],
}

impl View for F32View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // The format is little-endian, as is every machine this program is built for.
        bytemuck::cast_slice(self.data).into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.data)
    }
}

fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'static str, F32View<'a>)>,
) -> Result<(), SaeError> {
    safetensors::serialize_to_file(tensors, None, path)
        .map_err(|source| SaeError::Safetensors { path: path.to_owned(), source })
}

/// A tensor file in memory with its name for messages.
struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    fn read(path: PathBuf) -> Result<Self, SaeError> {
        match fs::read(&path) {
            Ok(bytes) => Ok(Self { path, bytes }),
            Err(source) => Err(SaeError::Io { path, source }),
        }
    }

    /// The tensors, which must be exactly those of the sorted `expected`.
    fn tensors(&self, expected: &[&'static str]) -> Result<SafeTensors<'_>, SaeError> {
        let tensors = SafeTensors::deserialize(&self.bytes)
            .map_err(|source| SaeError::Safetensors { path: self.path.clone(), source })?;
        let mut found: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
        found.sort_unstable();
        if found != expected {
            return Err(SaeError::Tensors { path: self.path.clone(), found, expected: expected.to_vec() });
        }
        Ok(tensors)
    }

    /// Whether a tensor is there and holds nothing but ones.
    fn is_one(&self, name: &str) -> Result<bool, SaeError> {
        let tensors = SafeTensors::deserialize(&self.bytes)
            .map_err(|source| SaeError::Safetensors { path: self.path.clone(), source })?;
        let values = tensors.tensor(name).ok().and_then(|tensor| floats(&tensor));
        Ok(values.is_some_and(|values| values.iter().all(|value| *value == 1.0)))
    }

    fn floats(&self, tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, SaeError> {
        let tensor = tensors
            .tensor(name)
            .map_err(|source| SaeError::Safetensors { path: self.path.clone(), source })?;
        if tensor.shape() != shape {
            return Err(SaeError::Shape {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: tensor.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        floats(&tensor).ok_or_else(|| SaeError::Dtype {
            path: self.path.clone(),
            tensor: name.to_owned(),
            found: tensor.dtype(),
        })
    }
}

fn floats(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = tensor.data();
    let pair = |b: &[u8]| [b[0], b[1]];
    Some(match tensor.dtype() {
        Dtype::F32 => bytemuck::pod_collect_to_vec(data),
        Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(data).into_iter().map(|x| x as f32).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes(pair(b)).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes(pair(b)).to_f32()).collect(),
        _ => return None,
    })
}
