//! Integration tests: one binary, one module a subject.

#![expect(clippy::unwrap_used, reason = "a test that meets something unexpected should stop there")]
#![expect(clippy::print_stdout, reason = "with --nocapture, tests show how far from the truth they are")]

mod allocations;
mod commands;
mod data;
mod eval_golden;
mod harvest;
mod hub;
mod kill;
mod memory;
mod model_golden;
mod report;
mod rows;
mod run_from_hub;
mod sae_exchange;
mod sae_format;
mod sched_processes;
mod small_harvest;
mod small_sae;
mod small_trial;
mod spec_errors;
mod store;
mod sweep_files;
mod tidy;
mod tiny_sweep;
mod train_golden;
mod train_loop;
mod transcoder;
