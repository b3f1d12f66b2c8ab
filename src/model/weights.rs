//! Reads the tensors that a configuration calls for, in f32, from whatever format they are stored in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::pickle::PthTensors;
use candle_core::{DType, Tensor};

use super::files::{Layout, WeightFiles};
use super::gguf::GgufFile;
use super::modules::{Leaf, Module, Parameters, slots};
use super::tensor_file::TensorFile;
use super::{DecoderConfig, Family, HookPoint, ModelError};

/// Loads the parameters of the model at `path` that a run from `hook` on uses. No others are read.
pub(crate) fn load(path: &Path, cfg: &DecoderConfig, hook: &HookPoint) -> Result<Parameters, ModelError> {
    let mut store = Store::open(path, cfg.family)?;
    let mut slots = slots(cfg);
    slots.retain(|slot| slot.module.is_used_from(hook, cfg));
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
    Safetensors { files: Vec<TensorFile>, names: Names },
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
                let open = |path: &PathBuf| TensorFile::open(path).map_err(ModelError::weights(path));
                let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
                let stored = files.iter().flat_map(TensorFile::names).collect();
                Ok(Self::Safetensors { files, names: Names { family, stored } })
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
            Self::Safetensors { files, .. } => {
                let found = files.iter_mut().find(|file| file.contains(name));
                found.expect("invariant: the name is one of those stored").read(name)?
            }
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
