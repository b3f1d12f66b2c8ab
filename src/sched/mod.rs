//! Scheduling: which trial runs where and when, and the processes that run them.
//!
//! [`Core`] decides and does nothing else: values in, actions out, no clock, no processes. [`run`] (the
//! dispatcher) is the loop that carries its actions out, with one process group per trial (`executor`).
//! It schedules trials on slots; it knows nothing of what a trial does. Read [`Core`] first.

mod core;
mod dispatcher;
mod executor;
mod slots;

pub use self::core::{Action, Core, EXIT_STOPPED, Exit, FinishReason, Input, Policy, Verdict};
pub use dispatcher::{Host, Interrupts, RunEvent, SchedError, run};
pub use executor::TrialCommand;
pub use slots::{SlotError, SlotPlan, SlotRequest, find_slots};
