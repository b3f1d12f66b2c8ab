//! Integration tests: one binary, one module a subject.

mod model_golden;
mod sched_processes;
