//! Integration tests: one binary, one module a subject.

mod data;
mod eval_golden;
mod hub;
mod model_golden;
mod sae_format;
mod store;
mod tidy;
mod train_golden;
mod train_loop;
