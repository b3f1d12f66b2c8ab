//! Reads the tensors that a configuration calls for, in f32, from whatever format they are stored in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::pickle::PthTensors;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use super::files::{Layout, WeightFiles};
use super::gguf::GgufFile;
use super::modules::{Leaf, Module, Parameters, slots};
use super::{DecoderConfig, Family, ModelError};

/// Loads all parameters of the model at `path`.
pub(crate) fn load(path: &Path, cfg: &DecoderConfig) -> Result<Parameters, ModelError> {
    let mut store = Store::open(path, cfg.family)?;
    let slots = slots(cfg);
    let names: Vec<_> = slots.iter().map(|slot| (slot, store.name(slot.module, slot.leaf))).collect();
    let missing: Vec<String> =
        names.iter().filter(|(_, name)| !store.contains(name)).map(|(_, name)| name.clone()).collect();
    if !missing.is_empty() {
        return Err(ModelError::MissingTensors { path: path.to_owned(), names: missing });
    }
    let mut parameters = BTreeMap::new();
    for (slot, name) in names {
        let tensor = store.read(&name).map_err(ModelError::weights(path))?;
        if tensor.dims() != slot.shape {
            return Err(ModelError::TensorShape {
                path: path.to_owned(),
                name,
                found: tensor.dims().to_vec(),
                expected: slot.shape.clone(),
            });
        }
        let tensor = match &store {
            Store::Gguf(file) => file.undo_permutation(tensor, slot.module, cfg)?,
            Store::Safetensors { .. } | Store::Pickle { .. } => tensor,
        };
        parameters.insert((slot.module, slot.leaf), tensor);
    }
    Ok(Parameters(parameters))
}

/// Where tensors are found by name.
enum Store {
    Safetensors { file: MmapedSafetensors, names: Names },
    Pickle { files: Vec<PthTensors>, names: Names },
    Gguf(Box<GgufFile>),
}

/// What a checkpoint calls its tensors.
struct Names {
    family: Family,
    stored: BTreeSet<String>,
}

impl Store {
    fn open(path: &Path, family: Family) -> Result<Self, ModelError> {
        if let Layout::Gguf { file, .. } = Layout::of(path)? {
            return Ok(Self::Gguf(Box::new(GgufFile::open(&file)?)));
        }
        match WeightFiles::find(path)? {
            WeightFiles::Safetensors(paths) => {
                // Each file is tried alone first, so that a damaged shard is named.
                for path in &paths {
                    map(std::slice::from_ref(path)).map_err(ModelError::weights(path))?;
                }
                let file = map(&paths).map_err(ModelError::weights(path))?;
                let stored = file.tensors().into_iter().map(|(name, _)| name).collect();
                Ok(Self::Safetensors { file, names: Names { family, stored } })
            }
            WeightFiles::Pickle(paths) => {
                let open = |path: &PathBuf| PthTensors::new(path, None).map_err(ModelError::weights(path));
                let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
                let stored = files.iter().flat_map(|file| file.tensor_infos().keys().cloned()).collect();
                Ok(Self::Pickle { files, names: Names { family, stored } })
            }
        }
    }

    fn name(&self, module: Module, leaf: Leaf) -> String {
        match self {
            Self::Safetensors { names, .. } | Self::Pickle { names, .. } => names.of(module, leaf),
            Self::Gguf(_) => format!("{}.{}", GgufFile::module_name(module), leaf.name()),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Safetensors { names, .. } | Self::Pickle { names, .. } => names.stored.contains(name),
            Self::Gguf(file) => file.contains(name),
        }
    }

    fn read(&mut self, name: &str) -> candle_core::Result<Tensor> {
        let tensor = match self {
            Self::Safetensors { file, .. } => file.load(name, &Device::Cpu)?,
            Self::Pickle { files, .. } => {
                let found = files.iter().find(|file| file.tensor_infos().contains_key(name));
                let file = found.expect("invariant: the name is one of those stored");
                file.get(name)?.expect("invariant: the name is one of those stored")
            }
            Self::Gguf(file) => return file.read(name),
        };
        tensor.to_dtype(DType::F32)?.contiguous()
    }
}

impl Names {
    /// The stored name of a tensor; a checkpoint of the bare decoder lacks the first part of it.
    fn of(&self, module: Module, leaf: Leaf) -> String {
        let full = format!("{}.{}", self.family.module_name(module), leaf.name());
        match full.split_once('.') {
            Some((_, bare)) if !self.stored.contains(&full) && self.stored.contains(bare) => bare.to_owned(),
            _ => full,
        }
    }
}

fn map(paths: &[PathBuf]) -> candle_core::Result<MmapedSafetensors> {
    // SAFETY: the files are only read, and every tensor is copied out of the mapping before this module
    // returns; that nobody truncates a model's file in these moments is what any reader of it relies on.
    unsafe { MmapedSafetensors::multi(paths) }
}
