//! What a trial's steps run on: the CPU kernels, or candle tensors on a GPU.
//!
//! GPUs come in with the cargo features `cuda` and `metal`, and are looked for at run time.

use super::run::TrainError;
use crate::{
    kernels::Isa,
    slot::{DeviceKind, SlotId},
    trial::TrainConfig,
};
use candle_core::{Device, DeviceLocation};
use std::panic;

/// What the steps of a run are computed by.
#[derive(Debug, Clone)]
pub enum Backend {
    /// The CPU kernels.
    Kernels,
    /// Candle tensors on a device. Trials get GPUs only; candle's CPU device is there to be tested on.
    Tensors(Device),
}

impl Backend {
    /// Opens the device of a slot.
    ///
    /// # Errors
    /// This build or this machine has no such device.
    pub fn open(slot: &SlotId) -> Result<Self, TrainError> {
        if slot.kind == DeviceKind::Cpu {
            return Ok(Self::Kernels);
        }
        open_gpu(slot.kind, slot.index)
            .map(Self::Tensors)
            .map_err(|problem| TrainError::Unavailable { device: slot.to_string(), problem })
    }

    /// Name of what computes on a kind of device, as recorded with results: `avx512`, `cuda (candle)`.
    pub fn name(kind: DeviceKind) -> String {
        match kind {
            DeviceKind::Cpu => Isa::detect().name().to_owned(),
            kind => format!("{} (candle)", kind.as_str()),
        }
    }
}

/// What of a trial computes on GPUs only, as the subject of a sentence, if anything.
pub fn gpu_only(train: &TrainConfig) -> Option<String> {
    train.options.autocast.then(|| "train.autocast = true (products in bfloat16)".to_owned())
}

/// What came of looking for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It is there and can be opened.
    Found,
    /// It is not there, or cannot be opened: what the driver says, in one line.
    Absent(String),
    /// This build cannot know: it lacks the cargo feature.
    NotBuilt,
}

/// Looks for a device by opening it.
pub fn probe(kind: DeviceKind, index: usize) -> Probe {
    match kind {
        DeviceKind::Cpu => Probe::Found,
        kind if !is_built(kind) => Probe::NotBuilt,
        kind => open_gpu(kind, index).map_or_else(Probe::Absent, |_device| Probe::Found),
    }
}

/// The command that builds support for a kind of device in.
pub fn build_command(kind: DeviceKind) -> String {
    format!("cargo build --release --features {}", kind.as_str())
}

fn is_built(kind: DeviceKind) -> bool {
    match kind {
        DeviceKind::Cpu => true,
        DeviceKind::Cuda => candle_core::utils::cuda_is_available(),
        DeviceKind::Metal => candle_core::utils::metal_is_available(),
    }
}

fn open_gpu(kind: DeviceKind, index: usize) -> Result<Device, String> {
    if !is_built(kind) {
        let (name, command) = (kind.as_str(), build_command(kind));
        return Err(format!("this program was built without {name}; `{command}` builds it in"));
    }
    let open = move || match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => Device::new_cuda(index),
        DeviceKind::Metal => Device::new_metal(index),
    };
    // Where the driver is missing, or Metal has no such device, opening panics.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let opened = panic::catch_unwind(open);
    panic::set_hook(hook);
    match opened {
        // What follows the first line is a backtrace.
        Ok(opened) => opened.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned()),
        Err(payload) => Err(match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(_other) => "there is no such device, or no driver for it".to_owned(),
        }),
    }
}

/// Turns an error of candle's into ours.
pub(super) fn failed(device: &Device) -> impl FnOnce(candle_core::Error) -> TrainError + use<> {
    let device = match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    };
    |source| TrainError::Device { device, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(kind: DeviceKind) -> SlotId {
        SlotId { kind, index: 0 }
    }

    #[test]
    fn a_device_that_is_not_built_in_says_how_to_build_it() {
        assert!(matches!(Backend::open(&slot(DeviceKind::Cpu)), Ok(Backend::Kernels)));
        for kind in [DeviceKind::Cuda, DeviceKind::Metal] {
            if is_built(kind) {
                // Found or not: both say the same, and nothing panics.
                match (probe(kind, 0), Backend::open(&slot(kind))) {
                    (Probe::Found, Ok(Backend::Tensors(_))) => {}
                    (Probe::Absent(problem), Err(error)) => {
                        assert!(!problem.is_empty() && !problem.contains('\n'), "{problem}");
                        assert!(error.to_string().ends_with(&problem), "{error}");
                    }
                    (probe, opened) => panic!("{probe:?} and {opened:?}"),
                }
                continue;
            }
            assert_eq!(probe(kind, 0), Probe::NotBuilt);
            let error = Backend::open(&slot(kind)).unwrap_err().to_string();
            let name = kind.as_str();
            assert_eq!(
                error,
                format!(
                    "`{name}:0` cannot be used: this program was built without {name}; \
                     `cargo build --release --features {name}` builds it in"
                )
            );
        }
    }

    #[test]
    fn the_command_that_builds_a_device_in_is_right() {
        let manifest: toml::Table = include_str!("../../Cargo.toml").parse().unwrap();
        for kind in [DeviceKind::Cuda, DeviceKind::Metal] {
            let command = build_command(kind);
            let (_, feature) = command.rsplit_once("--features ").unwrap();
            let parts = manifest["features"][feature].as_array().unwrap();
            assert!(parts.contains(&format!("candle-core/{}", kind.as_str()).into()), "{command}: {parts:?}");
        }
    }

    #[test]
    fn results_say_what_computed_them() {
        assert_eq!(Backend::name(DeviceKind::Cuda), "cuda (candle)");
        assert_eq!(Backend::name(DeviceKind::Cpu), Isa::detect().name());
    }
}
