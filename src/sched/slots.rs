//! How the machine is cut into slots.
//!
//! CPU: the cores are shared out among trials that run side by side, one core each as long as there are
//! trials enough. Two one-thread trials get more done than one two-thread trial after another: nothing is
//! lost to synchronisation, and the serial parts of one overlap with the parallel parts of the other.

use crate::slot::{DeviceKind, Slot, SlotId};

/// What is asked of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRequest<'a> {
    /// Kinds of devices that may be used; empty means whatever trials can run on.
    pub kinds: &'a [DeviceKind],
    /// CPU slots; 0 leaves it to us.
    pub cpu_slots: usize,
    /// Threads of each CPU trial; 0 leaves it to us.
    pub threads_per_trial: usize,
    /// Cores of this machine.
    pub cores: usize,
    /// Trials to run.
    pub n_trials: usize,
}

/// Slots, and what the user should know about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlan {
    /// At least one.
    pub slots: Vec<Slot>,
    /// A remark, when the request asks for more than the machine has.
    pub note: Option<String>,
}

/// A request that cannot be met.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotError {
    /// Trials do not run on this kind of device.
    #[error(
        "`devices.use` names `{}`, but trials of this version train on the CPU only ({detail}); \
         write `use = [\"cpu\"]` or leave it out", kind.as_str()
    )]
    CpuOnly {
        /// The kind asked for.
        kind: DeviceKind,
        /// Whether such a device is there at all.
        detail: &'static str,
    },
}

/// Finds the slots for a run.
///
/// # Errors
/// A device kind that trials cannot run on. There is no silent fallback to the CPU.
pub fn find_slots(request: &SlotRequest<'_>) -> Result<SlotPlan, SlotError> {
    if let Some(&kind) = request.kinds.iter().find(|&&kind| kind != DeviceKind::Cpu) {
        let detail = if is_visible(kind) {
            "this build sees such a device, but cannot train on it yet"
        } else {
            "nor does this build see such a device"
        };
        return Err(SlotError::CpuOnly { kind, detail });
    }
    let cores = request.cores.max(1);
    let most = request.n_trials.max(1);
    let n_slots = match (request.cpu_slots, request.threads_per_trial) {
        (0, 0) => cores,
        (0, threads) => (cores / threads).max(1),
        (slots, _) => slots,
    }
    .min(most);
    let slots: Vec<Slot> = (0..n_slots)
        .map(|index| {
            let threads = match request.threads_per_trial {
                // The first slots take the remainder.
                0 => (cores / n_slots + usize::from(index < cores % n_slots)).max(1),
                threads => threads,
            };
            Slot { id: SlotId { kind: DeviceKind::Cpu, index }, threads }
        })
        .collect();
    let threads: usize = slots.iter().map(|slot| slot.threads).sum();
    let note = (threads > cores).then(|| {
        format!("{n_slots} slots with {threads} threads in all share {cores} cores; fewer would be faster")
    });
    Ok(SlotPlan { slots, note })
}

fn is_visible(kind: DeviceKind) -> bool {
    match kind {
        DeviceKind::Cpu => true,
        DeviceKind::Cuda => {
            candle_core::utils::cuda_is_available() && candle_core::Device::new_cuda(0).is_ok()
        }
        DeviceKind::Metal => {
            candle_core::utils::metal_is_available() && candle_core::Device::new_metal(0).is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(cores: usize, n_trials: usize, cpu_slots: usize, threads_per_trial: usize) -> Vec<usize> {
        let request = SlotRequest { kinds: &[], cpu_slots, threads_per_trial, cores, n_trials };
        find_slots(&request).unwrap().slots.iter().map(|slot| slot.threads).collect()
    }

    #[test]
    fn cores_are_shared_out() {
        assert_eq!(threads(2, 9, 0, 0), [1, 1]);
        assert_eq!(threads(8, 3, 0, 0), [3, 3, 2]);
        assert_eq!(threads(2, 1, 0, 0), [2]);
        assert_eq!(threads(7, 9, 2, 0), [4, 3]);
        assert_eq!(threads(8, 9, 0, 3), [3, 3]);
        assert_eq!(threads(2, 9, 0, 4), [4]);
        assert_eq!(threads(1, 0, 0, 0), [1]);
    }

    #[test]
    fn asking_for_too_much_is_remarked_on() {
        let request = SlotRequest { kinds: &[], cpu_slots: 3, threads_per_trial: 0, cores: 2, n_trials: 5 };
        let plan = find_slots(&request).unwrap();
        assert_eq!(plan.slots.len(), 3);
        assert!(plan.note.unwrap().contains("3 slots with 3 threads in all share 2 cores"));
    }

    #[test]
    fn a_gpu_is_refused_not_replaced() {
        let kinds = [DeviceKind::Cpu, DeviceKind::Cuda];
        let request =
            SlotRequest { kinds: &kinds, cpu_slots: 0, threads_per_trial: 0, cores: 2, n_trials: 5 };
        let error = find_slots(&request).unwrap_err().to_string();
        assert!(error.contains("`cuda`") && error.contains("CPU only"), "{error}");
    }
}
