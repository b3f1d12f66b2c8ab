//! How the machine is cut into slots.
//!
//! CPU: the cores are shared out among trials that run side by side, one core each as long as there are
//! trials enough. Two one-thread trials get more done than one two-thread trial after another: nothing is
//! lost to synchronisation, and the serial parts of one overlap with the parallel parts of the other.
//!
//! GPUs: one slot each. Its trial evaluates on the CPU, so every slot has its share of the cores.

use crate::{
    slot::{DeviceKind, Slot, SlotId},
    train::{Probe, build_command},
};

/// What is asked of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRequest<'a> {
    /// Kinds of devices that may be used; empty means GPUs if there are any that can run the trials, else the
    /// CPU.
    pub kinds: &'a [DeviceKind],
    /// CPU slots; 0 leaves it to us.
    pub cpu_slots: usize,
    /// Threads of each trial; 0 leaves it to us.
    pub threads_per_trial: usize,
    /// Cores of this machine.
    pub cores: usize,
    /// Trials to run.
    pub n_trials: usize,
    /// What of the trials computes on GPUs only, as the subject of a sentence, if anything.
    pub gpu_only: Option<&'a str>,
}

/// Slots, and what the user should know about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlan {
    /// At least one.
    pub slots: Vec<Slot>,
    /// A remark, when the request and the machine do not go together well.
    pub note: Option<String>,
}

/// A request that cannot be met.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotError {
    /// No such device.
    #[error(
        "`devices.use` names `{}`, but there is no such device: found {found}; {help}", kind.as_str()
    )]
    Missing {
        /// The kind asked for.
        kind: DeviceKind,
        /// The devices that are there.
        found: String,
        /// What can be done.
        help: String,
    },
    /// A trial that computes on GPUs only, and slots on the CPU.
    #[error(
        "{what} is for GPUs only, and trials would run on the CPU; \
         set it to false, or `devices.use` to kinds of GPUs that this machine has"
    )]
    GpuOnly {
        /// What it is about the trial.
        what: String,
    },
}

const GPU_KINDS: [DeviceKind; 2] = [DeviceKind::Cuda, DeviceKind::Metal];

/// No machine has more GPUs of a kind.
const MAX_GPUS: usize = 64;

/// Finds the slots for a run. `probe` looks for a device by kind and number; GPUs come first.
///
/// # Errors
/// A kind of device that is not there, or that trials cannot run on. There is no silent fallback to the CPU.
pub fn find_slots(
    request: &SlotRequest<'_>,
    probe: &dyn Fn(DeviceKind, usize) -> Probe,
) -> Result<SlotPlan, SlotError> {
    let mut notes = Vec::new();
    let (cores, most) = (request.cores.max(1), request.n_trials.max(1));
    let mut gpus = gpus(request, probe, &mut notes)?;
    gpus.truncate(most);
    let n_cpu = if gpus.is_empty() || request.kinds.contains(&DeviceKind::Cpu) {
        n_cpu_slots(request, cores, gpus.len()).min(most - gpus.len())
    } else {
        if request.cpu_slots > 0 {
            notes.push(format!(
                "`devices.cpu_slots` has no effect: trials run on {}; with `use = [\"cpu\"]` they would not",
                count_of(gpus.len(), "GPU")
            ));
        }
        0
    };
    if let (Some(what), true) = (request.gpu_only, n_cpu > 0) {
        return Err(SlotError::GpuOnly { what: what.to_owned() });
    }
    let uses_gpus = !gpus.is_empty();
    let n_slots = gpus.len() + n_cpu;
    let ids = gpus.into_iter().chain((0..n_cpu).map(|index| SlotId { kind: DeviceKind::Cpu, index }));
    let slots: Vec<Slot> = ids
        .enumerate()
        .map(|(nth, id)| {
            let threads = match request.threads_per_trial {
                // The first slots take the remainder.
                0 => (cores / n_slots + usize::from(nth < cores % n_slots)).max(1),
                threads => threads,
            };
            Slot { id, threads }
        })
        .collect();
    let threads: usize = slots.iter().map(|slot| slot.threads).sum();
    // Trials on GPUs use their threads only now and then.
    if threads > cores && !uses_gpus {
        notes.push(format!(
            "{n_slots} slots with {threads} threads in all share {cores} cores; fewer would be faster"
        ));
    }
    Ok(SlotPlan { slots, note: (!notes.is_empty()).then(|| notes.join("\n")) })
}

/// The GPUs that trials may run on.
fn gpus(
    request: &SlotRequest<'_>,
    probe: &dyn Fn(DeviceKind, usize) -> Probe,
    notes: &mut Vec<String>,
) -> Result<Vec<SlotId>, SlotError> {
    let is_wanted = |kind: &DeviceKind| request.kinds.is_empty() || request.kinds.contains(kind);
    let of_kind = |kind: DeviceKind| {
        let found = (0..MAX_GPUS).take_while(move |&index| probe(kind, index) == Probe::Found);
        found.map(move |index| SlotId { kind, index })
    };
    let (mut gpus, mut missing) = (Vec::new(), Vec::new());
    for kind in GPU_KINDS.into_iter().filter(is_wanted) {
        let before = gpus.len();
        gpus.extend(of_kind(kind));
        if gpus.len() == before && !request.kinds.is_empty() {
            let others = GPU_KINDS.into_iter().filter(|&other| other != kind);
            let others = others.map(|other| (of_kind(other).count(), other)).filter(|(n, _)| *n > 0);
            let mut found = vec![format!("the CPU ({})", count_of(request.cores.max(1), "core"))];
            found.extend(others.map(|(n, other)| format!("{n} of kind `{}`", other.as_str())));
            let name = kind.as_str();
            let help = match probe(kind, 0) {
                Probe::NotBuilt => {
                    format!("this program was built without {name}; `{}` builds it in", build_command(kind))
                }
                Probe::Absent(problem) => {
                    format!(
                        "this program was built with {name}, so look at the driver, which says: {problem}"
                    )
                }
                Probe::Found => format!("this program was built with {name}, so look at the driver"),
            };
            return Err(SlotError::Missing { kind, found: found.join(", "), help });
        }
        // Whoever has built GPUs in counts on them.
        if gpus.len() == before
            && let Probe::Absent(problem) = probe(kind, 0)
        {
            let name = kind.as_str();
            missing.push(format!("this program was built with {name}, but no such device opens: {problem}"));
        }
    }
    if gpus.is_empty() {
        notes.extend(missing.into_iter().map(|why| format!("trials run on the CPU: {why}")));
    }
    Ok(gpus)
}

/// CPU slots beside those of `n_gpus` GPUs, however many trials there are.
fn n_cpu_slots(request: &SlotRequest<'_>, cores: usize, n_gpus: usize) -> usize {
    let threads = request.threads_per_trial.max(1);
    match request.cpu_slots {
        0 => (cores.saturating_sub(n_gpus * threads) / threads).max(1),
        slots => slots,
    }
}

fn count_of(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceKind::{Cpu, Cuda, Metal};

    const REQUEST: SlotRequest<'static> =
        SlotRequest { kinds: &[], cpu_slots: 0, threads_per_trial: 0, cores: 8, n_trials: 9, gpu_only: None };

    /// A machine with so many CUDA devices.
    fn with_cuda(n: usize) -> impl Fn(DeviceKind, usize) -> Probe {
        move |kind, index| match kind {
            Cuda if index < n => Probe::Found,
            Cuda => Probe::Absent("no device is detected".to_owned()),
            _ => Probe::NotBuilt,
        }
    }

    fn no_features(kind: DeviceKind, _index: usize) -> Probe {
        if kind == Cpu { Probe::Found } else { Probe::NotBuilt }
    }

    fn threads(cores: usize, n_trials: usize, cpu_slots: usize, threads_per_trial: usize) -> Vec<usize> {
        let request = SlotRequest { cpu_slots, threads_per_trial, cores, n_trials, ..REQUEST };
        find_slots(&request, &no_features).unwrap().slots.iter().map(|slot| slot.threads).collect()
    }

    /// Names and threads of the slots.
    fn slots(request: &SlotRequest<'_>, n_cuda: usize) -> Vec<(String, usize)> {
        let plan = find_slots(request, &with_cuda(n_cuda)).unwrap();
        plan.slots.iter().map(|slot| (slot.id.to_string(), slot.threads)).collect()
    }

    fn named(slots: &[(&str, usize)]) -> Vec<(String, usize)> {
        slots.iter().map(|&(name, threads)| (name.to_owned(), threads)).collect()
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
        let request = SlotRequest { cpu_slots: 3, cores: 2, n_trials: 5, ..REQUEST };
        let plan = find_slots(&request, &no_features).unwrap();
        assert_eq!(plan.slots.len(), 3);
        assert!(plan.note.unwrap().contains("3 slots with 3 threads in all share 2 cores"));
    }

    #[test]
    fn every_gpu_is_a_slot() {
        let four = [("cuda:0", 2), ("cuda:1", 2), ("cuda:2", 2), ("cuda:3", 2)];
        assert_eq!(slots(&REQUEST, 4), named(&four));
        assert_eq!(slots(&SlotRequest { kinds: &[Cuda], ..REQUEST }, 4), named(&four));
        assert_eq!(slots(&SlotRequest { n_trials: 2, ..REQUEST }, 4), named(&[("cuda:0", 4), ("cuda:1", 4)]));
        assert_eq!(slots(&SlotRequest { cores: 1, ..REQUEST }, 2), named(&[("cuda:0", 1), ("cuda:1", 1)]));
        assert_eq!(slots(&SlotRequest { threads_per_trial: 3, ..REQUEST }, 1), named(&[("cuda:0", 3)]));
        assert_eq!(slots(&SlotRequest { kinds: &[Cpu], cores: 1, ..REQUEST }, 4), named(&[("cpu:0", 1)]));
        assert_eq!(slots(&SlotRequest { cores: 1, ..REQUEST }, 0), named(&[("cpu:0", 1)]));
    }

    #[test]
    fn gpus_and_cpu_work_side_by_side_when_both_are_named() {
        let both = SlotRequest { kinds: &[Cpu, Cuda], cores: 4, ..REQUEST };
        let all = [("cuda:0", 1), ("cuda:1", 1), ("cpu:0", 1), ("cpu:1", 1)];
        assert_eq!(slots(&both, 2), named(&all));
        assert_eq!(slots(&SlotRequest { n_trials: 3, ..both.clone() }, 2).len(), 3);
        assert_eq!(slots(&SlotRequest { n_trials: 2, ..both.clone() }, 2).len(), 2);
        let one = SlotRequest { cpu_slots: 1, cores: 7, ..both };
        assert_eq!(slots(&one, 2), named(&[("cuda:0", 3), ("cuda:1", 2), ("cpu:0", 2)]));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_not_replaced() {
        let request = SlotRequest { kinds: &[Cpu, Cuda], cores: 2, ..REQUEST };
        let error = |request: &SlotRequest<'_>, probe: &dyn Fn(DeviceKind, usize) -> Probe| {
            find_slots(request, probe).unwrap_err().to_string()
        };
        assert_eq!(
            error(&request, &no_features),
            "`devices.use` names `cuda`, but there is no such device: found the CPU (2 cores); this program was \
             built without cuda; `cargo build --release --features cuda` builds it in"
        );
        assert_eq!(
            error(&request, &with_cuda(0)),
            "`devices.use` names `cuda`, but there is no such device: found the CPU (2 cores); this program was \
             built with cuda, so look at the driver, which says: no device is detected"
        );
        let request = SlotRequest { kinds: &[Metal], cores: 1, ..REQUEST };
        assert_eq!(
            error(&request, &with_cuda(2)),
            "`devices.use` names `metal`, but there is no such device: found the CPU (1 core), 2 of kind `cuda`; \
             this program was built without metal; `cargo build --release --features metal` builds it in"
        );
    }

    #[test]
    fn a_program_with_gpus_built_in_says_that_it_found_none() {
        let plan = find_slots(&REQUEST, &with_cuda(0)).unwrap();
        assert!(plan.slots.iter().all(|slot| slot.id.kind == Cpu));
        assert_eq!(
            plan.note.unwrap(),
            "trials run on the CPU: this program was built with cuda, but no such device opens: \
             no device is detected"
        );
        for quiet in [&SlotRequest { kinds: &[Cpu], ..REQUEST }, &REQUEST] {
            assert_eq!(find_slots(quiet, &no_features).unwrap().note, None);
        }
        assert_eq!(find_slots(&SlotRequest { kinds: &[Cpu], ..REQUEST }, &with_cuda(0)).unwrap().note, None);
        assert_eq!(find_slots(&REQUEST, &with_cuda(1)).unwrap().note, None);
    }

    #[test]
    fn what_only_a_gpu_computes_is_refused_on_a_cpu() {
        let request = SlotRequest { gpu_only: Some("train.autocast = true"), ..REQUEST };
        assert_eq!(find_slots(&request, &with_cuda(2)).unwrap().slots.len(), 2);
        let wanted = "train.autocast = true is for GPUs only, and trials would run on the CPU; set it to false, or \
                      `devices.use` to kinds of GPUs that this machine has";
        let mixed = SlotRequest { kinds: &[Cpu, Cuda], ..request };
        for (request, n_cuda) in [(&request, 0), (&mixed, 2)] {
            assert_eq!(find_slots(request, &with_cuda(n_cuda)).unwrap_err().to_string(), wanted);
        }
    }

    #[test]
    fn a_setting_without_effect_is_remarked_on() {
        let plan = find_slots(&SlotRequest { cpu_slots: 3, ..REQUEST }, &with_cuda(1)).unwrap();
        assert_eq!(plan.slots.len(), 1);
        assert!(plan.note.unwrap().contains("`devices.cpu_slots` has no effect: trials run on 1 GPU;"));
    }
}
