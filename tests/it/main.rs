//! Integration tests: one binary, one module a subject.

mod data;
mod hub;
mod model_golden;
mod sae_format;
mod sched_processes;
mod store;
mod tidy;
mod train_golden;
mod train_loop;
mod store;
mod report;
mod spec_errors;
mod sweep_files;
