//! One trial's training: schedules, the step, dead and density bookkeeping, metrics lines, checkpoints, and
//! the loop that ties them together. A transcoder's run is the same with targets of its own: [`Output`].
//!
//! Start with [`train`]; [`Trainer`] is the same step for batches from anywhere. Nothing here reads a clock
//! or watches for signals: both come in through [`Hooks`]. Steps run on the CPU kernels or on a GPU:
//! [`Backend`].

mod centre;
mod checkpoint;
mod device;
mod filter;
mod firing;
mod metrics;
mod on_device;
#[cfg(test)]
mod options_tests;
mod output;
mod prepare;
mod resample;
#[cfg(test)]
mod resume_tests;
mod run;
mod schedules;
mod steps;
mod tensor;
mod threshold;
mod trainer;

pub use checkpoint::{CHECKPOINT_FOLDER, remove as remove_checkpoint};
pub use device::{Backend, Probe, build_command, gpu_only, probe};
pub use firing::Firing;
pub use metrics::{ExplainedVariance, LogLine, METRICS_FILE};
pub use output::Output;
pub use run::{Hooks, TrainError, TrainOutcome, train};
pub use schedules::{annealed_k, learning_rate, sparsity_coefficient};
pub use trainer::{StepReport, Trained, Trainer};
