//! Integration tests: one binary, one module a subject.

mod data;
mod eval_golden;
mod harvest;
mod hub;
mod model_golden;
mod report;
mod rows;
mod sae_format;
mod sched_processes;
mod spec_errors;
mod store;
mod sweep_files;
mod tidy;
mod train_golden;
mod train_loop;
